"""CAM files: round trip, files of other code, damaged files, and pickles that would run code."""

import os
import pickle

import numpy as np
import pytest
import torch

from data.results import ResultFileError, load_cam, load_instances, save_cam


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


def test_round_trip_of_an_image_without_a_class(path):
    empty = {"keys": np.zeros(0, np.int64), "cam": np.zeros((0, 5, 6)), "high_res": np.zeros((0, 18, 23))}
    save_cam(path, **empty)
    check(load_cam(path), empty)


def test_save_converts_to_the_promised_kinds(path, arrays):
    doubles = {name: np.asfortranarray(value.astype(np.float64)) for name, value in arrays.items()}
    save_cam(path, **{**doubles, "keys": [3, 14]})
    check(load_cam(path), arrays)


@pytest.mark.parametrize("version", [None, (2, 0)])
def test_reads_files_of_numpy_arrays_that_other_code_wrote(path, arrays, version):
    with open(path, "wb") as file:
        np.lib.format.write_array(file, np.array(arrays, dtype=object), version=version)
    check(load_cam(path), arrays)


def test_reads_files_of_torch_tensors_as_published(path, arrays):
    tensors = {name: torch.from_numpy(arrays[name]) for name in ("keys", "cam")}
    np.save(path, {**tensors, "high_res": arrays["high_res"]})
    check(load_cam(path), arrays)


def test_reads_files_of_numpy_1(path, arrays):
    """NumPy 1 named its modules numpy.core; the pickle names of today's file are put back."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        body = pickle.dumps(np.array(arrays, dtype=object), protocol=3)
        assert b"cnumpy._core." in body
        file.write(body.replace(b"cnumpy._core.", b"cnumpy.core."))
    check(load_cam(path), arrays)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_reads_arrays_of_every_order_and_protocol(path, arrays, protocol):
    values = {**arrays, "cam": np.asfortranarray(arrays["cam"].astype(">f4"))}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(np.array(values, dtype=object), file, protocol)
    check(load_cam(path), arrays)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


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
    for value in ({**arrays, "more": payload}, {**arrays, "cam": np.array([payload], object)}, payload, [payload]):
        array = np.empty((), object)
        array[()] = value
        np.save(path, array, allow_pickle=True)
        with pytest.raises(ResultFileError, match=rf"{path} is not a valid .*it would run io\.open, which is refused"):
            load(path)
        assert not trace.exists()
    np.load(path, allow_pickle=True).item()[0].close()
    assert trace.exists()  # it does run elsewhere


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_the_bytes_of_a_storage_is_not_run(path, arrays, tmp_path):
    trace = tmp_path / "trace"
    torch.save(Payload(trace), tmp_path / "new.pt")
    torch.save(Payload(trace), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for data in (pickle.dumps(Payload(trace)), *((tmp_path / name).read_bytes() for name in ("new.pt", "old.pt"))):
        np.save(path, {**arrays, "more": HiddenStorage(data)})
        with pytest.raises(ResultFileError, match="is not a valid CAM file"):
            load_cam(path)
        assert not trace.exists()


def test_a_truncated_file_is_named(path, arrays):
    save_cam(path, **arrays)
    whole = path.read_bytes()
    for length in (0, 5, 20, 128, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ResultFileError, match=r"2007_000032\.npy is not a valid CAM file: .*; delete it and run"):
            load_cam(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": np.array([3])}, r"shapes \(1,\) and \(2, 18, 23\) do not match"),
        ({"cam": np.zeros((3, 5, 6))}, r"cam has shape \(3, 5, 6\), wanted \(2, 5, 6\)"),
        ({"cam": np.zeros((5, 6))}, r"cam has shape \(5, 6\)"),
        ({"high_res": np.zeros((2, 1, 18, 23))}, "do not match"),
        ({"cam": np.full((2, 5, 6), np.nan)}, "some values are not finite"),
        ({"keys": np.array([-1, 2])}, r"it has classes \[-1, 2\], wanted 0 to 253"),
        ({"keys": "text"}, "invalid literal"),
    ],
)
def test_wrong_values_are_named(path, arrays, changes, message):
    np.save(path, {**arrays, **changes})
    with pytest.raises(ResultFileError, match=message):
        load_cam(path)


def test_a_file_of_something_else_is_named(path, arrays):
    np.save(path, {"keys": arrays["keys"]})
    with pytest.raises(ResultFileError, match="it has no 'cam'"):
        load_cam(path)
    for value in (arrays["cam"], np.array([1, 2], object)):
        np.save(path, value, allow_pickle=True)
        with pytest.raises(ResultFileError, match="is not a valid CAM file"):
            load_cam(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load_cam(path)


def test_a_file_of_another_image_or_other_classes_is_refused(path, arrays):
    save_cam(path, **arrays)
    with pytest.raises(ResultFileError, match=r"its image is \(18, 23\), wanted \(23, 18\)"):
        load_cam(path, (23, 18))
    with pytest.raises(ResultFileError, match=r"it has classes \[3, 14\], wanted 0 to 13"):
        load_cam(path, (18, 23), 14)
