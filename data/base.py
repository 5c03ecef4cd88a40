"""What a dataset is: names, images, image-level labels and, if there is ground truth, masks."""

import importlib.util
import operator
import shlex
import sys
import unicodedata
import zlib
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from data.errors import DataError, UserError
from data.transforms import rescale_size, resize


class Dataset:
    """Images with image-level labels and, for some or all of them, masks.

    A subclass sets `name` and `classes` (foreground names; index c here is the mask value c + 1) and overrides the
    methods below.
    """

    name: str
    classes: tuple[str, ...]
    # What `--check_data` reports besides what it finds by reading every image: problems to fix, and notes.
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    # name -> what is wrong: the images that `--skip_bad` leaves out of every list.
    bad_images: Mapping[str, str] = MappingProxyType({})
    # Folder below that of the masks for those of images without ground truth, as the dataset's test server wants it.
    submission = ""
    # The run beside this one that its report shows too, by the name of its folder.
    beside = ""
    has_labels = True  # whether there are any; without them a trained network is all that can be used
    max_side: int | None = None  # see `Scaled`

    def __reduce_ex__(self, protocol: int) -> tuple:
        """For worker processes that inherit no modules: a user's own dataset file is loaded there first."""
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
        return {"--dataset": self.name, "classes": list(self.classes), "--max_side": self.max_side}

    @property
    def has_masks(self) -> bool:
        """Whether there is ground truth at all; without it the evaluation steps are left out."""
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
        """Image names of a list file; overridden by a dataset whose names hold spaces or folders."""
        return read_list(path)

    def find_name(self, text: str) -> str:
        """The name of the image that a user means by its name or file name; `text` itself if there is none."""
        stem, _, ending = text.rpartition(".")
        return stem if stem and ending.lower() in ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp") else text

    def all_names(self) -> list[str]:
        """The images that `--check_data` reads besides those of the lists."""
        return []

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) at which `image` hands out an image of a size: another one only with `--max_side`."""
        return size

    def full_size(self, name: str, masks: np.ndarray) -> np.ndarray:
        """Masks [..., H, W] made of `image(name)`, at the size of the image itself, as they are stored and scored."""
        return masks

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

    def check_labels(self, names: Sequence[str]) -> None:
        """DataError if one of these images is known to have no label."""

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


class Wrapped:
    """A dataset that is another one but for what a subclass overrides."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


class Scaled(Wrapped):
    """A dataset that hands out its images with a long side of at most `max_side`; ground truth stays as it is."""

    def __init__(self, dataset: Dataset, max_side: int):
        super().__init__(dataset)
        self.max_side = max_side

    @property
    def identity(self) -> dict[str, object]:
        return {**self.dataset.identity, "--max_side": self.max_side}

    def image(self, name: str) -> np.ndarray:
        image = self.dataset.image(name)
        return resize(image, *self.working_size(image.shape[:2]))

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return rescale_size(size, min(1.0, self.max_side / max(size)))

    def full_size(self, name: str, masks: np.ndarray) -> np.ndarray:
        size = self.dataset.image(name).shape[:2]
        flat = masks.reshape(-1, *masks.shape[-2:]).astype(np.uint8)
        resized = [resize(mask, *size, nearest=True) for mask in flat]
        return np.array(resized, masks.dtype).reshape(*masks.shape[:-2], *size)


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


def read_list(path: Path) -> list[str]:
    """Image names of a list file: the stem of the first word of every line that is not empty."""
    names = [Path(line.split()[0]).stem for line in read_lines(path) if line.strip()]
    if not names:
        raise DataError(f"list file {path} names no image")
    return names


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 or UTF-16 text file, with or without byte order mark; DataError if there is none."""
    try:
        content = path.read_bytes()
        utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:2]  # Excel's "Unicode text"
        text = content.decode("utf-16" if utf16 else "utf-8").lstrip("\ufeff")
        return text.replace("\r\n", "\n").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def plain(text: str) -> str:
    """Text in the one form (NFC) in which names and classes are compared; macOS stores file names decomposed."""
    return unicodedata.normalize("NFC", text)


def alike(problems: Sequence[str]) -> str:
    """Problems of one kind as one: the first, and how many more there are."""
    return problems[0] + (f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else "")


def check_names(names: Sequence[str], known: Collection[str], source: str, where: Path) -> None:
    """DataError that counts the names of `source` (a split or list file) that are not in `known`, the images below
    `where`, and shows the first of them."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"{len(unknown)} of the {len(names)} names of {source} have no image in {where}: {shortened(unknown)}; "
            f"correct the list or add the images"
        )


def how_to_convert(root: Path) -> str:
    """What to do with a folder that an annotation tool has exported."""
    command = f"python -m data.convert {shlex.quote(str(root))} --data_root NEW_FOLDER"
    return f"For an export of your own data run `{command}`, then use --dataset folder"


def class_table(classes: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Lines with the mask value and the number of images of every class."""
    rows = (f"{c:>10}  {n:>9,}  {name}" for c, (name, n) in enumerate(zip(classes, counts, strict=True), 1))
    return ["", f"{'mask value':>10}  {'images':>9}  class", *rows]


def shortened(names: Sequence[str], shown: int = 5) -> str:
    """The first few names, separated by commas, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
