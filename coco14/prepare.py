"""Makes labels, lists and masks of COCO 2014 out of the official instances_train2014.json and instances_val2014.json.

`python -m coco14.prepare --data_root DIR` writes into DIR/coco14: index.npz (ids and image-level labels), train.txt,
val.txt, masks/NAME.png (0 background, 1..80 classes, 255 crowd) and objects/NAME.png (1, 2, ... its objects, 255
crowd). Where regions overlap the smaller lies on top. pycocotools decodes all forms of segmentation.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from coco14.dataset import (
    CATEGORIES,
    IMAGE_FOLDERS,
    INDEX,
    MASKS,
    N_IMAGES,
    NOWHERE,
    OBJECTS,
    PREPARED,
    SPLITS,
    Files,
    Index,
    how_to_get,
    name_of,
)
from data.base import DataError, voc_palette
from data.errors import UserError
from data.failures import one_line
from data.files import load_json, save_json, save_mask, write_atomic
from data.progress import bar, chunks, map_items
from data.reading import IGNORE, MAX_PIXELS, check_same_size, image_size, read_mask, shortened

IMAGES_PER_CALL = 32
MAX_OBJECTS = IGNORE - 1  # that a map of objects can tell apart; more than any image of COCO has
MAX_OFFSET = 10_000  # pixels by which a polygon may leave its image; pycocotools walks every pixel of its outline
SOURCES = "sources.json"
CLASS_OF = {category: i for i, category in enumerate(CATEGORIES)}  # 0-based


class Object(NamedTuple):
    """An annotation: segmentation as pycocotools takes it, polygons as arrays, or None where it has no area."""

    annotation_id: int
    index: int  # class, 0-based
    is_crowd: bool
    segmentation: list[np.ndarray] | dict | None


class Annotated(NamedTuple):
    """An image with its annotations."""

    image_id: int
    size: tuple[int, int]  # (H, W)
    objects: list[Object]

    @property
    def classes(self) -> list[int]:
        """0-based classes of all annotations, crowds too."""
        return sorted({item.index for item in self.objects})


class Summary(NamedTuple):
    """What was done: images and images without any object per split, masks made in this run."""

    n_images: dict[str, int]
    n_empty: dict[str, int]
    n_made: int


def prepare(data_root: Path, num_workers: int = 0, overwrite: bool = False) -> Summary:
    """Writes DIR/coco14; the index last, so that an interrupted run is not taken for a finished one.

    num_workers: processes, 0 for this one alone. Masks that are there and whole are kept unless `overwrite`. Nothing
    is written before both JSON files have been read and every image of theirs has been found; DataError names file
    and entry.
    """
    root = Path(data_root)
    folder = root / PREPARED
    paths = [find_annotations(root, split) for split in SPLITS]
    images: list[Annotated] = []
    splits: list[int] = []
    for i, path in enumerate(paths):
        images += read_annotations(path)
        splits += [i] * (len(images) - len(splits))
    order = np.argsort([image.image_id for image in images], kind="stable")
    images, splits = [images[i] for i in order], np.array(splits, np.uint8)[order]
    ids = np.array([image.image_id for image in images], np.int64)
    twice = ids[1:][np.diff(ids) == 0]
    if len(twice):
        raise DataError(f"{paths[0]} and {paths[1]} both have the image {twice[0]}; fetch the annotations again")
    files = Files.find(root, IMAGE_FOLDERS, ".jpg", ids)
    for split, path in enumerate(paths):
        _check_images(root, path, [name_of(i) for i in ids[(splits == split) & (files.form == NOWHERE)]])
    _check_sources(folder, paths, overwrite)
    jobs = [(image, files.path(row, name_of(image.image_id), ".jpg")) for row, image in enumerate(images)]
    begin = time.time()
    n_made = 0
    with bar(len(jobs), "masks") as progress:
        parts = chunks(jobs, IMAGES_PER_CALL)
        for part, made in zip(parts, map_items(partial(_make, folder), parts, num_workers), strict=True):
            n_made += made
            progress.update(len(part))
    for left in folder.rglob(".*.tmp"):  # of a run that was killed
        if left.stat().st_mtime < begin:
            left.unlink(missing_ok=True)
    labels = np.zeros((len(images), len(CATEGORIES)), bool)
    for row, image in enumerate(images):
        labels[row, image.classes] = True
    index = Index(ids, splits, np.packbits(labels, axis=1))
    for i, split in enumerate(SPLITS):
        text = "".join(f"{name_of(number)}\n" for number in ids[splits == i])
        write_atomic(folder / f"{split}.txt", lambda file, text=text: file.write(text.encode()))
    index.save(folder / INDEX)
    counts = {split: splits == i for i, split in enumerate(SPLITS)}
    return Summary(
        {split: int(chosen.sum()) for split, chosen in counts.items()},
        {split: int((chosen & ~labels.any(1)).sum()) for split, chosen in counts.items()},
        n_made,
    )


def find_annotations(root: Path, split: str) -> Path:
    """The official JSON file of a split; DataError says where it must lie."""
    name = f"instances_{split}2014.json"
    for path in (root / "annotations" / name, root / name):
        if path.is_file():
            return path
    raise DataError(f"{root / 'annotations' / name} does not exist. {how_to_get(root)}")


def read_annotations(path: Path) -> list[Annotated]:
    """The images of an instances JSON, checked; DataError names the file, and the line or the entry that is wrong."""
    content = _read_json(path)
    _check_categories(content["categories"], path)
    images = _read_images(content.pop("images"), path)
    annotations = content.pop("annotations")
    seen: dict[int, int] = {}
    n_degenerate = 0
    for i in range(len(annotations)):
        entry, annotations[i] = annotations[i], None  # what has been read is let go of: the file is large
        where = f"{path} annotations[{i}]"
        annotation_id = _integer(entry, "id", where)
        where += f" (id {annotation_id})"
        if seen.setdefault(annotation_id, i) != i:
            raise DataError(f"{where} has the id of annotations[{seen[annotation_id]}]; fetch the file again")
        category = _integer(entry, "category_id", where)
        if category not in CLASS_OF:
            raise DataError(f"{where} has category_id {category}, which is not one of COCO's 80 categories")
        image = images.get(_integer(entry, "image_id", where))
        if image is None:
            raise DataError(f"{where} belongs to image_id {entry['image_id']}, which the file's images do not list")
        segmentation = _segmentation(entry, image.size, where)
        n_degenerate += segmentation is None
        image.objects.append(Object(annotation_id, CLASS_OF[category], bool(entry.get("iscrowd", 0)), segmentation))
    if n_degenerate:
        logging.warning(f"{path}: {n_degenerate} annotations have no area; they count as labels and are in no mask")
    return list(images.values())


def paint(size: tuple[int, int], objects: Sequence[Object]) -> tuple[np.ndarray, np.ndarray]:
    """(mask, map of objects), both uint8 [H, W], from the annotations of an image: the smaller region lies on top.

    Mask: 0 background, 1..80 classes, 255 crowd. Map: 1, 2, ... by falling area, 255 crowd. Regions of one area lie in
    the order of their ids.
    """
    mask, numbers = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    regions = [(item, encode(item.segmentation, size)) for item in objects if item.segmentation is not None]
    regions.sort(key=lambda region: (-int(rle.area(region[1])), region[0].annotation_id))
    surplus = sum(not item.is_crowd for item, _ in regions) - MAX_OBJECTS
    number = -max(0, surplus)  # beyond what a map can tell apart the largest objects are left out of it
    for item, region in regions:
        inside = rle.decode(region).astype(bool)
        number += not item.is_crowd
        mask[inside] = IGNORE if item.is_crowd else item.index + 1
        numbers[inside] = IGNORE if item.is_crowd or number < 1 else number
    return mask, numbers


def encode(segmentation: list[np.ndarray] | dict, size: tuple[int, int]) -> dict:
    """The compressed run lengths of a segmentation that has been checked."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return segmentation if isinstance(counts, bytes) else rle.frPyObjects(segmentation, *size)
    return rle.merge(rle.frPyObjects(segmentation, *size))


def _make(folder: Path, jobs: Sequence[tuple[Annotated, Path]]) -> int:
    """Writes mask and objects of some images; how many were not there or not whole."""
    made = 0
    for image, jpeg in jobs:
        check_same_size(jpeg, image_size(jpeg), Path(f"the annotation of image {image.image_id}"), image.size)
        targets = [folder / kind / f"{name_of(image.image_id)}.png" for kind in (MASKS, OBJECTS)]
        if all(_whole(path, image.size) for path in targets):
            continue
        for path, array in zip(targets, paint(image.size, image.objects), strict=True):
            save_mask(path, array, voc_palette())
        made += 1
    return made


def _whole(path: Path, size: tuple[int, int]) -> bool:
    try:
        return path.is_file() and read_mask(path, IGNORE).shape == size
    except DataError:
        return False


def _check_images(root: Path, path: Path, missing: Sequence[str]) -> None:
    if missing:
        raise DataError(
            f"{len(missing)} images of {path} are in none of {', '.join(IMAGE_FOLDERS)} below {root}: "
            f"{shortened(missing)}. {how_to_get(root)}"
        )


def _check_sources(folder: Path, paths: Sequence[Path], overwrite: bool) -> None:
    """Lets masks be kept only if the same JSON files made them; with `overwrite` the old ones are removed."""
    sources = {path.name: _sha256(path) for path in paths}
    if overwrite:
        (folder / INDEX).unlink(missing_ok=True)
        for kind in (MASKS, OBJECTS):
            shutil.rmtree(folder / kind, ignore_errors=True)
    elif _made_from(folder / SOURCES) not in ({}, sources):
        raise DataError(f"the masks in {folder} were made from other JSON files; add --overwrite to make them again")
    save_json(folder / SOURCES, sources)


def _made_from(path: Path) -> dict | None:
    try:
        return load_json(path)
    except UserError:
        return None


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def _read_json(path: Path) -> dict[str, list]:
    again = "fetch the annotations again with `python -m data.download coco2014`"
    try:
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno} (character {error.pos:,} of {len(error.doc):,})"
        raise DataError(f"{path} {place} is not JSON: {error.msg}. Was it cut short? Then {again}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}; {again}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path} has no list {key!r}; wanted the official instances JSON: {again}")
    return content


def _check_categories(categories: list, path: Path) -> None:
    for i, entry in enumerate(categories):
        where = f"{path} categories[{i}]"
        category = _integer(entry, "id", where)
        if CATEGORIES.get(category) != entry.get("name"):
            wanted = f"{category} is {CATEGORIES[category]!r}" if category in CATEGORIES else "there is no such id"
            raise DataError(f"{where} is {entry.get('name')!r} with id {category}; in COCO {wanted}")


def _read_images(entries: list, path: Path) -> dict[int, Annotated]:
    images: dict[int, Annotated] = {}
    for i, entry in enumerate(entries):
        where = f"{path} images[{i}]"
        image_id, height, width = (_integer(entry, key, where) for key in ("id", "height", "width"))
        if not 0 <= image_id < 10**12:
            raise DataError(f"{where} has id {image_id}; ids have up to 12 digits")
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            raise DataError(f"{where} (id {image_id}) claims to be {width} x {height}")
        if image_id in images:
            raise DataError(f"{where} has the id {image_id} of an image before it; fetch the file again")
        images[image_id] = Annotated(image_id, (height, width), [])
    if not images:
        raise DataError(f"{path} lists no image")
    return images


def _integer(entry: Any, key: str, where: str) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where} has no whole number {key!r}")
    return value


def _segmentation(entry: dict, size: tuple[int, int], where: str) -> list[np.ndarray] | dict | None:
    """The segmentation of an annotation, checked so that pycocotools cannot trip; None where it has no area."""
    value = entry.get("segmentation")
    if isinstance(value, list):
        return list(_polygons(value, size, where)) or None
    if not isinstance(value, dict):
        raise DataError(f"{where} has no segmentation; wanted polygons or run lengths")
    if value.get("size") != list(size):
        raise DataError(
            f"{where} has run lengths of size {value.get('size')}; its image is {list(size)} (height, width)"
        )
    counts = value.get("counts")
    if isinstance(counts, str):
        runs = _decompress(counts, where)
        counts = counts.encode()
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts
    else:
        raise DataError(f"{where} has run lengths that are neither a list of whole numbers nor text")
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise DataError(f"{where} has run lengths that add up to {sum(runs)}; its image has {size[0] * size[1]} pixels")
    return {"size": list(size), "counts": counts}


def _polygons(value: list, size: tuple[int, int], where: str) -> Iterator[np.ndarray]:
    """The polygons as float64 [2n]; one with fewer than three corners has no area and is left out."""
    for polygon in value:
        try:
            corners = np.asarray(polygon, np.float64)
        except (TypeError, ValueError, OverflowError):
            corners = np.array(np.nan)
        if corners.ndim != 1 or len(corners) % 2 or not np.isfinite(corners).all():
            raise DataError(f"{where} has a polygon that is not a list of numbers x1, y1, x2, y2, ...")
        if len(corners) and (corners.min() < -MAX_OFFSET or corners.max() > max(size) + MAX_OFFSET):
            raise DataError(f"{where} has a corner at {corners.min():g}..{corners.max():g}, far outside its image")
        if len(corners) >= 6:
            yield corners


def _decompress(counts: str, where: str) -> list[int]:
    """The run lengths of COCO's compressed text: 5 bits a character, from the third on as differences."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise DataError(f"{where} has run lengths that are not COCO's compressed text")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise DataError(f"{where} has run lengths that end in the middle of a number")
    return runs


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit code, 2 after a message where something is missing or damaged."""
    parser = argparse.ArgumentParser(prog="python -m coco14.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--data_root", type=Path, required=True, help="the folder in which images and annotations lie")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="make masks again that are already there")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return one_line("coco14.prepare", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    done = prepare(args.data_root, args.num_workers, args.overwrite)
    for split, n in done.n_images.items():
        verdict = "as published" if n == N_IMAGES[split] else f"but COCO 2014 has {N_IMAGES[split]:,}"
        print(f"{split}: {n:,} images, {verdict}; {done.n_empty[split]:,} of them without any object")
    print(f"{args.data_root / PREPARED}: {sum(done.n_images.values()):,} masks, {done.n_made:,} made now")


if __name__ == "__main__":
    raise SystemExit(main())
