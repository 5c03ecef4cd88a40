"""CAM result files: `NAME.npy`, a pickled dict(keys, cam, high_res), as the IRN family writes them.

`numpy.load(path, allow_pickle=True).item()` of other code reads them. Here nothing is unpickled but NumPy arrays and
torch tensors (published files hold both).
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data import unpickle
from data.errors import UserError
from data.files import write_atomic

MOST_CLASSES = 254  # masks of 8 bits keep 0 for the background and 255 for what is ignored


class CamFileError(UserError):
    """A file is not the result file it should be, is damaged, or holds what must not be unpickled."""


def save(path: Path, keys: np.ndarray, cam: np.ndarray, high_res: np.ndarray) -> None:
    """Writes keys int64 [n], cam float32 [n, ceil(H/4), ceil(W/4)] and high_res float32 [n, H, W]."""
    value = {
        "keys": np.ascontiguousarray(keys, np.int64),
        "cam": np.ascontiguousarray(cam, np.float32),
        "high_res": np.ascontiguousarray(high_res, np.float32),
    }
    save_dict(path, value)


def load(path: Path, size: tuple[int, int] | None = None, n_classes: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of a CAM file as `save` takes them; CamFileError names the file and what is wrong with it.

    size: (H, W) of the image that it must belong to. n_classes: of the dataset, which must have every key.
    """
    return load_dict(path, "CAM", ("keys", "cam", "high_res"), partial(_cam_arrays, size, n_classes))


def check_classes(what: str, classes: np.ndarray, n_classes: int | None) -> None:
    """CamFileError unless all are 0-based classes of a dataset that has n_classes (None: as many as masks can keep)."""
    if ((classes < 0) | (classes >= MOST_CLASSES)).any():
        raise CamFileError(f"the {what} {classes.tolist()} are not classes (0-based)")
    if n_classes is not None and (classes >= n_classes).any():
        raise CamFileError(f"the {what} {classes.tolist()} go beyond the {n_classes} classes of the dataset (0-based)")


def _cam_arrays(size: tuple[int, int] | None, n_classes: int | None, value: dict) -> dict[str, np.ndarray]:
    keys = np.asarray(value["keys"]).astype(np.int64).reshape(-1)
    cam, high_res = (np.asarray(value[name], np.float32) for name in ("cam", "high_res"))
    if cam.ndim != 3 or high_res.ndim != 3 or not len(keys) == len(cam) == len(high_res):
        raise CamFileError(f"shapes do not fit: keys {keys.shape}, cam {cam.shape}, high_res {high_res.shape}")
    if size is not None and high_res.shape[1:] != tuple(size):
        raise CamFileError(f"is of an image of {high_res.shape[1:]}, wanted {tuple(size)} (height, width)")
    if size is not None and cam.shape[1:] != (small := (-(-size[0] // 4), -(-size[1] // 4))):
        raise CamFileError(f"its cam is of {cam.shape[1:]}, wanted {small}, a quarter of the image (height, width)")
    if len(set(keys.tolist())) < len(keys):
        raise CamFileError(f"the keys {keys.tolist()} are not classes (0-based, each once)")
    check_classes("keys", keys, n_classes)
    if not (np.isfinite(cam).all() and np.isfinite(high_res).all()):
        raise CamFileError("holds values that are not finite")
    return {"keys": keys, "cam": cam, "high_res": high_res}


def save_dict(path: Path, value: dict[str, np.ndarray]) -> None:
    """Writes a dict of arrays as one pickled object, for `numpy.load(path, allow_pickle=True).item()`."""
    write_atomic(path, lambda file: np.save(file, np.array(value, dtype=object), allow_pickle=True))


def load_dict(path: Path, kind: str, names: Sequence[str], convert: Callable[[dict], dict]) -> dict[str, np.ndarray]:
    """convert(the dict of a file that `save_dict` or other code wrote).

    names: entries it must have. CamFileError names the file, what is wrong with it and, by `kind`, what it should be.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[version](file)
            if dtype.kind != "O" or shape != ():
                raise CamFileError(f"holds an array {shape} of {dtype}, not a dict")
            value = unpickle.load(file, names)
        if not isinstance(value, dict):
            raise CamFileError(f"holds a {type(value).__name__}, not a dict")
        missing = set(names) - set(value)
        if missing:
            raise CamFileError(f"lacks {', '.join(sorted(missing))}")
        return convert(value)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CamFileError(f"{path} is not a whole {kind} file: {error}; delete it and make it again") from error
