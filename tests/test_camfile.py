"""CAM files: round trip, files of other code, and pickles that would run code."""

import codecs
import os
import pickle
import resource
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch

from data import camfile
from data.camfile import CamFileError


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
    camfile.save(path, **arrays)
    check(camfile.load(path), arrays)
    assert os.listdir(path.parent) == [path.name]


def test_round_trip_of_an_image_without_a_class(path):
    empty = {"keys": np.zeros(0, np.int64), "cam": np.zeros((0, 5, 6)), "high_res": np.zeros((0, 18, 23))}
    camfile.save(path, **empty)
    check(camfile.load(path), empty)


def test_save_converts_to_the_promised_kinds(path, arrays):
    transposed = {name: value.astype(np.float64) for name, value in arrays.items()}
    transposed["keys"] = [3, 14]
    transposed["cam"] = np.asfortranarray(transposed["cam"])
    camfile.save(path, **transposed)
    check(camfile.load(path), arrays)


def test_other_code_reads_it_with_numpy(path, arrays):
    camfile.save(path, **arrays)
    check(np.load(path, allow_pickle=True).item(), arrays)


@pytest.mark.parametrize("version", [None, (2, 0)])
def test_reads_files_of_numpy_arrays_that_other_code_wrote(path, arrays, version):
    with open(path, "wb") as file:
        np.lib.format.write_array(file, np.array(arrays, dtype=object), version=version)
    check(camfile.load(path), arrays)


def test_reads_files_of_torch_tensors_as_published(path, arrays):
    tensors = {name: torch.from_numpy(arrays[name]) for name in ("keys", "cam")}
    np.save(path, {**tensors, "high_res": arrays["high_res"]})
    check(camfile.load(path), arrays)


def test_reads_views_and_other_kinds_of_tensors(path, arrays):
    values = {name: torch.from_numpy(value) for name, value in arrays.items()}
    wide = torch.zeros(2, 5, 12)
    wide[..., ::2] = values["cam"]
    np.save(path, {**values, "cam": wide[..., ::2], "keys": values["keys"].int()})
    check(camfile.load(path), arrays)


def test_reads_files_of_numpy_1(path, arrays):
    """NumPy 1 named its modules numpy.core; the pickle names of today's file are put back."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        body = pickle.dumps(np.array(arrays, dtype=object), protocol=3)
        assert b"cnumpy._core." in body
        file.write(body.replace(b"cnumpy._core.", b"cnumpy.core."))
    check(camfile.load(path), arrays)


# what must not be run


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "trace"


def test_the_payload_does_run_elsewhere(path, arrays, trace):
    np.save(path, {**arrays, "more": Payload(trace)})
    np.load(path, allow_pickle=True).item()["more"].close()
    assert trace.exists()


def refused(path, trace):
    with pytest.raises(CamFileError) as error:
        camfile.load(path)
    assert not trace.exists()
    assert str(error.value).startswith(f"{path} is not a whole CAM file")
    return str(error.value)


def test_code_in_the_dict_is_refused(path, arrays, trace):
    for value in ({**arrays, "more": Payload(trace)}, {**arrays, "cam": Payload(trace)}, {Payload(trace): 1}):
        np.save(path, value)
        assert "it would run io.open, which is refused" in refused(path, trace)


def test_code_in_place_of_the_dict_is_refused(path, trace):
    for value in (Payload(trace), [Payload(trace)]):
        array = np.empty((), dtype=object)
        array[()] = value
        np.save(path, array)
        assert "it would run io.open, which is refused" in refused(path, trace)


def test_code_in_an_object_array_is_refused(path, arrays, trace):
    np.save(path, {**arrays, "cam": np.array([Payload(trace)], dtype=object)})
    assert "it would run io.open, which is refused" in refused(path, trace)


class HiddenStorage:
    """A tensor's storage whose bytes are a pickle of their own."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_the_bytes_of_a_storage_is_refused(path, arrays, trace, tmp_path):
    torch.save(Payload(trace), tmp_path / "new.pt")
    torch.save(Payload(trace), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for data in (pickle.dumps(Payload(trace)), *((tmp_path / name).read_bytes() for name in ("new.pt", "old.pt"))):
        np.save(path, {**arrays, "more": HiddenStorage(data)})
        refused(path, trace)


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "numpy.load", "torch.load", "numpy.core.multiarray.x"])
def test_any_other_name_is_refused(path, trace, name):
    module, _, function = name.rpartition(".")
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(f"c{module}\n{function}\n(S'{trace}'\ntR.".encode())
    assert "which is refused" in refused(path, trace)


# damaged files


def test_a_truncated_file_is_named(path, arrays):
    camfile.save(path, **arrays)
    whole = path.read_bytes()
    for length in (0, 5, 20, 128, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            CamFileError, match=r"2007_000032\.npy is not a whole CAM file: .*; delete it and make it again"
        ):
            camfile.load(path)


def test_something_else_is_named(path, arrays):
    np.save(path, arrays["cam"])
    with pytest.raises(CamFileError, match=r"holds an array \(2, 5, 6\) of float32, not a dict"):
        camfile.load(path)
    path.write_bytes(b"\x89PNG\r\n" + bytes(100))
    with pytest.raises(CamFileError, match="not a whole CAM file"):
        camfile.load(path)
    for value in (None, [1, 2, 3], "text"):
        np.save(path, np.array(value, dtype=object), allow_pickle=True)
        with pytest.raises(CamFileError, match="not a whole CAM file"):
            camfile.load(path)


def test_missing_entries_are_named(path, arrays):
    np.save(path, {"keys": arrays["keys"]})
    with pytest.raises(CamFileError, match="lacks cam, high_res"):
        camfile.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"keys": np.array([3])},
        {"cam": np.zeros((3, 5, 6))},
        {"high_res": np.zeros((1, 18, 23))},
        {"cam": np.zeros((5, 6))},
        {"high_res": np.zeros((2, 1, 18, 23))},
    ],
)
def test_shapes_that_do_not_fit_are_named(path, arrays, changes):
    np.save(path, {**arrays, **changes})
    with pytest.raises(CamFileError, match="shapes do not fit: keys"):
        camfile.load(path)


def test_a_file_of_another_image_or_other_classes_is_refused(path, arrays):
    camfile.save(path, **arrays)
    highest = int(arrays["keys"].max())
    check(camfile.load(path, (18, 23), highest + 1), arrays)
    with pytest.raises(CamFileError, match=r"is of an image of \(18, 23\), wanted \(23, 18\)"):
        camfile.load(path, (23, 18))
    with pytest.raises(CamFileError, match=rf"2007_000032\.npy .*the keys .* go beyond the {highest} classes"):
        camfile.load(path, (18, 23), highest)
    camfile.save(path, **{**arrays, "cam": arrays["high_res"]})
    camfile.load(path)
    with pytest.raises(CamFileError, match=r"its cam is of \(18, 23\), wanted \(5, 6\), a quarter of the image"):
        camfile.load(path, (18, 23))


def test_a_missing_file_stays_a_missing_file(path):
    with pytest.raises(FileNotFoundError):
        camfile.load(path)


def test_a_state_that_would_read_foreign_memory_is_refused(tmp_path):
    # A dtype whose state claims object fields without saying that it holds objects turns bytes into pointers.
    class Evil:
        def __reduce__(self):
            state = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
            return np.dtype, ("V8", False, True), state

    class Crafted:
        def __reduce__(self):
            return np._core.numeric._frombuffer, (b"\x41" * 8, Evil(), (1,), "C")

    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump({"keys": Crafted(), "cam": 0, "high_res": 0}, file)
    with pytest.raises(CamFileError, match="refused"):
        camfile.load(tmp_path / "x.npy")


def test_arrays_of_every_order_and_protocol(tmp_path):
    cam = np.asfortranarray(np.arange(24, dtype=">f4").reshape(2, 3, 4))
    for protocol in range(2, 6):
        with open(tmp_path / "x.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
            outer = np.array({"keys": np.array([4, 7]), "cam": cam, "high_res": cam * 2}, dtype=object)
            pickle.dump(outer, file, protocol)
        read = camfile.load(tmp_path / "x.npy")
        np.testing.assert_array_equal(read["cam"], cam)
        np.testing.assert_array_equal(read["high_res"], cam * 2)
        assert read["keys"].tolist() == [4, 7]


# files that claim more than they hold


def write_pickled(path, value, protocol=4):
    """A file of one object, pickled as it is rather than inside an array."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(value if isinstance(value, bytes) else pickle.dumps(value, protocol))


class Tensor:
    """Pickled as a tensor of this storage, offset, size and strides."""

    def __init__(self, *given):
        self.given = given

    def __reduce__(self):
        storage, *rest = self.given
        return torch._utils._rebuild_tensor_v2, (storage.storage(), *rest, False, OrderedDict())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    "given",
    [
        (torch.ones(4), 0, (1, 24, 20), (480, 20, 1)),  # 4 numbers and 476 of foreign memory
        (torch.ones(4), 0, (1, 30_000, 30_000), (0, 0, 0)),  # 959 bytes that become 860 MiB
        (torch.ones(480), 1, (1, 24, 20), (480, 20, 1)),
        (torch.ones(480), -1, (1, 24, 20), (480, 20, 1)),
        (torch.ones(480), 0, (1, 24, 20), (480, -20, 1)),
        (torch.ones(480), 0, (1, 24, 20), (480, 40, 1)),
        (torch.ones(480, dtype=torch.complex64), 0, (1, 24, 20), (480, 20, 1)),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(path, given):
    write_pickled(path, {"keys": np.array([3]), "cam": np.ones((1, 6, 5)), "high_res": Tensor(*given)})
    with pytest.raises(CamFileError):
        camfile.load(path)
    whole = Tensor(torch.arange(480.0), 0, (1, 24, 20), (480, 20, 1))
    write_pickled(path, {"keys": np.array([3]), "cam": np.ones((1, 6, 5)), "high_res": whole})
    np.testing.assert_array_equal(camfile.load(path)["high_res"].ravel(), np.arange(480))


def nested(kind, depth, width):
    value = kind([1.0] * width)
    for _ in range(depth):
        value = kind([value] * width)
    return value


LAUGHS = {
    "keys": lambda arrays: {**arrays, "keys": nested(list, 9, 10)},
    "passed over": lambda arrays: {**arrays, "more": nested(list, 9, 10)},
    "tuples": lambda arrays: {**arrays, "cam": nested(tuple, 9, 10)},
    "a key of a mapping": lambda arrays: b"\x80\x04}" + pickle.dumps(nested(tuple, 8, 12), 4)[2:-1] + b"K\x01s.",
    "in a set": lambda arrays: b"\x80\x04\x8f(" + pickle.dumps(nested(tuple, 8, 12), 4)[2:-1] + b"\x90.",
    "a shape": lambda arrays: {**arrays, "cam": Shaped(nested(tuple, 9, 10))},
    "many copies": lambda arrays: {**arrays, "more": many_encoded(5000)},
    "a place in the memo": lambda arrays: b"\x80\x04}r\xf0\xff\xff\x7f.",
}


class Shaped:
    """An array of eight bytes whose shape is anything."""

    def __init__(self, shape):
        self.shape = shape

    def __reduce__(self):
        return np._core.numeric._frombuffer, (b"12345678", np.dtype("f8"), self.shape, "C")


class Encoded:
    def __init__(self, text):
        self.text = text

    def __reduce__(self):
        return codecs.encode, (self.text, "latin1")


def many_encoded(n):
    text = "y" * 1_000_000
    return [Encoded(text) for _ in range(n)]


@pytest.mark.parametrize("kind", LAUGHS)
def test_small_files_stay_small(path, arrays, kind):
    """Pickles of some kilobytes that stand for gigabytes, or for hours."""
    write_pickled(path, LAUGHS[kind](arrays))
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        check(camfile.load(path), arrays)
        assert kind == "passed over"
    except CamFileError:
        assert kind != "passed over"
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_a_list_that_holds_itself(path, arrays):
    endless = []
    endless.append(endless)
    write_pickled(path, {**arrays, "keys": endless})
    with pytest.raises(CamFileError, match="nested"):
        camfile.load(path)


@pytest.mark.parametrize("body", [b"\x80\x04\xfe.", b"\x80\x04."])
def test_a_pickle_that_makes_no_sense(path, body):
    write_pickled(path, body)
    with pytest.raises(CamFileError, match=r"its pickle is damaged; delete it"):
        camfile.load(path)


def test_a_file_cannot_change_the_reader(path, arrays):
    """A state meant for one of our functions or classes; it would hold for every file read afterwards."""
    poison = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\nN}\x8c\x0c__defaults__)s\x86b."
    write_pickled(path, poison)
    with pytest.raises(CamFileError, match="a state of something else"):
        camfile.load(path)
