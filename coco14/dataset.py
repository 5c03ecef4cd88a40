"""MS COCO 2014 as a dataset: JPEGs in any of the usual folders, labels and masks as `coco14.prepare` makes them."""

import argparse
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.base import DataError, Dataset, MissingFile, read_list
from data.files import write_atomic
from data.reading import check_names, check_same_size, image_size, read_image, read_mask, visible_instances

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

# What differs from data/presets.py.
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
FILE_NAME = re.compile(r"((?:COCO_(?:train|val)2014_)?)(\d{12})\.(?:jpg|png)", re.ASCII)
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
    are those of `coco14.prepare`, else those of the authors, found anywhere below `coco_masks`.
    """

    name = "coco14"
    classes = CLASSES
    category_ids = tuple(CATEGORIES)

    def __init__(self, root: Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"--data_root {self.root} is not a folder. {how_to_get(self.root)}")
        self._index = Index.load(self.root / PREPARED / INDEX)

    @property
    def has_masks(self) -> bool:
        return bool(self._masks.forms)

    def names(self, split: str) -> list[str]:
        if split not in SPLITS:
            raise DataError(f"coco14 has no split {split!r}; there are {', '.join(SPLITS)}, or name a list file (.txt)")
        return [name_of(i) for i in self._index.ids[self._index.splits == SPLITS.index(split)]]

    def read_list(self, path: Path) -> list[str]:
        """Names of a list file, `COCO_train2014_` dropped from them."""
        return [self.find_name(name) for name in read_list(path)]

    def find_name(self, text: str) -> str:
        return re.sub(r"^COCO_(?:train|val)2014_(?=\d{12}$)", "", super().find_name(text))

    def image(self, name: str) -> np.ndarray:
        return read_image(self._jpeg(name))

    def label(self, name: str) -> np.ndarray:
        """float32 [80], 1 where the class occurs, be it as a crowd; all zero for an image without any object."""
        return self.labels([name])[0]

    def labels(self, names: Sequence[str]) -> np.ndarray:
        bits = self._index.labels[[self._row(name) for name in names]].reshape(-1, self._index.labels.shape[1])
        return np.unpackbits(bits, axis=1, count=self.n_classes).astype(np.float32)

    def mask(self, name: str) -> np.ndarray | None:
        """uint8 [H, W] or None where there is no file; DataError if it does not fit its image."""
        path = self._masks.path(self._row(name), name, ".png")
        return None if path is None else self._read_png(name, path, self.n_classes)

    def has_mask(self, name: str) -> bool:
        return self._masks.path(self._row(name), name, ".png") is not None

    def instances(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Objects as `coco14.prepare` painted them, crowds left out; None where it was not run for masks."""
        paths = [self.root / PREPARED / folder / f"{name}.png" for folder in (OBJECTS, MASKS)]
        if not all(path.is_file() for path in paths):
            return None
        objects = self._read_png(name, paths[0], 254)
        return visible_instances(objects, self._read_png(name, paths[1], self.n_classes), self.n_classes)

    def check_names(self, names: Sequence[str], source: str) -> None:
        known = {name_of(i) for i in self._index.ids[self._images.form != NOWHERE]}
        check_names(names, known, source, self.root)

    @cached_property
    def _images(self) -> "Files":
        return Files.find(self.root, IMAGE_FOLDERS, ".jpg", self._index.ids)

    @cached_property
    def _masks(self) -> "Files":
        authors = sorted(str(Path(folder).relative_to(self.root)) for folder, *_ in os.walk(self.root / AUTHORS_MASKS))
        return Files.find(self.root, (f"{PREPARED}/{MASKS}", *authors), ".png", self._index.ids)

    def _row(self, name: str) -> int:
        number = int(name) if name.isascii() and name.isdigit() and len(name) == 12 else -1
        row = int(np.searchsorted(self._index.ids, number))
        if row == len(self._index.ids) or self._index.ids[row] != number:
            raise MissingFile(f"coco14 has no image {name!r} (names are 12 digits, such as 000000057870)")
        return row

    def _jpeg(self, name: str) -> Path:
        path = self._images.path(self._row(name), name, ".jpg")
        if path is None:
            raise MissingFile(
                f"image {name}.jpg, also as COCO_train2014_{name}.jpg or COCO_val2014_{name}.jpg, is in none of "
                f"{', '.join(IMAGE_FOLDERS)} below {self.root}"
            )
        return path

    def _read_png(self, name: str, path: Path, n_classes: int) -> np.ndarray:
        mask = read_mask(path, n_classes)
        check_same_size(self._jpeg(name), image_size(self._jpeg(name)), path, mask.shape)
        return mask


NOWHERE = 255


class Files(NamedTuple):
    """Where the file of each image lies, without a path per image: forms of path, and per image the one it has."""

    forms: list[str]  # path up to the 12 digits
    form: np.ndarray  # uint8 [N], NOWHERE where there is none

    @classmethod
    def find(cls, root: Path, folders: Sequence[str], suffix: str, ids: np.ndarray) -> "Files":
        """Reads the folders below `root` once, of files named FILE_NAME with `suffix`; earlier folders win.

        ids: of the images, ascending.
        """
        forms, form = [], np.full(len(ids), NOWHERE, np.uint8)
        for folder in folders:
            for prefix, numbers in numbered_files(root / folder, suffix).items():
                rows = np.searchsorted(ids, numbers)
                rows, numbers = rows[rows < len(ids)], numbers[rows < len(ids)]
                rows = rows[ids[rows] == numbers]
                rows = rows[form[rows] == NOWHERE]
                if len(rows) and len(forms) < NOWHERE:
                    form[rows] = len(forms)
                    forms.append(f"{root / folder}/{prefix}")
        return cls(forms, form)

    def path(self, row: int, name: str, suffix: str) -> Path | None:
        """The file of the image in `row`."""
        form = self.form[row]
        return None if form == NOWHERE else Path(f"{self.forms[form]}{name}{suffix}")


def numbered_files(folder: Path, suffix: str) -> dict[str, np.ndarray]:
    """Image ids of the files of a folder by the prefix of their names; nothing where there is no folder."""
    found: dict[str, list[int]] = {}
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                match = FILE_NAME.fullmatch(entry.name)
                if match and entry.name.endswith(suffix):
                    found.setdefault(match[1], []).append(int(match[2]))
    return {prefix: np.array(numbers, np.int64) for prefix, numbers in sorted(found.items())}


class Index(NamedTuple):
    """All images of the dataset, ascending by id."""

    ids: np.ndarray  # int64 [N]
    splits: np.ndarray  # uint8 [N], index into SPLITS
    labels: np.ndarray  # uint8 [N, 10], one bit a class

    def save(self, path: Path) -> None:
        """Writes an .npz without pickles."""
        write_atomic(path, lambda file: np.savez_compressed(file, **self._asdict()))

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Reads it back; DataError if it is missing or damaged."""
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                index = cls(*(file[name] for name in cls._fields))
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist. {how_to_get(path.parent.parent)}") from error
        except Exception as error:  # a damaged archive can raise anything
            raise DataError(f"{path} is damaged ({error}); run `{_prepare(path.parent.parent)}` again") from error
        n = len(index.ids) if index.ids.ndim else 0
        whole = [(array.dtype, array.shape) for array in index] == [
            (np.int64, (n,)), (np.uint8, (n,)), (np.uint8, (n, -(-len(CLASSES) // 8)))
        ]  # fmt: skip
        if not whole or not n or (np.diff(index.ids) <= 0).any() or index.splits.max() >= len(SPLITS):
            raise DataError(f"{path} is not an index of COCO 2014; run `{_prepare(path.parent.parent)}` again")
        return index


def name_of(image_id: int) -> str:
    """The name of an image."""
    return f"{image_id:012d}"


def how_to_get(root: Path) -> str:
    """What to do where COCO 2014 is not, or not yet prepared."""
    return (
        f"Get COCO 2014 with `python -m data.download coco2014 --data_root {root}`; its images must lie in "
        f"{' and '.join(IMAGE_FOLDERS[1:3])} (or {IMAGE_FOLDERS[0]}), its JSON files in annotations. Then make "
        f"labels, lists and masks with `{_prepare(root)}`"
    )


def _prepare(root: Path) -> str:
    return f"python -m coco14.prepare --data_root {root}"
