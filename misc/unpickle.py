"""Unpickling of NumPy arrays, torch tensors and plain containers, and of nothing else.

NumPy's own classes are not handed to the pickle: a crafted state makes them read memory that is not theirs. Small
stand-ins take the states that arrays are pickled with, check them and build the arrays.
"""

import io
import math
import pickle
from typing import Any, BinaryIO

import numpy as np
import torch

KINDS = "biuf"  # bool, integers, floats


def load(file: BinaryIO) -> Any:
    """The object pickled in an open file; pickle.UnpicklingError for anything but arrays, tensors and containers."""
    return _plain(_Unpickler(file).load())


class _DType:
    """Stands in for numpy.dtype: plain numbers, or the object type of an outer array."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        if not isinstance(code, str) or (code != "O8" and np.dtype(code).kind not in KINDS):
            raise pickle.UnpicklingError(f"an array of type {code!r} is refused")
        self.holds_objects = code == "O8"
        self.dtype = None if self.holds_objects else np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        # (version, byte order, subarray, names, fields, size, alignment, flags): of plain types only the order varies.
        order, structure = state[1], state[2:5]
        if structure != (None, None, None) or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a structured array is refused")
        if not self.holds_objects:
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for an array under construction; its state tells shape, type and bytes."""

    value: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.holds_objects:
            if shape != () or not isinstance(data, list) or len(data) != 1:
                raise pickle.UnpicklingError(f"an array of objects of shape {shape} is refused; wanted a single one")
            self.value = data[0]
        else:
            self.value = _from_bytes(data, dtype, shape, "F" if fortran else "C")


def _from_bytes(data: bytes, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    if dtype.holds_objects or math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"{len(data)} bytes do not make an array of shape {shape}")
    return np.frombuffer(bytearray(data), dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: _DType, data: bytes) -> np.generic:
    return _from_bytes(data, dtype, (), "C")[()]


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _load_storage(data: bytes) -> object:
    """The bytes of a storage inside a pickled tensor, themselves read without running code."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 writes them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding} are refused")
    return text.encode("latin1")


def _plain(value: Any) -> Any:
    """The value with arrays in place of their stand-ins."""
    if isinstance(value, _Array):
        return _plain(value.value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value


class _NDArray:
    """Stands in for the class numpy.ndarray, which `_reconstruct` is called with."""


_ALLOWED = {
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_bytes,
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encode,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _load_storage,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        known = _ALLOWED.get((module.replace("numpy.core", "numpy._core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"it would run {module}.{name}, which is refused")
        return known
