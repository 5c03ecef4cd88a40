"""CAM result files: `NAME.npy`, a pickled dict(keys, cam, high_res), as the IRN family writes them.

`numpy.load(path, allow_pickle=True).item()` of other code reads them. Here nothing is unpickled but NumPy arrays and
torch tensors (published files hold both).
"""

import io
import pickle
from pathlib import Path

import numpy as np
import torch

from misc.files import write_atomic


class CamFileError(ValueError):
    """A file is not a CAM result file, is damaged, or holds what must not be unpickled."""


def save(path: Path, keys: np.ndarray, cam: np.ndarray, high_res: np.ndarray) -> None:
    """Writes keys int64 [n], cam float32 [n, ceil(H/4), ceil(W/4)] and high_res float32 [n, H, W]."""
    value = {
        "keys": np.ascontiguousarray(keys, np.int64),
        "cam": np.ascontiguousarray(cam, np.float32),
        "high_res": np.ascontiguousarray(high_res, np.float32),
    }
    write_atomic(path, lambda file: np.save(file, np.array(value, dtype=object), allow_pickle=True))


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a CAM file as `save` takes them; CamFileError names the file and what is wrong with it."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[version](file)
            if dtype.kind != "O" or shape != ():
                raise CamFileError(f"holds an array {shape} of {dtype}, not a dict")
            value = _Unpickler(file).load()
        if isinstance(value, np.ndarray):
            value = value.item()
        missing = {"keys", "cam", "high_res"} - set(value)
        if missing:
            raise CamFileError(f"lacks {', '.join(sorted(missing))}")
        keys = np.asarray(value["keys"]).astype(np.int64).reshape(-1)
        cam, high_res = (np.asarray(value[name], np.float32) for name in ("cam", "high_res"))
        if cam.ndim != 3 or high_res.ndim != 3 or not len(keys) == len(cam) == len(high_res):
            raise CamFileError(f"shapes do not fit: keys {keys.shape}, cam {cam.shape}, high_res {high_res.shape}")
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CamFileError(f"{path} is not a whole CAM file: {error}; delete it and make it again") from error
    return {"keys": keys, "cam": cam, "high_res": high_res}


def _load_storage(data: bytes) -> object:
    """The bytes of a storage inside a pickled tensor, themselves read without running code."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


class _Unpickler(pickle.Unpickler):
    """Unpickles arrays, tensors and plain containers; refuses everything else."""

    def find_class(self, module: str, name: str) -> object:
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) in {("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar")}:
            return getattr(np._core.multiarray, name)
        if module == "numpy._core.numeric" and name == "_frombuffer":
            return np._core.numeric._frombuffer
        if module == "numpy" and name in {"ndarray", "dtype"}:
            return getattr(np, name)
        if module == "collections" and name == "OrderedDict":
            return dict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return torch._utils._rebuild_tensor_v2
        if module == "torch.storage" and name == "_load_from_bytes":
            return _load_storage
        raise pickle.UnpicklingError(f"it would run {module}.{name}, which is refused")
