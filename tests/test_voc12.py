"""VOC 2012 read from a tiny devkit, and what is said when something in it is not as it must be."""

import argparse
import logging
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

import data
from data.base import Dataset
from data.errors import DataError
from data.images import read_mask
from tests.voc_devkit import make_devkit, write_png
from voc12 import CLASSES, PRESET, VOC12


@pytest.fixture
def kit(tmp_path):
    return make_devkit(tmp_path)


def test_is_a_dataset_with_the_20_classes_in_voc_order(kit):
    voc = VOC12(kit.root)
    assert isinstance(voc, Dataset) and voc.name == "voc12" and voc.n_classes == 20
    assert voc.classes[0] == "aeroplane" and voc.classes[14] == "person" and voc.classes[19] == "tvmonitor"
    assert list(CLASSES) == sorted(CLASSES)
    assert all(source for _, source in PRESET.values())


@pytest.mark.parametrize("layout", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_finds_the_devkit_from_any_level(kit, layout):
    assert VOC12(kit.root / layout).folder == kit.folder


@pytest.mark.parametrize("level", ["", "VOC2012_SEG_AUG"])
def test_finds_the_flat_layout_and_takes_labels_from_masks(kit, level, caplog):
    flat = kit.root / "flat"
    shutil.copytree(kit.folder, flat / "VOC2012_SEG_AUG")
    for folder in ("Annotations", "SegmentationClass", "SegmentationObject"):
        shutil.rmtree(flat / "VOC2012_SEG_AUG" / folder)
    voc = VOC12(flat / level)
    with caplog.at_level(logging.WARNING):
        labels = voc.labels(kit.names)
    for name, label in zip(kit.names, labels, strict=True):
        assert set(np.flatnonzero(label) + 1) == set(np.unique(kit.masks[name])) - {0, 255}
    assert [r.message for r in caplog.records if "read from the masks" in r.message] == [caplog.records[0].message]
    assert voc.instances(kit.train[0]) is None


def test_image_is_rgb_uint8_and_grey_becomes_three_equal_channels(kit):
    voc = VOC12(kit.root)
    for name in kit.names:
        with Image.open(kit.folder / "JPEGImages" / f"{name}.jpg") as jpeg:
            np.testing.assert_array_equal(voc.image(name), np.array(jpeg.convert("RGB")), strict=True)
    assert (np.ptp(voc.image(kit.grey), axis=2) == 0).all()


def test_labels_count_difficult_objects_and_no_parts(kit):
    voc = VOC12(kit.root)
    labels = pickle.loads(pickle.dumps(voc)).labels(kit.names)  # as in a worker process
    assert labels.dtype == np.float32 and set(np.unique(labels)) == {0, 1}
    for name, label in zip(kit.names, labels, strict=True):
        assert set(np.flatnonzero(label)) == kit.labels[name] and np.array_equal(voc.label(name), label)
    only_difficult = [c for n in kit.names for c in kit.labels[n] if not (kit.masks[n] == c + 1).any()]
    assert only_difficult  # the devkit does hold classes that only a difficult object has


def test_mask_prefers_the_augmented_one_and_may_be_missing(kit):
    voc = VOC12(kit.root)
    for name in kit.names:
        assert np.array_equal(voc.mask(name), kit.masks[name])
    name = kit.train[0]
    other = np.full_like(kit.masks[name], 9)
    write_png(kit.folder / "SegmentationClassAug" / f"{name}.png", other)
    assert (voc.mask(name) == 9).all()
    (kit.folder / "SegmentationClassAug" / f"{name}.png").unlink()
    assert np.array_equal(voc.mask(name), kit.masks[name])
    (kit.folder / "SegmentationClassAug" / f"{kit.extra[0]}.png").unlink()
    assert voc.mask(kit.extra[0]) is None


def test_instances(kit):
    voc = VOC12(kit.root)
    for name in kit.train + kit.val:
        instances, values = voc.instances(name)
        assert np.array_equal(instances, kit.instances[name][0]) and np.array_equal(values, kit.instances[name][1])
        assert instances.dtype == values.dtype == np.uint8
    assert voc.instances(kit.extra[0]) is None


@pytest.mark.parametrize("split", ["train_aug", "trainaug"])
def test_splits_and_a_list_of_train_aug_wins_over_the_folder(kit, split, caplog):
    voc = VOC12(kit.root)
    assert (voc.names("train"), voc.names("val")) == (kit.train, kit.val)
    assert voc.names("trainval") == kit.train + kit.val
    with caplog.at_level(logging.WARNING):
        assert voc.names("train_aug") == voc.names("train_aug") == kit.train_aug
    said = f"SegmentationClassAug gives {len(kit.train_aug)} images for train_aug; the published set has 10,582"
    assert [r.message for r in caplog.records] == [f"{kit.folder}/{said}"]
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in kit.extra]
    (kit.folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(lines))
    assert VOC12(kit.root).names("train_aug") == kit.extra


def test_test_split_has_neither_labels_nor_masks(kit):
    name = "2008_000001"
    (kit.folder / "ImageSets/Segmentation/test.txt").write_text(f"{name}\n")
    shutil.copy(kit.folder / "Annotations" / f"{kit.names[0]}.xml", kit.folder / "Annotations" / f"{name}.xml")
    voc = VOC12(kit.root)
    assert voc.names("test") == [name] and voc.mask(name) is None
    with pytest.raises(DataError, match="2008_000001 belongs to the test split, which has no labels"):
        voc.label(name)


def test_an_incomplete_root_gives_one_error_with_everything_missing(kit, tmp_path):
    for folder in ("Annotations", "SegmentationClass", "SegmentationClassAug", "JPEGImages"):
        shutil.rmtree(kit.folder / folder)
    (kit.folder / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(DataError) as error:
        VOC12(kit.root)
    for word in ("no JPEGImages", "no Annotations", "no ImageSets/Segmentation/val.txt", "data.download voc2012"):
        assert word in str(error.value)
    assert "no ImageSets/Segmentation/train.txt" not in str(error.value) and str(kit.folder) in str(error.value)
    with pytest.raises(DataError, match=f"--data_root {kit.root}`"):  # not into the devkit that is there
        VOC12(kit.folder)
    with pytest.raises(DataError, match="needs --data_root DIR"):
        data.open_dataset(argparse.Namespace(dataset="voc12", data_root=None))
    with pytest.raises(DataError, match="nowhere is not a folder"):
        VOC12(tmp_path / "nowhere")


def no_masks(kit):
    shutil.rmtree(kit.folder / "SegmentationClassAug")


def xml(text):
    return lambda kit: (kit.folder / "Annotations" / f"{kit.names[0]}.xml").write_text(text)


def turned_mask(kit):
    write_png(kit.folder / "SegmentationClassAug" / f"{kit.names[0]}.png", kit.masks[kit.names[0]].T.copy())


UNICORN = "<annotation><object><name>unicorn</name></object></annotation>"
BAD = [
    (None, "names", "minival", r"no split 'minival'; .* has train, train_aug, trainval, val\."),
    (no_masks, "names", "train_aug", r"train_aug needs .*python -m voc12\.prepare"),
    (turned_mask, "mask", None, r"\.png is (\d+) x (\d+), its image is \2 x \1"),
    (None, "label", "no_such", r"no_such\.xml does not exist"),
    (xml("<annotation></annotation>"), "label", None, r"\.xml names no object"),
    (xml(UNICORN), "label", None, r"\.xml names 'unicorn'; the classes are aeroplane,"),
]


@pytest.mark.parametrize(("damage", "method", "name", "message"), BAD)
def test_what_is_wrong_is_named(kit, damage, method, name, message):
    if damage:
        damage(kit)
    with pytest.raises(DataError, match=message if name else kit.names[0] + message):
        getattr(VOC12(kit.root), method)(name or kit.names[0])


def test_read_mask_of_palette_and_grey(tmp_path):
    mask = np.array([[0, 1, 20], [255, 3, 0]], np.uint8)
    write_png(tmp_path / "p.png", mask)
    Image.fromarray(mask).save(tmp_path / "l.png")
    Image.fromarray(mask.astype(np.uint16)).save(tmp_path / "i16.png")
    Image.fromarray(mask).convert("RGBA").save(tmp_path / "rgba.png")
    for name in ("p", "l", "i16", "rgba"):
        read = read_mask(tmp_path / f"{name}.png", 20)
        assert read.dtype == np.uint8 and np.array_equal(read, mask)
    Image.fromarray(mask > 0).save(tmp_path / "bit.png")
    assert np.array_equal(read_mask(tmp_path / "bit.png", 20), mask > 0)


def test_read_mask_refuses_other_values_and_colours(tmp_path):
    write_png(tmp_path / "m.png", np.array([[0, 21], [254, 5]], np.uint8))
    with pytest.raises(DataError, match=r"m\.png holds the value 21; wanted .*1\.\.20"):
        read_mask(tmp_path / "m.png", 20)
    Image.new("RGB", (3, 3), (128, 0, 0)).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match=r"rgb\.png is of mode RGB, in colours; .* reads colours by a labelmap\.txt"):
        read_mask(tmp_path / "rgb.png", 20)
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        read_mask(tmp_path / "none.png", 20)
