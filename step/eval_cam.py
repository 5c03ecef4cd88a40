"""Scores seeds over a sweep of background thresholds in one pass (RIB, step/eval_cam.py)."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial

import numpy as np

from data import open_dataset, scored_names
from data.base import Dataset
from misc import camfile, torchutils
from misc.metrics import ThresholdSweep, iou_table, mean_iou
from misc.pool import chunks, map_items
from misc.progress import bar
from misc.workdir import require, result_file

IMAGES_PER_CALL = 16


def run(args: argparse.Namespace, folder: str = "cam_out_dir") -> dict:
    """Returns mIoU and IoU at the fixed and the best threshold, and the mIoU of every threshold of the sweep.

    folder: the argument that names the folder of CAM files to score.
    """
    dataset = open_dataset(args)
    names = scored_names(args, dataset)
    require(args, folder, names)
    low, high, step = args.cam_eval_sweep
    swept = np.round(np.arange(low, high + step / 2, step), 6)
    thresholds = np.unique(np.append(swept, args.cam_eval_thres))
    mine = torchutils.shard(names)
    total = ThresholdSweep(thresholds, dataset.n_classes + 1)
    count = partial(_count, args, dataset, folder, thresholds)
    parts = chunks(mine, IMAGES_PER_CALL)
    with bar(len(mine), f"eval {folder.removesuffix('_out_dir')}") as progress:
        for chunk, counts in zip(parts, map_items(count, parts, args.num_workers), strict=True):
            total.counts += counts
            progress.update(len(chunk))
    total.counts = torchutils.all_reduce_sum(total.counts)
    confusions = total.confusions()
    miou = np.array([mean_iou(confusion) for confusion in confusions])
    in_sweep = np.isin(thresholds, swept)
    best = int(np.flatnonzero(in_sweep)[miou[in_sweep].argmax()])
    fixed = int(np.flatnonzero(np.isclose(thresholds, args.cam_eval_thres))[0])
    summary = {
        key: {"threshold": float(thresholds[i]), "miou": miou[i], "iou": iou_table(confusions[i], dataset.classes)}
        for key, i in (("fixed", fixed), ("best", best))
    }
    logging.info(
        "seed mIoU %.1f at the best threshold %.2f, %.1f at the fixed %.2f",
        100 * miou[best], thresholds[best], 100 * miou[fixed], thresholds[fixed],
    )  # fmt: skip
    sweep = {f"{t:g}": value for t, value in zip(thresholds[in_sweep], miou[in_sweep], strict=True)}
    return {"images": len(names), **summary, "sweep": sweep}


def _count(
    args: argparse.Namespace, dataset: Dataset, folder: str, thresholds: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    sweep = ThresholdSweep(thresholds, dataset.n_classes + 1)
    for name in names:
        mask = dataset.mask(name)
        seeds = camfile.load(result_file(args, folder, name, ".npy"), mask.shape)
        sweep.add(seeds["keys"], seeds["high_res"], mask)
    return sweep.counts
