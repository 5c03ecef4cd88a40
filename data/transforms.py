"""Image transforms; each that draws takes the generator it draws from, and treats image and mask alike."""

import cv2
import numpy as np
from PIL import Image

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)


def normalize(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [3, H, W], ImageNet mean and deviation."""
    return np.ascontiguousarray(((image / np.float32(255) - MEAN) / STD).transpose(2, 0, 1))


def resize(image: np.ndarray, height: int, width: int, nearest: bool = False) -> np.ndarray:
    """uint8 image or mask resized with PIL: bicubic for images, nearest for masks."""
    if image.shape[:2] == (height, width):
        return image
    resample = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((width, height), resample))


def resize_maps(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 [n, h, w] resized bilinearly."""
    if maps.shape[1:] == (height, width):
        return maps
    resized = [cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) for each in maps]
    return np.array(resized, np.float32).reshape(-1, height, width)


def rescale_size(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    """(round(H * s), round(W * s)), at least 1."""
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def resize_long_size(shape: tuple[int, ...], lo: int, hi: int, rng: np.random.Generator) -> tuple[int, int]:
    """Size at which the long side is a uniform random integer in [lo, hi]."""
    return rescale_size(shape, int(rng.integers(lo, hi + 1)) / max(shape[:2]))


def crop_box(shape: tuple[int, int], crop: int, rng: np.random.Generator) -> tuple[slice, slice, slice, slice]:
    """A random place for an image in a crop x crop window: (rows, columns) in the window, (rows, columns) in the image.

    A larger image is cut at a random offset, a smaller one laid at a random offset (IRN, misc/imutils.py).
    """
    window, image = [], []
    for side in shape:
        length = min(side, crop)
        offset = int(rng.integers(abs(side - crop) + 1))
        image.append(slice(offset, offset + length) if side > crop else slice(0, length))
        window.append(slice(0, length) if side > crop else slice(offset, offset + length))
    return window[0], window[1], image[0], image[1]


def paste(array: np.ndarray, box: tuple[slice, slice, slice, slice], crop: int, fill: float) -> np.ndarray:
    """[..., H, W] -> [..., crop, crop] at `box`, `fill` elsewhere."""
    rows, columns, from_rows, from_columns = box
    out = np.full((*array.shape[:-2], crop, crop), fill, array.dtype)
    out[..., rows, columns] = array[..., from_rows, from_columns]
    return out


def raw_crop(
    image: np.ndarray, long: tuple[int, int], crop: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [H, W, 3] -> uint8 [crop, crop, 3]: random long side, random flip, random crop.

    The second value is the box of the image in it, int64 (top, bottom, left, right). long: least and greatest long side
    in pixels.
    """
    image = resize(image, *resize_long_size(image.shape, *long, rng))
    if rng.random() < 0.5:
        image = image[:, ::-1]
    rows, columns, from_rows, from_columns = crop_box(image.shape[:2], crop, rng)
    out = np.zeros((crop, crop, 3), np.uint8)
    out[rows, columns] = image[from_rows, from_columns]
    return out, np.array((rows.start, rows.stop, columns.start, columns.stop))


def with_mirror(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [2, 3, H, W]: the normalised image and its mirror."""
    image = normalize(image)
    return np.stack([image, image[..., ::-1]])


def pyramid(image: np.ndarray, scales: tuple[float, ...]) -> list[np.ndarray]:
    """uint8 [H, W, 3] -> one float32 [2, 3, h, w] per scale, image and mirror (IRN, the multi-scale dataset)."""
    return [with_mirror(resize(image, *rescale_size(image.shape, scale))) for scale in scales]
