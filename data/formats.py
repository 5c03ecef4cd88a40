"""Images of more than 8 bits a channel, which Pillow cuts short, and names of formats that are not read."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import imageio.v3 as iio
import numpy as np
from PIL import Image

from data.errors import DataError

EXIF_ORIENTATION = 0x0112
TIFF, PNG = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), b"\x89PNG\r\n\x1a\n"
PLANAR = 2  # of TIFF: one channel after the other
GREY, RGB = 1, 2  # photometric interpretations of TIFF
# Values of white: of floats 1 or one of the others, of integers with 8, 10, 12, ... bits.
WHITES = tuple(2.0**bits - 1 for bits in (1, 8, 10, 12, 14, 16, 24, 32))
FULL = {"u": 65535.0, "i": 65535.0, "f": 1.0}  # kind of numbers -> white, where nothing is known of the set
HEADERS, SAMPLE = 512, 64  # files of a set that are looked at, and those of them that are decoded
NOT_READ = {
    "GIF": rb"GIF8", "JPEG 2000": rb"\0\0\0\x0cjP  |\xffO\xffQ", "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(he[iv][cmsx]|mif1|msf1)", "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ", "Photoshop": rb"8BPS",
    "PDF": rb"%PDF", "Netpbm": rb"P[1-7]\s", "SVG": rb"\s*(<\?xml[^>]*>\s*)?<svg", "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?RADIANCE", "DICOM": rb".{128}DICM", "MP4": rb"....ftyp",
}  # fmt: skip
RAW = (".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf")  # to all readers TIFF files of a small preview


class Header(NamedTuple):
    """What is known of an image of more than 8 bits before it is decoded."""

    size: tuple[int, int]  # (H, W), as stored
    orientation: int  # of EXIF
    tiff: dict | None  # tags


def not_read(path: Path) -> str | None:
    """What is to be said of a file whose format is not read; None if it is none of the known ones."""
    if path.suffix.lower() in RAW:
        kind = "camera raw"
    else:
        with open(path, "rb") as file:
            head = file.read(256)
        kind = next((name for name, magic in NOT_READ.items() if re.match(magic, head, re.DOTALL)), None)
    return kind and f"exists, but {kind} is not read; convert it to PNG"


def deep_header(path: Path) -> Header | None:
    """The header of a PNG or TIFF file of more than 8 bits or 4 channels; None for any other file."""
    with open(path, "rb") as file:
        head = file.read(25)
    if head.startswith(TIFF):
        tags = iio.immeta(path, plugin="tifffile", page=0)
        if np.max(tags.get("BitsPerSample", 1)) <= 8 and tags.get("SamplesPerPixel", 1) <= 4:
            return None
        return Header((tags["ImageLength"], tags["ImageWidth"]), int(tags.get("Orientation", 1)), tags)
    if head.startswith(PNG) and head[24:] == b"\x10":
        with Image.open(path) as image:
            return Header((image.height, image.width), image.getexif().get(EXIF_ORIENTATION, 1), None)
    return None


def read_deep(path: Path, header: Header) -> np.ndarray:
    """The values [H, W, 1 or 3] of such a file as stored, of a TIFF the first page; DataError for other channels."""
    if header.tiff is None:
        values = iio.imread(path, plugin="opencv", index=0, flags=cv2.IMREAD_UNCHANGED)
    else:
        colours, planar = header.tiff["PhotometricInterpretation"], header.tiff["planar_configuration"] == PLANAR
        if colours not in (GREY, RGB):
            raise DataError(f"{path} has the colours {colours.name}; wanted grey or RGB")
        try:
            values = iio.imread(path, plugin="tifffile", page=0)
        except ValueError:  # of a compression; OpenCV has its own way with planes and orientations
            if planar or header.orientation != 1:
                raise
            values = iio.imread(path, plugin="opencv", index=0, flags=cv2.IMREAD_UNCHANGED)
        values = np.moveaxis(values, 0, 2) if planar and values.ndim == 3 else values
    values = values if values.ndim == 3 else values[..., None]
    if values.shape[2] > 4:
        raise DataError(f"{path} has {values.shape[2]} channels; wanted 1 (grey), 3 (RGB), or these with transparency")
    if values.dtype.kind not in FULL or not np.isfinite(values).all() or values.min() < 0:
        raise DataError(f"{path} holds values below 0, or no numbers; wanted 0 (black) and above")
    return values[..., : 1 if values.shape[2] < 3 else 3]


def white_of(values: np.ndarray) -> float:
    """The smallest of WHITES that no value exceeds."""
    whites = WHITES if values.dtype.kind == "f" else WHITES[1:]
    return next((white for white in whites if values.max() <= white), float(values.max()))


def to_bytes(values: np.ndarray, whites: Mapping[str, float]) -> np.ndarray:
    """uint8 [H, W, 3] of the values [H, W, 1 or 3].

    whites: kind of numbers -> value of white. An image that exceeds it has a range of its own.
    """
    kind = values.dtype.kind
    white = max(whites.get(kind, FULL[kind]), white_of(values))
    if kind == "f":
        scaled = np.round(values * (255 / white))
    else:  # the upper 8 of so many bits, as Pillow reads them
        scaled = values * (256 / (white + 1))
    return np.ascontiguousarray(np.broadcast_to(scaled.astype(np.uint8), (*values.shape[:2], 3)))


def whites_of_set(paths: Sequence[Path]) -> dict[str, float]:
    """Kind of numbers -> value of white, of the images of more than 8 bits in an even sample of a set; else empty."""
    whites: dict[str, float] = {}
    deep = []
    for path in paths[:: max(1, len(paths) // HEADERS)]:
        with contextlib.suppress(Exception):  # a damaged file can raise anything; it is named where it is read
            if header := deep_header(path):
                deep.append((path, header))
    for path, header in deep[:: max(1, len(deep) // SAMPLE)]:
        with contextlib.suppress(Exception):
            values = read_deep(path, header)
            whites[values.dtype.kind] = max(whites.get(values.dtype.kind, 0.0), white_of(values))
    return whites
