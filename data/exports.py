"""Reads what annotation tools export: images, their classes, masks and splits.

Pascal VOC (CVAT, labelme2voc, Roboflow), COCO instances (Roboflow, Label Studio, CVAT), labelme, cls_labels.npy (the
IRN family), one folder of images per class.
"""

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.base import plain, read_lines
from data.classes import BACKGROUND, IGNORED
from data.errors import DataError
from data.images import image_size, voc_palette
from data.regions import CLASS_FILES, coco_region, is_box, labelme_region, paint, read_class_file, read_indices
from data.results import load_dict
from data.sources import FORMATS, SPLITS, Tree, is_coco, read_json, read_xml

LISTS = (*SPLITS, "trainval", "train_aug", "trainaug")


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

    def add(self, tree: Tree, images: Mapping[Path, tuple], by_area: bool) -> None:
        """Image -> ((H, W), objects, splits); an object is (class, area), and an image has a mask if all have areas."""
        regions = [region for _, layers, _ in images.values() for _, region in layers]
        if any(regions) and all(region is None or is_box(region) for region in regions):
            self.notes.append("every area is an upright rectangle: the masks are boxes, not outlines of objects")
        for image, (size, layers, splits) in images.items():
            indexed, mask = [(self.index(word), region) for word, region in layers], None
            if any(regions) and all(region for _, region in layers):
                size = tuple(map(int, size)) if all(size) else image_size(image, exif=True)
                mask = partial(paint, size, indexed, by_area)
            words = tuple(word for word, _ in layers)
            self.items.append(Item(image, tree.key(image), words, mask, tuple(dict.fromkeys(splits))))


def read(tree: Tree, kind: str, given: Sequence[str]) -> Export:
    """What a source of this format (of `FORMATS`) holds. given: class names in the order of values that have none."""
    export = READERS[kind](tree, given)
    used = {item.image for item in export.items} | (tree.class_folders().keys() if kind == "folders" else set())
    if unused := [path.name for path in tree.images if path not in used]:
        export.left_out["images that no label is for"] += unused
    if kind != "folders" and not any(item.splits for item in export.items):
        lists = _lists(tree)
        splits = [tuple(lists[item.image]) if lists else tree.splits(item.image) for item in export.items]
        export.items = [item._replace(splits=names) for item, names in zip(export.items, splits, strict=True)]
    return export


def read_voc(tree: Tree, given: Sequence[str]) -> Export:
    """XML annotations, masks (palette, grey, or in the colours of the label map), or both."""
    export = Export()
    contents = {path: content for path in tree.ending(".xml") if (content := read_xml(path)) is not None}
    images = tree.images_of({path: name for path, (name, *_) in contents.items()})
    words = {image: contents[path][1:] for path, image in images.items() if image}
    if absent := [path.name for path, image in images.items() if not image]:
        export.left_out["annotations without image"] += absent
    masks = _masks(tree, export, given, {*itertools.chain(*words.values())})
    for path in tree.images:
        if path in words or path in masks:
            mask = masks.get(path)
            export.items.append(Item(path, tree.key(path), words.get(path) or (None if mask else ()), mask))
    return export


def read_coco(tree: Tree, given: Sequence[str]) -> Export:
    """JSON files of instances; a crowd is an area of its class, an unused category that names a group is none."""
    export, images = Export(), {}  # image -> (size, words, regions, splits)
    for path in tree.ending(".json"):
        if not is_coco(value := read_json(path)):
            continue
        try:
            names = {str(entry["id"]): plain(" ".join(str(entry["name"]).split())) for entry in value["categories"]}
            objects = defaultdict(list)
            for entry in value["annotations"]:
                word = names[str(entry["category_id"])]
                objects[str(entry["image_id"])].append((word, coco_region(entry.get("segmentation"))))
            groups = {str(entry.get("supercategory")) for entry in value["categories"]}
            groups -= {word for of_image in objects.values() for word, _ in of_image}
            for word in names.values():
                if word not in groups:
                    export.index(word)
            split = tree.splits(path, name=True)
            for entry in value["images"]:
                of_image = objects.pop(str(entry["id"]), [])
                if image := tree.find(entry["file_name"], path.parent, split):
                    size = entry.get("height"), entry.get("width")
                    _, layers, splits = images.setdefault(image, (size, [], []))
                    layers += of_image
                    splits += split
                else:
                    export.left_out[f"images of {path.name} that are not there, or twice"].append(entry["file_name"])
            if objects:
                export.left_out[f"images that {path.name} has labels for, but does not list"] += objects
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); export it again") from error
    export.add(tree, images, by_area=True)
    return export


def read_labelme(tree: Tree, given: Sequence[str]) -> Export:
    """A JSON file of shapes per image, which lies where `imagePath` says, beside it, or in the file itself.

    Without any shape the flags are labels: they say what the whole image shows.
    """
    export, images, flags = Export(), {}, {}
    for path in tree.ending(".json"):
        value = read_json(path)
        if "shapes" not in value:
            continue
        image = tree.find(str(value.get("imagePath")), path.parent) or tree.find(path.stem, path.parent)
        if not (image or value.get("imageData")):
            export.left_out["JSON files whose image is not there"].append(path.name)
            continue
        try:
            layers = [(plain(str(shape["label"]).strip()), labelme_region(shape)) for shape in value["shapes"]]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); save it again") from error
        images[image or path] = (value.get("imageHeight"), value.get("imageWidth")), layers, ()
        flags[image or path] = [(plain(word), None) for word, is_so in (value.get("flags") or {}).items() if is_so]
    if not any(layers for _, layers, _ in images.values()):
        images = {image: (size, flags[image], ()) for image, (size, *_) in images.items()}
    export.add(tree, images, by_area=False)
    return export


def read_cls_labels(tree: Tree, given: Sequence[str]) -> Export:
    """Vectors of 0 and 1 in the order of the classes, by image name or by the number that it is."""
    export, path = Export(), tree.vectors()[0]
    try:
        vectors = {str(key): np.ravel(value) > 0 for key, value in load_dict(path).items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path} is not a dict of image name -> vector of labels ({error})") from error
    names = given or [word for word, _ in read_class_file(tree.parts) if word.lower() not in BACKGROUND]
    if (n := {len(value) for value in vectors.values()}) != {len(names)}:
        raise DataError(
            f"{path} has {' or '.join(map(str, sorted(n)))} labels for an image, and {len(names) or 'no'} classes are "
            f"named; add --classes NAME,NAME,... in the order of the labels, or a {CLASS_FILES[1]} with one a line"
        )
    masks = _masks(tree, export, names)
    for word in names:
        export.index(word)
    numbers = defaultdict(set)
    for image in tree.images:
        digits = re.findall(r"\d+", image.stem)
        for text in {"".join(digits), *digits[-1:]} - {""}:
            numbers[text.lstrip("0")].add(image)
    for key, vector in vectors.items():
        images = {tree.find(key, path.parent)} - {None} or numbers[key.lstrip("0")]
        if len(images) == 1:
            (image,) = images
            words = tuple(itertools.compress(names, vector))
            export.items.append(Item(image, tree.key(image), words, masks.get(image)))
        else:
            export.left_out[f"labels of {path.name} without image"].append(key)
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


def _masks(
    tree: Tree, export: Export, given: Sequence[str], words: Collection[str] = ()
) -> dict[Path, Callable[[], np.ndarray]]:
    """Image -> mask. words: the classes of the XML files. The names of all values go into `export`."""
    named = read_class_file(tree.parts) or [(word, None) for word in given]
    if tree.masks and not named:
        raise DataError(
            f"{tree.root} has {len(tree.masks)} masks, but nothing that says what their values mean; add --classes "
            f"NAME,NAME,... in the order of the values 1, 2, ..., or a {CLASS_FILES[1]} with one class a line"
        )
    if named and named[0][0].lower() in IGNORED:
        del named[0]  # labelme: -1, which a PNG has as 255
    if not any(word.lower() in BACKGROUND for word, _ in named):
        named.insert(0, ("background", None))
    meaning = [export.index(plain(word)) for word, _ in named]
    for word in sorted(words):
        export.index(word)
    colours = [colour or voc for (_, colour), voc in zip(named, map(tuple, voc_palette().tolist()), strict=False)]
    of_colour = {(224, 224, 192): -1, **dict(zip(colours, meaning, strict=True))}
    read_mask = partial(read_indices, {255: -1, **dict(enumerate(meaning))}, of_colour, any(c for _, c in named))
    images = tree.images_of(dict.fromkeys(tree.masks, ""))
    return {image: partial(read_mask, path) for path, image in images.items() if image}


def _lists(tree: Tree) -> dict[Path, list[str]]:
    """Image -> its splits, as the list files say: those of ImageSets, or files that are called as a split is."""
    lists: dict[Path, list[str]] = defaultdict(list)
    seen = {"default"}  # CVAT's name for no split
    paths = [path for path in tree.ending(".txt") if "ImageSets" in tree.parts[path] or path.stem.lower() in LISTS]
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
