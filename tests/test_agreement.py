"""Labels against masks, and sets that cannot show what a score seems to say: in the check, the log and the report."""

import argparse
import json
import logging
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from data.agreement import contents, disagreement
from data.errors import UserError
from data.folder import Folder
from data.images import read_mask
from data.remarks import about_classes, about_validation, fitting_batches
from data.results import load_cam
from data.shapes import Shapes
from tests.folder_mini import SMALL, make_folder
from tests.helpers import run_cli, said, small_arguments, write_networks

CLASSES = ("apple", "leaf", "plum")
N = 40


def masks_of(labels):
    """A mask per label [N, C]: a block of each class on background, and what else a mask may hold."""
    masks = np.zeros((len(labels), 8, 8), np.uint8)
    for c in range(labels.shape[1]):
        masks[labels[:, c] > 0, 2 * c + 1 : 2 * c + 3, 2:6] = c + 1
    return masks


def labels_of(n_classes):
    labels = np.random.default_rng(0).random((N, n_classes)) < 0.5
    labels[0] = labels[1, :1] = True
    labels[2] = False
    return labels


def swapped(order):
    return lambda masks: np.array(order, np.uint8)[masks]


def spoil(n, value):
    """The first n masks that hold an object hold this in its place."""

    def change(masks):
        out = masks.copy()
        for i in np.flatnonzero(masks.any((1, 2)))[:n]:
            out[i][masks[i] > 0] = value
        return out

    return change


def compared(n_classes, change):
    """What is told of masks in which something has gone wrong, and whether it is too much."""
    labels = labels_of(n_classes)
    values = [contents(mask) for mask in change(masks_of(labels))]
    return disagreement([f"p{i}" for i in range(N)], labels, values, CLASSES[:n_classes])


@pytest.mark.parametrize(
    ("n_classes", "change", "message"),
    [
        (3, spoil(N, 255), r"0, 255\): the masks hold nothing but 0 and 255, .* store 0 for background, 1 for apple"),
        (3, swapped([0, 0, 1, 2]), r"the masks count the classes from 0; add 1"),
        (3, swapped([255, 0, 1, 2]), r"the masks count the classes from 0; add 1"),
        (3, swapped([0, 2, 1, 3]), r"in another order; list them in classes\.txt as .* do: leaf, apple, plum"),
        (2, swapped([0, 2, 1]), r"in another order; .*: leaf, apple"),
        (3, swapped([0, 2, 3, 4]), r"seem to hold 0 for background, 2 for apple, 3 for leaf, 4 for plum; store 0 for"),
        (3, swapped([0, 2, 3, 9]), r"hold 0 for .*, 9 for plum; store .* 1 for apple, 2 for leaf and so on"),
        (1, swapped([1, 0]), r"hold 1 for background, 0 for apple; store 0 for background, 1 for apple"),
        (1, swapped([1, 2]), r"hold 1 for background, 2 for apple"),
        (1, swapped([0, 128]), r"values 0, 128\): the masks seem to hold 0 for background, 128 for apple"),
        (3, spoil(N, 77), r"store 0 for background, .* and so on; other values come from JPEG"),
        (3, spoil(N, 1), r"the masks do not tell the classes apart; store 0 for"),
        (3, spoil(N, 0), r"the masks hold no object; are they those of these images\?"),
        (3, spoil(30, 3), r"correct the labels or the masks"),
    ],
)
def test_what_does_not_fit_is_told_with_how_to_mend_it(n_classes, change, message):
    (text,), too_many = compared(n_classes, change)
    assert re.search(message, text) and too_many, text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(3, 0), r"in 3 of 40 .*lacks a class of the label in 3 and has one that is not in the label in 0"),
        (spoil(2, 3), r"disagree in 2 of 40 images"),
        (spoil(20, 255), r"disagree in 20 of 40 images"),  # where nothing but ignored pixels may be crowds
    ],
)
def test_a_few_masks_that_do_not_fit_are_a_warning(change, message):
    (text,), too_many = compared(3, change)
    assert re.search(message, text) and not too_many
    assert compared(3, lambda masks: masks) == ([], False)


def test_a_class_may_hide_in_ignored_pixels_and_masks_may_be_empty():
    labels = np.array([[True, True, False]] * 4)
    mask = masks_of(labels)[0]
    mask[mask == 2] = 255  # as VOC's difficult objects
    assert disagreement("abcd", labels, [contents(mask)] * 4, CLASSES) == ([], False)
    blank = [contents(np.zeros((4, 4), np.uint8))] * 2
    assert disagreement("ab", np.zeros((2, 3)), blank, CLASSES) == (
        ["no object in any of 2 masks: no score"],
        False,
    )
    around = np.ones((9, 9), np.uint8)
    around[3:6, 3:6] = 0
    texts, too_many = disagreement("abc", np.ones((3, 1)), [contents(around)] * 3, ("leaf",))
    assert texts == ["most masks are leaf all along the border; if they are inverse, swap it and background"]
    assert not too_many


@pytest.mark.parametrize("mode", ["L", "P"])
def test_black_and_white_masks_of_one_class_are_that_class(tmp_path, mode):
    mini = make_folder(tmp_path, classes=False)
    mini.csv.write_text("name,kitten\n" + "".join(f'"{n.replace(chr(34), chr(34) * 2)}",1\n' for n in mini.names[:5]))
    white = {name: (mini.masks[name] > 0) & (mini.masks[name] < 255) for name in mini.names}
    for name in mini.names:
        Image.fromarray(white[name].astype(np.uint8) * 255).convert(mode).save(mini.root / "masks" / f"{name}.png")
    folder = Folder(mini.root)
    assert "masks/ holds nothing but 0 and 255: 255 is read as kitten" in folder.notes
    assert all(np.array_equal(folder.mask(name), white[name]) for name in mini.names[:5])
    Image.fromarray(white["plain"].astype(np.uint8)).save(mini.root / "masks" / "plain.png")  # 1 in one of them
    again = Folder(mini.root)
    assert not any("255" in note for note in again.notes) and again.mask("two words").max() == 0
    for name in mini.names[1:4]:
        Image.new("RGB", (5, 5), (128, 0, 0)).save(mini.root / "masks" / f"{name}.png")
    arguments = ["--dataset", "folder", "--data_root", mini.root, "--work_dir", tmp_path / "out", "--device", "cpu"]
    message = r"--eval_list: mask .* is of mode RGB, in colours; .* \(and 2 more like it\); or leave out the steps"
    assert re.search(message, said(*arguments, "--steps", "train_cam,eval_cam", code=2))  # before anything is trained


def label(*rows):
    return np.array(rows, bool)


@pytest.mark.parametrize(
    ("labels", "in_training", "in_rib"),
    [
        (label([1], [1], [1]), "apple: in all 3 training images", "apple: no training image has a class but not"),
        (label([1], [0], [1]), None, "apple: no training image has a class but not this one"),
        (label([1, 0], [1, 1], [1, 1], [1, 0]), "apple: in all 4 training images", "apple: no training image"),
        (label([1, 1], [1, 1]), "apple, leaf: in all 2 training", "apple, leaf: no training image"),
        (label([1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]), "apple, leaf: in no image without the other", None),
        (label([1, 0, 0], [0, 1, 0], [0, 1, 0]), "plum: in no training image", None),
        (label([1, 0], [0, 1], [0, 1]), "apple: in one training image only", None),
        (label([1, 0], [1, 0], [0, 1], [0, 1], [0, 0]), None, None),
    ],
)
def test_classes_that_cannot_be_told_apart(labels, in_training, in_rib):
    for text, found in ((in_training, about_classes(labels, CLASSES[: labels.shape[1]], False)),
                        (in_rib, about_classes(labels, CLASSES[: labels.shape[1]], True))):  # fmt: skip
        assert any(each.startswith(text) for each in found) if text else not found, found


def test_validation_that_says_nothing():
    shapes = Shapes(6, 3, 48)
    train, val = shapes.names("train"), shapes.names("val")
    assert about_validation(shapes, train, val, True) == []
    assert about_validation(shapes, train, train[:2], True)[0].startswith(
        "all 2 images of --val_list are training images"
    )
    assert about_validation(shapes, train, [train[0], *val], False)[0].startswith("1 of the 4 images of --val_list are")


def test_batches_are_lowered_to_the_images_that_there_are():
    args = argparse.Namespace(
        cam_batch_size=16, irn_batch_size=8, cam_accumulate=4, irn_accumulate=1, cam_init="scratch"
    )
    lists = {"train": list("abcdefghij"), "infer": list("abcdefgh")}
    assert fitting_batches(args, lists.__getitem__, ["train_cam", "train_irn", "train_seg"]) == {"cam_batch_size": 8}
    assert fitting_batches(args, {"infer": ["a"]}.__getitem__, ["train_irn", "eval_cam"]) == {"irn_batch_size": 1}
    with pytest.raises(UserError, match="3 images of --train_list are fewer than the 4 parts of a batch"):
        fitting_batches(args, {"train": list("abc")}.__getitem__, ["train_cam"])


# runs


def test_masks_in_another_order_end_a_run_before_it_trains(tmp_path):
    mini = make_folder(tmp_path / "data")
    (mini.root / "classes.txt").write_text("hot dog\ncat\nKäse\n", encoding="utf-8")
    out = said("--dataset", "folder", "--data_root", mini.root, "--work_dir", tmp_path / "out", code=2)
    assert "--eval_list: labels and masks disagree in 9 of 10 images" in out and "step 1" not in out
    assert "list them in classes.txt as the masks do: cat, Käse, hot dog; or leave out the steps that score" in out
    out = said("--dataset", "folder", "--data_root", mini.root, "--check_data", code=2)
    assert "problem: labels and masks disagree in 9 of 10 images" in out and "1 problem to fix" in out


def test_a_small_set_whose_validation_shows_nothing(tmp_path, caplog):
    """Ten images: the batch is lowered before training; one image without objects is no validation."""
    mini, out = make_folder(tmp_path / "data"), tmp_path / "out"
    (mini.root / "splits").mkdir()
    (mini.root / "splits" / "val.txt").write_text("two words\n")
    write_networks(out, 3)
    (out / "sess" / "res50_cam.pth").unlink()
    small = [
        "--dataset", "folder", "--data_root", mini.root, "--work_dir", out, *SMALL, "--cam_batch_size", "16",
        "--seg_msc_scales", "1", "--seg_aspp_rates", "1,2,3,4", "--seg_crf_iter", "1",
    ]  # fmt: skip
    with caplog.at_level(logging.INFO):
        text = said(*small, "--steps", "train_cam,eval_seg,report")
    lowered = "train_cam: fewer images than --cam_batch_size 16, which is lowered to 9"
    assert lowered in text and "no class is in some of the 1 images of --val_list only: no average precision" in text
    assert "eval_seg: no object in any of 1 masks: no score" in text and "nan" not in text
    assert "trained on rib: mIoU \u2013, \u2013 before the CRF" in text
    measured = json.loads((out / "metrics.json").read_text())
    assert set(measured["train_cam"]["average_precision"].values()) == {None} and measured["eval_seg"]["miou"] is None
    assert measured["train_cam"]["notes"][0] == lowered.partition(": ")[2]
    made_by = json.loads((out / "sess" / "res50_cam.made_by.json").read_text())
    assert made_by["arguments"]["--cam_batch_size"] == 9
    page = (out / "report.html").read_text()
    assert lowered in page and "none of the 1 images of --val_list has a class" in page and "100.0" not in page
    assert "exists, skipping the training" in said(*small, "--steps", "train_cam")  # lowered again: the same settings


def test_max_side_works_on_small_images_and_stores_masks_at_their_own_size(tmp_path):
    write_networks(tmp_path, 6)
    options = ["--max_side", "32", "--limit", "2", "--num_workers", "0"]
    steps = ["--seg_labels", "pseudo", "--steps", "2-6,8-11,13-14"]
    assert run_cli(*small_arguments(tmp_path, *options, *steps)) == 0
    name = "train_00000"
    cam = load_cam(tmp_path / "cam" / f"{name}.npy")
    assert cam["high_res"].shape[1:] == (32, 32) and cam["cam"].shape[1:] == (8, 8)
    for path in (f"ir_label/{name}.png", f"sem_seg/{name}.png", "seg/val_00000.png"):
        assert read_mask(tmp_path / path).shape == (48, 48), path
    instances = np.load(tmp_path / "ins_seg" / f"{name}.npy", allow_pickle=True).item()
    assert instances["mask"].shape[1:] == (48, 48)
    measured = json.loads((tmp_path / "metrics.json").read_text())
    assert (
        np.sum(measured["eval_cam"]["best"]["confusion"]) == np.sum(measured["eval_sem_seg"]["confusion"]) == 2 * 48**2
    )
    # Networks are trained on the small images and the stored masks; other sizes make other results.
    shutil.rmtree(tmp_path / "sess")
    write_networks(tmp_path, 6)
    for file in ("res50_irn.pth", "deeplabv2.pth"):
        (tmp_path / "sess" / file).unlink()
    training = ["--irn_num_epoches", "1", "--irn_batch_size", "2", "--seg_iter", "1", "--seg_labels", "pseudo,truth"]
    assert run_cli(*small_arguments(tmp_path, *options, *training, "--steps", "train_irn,train_seg")) == 0
    assert "was created with --max_side 32, now" in said(
        *small_arguments(tmp_path, "--limit", "2", "--steps", "make_cam"), code=2
    )
