"""Labels for the boundary network: CAMs through two dense-CRF runs (IRN, step/cam_to_ir_label.py)."""

import argparse
from functools import partial

import torch

from data import image_names, open_dataset
from data.base import Dataset
from data.images import save_mask, voc_palette
from data.pool import map_items
from data.progress import bar
from data.results import load_cam
from misc import crf, torchutils
from misc.run.metricsfile import made
from misc.run.resume import pending
from misc.run.workdir import require, result_file, seeds_argument


def run(args: argparse.Namespace) -> dict:
    """Writes `ir_label/NAME.png` for every image of the inference list."""
    dataset = open_dataset(args)
    names = image_names(args, dataset, "infer")
    require(args, seeds_argument(args), names)
    todo = pending(args, "ir_label_out_dir", names, ".png")
    device = crf.resolve_backend(args.crf_backend, torchutils.resolve_device(args.device))
    # A GPU does one image after another in this process; processors share them out.
    workers = 0 if device is not None and device.type == "cuda" else args.num_workers
    shares = []
    with bar(len(todo), "cam_to_ir_label") as progress:
        for share in map_items(partial(_label, args, dataset, device), todo, workers):
            shares.append(share)
            progress.set_postfix_str(f"{sum(shares) / len(shares):.0%} ignored", refresh=False)
            progress.update()
    return made(todo, names)


def _label(args: argparse.Namespace, dataset: Dataset, device: torch.device | None, name: str) -> float:
    image = dataset.image(name)
    path = result_file(args, seeds_argument(args), name, ".npy")
    seeds = load_cam(path, image.shape[:2], dataset.n_classes)
    label = crf.ir_label(image, seeds["high_res"], seeds["keys"], args.conf_fg_thres, args.conf_bg_thres, device)
    save_mask(result_file(args, "ir_label_out_dir", name, ".png"), label, voc_palette())
    return float((label == 255).mean())
