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
from net.resnet50_cam import CAM
from run_sample import STEPS
from tests.helpers import said
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
    assert dataset.mask("motorcycle")[172, 375] == 0  # a hole: what is seen through the fork
    assert dataset.mask("chelsea")[-1, 320] == 255  # chest or blanket: cannot be told
    with pytest.raises(DataError, match="photos has no image 'dog'; there are chelsea, motorcycle"):
        dataset.image("dog")


def test_the_preset_has_its_own_steps_unless_others_are_asked_for(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("steps: 2")
    for argv, wanted in (
        ("--dataset photos", PRESET),
        ("--dataset photos --make_cam_pass", ["make_cam"]),
        (f"--dataset photos --config {config}", ["make_cam"]),
        ("--steps 13-14", ["eval_seg", "report"]),  # no step without a number
    ):
        assert [step.name for step in choose(STEPS, parse(STEPS, argv.split())[0])] == wanted


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


def test_a_photograph_of_ones_own(photograph, tmp_path):
    (tmp_path / "config.yaml").write_text(f"photo: {photograph}\nlabel: [moped, sofa]\n")
    text = said("--config", tmp_path / "config.yaml", *SMALL)
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
    others = [name for name in Photos.classes if name != "cat"]
    dataset = OwnPhoto(photograph, 64, ["tabby"], others)
    assert dataset.names("infer") == [str(photograph)] and dataset.names("train") == [*OBJECTS][1:]
    assert dataset.label(str(photograph)).tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert dataset.classes[dataset.label("rocket").argmax()] == "rocket"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--photo PHOTO --label cat,tiger-kat", "ImageNet has no category 'tiger-kat'; close to it: tiger cat"),
        ("--photo PHOTO --dataset shapes", "--photo needs a classifier with its head, --cam_init is imagenet"),
        (
            "--photo PHOTO --steps 2 --preview x",
            "--photo does nothing but its strip; leave it out, or --steps and --prev",
        ),
        ("--photo PHOTO --make_cam_pass", "leave it out, or --make_cam_pass"),
        ("--config CONFIG --check_data", "leave it out, or --check_data"),
        ("--photo PHOTO --label ,", "holds no value, wanted at least one"),
        ("--label cat", "--label is ('cat',); wanted it beside --photo"),
        ("--photo FOLDER/config.yaml --label cat", "or TIFF or BMP\n"),
        ("--photo FOLDER --label cat", "is a folder; --photo wants one image file"),
        ("--photo FOLDER/nothing.jpg", "nothing.jpg does not exist"),
    ],
)
def test_a_mistake_is_one_line(photograph, tmp_path, argv, message):
    config = tmp_path / "config.yaml"
    config.write_text(f"photo: {photograph}\n")
    files = {"PHOTO": str(photograph), "CONFIG": str(config), "FOLDER": str(tmp_path)}
    error = said(*(files.get(word, word).replace("FOLDER", str(tmp_path)) for word in argv.split()), *SMALL, code=2)
    assert message in error and len(error.splitlines()) == 1


def test_a_head_of_other_categories_is_refused(photograph, tmp_path):
    file = tmp_path / "w.pth"
    torch.save(CAM(8).state_dict(), file)  # as many as the label and the other classes
    argv = ("--label", "sofa", "--cam_network", "resnet50", "--cam_init", f"head:{file}", *SMALL)
    error = said("--photo", photograph, *argv, code=2)
    assert f"{file} has a head of 8 categories; wanted 1000" in error


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
