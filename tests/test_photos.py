"""The photographs: their masks, the steps of their preset, its scores, and `--photo`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import step.photo
from data.errors import DataError
from data.files import FileError
from data.photos import OwnPhoto, Photos
from misc.run.arguments import parse
from misc.run.runner import choose
from net.imagenet import find_categories
from net.resnet50_cam import CAM
from run_sample import STEPS
from tests.helpers import run_cli, said
from tests.report_mini import Page, finished, page_of

SMALL = "--device cpu --photos_size 64 --num_workers 0 --RIB_iter 2 --RIB_crop_size 48 --RIB_resize_long 48,64".split()
PRESET = ["train_cam", "make_cam", "eval_cam", "make_rib_cam", "eval_rib_cam", "cam_to_ir_label", "strips", "report"]
# name -> class -> share of the photograph in per mille, and a point of it (x, y) in per mille of width and height
OBJECTS = {
    "chelsea": {"cat": (740, (390, 500))},
    "motorcycle": {"motorcycle": (296, (560, 660))},
    "coffee": {"cup": (209, (470, 300))},
    "astronaut": {"crash helmet": (123, (760, 860)), "space shuttle": (72, (780, 300))},
    "camera": {"tripod": (34, (570, 800))},
    "rocket": {"rocket": (19, (503, 650))},
}


@pytest.fixture
def photograph(tmp_path):
    """A photograph of the user's own: the motorcycle."""
    path = tmp_path / "mine" / "a bike.png"
    path.parent.mkdir()
    Image.fromarray(Photos(256).image("motorcycle")).save(path)
    return path


def test_masks_lie_where_the_objects_are():
    dataset = Photos(512)
    assert dataset.names("train") == dataset.names("val") == list(OBJECTS)
    for name, objects in OBJECTS.items():
        mask = dataset.mask(name)
        assert mask.shape == dataset.image(name).shape[:2] and max(mask.shape) == 512
        assert [dataset.classes[c] for c in np.flatnonzero(dataset.label(name))] == sorted(objects)
        for kind, (share, (x, y)) in objects.items():
            value = dataset.classes.index(kind) + 1
            assert 1000 * (mask == value).mean() == pytest.approx(share, abs=2)
            assert mask[y * mask.shape[0] // 1000, x * mask.shape[1] // 1000] == value
        assert set(np.unique(mask)) - {0, 255} == set(np.flatnonzero(dataset.label(name)) + 1)
    motorcycle, chelsea = dataset.mask("motorcycle"), dataset.mask("chelsea")
    assert motorcycle[345 * 500 // 741 - 60, 375] == 0  # a hole: what is seen through the fork
    assert chelsea[-1, 320] == 255  # chest or blanket: cannot be told
    with pytest.raises(DataError, match="photos has no image 'dog'; there are chelsea, motorcycle"):
        dataset.image("dog")


def test_the_preset_has_its_own_steps_unless_others_are_asked_for(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("steps: 2")
    for argv, wanted in (
        ("", PRESET),
        ("--no-strips_pass", [name for name in PRESET if name != "strips"]),
        ("--make_cam_pass", ["make_cam"]),
        ("--steps 2-3", ["make_cam", "eval_cam"]),
        (f"--config {config}", ["make_cam"]),
    ):
        args, _ = parse(STEPS, ["--dataset", "photos", *argv.split()])
        assert [step.name for step in choose(STEPS, args)] == wanted
    args, _ = parse(STEPS, ["--steps", "13-14"])
    assert [step.name for step in choose(STEPS, args)] == ["eval_seg", "report"]  # no step without a number


@pytest.mark.slow
def test_scores_of_the_preset(tmp_path):
    said("--dataset", "photos", "--device", "cpu", "--work_dir", tmp_path)
    measured = json.loads((tmp_path / "metrics.json").read_text())
    cam, rib = measured["eval_cam"], measured["eval_rib_cam"]
    assert rib["best"]["miou"] > cam["best"]["miou"] + 0.015 and rib["fixed"]["miou"] > cam["fixed"]["miou"] + 0.015
    assert rib["fixed"]["iou"]["cat"] > cam["fixed"]["iou"]["cat"] + 0.3
    assert measured["strips"]["images"] == 6 and len(list((tmp_path / "ir_label").iterdir())) == 7  # with provenance
    with Image.open(tmp_path / "strips.jpg") as picture:
        assert picture.width > 8 * 170 and (tmp_path / "strips.jpg").stat().st_size < 600_000
    page = Page((tmp_path / "report.html").read_text())
    assert "Step by step" in page.text and len(page.cards()) == 6


def test_a_photograph_of_ones_own(photograph):
    text = said("--photo", photograph, "--label", "moped, sofa", *SMALL)
    written = photograph.with_name("a bike.png.rib.png")
    assert text.splitlines()[-1] == str(written)
    with Image.open(written) as picture:  # two classes; photograph, CAM, two steps, IRN label
        assert picture.width == 24 + 5 * (step.photo.TILE + 4) and 420 < picture.height < 520
    assert sorted(path.name for path in photograph.parent.iterdir()) == ["a bike.png", "a bike.png.rib.png"]


def test_without_label_the_classifier_says_what_it_sees(photograph, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    plain = step.photo.save

    def refused_beside(path, data):
        if path.parent == photograph.parent:
            raise FileError(f"{path} cannot be written")
        plain(path, data)

    monkeypatch.setattr(step.photo, "save", refused_beside)
    text = said("--photo", photograph, *SMALL)
    assert text == "the classifier sees: moped (--label NAME to say otherwise)\na bike.png.rib.png\n"
    assert f"{photograph}.rib.png cannot be written" in caplog.text and (tmp_path / "a bike.png.rib.png").is_file()


def test_companions_show_something_else(photograph):
    shown = set(find_categories("tabby"))
    others = [name for name in Photos.classes if shown.isdisjoint(find_categories(name))]
    assert "cat" not in others and len(others) == 6
    dataset = OwnPhoto(photograph, 64, ["tabby"], others)
    assert dataset.names("infer") == [str(photograph)] and "chelsea" not in dataset.names("train")
    assert dataset.label(str(photograph)).tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert dataset.classes[dataset.label("rocket").argmax()] == "rocket"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--label", "tiger kat"), "ImageNet has no category 'tiger kat'; close to it: tiger cat"),
        (("--label", "cat,no such thing"), "ImageNet has no category 'no such thing'"),
        (("--dataset", "shapes"), "--photo needs a classifier with its head, --cam_init is scratch"),
    ],
)
def test_a_mistake_is_one_line(photograph, capsys, argv, message):
    assert run_cli("--photo", photograph, *argv, *SMALL) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_head_of_other_categories_is_refused_however_many_it_has(photograph, tmp_path, capsys):
    for rows in (1, 7, 8):  # as many as the label, the other classes, and both
        file = tmp_path / f"{rows}.pth"
        torch.save(CAM(rows).state_dict(), file)
        argv = ("--label", "sofa", "--cam_network", "resnet50", "--cam_init", f"head:{file}", *SMALL)
        assert run_cli("--photo", photograph, *argv) == 2
        assert f"{file} has a head of {rows} categories; wanted 1000" in capsys.readouterr().err


def test_a_label_needs_a_photo(photograph, capsys):
    assert run_cli("--label", "cat", *SMALL) == 2 and "--label is ('cat',); wanted it beside" in capsys.readouterr().err
    assert (
        run_cli("--photo", photograph, "--label", ",", *SMALL) == 2 and "wanted at least one" in capsys.readouterr().err
    )


def test_a_file_that_is_no_image(tmp_path, capsys):
    (tmp_path / "notes.jpg").write_text("no image")
    for name, message in (("notes.jpg", "cannot be read as an image"), ("nothing.jpg", "does not exist")):
        assert run_cli("--photo", tmp_path / name, "--label", "cat", *SMALL) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path / name} {message}" in error and len(error.splitlines()) == 1


def test_the_report_of_shapes_shows_the_photographs_beside_it(tmp_path):
    args = finished(tmp_path / "shapes", steps="eval_cam")
    assert "Photographs" not in Page(page_of(args)).text
    (tmp_path / "photos").mkdir()
    scores = {"images": 6, "fixed": {"miou": 0.111, "threshold": 0.3}, "best": {"miou": 0.222, "threshold": 0.4}}
    (tmp_path / "photos" / "metrics.json").write_text(json.dumps({"eval_rib_cam": scores}))
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "strips.jpg")
    text = page_of(args)
    assert "Photographs" in Page(text).text and "22.2" in Page(text).text and "data:image/jpeg" in text
    assert "../photos/report.html" in text
