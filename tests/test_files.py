"""Files that are either whole or not there."""

import os

import numpy as np
import pytest
from PIL import Image

from data.files import load_json, save_json, sweep, write_atomic
from data.images import read_mask, save_mask, voc_palette


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, error):
    path, seen = tmp_path / "a" / "b" / "x.bin", []

    def half(file):
        file.write(b"half of")
        raise error("no more")

    def whole(file):
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())

    write_atomic(path, lambda file: file.write(b"old"))
    with pytest.raises(error, match="no more"):
        write_atomic(path, half)
    assert os.listdir(path.parent) == ["x.bin"] and path.read_bytes() == b"old"
    write_atomic(path, whole)
    assert seen == [b"old"] and path.read_bytes() == b"new" and os.listdir(path.parent) == ["x.bin"]


def test_masks_round_trip_with_palette(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32).T
    save_mask(tmp_path / "m.png", mask, voc_palette())
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        colours = np.array(image.convert("RGB")).swapaxes(0, 1).reshape(256, 3)
    # The colours of PASCAL VOC: background, aeroplane, tvmonitor, ignore.
    assert colours[[0, 1, 20, 255]].tolist() == [[0, 0, 0], [128, 0, 0], [0, 64, 128], [224, 224, 192]]


def test_json(tmp_path):
    value = {"b": 1, "a": [1.5, None, "\u00e9"], "c": {"0.15": 0.5}}
    save_json(tmp_path / "x.json", value)
    assert load_json(tmp_path / "x.json") == value and list(load_json(tmp_path / "x.json")) == ["b", "a", "c"]
    assert load_json(tmp_path / "none.json") == {}


def test_temporary_files_of_killed_runs_are_swept(tmp_path):
    (tmp_path / "cam" / "sub").mkdir(parents=True)
    left = [tmp_path / "cam" / ".17.0123456789abcdef.tmp", tmp_path / "cam" / "sub" / ".9.fedcba9876543210.tmp"]
    kept = [tmp_path / "cam" / name for name in ("x.npy", "mine.tmp", ".17.tmp", ".made_by.json")]
    for path in left + kept:
        path.write_bytes(b"")
    assert sweep(tmp_path) == 2
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
