"""Unpickling of NumPy arrays, torch tensors and plain containers, and of nothing else.

NumPy's own classes are not handed to the pickle: a crafted state makes them read memory that is not theirs, and so does
torch's function for tensors. Small stand-ins take the states that arrays are pickled with, check them and build the
arrays. Time and memory are bounded by the size of the file: what stands in it once may be named a thousand times.
"""

import io
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch

KINDS = "biuf"  # bool, integers, floats
MAX_DIMENSIONS = 32


def load(file: BinaryIO, names: Sequence[str]) -> Any:
    """The object pickled in an open file; of a dict the entries `names` that it has, arrays as copies of their own.

    pickle.UnpicklingError for anything but arrays, tensors and containers, and for entries that are nested.
    """
    data = file.read()
    try:
        value = _item(_Unpickler(io.BytesIO(data), len(data)).load())
    except LookupError as error:  # an unknown operation, or nothing on the stack
        raise pickle.UnpicklingError("its pickle is damaged") from error
    return {name: _item(value[name]) for name in names if name in value} if isinstance(value, dict) else value


def _item(value: Any) -> Any:
    """What a stand-in stands for; a list only without containers in it: small in a file, huge as an array."""
    if isinstance(value, _Array):
        value = value.value
    if isinstance(value, _Array) or (
        isinstance(value, list | tuple) and any(isinstance(part, list | tuple | dict | _Array) for part in value)
    ):
        raise pickle.UnpicklingError("a nested value is refused")
    return np.array(value) if isinstance(value, np.ndarray) else value


class _DType:
    """Stands in for numpy.dtype: plain numbers, or the object type of an outer array."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        if not isinstance(code, str) or (code != "O8" and np.dtype(code).kind not in KINDS):
            raise pickle.UnpicklingError("an array of this type is refused")
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
                raise pickle.UnpicklingError("an array of several objects is refused; wanted a single one")
            self.value = data[0]
        else:
            self.value = _from_bytes(data, dtype, shape, "F" if fortran else "C")


def _from_bytes(data: bytes, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    if dtype.holds_objects or not _are_sizes(shape):
        raise pickle.UnpicklingError("an array without a shape or a type of numbers is refused")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"{len(data)} bytes do not make an array of shape {shape}")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _are_sizes(value: Any) -> bool:
    """Whether it is a tuple of a few whole numbers, none below 0; only then may it be counted with, or printed."""
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def _scalar(dtype: _DType, data: bytes) -> np.generic:
    return _from_bytes(data, dtype, (), "C")[()]


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _load_storage(data: bytes) -> torch.TypedStorage:
    """The bytes of a storage inside a pickled tensor, themselves read without running code."""
    if data[:2] == b"PK":  # torch pickles storages in its older form; this one may be compressed, and grow
        raise pickle.UnpicklingError("a zipped storage is refused")
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.TypedStorage) or storage._untyped_storage.nbytes() > len(data):
        raise pickle.UnpicklingError("a tensor without a whole storage is refused")
    return storage


def _tensor(storage: torch.TypedStorage, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """A pickled tensor as an array. torch's own function would enlarge a storage that is too small, by foreign memory.

    size, stride: in elements. No more elements than the storage has, and none outside it: as_strided sees to that.
    """
    size, stride = tuple(size), tuple(stride)
    if not (isinstance(storage, torch.TypedStorage) and _are_sizes(size) and _are_sizes(stride)):
        raise pickle.UnpicklingError("a tensor without storage, shape or strides is refused")
    flat = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    if flat.is_complex() or flat.is_quantized or math.prod(size) > len(flat):
        raise pickle.UnpicklingError(f"a storage of {len(flat)} {flat.dtype} does not make a tensor of shape {size}")
    return flat.as_strided(size, stride, offset).numpy()


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 writes them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError("bytes in this encoding are refused")
    return text.encode("latin1")


def _no_hooks() -> dict:
    """The empty mapping that is pickled with a tensor; a full one would hash whatever stands in the file."""
    return {}


class _NDArray:
    """Stands in for the class numpy.ndarray, which `_reconstruct` is called with."""


_ALLOWED = {
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_bytes,
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): _no_hooks,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
_COPYING = {("_codecs", "encode"): _encode, ("torch.storage", "_load_from_bytes"): _load_storage}
_HASHING = b"".join((pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.DICT))


class _Unpickler(pickle._Unpickler):
    """The unpickler written in Python, whose operations can be replaced; arrays are one operation each."""

    def __init__(self, file: BinaryIO, size: int):
        super().__init__(file)
        self.left = size  # bytes that may still be copied

    def find_class(self, module: str, name: str) -> object:
        key = (module.replace("numpy.core", "numpy._core"), name)
        if key in _COPYING:
            return self._once(_COPYING[key])
        if key not in _ALLOWED:
            raise pickle.UnpicklingError(f"it would run {module}.{name}, which is refused")
        return _ALLOWED[key]

    def _once(self, function: Callable) -> Callable:
        """A function that copies its first argument, with the bytes counted: no file has reason to copy them twice."""

        def copy(data: Any, *more: Any) -> Any:
            self.left -= len(data)
            if self.left < 0:
                raise pickle.UnpicklingError("the same bytes are used again and again, which is refused")
            return function(data, *more)

        return copy

    def set_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Array | _DType):  # else it would change our own functions
            raise pickle.UnpicklingError("a state of something else than an array is refused")
        target.__setstate__(state)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def set_items(self) -> None:
        self._put(self.pop_mark())

    def _put(self, items: list) -> None:
        if not all(isinstance(key, str) for key in items[::2]):  # tuples nested in tuples take forever to be hashed
            raise pickle.UnpicklingError("a mapping with keys that are no text is refused")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def refuse(self) -> None:
        raise pickle.UnpicklingError("sets are refused")

    dispatch = {  # noqa: RUF012
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: set_state,
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        **dict.fromkeys(_HASHING, refuse),
    }
