"""Makes labels, lists and masks of COCO 2014 out of the official instances_train2014.json and instances_val2014.json.

`python -m coco14.prepare --data_root DIR` writes into DIR/coco14: index.npz (ids and image-level labels), train.txt,
val.txt, masks/NAME.png (0 background, 1..80 classes, 255 crowd) and objects/NAME.png (1, 2, ... its objects, 255
crowd). Where regions overlap the smaller lies on top.
"""

import argparse
import contextlib
import hashlib
import io
import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO

from coco14.dataset import (
    CATEGORIES,
    IMAGE_FOLDERS,
    INDEX,
    MASKS,
    N_IMAGES,
    OBJECTS,
    PREPARED,
    SPLITS,
    Index,
    find_files,
    how_to_get,
    name_of,
)
from data.base import how_to_convert, shortened
from data.errors import DataError
from data.failures import one_line
from data.files import load_json, save_json, sweep, write_atomic
from data.images import IGNORE, check_size, image_size, mask_exists, save_mask, voc_palette
from data.process import cores
from data.progress import progress_map

SOURCES = "sources.json"
CLASS_OF = {category: i for i, category in enumerate(CATEGORIES)}  # 0-based


class Summary(NamedTuple):
    """What was done: images and images without any object per split, masks made in this run."""

    n_images: dict[str, int]
    n_empty: dict[str, int]
    n_made: int


def prepare(data_root: Path, num_workers: int = 0, overwrite: bool = False) -> Summary:
    """Writes DIR/coco14; the index last, so that the dataset does not open after an interrupted run.

    num_workers: processes, 0 for this one alone. Existing masks are skipped unless `overwrite`. DataError if a JSON
    file or an image is missing or damaged.
    """
    root = Path(data_root)
    folder = root / PREPARED
    paths = {split: find_annotations(root, split) for split in SPLITS}
    parts = {split: read_annotations(path) for split, path in paths.items()}
    images = [(image_id, i, coco) for i, coco in enumerate(parts.values()) for image_id in coco.imgs]
    images.sort(key=lambda image: image[0])
    files = find_files(root, IMAGE_FOLDERS, ".jpg")
    missing = [name_of(image_id) for image_id, *_ in images if name_of(image_id) not in files]
    if missing:
        raise DataError(
            f"{len(missing)} images of the annotations are in none of {', '.join(IMAGE_FOLDERS)} below {root}: "
            f"{shortened(missing)}. {how_to_get(root)}"
        )
    _check_sources(folder, paths.values(), overwrite)
    jobs = [(coco.imgs[i], coco.imgToAnns[i], root / files[name_of(i)]) for i, _, coco in images]
    n_made = sum(progress_map(partial(_make, folder), jobs, "masks", num_workers))
    labels = np.zeros((len(jobs), len(CATEGORIES)), bool)
    for label, (_, annotations, _) in zip(labels, jobs, strict=True):
        label[[CLASS_OF[annotation["category_id"]] for annotation in annotations]] = True
    ids, splits = np.array([i for i, *_ in images], np.int64), np.array([split for _, split, _ in images], np.uint8)
    n_images, n_empty = {}, {}
    for i, split in enumerate(SPLITS):
        text = "".join(f"{name_of(number)}\n" for number in ids[splits == i])
        write_atomic(folder / f"{split}.txt", lambda file, text=text: file.write(text.encode()))
        n_images[split], n_empty[split] = int((splits == i).sum()), int((~labels.any(1) & (splits == i)).sum())
    Index(ids, splits, labels).save(folder / INDEX)
    return Summary(n_images, n_empty, n_made)


def find_annotations(root: Path, split: str) -> Path:
    """The official JSON file of a split; DataError says where to put it."""
    name = f"instances_{split}2014.json"
    for path in (root / "annotations" / name, root / name):
        if path.is_file():
            return path
    raise DataError(f"{root / 'annotations' / name} does not exist. {how_to_get(root)}")


def read_annotations(path: Path) -> COCO:
    """An instances JSON; DataError if it is damaged, or not of COCO 2014."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(path))
        categories = {number: category["name"] for number, category in coco.cats.items()}
        for annotation in coco.anns.values():
            polygons = annotation["segmentation"]
            if isinstance(polygons, list):  # arrays save memory; pycocotools would take two corners for a box
                annotation["segmentation"] = [np.array(corners) for corners in polygons if len(corners) >= 6]
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}). {_again(path)}") from error
    if not coco.imgs or categories != CATEGORIES or not set(coco.catToImgs) <= CATEGORIES.keys():
        raise DataError(f"{path} does not have images and the 80 categories of COCO 2014. {_again(path)}")
    return coco


def _again(path: Path) -> str:
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    return f"Get the annotations again with `python -m data.download coco2014`. {how_to_convert(root)}"


def paint(image: dict[str, Any], annotations: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(mask, map of objects), both uint8 [H, W], from the annotations of an image: the smaller region lies on top.

    Mask: 0 background, 1..80 classes, 255 crowd. Map: 1, 2, ... by falling area, 255 crowd. Regions of one area lie in
    the order of their ids.
    """
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    objects = mask.copy()
    coco = COCO()  # for its decoding alone
    coco.imgs = {image["id"]: image}
    regions = [(annotation, coco.annToRLE(annotation)) for annotation in annotations if annotation["segmentation"]]
    regions.sort(key=lambda region: (-int(rle.area(region[1])), region[0]["id"]))
    number = 0
    for annotation, region in regions:
        inside = rle.decode(region).astype(bool)
        number += not annotation["iscrowd"]
        mask[inside] = IGNORE if annotation["iscrowd"] else CLASS_OF[annotation["category_id"]] + 1
        objects[inside] = IGNORE if annotation["iscrowd"] else number
    return mask, objects


def _make(folder: Path, job: tuple[dict[str, Any], list[dict[str, Any]], Path]) -> bool:
    """Writes mask and objects of (image, its annotations, its JPEG); False if they exist."""
    image, annotations, jpeg = job
    name, size = name_of(image["id"]), (image["height"], image["width"])
    check_size(f"the annotation of {jpeg}", size, image_size(jpeg))
    paths = [folder / kind / f"{name}.png" for kind in (MASKS, OBJECTS)]
    if all(mask_exists(path, IGNORE - 1, size) for path in paths):
        return False
    for path, array in zip(paths, paint(image, annotations), strict=True):
        save_mask(path, array, voc_palette())
    return True


def _check_sources(folder: Path, paths: Sequence[Path], overwrite: bool) -> None:
    """DataError if existing masks were made from other JSON files; with `overwrite` they are removed."""
    sources = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    if overwrite:
        (folder / INDEX).unlink(missing_ok=True)
        for kind in (MASKS, OBJECTS):
            shutil.rmtree(folder / kind, ignore_errors=True)
    elif load_json(folder / SOURCES) not in ({}, sources):
        raise DataError(f"the masks in {folder} were made from other JSON files; add --overwrite to replace them")
    sweep(folder)
    save_json(folder / SOURCES, sources)


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit code, 2 after a message if something is missing or damaged."""
    parser = argparse.ArgumentParser(prog="python -m coco14.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--data_root", type=Path, required=True, help="folder with the images and annotations")
    parser.add_argument("--num_workers", type=int, default=cores(), help="processes (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing masks")
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
