"""Instances in the formats of COCO, as pycocotools reads them: masks are run-length encoded."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from data.base import Dataset
from data.files import write_atomic


def image_ids(names: Sequence[str]) -> dict[str, int]:
    """Image ids by name: the names themselves if all are numbers (COCO's), else their position in the list, from 1."""
    if all(name.isascii() and name.isdigit() for name in names) and len({int(name) for name in names}) == len(names):
        return {name: int(name) for name in names}
    return {name: i + 1 for i, name in enumerate(names)}


def results(image_id: int, detected: dict[str, np.ndarray], category_ids: Sequence[int]) -> list[dict]:
    """The detections of an image (score, mask, class as in an instance file) in COCO's result format.

    category_ids: as `Dataset.category_ids`. Fragments that score 0 are too small to be objects and are left out.
    """
    return [
        {"image_id": image_id, "category_id": category_ids[k], "segmentation": _encode(mask), "score": float(score)}
        for score, mask, k in zip(*(detected[name] for name in ("score", "mask", "class")), strict=True)
        if score > 0
    ]


def truth(image_id: int, masks: np.ndarray, labels: np.ndarray, category_ids: Sequence[int]) -> list[dict]:
    """The true instances of an image, bool [m, H, W] and 0-based classes [m], in COCO's result format, scored 1."""
    return results(image_id, {"score": np.ones(len(labels)), "mask": masks, "class": labels}, category_ids)


def annotations(entries: Sequence[dict]) -> list[dict]:
    """Entries in COCO's result format as annotations, which have an id, an area, a box and `iscrowd`."""
    return [
        {
            **entry,
            "id": i + 1,
            "iscrowd": 0,
            "area": int(rle.area(entry["segmentation"])),
            "bbox": rle.toBbox(entry["segmentation"]).tolist(),
        }
        for i, entry in enumerate(entries)
    ]


def annotation_file(
    dataset: Dataset, description: str, ids: dict[str, int], sizes: dict[str, tuple[int, int]], entries: Sequence[dict]
) -> dict:
    """A COCO annotation file.

    ids: as `image_ids`. sizes: (H, W) of the images to list. entries: their instances, as `results`.
    """
    return {
        "info": {"description": description},
        "images": [
            {"id": ids[name], "file_name": f"{name}.jpg", "height": height, "width": width}
            for name, (height, width) in sizes.items()
        ],
        "categories": [
            {"id": number, "name": name} for number, name in zip(dataset.category_ids, dataset.classes, strict=True)
        ],
        "annotations": annotations(entries),
    }


def save(path: Path, value: dict | list) -> None:
    """Writes JSON without white space: these files can be large."""
    write_atomic(path, lambda file: file.write(json.dumps(value, separators=(",", ":")).encode()))


def _encode(mask: np.ndarray) -> dict:
    """A bool mask [H, W] as compressed runs that JSON can hold."""
    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
