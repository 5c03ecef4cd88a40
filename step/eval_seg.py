"""Segments the validation or test images, refines the masks by a dense CRF and scores them."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data import image_names
from data.base import Dataset
from data.images import save_mask, voc_palette
from data.loaders import Pyramids, iterate_images
from data.progress import progress_map
from misc import crf, torchutils
from misc.report.tables import number
from misc.run.masks import count_masks, scores_of
from misc.run.networks import load_seg
from misc.run.outputs import SEG, metrics, path_of, pending, require
from net.deeplabv2 import probabilities


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes `seg/NAME.png` for every image of the validation list; returns mIoU and IoU, with and without the CRF.

    Networks that were trained on further `--seg_labels` are compared by their mIoU. Without ground truth there is no
    score, and the masks lie as the dataset's test server wants them.
    """
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
        counted = (count_masks(args, dataset, scored, folder, f"score {title}") for folder in folders)
        refined, *raw = (scores_of(counts.confusion, dataset) for counts in counted)
        before = f", {number(raw[0]['miou'])} before the CRF" if raw else ""
        logging.info("segmentation network trained on %s: mIoU %s%s", title, number(refined["miou"]), before)
        comparison[title] = refined["miou"]
        if first:
            values |= refined
            values |= {"before_crf": {key: raw[0][key] for key in ("miou", "iou")}} if raw else {}
    return {**values, "comparison": comparison} if len(comparison) > 1 else values


def _title(args: argparse.Namespace, labels: str) -> str:
    """What a network was trained on: "rib" for the pseudo masks out of RIB's seeds, else the word of `--seg_labels`."""
    return "rib" if labels == "pseudo" and args.seeds == "cam_rib" else labels


@torch.inference_mode()
def _segment(
    args: argparse.Namespace, dataset: Dataset, names: Sequence[str], labels: str, below: str = ""
) -> list[Path]:
    """Makes the masks that are not there yet; their folders: after the CRF, and before it where there is one.

    labels: what the network was trained on. below: folder of the masks, within that of `--seg_out_dir`.
    """
    weights, out = SEG[labels].weights, SEG[labels].out
    require(args, weights)
    root = path_of(args, out)
    folders = [root / below]
    if args.seg_crf_iter:
        folders.append(Path(f"{root}_before_crf"))
    inside = f"{below}/" if below else ""
    missing = set(pending(args, dataset, out, [inside + name for name in names], ".png"))
    todo = [
        name for name in torchutils.shard(names)
        if inside + name in missing or not (folders[-1] / f"{name}.png").is_file()
    ]  # fmt: skip
    device = torchutils.resolve_device(args.device)
    backend = crf.resolve_backend(args.crf_backend, device)
    workers = crf.processes(backend, args.num_workers)
    model = load_seg(args, dataset, weights, device)
    predictions = _predict(args, dataset, model, todo, device)
    finish = partial(_finish, args, dataset, backend, folders)
    for _ in progress_map(finish, predictions, f"eval_seg, trained on {labels}", workers, total=len(todo)):
        pass
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
    backend: crf.Backend,
    folders: Sequence[Path],
    prediction: tuple[str, tuple[int, int], list[np.ndarray]],
) -> None:
    """Stores the masks of one image (name, (H, W), logits per scale) in each of the folders, the refined one last."""
    name, size, logits = prediction
    shares = probabilities([torch.from_numpy(part) for part in logits], size)
    masks = [shares.argmax(0).numpy()]
    if args.seg_crf_iter:
        kernels = crf.Kernels(*args.seg_crf)
        refined = crf.crf_probabilities(dataset.image(name), shares.numpy(), kernels, args.seg_crf_iter, backend)
        masks.append(refined)
    for folder, mask in zip(reversed(folders), masks, strict=True):  # once it is there, all are
        save_mask(folder / f"{name}.png", dataset.full_size(name, mask), voc_palette())
