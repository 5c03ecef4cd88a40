"""Scores pseudo masks (IRN, step/eval_sem_seg.py), and the CRF labels that the boundary network learned from."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import open_dataset, scored_names
from data.base import Dataset
from data.files import save_json
from data.images import read_mask
from data.pool import chunks, map_items
from data.progress import bar
from misc import torchutils
from misc.metrics import confusion, foreground, iou_table, mean_iou
from misc.run.metricsfile import SCHEMA
from misc.run.workdir import place, require, result_file

IMAGES_PER_CALL = 16


class Counted(NamedTuple):
    """What masks amount to against the truth."""

    confusion: np.ndarray  # int64 [C, C]
    left_open: int  # pixels with ground truth that were left out because the mask holds 255
    miou: dict[str, float]  # of every image on its own


def run(args: argparse.Namespace) -> dict:
    """Returns mIoU, IoU per class and the confusion of the pseudo masks; 255 in a mask counts as background.

    Where there are CRF labels they are scored too, without the pixels that they leave open. Writes `per_image.json`.
    """
    dataset = open_dataset(args)
    names = scored_names(args, dataset)
    require(args, "sem_seg_out_dir", names, ".png")
    masks = count(args, dataset, names, place(args, "sem_seg_out_dir"), "eval_sem_seg")
    if torchutils.rank() == 0:
        by_name = {name: round(masks.miou[name], 4) for name in names}
        save_json(Path(args.work_dir) / "per_image.json", {"schema": SCHEMA, "sem_seg": by_name})
    logging.info("pseudo mask mIoU %.1f", 100 * mean_iou(masks.confusion))
    values = {"images": len(names), **summary(masks.confusion, dataset)}
    labelled = [name for name in names if result_file(args, "ir_label_out_dir", name, ".png").is_file()]
    if labelled:
        labels = count(args, dataset, labelled, place(args, "ir_label_out_dir"), "score CRF labels", skip_open=True)
        ignored = labels.left_open / max(1, labels.left_open + int(labels.confusion.sum()))
        values["ir_label"] = {"images": len(labelled), "ignored": ignored, **summary(labels.confusion, dataset)}
    return values


def score(args: argparse.Namespace, dataset: Dataset, names: Sequence[str], folder: Path, title: str) -> dict:
    """The summary of the masks folder/NAME.png, over all ranks."""
    return summary(count(args, dataset, names, folder, title).confusion, dataset)


def summary(counted: np.ndarray, dataset: Dataset) -> dict:
    """mIoU, IoU per class, precision and recall of the foreground, and the confusion that they come from."""
    return {
        "miou": mean_iou(counted),
        "iou": iou_table(counted, dataset.classes),
        "foreground": foreground(counted),
        "confusion": counted.tolist(),
    }


def count(
    args: argparse.Namespace, dataset: Dataset, names: Sequence[str], folder: Path, title: str, skip_open: bool = False
) -> Counted:
    """Counts the masks folder/NAME.png over all ranks. skip_open: leave out pixels with 255 in the mask."""
    mine = torchutils.shard(names)
    total = np.zeros((dataset.n_classes + 1,) * 2, np.int64)
    left_open, miou = 0, []
    parts = chunks(mine, IMAGES_PER_CALL)
    with bar(len(mine), title) as progress:
        for part, counted in zip(
            parts, map_items(partial(_count, dataset, folder, skip_open), parts, args.num_workers), strict=True
        ):
            total += counted.confusion
            left_open += counted.left_open
            miou += counted.miou.items()
            progress.set_postfix_str(f"mIoU {100 * mean_iou(total):.1f}", refresh=False)
            progress.update(len(part))
    total = torchutils.all_reduce_sum(total)
    return Counted(total, sum(torchutils.gather([left_open])), dict(torchutils.gather(miou)))


def _count(dataset: Dataset, folder: Path, skip_open: bool, names: Sequence[str]) -> Counted:
    n = dataset.n_classes + 1
    total, left_open, miou = np.zeros((n, n), np.int64), 0, {}
    for name in names:
        truth = dataset.mask(name)
        mask = read_mask(folder / f"{name}.png", dataset.n_classes, truth.shape)
        if skip_open:
            left_open += int(((mask == 255) & (truth != 255)).sum())
            truth = np.where(mask == 255, 255, truth)
        counted = confusion(mask, truth, n)
        total += counted
        miou[name] = mean_iou(counted)
    return Counted(total, left_open, miou)
