"""Scores seeds over a sweep of background thresholds in one pass (RIB, step/eval_cam.py)."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial

import numpy as np

from data import scored_names
from data.base import Dataset
from data.progress import progress_map
from data.results import load_cam
from data.transforms import resize_maps
from misc import torchutils
from misc.metrics import ThresholdSweep, fixed_and_best, foreground, iou_table, mean_iou, sweep_thresholds
from misc.run.outputs import require, result_file


def run(args: argparse.Namespace, dataset: Dataset, folder: str = "cam_out_dir") -> dict:
    """Returns the scores at the fixed and the best threshold, and the mIoU of every threshold of the sweep.

    No score where the masks hold no object.

    folder: the argument that names the folder of CAM files to score. The confusion is that at the best threshold.
    """
    names = scored_names(args, dataset)
    require(args, folder, names)
    sweep = (args.cam_eval_sweep, args.cam_eval_thres)
    thresholds, swept = sweep_thresholds(*sweep)
    total = ThresholdSweep(thresholds, dataset.n_classes + 1)
    count = partial(_count, args, dataset, folder, thresholds)
    for counts in progress_map(
        count, torchutils.shard(names), f"eval {folder.removesuffix('_out_dir')}", args.num_workers,
        grouped=True, status=lambda: f"best mIoU {100 * max(map(mean_iou, total.confusions())):.1f}",
    ):  # fmt: skip
        total.counts += counts
    total.counts = torchutils.all_reduce_sum(total.counts)
    if not total.counts[1:].any():
        logging.warning("the masks of the %d images hold no object: nothing is scored", len(names))
        return {"images": len(names)}
    confusions = total.confusions()
    miou = np.array([mean_iou(confusion) for confusion in confusions])
    fixed, best = fixed_and_best(miou, *sweep)
    summary = {
        key: {
            "threshold": float(thresholds[i]),
            "miou": miou[i],
            "iou": iou_table(confusions[i], dataset.classes),
            "foreground": foreground(confusions[i]),
        }
        for key, i in (("fixed", fixed), ("best", best))
    }
    summary["best"]["confusion"] = confusions[best].tolist()
    logging.info(
        "seed mIoU %.1f at the best threshold %.2f, %.1f at the fixed %.2f",
        100 * miou[best], thresholds[best], 100 * miou[fixed], thresholds[fixed],
    )  # fmt: skip
    by_threshold = {f"{t:g}": value for t, value in zip(thresholds[swept], miou[swept], strict=True)}
    return {"images": len(names), **summary, "sweep": by_threshold}


def _count(
    args: argparse.Namespace, dataset: Dataset, folder: str, thresholds: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    sweep = ThresholdSweep(thresholds, dataset.n_classes + 1)
    for name in names:
        mask = dataset.mask(name)
        size = dataset.working_size(mask.shape)
        seeds = load_cam(result_file(args, folder, name, ".npy"), size, dataset.n_classes)
        sweep.add(seeds["keys"], resize_maps(seeds["high_res"], *mask.shape), mask)
    return sweep.counts
