"""MS COCO 2014 as a dataset: JPEGs in any of the usual folders, labels and masks as `coco14.prepare` makes them."""

import argparse
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.base import Dataset, check_names, how_to_convert, read_list
from data.errors import DataError, MissingFile
from data.files import write_atomic
from data.images import image_size, read_image, read_instances, read_mask

# Official category id -> name, in the order of the official list; mask value i + 1 is the i-th of them.
CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip
CLASSES = tuple(CATEGORIES.values())

# What differs from misc/run/options.py.
PRESET: dict[str, tuple[object, str]] = {
    "cam_eval_sweep": ((0.10, 0.50, 0.01), "RIB, step/eval_cam.py, for COCO"),
    "RIB_lr": (5e-6, "RIB, section 5.1, for COCO"),
    "RIB_batch_size": (15, "RIB, section 5.1: B, for COCO"),
    "score_th": (0.5, "RIB, section 5.1: tau, for COCO"),
    "stop_th": (1000.0, "RIB, step/make_rib_cam.py, for COCO"),
    "explode_ratio": (0.8, "RIB, step/make_rib_cam.py, for COCO"),
    "irn_infer_pad": (0, "RIB, step/make_sem_seg.py, for COCO: images are larger than 512"),
    "sem_seg_bg_thres": (0.22, "RIB, run_sample.py, for COCO"),
    "seg_crop_size": (481, "RIB, as its authors report, for COCO"),
    "train_list": ("train", "RIB, run_sample.py: the 82,783 images of train2014"),
    "infer_list": ("train", "RIB, run_sample.py: the 82,783 images of train2014"),
    "eval_list": ("train", "RIB, run_sample.py: seeds and pseudo masks are scored on train2014"),
    "val_list": ("val", "RIB, run_sample.py: the 40,504 images of val2014"),
}

SPLITS = ("train", "val")
N_IMAGES = {"train": 82_783, "val": 40_504}
IMAGE_FOLDERS = ("JPEGImages", "train2014", "val2014", "images", "images/train2014", "images/val2014")
FILE_NAME = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})", re.ASCII)  # without its ending
PREPARED = "coco14"  # the folder below the data root that `coco14.prepare` writes
INDEX, MASKS, OBJECTS = "index.npz", "masks", "objects"
AUTHORS_MASKS = "coco_masks"  # where `python -m data.download coco_masks` unpacks those that the authors of RIB made


def open_dataset(args: argparse.Namespace) -> "COCO14":
    """The dataset of `--data_root`."""
    if not args.data_root:
        raise DataError(f"--dataset coco14 needs --data_root DIR. {how_to_get(Path('DIR'))}")
    return COCO14(args.data_root)


class COCO14(Dataset):
    """MS COCO 2014 below `root`, after `python -m coco14.prepare`; images in any of the IMAGE_FOLDERS.

    Names are the 12-digit image ids, with or without `COCO_train2014_` in the file name. Splits: train and val. Masks
    are those of `coco14.prepare`, else those of the authors, anywhere below `coco_masks`.
    """

    name = "coco14"
    classes = CLASSES
    category_ids = tuple(CATEGORIES)

    def __init__(self, root: Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"--data_root {self.root} is not a folder. {how_to_get(self.root)}")
        self._index = Index.load(self.root / PREPARED / INDEX)
        self._rows = {name_of(image_id): row for row, image_id in enumerate(self._index.ids)}

    @property
    def has_masks(self) -> bool:
        return bool(self._masks)

    def names(self, split: str) -> list[str]:
        if split not in SPLITS:
            raise DataError(f"coco14 has no split {split!r}; there are {', '.join(SPLITS)}, or name a list file (.txt)")
        return [name_of(i) for i in self._index.ids[self._index.splits == SPLITS.index(split)]]

    def read_list(self, path: Path) -> list[str]:
        """Names of a list file, `COCO_train2014_` dropped from them."""
        return [self.find_name(name) for name in read_list(path)]

    def find_name(self, text: str) -> str:
        name = super().find_name(text)
        match = FILE_NAME.fullmatch(name)
        return match[1] if match else name

    def image(self, name: str) -> np.ndarray:
        return read_image(self._jpeg(name))

    def label(self, name: str) -> np.ndarray:
        """float32 [80], 1 where the class occurs, also as a crowd; all zero for an image without any object."""
        return self.labels([name])[0]

    def labels(self, names: Sequence[str]) -> np.ndarray:
        return self._index.labels[[self._row(name) for name in names]].reshape(-1, self.n_classes).astype(np.float32)

    def mask(self, name: str) -> np.ndarray | None:
        if name not in self._masks:
            return None
        return read_mask(self.root / self._masks[name], self.n_classes, image_size(self._jpeg(name)))

    def has_mask(self, name: str) -> bool:
        return name in self._masks

    def instances(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Objects as `coco14.prepare` painted them, without crowds, or None."""
        paths = (self.root / PREPARED / folder / f"{name}.png" for folder in (OBJECTS, MASKS))
        return read_instances(*paths, self.n_classes, image_size(self._jpeg(name)))

    def check_names(self, names: Sequence[str], source: str) -> None:
        check_names(names, self._rows.keys() & self._images.keys(), source, self.root)

    @cached_property
    def _images(self) -> dict[str, str]:
        return find_files(self.root, IMAGE_FOLDERS, ".jpg")

    @cached_property
    def _masks(self) -> dict[str, str]:
        authors = sorted(str(Path(folder).relative_to(self.root)) for folder, *_ in os.walk(self.root / AUTHORS_MASKS))
        return find_files(self.root, (f"{PREPARED}/{MASKS}", *authors), ".png")

    def _row(self, name: str) -> int:
        if name not in self._rows:
            raise MissingFile(f"coco14 has no image {name!r} (names are 12 digits, such as 000000057870)")
        return self._rows[name]

    def _jpeg(self, name: str) -> Path:
        self._row(name)
        if name not in self._images:
            raise MissingFile(
                f"image {name}.jpg, also as COCO_train2014_{name}.jpg or COCO_val2014_{name}.jpg, is in none of "
                f"{', '.join(IMAGE_FOLDERS)} below {self.root}"
            )
        return self.root / self._images[name]


class Index(NamedTuple):
    """All images of the dataset, ascending by id."""

    ids: np.ndarray  # int64 [N]
    splits: np.ndarray  # uint8 [N], index into SPLITS
    labels: np.ndarray  # bool [N, 80]

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        write_atomic(path, lambda file: np.savez_compressed(file, **self._asdict()))

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Reads it back; DataError if it is missing or damaged."""
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                index = cls(*(file[name] for name in cls._fields))
            index.labels.reshape(len(index.ids), len(CLASSES))
            return index
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist. {how_to_get(path.parent.parent)}") from error
        except Exception as error:  # a damaged archive can raise anything
            raise DataError(f"{path} is damaged ({error}); run `{_prepare(path.parent.parent)}` again") from error


def find_files(root: Path, folders: Sequence[str], ending: str) -> dict[str, str]:
    """Image name -> path below `root`, of the files called FILE_NAME in these folders; earlier folders win."""
    files: dict[str, str] = {}
    for folder in folders:
        for file in sorted(os.listdir(root / folder)) if (root / folder).is_dir() else ():
            match = FILE_NAME.fullmatch(file.removesuffix(ending))
            if match and file.endswith(ending):
                files.setdefault(match[1], f"{folder}/{file}")
    return files


def name_of(image_id: int) -> str:
    """The name of an image."""
    return f"{image_id:012d}"


def how_to_get(root: Path) -> str:
    """What to do where COCO 2014 is missing or not prepared."""
    return (
        f"Get COCO 2014 with `python -m data.download coco2014 --data_root {root}`, or put its images into "
        f"{' and '.join(IMAGE_FOLDERS[1:3])} (or {IMAGE_FOLDERS[0]}) and its JSON files into annotations. Then make "
        f"labels, lists and masks with `{_prepare(root)}`. {how_to_convert(root)}"
    )


def _prepare(root: Path) -> str:
    return f"python -m coco14.prepare --data_root {root}"
