"""Your own images: a folder with images/ and labels.csv and, where there are any, masks/, classes.txt and splits/.

    images/      jpg, jpeg, png, webp; subfolders are part of the name; turned as their EXIF orientation says
    labels.csv   name,class1;class2   with or without a header; nothing after the comma: no object in the image
    masks/       palette or 8-bit grey PNG of class indices named as the image: 0 background, 1.. classes, 255 ignore
    classes.txt  one class a line, line k is the mask value k; without it: the classes of labels.csv by the alphabet
    splits/      train.txt and val.txt, one image a line. Without train.txt every labelled image that is not in val.txt
                 is a training image, without val.txt the training images are validated on

The name of an image is its path below images/ without the ending; lists and labels.csv may have it with the ending.
"""

import argparse
import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.base import DataError, Dataset, MissingFile, read_lines
from data.reading import check_names, check_same_size, image_size, read_image, read_mask, shortened

IMAGES, LABELS, MASKS, CLASSES, SPLITS = "images", "labels.csv", "masks", "classes.txt", "splits"
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
MASK_ENDINGS = (*ENDINGS, ".bmp", ".gif", ".tif", ".tiff")  # what is no PNG is refused when it is read
HEADERS = ("name", "image", "images", "imagename", "imagefile", "imageid", "file", "filename", "path", "id")
MAX_CLASSES = 254  # mask values are bytes, 0 is background and 255 ignored
SHOWN = 5

# What differs from data/presets.py: the published values belong to VOC 2012, these hold for images of any size.
PRESET: dict[str, tuple[object, str]] = {
    "cam_eval_sweep": ((0.05, 0.60, 0.01), "wide: nobody knows the best threshold of your images"),
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
    return Folder(args.data_root, strict=not getattr(args, "check_data", False))


class Folder(Dataset):
    """Images, labels and masks below `root`, laid out as the head of this module says.

    strict: raise DataError for the problems of labels.csv, classes.txt and lists, naming file and line; else they are
    collected in `problems`.
    """

    name = "folder"

    def __init__(self, root: Path, strict: bool = True):
        self.root, self.strict = Path(root), strict
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._absent: dict[str, str] = {}  # text that names no image -> where it stands
        _check_layout(self.root)
        self._images = self._files(IMAGES, ENDINGS)
        self._names = {_plain(path): name for name, path in self._images.items()}  # path with ending -> name
        self._masks = self._files(MASKS, MASK_ENDINGS)
        if not self._images:
            raise DataError(f"{self.root / IMAGES} holds no image; wanted {', '.join(ENDINGS)}")
        listed = self._read_classes()
        rows = self._read_labels(listed)
        self.classes = listed or tuple(sorted({name for names in rows.values() for name in names}))
        if not rows or not self.classes:
            kind = "class" if rows else "image"
            self._complain(f"{self.root / LABELS} names no {kind}; wanted lines like: name,class1;class2")
        if len(self.classes) > MAX_CLASSES:
            self._complain(f"{len(self.classes)} classes are more than the {MAX_CLASSES} that a mask can hold")
        place = {name: i for i, name in enumerate(self.classes)}
        self._rows = {name: row for row, name in enumerate(rows)}
        self._matrix = np.zeros((len(rows), self.n_classes), np.uint8)
        for row, names in enumerate(rows.values()):
            self._matrix[row, [place[name] for name in names]] = 1
        self._note_what_is_left_out(listed)
        if strict:
            self._raise([*(f"{where}: {self._no_image(text)}" for text, where in self._absent.items()), *self.problems])

    @property
    def has_masks(self) -> bool:
        return any(name in self._masks for name in self._rows)

    def names(self, split: str) -> list[str]:
        """A list of splits/; "train" and "val" also without one; "all": every labelled image, ordered by name."""
        lists = self.root / SPLITS
        if (lists / f"{split}.txt").is_file():
            return self.read_list(lists / f"{split}.txt")
        if split == "val":
            return self.names("train")
        if split in ("train", "all"):
            held_out = set(self.names("val")) if split == "train" and (lists / "val.txt").is_file() else set()
            names = sorted(name for name in self._rows if name not in held_out)
            if not names:
                why = f"{lists / 'val.txt'} has them all" if held_out else f"{self.root / LABELS} names none"
                raise DataError(f"no labelled image is left for the split {split}: {why}")
            return names
        there = sorted({path.stem for path in lists.glob("*.txt")} | {"train", "val", "all"})
        raise DataError(f"there is no {lists / split}.txt; splits are {', '.join(there)}, or name a list file (.txt)")

    def read_list(self, path: Path) -> list[str]:
        """Image names of a list file, one a line: the whole line, with or without its ending."""
        names: dict[str, int] = {}
        problems = []
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            name = self._find(line)
            if name is None:
                name = line.strip()
                self._absent[name] = where
                problems.append(f"{where}: {self._no_image(name)}")
            elif name not in self._rows:
                problems.append(f"{where}: {name!r} has no line in {self.root / LABELS}")
            if names.setdefault(name, number) != number:
                twice = f"{where}: {name!r} stands in line {names[name]} too"
                self._complain(twice)
                problems.append(twice)
        if not names:
            raise DataError(f"list file {path} names no image")
        if self.strict:
            self._raise(problems)
        return list(names)

    def find_name(self, text: str) -> str:
        return self._find(text) or text

    def all_names(self) -> list[str]:
        return sorted(self._images.keys() | self._absent.keys())

    def image(self, name: str) -> np.ndarray:
        return read_image(self._image_path(name), exif=True)

    def label(self, name: str) -> np.ndarray:
        if name not in self._rows:
            raise DataError(f"image {name!r} has no line in {self.root / LABELS}; nothing after the comma: no object")
        return self._matrix[self._rows[name]].astype(np.float32)

    def mask(self, name: str) -> np.ndarray | None:
        """uint8 [H, W] of masks/, or None; DataError if it is no PNG of class indices, or of another size."""
        if name not in self._masks:
            return None
        image, path = self._image_path(name), self.root / MASKS / self._masks[name]
        mask = read_mask(path, self.n_classes)
        check_same_size(image, image_size(image, exif=True), path, mask.shape)
        return mask

    def has_mask(self, name: str) -> bool:
        return name in self._masks

    def check_names(self, names: Sequence[str], source: str) -> None:
        check_names(names, self._rows.keys() & self._images.keys(), source, self.root / IMAGES)

    def _image_path(self, name: str) -> Path:
        if name not in self._images:
            where = f"{self._absent[name]}: " if name in self._absent else ""
            raise MissingFile(f"{where}{self._no_image(name)}")
        return self.root / IMAGES / self._images[name]

    def _no_image(self, text: str) -> str:
        return f"{text!r} is not in {self.root / IMAGES} (with the ending {', '.join(ENDINGS)})"

    def _find(self, text: str) -> str | None:
        """The name of the image that a line means: its name or path, also as `./x`, `images/x` or `sub\\x`."""
        for form in (_plain(text), _plain(text.strip()), _plain(text.strip().replace("\\", "/"))):
            for path in (form, form.removeprefix("./").removeprefix(f"{IMAGES}/")):
                if path in self._names:
                    return self._names[path]
                if path in self._images:
                    return path
        return None

    def _files(self, folder: str, endings: Sequence[str]) -> dict[str, str]:
        """Name -> path below `folder` of its files with these endings; hidden ones are not looked at."""
        files: dict[str, str] = {}
        for path in sorted(_walk(self.root / folder)):
            stem, ending = os.path.splitext(path)
            if ending.lower() not in endings:
                continue
            name = _plain(stem)
            if not _is_text(name):
                self._complain(f"{self.root / folder} has a file name that is not UTF-8 text: {path!a}; rename it")
            elif name in files:
                self._complain(
                    f"{self.root / folder} has {files[name]!r} and {path!r}: both have the name {name!r}; rename one"
                )
            else:
                files[name] = path
        return files

    def _read_classes(self) -> tuple[str, ...]:
        """The classes of classes.txt; empty without it."""
        path = self.root / CLASSES
        classes: dict[str, int] = {}
        if not path.exists():
            return ()
        lines = [_plain(line.strip()) for line in read_lines(path)]
        while lines and not lines[-1]:
            lines.pop()
        for number, name in enumerate(lines, 1):
            where = f"{path} line {number}"
            if not name:
                self._complain(f"{where} is empty; line k is the class with the mask value k")
            elif name.lower() == "background":
                self._complain(f"{where}: background is no class, it is the mask value 0; take the line out")
            elif name in classes:
                self._complain(f"{where}: class {name!r} stands in line {classes[name]} too")
            else:
                classes[name] = number
        if not classes:
            self._complain(f"{path} names no class; write one a line, or delete it")
        return tuple(classes)

    def _read_labels(self, classes: Sequence[str]) -> dict[str, list[str]]:
        """Image name -> its classes, of labels.csv. classes: those there may be; empty: any."""
        path = self.root / LABELS
        rows: dict[str, list[str]] = {}
        lines: dict[str, int] = {}
        for i, (number, cells) in enumerate(_csv(path)):
            where = f"{path} line {number}"
            name = self._find(cells[0])
            if i == 0 and name is None and re.sub(r"[\W_]", "", cells[0]).lower() in HEADERS:
                continue
            if len(cells) != 2:
                self._complain(
                    f"{where} has {len(cells)} column{'s' if len(cells) > 1 else ''}, wanted 2: name,class1;class2 "
                    f"(a name with a comma in double quotes; nothing after the comma: no object)"
                )
                continue
            if name is None:
                self._absent[cells[0].strip()] = where
                continue
            if name in lines:
                self._complain(f"{where}: image {name!r} stands in line {lines[name]} too")
                continue
            lines[name] = number
            found = [_plain(part.strip()) for part in cells[1].split(";") if part.strip()]
            for word in found:
                if word.lower() == "background":
                    self._complain(f"{where}: background is no class; leave it out")
                elif classes and word not in classes:
                    self._complain(f"{where}: class {word!r} is not in {self.root / CLASSES}")
            rows[name] = [word for word in found if word.lower() != "background" and (not classes or word in classes)]
        return rows

    def _note_what_is_left_out(self, listed: Sequence[str]) -> None:
        unlabelled = sorted(self._images.keys() - self._rows.keys())
        if unlabelled:
            self.notes.append(
                f"{len(unlabelled)} images have no line in {LABELS} and are not used: {shortened(unlabelled)}"
            )
        orphans = sorted(self._masks.keys() - self._images.keys())
        if orphans:
            self.notes.append(f"{len(orphans)} files in {MASKS}/ belong to no image: {shortened(orphans)}")
        if self._masks and not listed:
            self.notes.append(f"there is no {CLASSES}: the mask values stand for the classes in alphabetical order")

    def _complain(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _raise(self, problems: Sequence[str]) -> None:
        if problems:
            more = f"; and {len(problems) - SHOWN} more: --check_data lists them" if len(problems) > SHOWN else ""
            raise DataError("; ".join(problems[:SHOWN]) + more)


def _check_layout(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"--data_root {root} is not a folder; wanted one with {IMAGES}/ and {LABELS}")
    missing = [name for name in (IMAGES, LABELS) if not (root / name).exists()]
    if missing:
        raise DataError(
            f"{root} has no {' and no '.join(missing)}; wanted the images in {IMAGES}/ and a {LABELS} "
            f"with lines like: name,class1;class2"
        )


def _plain(text: str) -> str:
    """Text in the one form (NFC) in which names and classes are compared; some systems store names decomposed."""
    return unicodedata.normalize("NFC", text)


def _is_text(name: str) -> bool:
    """Whether a file name is UTF-8; Python keeps other bytes as surrogates, which cannot be written anywhere."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(folder: Path) -> Iterator[str]:
    """Paths below `folder` of all files, those of linked folders too."""

    def stop(error: OSError) -> None:
        raise DataError(f"folder {error.filename} cannot be read: {error.strerror}") from error

    seen = set()
    for parent, folders, files in os.walk(folder, onerror=stop, followlinks=True) if folder.is_dir() else ():
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (os.path.relpath(os.path.join(parent, name), folder) for name in files if name[0] != ".")
        seen.add(real)


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of the rows of a CSV file that are not empty; empty cells at the end are dropped."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as CSV in UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            while len(cells) > 2 and not cells[-1].strip():
                cells.pop()
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}") from error
