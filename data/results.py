"""Result files of single images, as the IRN family writes them: `NAME.npy`, one pickled dict of arrays.

`numpy.load(path, allow_pickle=True).item()` reads them. Here nothing is unpickled but NumPy arrays and torch tensors
(published files hold both), so that a file from elsewhere cannot run code.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.errors import UserError
from data.files import write_atomic

CAM = {"keys": np.int64, "cam": np.float32, "high_res": np.float32}
INSTANCES = {"score": np.float32, "mask": bool, "class": np.int64}
MAX_CLASSES = 254  # a mask of 8 bits keeps 0 for the background and 255 for ignored pixels
ALLOWED = {
    "numpy.dtype", "numpy.ndarray", "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer", "_codecs.encode", "collections.OrderedDict", "torch._utils._rebuild_tensor_v2",
}  # fmt: skip


class ResultFileError(UserError):
    """A file is not the result file it should be; the message names it."""


def save_cam(path: Path, keys: np.ndarray, cam: np.ndarray, high_res: np.ndarray, dtype: str = "float32") -> None:
    """Writes keys int64 [n], and as `dtype` cam [n, ceil(H/4), ceil(W/4)] and high_res [n, H, W]."""
    _save(path, {"keys": keys, "cam": cam, "high_res": high_res}, {**CAM, "cam": dtype, "high_res": dtype})


def load_cam(path: Path, size: tuple[int, int] | None = None, n_classes: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of a CAM file, as `save_cam` takes them, maps as float32.

    size: (H, W) of its image. n_classes: of the dataset, which must have every key. ResultFileError if the file is
    damaged or does not fit; FileNotFoundError.
    """
    value = _load(path, "CAM", CAM)
    cam, high_res = value["cam"], value["high_res"]
    if cam.ndim != 3:
        raise _damaged(path, "CAM", f"cam has shape {cam.shape}")
    _check(path, "CAM", value["keys"], high_res, size, n_classes)
    quarter = tuple(-(-side // 4) for side in high_res.shape[1:])
    if len(cam) != len(high_res) or (size is not None and cam.shape[1:] != quarter):
        raise _damaged(path, "CAM", f"cam has shape {cam.shape}, wanted {(len(high_res), *quarter)}")
    if not (np.isfinite(cam).all() and np.isfinite(high_res).all()):
        raise _damaged(path, "CAM", "some values are not finite")
    return value


def save_instances(path: Path, detected: dict[str, np.ndarray]) -> None:
    """Writes score float32 [n], mask bool [n, H, W] and class int64 [n] (0-based), as `misc.instances.detect`."""
    _save(path, detected, INSTANCES)


def load_instances(
    path: Path, size: tuple[int, int] | None = None, n_classes: int | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an instance file, as `save_instances` takes them; `size`, `n_classes`, errors as `load_cam`."""
    value = _load(path, "instance", INSTANCES)
    score = value["score"]
    _check(path, "instance", value["class"], value["mask"], size, n_classes)
    if score.shape != value["class"].shape or not np.isfinite(score).all():
        raise _damaged(path, "instance", f"scores of shape {score.shape}, wanted a finite one for each of the masks")
    return value


def _check(
    path: Path, kind: str, classes: np.ndarray, maps: np.ndarray, size: tuple[int, int] | None, n_classes: int | None
) -> None:
    """ResultFileError unless there is one class of the dataset per map [n, H, W], and these fit the image."""
    n_classes = MAX_CLASSES if n_classes is None else n_classes
    if maps.ndim != 3 or classes.shape != maps.shape[:1]:
        raise _damaged(path, kind, f"shapes {classes.shape} and {maps.shape} do not match")
    if size is not None and maps.shape[1:] != tuple(size):
        raise _damaged(path, kind, f"its image is {maps.shape[1:]}, wanted {tuple(size)} (height, width)")
    if ((classes < 0) | (classes >= n_classes)).any():
        raise _damaged(path, kind, f"it has classes {classes.tolist()}, wanted 0 to {n_classes - 1}")


def _damaged(path: Path, kind: str, reason: str) -> ResultFileError:
    return ResultFileError(f"{path} is not a valid {kind} file: {reason}; delete it and run its step again")


def _save(path: Path, value: dict[str, np.ndarray], kinds: dict[str, type | str]) -> None:
    arrays = {name: np.ascontiguousarray(value[name], kind) for name, kind in kinds.items()}
    write_atomic(path, lambda file: np.save(file, np.array(arrays, dtype=object), allow_pickle=True))


def _load(path: Path, what: str, kinds: dict[str, type]) -> dict[str, np.ndarray]:
    """The arrays of a file; `kinds` are those that it must have."""
    try:
        value = load_dict(path)
        return {name: np.asarray(value[name], kind) for name, kind in kinds.items()}
    except KeyError as error:
        raise _damaged(path, what, f"it has no {error}") from error
    except (MemoryError, FileNotFoundError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise _damaged(path, what, str(error) or type(error).__name__) from error


def load_dict(path: Path) -> dict:
    """The dict of arrays in a pickled .npy file; any error of NumPy or pickle if it is damaged or holds other types."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
        read(file)
        return _Unpickler(file).load().item()


class _Unpickler(pickle.Unpickler):
    """Builds arrays, tensors and plain containers, and refuses every other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # its name in NumPy 1
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # torch's own would unpickle the bytes
            return _load_storage
        if f"{module}.{name}" in ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it would run {module}.{name}, which is refused")


def _load_storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
