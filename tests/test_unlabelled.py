"""New images without labels: what a trained network makes of them, and what is said of the steps that need labels."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import step.strips
from data.images import read_mask
from data.transforms import normalize
from misc.run.runner import choose, parse
from net.resnet50_cam import Net
from net.weights import load
from run_sample import STEPS
from tests.folder_mini import CLASSES, SMALL, make_folder
from tests.helpers import said, write_classifier, write_networks

MODEL = "--seg_msc_scales 1.0 --seg_aspp_rates 1,2,3,4".split()  # as write_networks has it
NEW = 3  # the last images of the folder


@pytest.fixture
def mini(tmp_path):
    mini = make_folder(tmp_path / "data", masks=False)
    mini.write_csv(names=mini.names[:-NEW])
    (tmp_path / "new.txt").write_text("".join(f"{mini.paths[name]}\n" for name in mini.names[-NEW:]))
    write_networks(tmp_path / "run", len(CLASSES))
    return mini


def arguments(mini, *more):
    return [
        "--dataset",
        "folder",
        "--data_root",
        mini.root,
        "--work_dir",
        mini.root.parent / "run",
        *SMALL,
        *MODEL,
        *more,
    ]


def masks(work_dir, mini):
    folder = work_dir / "seg"
    assert sorted(path.stem for path in folder.rglob("*.png")) == sorted(name for name in mini.names[-NEW:])
    read = [read_mask(folder / f"{name}.png", len(CLASSES), mini.images[name].shape[:2]) for name in mini.names[-NEW:]]
    return np.concatenate([mask.ravel() for mask in read])


def test_a_list_of_images_without_labels_is_segmented(mini, tmp_path):
    text = said(*arguments(mini, "--steps", "eval_seg,report", "--val_list", tmp_path / "new.txt"))
    assert "none of the 3 images has ground truth: no score" in text
    assert f"{NEW} images have no line in labels.csv and are not used unless --val_list names them" in text
    assert len(np.unique(masks(tmp_path / "run", mini))) > 1
    for name, purpose in (("make_cam", "infer"), ("train_irn", "infer"), ("make_rib_cam", "train")):
        text = said(*arguments(mini, "--steps", name, f"--{purpose}_list", tmp_path / "new.txt"), code=2)
        line = text.splitlines()[-1]
        assert f"new.txt line 1: image {mini.names[-NEW]!r} has no line in " in line and "(and 2 more like it)" in line


def test_a_folder_without_labels_takes_the_classes_of_the_network(mini, tmp_path):
    said(*arguments(mini, "--steps", "eval_seg", "--val_list", tmp_path / "new.txt"))
    wanted = masks(tmp_path / "run", mini)
    for name in mini.names[:-NEW]:
        (mini.root / "images" / mini.paths[name]).unlink()
    for name in ("labels.csv", "classes.txt"):
        (mini.root / name).unlink()
    other = ["--work_dir", tmp_path / "other"]
    text = said(*arguments(mini, *other, "--steps", "eval_seg"), code=2)
    assert "has no labels.csv; wanted " in text and "or --seg_weights_name FILE, a network that segments them" in text
    weights = tmp_path / "run/sess/deeplabv2.pth"
    other += ["--seg_weights_name", weights]
    assert "has no labels.csv; wanted " in said(*arguments(mini, *other, "--steps", "eval_seg"), code=2)
    record = {"step": "train_seg", "arguments": {"classes": list(CLASSES)}}
    weights.with_suffix(".made_by.json").write_text(json.dumps(record), encoding="utf-8")
    text = said(*arguments(mini, *other))
    learning = [step.name for step in choose(STEPS, parse(STEPS, [])[0]) if step.name not in ("eval_seg", "report")]
    assert f"{mini.root} has no labels: left out {', '.join(learning)}" in text and "training images" not in text
    assert np.array_equal(masks(tmp_path / "other", mini), wanted)
    text = said(*arguments(mini, *other, "--steps", "1-3"), code=2)
    assert text.endswith("has no labels, and all of these steps need some: train_cam, make_cam, eval_cam\n")
    text = said(*arguments(mini, *other, "--check_data"))
    assert re.search(r"\nunlabelled +3\n", text) and text.endswith("\nnothing is wrong\n")
    weights.with_suffix(".made_by.json").unlink()
    (mini.root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    said(*arguments(mini, *other, "--steps", "eval_seg", "--overwrite"))
    assert np.array_equal(masks(tmp_path / "other", mini), wanted)


def test_masks_of_images_without_labels_are_scored(mini, tmp_path):
    for name in mini.names[-NEW:]:
        path = mini.root / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mini.masks[name]).save(path)
    (mini.root / "labels.csv").unlink()
    said(*arguments(mini, "--steps", "eval_seg", "--seg_weights_name", tmp_path / "run/sess/deeplabv2.pth"))
    stored = json.loads((tmp_path / "run/metrics.json").read_text())["eval_seg"]
    assert stored["scored"] == NEW and stored["images"] == len(mini.names)
    assert np.sum(stored["confusion"]) == sum((mini.masks[name] != 255).sum() for name in mini.names[-NEW:])


def test_the_classifier_is_scored_on_the_labelled_images(mini, tmp_path):
    (tmp_path / "new.txt").write_text("".join(f"{mini.paths[name]}\n" for name in mini.names[3:]))
    again = ("--steps", "train_cam", "--work_dir", tmp_path / "trained", "--val_list", tmp_path / "new.txt")
    text = said(*arguments(mini, *again))
    assert "3 of 7 images of --val_list have no label" in text and "mean average precision" in text
    (tmp_path / "new.txt").write_text("".join(f"{mini.paths[name]}\n" for name in mini.names[-NEW:]))
    text = said(*arguments(mini, *again, "--overwrite"))
    assert "no average precision" in text
    stored = json.loads((tmp_path / "trained/metrics.json").read_text())["train_cam"]
    assert stored["average_precision"] == dict.fromkeys(CLASSES)


def test_preview_shows_what_the_classifier_sees(mini, tmp_path, monkeypatch):
    drawn = {}
    draw = step.strips.strip

    def keep(title, image, classes, maps, masks, threshold):
        drawn[title] = classes
        return draw(title, image, classes, maps, masks, threshold)

    monkeypatch.setattr(step.strips, "strip", keep)
    network = Net(len(CLASSES), "resnet14").eval()
    load(network, tmp_path / "run/sess/res50_cam.pth")
    names, seen = mini.names[-NEW:-1], {}
    for name in [*names, mini.names[0]]:
        with Image.open(mini.root / "images" / mini.paths[name]) as image, torch.no_grad():
            logits = network(torch.from_numpy(normalize(np.array(image.convert("RGB")))[None]))[0].numpy()
        seen[name] = [CLASSES[c] for c in range(len(CLASSES)) if logits[c] > 0 or logits[c] == logits.max()]
    said(*arguments(mini, "--preview", ",".join([*names, mini.names[0]])))
    told = ", classes as the classifier sees them"
    titles = {title.removeprefix("folder: ").partition(", ended")[0].removesuffix(told): title for title in drawn}
    for name in names:
        assert told in titles[name] and drawn[titles[name]] == seen[name]
    assert told not in titles[mini.names[0]] and set(drawn[titles[mini.names[0]]]) == {CLASSES[0]}
    (mini.root / "labels.csv").unlink()
    (tmp_path / "alone").mkdir()
    write_classifier(tmp_path / "alone", len(CLASSES))
    weights = tmp_path / "run/sess/res50_cam.pth"
    drawn.clear()
    other = ("--work_dir", tmp_path / "alone", "--cam_weights_name", weights, "--preview", mini.names[0])
    said(*arguments(mini, *other))
    assert list(drawn.values()) == [seen[mini.names[0]]] and "no disjoint images" in next(iter(drawn))
