"""Segments the validation or test images, refines the masks by a dense CRF and scores them."""

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data import image_names, open_dataset
from data.base import Dataset
from data.images import save_mask, voc_palette
from data.loaders import Pyramids, iterate_images
from data.pool import map_items
from data.progress import bar
from misc import crf, torchutils
from misc.run.metricsfile import metrics
from misc.run.networks import load_seg
from misc.run.resume import pending
from misc.run.workdir import place, require
from net.deeplabv2 import probabilities
from step.eval_sem_seg import score
from step.train_seg import LABELS


def run(args: argparse.Namespace) -> dict:
    """Writes `seg/NAME.png` for every image of the validation list; returns mIoU and IoU, with and without the CRF.

    Networks that learnt from further `--seg_labels` are compared by their mIoU. Without ground truth there is no score,
    and the masks lie as the dataset's test server wants them.
    """
    dataset = open_dataset(args)
    names = image_names(args, dataset, "val")
    scored = [name for name in names if dataset.has_mask(name)]
    if not scored:
        masks = _segment(args, dataset, names, args.seg_labels[0], dataset.submission)[0]
        logging.info("none of the %d images has ground truth: no score; their masks are in %s", len(names), masks)
        # Masks for a test server must not cost the scores that are there.
        return {} if "miou" in metrics(args).get("eval_seg", {}) else {"images": len(names), "scored": 0}
    values: dict = {"images": len(names), "scored": len(scored), "labels": args.seg_labels[0]}
    comparison = {}
    for labels in args.seg_labels:
        first = labels == args.seg_labels[0]
        folders = _segment(args, dataset, names, labels)
        title = _title(args, labels)
        refined, *raw = (score(args, dataset, scored, folder, f"score {title}") for folder in folders)
        before = f", {100 * raw[0]['miou']:.1f} before the CRF" if raw else ""
        logging.info("segmentation learnt from %s: mIoU %.1f%s", title, 100 * refined["miou"], before)
        comparison[title] = refined["miou"]
        if first:
            values |= refined
            values |= {"before_crf": {key: raw[0][key] for key in ("miou", "iou")}} if raw else {}
    return {**values, "comparison": comparison} if len(comparison) > 1 else values


def _title(args: argparse.Namespace, labels: str) -> str:
    """What a network learnt from: "rib" for the pseudo masks out of RIB's seeds, else the word of `--seg_labels`."""
    return "rib" if labels == "pseudo" and args.seeds == "cam_rib" else labels


@torch.inference_mode()
def _segment(
    args: argparse.Namespace, dataset: Dataset, names: Sequence[str], labels: str, below: str = ""
) -> list[Path]:
    """Makes the masks that are not there yet; their folders: after the CRF, and before it where there is one.

    labels: what the network learnt from. below: folder of the masks, within that of `--seg_out_dir`.
    """
    weights, out = LABELS[labels].weights, LABELS[labels].out
    require(args, weights)
    root = place(args, out)
    folders = [root / below]
    if args.seg_crf_iter:
        beside = Path(os.path.abspath(root))  # `.` has no name of its own
        folders.append(beside.parent / f"{beside.name}_before_crf")
    inside = f"{below}/" if below else ""
    missing = set(pending(args, out, [inside + name for name in names], ".png"))
    todo = [
        name for name in torchutils.shard(names)
        if inside + name in missing or not (folders[-1] / f"{name}.png").is_file()
    ]  # fmt: skip
    device = torchutils.resolve_device(args.device)
    crf_device = crf.resolve_backend(args.crf_backend, device)
    # A GPU refines one image after another in this process; processors share them out.
    workers = 0 if crf_device is not None and crf_device.type == "cuda" else args.num_workers
    model = load_seg(args, dataset, weights, device)
    predictions = _predict(args, dataset, model, todo, device)
    with bar(len(todo), f"eval_seg, learnt from {labels}") as progress:
        for _ in map_items(partial(_finish, args, dataset, crf_device, folders), predictions, workers):
            progress.update()
    torchutils.barrier()
    return folders


def _predict(
    args: argparse.Namespace, dataset: Dataset, model: torch.nn.Module, names: Sequence[str], device: torch.device
) -> Iterator[tuple[str, tuple[int, int], list[np.ndarray]]]:
    """(name, (H, W), logits per scale) of every image, a few ahead of those that refine them."""
    views = 2 if args.seg_test_mirror else 1
    pyramids = Pyramids(dataset, names, args.seg_test_scales, labelled=False)
    for name, size, levels, _ in iterate_images(pyramids, args.num_workers):
        with torch.inference_mode(), torchutils.autocast(device, args.precision):
            logits = [model(level[:views].to(device)).float().cpu().numpy() for level in levels]
        yield name, size, logits


def _finish(
    args: argparse.Namespace,
    dataset: Dataset,
    crf_device: torch.device | None,
    folders: Sequence[Path],
    prediction: tuple[str, tuple[int, int], list[np.ndarray]],
) -> None:
    """Stores the masks of one image (name, (H, W), logits per scale) in each of the folders, the refined one last."""
    name, size, logits = prediction
    shares = probabilities([torch.from_numpy(part) for part in logits], size)
    masks = [shares.argmax(0).numpy()]
    if args.seg_crf_iter:
        kernels = crf.Kernels(*args.seg_crf)
        refined = crf.crf_probabilities(dataset.image(name), shares.numpy(), kernels, args.seg_crf_iter, crf_device)
        masks.append(refined)
    for folder, mask in zip(reversed(folders), masks, strict=True):  # once it is there, all are
        save_mask(folder / f"{name}.png", mask, voc_palette())
