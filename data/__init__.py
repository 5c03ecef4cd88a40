"""The data layer: `open_dataset` is the one place that knows which datasets there are."""

import argparse
import importlib
import logging
from pathlib import Path
from types import ModuleType

from data.base import Dataset, Scaled, load_file
from data.errors import DataError

PURPOSES = ("train", "infer", "eval", "val")  # of image lists: `--PURPOSE_list`
LABELLED = PURPOSES[:3]  # a segmentation network needs no labels; the classifier is scored where there are some
# name -> (module, one line). A module offers PRESET and open_dataset(args); see docs/adding_a_dataset.md.
DATASETS = {
    "shapes": ("data.shapes", "embedded, generated images; the whole method in minutes"),
    "photos": ("data.photos", "photographs of scikit-image and a ready ImageNet classifier; no training"),
    "voc12": ("voc12", "PASCAL VOC 2012; needs --data_root"),
    "coco14": ("coco14", "MS COCO 2014; needs --data_root and python -m coco14.prepare"),
    "folder": ("data.folder", "your own images; needs --data_root with images/ and labels.csv"),
}


class DatasetNames(tuple):
    """The names of the datasets; the path of a Python file that offers one is a choice too."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or str(name).endswith(".py")


def open_dataset(args: argparse.Namespace) -> Dataset:
    """The dataset that the arguments name, with `--max_side` at the working size."""
    dataset = data_module(args.dataset).open_dataset(args)
    return Scaled(dataset, args.max_side) if getattr(args, "max_side", None) else dataset


def image_names(args: argparse.Namespace, dataset: Dataset, purpose: str) -> list[str]:
    """The images of a purpose ("train", "infer", "eval", "val"): `--PURPOSE_list`, the first `--limit` of them."""
    source = getattr(args, f"{purpose}_list")
    names = [name for name in dataset.names_of(source) if name not in dataset.bad_images]
    dataset.check_names(names, source)
    if purpose in LABELLED:
        dataset.check_labels(names)
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


def data_module(name: str) -> ModuleType:
    """The module of a dataset, by its name or its file; DataError if it cannot be run or lacks what it should offer."""
    if name in DATASETS:
        return importlib.import_module(DATASETS[name][0])
    if not name.endswith(".py"):
        raise DataError(f"--dataset is {name!r}; there are {', '.join(DATASETS)}, or the path of a Python file")
    if not Path(name).is_file():
        raise DataError(f"--dataset {name} does not exist; wanted a Python file, or one of {', '.join(DATASETS)}")
    module = load_file(Path(name).resolve())
    missing = [word for word in ("PRESET", "open_dataset") if not hasattr(module, word)]
    if missing:
        raise DataError(f"--dataset {name} offers no {' and no '.join(missing)}; see docs/adding_a_dataset.md")
    return module
