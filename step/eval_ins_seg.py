"""Scores instance masks by their average precision (IRN, step/eval_ins_seg.py)."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import cocojson, image_names
from data.base import Dataset
from data.progress import progress_map
from data.results import load_instances
from misc import torchutils
from misc.metrics import COCO_IOUS, Matches, instance_ap, match_instances, mean_ap
from misc.report.tables import number
from misc.run.outputs import require, result_file


class Scored(NamedTuple):
    """What is kept of an image that has been read."""

    name: str
    size: tuple[int, int]
    matches: Matches
    results: list[dict]  # in COCO's format, where asked for
    truth: list[dict]


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Returns mAP at IoU 0.5, 0.7 and the mean over 0.5:0.95, and AP per class, over the images with true instances."""
    names = image_names(args, dataset, "eval")
    require(args, "ins_seg_out_dir", names)
    ids = cocojson.image_ids(names) if args.coco_json else None
    scored: list[Scored] = []
    score = partial(_score, args, dataset, ids)
    for part in progress_map(
        score, torchutils.shard(names), "eval_ins_seg", args.num_workers, grouped=True,
        status=lambda: f"{sum(len(image.matches.scores) for image in scored)} detections",
    ):  # fmt: skip
        scored += part
    order = {name: i for i, name in enumerate(names)}
    scored = sorted(torchutils.gather(scored), key=lambda image: order[image.name])  # for any number of ranks
    if not scored:
        logging.warning("%s has no true instances for --eval_list %s: nothing is scored", dataset.name, args.eval_list)
        return {}
    if len(scored) < len(names):
        logging.warning("%d of %d images have no true instances", len(names) - len(scored), len(names))
    ap = instance_ap([image.matches for image in scored], dataset.n_classes)
    if args.coco_json and torchutils.rank() == 0:  # as pycocotools reads them, `COCO(truth).loadRes(results)`
        folder, sizes = Path(args.coco_json), {image.name: image.size for image in scored}
        truth = [entry for image in scored for entry in image.truth]
        results = [entry for image in scored for entry in image.results]
        cocojson.save(folder / "truth.json", cocojson.annotation_file(dataset, dataset.name, ids, sizes, truth))
        cocojson.save(folder / "results.json", results)
    values = {"50": ap[COCO_IOUS.index(0.5)], "70": ap[COCO_IOUS.index(0.7)], "50_95": ap.mean(0)}
    logging.info("instance mAP %s", ", ".join(f"{number(mean_ap(v))} ({k})" for k, v in values.items()))
    return {
        "images": len(scored),
        "instances": sum(len(image.matches.truths) for image in scored),
        "detections": sum(len(image.matches.scores) for image in scored),
        **{f"map_{key}": _number(mean_ap(value)) for key, value in values.items()},
        **{f"ap_{key}": dict(zip(dataset.classes, map(_number, value), strict=True)) for key, value in values.items()},
    }


def _score(args: argparse.Namespace, dataset: Dataset, ids: dict[str, int] | None, names: Sequence[str]) -> list:
    scored = []
    for name in names:
        instances = dataset.instances(name)
        if instances is None:
            continue
        index, values = instances
        masks, labels = index[None] == np.arange(1, len(values) + 1)[:, None, None], values.astype(np.int64) - 1
        detected = load_instances(result_file(args, "ins_seg_out_dir", name, ".npy"), index.shape, dataset.n_classes)
        matches = match_instances(detected["mask"], detected["class"], detected["score"], masks, labels)
        results = cocojson.results(ids[name], detected, dataset.category_ids) if ids else []
        truth = cocojson.truth(ids[name], masks, labels, dataset.category_ids) if ids else []
        scored.append(Scored(name, index.shape, matches, results, truth))
    return scored


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
