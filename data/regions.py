"""Masks as annotation tools store them: polygons and run lengths of COCO, shapes of labelme, PNGs of values or colours.

A painted mask is int16 [H, W]: the index of a name, 0 background, -1 ignored.
"""

import base64
import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from data.base import read_lines
from data.errors import DataError

CLASS_FILES = ("labelmap.txt", "class_names.txt", "_classes.csv", "classes.txt", "labels.txt")
Region = list | dict | tuple  # polygons [x, y, x, y, ...]; run lengths; (bool array, left, top)


def coco_region(value: Any) -> Region | None:
    """A `segmentation` of COCO, None if it covers no area; polygons of fewer than three corners do not."""
    if isinstance(value, dict):
        return value if value.get("counts") else None
    polygons = [value] if value and not isinstance(value[0], list) else value or []
    return [corners for corners in polygons if len(corners) >= 6] or None


def labelme_region(shape: dict) -> Region | None:
    """A shape of labelme, None if it covers no area: points and lines."""
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], float).reshape(-1, 2)
    if kind == "mask" and shape.get("mask"):
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            return np.array(image) > 0, *points.min(0).round().astype(int).tolist()
    if kind in ("point", "points", "line", "linestrip"):
        return None
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points.min(0), points.max(0)
        points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    elif kind == "circle" and len(points) == 2:
        turn = np.linspace(0, 2 * np.pi, 129)[:-1, None]
        points = points[0] + np.linalg.norm(points[1] - points[0]) * np.hstack([np.cos(turn), np.sin(turn)])
    return coco_region(points.ravel().tolist())


def is_box(region: Region) -> bool:
    """Whether a region is one upright rectangle, as tools write that have boxes only."""
    if not isinstance(region, list) or len(region) > 1 or len(region[0]) not in (8, 10):
        return False
    return len(set(region[0][::2])) == len(set(region[0][1::2])) == 2


def paint(size: tuple[int, int], regions: Sequence[tuple[int, Region]], by_area: bool) -> np.ndarray:
    """Paints (index, region) in their order, or with `by_area` the smaller on top. size: (H, W)."""
    mask = np.zeros(size, np.int16)
    layers = [(index, _encode(region, size)) for index, region in regions]
    if by_area:
        layers.sort(key=lambda layer: -int(rle.area(layer[1])))
    for index, runs in layers:
        mask[rle.decode(runs) > 0] = index
    return mask


def _encode(region: Region, size: tuple[int, int]) -> dict:
    """A region as compressed runs."""
    if isinstance(region, list):
        return rle.merge(rle.frPyObjects(region, *size))
    if isinstance(region, tuple):
        inside, (part, left, top) = np.zeros(size, np.uint8, order="F"), region
        window = inside[top : top + part.shape[0], left : left + part.shape[1]]
        window[:] = part[: window.shape[0], : window.shape[1]]
        return rle.encode(inside)
    if tuple(region["size"]) != size:
        raise DataError(f"a segmentation is {region['size'][1]} x {region['size'][0]}, its image {size[1]} x {size[0]}")
    return rle.frPyObjects(region, *size) if isinstance(region["counts"], list) else region


def embedded_image(path: Path) -> tuple[bytes, str]:
    """The file that a JSON of labelme holds, and the ending for its format; DataError if it holds none."""
    try:
        data = base64.b64decode(json.loads(path.read_bytes())["imageData"])
        with Image.open(io.BytesIO(data)) as image:
            return data, f".{image.format.lower()}"
    except Exception as error:  # a damaged image can raise anything
        raise DataError(f"{path} holds an image that cannot be read ({error}); save it again") from error


def read_class_file(paths: Collection[Path]) -> list[tuple[str, tuple[int, ...] | None]]:
    """Name and colour of every mask value, in order, from the first of CLASS_FILES; most have no colours."""
    files = {path.name.lower(): path for path in reversed([*paths])}
    for path in [files[name] for name in CLASS_FILES if name in files]:
        rows = [line.strip() for line in read_lines(path) if line.strip() and not line.startswith("#")]
        if path.name == "labelmap.txt" and all(":" in line for line in rows):
            try:  # name:r,g,b:parts:actions
                parts = [line.rsplit(":", 3) for line in rows]
                return [(row[0].strip(), tuple(map(int, row[1].split(","))) if row[1] else None) for row in parts]
            except ValueError as error:
                raise DataError(f"{path} has {error}; wanted lines like apple:128,0,0::") from error
        if path.name != "_classes.csv":
            return [(word, None) for word in rows]
        header, *cells = [[cell.strip() for cell in row] for row in csv.reader(rows)]
        if header[0].lower() == "pixel value":  # Roboflow; that of classification has a column per class
            return [("background" if value == "0" else word, None) for value, word in cells]
    return []


def read_indices(
    of_value: Mapping[int, int], of_colour: Mapping[tuple[int, ...], int], by_colour: bool, path: Path
) -> np.ndarray:
    """A mask PNG, int16 [H, W]. DataError names one that holds something without a meaning.

    of_value, of_colour: the index of every value and colour; a palette tells colours if `by_colour`, else values.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            coloured = image.mode in ("RGB", "RGBA") or (by_colour and image.mode == "P")
            values = np.array(image.convert("RGB") if coloured else image).astype(np.int64)
    except Exception as error:  # a damaged file can raise anything
        raise DataError(f"mask {path} cannot be read ({error})") from error
    known = {r << 16 | g << 8 | b: index for (r, g, b), index in of_colour.items()} if coloured else of_value
    codes, inverse = np.unique(values @ (1 << 16, 1 << 8, 1) if coloured else values, return_inverse=True)
    for code in codes.tolist():
        if code not in known:
            what = f"colour {(code >> 16, code >> 8 & 255, code & 255)}" if coloured else f"value {code}"
            raise DataError(f"mask {path} has the {what}, which is that of no class")
    return np.array([known[code] for code in codes.tolist()], np.int16)[inverse].reshape(values.shape[:2])
