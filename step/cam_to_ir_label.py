"""IRN labels: CAMs through two dense-CRF runs (IRN, step/cam_to_ir_label.py)."""

import argparse
from functools import partial

from data import image_names
from data.base import Dataset
from data.images import save_mask, voc_palette
from data.progress import progress_map
from data.results import load_cam
from misc import crf, torchutils
from misc.run.outputs import made, pending, require, result_file, seeds_argument


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes `ir_label/NAME.png` for every image of the inference list."""
    names = image_names(args, dataset, "infer")
    require(args, seeds_argument(args), names)
    todo = pending(args, dataset, "ir_label_out_dir", names, ".png")
    backend = crf.resolve_backend(args.crf_backend, torchutils.resolve_device(args.device))
    workers = crf.processes(backend, args.num_workers)
    ignored = []
    label = partial(_label, args, dataset, backend)
    for fraction in progress_map(
        label, todo, "cam_to_ir_label", workers, status=lambda: f"{sum(ignored) / len(ignored):.0%} ignored"
    ):
        ignored.append(fraction)
    return made(todo, names)


def _label(args: argparse.Namespace, dataset: Dataset, backend: crf.Backend, name: str) -> float:
    image = dataset.image(name)
    path = result_file(args, seeds_argument(args), name, ".npy")
    seeds = load_cam(path, image.shape[:2], dataset.n_classes)
    label = crf.ir_label(image, seeds["high_res"], seeds["keys"], args.conf_fg_thres, args.conf_bg_thres, backend)
    save_mask(result_file(args, "ir_label_out_dir", name, ".png"), dataset.full_size(name, label), voc_palette())
    return float((label == 255).mean())
