"""Scores pseudo masks (IRN, step/eval_sem_seg.py)."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data import open_dataset, scored_names
from data.base import Dataset
from misc import torchutils
from misc.files import load_mask
from misc.metrics import confusion, iou_table, mean_iou
from misc.pool import chunks, map_items
from misc.progress import bar
from misc.workdir import place, require

IMAGES_PER_CALL = 16


def run(args: argparse.Namespace) -> dict:
    """Returns mIoU, IoU per class and the confusion of the pseudo masks; 255 in a mask counts as background."""
    dataset = open_dataset(args)
    names = scored_names(args, dataset)
    require(args, "sem_seg_out_dir", names, ".png")
    values = score(args, dataset, names, place(args, "sem_seg_out_dir"), "eval_sem_seg")
    logging.info("pseudo mask mIoU %.1f", 100 * values["miou"])
    return {"images": len(names), **values}


def score(args: argparse.Namespace, dataset: Dataset, names: Sequence[str], folder: Path, title: str) -> dict:
    """mIoU, IoU per class and confusion of the masks folder/NAME.png, over all ranks."""
    mine = torchutils.shard(names)
    total = np.zeros((dataset.n_classes + 1,) * 2, np.int64)
    parts = chunks(mine, IMAGES_PER_CALL)
    with bar(len(mine), title) as progress:
        for part, counts in zip(
            parts, map_items(partial(_count, dataset, folder), parts, args.num_workers), strict=True
        ):
            total += counts
            progress.update(len(part))
    total = torchutils.all_reduce_sum(total)
    return {"miou": mean_iou(total), "iou": iou_table(total, dataset.classes), "confusion": total.tolist()}


def _count(dataset: Dataset, folder: Path, names: Sequence[str]) -> np.ndarray:
    n = dataset.n_classes + 1
    return sum(
        (confusion(load_mask(folder / f"{name}.png"), dataset.mask(name), n) for name in names),
        np.zeros((n, n), np.int64),
    )
