"""What a run settles about its data before the first step."""

import argparse
import contextlib
import logging
import shutil
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from data import LABELLED, PURPOSES, image_names
from data.base import Dataset
from data.check import bad_images
from data.errors import UserError
from data.files import save_json
from data.remarks import fitting_batches, remarks
from misc import torchutils
from misc.run.outputs import NPY_FOLDERS, OUTPUTS, path_of, result_file

SAMPLE = 64  # images that the disk is estimated from
SURELY = 0.75  # of the estimate


def possible(args: argparse.Namespace, dataset: Dataset, chosen: Sequence) -> Sequence:
    """The chosen steps (`runner.Step`) for which the dataset has labels and ground truth; UserError if none is left."""
    for note in dataset.notes:
        logging.warning(note)
    trains_seg = any(step.name == "train_seg" for step in chosen)
    if trains_seg and args.seg_init == "cam" and not args.seg_model.endswith(f"_{args.cam_network}"):
        raise UserError(
            f"--seg_model {args.seg_model} cannot start from the classifier's --cam_network {args.cam_network}; wanted "
            f"one that ends in _{args.cam_network}, another --seg_init, or --no-train_seg_pass"
        )

    def without(need: str, lacks: str) -> list:
        out = [step.name for step in chosen if getattr(step, need)]
        if len(out) == len(chosen):
            raise UserError(f"{lacks}, and all of these steps need some: {', '.join(out)}")
        if out:
            logging.warning("%s: left out %s", lacks, ", ".join(out))
        return [step for step in chosen if not getattr(step, need)]

    if not dataset.has_labels:
        chosen = without("needs_labels", f"{args.data_root} has no labels")
    if not dataset.has_masks:
        return without("needs_masks", f"dataset {args.dataset} has no masks")
    scoring = any(step.needs_masks for step in chosen)
    if scoring and not any(map(dataset.has_mask, image_names(args, dataset, "eval"))):
        return without("needs_masks", f"dataset {args.dataset} has no masks for --eval_list {args.eval_list}")
    return chosen


def check_disk(args: argparse.Namespace, dataset: Dataset, steps: Sequence[str]) -> None:
    """Says what the CAM and instance files to be made will take of the disk; UserError if they surely do not fit.

    A map of every class at the size of the image, and of a CAM another at stride 4; weights and PNGs are small beside
    them. Estimated from an even sample of the images.
    """
    folders = [argument for argument in NPY_FOLDERS if OUTPUTS[argument].step in steps]
    names = image_names(args, dataset, "infer") if folders else []
    values = []
    for name in names[:: max(1, len(names) // SAMPLE)]:
        with contextlib.suppress(UserError):
            values.append(dataset.label(name).sum() * np.prod(dataset.image(name).shape[:2]))
    disks: dict[int, list[tuple[float, str, Path]]] = {}  # device -> bytes, what for, a folder of it
    for argument in folders if values else ():
        path = path_of(args, argument)
        missing = len(names)
        if path.is_dir():
            missing = sum(not result_file(args, argument, name, ".npy").is_file() for name in names)
        size = 1.0 if argument == "ins_seg_out_dir" else np.dtype(args.cam_dtype).itemsize * 17 / 16
        nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        need = float(np.mean(values)) * missing * size
        if need:
            disks.setdefault(nearest.stat().st_dev, []).append((need, f"{path.name} {_bytes(need)}", nearest))
    for entries in disks.values():
        need, free = sum(entry[0] for entry in entries), shutil.disk_usage(entries[0][2]).free
        text = f"disk: about {', '.join(entry[1] for entry in entries)}; {_bytes(free)} are free in {entries[0][2]}"
        if need * SURELY > free:
            raise UserError(f"{text}; free some, use another --work_dir, or --cam_dtype float16 (half the size)")
        logging.log(logging.WARNING if need > free else logging.INFO, text)


def _bytes(number: float) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


def skip_bad_images(args: argparse.Namespace, dataset: Dataset) -> None:
    """For `--skip_bad`: the dataset leaves out what cannot be read, also stored in bad_images.json."""
    lists = {purpose: dataset.names_of(getattr(args, f"{purpose}_list"))[: args.limit] for purpose in PURPOSES}
    names = sorted(set().union(*lists.values()))
    labelled = set().union(*(lists[purpose] for purpose in LABELLED))
    bad = bad_images(dataset, torchutils.shard(names), labelled, args.num_workers)
    dataset.bad_images = dict(torchutils.gather(list(bad.items())))  # every rank has read its share
    if torchutils.rank() == 0:
        save_json(Path(args.work_dir) / "bad_images.json", dataset.bad_images)
    logging.info("%d images cannot be read and are left out", len(dataset.bad_images))


def remark(args: argparse.Namespace, dataset: Dataset, steps: Sequence[str]) -> dict[str, list[str]]:
    """Step -> what must be known of its result; batches that are larger than their list are lowered in `args`.

    DataError where labels and masks do not belong together.
    """
    images = cache(partial(image_names, args, dataset))
    told = torchutils.on_first_rank(lambda: remarks(args, dataset, images, steps))
    vars(args).update(torchutils.on_first_rank(lambda: fitting_batches(args, images, steps)))
    return told
