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
from misc import torchutils
from misc.files import load_mask, save_json
from misc.metrics import confusion, foreground, iou_table, mean_iou
from misc.pool import chunks, map_items
from misc.progress import bar
from misc.workdir import SCHEMA, require, result_file

IMAGES_PER_CALL = 16


class Counts(NamedTuple):
    """What some images add to the total; the CRF labels only where there are any."""

    masks: np.ndarray  # int64 [C, C], confusion of the pseudo masks
    labels: np.ndarray  # the same of the CRF labels, without the pixels that they leave open
    left_open: int  # such pixels with ground truth
    labelled: int  # images with a CRF label
    miou: list[float]  # of every image on its own


def run(args: argparse.Namespace) -> dict:
    """Returns mIoU, IoU per class and the confusion of the pseudo masks; 255 in a mask counts as background.

    Where there are CRF labels they are scored too, without the pixels that they leave open. Writes `per_image.json`.
    """
    dataset = open_dataset(args)
    names = scored_names(args, dataset)
    require(args, "sem_seg_out_dir", names, ".png")
    mine = torchutils.shard(names)
    masks, labels = (np.zeros((dataset.n_classes + 1,) * 2, np.int64) for _ in range(2))
    left_open = labelled = 0
    scores: list[tuple[str, float]] = []
    parts = chunks(mine, IMAGES_PER_CALL)
    with bar(len(mine), "eval_sem_seg") as progress:
        for part, counts in zip(parts, map_items(partial(_count, args, dataset), parts, args.num_workers), strict=True):
            masks += counts.masks
            labels += counts.labels
            left_open, labelled = left_open + counts.left_open, labelled + counts.labelled
            scores += zip(part, counts.miou, strict=True)
            progress.set_postfix_str(f"mIoU {100 * mean_iou(masks):.1f}", refresh=False)
            progress.update(len(part))
    masks, labels = torchutils.all_reduce_sum(masks), torchutils.all_reduce_sum(labels)
    left_open, labelled = (sum(torchutils.gather([value])) for value in (left_open, labelled))
    by_name = dict(torchutils.gather(scores))
    if torchutils.rank() == 0:
        ordered = {name: round(by_name[name], 4) for name in names}
        save_json(Path(args.work_dir) / "per_image.json", {"schema": SCHEMA, "sem_seg": ordered})
    logging.info("pseudo mask mIoU %.1f", 100 * mean_iou(masks))
    out = {"images": len(names), **_summary(masks, dataset)}
    if labelled:
        open_share = left_open / max(1, left_open + int(labels.sum()))
        out["ir_label"] = {"images": labelled, "ignored": open_share, **_summary(labels, dataset)}
    return out


def _summary(counted: np.ndarray, dataset: Dataset) -> dict:
    return {
        "miou": mean_iou(counted),
        "iou": iou_table(counted, dataset.classes),
        "foreground": foreground(counted),
        "confusion": counted.tolist(),
    }


def _count(args: argparse.Namespace, dataset: Dataset, names: Sequence[str]) -> Counts:
    n = dataset.n_classes + 1
    masks, labels = (np.zeros((n, n), np.int64) for _ in range(2))
    left_open, labelled, miou = 0, 0, []
    for name in names:
        truth = dataset.mask(name)
        counted = confusion(load_mask(result_file(args, "sem_seg_out_dir", name, ".png")), truth, n)
        masks += counted
        miou.append(mean_iou(counted))
        path = result_file(args, "ir_label_out_dir", name, ".png")
        if path.is_file():
            label = load_mask(path)
            open_pixels = label == 255
            labels += confusion(label, np.where(open_pixels, 255, truth), n)
            left_open += int((open_pixels & (truth != 255)).sum())
            labelled += 1
    return Counts(masks, labels, left_open, labelled, miou)
