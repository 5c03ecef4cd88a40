"""Reading and writing images and masks. A file that cannot be used is a DataError that names it."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.errors import DataError, MissingFile, UnknownValue
from data.files import write_atomic
from data.formats import EXIF_ORIENTATION, FULL, deep_header, not_read, read_deep, to_bytes

IGNORE = 255  # the mask value of pixels without a label
MAX_PIXELS = 100_000_000  # larger images are refused before they are decoded
SMALLEST = 2  # pixels of a side
IMAGE_FORMATS, MASK_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP"), ("PNG",)  # by content, whatever the name is


def read_image(path: Path, exif: bool = False, whites: Mapping[str, float] = FULL) -> np.ndarray:
    """A JPEG, PNG, WebP, TIFF or BMP file as uint8 [H, W, 3], RGB: grey as three equal channels, without transparency.

    exif: rotate the image as its EXIF orientation says. whites: what is white in files of more than 8 bits, see
    `data.formats`. DataError if the file is missing, damaged, an animation, under SMALLEST or over MAX_PIXELS.
    """
    with _explained(path, IMAGE_FORMATS):
        pixels = _pixels(path, exif, whites)
        height, width = pixels.shape[:2]
        if min(height, width) < SMALLEST:
            wanted = f"wanted at least {SMALLEST} x {SMALLEST}"
            raise DataError(f"{path} has {width} x {height} pixels; {wanted}: replace it or add --skip_bad")
        return pixels


def _pixels(path: Path, exif: bool, whites: Mapping[str, float]) -> np.ndarray:
    header = deep_header(path)
    if header is None:
        with _opened(path, IMAGE_FORMATS) as image:
            return np.array((ImageOps.exif_transpose(image) if exif else image).convert("RGB"))
    _check_pixels(*header.size)
    pixels = to_bytes(read_deep(path, header), whites)
    if header.orientation == 1 or not (exif or header.tiff):  # Pillow turns a TIFF in any case
        return pixels
    image = Image.fromarray(pixels)
    image.getexif()[EXIF_ORIENTATION] = header.orientation
    return np.array(ImageOps.exif_transpose(image))


def image_size(path: Path, exif: bool = False) -> tuple[int, int]:
    """(H, W) of an image file, from its header alone; `exif` and errors as `read_image`."""
    with _explained(path, IMAGE_FORMATS):
        header = deep_header(path)
        if header is not None:
            (height, width), turned = header.size, header.orientation >= 5 and (exif or header.tiff)
        else:
            with _opened(path, IMAGE_FORMATS) as image:
                width, height = image.size  # of a TIFF once it is turned
                turned = exif and image.format != "TIFF" and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
        return (width, height) if turned else (height, width)


def read_mask(path: Path, n_classes: int = IGNORE - 1, size: tuple[int, int] | None = None) -> np.ndarray:
    """A palette or grey PNG as uint8 [H, W]: 0 background, 1..n_classes, 255 ignore. White of one bit is 1.

    size: (H, W) of its image. DataError if the file is missing or damaged, in colours, of another size, or holds any
    other value.
    """
    wanted = f"a palette or 8-bit grey PNG of class indices (0 background, 1..{n_classes} classes, {IGNORE} ignore)"
    with _opened(path, MASK_FORMATS) as image:
        image.verify()  # checksums, which decoding ignores; the file must be opened again afterwards
    with _opened(path, MASK_FORMATS) as image:
        if image.mode in ("LA", "RGB", "RGBA"):
            channels = np.array(image.convert("RGBA"))
            if (channels[..., 3] < IGNORE).any() or (channels[..., :1] != channels[..., :3]).any():
                how = "python -m data.convert reads colours by a labelmap.txt"
                raise DataError(f"mask {path} is of mode {image.mode}, in colours; wanted {wanted}, or {how}")
            image = image.convert("L")
        # Grey of 2 or 4 bits is ambiguous: 1 may be the index 1 or, as PNG defines it, a fraction of white.
        elif image.mode not in ("P", "L", "I", "I;16", "1") or (image.mode == "L" and image.tile[0][3] != "L"):
            kind = "grey of 2 or 4 bits" if image.mode == "L" else f"of mode {image.mode}"
            raise DataError(f"mask {path} is {kind}; wanted {wanted}")
        if size is not None:
            check_size(f"mask {path}", (image.height, image.width), size)
        mask = np.array(image)
    unknown = np.unique(mask[(mask > n_classes) & (mask != IGNORE)])
    if len(unknown):
        seen = np.where(mask > IGNORE, IGNORE - 1, mask).astype(np.uint8)
        raise UnknownValue(f"mask {path} holds the value {unknown[0]}; wanted {wanted}", seen)
    return mask.astype(np.uint8)


def mask_exists(path: Path, n_classes: int, size: tuple[int, int]) -> bool:
    """Whether a valid mask exists, so that a resumed command can skip it; arguments as `read_mask`."""
    try:
        return read_mask(path, n_classes, size) is not None
    except DataError:
        return False


def check_size(what: str, size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """DataError unless (H, W) of something equals that of its image."""
    if tuple(size) != tuple(image_size):
        raise DataError(
            f"{what} is {size[1]} x {size[0]}, its image is {image_size[1]} x {image_size[0]} (width x height)"
        )


def read_instances(
    objects_path: Path, mask_path: Path, n_classes: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Instances as `Dataset.instances` returns them, from a PNG of objects (1, 2, ...) and one of classes, or None.

    An object has the class that most of its pixels have. Objects without any class and ignored pixels become
    background. size: (H, W) of the image.
    """
    if not (objects_path.is_file() and mask_path.is_file()):
        return None
    objects, mask = read_mask(objects_path, IGNORE - 1, size), read_mask(mask_path, n_classes, size)
    instances, values = np.zeros_like(objects), []
    for index in np.setdiff1d(objects, (0, IGNORE)):
        votes = np.bincount(mask[objects == index], minlength=n_classes + 1)[1 : n_classes + 1]
        if votes.any():
            values.append(1 + votes.argmax())
            instances[objects == index] = len(values)
    return instances, np.array(values, np.uint8)


def save_mask(path: Path, mask: np.ndarray, palette: np.ndarray) -> None:
    """Writes uint8 [H, W] as a palette PNG; palette: uint8 [256, 3]."""
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    write_atomic(path, lambda file: image.save(file, format="PNG"))


def save_grey(path: Path, values: np.ndarray) -> None:
    """Writes [H, W] in [0, 1] as an 8-bit grey PNG."""
    image = Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))
    write_atomic(path, lambda file: image.save(file, format="PNG", compress_level=1))


def voc_palette() -> np.ndarray:
    """uint8 [256, 3]: the PASCAL VOC colour map (bits of the index spread over the three channels)."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")


@contextlib.contextmanager
def _opened(path: Path, formats: Sequence[str]) -> Iterator[Image.Image]:
    """The opened image, its size checked before it is decoded; whatever goes wrong inside is a DataError."""
    with _explained(path, formats):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_pixels is stricter
            image = Image.open(path, formats=formats)
        with image:
            _check_pixels(image.height, image.width)
            if image.format == "WEBP" and image.n_frames > 1:
                raise DataError(f"{path} exists, but an animation is not read; convert it to PNG")
            yield image


@contextlib.contextmanager
def _explained(path: Path, formats: Sequence[str]) -> Iterator[None]:
    """Whatever goes wrong with an image file is a DataError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFile(f"{path} does not exist") from error
    except Image.DecompressionBombError as error:
        limit = f"the limit is {MAX_PIXELS // 10**6} megapixels"
        raise DataError(f"{path} is too large ({error}); {limit}: scale it down or remove it") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything
        wanted = f"wanted {' or '.join(formats)}: replace it or add --skip_bad"
        named = not_read(path) if path.is_file() else None
        raise DataError(f"{path} {named or f'cannot be read as an image ({error}); {wanted}'}") from error
