"""Strips of single images: what they show, which names they take, and `--preview`."""

import argparse
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import step.strips
from coco14.dataset import COCO14
from coco14.prepare import prepare
from data.errors import UserError
from data.images import read_mask
from data.results import load_cam
from data.shapes import Shapes
from misc.report.pictures import shown_steps, strip
from net.resnet50_irn import EdgeDisplacement
from step.strips import find_names
from tests.coco_mini import make_coco
from tests.folder_mini import CLASSES, PATHS, make_folder
from tests.helpers import SCRATCH, golden_state, run_cli, write_classifier

SMALL = (
    "--num_workers 0 --device cpu --cam_network resnet14 --RIB_batch_size 2 --RIB_crop_size 48 --RIB_resize_long 40,56 "
    "--RIB_lr 3e-5 --RIB_iter 2 --cam_scales 1.0,0.5 --stop_th 1e9 --explode_ratio 1.1"
).split()
SHAPES = [*SCRATCH, *"--shapes_train 12 --shapes_val 4 --shapes_size 48 --limit 8".split()]


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn: title -> (classes, maps, masks)."""
    seen = {}
    plain = step.strips.strip

    def draw(title, image, classes, maps, masks, *look):
        seen[title] = (classes, maps, masks)
        return plain(title, image, classes, maps, masks, *look)

    monkeypatch.setattr(step.strips, "strip", draw)
    return seen


def run(work_dir, *argv):
    return run_cli("--work_dir", work_dir, *SMALL, *SHAPES, *argv)


def test_a_strip_has_a_row_per_class_and_a_column_per_picture():
    assert [shown_steps(k) for k in (1, 5, 15)] == [[1], [1, 3, 5], [1, 3, 5, 10, 15]]
    image = np.zeros((40, 60, 3), np.uint8)
    maps = {"CAM": np.zeros((2, 40, 60), np.float32), "RIB": np.stack([np.ones((40, 60)), np.zeros((40, 60))])}
    picture = Image.open(io.BytesIO(strip("$odd_{name}", image, ["cat", "hot dog"], maps, {}, 0.3)))
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    heat = pixels.max(2) - pixels.min(2) > 60  # all else is grey
    columns = np.flatnonzero(heat.any(0))
    rows = np.flatnonzero(heat.any(1))
    # Only the first class of the last of three columns has heat.
    assert columns[0] > 0.6 * picture.width and rows[-1] < 0.6 * picture.height
    assert (np.ptp(rows) + 1) / (np.ptp(columns) + 1) == pytest.approx(40 / 60, abs=0.02)


def test_preview_shows_what_the_steps_make(tmp_path, drawn, capsys):
    assert run(tmp_path, "--preview", "train_00003") == 2
    assert "step train_cam makes it" in capsys.readouterr().err and not (tmp_path / "strips").exists()
    write_classifier(tmp_path, 6)
    assert run(tmp_path, "--preview", "train_00003,train_00005.png") == 0
    files = [tmp_path / "strips" / f"train_0000{i}.png" for i in (3, 5)]
    assert capsys.readouterr().out.split() == [str(path) for path in files]
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "log.txt").exists()
    assert [list(masks) for _, _, masks in drawn.values()] == [["ground truth"]] * 2

    torch.save(golden_state(EdgeDisplacement(0, arch="resnet14")), tmp_path / "sess" / "res50_irn.pth")
    assert run(tmp_path, "--steps", "make_cam,make_rib_cam,cam_to_ir_label,make_sem_seg") == 0
    drawn.clear()
    assert run(tmp_path, "--preview", "train_00003") == 0
    ((title, (classes, maps, masks)),) = drawn.items()
    dataset = Shapes(12, 4, 48)
    assert title == "shapes: train_00003"
    assert classes == [dataset.classes[c] for c in np.flatnonzero(dataset.label("train_00003"))]
    assert list(maps) == ["CAM", "RIB, k = 1", "RIB, k = 2"]
    assert list(masks) == ["IRN label", "pseudo mask", "ground truth"]
    for key, kind in (("CAM", "cam"), ("RIB, k = 1", "cam_rib")):  # --RIB_iter 2 adds up two maps: k = 0 and 1
        wanted = load_cam(tmp_path / kind / "train_00003.npy")["high_res"]
        assert wanted.max() > 0.9
        np.testing.assert_allclose(maps[key], wanted, atol=1e-4)
    assert not np.allclose(maps["RIB, k = 1"], maps["RIB, k = 2"], atol=1e-4)
    np.testing.assert_array_equal(masks["IRN label"], read_mask(tmp_path / "ir_label" / "train_00003.png"))
    assert (masks["pseudo mask"] == read_mask(tmp_path / "sem_seg" / "train_00003.png")).mean() > 0.999
    np.testing.assert_array_equal(masks["ground truth"], dataset.mask("train_00003"))


def test_strips_are_drawn_anew_for_so_many_images_or_for_names(tmp_path, drawn):
    write_classifier(tmp_path, 6)
    assert run(tmp_path, "--steps", "strips", "--strips_images", "3") == 0
    names = [path.stem for path in sorted((tmp_path / "strips").iterdir())]
    assert names == ["train_00000", "train_00004", "train_00007"] and len(drawn) == 3  # spread over the list
    assert run(tmp_path, "--steps", "strips", "--strips_images", "train_00004,val_00001") == 0
    assert len(drawn) == 4 and "shapes: val_00001" in drawn
    assert json.loads((tmp_path / "metrics.json").read_text())["strips"]["images"] == 2
    before = (tmp_path / "strips" / "train_00004.png").read_bytes()
    assert run(tmp_path, "--strips_pass", "--strips_images", "train_00004", "--RIB_lr", "3e-4") == 0
    assert (tmp_path / "strips" / "train_00004.png").read_bytes() != before  # none of another setting stays
    assert run(tmp_path, "--preview", "train_00003", "--stop_th", "1e-9") == 0
    assert "shapes: train_00003, ended after k = 0" in drawn


def test_images_of_a_folder_by_their_file_names(tmp_path, drawn, capsys):
    mini = make_folder(tmp_path / "data", masks=False)
    write_classifier(tmp_path, len(CLASSES))
    where = ("--dataset", "folder", "--data_root", mini.root, "--work_dir", tmp_path, *SMALL)
    comma = next(path for path in PATHS if path.startswith("a, b"))
    for text in (comma, "two words.jpeg,images/sub/deep er/picture.png"):
        assert run_cli(*where, "--preview", text) == 0
    names = [comma.removesuffix(".jpg"), "two words", "sub/deep er/picture"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "strips" / f"{name}.png") for name in names]
    assert all((tmp_path / "strips" / f"{name}.png").is_file() for name in names)
    assert [masks for _, _, masks in drawn.values()] == [{}] * 3  # no ground truth, no IRN
    assert drawn["folder: two words"][0] == [] and drawn["folder: two words"][1]["CAM"].shape[0] == 0  # no object
    mini.write_csv(names=mini.names[:-1])
    assert run_cli(*where, "--preview", "two words,nobody.jpg") == 2
    error = capsys.readouterr().err
    assert "--preview nobody.jpg: 'nobody.jpg' is not in " in error and len(error.splitlines()) == 1
    assert run_cli(*where, "--steps", "strips", "--strips_images", mini.names[-1]) == 2
    assert f"image {mini.names[-1]!r} has no line in " in capsys.readouterr().err.splitlines()[-1]


def test_names_and_file_names_of_other_datasets(tmp_path):
    mini = make_coco(tmp_path)
    prepare(mini.root)
    name = mini.all_names[0]
    assert find_names(COCO14(mini.root), f"COCO_train2014_{name}.jpg,{name}.jpg,{name}", "--preview") == [name]
    args = argparse.Namespace(strips_images=name, infer_list="train", limit=None)
    assert name.isdecimal() and step.strips._chosen(args, COCO14(mini.root)) == [name]  # no number of images
    with pytest.raises(UserError, match="--preview 000000000000: coco14 has no image '000000000000'"):
        find_names(COCO14(mini.root), "000000000000", "--preview")
    assert find_names(Shapes(), "train_00000.png, train_00000,val_00001", "--preview") == ["train_00000", "val_00001"]
