"""Pictures for the toy experiment: a digit 2 or 8 on black, for some with a mark that tells the class as well.

Digits are drawn by the program (printed in matplotlib's bundled fonts, or written as one stroke), or read from MNIST.
A picture depends on (seed, split, index) only.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.base import rng
from data.errors import DataError
from data.progress import bar

DIGITS = (2, 8)  # class 0, class 1 (RIB, section 3)
REGIONS = ("irrelevant", "discriminative", "non-discriminative")  # values 0, 1, 2 of a region map
SIDE = 56  # of a picture, pixels
DIGIT_PX = (30, 36)  # long side of the digit in it
MARK_PX = 9  # side of the mark
MARK_GAP = 2  # free pixels around the mark
INK = 64  # grey value from which a pixel belongs to the digit
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold",
    "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
# One stroke as it is written, x to the right and y down in a unit box.
STROKES = (
    ((0.18, 0.30), (0.28, 0.10), (0.52, 0.03), (0.76, 0.14), (0.80, 0.34), (0.60, 0.58), (0.36, 0.78), (0.16, 0.95),
     (0.45, 0.94), (0.84, 0.94)),
    ((0.74, 0.16), (0.50, 0.04), (0.27, 0.15), (0.30, 0.36), (0.52, 0.48), (0.75, 0.62), (0.76, 0.84), (0.50, 0.97),
     (0.24, 0.84), (0.26, 0.62), (0.50, 0.47), (0.70, 0.36), (0.74, 0.17)),
)  # fmt: skip
_GLYPH = 96  # side of the square on which a digit is drawn before it is distorted
_DIGIT = 48  # side of the distorted digit


@dataclass(frozen=True)
class Pictures:
    """n pictures. images: uint8 [n, SIDE, SIDE]; labels: int64 [n], index into DIGITS; regions: uint8 [n, SIDE, SIDE],
    index into REGIONS; marked: bool [n]."""

    images: np.ndarray
    labels: np.ndarray
    regions: np.ndarray
    marked: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def make_pictures(split: str, n: int, marked: float, seed: int, mnist_root: str | None = None) -> Pictures:
    """The first n pictures of a split ("train" or "test"), classes in turn, a share `marked` of each with its mark.

    mnist_root: folder of MNIST, see `fetch_mnist`; without, the digits are drawn.
    DataError if MNIST is not there or has not enough digits.
    """
    labels = np.arange(n) % len(DIGITS)
    # Spread evenly, so that every share of marks is met exactly, per class and in any run of pictures.
    turn = np.arange(n) // len(DIGITS)
    has_mark = np.floor((turn + 1) * marked + 1e-9) > np.floor(turn * marked + 1e-9)
    digits = None if mnist_root is None else _mnist(mnist_root, split, labels)
    images, regions = np.zeros((2, n, SIDE, SIDE), np.uint8)
    with bar(n, f"draw {split}") as progress:
        for i, label in enumerate(labels):
            generator = rng(seed, "digits", split, i)
            digit = draw_digit(generator, int(label)) if digits is None else digits[i]
            images[i], regions[i] = compose(generator, digit, int(label), bool(has_mark[i]))
            progress.update()
    return Pictures(images, labels, regions, has_mark)


def fetch_mnist(root: str) -> None:
    """Fetches MNIST into a folder where it is not there whole. DataError if it cannot be had."""
    for split in ("train", "test"):
        _open_mnist(root, split, download=True)


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the fonts that come with matplotlib."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


def draw_digit(generator: np.random.Generator, label: int) -> np.ndarray:
    """uint8 [48, 48]: a digit of DIGITS[label], printed or written, under a random affine and elastic distortion."""
    glyph = _written(generator, label) if generator.random() < 0.5 else _printed(generator, label)
    centre, unit = _GLYPH / 2, _GLYPH / _DIGIT
    angle = np.deg2rad(generator.uniform(-15, 15))
    shear, aspect = generator.uniform(-0.25, 0.25), generator.uniform(0.8, 1.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = unit * turn @ np.array([[1 / aspect, shear], [0, 1.0]])
    y, x = np.mgrid[:_DIGIT, :_DIGIT].astype(np.float32) - (_DIGIT - 1) / 2
    bend = [cv2.GaussianBlur(generator.uniform(-1, 1, x.shape), (0, 0), 5.0) * 45 for _ in range(2)]
    source_x = matrix[0, 0] * x + matrix[0, 1] * y + centre + bend[0]
    source_y = matrix[1, 0] * x + matrix[1, 1] * y + centre + bend[1]
    smooth = cv2.GaussianBlur(glyph, (0, 0), 0.5 * unit)  # or fine strokes would break up at half the size
    digit = cv2.remap(smooth, source_x.astype(np.float32), source_y.astype(np.float32), cv2.INTER_LINEAR)
    return (digit.astype(np.float32) * (255 / max(1, digit.max()))).astype(np.uint8)


def compose(
    generator: np.random.Generator, digit: np.ndarray, label: int, marked: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A digit [h, w] at a random place and size on black, and, where `marked`, its class's mark at a free place.

    Returns the image and its region map, both uint8 [SIDE, SIDE]. The mark's place is drawn for every picture, so that
    a picture with and without its mark shares all else.
    """
    digit = _cropped(digit, int(generator.integers(DIGIT_PX[0], DIGIT_PX[1] + 1)))
    height, width = digit.shape
    top, left = (int(generator.integers(0, SIDE - side + 1)) for side in (height, width))
    wish = generator.random()
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + height, left : left + width] = digit
    free = _free_places(image)
    if not len(free):  # a digit in the middle may leave none; in the corner it always does
        image = np.zeros((SIDE, SIDE), np.uint8)
        image[:height, :width] = digit
        free = _free_places(image)
    region = (image >= INK).astype(np.uint8)
    if marked:
        y, x = free[int(wish * len(free))]
        mark = mark_of(label)
        image[y : y + MARK_PX, x : x + MARK_PX][mark] = 255
        region[y : y + MARK_PX, x : x + MARK_PX][mark] = REGIONS.index("non-discriminative")
    return image, region


def mark_of(label: int) -> np.ndarray:
    """bool [MARK_PX, MARK_PX]: the mark of a class, a ring for the 2 and a square for the 8, both two pixels thick."""
    y, x = np.abs(np.mgrid[:MARK_PX, :MARK_PX] - MARK_PX // 2)
    distance = np.hypot(x, y) if label == 0 else np.maximum(x, y)
    outer = MARK_PX // 2 + (0.3 if label == 0 else 0)
    return (distance <= outer) & (distance > outer - 2)


def _free_places(image: np.ndarray) -> np.ndarray:
    """int [n, 2]: the top left corners (y, x) at which a mark and its gap meet nothing but black."""
    side = MARK_PX + 2 * MARK_GAP
    ink = np.pad((image > 0).astype(np.int32), ((MARK_GAP + 1, MARK_GAP), (MARK_GAP + 1, MARK_GAP)))
    total = ink.cumsum(0).cumsum(1)
    inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return np.argwhere(inside == 0)


def _cropped(digit: np.ndarray, long_side: int) -> np.ndarray:
    """The digit without its black border, its longer side `long_side` pixels."""
    rows, columns = (np.flatnonzero((digit >= INK).any(axis)) for axis in (1, 0))
    digit = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = long_side / max(digit.shape)
    width, height = (max(1, round(side * scale)) for side in (digit.shape[1], digit.shape[0]))
    return cv2.resize(digit, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _printed(generator: np.random.Generator, label: int) -> np.ndarray:
    glyphs = font(FONTS[generator.integers(len(FONTS))], round(0.85 * _GLYPH))
    image = Image.new("L", (_GLYPH, _GLYPH))
    ImageDraw.Draw(image).text((_GLYPH / 2, _GLYPH / 2), str(DIGITS[label]), fill=255, font=glyphs, anchor="mm")
    return np.asarray(image)


def _written(generator: np.random.Generator, label: int) -> np.ndarray:
    points = np.array(STROKES[label]) + generator.normal(0, 0.025, (len(STROKES[label]), 2))
    points = _GLYPH * (0.2 + 0.6 * points)
    image = np.zeros((_GLYPH, _GLYPH), np.uint8)
    curve = np.round(_smooth_curve(points) * 8).astype(np.int32)  # in eighths of a pixel
    cv2.polylines(image, [curve], False, 255, int(generator.integers(6, 13)), cv2.LINE_AA, 3)
    return image


def _smooth_curve(points: np.ndarray, steps: int = 8) -> np.ndarray:
    """[m, 2]: a Catmull-Rom spline through points [n, 2]."""
    ends = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:], strict=False)
    ]
    return np.concatenate([*parts, points[-1:]])


def _open_mnist(root: str, split: str, download: bool):
    """torchvision's MNIST of a split."""
    from torchvision.datasets import MNIST

    try:
        return MNIST(root, train=split == "train", download=download)
    except Exception as error:  # the network and damaged files raise all kinds
        reason = str(error).partition("\n")[0].rstrip(":")
        raise DataError(
            f"--mnist_root {root}: MNIST is incomplete and could not be fetched ({reason}); "
            f"put its four idx files into {Path(root, 'MNIST', 'raw')}, or leave --mnist_root out to draw digits"
        ) from error


def _mnist(root: str, split: str, labels: np.ndarray) -> np.ndarray:
    """uint8 [n, 28, 28]: MNIST's digits for the labels, in the order of its files."""
    mnist = _open_mnist(root, split, download=False)
    images, targets = mnist.data.numpy(), mnist.targets.numpy()
    out = np.zeros((len(labels), *images.shape[1:]), np.uint8)
    for label, digit in enumerate(DIGITS):
        have, want = np.flatnonzero(targets == digit), np.flatnonzero(labels == label)
        if len(have) < len(want):
            raise DataError(
                f"--mnist_root {root} has {len(have)} images of digit {digit} for {split}ing, {len(want)} are wanted; "
                f"lower --toy_{split}"
            )
        out[want] = images[have[: len(want)]]
    return out
