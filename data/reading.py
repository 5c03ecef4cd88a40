"""Images and masks out of the user's files: what comes back is of the promised kind, or a DataError names the file."""

import contextlib
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.base import DataError, MissingFile

IGNORE = 255  # the mask value of pixels without a label
MAX_PIXELS = 100_000_000  # more than any photograph of these datasets; a header that claims more is not decoded
EXIF_ORIENTATION = 0x0112
SHOWN = 5  # how many names an error lists
# Whatever its name: Pillow goes by the content, knows some fifty formats, and hands one of them (EPS) to a program.
IMAGE_FORMATS, MASK_FORMATS = ("JPEG", "PNG", "WEBP"), ("PNG",)


def read_image(path: Path, exif: bool = False) -> np.ndarray:
    """The image of a JPEG, PNG or WebP file as uint8 [H, W, 3], RGB; grey becomes three equal channels.

    Transparency is dropped. exif: turn the image as its EXIF orientation says. DataError if the file is
    missing, damaged or over MAX_PIXELS.
    """
    with _opened(path) as image:
        if exif:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255
            return np.repeat((np.array(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.array(image.convert("RGB"))


def image_size(path: Path, exif: bool = False) -> tuple[int, int]:
    """(H, W) of an image file, from its header alone; the same errors and `exif` as `read_image`."""
    with _opened(path) as image:
        width, height = image.size
        turned = exif and image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


def read_mask(path: Path, n_classes: int) -> np.ndarray:
    """The class indices of a palette or grey PNG as uint8 [H, W]: 0 background, 1..n_classes, 255 ignore.

    DataError if the file is missing, damaged, in colour, or holds any other index.
    """
    wanted = f"a palette or 8-bit grey PNG of class indices (0 background, 1..{n_classes} classes, {IGNORE} ignore)"
    with _opened(path, MASK_FORMATS) as image:
        image.verify()  # the checksums, at which decoding does not look; then it has to be opened again
    with _opened(path, MASK_FORMATS) as image:
        if image.mode not in ("P", "L", "I", "I;16"):
            raise DataError(f"mask {path} is a PNG of mode {image.mode}; wanted {wanted}")
        # Grey of 1, 2 or 4 bits: 1 may mean the index 1 or, as PNG defines it, a fraction of white. Nobody can tell.
        if image.mode == "L" and image.tile[0][3] != "L":
            raise DataError(
                f"mask {path} is grey with fewer than 8 bits per pixel, which is ambiguous; wanted {wanted}"
            )
        mask = np.array(image)
    known = (mask <= n_classes) | (mask == IGNORE)
    if not known.all():
        wrong = [str(value) for value in np.unique(mask[~known])]
        raise DataError(f"mask {path} holds the value{'s'[: len(wrong) - 1]} {shortened(wrong)}; wanted {wanted}")
    return mask.astype(np.uint8)


def check_same_size(image_path: Path, size: tuple[int, int], mask_path: Path, mask_size: tuple[int, int]) -> None:
    """DataError unless image and mask, sizes (H, W), fit each other."""
    if tuple(size) != tuple(mask_size):
        raise DataError(
            f"image and mask differ in size: {image_path} is {size[1]} x {size[0]}, {mask_path} is {mask_size[1]} x "
            f"{mask_size[0]} (width x height); a mask must have one value per pixel of its image"
        )


def visible_instances(objects: np.ndarray, mask: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Instances from a map of objects (uint8 [H, W], 255 ignore) and a mask as `Dataset.instances` returns them.

    The class of an object is the one that most of its pixels have; an object without any, and ignored pixels, become
    background.
    """
    instances, values = np.zeros_like(objects), []
    for index in np.setdiff1d(objects, (0, IGNORE)):
        votes = np.bincount(mask[objects == index], minlength=n_classes + 1)[1 : n_classes + 1]
        if votes.any():
            values.append(1 + votes.argmax())
            instances[objects == index] = len(values)
    return instances, np.array(values, np.uint8)


def check_names(names: Sequence[str], known: Collection[str], source: str, where: Path) -> None:
    """DataError that counts the names which are not in `known`, the images of `where`, and shows the first of them.

    source: where the names come from, a split or a list file.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"{len(unknown)} of the {len(names)} names of {source} have no image in {where}: {shortened(unknown)}; "
            f"correct the list, or put the images there"
        )


def shortened(names: Sequence[str]) -> str:
    """The first few names, separated by commas, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@contextlib.contextmanager
def _opened(path: Path, formats: Sequence[str] = IMAGE_FORMATS) -> Iterator[Image.Image]:
    """The image of a file, its size checked before anything is decoded; what breaks while it is used is a DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is the stricter one
            image = Image.open(path, formats=formats)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path} claims {image.width} x {image.height} pixels, over the limit of {MAX_PIXELS // 10**6} "
                    f"megapixels; scale the image down or take it off the list"
                )
            yield image
    except FileNotFoundError as error:
        raise MissingFile(f"{path} does not exist") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} claims too many pixels ({error}); the limit is {MAX_PIXELS // 10**6} megapixels; scale the image "
            f"down or take it off the list"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} cannot be read as an image: it is no {' or '.join(formats)}, whatever its name, or damaged; fetch "
            "or make the file again, or add --skip_bad"
        ) from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything
        raise DataError(
            f"{path} cannot be read as an image ({error}); fetch or make the file again, or add --skip_bad"
        ) from error
