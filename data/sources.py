"""A folder that an annotation tool has exported: its files, the formats in it, and which image a text in them means."""

import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from data.base import plain
from data.errors import DataError
from data.folder import ENDINGS
from data.listing import walk

FORMATS = {
    "voc": "Pascal VOC", "coco": "COCO", "labelme": "labelme", "cls_labels": "cls_labels.npy",
    "folders": "one folder per class",
}  # fmt: skip
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}  # fmt: skip
MASKS = ("segmentationclassaug", "segmentationclass", "segmentationclasspng", "masks", "mask")  # the first wins
PARTS = ("jpegimages", "images", "image", "imgs", "annotations", "xmls", "labels", *MASKS)  # hold one kind of file
NOT_IMAGES = re.compile(r"(?i)segmentation\w*|masks?|\w*visuali[sz]ation|trimaps")  # folders


class Tree:
    """The files below a folder. images: where else images lie; only: the one JSON file to read."""

    def __init__(self, root: Path, images: Path | None = None, only: Path | None = None):
        self.root, self.only = root, only
        folders = [folder for folder in (images, root) if folder]
        self.parts = {folder / path: Path(path).parts for folder in folders for path in sorted(walk(folder))}
        self.masks = self._mask_files()
        drawn = {path for path, parts in self.parts.items() if any(map(NOT_IMAGES.fullmatch, parts[:-1]))}
        drawn.update(self.masks)
        self.images = [path for path in self.parts if path.suffix.lower() in ENDINGS and path not in drawn]
        self._named: dict[str, list[Path]] = defaultdict(list)
        for path in self.images:
            for word in {path.name, path.stem}:
                self._named[word].append(path)

    def _mask_files(self) -> list[Path]:
        """PNGs in one of the MASKS folders, those of the first last; NAME_mask.png beside NAME.jpg (Roboflow)."""
        ranks = {}
        for path in self.ending(".png"):
            ranked = [-MASKS.index(part.lower()) for part in self.parts[path][:-1] if part.lower() in MASKS]
            if ranked or (path.stem.endswith("_mask") and path.with_name("_classes.csv") in self.parts):
                ranks[path] = max(ranked, default=0)
        return sorted(ranks, key=ranks.get)

    def ending(self, ending: str) -> list[Path]:
        """The files with an ending."""
        return [path for path in self.parts if path.suffix.lower() == ending and self.only in (None, path)]

    def key(self, path: Path) -> str:
        """The path without ending and without folders of one kind of file: equal for an image, its XML and its mask."""
        parts = self.parts.get(path, ())
        return "/".join([part for part in parts[:-1] if part.lower() not in PARTS] + [path.stem])

    def splits(self, path: Path, name: bool = False) -> tuple[str, ...]:
        """The split that a file's folders tell, and with `name` its name: valid/x.jpg, instances_train2017.json."""
        words = re.split(r"[^a-z]+", path.stem.lower()) if name else []
        words += [re.sub(r"_?\d+$", "", part.lower()) for part in self.parts.get(path, ())[-2::-1]]
        return tuple(SPLITS[word] for word in words if word in SPLITS)[:1]

    def find(self, text: str, near: Path, splits: tuple[str, ...] = ()) -> Path | None:
        """The image that a file in the folder `near` means by a path, address or name; None for none or several.

        Of equal names the one with the most folders in common wins, then the nearest, then one of these splits.
        """
        text = text.strip().replace("\\", "/")
        if "://" in text or "?d=" in text:  # an address; a local file of Label Studio
            text = text.rpartition("?d=")[2].partition("?")[0]
        original = re.sub(r"(^|.*/)[0-9a-f]{8}-", "", text)  # before Label Studio put a number before the name
        for word in dict.fromkeys((text, unquote(text), original)):
            path, wanted = Path(os.path.normpath(near / word)), Path(word)
            if path.suffix.lower() in ENDINGS and os.path.isfile(path):
                return path
            paths = self._named.get(wanted.name) or self._named.get(wanted.stem if wanted.suffix else "", [])
            ranks = sorted(((*_rank(path, wanted, near), self.splits(path) == splits), path) for path in paths)
            if ranks and (len(ranks) == 1 or ranks[-1][0] > ranks[-2][0]):
                return ranks[-1][1]
        return None

    def images_of(self, files: Mapping[Path, str]) -> dict[Path, Path | None]:
        """File -> its image: of its name in the same or a parallel folder, else anywhere, else of the name given."""
        by_key = {self.key(path): path for path in self.images}
        keys = {path: self.key(path) for path in files}
        images = {path: by_key.get(key) or by_key.get(key.removesuffix("_mask")) for path, key in keys.items()}
        taken = {*images.values()}
        for path in [path for path, image in images.items() if image is None]:
            other = self.find(path.stem.removesuffix("_mask"), path.parent) or self.find(files[path], path.parent)
            images[path] = None if other in taken else other
        return images

    def class_folders(self) -> dict[Path, tuple[tuple[str, ...], str]]:
        """Image -> (split, class), where images lie as CLASS/x.jpg or SPLIT/CLASS/x.jpg; empty if they do not."""
        folders = [self.parts[path][:-1] for path in self.images]
        same = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
        top = min([len(list(same)), *(len(parts) - 1 for parts in folders if len(set(folders)) == 1)])
        parts = {path: self.parts[path][max(top, 0) :] for path in self.images}
        split = {words[0].lower() for words in parts.values()} <= SPLITS.keys()
        inside = {path: words[split:-1] for path, words in parts.items() if len(words) > split + 1}
        if any(words[0].lower() in PARTS for words in inside.values()) or 2 * len(inside) < len(parts):
            return {}
        return {path: (self.splits(path) if split else (), plain(words[0])) for path, words in inside.items()}

    def vectors(self) -> list[Path]:
        """Files such as cls_labels.npy."""
        return [path for path in self.ending(".npy") if re.search(r"(?i)cls.?label", path.stem)]


def _rank(path: Path, wanted: Path, near: Path) -> tuple[int, int]:
    """How well an image fits a path that a file in `near` has: parts equal at the end, then closeness to that file."""
    pairs = zip((path.stem, *path.parts[-2::-1]), (wanted.stem, *wanted.parts[-2::-1]), strict=False)
    equal = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return equal, len(os.path.commonpath([os.path.abspath(path), os.path.abspath(near)]))


def kinds(tree: Tree) -> dict[str, str]:
    """The formats of a source, each with the file that shows it."""
    largest = sorted(tree.ending(".json"), key=lambda path: -path.stat().st_size)[:50]
    contents = {path: read_json(path) for path in largest}
    paths = {
        "cls_labels": tree.vectors(),
        "voc": [*filter(read_xml, tree.ending(".xml")[:50]), *(() if tree.vectors() else tree.masks)],
        "coco": [path for path, value in contents.items() if is_coco(value)],
        "labelme": [path for path, value in contents.items() if "shapes" in value],
    }
    folders = {} if any(paths.values()) else tree.class_folders()
    if len({word for _, word in folders.values()}) > 1:
        paths["folders"] = [next(iter(folders)).parent]
    return {kind: os.path.relpath(files[0], tree.root) for kind, files in paths.items() if files}


def read_json(path: Path) -> dict:
    """The mapping in a JSON file, {} if it holds anything else; DataError if it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); export it again or remove it") from error
    return value if isinstance(value, dict) else {}


def read_xml(path: Path) -> tuple[str, ...] | None:
    """File name and classes, in an XML file of VOC's format; None for other XML, DataError if it is damaged."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"annotation {path} cannot be read ({error}); export it again or remove it") from error
    if root.tag != "annotation":
        return None
    words = [plain((item.findtext("name") or "").strip()) for item in root.findall("object")]
    return ((root.findtext("filename") or "").strip(), *dict.fromkeys(filter(None, words)))


def is_coco(value: dict) -> bool:
    """Whether a JSON file holds instances, not captions or panoptic segments."""
    lists = all(isinstance(value.get(key), list) for key in ("images", "annotations", "categories"))
    return lists and all("category_id" in annotation for annotation in value["annotations"][:1])
