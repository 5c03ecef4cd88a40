"""Makes a folder dataset of images that an annotation tool has exported, or that lie sorted by class.

`python -m data.convert SOURCE --data_root DIR` recognises Pascal VOC, COCO, labelme, cls_labels.npy and one folder per
class, links the images and writes labels.csv, classes.txt, masks and splits (`data.folder` says how they lie).
"""

import argparse
import csv
import io
import logging
import os
import shlex
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.base import class_table, plain, read_lines, shortened
from data.classes import BACKGROUND, IGNORED, doubts, joined
from data.errors import DataError
from data.exports import Export, Item, read
from data.failures import one_line
from data.files import write_atomic
from data.folder import CLASSES, IMAGES, LABELS, MASKS, SPLITS
from data.images import IGNORE, check_size, image_size, save_mask, voc_palette
from data.process import cores
from data.progress import progress_map
from data.regions import embedded_image
from data.sources import FORMATS, Tree, kinds

WANTED = (
    "VOC (XML files, or masks in SegmentationClass or masks), COCO (JSON with images, annotations and categories), "
    "labelme (JSON with shapes), cls_labels.npy, or one folder of images per class"
)


Done = tuple[str, bool, str]  # path below images/, empty if left out; whether there is a mask; why one is left out


def convert(
    source: Path, root: Path, copy: bool = False, given: Sequence[str] = (), kind: str = "", images: Path | None = None,
    num_workers: int = 0,
) -> str:  # fmt: skip
    """Writes a folder dataset to `root`, which must be empty or not exist; returns a table of what was done.

    given: classes to take, or the names of labels and mask values that have none. kind: one of `FORMATS`, empty to
    recognise it. images: where images lie if not below `source`. DataError says what is missing, or asks where the
    meaning is doubtful.
    """
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise DataError(f"--data_root {root} exists and is not empty; name a new folder")
    if not source.is_dir() and not (source.is_file() and source.suffix.lower() == ".json"):
        raise DataError(f"{source} is neither a folder nor a JSON file; wanted {WANTED}, unpacked")
    tree = Tree(source, images) if source.is_dir() else Tree(source.parent, images, source)
    kind = kind or _recognised(tree)
    export = read(tree, kind, given)
    if not (tree.images or export.items):
        raise DataError(f"{tree.root} holds {FORMATS[kind]} labels, but no image; add --images DIR, where they lie")
    items = _labelled(export, num_workers)
    meaning, classes = _classes(export, items, given)
    value = {words: classes.index(words[0]) + 1 for words in meaning.values() if len(words) == 1} | {(): 0}
    values = [0, *(value.get(meaning.get(name), IGNORE) for name in export.names[1:]), IGNORE]
    folder = Path(os.path.abspath(root))
    unfinished = folder.with_name(f".{folder.name}.unfinished")  # what a killed run leaves
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        make = partial(_make, unfinished, copy, np.array(values, np.uint8))
        results = list(progress_map(make, items, "images", num_workers))
        table = _write(unfinished, export, meaning, classes, list(zip(items, results, strict=True)))
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    following = f"next: python run_sample.py --dataset folder --data_root {shlex.quote(str(root))} --check_data"
    return "\n".join([f"{tree.root}: {FORMATS[kind]}", f"written to {root}", *table, following])


def _recognised(tree: Tree) -> str:
    if (tree.root / LABELS).is_file():
        raise DataError(
            f"{tree.root} has a {LABELS}: no need to convert it, use --dataset folder --data_root {tree.root}"
        )
    shown = kinds(tree)
    if len(shown) == 1:
        return next(iter(shown))
    if shown:
        what = " and ".join(f"{FORMATS[kind]} ({path}, --format {kind})" for kind, path in shown.items())
        raise DataError(f"{tree.root} holds labels in several formats: {what}; choose one")
    raise DataError(f"{tree.root} has {len(tree.images)} images, but no labels that are known here; wanted {WANTED}")


def _labelled(export: Export, num_workers: int) -> list[Item]:
    """The images, each under a name of its own and with its classes, those of its mask if nothing else has them."""
    blank = [item for item in export.items if item.words is None]
    values = dict(zip((item.image for item in blank), progress_map(_values, blank, "masks", num_workers), strict=True))
    readable = {value for of_mask in values.values() if not isinstance(of_mask, str) for value in of_mask}
    white = len(export.names) == 2 and -1 in readable and 1 not in readable
    if white:
        export.notes.append(f"the masks hold nothing but 0 and 255: 255 is read as {export.names[1]}")
    items: dict[str, Item] = {}
    for item in export.items:
        words = item.words
        if words is None:
            of_mask = values[item.image]
            if isinstance(of_mask, str):
                export.left_out["images, whose mask is their only label"].append(of_mask)
                continue
            words = [export.names[abs(i)] for i in of_mask if i > 0 or (white and i < 0)]
        words = tuple(word for word in dict.fromkeys(words) if word.lower() not in (*BACKGROUND, *IGNORED))
        name = plain(item.name)
        while name in items:
            name += "_2"
        items[name] = item._replace(name=name, words=words)
    return list(items.values())


def _classes(
    export: Export, items: Sequence[Item], given: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """What each name of the source means, one class, none or several, and the classes that occur, in order."""
    counts = Counter(word for item in items for word in item.words)
    words = [name for name in export.names if counts[name]]
    if absent := [name for name in given if name not in export.names]:
        raise DataError(f"--classes names {', '.join(absent)}; the labels have {', '.join(words)}")
    if doubt := None if given else next(doubts(words), None):
        word, why, *_ = doubt
        those, rest = (shlex.quote(",".join(names)) for names in (words, [name for name in words if name != word]))
        raise DataError(f"{why}. If so add --classes {rest}, else --classes {those}")
    small = {name.lower(): name for name in given or words}
    meaning = {}
    for word in words:
        one = [word] if word in (given or words) else [small[word.lower()]] if word.lower() in small else []
        meaning[word] = tuple(one or joined(word, given))
        if not meaning[word]:
            export.left_out["classes that --classes does not name"].append(f"{word} ({counts[word]} images)")
    taken = {name for names in meaning.values() for name in names}
    if unused := [name for name in given or export.names[1:] if name not in taken]:
        export.left_out["classes that no image has"] += unused
    if not taken:
        raise DataError(f"no image has a label that can be used: {_reasons(export) or 'all are without objects'}")
    if bad := [name for name in taken if ";" in name or "\n" in name]:
        raise DataError(f"class {bad[0]!r} has a semicolon, which separates classes in {LABELS}; rename it")
    return meaning, [name for name in given or words if name in taken]


def _values(item: Item) -> list[int] | str:
    """The values in the mask of an image, or what is wrong with it."""
    try:
        return np.unique(item.mask()).tolist()
    except DataError as error:
        return str(error)


def _make(root: Path, copy: bool, values: np.ndarray, item: Item) -> Done:
    """Links or copies an image and writes its mask."""
    data, ending = embedded_image(item.image) if item.image.suffix == ".json" else (b"", item.image.suffix)
    path = f"{item.name}{ending}"
    target = root / IMAGES / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if data:
        write_atomic(target, lambda file: file.write(data))
    elif copy:
        shutil.copyfile(item.image, target)
    else:
        try:
            os.link(item.image.resolve(), target)
        except OSError:  # another disk, or one without hard links
            os.symlink(item.image.resolve(), target)
    try:
        size = image_size(target, exif=True)
    except DataError as error:
        target.unlink()
        return "", False, str(error).replace(str(target), str(item.image))
    if item.mask is None:
        return path, False, ""
    try:
        mask = values[item.mask()]
        if mask.shape == image_size(target) != size:  # drawn on the image as it lies in its file
            picture = Image.fromarray(mask)
            with Image.open(target) as image:
                picture.info["exif"] = image.info["exif"]
            mask = np.array(ImageOps.exif_transpose(picture))
        check_size(f"the mask of {item.image}", mask.shape, size)
    except DataError as error:
        return path, False, str(error)
    save_mask(root / MASKS / f"{item.name}.png", mask, voc_palette())
    return path, True, ""


def _write(
    root: Path, export: Export, meaning: Mapping[str, Sequence[str]], classes: Sequence[str],
    results: Sequence[tuple[Item, Done]],
) -> list[str]:  # fmt: skip
    """Writes labels, classes and splits, and says what there is."""
    labels: dict[str, list[str]] = {}
    splits: dict[str, list[str]] = defaultdict(list)
    for item, (path, _, problem) in results:
        if problem:
            export.left_out["masks" if path else "images"].append(problem)
        if path:
            labels[path] = list(dict.fromkeys(name for word in item.words for name in meaning[word]))
            for split in item.splits:
                splits[split].append(path)
    if not labels:
        raise DataError(f"no image can be used: {_reasons(export)}")
    if splits and "train" not in splits:  # the images of trainval, or of no list
        held_out = {*splits.get("val", ()), *splits.get("test", ())}
        splits["train"] = [path for path in splits.get("trainval", labels) if path not in held_out]
    texts = {
        f"{SPLITS}/{split}.txt": "".join(f"{path}\n" for path in paths) for split, paths in splits.items() if paths
    }
    table = io.StringIO()
    rows = [("image", "labels"), *((path, ";".join(words)) for path, words in labels.items())]
    csv.writer(table, lineterminator="\n").writerows(rows)
    for path, text in (texts | {CLASSES: "\n".join([*classes, ""]), LABELS: table.getvalue()}).items():
        write_atomic(root / path, lambda file, text=text: file.write(text.encode()))
    n_masks = sum(has_mask for _, (_, has_mask, _) in results)
    rest = "the other images have none, or an object without an area" if 0 < n_masks < len(labels) else ""
    counts = Counter(name for names in labels.values() for name in names)
    both = len({*splits["train"]} & {*splits["val"]})
    return [
        f"images{len(labels):>27,}  {sum(not names for names in labels.values())} of them without any class",
        f"masks{n_masks:>28,}  {rest}".rstrip(),
        *(f"{path:<24}{text.count(chr(10)):>9,}" for path, text in texts.items()),
        *class_table(classes, [counts[name] for name in classes]),
        "", *(f"note: {note}" for note in export.notes),
        *([f"note: {both} images are in train and in val"] if both else []),
        *(f"left out: {len(what)} {why}: {shortened(what, 3)}" for why, what in export.left_out.items()),
    ]  # fmt: skip


def _reasons(export: Export) -> str:
    return "; ".join(f"{len(what)} {why} ({shortened(what, 3)})" for why, what in export.left_out.items())


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit code, 2 after a message if something is missing, damaged or doubtful."""
    parser = argparse.ArgumentParser(prog="python -m data.convert", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of the export, or its JSON file")
    parser.add_argument("--data_root", type=Path, required=True, help="new folder for the dataset")
    parser.add_argument("--copy", action="store_true", help="copy the images (default: link them, hard where possible)")
    parser.add_argument("--classes", default="", help="A,B,C or a file with one a line: the classes to take, in order")
    parser.add_argument("--format", choices=FORMATS, default="", help="where the source holds several")
    parser.add_argument("--images", type=Path, help="where the images lie if not below the source")
    parser.add_argument("--num_workers", type=int, default=cores(), help="processes (default: all cores)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def work() -> None:
        words = read_lines(Path(args.classes)) if os.path.isfile(args.classes) else args.classes.split(",")
        words = [plain(word.strip()) for word in words]
        given = [word for word in words if word and word.lower() not in (*BACKGROUND, *IGNORED)]
        print(convert(args.source, args.data_root, args.copy, given, args.format, args.images, args.num_workers))

    return one_line("data.convert", work)


if __name__ == "__main__":
    raise SystemExit(main())
