"""Masks as annotation tools store them: polygons and run lengths of COCO, shapes of labelme, PNGs of values or colours.

A painted mask is int16 [H, W]: the index of a name, 0 background, -1 ignored.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from data.errors import DataError

Region = list | dict | tuple  # polygons [x, y, x, y, ...]; run lengths; (bool array, left, top)


def coco_region(value: Any) -> Region | None:
    """A `segmentation` of COCO that covers an area, else None."""
    if isinstance(value, dict):
        return value if value.get("counts") else None
    if not isinstance(value, list) or not value:
        return None
    polygons = value if isinstance(value[0], list) else [value]
    return [corners for corners in polygons if len(corners) >= 6] or None  # fewer than three are no area


def labelme_region(shape: dict) -> Region | None:
    """A shape of labelme that covers an area, else None: points and lines."""
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
    return coco_region([points.ravel().tolist()])


def embedded_image(path: Path) -> tuple[bytes, str]:
    """The file that a JSON of labelme holds, and the ending for its format; DataError if it holds none."""
    try:
        data = base64.b64decode(json.loads(path.read_bytes())["imageData"])
        with Image.open(io.BytesIO(data)) as image:
            return data, f".{image.format.lower()}"
    except Exception as error:  # a damaged image can raise anything
        raise DataError(f"{path} holds an image that cannot be read ({error}); save it again") from error


def is_box(region: Region) -> bool:
    """Whether a region is one upright rectangle, as tools write that have boxes only."""
    if not isinstance(region, list) or len(region) > 1 or len(region[0]) not in (8, 10):
        return False
    return len(set(region[0][::2])) == len(set(region[0][1::2])) == 2


def paint(size: tuple[int, int], regions: Sequence[tuple[int, Region]], by_area: bool) -> np.ndarray:
    """Paints (index, region) in their order, or with `by_area` the smaller on top. size: (H, W)."""
    mask = np.zeros(size, np.int16)
    layers = [(index, _encode(shape, size)) for index, shape in regions]
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


def read_indices(
    path: Path, meaning: Sequence[int], of_colour: Mapping[tuple[int, ...], int], by_colour: bool
) -> np.ndarray:
    """A mask PNG, int16 [H, W]. DataError names one that holds something without a meaning.

    meaning: the index of every value. of_colour: that of every colour, for a PNG in colour; and with `by_colour` also
    for one with a palette, unless its palette has other colours.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            mode, values = image.mode, np.array(image).astype(np.int64)
            rgb = np.array(image.convert("RGB")).astype(np.int64) if mode in ("P", "RGB", "RGBA") else None
    except Exception as error:  # a damaged file can raise anything
        raise DataError(f"mask {path} cannot be read ({error})") from error
    if rgb is not None and (by_colour or mode != "P"):
        codes, places = np.unique(rgb @ (1 << 16, 1 << 8, 1), return_inverse=True)
        colours = [(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()]
        unknown = [colour for colour in colours if colour not in of_colour]
        if not unknown:
            return np.array([of_colour[colour] for colour in colours], np.int16)[places].reshape(rgb.shape[:2])
        if mode != "P":
            raise DataError(f"mask {path} has the colour {unknown[0]}, which is that of no class")
    highest = values[values != 255].max(initial=0)
    if values.ndim > 2 or highest >= len(meaning):
        raise DataError(f"mask {path} has the value {highest}; the last class has {len(meaning) - 1}")
    return np.where(values == 255, -1, np.array(meaning, np.int16)[np.minimum(values, len(meaning) - 1)])
