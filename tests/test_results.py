"""CAM files: round trip, files of other code, damaged files, and pickles that would run code."""

import os
import pickle

import numpy as np
import pytest
import torch

from data.results import ResultFileError, load_cam, load_instances, save_cam
from tests.helpers import Payload


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "keys": np.array([3, 14], np.int64),
        "cam": rng.random((2, 5, 6)).astype(np.float32),
        "high_res": rng.random((2, 18, 23)).astype(np.float32),
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "2007_000032.npy"


def check(got, wanted):
    assert set(got) == {"keys", "cam", "high_res"}
    for name, value in wanted.items():
        assert got[name].dtype == (np.int64 if name == "keys" else np.float32), name
        np.testing.assert_array_equal(got[name], np.asarray(value))


def test_round_trip(path, arrays):
    save_cam(path, **arrays)
    check(load_cam(path, (18, 23), 15), arrays)
    check(np.load(path, allow_pickle=True).item(), arrays)  # as other code reads it
    assert os.listdir(path.parent) == [path.name]
    save_cam(path, **{name: np.asfortranarray(value.astype(np.float64)) for name, value in arrays.items()})
    check(load_cam(path), arrays)
    without_class = {"keys": np.zeros(0, np.int64), "cam": np.zeros((0, 5, 6)), "high_res": np.zeros((0, 18, 23))}
    save_cam(path, **without_class)
    check(load_cam(path), without_class)


def as_published(path, arrays):
    np.save(
        path, {**{name: torch.from_numpy(arrays[name]) for name in ("keys", "cam")}, "high_res": arrays["high_res"]}
    )


def as_numpy_1(path, arrays):
    """NumPy 1 named its modules numpy.core; the pickle names of today's file are put back."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        body = pickle.dumps(np.array(arrays, dtype=object), protocol=3)
        assert b"cnumpy._core." in body
        file.write(body.replace(b"cnumpy._core.", b"cnumpy.core."))


def as_big_endian_columns(path, arrays):
    np.save(path, {**arrays, "cam": np.asfortranarray(arrays["cam"].astype(">f4"))})


@pytest.mark.parametrize("write", [np.save, as_published, as_numpy_1, as_big_endian_columns])
def test_files_of_other_code_are_read(path, arrays, write):
    write(path, arrays)
    check(load_cam(path), arrays)


class HiddenStorage:
    """A tensor's storage whose bytes are a pickle of their own."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


@pytest.mark.parametrize("load", [load_cam, load_instances])
def test_code_in_a_pickle_is_not_run(path, arrays, tmp_path, load):
    trace = tmp_path / "trace"
    payload = Payload(trace)
    for value in ({**arrays, "more": payload}, {**arrays, "cam": np.array([payload], object)}, payload):
        array = np.empty((), object)
        array[()] = value
        np.save(path, array, allow_pickle=True)
        with pytest.raises(ResultFileError, match=rf"{path} is not a valid .*it would run .*system, which is refused"):
            load(path)
        np.save(path, {**arrays, "more": HiddenStorage(pickle.dumps(payload))})
        with pytest.raises(ResultFileError, match="is not a valid"):
            load(path)
        assert not trace.exists()
    np.save(path, payload, allow_pickle=True)
    np.load(path, allow_pickle=True)
    assert trace.exists()  # it does run elsewhere


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": np.array([3])}, r"shapes \(1,\) and \(2, 18, 23\) do not match"),
        ({"cam": np.zeros((3, 5, 6))}, r"cam has shape \(3, 5, 6\), wanted \(2, 5, 6\)"),
        ({"high_res": np.zeros((2, 1, 18, 23))}, "do not match"),
        ({"high_res": np.zeros((2, 23, 18))}, r"its image is \(23, 18\), wanted \(18, 23\)"),
        ({"cam": np.full((2, 5, 6), np.nan)}, "some values are not finite"),
        ({"keys": np.array([-1, 2])}, r"it has classes \[-1, 2\], wanted 0 to 14"),
        ({"keys": np.array([3, 15])}, r"it has classes \[3, 15\], wanted 0 to 14"),
        (None, r"2007_000032\.npy is not a valid CAM file: it has no 'cam'; delete it and run"),
    ],
)
def test_wrong_values_are_named(path, arrays, changes, message):
    np.save(path, {"keys": arrays["keys"]} if changes is None else {**arrays, **changes})
    with pytest.raises(ResultFileError, match=message):
        load_cam(path, (18, 23), 15)
