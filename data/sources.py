"""A folder that an annotation tool has exported: its files, the formats in it, and which image a text in them means."""

import contextlib
import itertools
import json
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from data import data_module
from data.errors import DataError
from data.folder import ENDINGS
from data.listing import walk

FORMATS = {
    "voc": "Pascal VOC", "coco": "COCO", "labelme": "labelme", "cls_labels": "cls_labels.npy",
    "folders": "one folder per class",
}  # fmt: skip
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}  # fmt: skip
MASKS = ("segmentationclassaug", "segmentationclass", "segmentationclasspng", "masks")  # the first wins
PARTS = ("jpegimages", "images", "image", "imgs", "annotations", "xmls", "labels", *MASKS)  # hold one kind of file
NOT_IMAGES = re.compile(r"(?i)segmentation\w*|masks|\w*visuali[sz]ation|trimaps")  # folders
# dataset -> its image names, which alone tell that labels without names are of its classes
PUBLISHED = {"voc12": r"20(0[7-9]|1[0-2])_\d{6}", "coco14": r"(COCO_(train|val)2014_)?\d{12}"}
MANY = 100_000  # files; a folder of more is not searched to word an error


class Tree:
    """The files below a folder. images: where else images lie; only: the one JSON file to read."""

    def __init__(self, root: Path, images: Path | None = None, only: Path | None = None):
        self.root = root
        paths = sorted({folder / path for folder in (root, images) if folder for path in walk(folder)})
        pictures = {path for path in paths if path.suffix.lower() in ENDINGS and not self._is_mask(path)}
        self.images = [path for path in paths if path in pictures]
        self.others = [path for path in paths if path not in pictures and only in (None, path)]
        self._named: dict[str, list[Path]] = defaultdict(list)
        for path in self.images:
            for word in {path.name, path.stem}:
                self._named[word].append(path)

    def _is_mask(self, path: Path) -> bool:
        beside = path.stem.endswith("_mask") and (path.parent / "_classes.csv").is_file()  # Roboflow
        return beside or any(NOT_IMAGES.fullmatch(part) for part in self.parts(path)[:-1])

    def parts(self, path: Path) -> tuple[str, ...]:
        """The parts of a path below the root."""
        return path.relative_to(self.root).parts if path.is_relative_to(self.root) else (path.name,)

    def ending(self, ending: str) -> list[Path]:
        """The files with an ending, without the images."""
        return [path for path in self.others if path.suffix.lower() == ending]

    def key(self, path: Path) -> str:
        """The path without ending and without folders of one kind of file: equal for an image, its XML and its mask."""
        parts = self.parts(path)
        return "/".join([part for part in parts[:-1] if part.lower() not in PARTS] + [path.stem])

    def splits(self, path: Path, name: bool = False) -> tuple[str, ...]:
        """The split that a file's folders tell, and with `name` its name: valid/x.jpg, instances_train2017.json."""
        words = re.split(r"[^a-z]+", path.stem.lower()) if name else []
        words += [re.sub(r"_?\d+$", "", part.lower()) for part in self.parts(path)[-2::-1]]
        return tuple(SPLITS[word] for word in words if word in SPLITS)[:1]

    def find(self, text: str, near: Path, splits: tuple[str, ...] = ()) -> Path | None:
        """The image that a file in the folder `near` means by a path, address or name; None for none or several.

        Of equal names the one with the most folders in common wins, then the nearest, then one of these splits.
        """
        text = text.strip().replace("\\", "/")
        if "://" in text or "?d=" in text:  # an address; a local file of Label Studio
            text = text.rpartition("?d=")[2].partition("?")[0]
        for word in dict.fromkeys((text, unquote(text))):
            path = Path(os.path.normpath(near / word))
            if path.suffix.lower() in ENDINGS and os.path.isfile(path):
                return path
            wanted = Path(word)
            paths = self._named.get(wanted.name) or self._named.get(wanted.stem if wanted.suffix else "", [])
            ranks = sorted(((*_rank(path, wanted, near), self.splits(path) == splits), path) for path in paths)
            if ranks and (len(ranks) == 1 or ranks[-1][0] > ranks[-2][0]):
                return ranks[-1][1]
        return None

    def class_folders(self) -> dict[Path, tuple[tuple[str, ...], str]]:
        """Image -> (split, class), where images lie as CLASS/x.jpg or SPLIT/CLASS/x.jpg; empty if they do not."""
        paths = [path for path in self.images if path.is_relative_to(self.root)]
        top = Path(os.path.commonpath([path.parent for path in paths])) if paths else self.root
        parts = {path: path.relative_to(top).parts for path in paths}
        split = {words[0].lower() for words in parts.values()} <= SPLITS.keys()
        inside = {path: words[split:-1] for path, words in parts.items() if len(words) > split + 1}
        if any(words[0].lower() in PARTS for words in inside.values()) or 2 * len(inside) < len(paths):
            return {}
        return {path: (self.splits(path) if split else (), words[0]) for path, words in inside.items()}


def kinds(tree: Tree) -> dict[str, str]:
    """The formats of a source, each with the file that shows it."""
    shown: dict[str, Path] = {}
    vectors, masks = vector_files(tree), mask_files(tree)
    xml = next((path for path in tree.ending(".xml") if read_xml(path) is not None), None)
    if vectors:
        shown["cls_labels"] = vectors[0]
    if xml or (masks and not vectors):
        shown["voc"] = xml or next(iter(masks.values()))
    for path in _largest(tree.ending(".json")):
        value = read_json(path)
        if is_coco(value) or isinstance(value.get("shapes"), list):
            shown.setdefault("coco" if is_coco(value) else "labelme", path)
    folders = tree.class_folders()
    if not shown and len({word for _, word in folders.values()}) > 1:
        shown["folders"] = next(iter(folders)).parent
    return {kind: "/".join(tree.parts(path)) for kind, path in shown.items()}


def hint(root: Path, known: Collection[str] = ()) -> str:
    """What to do with a folder that holds exported labels of other classes than `known`; "" for any other folder."""
    if next(itertools.islice(walk(root), MANY, None), None) is not None:
        return ""
    tree = Tree(root)
    shown: dict[str, str] = {}
    with contextlib.suppress(DataError):  # a damaged file is not what this is about
        shown = kinds(tree)
    words = xml_classes(tree.ending(".xml")) if "voc" in shown else set()
    if "coco" in shown:
        values = filter(is_coco, map(read_json, tree.ending(".json")))
        words |= {str(entry.get("name")) for value in values for entry in value["categories"]}
    if not shown or (known and ("folders" in shown or (words <= set(known) if words else published(tree, ())))):
        return ""
    source, target = (shlex.quote(path) for path in (str(root), f"{os.path.abspath(root)}_folder"))
    return (
        f"It looks like your own data as {' or '.join(FORMATS[kind] for kind in shown)}: make a folder dataset of it "
        f"with `python -m data.convert {source} --data_root {target}`"
    )


def xml_classes(paths: Sequence[Path]) -> set[str]:
    """The classes in the first XML files of VOC's format."""
    words: set[str] = set()
    for path in paths[:50]:
        with contextlib.suppress(DataError):
            words.update((read_xml(path) or ("",))[1:])
    return words


def published(tree: Tree, words: Collection[str]) -> Sequence[str]:
    """The classes of the published dataset whose image names these are, if `words` are among them; else ()."""
    for name, pattern in PUBLISHED.items():
        if tree.images and all(re.fullmatch(pattern, path.stem) for path in tree.images):
            classes = data_module(name).CLASSES
            return classes if set(words) <= set(classes) else ()
    return ()


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
    words = [(item.findtext("name") or "").strip() for item in root.findall("object")]
    return ((root.findtext("filename") or "").strip(), *dict.fromkeys(filter(None, words)))


def is_coco(value: dict) -> bool:
    """Whether a JSON file holds instances, not captions or panoptic segments."""
    lists = all(isinstance(value.get(key), list) for key in ("images", "annotations", "categories"))
    return lists and all("category_id" in annotation for annotation in value["annotations"][:1])


def mask_files(tree: Tree) -> dict[str, Path]:
    """Key -> mask PNG, of the first of the MASKS folders that has one; NAME_mask.png beside NAME.jpg (Roboflow)."""
    files: dict[str, tuple[int, Path]] = {}
    for path in tree.ending(".png"):
        ranks = [MASKS.index(part.lower()) for part in tree.parts(path)[:-1] if part.lower() in MASKS]
        if ranks or path.stem.endswith("_mask"):
            key = tree.key(path) if ranks else tree.key(path).removesuffix("_mask")
            files[key] = min(files.get(key, (len(MASKS), path)), (min(ranks, default=0), path))
    return {key: path for key, (_, path) in files.items()}


def vector_files(tree: Tree) -> list[Path]:
    """Files such as cls_labels.npy."""
    return [path for path in tree.ending(".npy") if re.search(r"(?i)cls.?label", path.stem)]


def _largest(paths: Sequence[Path]) -> Iterator[Path]:
    """The 20 largest files of each folder."""
    by_folder = defaultdict(list)
    for path in paths:
        by_folder[path.parent].append(path)
    for files in by_folder.values():
        yield from sorted(files, key=lambda path: -path.stat().st_size)[:20]


def _rank(path: Path, wanted: Path, near: Path) -> tuple[int, int]:
    """How well an image fits a path that a file in `near` has: parts equal at the end, then closeness to that file."""
    pairs = zip((path.stem, *path.parts[-2::-1]), (wanted.stem, *wanted.parts[-2::-1]), strict=False)
    equal = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return equal, len(os.path.commonpath([os.path.abspath(path), os.path.abspath(near)]))
