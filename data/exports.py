"""Reads the exports of annotation tools into one form: images, their classes, masks and splits.

Pascal VOC (CVAT, labelme2voc, Roboflow), COCO instances (Roboflow, Label Studio, CVAT), labelme, cls_labels.npy (the
IRN family), one folder of images per class.
"""

import csv
import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.base import read_lines
from data.classes import BACKGROUND, IGNORED
from data.errors import DataError
from data.images import image_size, voc_palette
from data.regions import Region, coco_region, is_box, labelme_region, paint, read_indices
from data.results import load_dict
from data.sources import FORMATS, SPLITS, Tree, is_coco, mask_files, published, read_json, read_xml, vector_files

LISTS = (*SPLITS, "trainval", "train_aug", "trainaug")
CLASS_FILES = ("labelmap.txt", "class_names.txt", "_classes.csv", "classes.txt", "labels.txt")


class Item(NamedTuple):
    """An image of a source."""

    image: Path  # or the JSON of labelme that embeds it
    name: str  # path below the new images/, without ending
    words: tuple[str, ...] | None  # its classes; None: those of its mask
    mask: Callable[[], np.ndarray] | None = None  # int16 [H, W], indices into Export.names, -1 ignored
    splits: tuple[str, ...] = ()


@dataclass
class Export:
    """What a source holds. names: what the values of its masks mean; left_out: why -> what."""

    names: list[str] = field(default_factory=lambda: ["background"])
    items: list[Item] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)

    def index(self, word: str) -> int:
        """The mask value of a class, a new one if it has none; background 0, ignored -1."""
        if word.lower() in (*BACKGROUND, *IGNORED):
            return -1 if word.lower() in IGNORED else 0
        if word not in self.names:
            self.names.append(word)
        return self.names.index(word)

    def note_boxes(self, regions: Sequence[Region | None]) -> None:
        if regions and all(shape is None or is_box(shape) for shape in regions) and any(regions):
            self.notes.append("every area is an upright rectangle: the masks are boxes, not outlines of objects")


def read(tree: Tree, kind: str, given: Sequence[str]) -> Export:
    """What a source of this format (of `READERS`) holds. given: class names in the order of values that have none."""
    export = READERS[kind](tree, given)
    used = {item.image for item in export.items} | (tree.class_folders().keys() if kind == "folders" else set())
    if unused := [path.name for path in tree.images if path not in used]:
        export.left_out["images that no label is for"] += unused
    if kind != "folders" and not any(item.splits for item in export.items):
        lists = _lists(tree)
        export.items = [
            item._replace(splits=tuple(lists[item.image]) if lists else tree.splits(item.image))
            for item in export.items
        ]
    return export


def read_voc(tree: Tree, given: Sequence[str]) -> Export:
    """XML annotations, masks (palette, grey, or in the colours of the label map), or both."""
    export = Export()
    annotations: dict[Path, tuple[str, ...]] = {}
    by_key = {tree.key(path): path for path in tree.images}
    for path in tree.ending(".xml"):
        if (content := read_xml(path)) is not None:
            image = by_key.get(tree.key(path)) or tree.find(content[0], path.parent)
            if image is None:
                export.left_out["annotations without image"].append(path.name)
            else:
                annotations[image] = content[1:]
    masks = _masks(tree, export, given, {word for words in annotations.values() for word in words})
    for path in tree.images:
        key, words = tree.key(path), annotations.get(path)
        if words is not None or key in masks:
            export.items.append(Item(path, key, words or (None if key in masks else ()), masks.get(key)))
    return export


def read_coco(tree: Tree, given: Sequence[str]) -> Export:
    """JSON files of instances; a crowd is an area of its class, an unused category that names a group is none."""
    export, images = Export(), {}  # image -> (size, words, regions, splits)
    for path in tree.ending(".json"):
        value = read_json(path)
        if not is_coco(value):
            continue
        try:
            categories = {str(entry["id"]): " ".join(str(entry["name"]).split()) for entry in value["categories"]}
            of_image = defaultdict(list)
            for entry in value["annotations"]:
                of_image[str(entry["image_id"])].append((categories[str(entry["category_id"])], entry))
            groups = {str(entry.get("supercategory")) for entry in value["categories"]}
            groups -= {word for entries in of_image.values() for word, _ in entries}
            for word in categories.values():
                if word not in groups:
                    export.index(word)
            split = tree.splits(path, name=True)
            for entry in value["images"]:
                image = tree.find(entry["file_name"], path.parent, split)
                if image is None:
                    export.left_out[f"images of {path.name} that are not there, or twice"].append(entry["file_name"])
                    continue
                size = entry.get("height"), entry.get("width")
                _, words, regions, splits = images.setdefault(image, (size, [], [], []))
                for word, annotation in of_image[str(entry["id"])]:
                    words.append(word)
                    regions.append((export.index(word), coco_region(annotation.get("segmentation"))))
                splits += split
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); export it again") from error
    export.note_boxes([shape for _, _, regions, _ in images.values() for _, shape in regions])
    masked = any(shape for _, _, regions, _ in images.values() for _, shape in regions)
    for path, (size, words, regions, splits) in images.items():
        mask = _painted(path, size, regions, by_area=True) if masked else None
        export.items.append(Item(path, tree.key(path), tuple(words), mask, tuple(dict.fromkeys(splits))))
    return export


def read_labelme(tree: Tree, given: Sequence[str]) -> Export:
    """A JSON file of shapes per image, which lies where `imagePath` says, beside it, or in the file itself."""
    export, rows = Export(), []
    for path in tree.ending(".json"):
        value = read_json(path)
        if not isinstance(value.get("shapes"), list):
            continue
        image = tree.find(str(value.get("imagePath") or path.stem), path.parent) or tree.find(path.stem, path.parent)
        if image is None and not value.get("imageData"):
            export.left_out["JSON files whose image is not there"].append(path.name)
            continue
        try:
            words = [str(shape["label"]).strip() for shape in value["shapes"]]
            regions = [
                (export.index(word), labelme_region(shape)) for word, shape in zip(words, value["shapes"], strict=True)
            ]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); save it again") from error
        flags = [word for word, is_so in (value.get("flags") or {}).items() if is_so]
        size = value.get("imageHeight"), value.get("imageWidth")
        rows.append((image or path, size, words, regions, flags))
    export.note_boxes([shape for *_, regions, _ in rows for _, shape in regions])
    flagged = not any(words for *_, words, _, _ in rows)  # labelme's flags say what the whole image shows
    for image, size, words, regions, flags in rows:
        for word in flags if flagged else ():
            export.index(word)
        mask = None if flagged else _painted(image, size, regions, by_area=False)
        export.items.append(Item(image, tree.key(image), tuple(flags if flagged else words), mask))
    return export


def read_cls_labels(tree: Tree, given: Sequence[str]) -> Export:
    """Vectors of 0 and 1 in the order of the classes, by image name or by the number that it is."""
    export, path = Export(), vector_files(tree)[0]
    try:
        vectors = {key: np.ravel(value) > 0 for key, value in load_dict(path).items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path} is not a dict of image name -> vector of labels ({error})") from error
    n = {len(value) for value in vectors.values()}
    names = given or [word for word, _ in _class_file(tree) if word.lower() not in BACKGROUND] or published(tree, ())
    if n != {len(names)}:
        raise DataError(
            f"{path} has {' or '.join(map(str, sorted(n)))} labels for an image, and {len(names) or 'no'} classes are "
            f"named; add --classes NAME,NAME,... in the order of the labels, or a {CLASS_FILES[1]} with one a line"
        )
    masks = _masks(tree, export, names, set())
    for word in names:
        export.index(word)
    numbers: dict[int, set[Path]] = defaultdict(set)
    for image in tree.images:
        digits = re.findall(r"\d+", image.stem)
        for text in {"".join(digits), *digits[-1:]} - {""}:
            numbers[int(text)].add(image)
    for key, vector in vectors.items():
        image = tree.find(str(key), path.parent)
        if image is None and str(key).isdigit() and len(numbers[int(key)]) == 1:
            (image,) = numbers[int(key)]
        if image is None:
            export.left_out[f"labels of {path.name} without image"].append(str(key))
        else:
            words = tuple(itertools.compress(names, vector))
            export.items.append(Item(image, tree.key(image), words, masks.get(tree.key(image))))
    return export


def read_folders(tree: Tree, given: Sequence[str]) -> Export:
    """CLASS/x.jpg, or SPLIT/CLASS/x.jpg. Equal files in several folders of a split are one image of several classes."""
    export, items = Export(), {}
    sizes = Counter(path.stat().st_size for path in tree.images)
    for path, (splits, word) in tree.class_folders().items():
        export.index(word)
        alone = sizes[path.stat().st_size] == 1
        content = path if alone else (splits, hashlib.sha256(path.read_bytes()).digest())
        item = items.get(content) or Item(path, tree.key(path), (), None, splits)
        items[content] = item._replace(words=(*item.words, word))
    export.items = list(items.values())
    if several := sum(len(set(item.words)) > 1 for item in export.items):
        export.notes.append(f"{several} images lie in the folders of several classes and have all of them")
    return export


READERS = dict(zip(FORMATS, (read_voc, read_coco, read_labelme, read_cls_labels, read_folders), strict=True))


def _painted(
    image: Path, size: tuple[int | None, int | None], regions: Sequence[tuple[int, Region | None]], by_area: bool
) -> Callable[[], np.ndarray] | None:
    """The mask of an image; None if an object of it has no area."""
    if any(shape is None for _, shape in regions):
        return None
    return partial(paint, size if all(size) else image_size(image, exif=True), regions, by_area)


def _masks(tree: Tree, export: Export, given: Sequence[str], words: set[str]) -> dict[str, Callable[[], np.ndarray]]:
    """Key -> mask. words: the classes of the XML files. The names of all values go into `export`."""
    files, named = mask_files(tree), _class_file(tree)
    if files and not named:
        named = [(word, None) for word in given or published(tree, words)]
        if not named:
            raise DataError(
                f"{tree.root} has {len(files)} masks, but nothing that says what their values mean; add --classes "
                f"NAME,NAME,... in the order of the values 1, 2, ..., or a {CLASS_FILES[1]} with one class a line"
            )
    if named and named[0][0].lower() in IGNORED:
        del named[0]  # labelme: -1, which a PNG has as 255
    if not any(word.lower() in BACKGROUND for word, _ in named):
        named.insert(0, ("background", None))
    by_colour = any(colour for _, colour in named)
    meaning = [export.index(word) for word in [word for word, _ in named] + sorted(words)][: len(named)]
    colours = [colour or voc for (_, colour), voc in zip(named, map(tuple, voc_palette().tolist()), strict=False)]
    of_colour = {(224, 224, 192): -1, **dict(zip(colours, meaning, strict=True))}
    return {key: partial(read_indices, path, meaning, of_colour, by_colour) for key, path in files.items()}


def _class_file(tree: Tree) -> list[tuple[str, tuple[int, ...] | None]]:
    """Name and colour of every mask value, in order, from the first of CLASS_FILES; most have no colours."""
    files = {path.name.lower(): path for path in reversed(tree.others)}
    for path in [files[name] for name in CLASS_FILES if name in files]:
        rows = [line.strip() for line in read_lines(path) if line.strip() and not line.startswith("#")]
        if path.name == "labelmap.txt" and all(":" in line for line in rows):
            try:  # name:r,g,b:parts:actions
                parts = [line.rsplit(":", 3) for line in rows]
                return [(row[0].strip(), tuple(map(int, row[1].split(","))) if row[1] else None) for row in parts]
            except ValueError as error:
                raise DataError(f"{path} has {error}; wanted lines like apple:128,0,0::") from error
        if path.name == "_classes.csv":  # Roboflow: Pixel Value, Class
            cells = [[cell.strip() for cell in row] for row in csv.reader(rows)]
            if cells[0][0].lower() == "pixel value":
                return [(row[1], None) for row in cells[1:]]
        elif path.name != "labels.txt" or rows[0].lower() in (*BACKGROUND, *IGNORED):
            return [(word, None) for word in rows]
    return []


def _lists(tree: Tree) -> dict[Path, list[str]]:
    """Image -> its splits, as the list files say: those of ImageSets, or files that are called as a split is."""
    lists: dict[Path, list[str]] = defaultdict(list)
    seen = {"default"}  # CVAT's name for no split
    paths = [path for path in tree.ending(".txt") if "ImageSets" in tree.parts(path) or path.stem.lower() in LISTS]
    for path in sorted(paths, key=lambda path: path.parent.name != "Segmentation"):
        lines = [line.strip() for line in read_lines(path) if line.strip()]
        split = SPLITS.get(path.stem.lower(), path.stem)
        if split in seen or all(re.search(r"\s-?[01]$", line) for line in lines):
            continue  # a list of one class: name 1, name -1
        seen.add(split)
        for line in lines:
            image = tree.find(line, path.parent) or tree.find(line.split()[0], path.parent)
            if image is not None and split not in lists[image]:
                lists[image].append(split)
    return lists
