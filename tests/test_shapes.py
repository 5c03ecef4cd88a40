"""The embedded dataset: what an image depends on, and that masks, labels and instances agree."""

import argparse

import numpy as np
import pytest

import data
from data.errors import DataError
from data.shapes import INFER, Shapes

N = 300
NAMES = [f"train_{i:05d}" for i in range(N)]


@pytest.fixture(scope="module")
def shapes():
    return Shapes(n_train=N, n_val=5, size=48)  # small, so that there can be many


def everything(dataset, name):
    return [dataset.image(name), dataset.mask(name), dataset.label(name), *dataset.instances(name)]


def test_names_and_kinds(shapes):
    assert shapes.names("train") == NAMES and shapes.names("val") == [f"val_{i:05d}" for i in range(5)]
    assert shapes.names("infer") == NAMES[:INFER] and Shapes(n_train=3).names("infer") == NAMES[:3]
    image, mask, label, instances, values = everything(shapes, "train_00000")
    assert image.shape == (48, 48, 3) and mask.shape == instances.shape == (48, 48)
    assert label.shape == (6,) and label.dtype == np.float32 and shapes.n_classes == 6
    assert {a.dtype for a in (image, mask, instances, values)} == {np.dtype(np.uint8)}


def test_an_image_depends_on_seed_split_index_and_size_only(shapes):
    few = Shapes(n_train=2, n_val=1, size=48)
    for name in ("val_00000", "train_00001"):
        assert all(map(np.array_equal, everything(few, name), everything(shapes, name)))
    others = Shapes(size=48, seed=1).image("train_00001"), shapes.image("val_00001"), shapes.image("train_00002")
    assert all((shapes.image("train_00001") != other).mean() > 0.5 for other in others)


def test_labels_and_instances_agree_with_the_mask(shapes):
    for name in NAMES:
        _, mask, label, instances, values = everything(shapes, name)
        in_mask = set(np.unique(mask)) - {0}
        assert in_mask == set(np.flatnonzero(label) + 1) and in_mask
        assert set(np.unique(instances)) - {0} == set(range(1, len(values) + 1))
        np.testing.assert_array_equal(np.concatenate([[0], values])[instances], mask)
    np.testing.assert_array_equal(shapes.labels(NAMES[:3]), [shapes.label(name) for name in NAMES[:3]])


def test_classes_are_balanced_and_objects_stand_out(shapes):
    counts = shapes.labels(NAMES).sum(0)
    assert counts.min() > N / 6 * 0.6 and counts.max() < N / 6 * 1.6
    apart = 0
    for name in NAMES[:50]:
        image, mask = shapes.image(name).astype(float), shapes.mask(name) > 0
        apart += np.abs(image[mask].mean(0) - image[~mask].mean(0)).max() > 15
    assert apart >= 45  # nine in ten by their colour; else there would be nothing to learn from a mask


def touch(instances):
    """Whether pixels of two different instances lie side by side."""
    pairs = ((instances[1:], instances[:-1]), (instances[:, 1:], instances[:, :-1]))
    return any(((a != b) & (a > 0) & (b > 0)).any() for a, b in pairs)


def test_several_objects_touching_and_of_one_class_occur(shapes):
    several = [shapes.instances(name) for name in NAMES if len(shapes.instances(name)[1]) > 1]
    touching = sum(touch(instances) for instances, _ in several)
    classes = [(len(values), len(set(values))) for _, values in several]
    assert 0.03 * N < len(several) < 0.2 * N and 0 < touching < len(several)
    assert max(objects for objects, _ in classes) == 3
    assert any(kinds < objects for objects, kinds in classes) and any(kinds > 1 for _, kinds in classes)


@pytest.mark.parametrize("size", [32, 75, 160])
def test_other_sizes(size):
    image, mask, label, _, _ = everything(Shapes(size=size), "val_00000")
    assert image.shape == (size, size, 3) and mask.shape == (size, size)
    assert set(np.unique(mask)) - {0} == set(np.flatnonzero(label) + 1)
    # The layout scales with the side: an object covers the same part, within the waves of its outline.
    assert (mask > 0).mean() == pytest.approx((Shapes(size=96).mask("val_00000") > 0).mean(), abs=0.15)


def test_mistakes_are_named(shapes):
    with pytest.raises(DataError, match="no split 'test'; there are train, val, infer"):
        shapes.names("test")
    for name in ("test_00000", "train_x", "00001"):
        with pytest.raises(DataError, match="which shapes does not have; names look like train_00000"):
            shapes.image(name)
    with pytest.raises(DataError, match=r"^my\.txt names 'cat'"):
        shapes.check_names(["train_00000", "cat"], "my.txt")
    with pytest.raises(DataError, match="--shapes_size is 31"):
        Shapes(size=31)


def test_open_dataset_and_image_names(tmp_path):
    (tmp_path / "list.txt").write_text("train_00002\n\n/JPEGImages/val_00001.jpg /Masks/val_00001.png\n")
    args = argparse.Namespace(
        dataset="shapes", shapes_train=4, shapes_val=2, shapes_size=40, seed=3, limit=2, train_list="train",
        val_list=str(tmp_path / "list.txt"), infer_list="nowhere", eval_list=str(tmp_path / "no.txt"), bad_images={},
    )  # fmt: skip
    dataset = data.open_dataset(args)
    assert np.array_equal(dataset.image("train_00000"), Shapes(size=40, seed=3).image("train_00000"))
    assert data.image_names(args, dataset, "train") == ["train_00000", "train_00001"]
    assert data.image_names(args, dataset, "val") == ["train_00002", "val_00001"]
    with pytest.raises(DataError, match="no split 'nowhere'"):
        data.image_names(args, dataset, "infer")
    with pytest.raises(DataError, match=r"no\.txt does not exist"):
        data.image_names(args, dataset, "eval")
