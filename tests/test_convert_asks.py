"""The command data.convert: what it links, what it refuses in one line, and which errors of the datasets lead to it."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

import data.convert
from coco14.prepare import main as prepare_coco
from data.convert import convert, main
from data.errors import DataError
from data.folder import Folder
from tests.exports_mini import (
    ALL,
    NAMES,
    SIZE,
    coco,
    cvat,
    labelme,
    labelme_embedded,
    labelme_voc,
    polygon,
    roboflow_coco,
    true_mask,
    write_image,
    write_json,
    write_xml,
)  # fmt: skip
from tests.folder_mini import make_folder
from tests.helpers import said


def test_images_are_linked_or_copied_and_the_check_of_the_data_is_content(tmp_path):
    cvat(tmp_path / "cvat")
    image = tmp_path / f"cvat/JPEGImages/cam1/{NAMES[0]}.jpg"
    for k, arguments in enumerate(([], ["--copy"])):
        root = tmp_path / f"own {k}"
        assert main([str(tmp_path / "cvat"), "--data_root", str(root), "--num_workers", "2", *arguments]) == 0
        linked = root / f"images/cam1/{NAMES[0]}.jpg"
        assert os.path.samefile(linked, image) == (k == 0) and linked.read_bytes() == image.read_bytes()
        told = said("--dataset", "folder", "--data_root", str(root), "--check_data", "--num_workers", "0")
        assert "nothing is wrong" in told and re.search(r"--val_list +4\n", told)


def test_where_hard_links_do_not_work_links_are_symbolic(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.chdir(tmp_path)
    labelme_voc(tmp_path / "voc")
    convert(data.convert.Path("voc"), data.convert.Path("own"))
    link = tmp_path / f"own/images/{NAMES[0]}.jpg"
    assert link.is_symlink() and os.path.isabs(os.readlink(link))
    assert Folder(tmp_path / "own").image(NAMES[0]).shape == (*SIZE, 3)


def test_masks_drawn_on_an_image_as_it_lies_in_its_file_are_turned_with_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees, clockwise
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a/x.jpg", exif=exif)
    write_json(tmp_path / "a/labels.json", coco([2], lambda i: "x.jpg", polygon))
    convert(tmp_path / "a", tmp_path / "own")
    folder = Folder(tmp_path / "own")
    assert folder.image("x").shape[:2] == SIZE[::-1]
    assert np.array_equal(folder.mask("x"), np.rot90(true_mask(2), -1))


def test_masks_and_images_that_do_not_fit_are_left_out_and_named(tmp_path):
    labelme_voc(tmp_path / "a")
    masks = tmp_path / "a/SegmentationClassPNG"
    for i, array in enumerate(
        (np.full(SIZE, 3, np.uint8), np.zeros((8, 9), np.uint8), np.full((*SIZE, 3), 7, np.uint8))
    ):
        Image.fromarray(array).save(masks / f"{NAMES[i]}.png")
        write_xml(tmp_path / f"a/Annotations/{NAMES[i]}.xml", i)
    (masks / f"{NAMES[3]}.png").write_bytes(b"")
    (tmp_path / f"a/JPEGImages/{NAMES[5]}.jpg").write_bytes(b"")
    write_image(tmp_path / "a/JPEGImages/new.jpg", 0)
    table = convert(tmp_path / "a", tmp_path / "own")
    folder = Folder(tmp_path / "own")
    assert folder.names("all") == sorted(set(NAMES) - {NAMES[3], NAMES[5]})
    assert {name for name in folder.names("all") if not folder.has_mask(name)} == set(NAMES[:3])
    assert "orchard_000.png has the value 3, which is that of no class" in table
    assert "is 9 x 8, its image is 40 x 32" in table and "has the colour (7, 7, 7), which is that of no class" in table
    assert "left out: 1 images, whose mask is their only label" in table and "left out: 1 images: " in table
    assert "left out: 1 images that no label is for: new.jpg" in table and f"masks{5:>28}  the other" in table


def empty(root):
    root.mkdir()


def one_image(root):
    write_image(root / "a.jpg", 0)


def semicolon(root):
    for i, name in enumerate(("a;b", "c")):
        write_image(root / name / "x.jpg", i)


COCO = coco(ALL, lambda i: f"{NAMES[i]}.jpg", polygon)
NO_IMAGE = labelme(0, "gone.jpg") | {"imageData": "AAAA"}
REFUSED = [  # what makes a source, what is written to (None: removed from) it then, message
    (one_image, {}, r"has 1 images, but no labels that are known here; wanted"),
    (make_folder, {}, r"has a labels\.csv: no need to convert it, use --dataset folder --data_root"),
    (
        labelme_voc,
        {"train.json": COCO},
        r"formats: Pascal VOC \(Segm.*, --format voc\) and COCO \(train\.json, --form",
    ),
    (labelme_voc, {"class_names.txt": None}, r"has 10 masks, but nothing that says what their values mean; add --clas"),
    (empty, {"result.json": COCO}, r"source holds COCO labels, but no image; add --images DIR, where they lie"),
    (
        one_image,
        {"x.json": COCO},
        r"no image has a label that can be used: 10 images of x\.json that are not there",
    ),
    (
        one_image,
        {"x.json": '{"images": ['},
        r"x\.json is not valid JSON \(Expecting value.*\); export it again",
    ),
    (one_image, {"x.json": COCO | {"categories": COCO["categories"][:1]}}, r"x\.json is damaged \(KeyError: '1'\)"),
    (one_image, {"a.xml": "<annotation>"}, r"a\.xml cannot be read \(no element found"),
    (empty, {"a.json": NO_IMAGE}, r"a\.json holds an image that cannot be read"),
    (one_image, {"cls_labels.npy": "no array"}, r"cls_labels\.npy is not a dict of image name -> vector of labels"),
    (semicolon, {}, r"class 'a;b' has a semicolon, which separates classes"),
]


@pytest.mark.parametrize(("make", "files", "message"), REFUSED)
def test_what_cannot_be_read_is_one_line_and_nothing_is_written(make, files, message, tmp_path):
    make(tmp_path / "source")
    for name, content in files.items():
        path = tmp_path / "source" / name
        if content is None:
            path.unlink()
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message) as error:
        convert(tmp_path / "source", tmp_path / "own")
    assert "\n" not in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nothing_is_overwritten_and_what_was_interrupted_is_removed(tmp_path, monkeypatch):
    labelme_embedded(tmp_path / "source")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/mine.txt").write_text("")
    with pytest.raises(DataError, match="own exists and is not empty; name a new folder"):
        convert(tmp_path / "source", tmp_path / "own")
    with pytest.raises(DataError, match=r"names aple; the labels have apple, leaf$"):
        convert(tmp_path / "source", tmp_path / "new", given=["aple"])
    with pytest.raises(DataError, match=r"gone is neither a folder nor a JSON file; wanted VOC"):
        convert(tmp_path / "gone", tmp_path / "new")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(data.convert, "save_mask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "source", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == ["mine.txt"] and not (tmp_path / "new").exists()
    monkeypatch.undo()
    (tmp_path / ".new.unfinished/images").mkdir(parents=True)  # of a run that was killed
    convert(tmp_path / "source", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "own", "source"]
    for path in tmp_path.glob("source/json/*.json"):
        path.unlink()
    for name in ("apple", "leaf"):
        (tmp_path / f"source/{name}").mkdir()
        (tmp_path / f"source/{name}/x.jpg").write_bytes(name.encode())
    with pytest.raises(DataError, match=r"no image can be used: 2 images \(.*x\.jpg cannot be read as an image"):
        convert(tmp_path / "source", tmp_path / "bad")


@pytest.mark.parametrize(("make", "datasets"), [(cvat, ("voc12", "folder")), (roboflow_coco, ("coco14", "folder"))])
def test_the_errors_of_other_datasets_lead_here(make, datasets, tmp_path):
    root = tmp_path / "my data"
    make(root)
    for dataset in datasets:
        told = said("--dataset", dataset, "--data_root", str(root), "--check_data", code=2)
        assert f"`python -m data.convert '{root}' --data_root NEW_FOLDER`" in told and told.count("\n") == 1


def test_other_classes_under_the_name_of_a_published_dataset_lead_here_too(tmp_path, capsys):
    cvat(tmp_path / "voc")
    for i in ALL:  # images and XML as VOC 2012 has them
        write_image(tmp_path / f"voc/JPEGImages/{NAMES[i]}.jpg", i)
        write_xml(tmp_path / f"voc/Annotations/{NAMES[i]}.xml", i)
    (tmp_path / "own.txt").write_text(NAMES[0])
    lists = [f"--{name}_list={tmp_path / 'own.txt'}" for name in ("train", "infer", "eval", "val")]
    told = said("--dataset", "voc12", "--data_root", str(tmp_path / "voc"), *lists, "--check_data", code=2)
    assert "names 'apple'; the classes are aeroplane, " in told and "`python -m data.convert" in told
    for k in ("train", "val"):
        write_json(tmp_path / f"coco/annotations/instances_{k}2014.json", coco([0], lambda i: "x.jpg"))
    write_image(tmp_path / "coco/train2014/x.jpg", 0)
    assert prepare_coco(["--data_root", str(tmp_path / "coco"), "--num_workers", "0"]) == 2
    assert f"python -m data.convert {tmp_path / 'coco'}" in capsys.readouterr().err
