"""The data layer: `open_dataset` is the one place that knows which datasets there are."""

import argparse
import importlib

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
    return names[: args.limit] if args.limit else names


def _module(name: str):
    if name not in DATASETS:
        raise DataError(f"--dataset is {name!r}; there are {', '.join(DATASETS)}")
    return importlib.import_module(DATASETS[name][0])
