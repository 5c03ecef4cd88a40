"""What a run settles about its data before the first step."""

import argparse
import logging
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from data import PURPOSES, image_names
from data.base import Dataset
from data.check import bad_images
from data.errors import UserError
from data.files import save_json
from data.remarks import fitting_batches, remarks
from misc import torchutils


def possible(args: argparse.Namespace, dataset: Dataset, chosen: Sequence) -> Sequence:
    """The chosen steps (`runner.Step`) for which the dataset has ground truth; UserError if none is left."""
    for note in dataset.notes:
        logging.warning(note)
    scoring = [step.name for step in chosen if step.needs_masks]
    lacks = f"dataset {args.dataset} has no masks"
    if dataset.has_masks:
        if not scoring or any(map(dataset.has_mask, image_names(args, dataset, "eval"))):
            return chosen
        lacks += f" for --eval_list {args.eval_list}"
    if not scoring:
        return chosen
    if len(scoring) == len(chosen):
        raise UserError(f"{lacks}, and all of these steps need some: {', '.join(scoring)}")
    logging.warning("%s: left out %s", lacks, ", ".join(scoring))
    return [step for step in chosen if not step.needs_masks]


def skip_bad_images(args: argparse.Namespace, dataset: Dataset) -> None:
    """For `--skip_bad`: the dataset leaves out what cannot be read, also stored in bad_images.json."""
    lists = (dataset.names_of(getattr(args, f"{purpose}_list"))[: args.limit] for purpose in PURPOSES)
    names = sorted(set().union(*lists))
    bad = bad_images(dataset, torchutils.shard(names), args.num_workers)
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
