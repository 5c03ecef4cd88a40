"""The digits of the toy experiment: pictures with and without marks, rendered or MNIST's."""

import json
import struct

import numpy as np
import pytest

from data.base import rng
from data.digits import DIGITS, MARK_GAP, MARK_PX, REGIONS, draw_digit, make_pictures, mark_of
from data.errors import DataError
from tests.helpers import run_cli

DISCRIMINATIVE, NON_DISCRIMINATIVE = REGIONS.index("discriminative"), REGIONS.index("non-discriminative")


def test_digits_are_distinct_and_deterministic():
    first, again, other = (make_pictures("train", 60, 0.1, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.images, again.images)
    everything = [*first.images, *other.images, *make_pictures("test", 60, 0.1, 0).images]
    assert len({image.tobytes() for image in everything}) == 180
    np.testing.assert_array_equal(make_pictures("train", 30, 0.1, 0).images, first.images[:30])
    drawn = [draw_digit(rng(0, i), label) for i in range(20) for label in (0, 1)]
    assert all(digit.max() == 255 and 80 < (digit >= 128).sum() < 1200 for digit in drawn)
    eights, twos = (np.mean([digit >= 128 for digit in drawn[first::2]], axis=0) for first in (1, 0))
    assert np.abs(eights - twos).max() > 0.5  # they are different digits, not the same blot


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 6), (0.0, 0), (1.0, 60)])
def test_so_many_pictures_of_each_class_have_a_mark_free_of_the_digit(fraction, count):
    drawn = make_pictures("train", 60, fraction, 0)
    assert [(drawn.labels == label).sum() for label in (0, 1)] == [30, 30]
    assert [drawn.marked[drawn.labels == label].sum() for label in (0, 1)] == [count / 2, count / 2]
    for i in np.flatnonzero(drawn.marked):
        mark = drawn.regions[i] == NON_DISCRIMINATIVE
        ys, xs = np.nonzero(mark)
        window = tuple(slice(max(0, v.min() - MARK_GAP), v.max() + 1 + MARK_GAP) for v in (ys, xs))
        assert np.ptp(ys) == np.ptp(xs) == MARK_PX - 1 and not (drawn.images[i] * ~mark)[window].any()
        np.testing.assert_array_equal(mark[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1], mark_of(drawn.labels[i]))


def write_mnist(root, n=12):
    """MNIST's four files with n images each: digits 2, 8 and 5 in turn, each a bar that is wider than the last."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = np.array([2, 8, 5], np.uint8)[np.arange(n) % 3]
    images = np.zeros((n, 28, 28), np.uint8)
    for i, digit in enumerate(digits):
        images[i, 4:24, digit : digit + 6 + i] = 200
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + digits.tobytes())


def test_mnist_is_read_from_its_files(tmp_path):
    write_mnist(tmp_path)
    drawn = make_pictures("train", 8, 0.5, 0, str(tmp_path))
    assert [DIGITS[label] for label in drawn.labels] == [2, 8] * 4 and drawn.marked.sum() == 4
    for index, region in zip((0, 1, 3, 4, 6, 7, 9, 10), drawn.regions, strict=True):
        height, width = (np.ptp(v) + 1 for v in np.nonzero(region == DISCRIMINATIVE))
        assert 30 <= height <= 36 and width / height == pytest.approx((6 + index) / 20, abs=0.03)


def test_mnist_is_fetched_by_the_step_only(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr("step.toy._draw", lambda *_: None)  # figures take most of the time
    monkeypatch.setattr("torchvision.datasets.MNIST.download", lambda mnist: fetched.append(mnist.train))
    with pytest.raises(DataError, match="MNIST is incomplete"):
        make_pictures("train", 8, 0.1, 0, str(tmp_path / "none"))
    write_mnist(tmp_path, 60)
    assert fetched == []
    small = "--toy_seeds 1 --toy_train 16 --toy_test 2 --toy_epochs 1 --toy_batch_size 8 --toy_rib_iter 2 --steps toy"
    assert run_cli(*small.split(), "--device", "cpu", "--work_dir", tmp_path, "--mnist_root", tmp_path) == 0
    assert fetched == [True, False]
    assert json.loads((tmp_path / "metrics.json").read_text())["toy"]["digits"] == "MNIST"
