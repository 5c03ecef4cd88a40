"""COCO 2014 read from a tiny copy, and what is said when something is not as it must be."""

import argparse
import pickle

import numpy as np
import pytest
from torchvision.models._meta import _COCO_CATEGORIES

import data
from coco14 import CATEGORIES, CLASSES, COCO14, PRESET
from coco14.prepare import prepare
from data.base import Dataset
from data.errors import DataError
from tests.coco_mini import make_coco
from tests.voc_devkit import write_png


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    mini = make_coco(tmp_path_factory.mktemp("coco"))
    prepare(mini.root)
    return mini


@pytest.fixture
def mini(tmp_path):
    mini = make_coco(tmp_path)
    prepare(mini.root)
    return mini


def test_the_80_classes_stand_in_the_official_order_and_the_preset_has_sources():
    official = {i: name for i, name in enumerate(_COCO_CATEGORIES) if i and name != "N/A"}
    assert official == CATEGORIES and list(CATEGORIES) == sorted(CATEGORIES)
    assert len(CLASSES) == 80 and (CLASSES[0], CLASSES[11], CLASSES[79]) == ("person", "stop sign", "toothbrush")
    assert all(source for _, source in PRESET.values())


def test_is_a_dataset(prepared):
    coco = COCO14(prepared.root)
    assert isinstance(coco, Dataset) and coco.name == "coco14" and coco.n_classes == 80 and coco.has_masks
    assert coco.category_ids == tuple(sorted(CATEGORIES)) and coco.category_ids[79] == 90
    assert coco.names("train") == prepared.names["train"] and coco.names("val") == prepared.names["val"]
    with pytest.raises(DataError, match="coco14 has no split 'test'; there are train, val"):
        coco.names("test")
    coco.check_names(prepared.all_names, "all")
    again = pickle.loads(pickle.dumps(coco))  # as in a worker process
    labels = again.labels(prepared.all_names)
    assert labels.shape == (12, 80) and labels.dtype == np.float32 and coco.labels([]).shape == (0, 80)
    order = sorted(CATEGORIES)
    for name, label in zip(prepared.all_names, labels, strict=True):
        assert set(np.flatnonzero(label)) == {order.index(a["category_id"]) for a in prepared.of(name)}
        assert np.array_equal(coco.label(name), label)
    assert np.array_equal(again.mask(prepared.crowded), coco.mask(prepared.crowded))


def test_images_are_found_in_every_folder_under_every_name(prepared):
    coco = COCO14(prepared.root)
    for name in prepared.all_names:
        image = coco.image(name)
        assert image.dtype == np.uint8 and image.shape == (*prepared.sizes[name], 3)
    grey = coco.image(prepared.grey)
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()
    used = {str(path.parent.name) + path.name[:5] for path in prepared.root.rglob("*.jpg")}
    assert {"train2014COCO_", "val2014COCO_", "JPEGImagesCOCO_", "JPEGImages00000", "train201400000"} <= used


def test_lists_may_have_any_form_of_the_name(prepared, tmp_path):
    one, two, three = prepared.names["train"][:3]
    (tmp_path / "list.txt").write_text(
        f"{one}\nCOCO_train2014_{two}.jpg\n/train2014/COCO_train2014_{three}.jpg /x.png\n"
    )
    coco = COCO14(prepared.root)
    assert coco.names_of(str(tmp_path / "list.txt")) == [one, two, three]
    assert coco.names_of(str(prepared.root / "coco14/val.txt")) == prepared.names["val"]


def test_the_masks_of_the_authors_serve_where_there_are_no_others(mini):
    name, other = mini.names["train"][:2]
    mask = COCO14(mini.root).mask(name)
    (mini.root / "coco14/masks").rename(mini.root / "coco14/elsewhere")
    coco = COCO14(mini.root)
    assert not coco.has_masks and coco.mask(name) is None and not coco.has_mask(name) and coco.instances(name) is None
    folder = mini.root / "coco_masks" / "some" / "train2014"
    folder.mkdir(parents=True)
    write_png(folder / f"COCO_train2014_{name}.png", mask)
    coco = COCO14(mini.root)
    assert coco.has_masks and coco.has_mask(name) and not coco.has_mask(other)
    assert np.array_equal(coco.mask(name), mask)


def test_names_that_are_not_there(mini):
    coco = COCO14(mini.root)
    known = mini.names["train"]
    with pytest.raises(DataError, match=r"1 of the 9 names of some\.txt have no image .*: 000000999999"):
        coco.check_names([*known, "000000999999"], "some.txt")
    for name in ("000000999999", "cat"):
        with pytest.raises(DataError, match="coco14 has no image"):
            coco.label(name)
    next(mini.root.rglob(f"*{known[4]}.jpg")).unlink()
    coco = COCO14(mini.root)
    with pytest.raises(DataError, match=rf"1 of the 8 names of train have no image .*: {known[4]}"):
        coco.check_names(known, "train")
    with pytest.raises(DataError, match=rf"{known[4]}\.jpg, also as COCO_train2014_{known[4]}\.jpg .* is in none of"):
        coco.image(known[4])


def test_roots_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r"needs --data_root DIR\. Get COCO 2014 with `python -m data\.download"):
        data.open_dataset(argparse.Namespace(dataset="coco14", data_root=None))
    with pytest.raises(DataError, match="nowhere is not a folder"):
        COCO14(tmp_path / "nowhere")
