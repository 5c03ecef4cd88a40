"""The data layer: `open_dataset` is the one place that knows which datasets there are."""

import argparse
import importlib
import logging

from data.base import DataError, Dataset

# name -> (module, one line). A module offers PRESET and open_dataset(args).
DATASETS = {
    "shapes": ("data.shapes", "embedded, generated images; the whole method in minutes"),
    "voc12": ("voc12", "PASCAL VOC 2012; needs --data_root"),
}


def preset(name: str) -> dict[str, tuple[object, str]]:
    """The published constants with the dataset's own in place: argument -> (value, source)."""
    from data.presets import PUBLISHED

    return {**PUBLISHED, **_module(name).PRESET}


def open_dataset(args: argparse.Namespace) -> Dataset:
    """The dataset that the arguments name."""
    return _module(args.dataset).open_dataset(args)


def image_names(args: argparse.Namespace, dataset: Dataset, purpose: str) -> list[str]:
    """The images of a purpose ("train", "infer", "eval", "val"): `--PURPOSE_list`, the first `--limit` of them."""
    source = getattr(args, f"{purpose}_list")
    names = dataset.names_of(source)
    dataset.check_names(names, source)
    names = [name for name in names if name not in args.bad_images]
    return names[: args.limit] if args.limit else names


def scored_names(args: argparse.Namespace, dataset: Dataset) -> list[str]:
    """The images of `--eval_list` that have ground truth; says how many have none, DataError if none has."""
    names = image_names(args, dataset, "eval")
    scored = [name for name in names if dataset.has_mask(name)]
    if not scored:
        raise DataError(
            f"none of the {len(names)} images of --eval_list {args.eval_list} has a mask to be scored against"
        )
    if len(scored) < len(names):
        logging.warning("%d of %d images have no mask and are not scored", len(names) - len(scored), len(names))
    return scored


def find_bad_images(args: argparse.Namespace) -> dict[str, str]:
    """name -> what is wrong, over all the lists; for `--skip_bad`."""
    from data.check import bad_images

    dataset = open_dataset(args)
    lists = (image_names(args, dataset, purpose) for purpose in ("train", "infer", "eval", "val"))
    return bad_images(dataset, sorted(set().union(*lists)), args.num_workers)


def _module(name: str):
    if name not in DATASETS:
        raise DataError(f"--dataset is {name!r}; there are {', '.join(DATASETS)}")
    return importlib.import_module(DATASETS[name][0])
