"""What a dataset is: names, images, image-level labels and, where there are any, masks."""

import importlib.util
import operator
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np

from data.errors import UserError


class DataError(UserError):
    """The user's data are not as they must be; the message says what was found, what was wanted and what to do."""


class MissingFile(DataError):
    """An image or mask that is named somewhere is not there."""


class Dataset:
    """Images with image-level labels, and masks where there are any.

    A dataset is a value that is passed in; nothing outside `data/` asks which one it is. A subclass sets `name`,
    `classes` (foreground names; index c here is the mask value c + 1) and answers the questions below.
    """

    name: str
    classes: tuple[str, ...]
    # What `--check_data` reports besides what it finds by reading every image: problems to be mended, and mere notes.
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    # name -> what is wrong: the images that `--skip_bad` leaves out of every list.
    bad_images: Mapping[str, str] = MappingProxyType({})
    # Folder, below that of the masks, in which the dataset's test server wants those of images without ground truth.
    submission = ""

    def __reduce_ex__(self, protocol: int) -> tuple:
        """For worker processes that inherit no modules: a user's own dataset file is loaded there before anything."""
        file = getattr(sys.modules.get(type(self).__module__), "DATASET_FILE", None)
        if file is None:
            return super().__reduce_ex__(protocol)
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
        return _blank, (file, type(self).__qualname__), state

    @property
    def n_classes(self) -> int:
        """Number of foreground classes."""
        return len(self.classes)

    @property
    def identity(self) -> dict[str, object]:
        """Plain values that tell whether results belong to this dataset; kept with every result."""
        return {"--dataset": self.name, "classes": list(self.classes)}

    @property
    def has_masks(self) -> bool:
        """Whether there is ground truth at all; without, the steps that score against it are left out."""
        return type(self).mask is not Dataset.mask

    def names(self, split: str) -> list[str]:
        """Image names of a split ("train", "val", ...), in a fixed order; DataError if there is no such split."""
        raise DataError(f"dataset {self.name} has no split {split!r}")

    def image(self, name: str) -> np.ndarray:
        """uint8 [H, W, 3], RGB."""
        raise DataError(f"dataset {self.name} has no image {name!r}")

    def label(self, name: str) -> np.ndarray:
        """float32 [C], 1 where the class occurs."""
        raise DataError(f"dataset {self.name} has no label for {name!r}")

    def mask(self, name: str) -> np.ndarray | None:
        """uint8 [H, W] (0 background, c + 1 class, 255 ignore), or None where there is no ground truth."""
        return None

    def names_of(self, list_or_split: str) -> list[str]:
        """Image names of a split, or of a list file (a name, or `/JPEGImages/x.jpg /Masks/x.png`, per line)."""
        if Path(list_or_split).suffix == ".txt" or Path(list_or_split).is_file():
            return self.read_list(Path(list_or_split))
        return self.names(list_or_split)

    def read_list(self, path: Path) -> list[str]:
        """Image names of a list file; a dataset whose names hold spaces or folders reads its lines in its own way."""
        return read_list(path)

    def find_name(self, text: str) -> str:
        """The name of the image that a user means by its name or its file name; unchanged where there is none such."""
        stem, _, ending = text.rpartition(".")
        return stem if stem and ending.lower() in ("jpg", "jpeg", "png", "webp") else text

    def all_names(self) -> list[str]:
        """The images that `--check_data` is to read besides those of the lists."""
        return []

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The ids of the classes in COCO files, where they differ from the mask values."""
        return tuple(range(1, self.n_classes + 1))

    def has_label(self, name: str) -> bool:
        """Whether the image has a label that can be read."""
        try:
            self.label(name)
        except UserError:
            return False
        return True

    def has_mask(self, name: str) -> bool:
        """Whether there is ground truth, without reading it."""
        return self.mask(name) is not None

    def instances(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Instances: map uint8 [H, W] (0 background, i + 1 instance i) and mask values uint8 [n], or None."""
        return None

    def check_names(self, names: Sequence[str], source: str) -> None:
        """DataError if an image named by `source` (a split or a list file) is not in the dataset."""

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """float32 [N, C]: the label of every name."""
        return (
            np.stack([self.label(name) for name in names]) if len(names) else np.zeros((0, self.n_classes), np.float32)
        )


@cache
def load_file(path: Path) -> ModuleType:
    """The module of a user's Python file; DataError if it cannot be run."""
    spec = importlib.util.spec_from_file_location(f"dataset_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    module.DATASET_FILE = path
    sys.modules[spec.name] = module  # where pickle looks for its classes
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code
        raise DataError(f"--dataset {path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def _blank(file: Path, name: str) -> Dataset:
    """An object of the class `name` of a user's file, before its state is put in."""
    kind = operator.attrgetter(name)(load_file(file))
    return kind.__new__(kind)


def rng(seed: int, *keys: int | str) -> np.random.Generator:
    """A generator that depends on the seed and the keys (an image's name, an epoch) only, not on rank or worker."""
    words = [zlib.crc32(key.encode()) if isinstance(key, str) else int(key) for key in keys]
    return np.random.default_rng([seed, *words])


def read_list(path: Path, name_of: Callable[[str], str] | None = None) -> list[str]:
    """Image names of a list file: of every line that is not empty, name_of(line) or the stem of its first word."""
    names = [name_of(line) if name_of else Path(line.split()[0]).stem for line in read_lines(path) if line.strip()]
    if not names:
        raise DataError(f"list file {path} names no image")
    return names


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, with or without byte order mark; DataError if it is missing or not text."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"list file {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise DataError(f"list file {path} is not text: {error}") from error
    except OSError as error:
        raise DataError(f"list file {path} cannot be read: {error.strerror}") from error


def voc_palette() -> np.ndarray:
    """uint8 [256, 3]: the PASCAL VOC colour map (bits of the index spread over the three channels)."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette
