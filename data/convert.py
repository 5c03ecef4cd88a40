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
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from data.base import read_lines, shortened
from data.classes import BACKGROUND, IGNORED, doubts, joined
from data.errors import DataError
from data.exports import Export, Item, read
from data.failures import one_line
from data.files import write_atomic
from data.folder import CLASSES, IMAGES, LABELS, MASKS, SPLITS
from data.images import EXIF_ORIENTATION, IGNORE, check_size, image_size, save_mask, voc_palette
from data.process import cores
from data.progress import progress_map
from data.regions import embedded_image
from data.sources import FORMATS, Tree, kinds

WANTED = (
    "VOC (XML files, or masks in SegmentationClass or masks), COCO (JSON with images, annotations and categories), "
    "labelme (JSON with shapes), cls_labels.npy, or one folder of images per class"
)


class Done(NamedTuple):
    """What became of an image: its path below images/, empty if it is left out; why it or its mask is left out."""

    path: str
    has_mask: bool = False
    problem: str = ""


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
        done = [(result.path, item, result) for item, result in zip(items, results, strict=True) if result.path]
        for result in results:
            if result.problem:
                export.left_out["masks" if result.path else "images"].append(result.problem)
        if not done:
            raise DataError(f"no image can be used: {_reasons(export)}")
        splits = _splits({path: item.splits for path, item, _ in done})
        for split, paths in splits.items():
            _save(unfinished / SPLITS / f"{split}.txt", "".join(f"{path}\n" for path in paths))
        _save(unfinished / CLASSES, "".join(f"{name}\n" for name in classes))
        table = io.StringIO()
        labels = {path: list(dict.fromkeys(c for word in item.words for c in meaning[word])) for path, item, _ in done}
        csv.writer(table, lineterminator="\n").writerows(
            [("image", "labels"), *((path, ";".join(words)) for path, words in labels.items())]
        )
        _save(unfinished / LABELS, table.getvalue())
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    n_masks = sum(result.has_mask for *_, result in done)
    return _table(tree.root, root, kind, export, classes, labels, splits, n_masks)


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
    read_off = progress_map(_values, blank, "masks", num_workers)
    of_mask = {id(item): values for item, values in zip(blank, read_off, strict=True)}
    items: list[Item] = []
    seen: Counter[str] = Counter()
    for item in export.items:
        values = of_mask.get(id(item), ())
        if isinstance(values, str):
            export.left_out["images, whose mask is their only label"].append(values)
            continue
        words = [export.names[i] for i in values] if item.words is None else item.words
        words = tuple(word for word in dict.fromkeys(words) if word.lower() not in (*BACKGROUND, *IGNORED))
        seen[item.name] += 1
        items.append(item._replace(name=item.name + f"_{seen[item.name]}" * (seen[item.name] > 1), words=words))
    return items


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
        return [int(value) for value in np.unique(item.mask()) if value > 0]
    except DataError as error:
        return str(error)


def _make(root: Path, copy: bool, values: np.ndarray, item: Item) -> Done:
    """Links or copies an image and writes its mask."""
    data, ending = embedded_image(item.image) if item.image.suffix == ".json" else (b"", item.image.suffix)
    target = root / IMAGES / f"{item.name}{ending}"
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
    path = f"{item.name}{ending}"
    try:
        size = image_size(target, exif=True)
    except DataError as error:
        target.unlink()
        return Done("", False, str(error).replace(str(target), str(item.image)))
    if item.mask is None:
        return Done(path)
    try:
        mask = values[item.mask()]
        if mask.shape == image_size(target) != size:  # drawn on the image as it lies in its file
            mask = _turned(mask, target)
        check_size(f"the mask of {item.image}", mask.shape, size)
    except DataError as error:
        return Done(path, False, str(error))
    save_mask(root / MASKS / f"{item.name}.png", mask, voc_palette())
    return Done(path, True)


def _turned(mask: np.ndarray, path: Path) -> np.ndarray:
    """A mask as its image is shown, rotated as the EXIF orientation of the image says."""
    picture = Image.fromarray(mask)
    with Image.open(path) as image:
        picture.getexif()[EXIF_ORIENTATION] = image.getexif()[EXIF_ORIENTATION]
    return np.array(ImageOps.exif_transpose(picture))


def _splits(of_path: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Split -> paths; without a list for training, the images of trainval or of no list are for that."""
    splits: dict[str, list[str]] = defaultdict(list)
    for path, names in of_path.items():
        for name in names:
            splits[name].append(path)
    if splits and "train" not in splits:
        held_out = {*splits.get("val", ()), *splits.get("test", ())}
        if rest := [path for path in splits.get("trainval", of_path) if path not in held_out]:
            splits["train"] = rest
    return splits


def _save(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def _reasons(export: Export) -> str:
    return "; ".join(f"{len(what)} {why} ({shortened(what, 3)})" for why, what in export.left_out.items())


def _table(
    source: Path, root: Path, kind: str, export: Export, classes: Sequence[str], labels: Mapping[str, Sequence[str]],
    splits: Mapping[str, Sequence[str]], n_masks: int,
) -> str:  # fmt: skip
    counts = Counter(name for names in labels.values() for name in names)
    both = len(set(splits.get("train", ())) & set(splits.get("val", ())))
    rest = "" if n_masks in (0, len(labels)) else "the other images have none, or an object without an area"
    rows = [
        ("images", len(labels), f"{sum(not names for names in labels.values())} of them without any class"),
        ("masks", n_masks, rest),
        *((f"splits/{split}.txt", len(paths), "") for split, paths in splits.items()),
    ]
    lines = [f"{source}: {FORMATS[kind]}", f"written to {root}"]
    lines += [f"{name:<24}{n:>9,}  {text}".rstrip() for name, n, text in rows]
    lines += ["", f"{'mask value':>10}  {'images':>9}  class"]
    lines += [f"{c + 1:>10}  {counts[name]:>9,}  {name}" for c, name in enumerate(classes)]
    lines += ["", *(f"note: {note}" for note in export.notes)]
    lines += [f"note: {both} images are in train and in val"] if both else []
    lines += [f"left out: {len(what)} {why}: {shortened(what, 3)}" for why, what in export.left_out.items()]
    lines += [f"next: python run_sample.py --dataset folder --data_root {shlex.quote(str(root))} --check_data"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit code, 2 after a message if something is missing, damaged or doubtful."""
    parser = argparse.ArgumentParser(prog="python -m data.convert", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of the export, or its JSON file")
    parser.add_argument("--data_root", type=Path, required=True, help="new folder for the dataset")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--link", action="store_true", help="link the images, hard where possible (the default)")
    how.add_argument("--copy", action="store_true", help="copy the images")
    parser.add_argument("--classes", default="", help="A,B,C or a file with one a line: the classes to take, in order")
    parser.add_argument("--format", choices=FORMATS, default="", help="where the source holds several")
    parser.add_argument("--images", type=Path, help="where the images lie if not below the source")
    parser.add_argument("--num_workers", type=int, default=cores(), help="processes (default: all cores)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return one_line("data.convert", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    words = read_lines(Path(args.classes)) if os.path.isfile(args.classes) else args.classes.split(",")
    given = [word.strip() for word in words if word.strip() and word.strip().lower() not in (*BACKGROUND, *IGNORED)]
    print(convert(args.source, args.data_root, args.copy, given, args.format, args.images, args.num_workers))


if __name__ == "__main__":
    raise SystemExit(main())
