"""Scores pseudo masks (IRN, step/eval_sem_seg.py), and the labels that the IRN was trained on."""

import argparse
import logging
from pathlib import Path

from data import scored_names
from data.base import Dataset
from data.files import save_json
from misc import torchutils
from misc.report.tables import number
from misc.run.masks import count_masks, scores_of
from misc.run.outputs import SCHEMA, path_of, require, result_file


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Returns mIoU, IoU per class and the confusion of the pseudo masks; 255 in a mask counts as background.

    Where there are IRN labels they are scored too, without the pixels that they ignore. Writes `per_image.json`.
    """
    names = scored_names(args, dataset)
    require(args, "sem_seg_out_dir", names, ".png")
    masks = count_masks(args, dataset, names, path_of(args, "sem_seg_out_dir"), "eval_sem_seg")
    if torchutils.rank() == 0:
        by_name = {name: round(masks.miou[name], 4) for name in names}
        save_json(Path(args.work_dir) / "per_image.json", {"schema": SCHEMA, "sem_seg": by_name})
    values = {"images": len(names), **scores_of(masks.confusion, dataset)}
    logging.info("pseudo mask mIoU %s", number(values["miou"]))
    labelled = [name for name in names if result_file(args, "ir_label_out_dir", name, ".png").is_file()]
    if labelled:
        folder = path_of(args, "ir_label_out_dir")
        labels = count_masks(args, dataset, labelled, folder, "score IRN labels", skip_ignored=True)
        ignored = labels.ignored / max(1, labels.ignored + int(labels.confusion.sum()))
        values["ir_label"] = {"images": len(labelled), "ignored": ignored, **scores_of(labels.confusion, dataset)}
    return values
