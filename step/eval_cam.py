"""Scores seeds over a sweep of background thresholds in one pass (RIB, step/eval_cam.py)."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial

import numpy as np

from data import open_dataset, scored_names
from data.base import Dataset
from data.pool import chunks, map_items
from data.progress import bar
from data.results import load_cam
from misc import torchutils
from misc.metrics import ThresholdSweep, foreground, iou_table, mean_iou
from misc.run.workdir import require, result_file

IMAGES_PER_CALL = 16


def run(args: argparse.Namespace, folder: str = "cam_out_dir") -> dict:
    """Returns the scores at the fixed and the best threshold, and the mIoU of every threshold of the sweep.

    folder: the argument that names the folder of CAM files to score. The confusion is that at the best threshold.
    """
    dataset = open_dataset(args)
    names = scored_names(args, dataset)
    require(args, folder, names)
    thresholds = thresholds_of(args)
    mine = torchutils.shard(names)
    total = ThresholdSweep(thresholds, dataset.n_classes + 1)
    count = partial(_count, args, dataset, folder, thresholds)
    parts = chunks(mine, IMAGES_PER_CALL)
    with bar(len(mine), f"eval {folder.removesuffix('_out_dir')}") as progress:
        for chunk, counts in zip(parts, map_items(count, parts, args.num_workers), strict=True):
            total.counts += counts
            if not progress.disable:
                best = max(mean_iou(confusion) for confusion in total.confusions())
                progress.set_postfix_str(f"best mIoU {100 * best:.1f}", refresh=False)
            progress.update(len(chunk))
    total.counts = torchutils.all_reduce_sum(total.counts)
    confusions = total.confusions()
    miou = np.array([mean_iou(confusion) for confusion in confusions])
    fixed, best = fixed_and_best(args, miou)
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
    in_sweep = _in_sweep(args)
    sweep = {f"{t:g}": value for t, value in zip(thresholds[in_sweep], miou[in_sweep], strict=True)}
    return {"images": len(names), **summary, "sweep": sweep}


def thresholds_of(args: argparse.Namespace) -> np.ndarray:
    """float64 [T], ascending: the thresholds of `--cam_eval_sweep` and `--cam_eval_thres`."""
    return np.unique(np.append(_swept(args), args.cam_eval_thres))


def fixed_and_best(args: argparse.Namespace, miou: np.ndarray) -> tuple[int, int]:
    """Indices of the fixed threshold and of the best of the sweep. miou: [T], of every threshold of `thresholds_of`."""
    best = int(np.flatnonzero(_in_sweep(args))[miou[_in_sweep(args)].argmax()])
    return int(np.flatnonzero(np.isclose(thresholds_of(args), args.cam_eval_thres))[0]), best


def _swept(args: argparse.Namespace) -> np.ndarray:
    low, high, step = args.cam_eval_sweep
    return np.round(np.arange(low, high + step / 2, step), 6)


def _in_sweep(args: argparse.Namespace) -> np.ndarray:
    return np.isin(thresholds_of(args), _swept(args))


def _count(
    args: argparse.Namespace, dataset: Dataset, folder: str, thresholds: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    sweep = ThresholdSweep(thresholds, dataset.n_classes + 1)
    for name in names:
        mask = dataset.mask(name)
        seeds = load_cam(result_file(args, folder, name, ".npy"), mask.shape, dataset.n_classes)
        sweep.add(seeds["keys"], seeds["high_res"], mask)
    return sweep.counts
