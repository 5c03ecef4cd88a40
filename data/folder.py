"""Your own images: a folder with images/, labels.csv and optionally masks/, classes.txt and splits/.

    images/      jpg, jpeg, png, webp, tif, tiff, bmp; subfolders are part of the name; turned as their EXIF orientation
                 says; more than 8 bits are scaled by the range of an even sample of the set
    labels.csv   name,class1;class2   with or without a header; nothing after the comma: no object in the image;
                 a column per class (0/1), a line per class and other separators are read too (data/tables.py)
    masks/       palette or grey PNG of class indices named as the image: 0 background, 1.. classes, 255 ignore;
                 of one class also masks that hold nothing but 0 and 255, which is the class then
    classes.txt  one class per line, line k is the mask value k; default: the classes of labels.csv, alphabetically
    splits/      train.txt and val.txt, one image per line; default: every labelled image that is not in val.txt is a
                 training image, and the training images are also those of val

The name of an image is its path below images/ without the ending; lists and labels.csv may have it with the ending.
Without labels.csv a trained network segments the images; the classes are those that it was trained on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.agreement import black_and_white
from data.base import Dataset, alike, check_names, how_to_convert, read_lines, shortened
from data.classes import read_classes
from data.errors import DataError, MissingFile
from data.files import load_json
from data.formats import whites_of_set
from data.images import IGNORE, image_size, read_image, read_mask
from data.listing import list_files
from data.tables import Labels, read_labels

IMAGES, LABELS, MASKS, CLASSES, SPLITS = "images", "labels.csv", "masks", "classes.txt", "splits"
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
DEEP_ENDINGS = (".png", ".tif", ".tiff")  # of files that may hold more than 8 bits a channel
MASK_ENDINGS = (*ENDINGS, ".gif")  # anything but a PNG is refused when it is read
MAX_CLASSES = 254  # mask values are bytes, 0 is background and 255 ignored
SHOWN = 5
SAMPLE = 200  # masks that tell whether white is the class
_LAYOUT = f"images in {IMAGES}/ and a {LABELS} with lines like: name,class1;class2"

# What differs from misc/run/options.py, whose values are those of VOC 2012.
PRESET: dict[str, tuple[object, str]] = {
    "cam_eval_sweep": ((0.05, 0.60, 0.01), "wide: the best threshold of your images is unknown"),
    "irn_infer_pad": (0, "images may be larger than 512"),
    "train_list": ("train", "splits/train.txt, else every labelled image that is not in splits/val.txt"),
    "infer_list": ("train", "pseudo masks for the training images"),
    "eval_list": ("train", "the training images that have masks"),
    "val_list": ("val", "splits/val.txt, else the training images"),
}


def open_dataset(args: argparse.Namespace) -> "Folder":
    """The dataset of `--data_root`; with `--check_data` its problems are collected instead of raised."""
    if not args.data_root:
        raise DataError(f"--dataset folder needs --data_root DIR, a folder with {IMAGES}/ and {LABELS}")
    return Folder(args.data_root, strict=not getattr(args, "check_data", False), trained_on=_classes_of_network(args))


def _classes_of_network(args: argparse.Namespace) -> tuple[str, ...] | None:
    """What the network that is named, or that of the work_dir, was trained on: empty if nothing tells, None without."""
    named = [getattr(args, name, None) for name in ("seg_weights_name", "cam_weights_name")]
    records = [Path(path).with_suffix(".made_by.json") for path in named if path]
    if getattr(args, "work_dir", None):
        records += sorted((Path(args.work_dir) / "sess").glob("*.made_by.json"))
    told = (load_json(path).get("arguments", {}).get("classes") for path in records)
    return tuple(next(filter(None, told), ())) if records else None


class Folder(Dataset):
    """Images, labels and masks below `root`, laid out as the head of this module says.

    strict: raise DataError for the problems of labels.csv, classes.txt and lists, naming file and line; else they are
    collected in `problems`. trained_on: the classes of a trained network, which labels.csv is not needed for.
    """

    name = "folder"

    def __init__(self, root: Path, strict: bool = True, trained_on: Sequence[str] | None = None):
        self.root, self.strict = Path(root), strict
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._absent: dict[str, str] = {}  # text that names no image -> file and line
        self._unlabelled: dict[str, str] = {}  # image without a label -> file and line that name it
        if not self.root.is_dir():
            raise DataError(f"--data_root {self.root} is not a folder; wanted one with {IMAGES}/ and {LABELS}")
        self.has_labels = (self.root / LABELS).exists()
        known = trained_on or (trained_on is not None and (self.root / CLASSES).exists())
        needed = (IMAGES,) if known else (IMAGES, LABELS)
        if missing := [name for name in needed if not (self.root / name).exists()]:
            network = ", or --seg_weights_name FILE, a network that segments them" if missing == [LABELS] else ""
            wanted = f"wanted {_LAYOUT}{network}. {how_to_convert(self.root)}"
            raise DataError(f"{self.root} has no {' and no '.join(missing)}; {wanted}")
        self._listing, masks = list_files(self.root / IMAGES, ENDINGS), list_files(self.root / MASKS, MASK_ENDINGS)
        self._images, self._masks = self._listing.files, masks.files
        self.problems += self._listing.problems + masks.problems
        if not self._images:
            formats = "".join(f"; {line}" for line in self._listing.other_formats())
            raise DataError(f"{self.root / IMAGES} holds no image; wanted {', '.join(ENDINGS)}{formats}")
        self._read_labels(tuple(trained_on or ()))
        self._note_what_is_left_out(sorted({*masks.files.values(), *masks.others.values()}))
        if strict:
            absent: dict[str, list[str]] = {}
            for text, where in self._absent.items():
                reason = self._no_image(text)
                absent.setdefault(reason.partition("exists, but")[2], []).append(f"{where}: {reason}")
            self._raise([*map(alike, absent.values()), *self.problems])
        self._look_at_values()

    @property
    def has_masks(self) -> bool:
        return any(name in self._masks for name in self._listed)

    @property
    def identity(self) -> dict[str, object]:
        return {**super().identity, **({"white": self.whites} if self.whites else {})}

    def names(self, split: str) -> list[str]:
        """A list of splits/; "train" and "val" also without one; "all": every labelled image, ordered by name."""
        lists = self.root / SPLITS
        if (lists / f"{split}.txt").is_file():
            return self.read_list(lists / f"{split}.txt")
        if split == "val":
            return self.names("train")
        if split in ("train", "all"):
            held_out = set(self.names("val")) if split == "train" and (lists / "val.txt").is_file() else set()
            names = sorted(name for name in self._listed if name not in held_out)
            if not names and held_out:
                raise DataError(f"no labelled image is left for split {split}: {lists / 'val.txt'} has them all")
            return names
        splits = sorted({path.stem for path in lists.glob("*.txt")} | {"train", "val", "all"})
        raise DataError(f"{lists / split}.txt does not exist; splits are {', '.join(splits)}, or name a list file")

    def read_list(self, path: Path) -> list[str]:
        """Image names of a list file, one per line, with or without ending."""
        names: dict[str, int] = {}
        problems = []
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            name = self._listing.find(line)
            if name is None:
                name = line.strip()
                self._absent[name] = where
                problems.append(f"{where}: {self._no_image(name)}")
            elif name not in self._rows:
                self._unlabelled.setdefault(name, f"{where}: ")
            if names.setdefault(name, number) != number:
                twice = f"{where}: {name!r} is also in line {names[name]}"
                self._complain(twice)
                problems.append(twice)
        if not names:
            raise DataError(f"list file {path} names no image")
        if self.strict:
            self._raise(problems)
        return list(names)

    def find_name(self, text: str) -> str:
        return self._listing.find(text, in_list=False) or text

    def all_names(self) -> list[str]:
        return sorted(self._images.keys() | self._absent.keys())

    def image(self, name: str) -> np.ndarray:
        return read_image(self._image_path(name), exif=True, whites=self.whites)

    def label(self, name: str) -> np.ndarray:
        if name not in self._rows:
            where = self._unlabelled.get(name, "")
            raise DataError(
                f"{where}image {name!r} has no line in {self.root / LABELS}; nothing after the comma: no object"
            )
        return np.isin(self.classes, self._rows[name]).astype(np.float32)

    def mask(self, name: str) -> np.ndarray | None:
        if name not in self._masks:
            return None
        size = image_size(self._image_path(name), exif=True)
        path = self.root / MASKS / self._masks[name]
        mask = read_mask(path, self.n_classes, size)
        if not self._white_is_class:
            return mask
        if (mask == 1).any():
            raise DataError(f"mask {path} holds the value 1, others hold 255 for {self.classes[0]}; use one of them")
        return (mask == IGNORE).astype(np.uint8)

    def has_mask(self, name: str) -> bool:
        return name in self._masks

    def check_names(self, names: Sequence[str], source: str) -> None:
        check_names(names, self._images.keys(), source, self.root / IMAGES)

    def check_labels(self, names: Sequence[str]) -> None:
        unlabelled = [name for name in names if self.has_labels and name not in self._rows]
        if unlabelled:
            try:
                self.label(unlabelled[0])
            except DataError as error:
                raise DataError(alike([str(error), *unlabelled[1:]])) from error

    def _image_path(self, name: str) -> Path:
        if name not in self._images:
            where = f"{self._absent[name]}: " if name in self._absent else ""
            kind = DataError if self._listing.reason(name) else MissingFile
            raise kind(f"{where}{self._no_image(name)}")
        return self.root / IMAGES / self._images[name]

    def _no_image(self, text: str) -> str:
        if reason := self._listing.reason(text):
            return reason
        return f"{text!r} is not in {self.root / IMAGES} (with ending {', '.join(ENDINGS)})"

    def _read_labels(self, trained_on: tuple[str, ...]) -> None:
        """Reads classes.txt and labels.csv."""
        listed = () if self.has_labels else trained_on
        if (self.root / CLASSES).exists():
            listed, problems, notes = read_classes(self.root / CLASSES)
            self.problems += problems
            self.notes += notes
        path = self.root / LABELS
        table = read_labels(path, self._listing.find, listed) if self.has_labels else Labels(path)
        self._listed = table.rows if self.has_labels else self._images  # the images that splits are made of
        self._rows, self._absent = table.rows, table.absent
        self.problems += table.problems
        self.notes += table.notes
        self.classes = listed or tuple(sorted(table.classes, key=lambda name: (name.isdecimal() and int(name), name)))
        if not (self._listed and self.classes) and not self.problems and not self._absent:
            kind = "class" if self._rows else "image"
            self._complain(f"{self.root / LABELS} names no {kind}; wanted {_LAYOUT}")
        if len(self.classes) > MAX_CLASSES:
            self._complain(f"{len(self.classes)} classes are more than the {MAX_CLASSES} that a mask can hold")
        if self._masks and not listed:
            self.notes.append(f"no {CLASSES}: mask values are the classes in alphabetical order")

    def _look_at_values(self) -> None:
        """What is white in images of more than 8 bits, and whether it is the class in masks."""
        paths = [path for path in self._images.values() if path.lower().endswith(DEEP_ENDINGS)]
        self.whites = whites_of_set([self.root / IMAGES / path for path in paths])
        for kind, white in self.whites.items():
            what = "floating-point images" if kind == "f" else "images of more than 8 bits"
            self.notes.append(f"{what}: {white:.0f} is read as white, by the largest value of a sample")
        masks = sorted(self._masks.keys() & self._listed.keys(), key=lambda name: (not self._rows.get(name), name))
        paths = [self.root / MASKS / self._masks[name] for name in masks[:SAMPLE]]
        self._white_is_class = len(self.classes) == 1 and black_and_white(paths)
        if self._white_is_class:
            self.notes.append(f"{MASKS}/ holds nothing but 0 and 255: 255 is read as {self.classes[0]}")

    def _note_what_is_left_out(self, mask_files: Sequence[str]) -> None:
        unlabelled = sorted(self._images.keys() - self._listed.keys()) if self._listed else ()
        if unlabelled:
            self.notes.append(
                f"{len(unlabelled)} images have no line in {LABELS} and are not used unless --val_list names them: "
                f"{shortened(unlabelled)}"
            )
        self.notes += self._listing.other_formats(self._absent)
        orphans = sorted(self._masks.keys() - self._images.keys())
        if mask_files and len(orphans) == len(self._masks):
            self._complain(
                f"none of the {len(mask_files)} files in {self.root / MASKS} is named as an image: "
                f"{shortened(mask_files, 2)}; wanted {next(iter(self._images))}.png and so on"
            )
        elif orphans:
            self.notes.append(f"{len(orphans)} files in {MASKS}/ belong to no image: {shortened(orphans)}")

    def _complain(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _raise(self, problems: Sequence[str]) -> None:
        if problems:
            more = f"; and {len(problems) - SHOWN} more: --check_data lists them" if len(problems) > SHOWN else ""
            raise DataError("; ".join(problems[:SHOWN]) + more)
