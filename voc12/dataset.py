"""PASCAL VOC 2012 as a dataset: JPEGs, labels from the XML annotations, VOC's own and the augmented masks."""

import argparse
import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from data.base import Dataset, check_names, how_to_convert, read_list, shortened
from data.errors import DataError
from data.images import IGNORE, image_size, read_image, read_instances, read_mask

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
N_TRAIN_AUG = 10_582  # every mask of SegmentationClassAug whose name is not in val
AUG_LISTS = ("train_aug", "trainaug")  # both spellings are in use

# What differs from misc/run/presets.py, whose values are those of VOC 2012.
PRESET: dict[str, tuple[object, str]] = {
    "train_list": ("train_aug", "IRN, run_sample.py: the 10,582 augmented training images"),
    "infer_list": ("train_aug", "IRN, run_sample.py: train_aug where a segmentation network is to be trained"),
    "eval_list": ("train", "IRN, run_sample.py: seeds and pseudo masks are scored on the 1,464 images of train"),
    "val_list": ("val", "IRN, run_sample.py: the 1,449 images of val"),
}

# Where JPEGImages may lie below the data root: in itself, in a devkit, or in the authors' archive.
LAYOUTS = ("", "VOCdevkit/VOC2012", "VOC2012", "VOC2012_SEG_AUG")
MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
LISTS = "ImageSets/Segmentation"


def open_dataset(args: argparse.Namespace) -> "VOC12":
    """The dataset of `--data_root`."""
    if not args.data_root:
        raise DataError(f"--dataset voc12 needs --data_root DIR. {_how_to_get(Path('DIR'))}")
    given = [str(value) for name, value in vars(args).items() if name.endswith("_list")]
    return VOC12(args.data_root, needs_lists=not given or not all(Path(path).is_file() for path in given))


class VOC12(Dataset):
    """PASCAL VOC 2012 below `root`, in any of the LAYOUTS; DataError lists everything that is missing there.

    Splits: the lists of ImageSets/Segmentation (train, val, trainval, and test, which has neither labels nor masks)
    and train_aug: its list file where there is one, else every mask of SegmentationClassAug that is not in val.
    needs_lists: whether a root without these lists is incomplete; it is not where list files are given instead.
    """

    name = "voc12"
    classes = CLASSES
    submission = "results/VOC2012/Segmentation/comp6_test_cls"  # comp6: trained on more than VOC's own images

    def __init__(self, root: Path, needs_lists: bool = True):
        self.folder = find_folder(Path(root), needs_lists)
        self._has_annotations = (self.folder / "Annotations").is_dir()
        self._labels: dict[str, np.ndarray] = {}
        self._said: set[str] = set()

    def names(self, split: str) -> list[str]:
        lists = self.folder / LISTS
        if split == "train_aug":
            return self._train_aug()
        if not (lists / f"{split}.txt").is_file():
            splits = sorted({path.stem for path in lists.glob("*.txt")} | {"train_aug"})
            raise DataError(
                f"voc12 has no split {split!r}; {lists} has {', '.join(splits)}. Choose one or a list file (.txt)"
            )
        return read_list(lists / f"{split}.txt")

    def image(self, name: str) -> np.ndarray:
        return read_image(self._jpeg(name))

    def label(self, name: str) -> np.ndarray:
        """float32 [20], 1 where the class occurs: every object of the XML, difficult ones too, parts of objects not."""
        if name not in self._labels:
            self._labels[name] = self._read_label(name)
        return self._labels[name].copy()

    def mask(self, name: str) -> np.ndarray | None:
        """uint8 [H, W] of SegmentationClassAug, else of SegmentationClass, else None."""
        path = self._mask_path(name)
        return None if path is None else read_mask(path, self.n_classes, image_size(self._jpeg(name)))

    def has_mask(self, name: str) -> bool:
        return self._mask_path(name) is not None

    def instances(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Objects: map uint8 [H, W] (0 background, i + 1 instance i) and mask values uint8 [n], or None."""
        paths = (self.folder / folder / f"{name}.png" for folder in ("SegmentationObject", "SegmentationClass"))
        return read_instances(*paths, self.n_classes, image_size(self._jpeg(name)))

    def check_names(self, names: Sequence[str], source: str) -> None:
        known = {path.stem for path in (self.folder / "JPEGImages").glob("*.jpg")}
        check_names(names, known, source, self.folder / "JPEGImages")

    def _jpeg(self, name: str) -> Path:
        return self.folder / "JPEGImages" / f"{name}.jpg"

    def _mask_path(self, name: str) -> Path | None:
        paths = (self.folder / folder / f"{name}.png" for folder in MASK_FOLDERS)
        return next((path for path in paths if path.is_file()), None)

    def _train_aug(self) -> list[str]:
        for split in AUG_LISTS:
            path = self.folder / LISTS / f"{split}.txt"
            if path.is_file():
                names = read_list(path)
                break
        else:
            path = self.folder / MASK_FOLDERS[0]
            val = set(self.names("val"))
            names = sorted(mask.stem for mask in path.glob("*.png") if mask.stem not in val)
            if not names:
                raise DataError(
                    f"split train_aug needs the masks of {path} or {LISTS}/train_aug.txt; make both with "
                    f"`python -m data.download sbd --data_root DIR` and `python -m voc12.prepare --data_root DIR`, "
                    f"or use --train_list train --infer_list train"
                )
        if len(names) != N_TRAIN_AUG:
            self._say_once(f"{path} gives {len(names):,} images for train_aug; the published set has {N_TRAIN_AUG:,}")
        return names

    @cached_property
    def _test(self) -> frozenset[str]:
        path = self.folder / LISTS / "test.txt"
        return frozenset(read_list(path) if path.is_file() else ())

    def _read_label(self, name: str) -> np.ndarray:
        if name in self._test:  # some have annotations of people (layout task), which are not image-level labels
            raise DataError(
                f"voc12 image {name} belongs to the test split, which has no labels; train on another split"
            )
        label = np.zeros(self.n_classes, np.float32)
        if self._has_annotations:
            label[self._annotated(self.folder / "Annotations" / f"{name}.xml")] = 1
            return label
        self._say_once(f"{self.folder} has no Annotations: labels are read from the masks")
        mask = self.mask(name)
        if mask is None:
            raise DataError(
                f"voc12 image {name} has no label: {self.folder} has no Annotations, and no {name}.png in "
                f"{' or '.join(MASK_FOLDERS)}"
            )
        label[np.setdiff1d(mask, (0, IGNORE)) - 1] = 1
        return label

    def _annotated(self, path: Path) -> list[int]:
        """Class indices (0-based) of the objects of an XML file."""
        try:
            objects = ElementTree.parse(path).getroot().findall("object")
        except FileNotFoundError as error:
            raise DataError(f"annotation {path} does not exist, so the image has no label") from error
        except (ElementTree.ParseError, OSError, ValueError) as error:
            raise DataError(f"annotation {path} cannot be read ({error}); unpack VOC 2012 again") from error
        if not objects:
            raise DataError(f"annotation {path} names no object; unpack VOC 2012 again")
        words = [(item.findtext("name") or "").strip() for item in objects]  # of objects, not of their parts
        unknown = [repr(word) for word in words if word not in CLASSES]
        if unknown:
            raise DataError(
                f"annotation {path} names {shortened(unknown)}; the classes are {', '.join(CLASSES)}. "
                f"{how_to_convert(self.folder)}"
            )
        return [CLASSES.index(word) for word in words]

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logging.warning(message)


def find_folder(root: Path, needs_lists: bool = True) -> Path:
    """The folder of VOC 2012 in `root`: the first of LAYOUTS that is complete; DataError says all that is missing."""
    if not root.is_dir():
        raise DataError(f"--data_root {root} is not a folder. {_how_to_get(root)}")
    folders = [root / layout for layout in LAYOUTS if (root / layout).is_dir()]
    missing = [_missing(folder, needs_lists) for folder in folders]
    best = min(range(len(folders)), key=lambda i: len(missing[i]))
    if missing[best]:
        raise DataError(
            f"VOC 2012 is not complete in {folders[best]}: no {', no '.join(missing[best])}. {_how_to_get(root)}"
        )
    return folders[best]


def _missing(folder: Path, needs_lists: bool) -> list[str]:
    absent = []
    if next((folder / "JPEGImages").glob("*.jpg"), None) is None:
        absent.append("JPEGImages/*.jpg")
    if not any((folder / name).is_dir() for name in ("Annotations", *MASK_FOLDERS)):
        absent.append(f"Annotations or {' or '.join(MASK_FOLDERS)}")
    if needs_lists:
        splits = (split for split in ("train", "val") if not (folder / LISTS / f"{split}.txt").is_file())
        absent += [f"{LISTS}/{split}.txt" for split in splits]
    return absent


def _how_to_get(root: Path) -> str:
    own = how_to_convert(root)
    while root.name in ("VOCdevkit", "VOC2012", "VOC2012_SEG_AUG"):  # the data root is what these lie in
        root = root.parent
    return (
        f"Get VOC 2012 with `python -m data.download voc2012 --data_root {root}`, or put JPEGImages, Annotations, "
        f"SegmentationClass and {LISTS} into {root}/VOCdevkit/VOC2012. {own}"
    )
