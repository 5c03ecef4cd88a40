"""VOC 2012 read from a tiny devkit, and what is said when something in it is not as it must be."""

import argparse
import logging
import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import data
from data.base import Dataset
from data.errors import DataError
from data.images import image_size, read_image, read_mask
from misc.run.options import preset
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


def test_preset_names_known_arguments_and_gives_sources():
    assert set(PRESET) <= set(preset("voc12"))
    assert {key: value for key, (value, _) in PRESET.items()} == {
        "train_list": "train_aug", "infer_list": "train_aug", "eval_list": "train", "val_list": "val"
    }  # fmt: skip
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
        image = voc.image(name)
        assert image.dtype == np.uint8 and image.shape == (*kit.masks[name].shape, 3)
    grey = voc.image(kit.grey)
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()
    with Image.open(kit.folder / "JPEGImages" / f"{kit.names[0]}.jpg") as jpeg:
        assert np.array_equal(voc.image(kit.names[0]), np.array(jpeg.convert("RGB")))


def test_label_counts_difficult_objects_and_no_parts(kit):
    voc = VOC12(kit.root)
    for name in kit.names:
        label = voc.label(name)
        assert label.dtype == np.float32 and set(np.flatnonzero(label)) == kit.labels[name]
        assert set(np.unique(label)) == {0, 1}
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


def test_splits(kit, caplog):
    voc = VOC12(kit.root)
    assert (voc.names("train"), voc.names("val")) == (kit.train, kit.val)
    assert voc.names("trainval") == kit.train + kit.val
    with caplog.at_level(logging.WARNING):
        assert voc.names("train_aug") == voc.names("train_aug") == kit.train_aug
    said = f"SegmentationClassAug gives {len(kit.train_aug)} images for train_aug; the published set has 10,582"
    assert [r.message for r in caplog.records] == [f"{kit.folder}/{said}"]


@pytest.mark.parametrize("split", ["train_aug", "trainaug"])
def test_train_aug_list_wins_over_the_folder(kit, split):
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in kit.extra]
    (kit.folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(lines))
    assert VOC12(kit.root).names("train_aug") == kit.extra


def test_train_aug_of_10582_is_not_remarked_on(kit, caplog):
    (kit.folder / "ImageSets/Segmentation/train_aug.txt").write_text("\n".join(f"x_{i}" for i in range(10_582)))
    with caplog.at_level(logging.WARNING):
        assert len(VOC12(kit.root).names("train_aug")) == 10_582
    assert not caplog.records


def test_train_aug_without_masks_or_list_says_how_to_make_them(kit):
    shutil.rmtree(kit.folder / "SegmentationClassAug")
    with pytest.raises(DataError, match=r"train_aug needs .*python -m voc12\.prepare"):
        VOC12(kit.root).names("train_aug")


def test_unknown_split_lists_those_there(kit):
    with pytest.raises(DataError, match=r"no split 'minival'; .* has train, train_aug, trainval, val\."):
        VOC12(kit.root).names("minival")


def test_test_split_has_neither_labels_nor_masks(kit):
    name = "2008_000001"
    (kit.folder / "ImageSets/Segmentation/test.txt").write_text(f"{name}\n")
    shutil.copy(kit.folder / "Annotations" / f"{kit.names[0]}.xml", kit.folder / "Annotations" / f"{name}.xml")
    voc = VOC12(kit.root)
    assert voc.names("test") == [name] and voc.mask(name) is None
    with pytest.raises(DataError, match="2008_000001 belongs to the test split, which has no labels"):
        voc.label(name)


def test_survives_pickling_for_worker_processes(kit):
    voc = VOC12(kit.root)
    voc.label(kit.names[0])
    again = pickle.loads(pickle.dumps(voc))
    assert np.array_equal(again.labels(kit.names), voc.labels(kit.names))


def test_an_incomplete_root_gives_one_error_with_everything_missing(kit):
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


def test_a_root_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="needs --data_root DIR"):
        data.open_dataset(argparse.Namespace(dataset="voc12", data_root=None))
    with pytest.raises(DataError, match="nowhere is not a folder"):
        VOC12(tmp_path / "nowhere")


def test_check_names_counts_and_shows_the_first(kit):
    voc = VOC12(kit.root)
    voc.check_names(kit.names, "train.txt")
    with pytest.raises(
        DataError, match=r"7 of the 19 names of train\.txt have .*: no_0, no_1, no_2, no_3, no_4 and 2 more"
    ):
        voc.check_names(kit.names + [f"no_{i}" for i in range(7)], "train.txt")


def test_damaged_jpegs_are_named(kit):
    voc = VOC12(kit.root)
    path = kit.folder / "JPEGImages" / f"{kit.names[0]}.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=rf"{kit.names[0]}\.jpg cannot be read as an image .*truncated"):
        voc.image(kit.names[0])
    path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=rf"{kit.names[0]}\.jpg cannot be read as an image"):
        voc.image(kit.names[0])
    with pytest.raises(DataError, match=r"no_such\.jpg does not exist"):
        voc.image("no_such")


def test_sizes_of_image_and_mask_must_agree(kit):
    name = kit.train[0]
    height, width = kit.masks[name].shape
    write_png(kit.folder / "SegmentationClassAug" / f"{name}.png", kit.masks[name].T.copy())
    with pytest.raises(DataError, match=rf"{name}\.png is {height} x {width}, its image is {width} x {height}"):
        VOC12(kit.root).mask(name)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation></annotation>", "names no object"),
        (
            "<annotation><object><name>unicorn</name></object></annotation>",
            "names 'unicorn'; the classes are aeroplane,",
        ),
        ("<annotation><object><part><name>head</name></part></object></annotation>", "names ''; the classes are"),
        ("<annotation><object>", "cannot be read"),
    ],
)
def test_bad_annotations_are_named(kit, xml, message):
    (kit.folder / "Annotations" / f"{kit.names[0]}.xml").write_text(xml)
    with pytest.raises(DataError, match=rf"{kit.names[0]}\.xml {message}"):
        VOC12(kit.root).label(kit.names[0])
    with pytest.raises(DataError, match=r"no_such\.xml does not exist"):
        VOC12(kit.root).label("no_such")


def test_read_mask_of_palette_and_grey(tmp_path):
    mask = np.array([[0, 1, 20], [255, 3, 0]], np.uint8)
    write_png(tmp_path / "p.png", mask)
    Image.fromarray(mask).save(tmp_path / "l.png")
    Image.fromarray(mask.astype(np.uint16)).save(tmp_path / "i16.png")
    for name in ("p", "l", "i16"):
        read = read_mask(tmp_path / f"{name}.png", 20)
        assert read.dtype == np.uint8 and np.array_equal(read, mask)


def test_read_mask_refuses_other_values_colour_and_jpeg(tmp_path):
    write_png(tmp_path / "m.png", np.array([[0, 21], [254, 5]], np.uint8))
    with pytest.raises(DataError, match=r"m\.png holds the value 21; wanted .*1\.\.20"):
        read_mask(tmp_path / "m.png", 20)
    Image.new("RGB", (3, 3)).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match=r"rgb\.png is of mode RGB"):
        read_mask(tmp_path / "rgb.png", 20)
    Image.new("L", (3, 3)).save(tmp_path / "m.jpg")
    with pytest.raises(DataError, match=r"m\.jpg cannot be read as an image .*wanted PNG"):
        read_mask(tmp_path / "m.jpg", 20)
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        read_mask(tmp_path / "none.png", 20)


@pytest.mark.parametrize("bits", [1, 4])
def test_read_mask_refuses_grey_of_few_bits_as_ambiguous(tmp_path, bits):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\x00\x10")) + chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(DataError, match=r"m\.png is .*8-bit grey"):
        read_mask(tmp_path / "m.png", 20)


def test_exif_orientation_is_followed_only_on_request(tmp_path):
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :8] = 255  # bright left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: the left half comes to lie on top
    Image.fromarray(image).save(tmp_path / "x.png", exif=exif)
    assert image_size(tmp_path / "x.png") == (8, 16) and image_size(tmp_path / "x.png", exif=True) == (16, 8)
    assert np.array_equal(read_image(tmp_path / "x.png"), image)
    turned = read_image(tmp_path / "x.png", exif=True)
    assert turned.shape == (16, 8, 3) and (turned[:8] == 255).all() and (turned[8:] == 0).all()


def test_read_image_of_other_modes(tmp_path):
    Image.fromarray(np.array([[0, 65535, 0x8000]], np.uint16)).save(tmp_path / "g16.png")
    assert read_image(tmp_path / "g16.png")[0].tolist() == [[0] * 3, [255] * 3, [128] * 3]
    Image.new("RGBA", (1, 1), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [10, 20, 30]
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "c.jpg")
    assert read_image(tmp_path / "c.jpg").max() < 8
