"""CAMs widened by reducing the information bottleneck, image by image (RIB, step/make_rib_cam.py)."""

import argparse

import torch

from data import image_names, open_dataset
from data.errors import UserError
from data.progress import bar
from data.results import save_cam
from misc import torchutils
from misc.cam import combine_scales
from misc.run.metricsfile import made
from misc.run.recording import open_rib
from misc.run.resume import pending
from misc.run.workdir import require, result_file


def run(args: argparse.Namespace) -> dict:
    """Writes `cam_rib/NAME.npy` for every image of the inference list; returns how many steps the images took."""
    require(args, "cam_weights_name")
    dataset = open_dataset(args)
    names = image_names(args, dataset, "infer")
    todo = pending(args, "cam_rib_out_dir", names, ".npy")
    device = torchutils.resolve_device(args.device)
    rib, items, watch = open_rib(args, dataset, todo, device)
    steps = []
    with bar(len(todo), "make_rib_cam") as progress:
        for name, size, levels, label, companions in items:
            try:
                if label.any():
                    cams, entered = rib.run(levels, label, companions)
                else:  # no class, no map: nothing to widen
                    cams, entered = [levels[0].new_zeros((len(label), 1, 1))], 0
            except FloatingPointError as error:
                raise FloatingPointError(f"image {name}: {error}") from error
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"image {name} ({size[0]} x {size[1]}): out of GPU memory even with one companion at a time; use "
                    "--precision bf16 or a smaller --RIB_crop_size, or scale the image down; the same command "
                    "goes on where it stopped"
                ) from error
            keys = label.nonzero().flatten()
            cam, high_res = combine_scales(cams, keys, size)
            save_cam(
                result_file(args, "cam_rib_out_dir", name, ".npy"),
                keys.cpu().numpy(),
                cam.cpu().numpy(),
                high_res.cpu().numpy(),
            )
            steps.append(entered)
            progress.set_postfix_str(
                f"{sum(steps) / len(steps):.1f} RIB steps an image, {watch.share():.0%} waiting", refresh=False
            )
            progress.update()
    steps = torchutils.gather(steps)
    counts = {str(n): steps.count(n) for n in sorted(set(steps))}
    return {**made(todo, names), "RIB_steps": counts, "waiting_share": round(watch.share(), 4)}
