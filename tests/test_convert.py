"""Exports of annotation tools as folder datasets: labels, masks and splits, and questions instead of guesses."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

import data.convert
from data.convert import main
from data.errors import DataError
from data.folder import Folder
from tests.exports_mini import (
    ALL,
    CLASSES,
    EXPORTS,
    KINDS,
    NAMES,
    SIZE,
    SPLIT,
    coco,
    cvat,
    labelme,
    png,
    polygon,
    true_mask,
    write_image,
    write_json,
    write_xml,
)  # fmt: skip
from tests.folder_mini import labels_of


def convert(capsys, source, target, *arguments, code=0):
    assert main([str(source), "--data_root", str(target), "--num_workers", "0", *arguments]) == code
    out, err = capsys.readouterr()
    assert err.count("\n") == (code != 0), err
    return err if code else out


def xml_in_another_folder(root):
    for i in ALL:
        write_image(root / f"photos/{NAMES[i]}.jpg", i)
        write_xml(root / f"xml/{NAMES[i]}.xml", i, f"{NAMES[i - 1]}.jpg" if i % 2 else "")


def images_in_another_place(root):
    cvat(root)
    (root / "JPEGImages").rename(root.parent / "apart")


def originals_of_label_studio(root):
    value = coco(ALL, lambda i: f"../../data/upload/3/{i:08x}-{NAMES[i]}.jpg", polygon)
    for entry in value["images"]:
        entry.update(height=32.0, width=40.0)
    value["annotations"].append({"id": 999, "image_id": 888, "category_id": 0})
    write_json(root / "result.json", value)
    for i in ALL:
        write_image(root.parent / f"apart/{NAMES[i]}.jpg", i)


PLACES = [
    (xml_in_another_folder, "photos/{}", False, None),
    (images_in_another_place, "cam1/{}", True, lambda i: "train" if i < 6 else "val"),
    (originals_of_label_studio, "{}", True, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "form", "masks", "split"), EXPORTS + PLACES, ids=lambda value: getattr(value, "__name__", None)
)
def test_every_export_gives_the_same_labels_masks_and_splits(make, form, masks, split, tmp_path, capsys):
    make(tmp_path / "export")
    arguments = ["--images", str(tmp_path / "apart")] if (tmp_path / "apart").exists() else []
    table = convert(capsys, tmp_path / "export", tmp_path / "own", *arguments)
    folder = Folder(tmp_path / "own")
    half = [("a", "train"), ("b", "val")]
    names = [form.format(NAMES[i], SPLIT[i % 4], i, *half[i // 5], i % 5) for i in ALL]
    assert sorted(names) == folder.names("all") and sorted(folder.classes) == sorted(CLASSES)
    assert folder.has_masks == masks and f"images{len(ALL):>27}  2 of them without any class" in table
    assert labels_of(folder) == {name: set(KINDS[i]) for i, name in enumerate(names)}
    unlisted = "1 images that result.json has labels for, but does not list: 888"
    assert (unlisted in table) == (make is originals_of_label_studio)
    for i, name in enumerate(names):
        assert folder.image(name).shape == (*SIZE, 3)
        if masks:
            value = np.array([0, *(1 + folder.classes.index(word) for word in CLASSES)], np.uint8)
            np.testing.assert_array_equal(folder.mask(name), value[true_mask(i)])
    for k in ("train", "val", "test"):
        wanted = [name for i, name in enumerate(names) if split and split(i).replace("valid", "val") == k]
        path = folder.root / "splits" / f"{k}.txt"
        assert sorted(folder.names(k) if path.is_file() else []) == sorted(wanted)
    assert f"next: python run_sample.py --dataset folder --data_root {folder.root} --check_data" in table


KINDS_OF = {name: set(kinds) for name, kinds in zip(NAMES, KINDS, strict=True)}


def vectors(root, names, key=str, classes=None):
    """cls_labels.npy of images called `names`; the classes are 1 and 3 of four."""
    for i, name in enumerate(names):
        write_image(root / f"JPEGImages/{name}.jpg", i)
    of = {key(name): np.float32([0, "apple" in KINDS[i], 0, "leaf" in KINDS[i]]) for i, name in enumerate(names)}
    np.save(root / "cls_labels.npy", of)
    if classes:
        (root / "class_names.txt").write_text("".join(f"{name}\n" for name in classes))


def test_vectors_of_labels(tmp_path, capsys):
    asked = ("stone", "apple", "sky", "leaf")
    vectors(tmp_path / "a", NAMES, classes=("_background_", *asked))
    numbers = [f"2031_{i:06d}" for i in ALL]
    vectors(tmp_path / "b", numbers, key=lambda name: int(name.replace("_", "")))
    lists = tmp_path / "b/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for k, part in (("train", numbers[:6]), ("val", numbers[6:]), ("train_aug", numbers[2:6])):
        (lists / f"{k}.txt").write_text("".join(f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png\n" for n in part))
    table = convert(capsys, tmp_path / "a", tmp_path / "own_a")
    assert labels_of(Folder(tmp_path / "own_a")) == KINDS_OF
    assert "left out: 2 classes that no image has: stone, sky" in table
    asks = convert(capsys, tmp_path / "b", tmp_path / "own_b", code=2)
    assert "cls_labels.npy has 4 labels for an image, and no classes are named; add --classes NAME,NAME" in asks
    assert "and 3 classes are named" in convert(capsys, tmp_path / "b", tmp_path / "x", "--classes", "a,b,c", code=2)
    convert(capsys, tmp_path / "b", tmp_path / "own_b", "--classes", ",".join(asked))
    folder = Folder(tmp_path / "own_b")
    assert labels_of(folder) == {numbers[i]: set(KINDS[i]) for i in ALL} and folder.classes == CLASSES
    assert [folder.names(k) for k in ("train", "val", "train_aug")] == [numbers[:6], numbers[6:], numbers[2:6]]


def sort_into(root, folders):
    """folder -> numbers of images."""
    for folder, numbers in folders.items():
        for i in numbers:
            write_image(root / folder / f"{NAMES[i]}.jpg", i)


def test_a_folder_per_class(tmp_path, capsys):
    of = {name: [i for i in ALL if name in KINDS[i]] for name in CLASSES}
    sort_into(tmp_path / "a", of)
    table = convert(capsys, tmp_path / "a", tmp_path / "own")
    got = labels_of(Folder(tmp_path / "own"))
    assert sorted(map(sorted, got.values())) == sorted(sorted(kinds) for kinds in KINDS if kinds)
    assert "3 images lie in the folders of several classes" in table
    split = {"train/apple": [0], "train/leaf": [1, 5], "validation/leaf": [8], "validation/apple": [4]}
    sort_into(tmp_path / "b/set", split)
    convert(capsys, tmp_path / "b", tmp_path / "own_b")
    folder = Folder(tmp_path / "own_b")
    assert folder.names("val") == ["set/validation/apple/orchard 004", "set/validation/leaf/orchard_008"]
    assert labels_of(folder)["set/train/leaf/orchard_005"] == {"leaf"} and len(folder.names("train")) == 3


DOUBTS = [
    (("apple", "leaf", "Normal"), r"'Normal' may mean that .* no object. If so add --classes apple,leaf, else",
     "apple,leaf", [{"apple"}, {"leaf"}, set()]),
    (("apple", "leaf", "Leaf"), r"may be one class. If so add --classes Leaf,apple, else", "apple,leaf",
     [{"apple"}, {"leaf"}, {"leaf"}]),
    (("apple", "leaf", "apple + leaf"), r"'apple \+ leaf' may mean apple and leaf together", "apple,leaf",
     [{"apple"}, {"leaf"}, {"apple", "leaf"}]),
    (("0", "1"), r"'0' may only say whether an object is there. If so add --classes 1, else --classes 0,1", "1",
     [set(), {"1"}]),
    (("apple", "leaf", "none"), r"'none' may mean", "leaf,none,apple", [{"apple"}, {"leaf"}, {"none"}]),
]  # fmt: skip


@pytest.mark.parametrize(("folders", "question", "answer", "wanted"), DOUBTS)
def test_what_is_doubtful_is_asked(folders, question, answer, wanted, tmp_path, capsys):
    sort_into(tmp_path / "source", {name: [i] for i, name in enumerate(folders)})
    with pytest.raises(DataError, match=question):
        data.convert.convert(tmp_path / "source", tmp_path / "own")
    convert(capsys, tmp_path / "source", tmp_path / "own", "--classes", answer)
    got = labels_of(Folder(tmp_path / "own"))
    assert [got[f"{name}/{NAMES[i]}"] for i, name in enumerate(folders)] == wanted


def test_objects_without_segmentation_leave_their_image_without_mask(tmp_path, capsys):
    """Every value that stands for none; what is segmented are boxes, which is said."""
    none = [[], None, [[]], [[1, 2, 3, 4]], {}]
    box = [[3, 5, 15, 5, 15, 19, 3, 19]]
    value = coco(ALL, lambda i: f"{NAMES[i]}.jpg", lambda shape, i: none[i] if i < 5 else box)
    del value["annotations"][0]["segmentation"]
    value["images"].append({"id": 99, "file_name": "gone.jpg"})
    write_json(tmp_path / "labels/export.json", value)
    for i in ALL:
        write_image(tmp_path / f"photos/{NAMES[i]}.jpg", i)
    table = convert(capsys, tmp_path / "labels/export.json", tmp_path / "own", "--images", str(tmp_path / "photos"))
    folder = Folder(tmp_path / "own")
    assert labels_of(folder) == KINDS_OF
    assert [folder.has_mask(name) for name in NAMES] == [not kinds or i >= 5 for i, kinds in enumerate(KINDS)]
    assert np.array_equal(np.argwhere(folder.mask(NAMES[8]) == 2)[[0, -1]], [[5, 3], [18, 14]])
    assert "the masks are boxes" in table and "1 images of export.json that are not there, or twice: gone.jpg" in table


def test_shapes_and_flags_of_labelme(tmp_path, capsys):
    small = true_mask(2)[7:21, 5:17] > 0
    shapes = [
        {"label": "leaf", "points": [[30, 20], [10, 2]], "shape_type": "rectangle"},
        {"label": "apple", "points": [[24, 11], [24, 16]], "shape_type": "circle"},
        {"label": "__ignore__", "points": [[0, 25], [40, 25], [40, 32], [0, 32]]},
        {"label": "stone", "points": [[5, 7], [16, 20]], "shape_type": "mask", "mask": png(small)},
    ]
    lines = [{"label": "leaf", "points": [[1, 1], [9, 9]], "shape_type": "line"}]
    for i, value in enumerate((labelme(0, "0.jpg", shapes=shapes), labelme(1, "1.jpg", shapes=lines))):
        write_json(tmp_path / f"a/{i}.json", value)
        write_image(tmp_path / f"a/{i}.jpg", i)
        flags = {"apple": not i, "leaf": True, "stone": False}
        write_json(tmp_path / f"b/{i}.json", labelme(i, f"{i}.jpg", embed=True, shapes=[]) | {"flags": flags})
    convert(capsys, tmp_path / "a", tmp_path / "own")
    folder = Folder(tmp_path / "own")
    assert labels_of(folder) == {"0": {"leaf", "apple", "stone"}, "1": {"leaf"}} and not folder.has_mask("1")
    mask = folder.mask("0")
    leaf, apple, stone = (1 + folder.classes.index(name) for name in ("leaf", "apple", "stone"))
    assert mask[3, 29] == leaf and mask[11, 27] == apple and mask[5, 24] == leaf and (mask[25:] == 255).all()
    assert abs((mask == apple).sum() - np.pi * 25) < 4 and np.array_equal(mask[7:21, 5:17] == stone, small)
    convert(capsys, tmp_path / "b", tmp_path / "flags")
    assert labels_of(Folder(tmp_path / "flags")) == {"0": {"apple", "leaf"}, "1": {"leaf"}}


def test_white_masks_of_one_class_and_names_in_two_forms(tmp_path, capsys):
    for i in (0, 3, 4):
        write_image(tmp_path / f"a/images/{i}.jpg", i)
        (tmp_path / "a/masks").mkdir(exist_ok=True)
        Image.fromarray((true_mask(i) > 0).astype(np.uint8) * 255).save(tmp_path / f"a/masks/{i}.png")
    (tmp_path / "a/classes.txt").write_text("apple\n")
    assert "0 and 255: 255 is read as apple" in convert(capsys, tmp_path / "a", tmp_path / "own_a")
    folder = Folder(tmp_path / "own_a")
    assert labels_of(folder) == {"0": {"apple"}, "3": set(), "4": {"apple"}}
    assert np.array_equal(folder.mask("4"), true_mask(4) > 0)
    for i, form in enumerate(("NFC", "NFD")):  # as Linux and macOS write one name
        write_image(tmp_path / "b" / ("train", "val")[i] / unicodedata.normalize(form, "Äpfel") / "1.jpg", i)
    write_image(tmp_path / "b/train/leaf/1.png", 2)
    convert(capsys, tmp_path / "b", tmp_path / "own_b")
    assert labels_of(Folder(tmp_path / "own_b")) == {
        "train/Äpfel/1": {"Äpfel"}, "val/Äpfel/1": {"Äpfel"}, "train/leaf/1": {"leaf"}
    }  # fmt: skip
    names = ("x.jpg", "x.png", "x_2.jpg")  # one name for two images
    for i, name in enumerate(names):
        write_image(tmp_path / f"c/{name}", i)
    write_json(tmp_path / "c/labels.json", coco([0, 1, 2], lambda i: names[i]))
    convert(capsys, tmp_path / "c", tmp_path / "own_c")
    assert labels_of(Folder(tmp_path / "own_c")) == {"x": {"apple"}, "x_2": {"leaf"}, "x_2_2": {"apple", "leaf"}}
