"""CAMs widened by reducing the information bottleneck, image by image (RIB, step/make_rib_cam.py)."""

import argparse
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from data import image_names
from data.base import Dataset
from data.progress import bar
from data.results import save_cam
from misc import torchutils
from misc.cam import combine_scales
from misc.run.outputs import made, pending, require, result_file
from misc.run.recording import naming, open_rib


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes `cam_rib/NAME.npy` for every image of the inference list; returns how many steps the images took."""
    require(args, "cam_weights_name")
    names = image_names(args, dataset, "infer")
    todo = pending(args, dataset, "cam_rib_out_dir", names, ".npy")
    device = torchutils.resolve_device(args.device)
    rib, items, watch = open_rib(args, dataset, todo, device)
    steps = []
    written = Future()
    written.set_result(None)
    # A thread copies and writes the maps of an image while the next one is computed.
    with bar(len(todo), "make_rib_cam") as progress, ThreadPoolExecutor(1) as thread:
        for name, size, levels, label, companions in items:
            if label.any():
                with naming(name, size):
                    cams, n_steps = rib.run(levels, label, companions, lowered=True)
            else:  # no class, no map: nothing to widen
                cams, n_steps = [levels[0].new_zeros((len(label), 1, 1))], 0
            keys = label.nonzero().flatten()
            written.result()
            written = thread.submit(_write, args, name, size, keys, cams)
            steps.append(n_steps)
            progress.set_postfix_str(
                f"{sum(steps) / len(steps):.1f} RIB steps an image, {watch.fraction():.0%} waiting", refresh=False
            )
            progress.update()
        written.result()
    steps = torchutils.gather(steps)
    counts = {str(n): steps.count(n) for n in sorted(set(steps))}
    return {**made(todo, names), "RIB_steps": counts, "waiting_share": round(watch.fraction(), 4)}


def _write(
    args: argparse.Namespace, name: str, size: tuple[int, int], keys: torch.Tensor, cams: Sequence[torch.Tensor]
) -> None:
    with naming(name, size):
        cam, high_res = combine_scales(cams, keys, size)
        path = result_file(args, "cam_rib_out_dir", name, ".npy")
        save_cam(path, keys.cpu().numpy(), cam.cpu().numpy(), high_res.cpu().numpy(), args.cam_dtype)
