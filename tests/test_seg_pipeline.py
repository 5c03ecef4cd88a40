"""Steps train_seg and eval_seg through the command line: files, scores, what is made again, the VOC test server."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import save_mask, voc_palette
from data.shapes import Shapes
from misc import crf
from tests.helpers import said
from tests.voc_devkit import make_devkit

SMALL = (
    "--device cpu --num_workers 0 --seg_model deeplabv2_resnet14 --seg_init scratch --seg_crop_size 48 --seg_iter 2 "
    "--seg_batch_size 4 --seg_lr 1e-4 --seg_checkpoint_every 2 --seg_aspp_rates 1,2 --seg_crf 1,3,20,13,4"
).split()
SHAPES = ["--shapes_train", "6", "--shapes_val", "3", "--shapes_size", "48"]
DATA = Shapes(6, 3, 48)
TRUTH = ["--steps", "train_seg", "--seg_labels", "truth"]


def run(work_dir, *arguments, code=0):
    return said("--work_dir", work_dir, *SMALL, *arguments, code=code)


def metrics(work_dir):
    return json.loads((work_dir / "metrics.json").read_text())


def masks(folder):
    return {path.name: np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def give_pseudo_masks(work_dir):
    """The truth as pseudo masks, with a border nobody is sure of."""
    for name in DATA.names("train"):
        mask = DATA.mask(name)
        mask[:4] = 255
        save_mask(work_dir / "sem_seg" / f"{name}.png", mask, voc_palette())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seg")
    give_pseudo_masks(folder)
    run(folder, *SHAPES, "--steps", "12-13", "--seg_labels", "pseudo,truth")
    return folder


def miou_of(folder):
    """Mean over the classes of intersection over union, counted plainly."""
    made = masks(folder)
    assert list(made) == [f"{name}.png" for name in DATA.names("val")]
    pairs = [(DATA.mask(name), made[f"{name}.png"]) for name in DATA.names("val")]
    ious = []
    for c in range(7):
        both = sum(((a == c) & (b == c)).sum() for a, b in pairs)
        either = sum(((a == c) | (b == c)).sum() for a, b in pairs)
        ious += [both / either] if either else []
    return np.mean(ious)


def test_scores_are_those_of_the_files(finished):
    measured = metrics(finished)["eval_seg"]
    assert measured["images"] == measured["scored"] == 3 and measured["labels"] == "pseudo"
    assert measured["miou"] == pytest.approx(miou_of(finished / "seg"))
    assert measured["before_crf"]["miou"] == pytest.approx(miou_of(finished / "seg_before_crf"))
    wanted = {"rib": miou_of(finished / "seg"), "truth": miou_of(finished / "seg_truth")}
    assert measured["comparison"] == pytest.approx(wanted)
    assert set(measured["iou"]) == {"background", *Shapes.classes}
    losses = metrics(finished)["train_seg"]["loss"]
    assert {kind: len(values) for kind, values in losses.items()} == {"pseudo": 1, "truth": 1}
    with Image.open(finished / "seg" / "val_00000.png") as png:
        assert png.mode == "P" and png.getpalette()[:6] == voc_palette()[:2].flatten().tolist()
    assert sorted(path.name for path in (finished / "sess").iterdir()) == [
        "deeplabv2.made_by.json", "deeplabv2.pth", "deeplabv2_truth.made_by.json", "deeplabv2_truth.pth"
    ]  # fmt: skip


def test_missing_masks_are_made_again_and_the_crf_can_be_left_out(finished, tmp_path):
    def times():
        return {path.name: path.stat().st_mtime_ns for path in (finished / "seg").glob("*.png")}

    before = times()
    first, *others = sorted(before)
    (finished / "seg" / first).unlink()
    same = ("--steps", "eval_seg", "--seg_labels", "pseudo")
    run(finished, *SHAPES, *same)
    assert sorted(times()) == sorted(before) and all(times()[name] == before[name] for name in others)
    assert "comparison" not in metrics(finished)["eval_seg"]
    run(finished, *SHAPES, *same, "--seg_crf_iter", "0", "--seg_out_dir", tmp_path / "plain")
    assert not (tmp_path / "plain_before_crf").exists() and "before_crf" not in metrics(finished)["eval_seg"]
    without, wanted = masks(tmp_path / "plain"), masks(finished / "seg_before_crf")
    assert len(wanted) == 3 and all(np.array_equal(without[name], wanted[name]) for name in wanted)


def test_losses_of_networks_trained_before_are_kept(tmp_path):
    give_pseudo_masks(tmp_path)
    train = (*SHAPES, "--steps", "train_seg", "--seg_labels")
    (tmp_path / "sem_seg" / "train_00000.png").rename(tmp_path / "apart.png")
    assert "1 of 6 files are missing" in run(tmp_path, *train, "truth,pseudo", code=2)  # after the first is trained
    before = metrics(tmp_path)["train_seg"]
    assert list(before["loss"]) == ["truth"] and before["images"] == 6 and before["seconds"] > 0
    (tmp_path / "apart.png").rename(tmp_path / "sem_seg" / "train_00000.png")
    run(tmp_path, *train, "truth,pseudo")
    after = metrics(tmp_path)["train_seg"]["loss"]
    assert set(after) == {"truth", "pseudo"} and after["truth"] == before["loss"]["truth"]
    run(tmp_path, *train, "pseudo", "--overwrite")
    assert metrics(tmp_path)["train_seg"]["loss"] == after


@pytest.mark.parametrize(
    ("mask", "message"),
    [(np.zeros((40, 48)), "is 48 x 40, its image is 48 x 48"), (np.full((48, 48), 7), "holds the value 7; wanted")],
)
def test_masks_that_do_not_fit_are_one_line(tmp_path, mask, message):
    give_pseudo_masks(tmp_path)
    save_mask(tmp_path / "sem_seg" / "train_00003.png", mask, voc_palette())
    last = run(tmp_path, *SHAPES, "--steps", "train_seg", "--seg_labels", "pseudo", code=2).splitlines()[-1]
    assert "train_00003.png" in last and message in last


def test_voc_val_and_test(tmp_path):
    kit = make_devkit(tmp_path / "data")
    unlabelled = kit.extra[:2]  # as the real ones: an image and nothing else
    for name in unlabelled:
        (kit.folder / "SegmentationClassAug" / f"{name}.png").unlink()
        (kit.folder / "Annotations" / f"{name}.xml").unlink()
    (kit.folder / "ImageSets/Segmentation/test.txt").write_text("".join(f"{name}\n" for name in unlabelled))
    voc = ["--dataset", "voc12", "--data_root", str(kit.root), "--seg_labels", "truth", "--seg_crf_iter", "1"]
    work_dir = tmp_path / "work"
    run(work_dir, *voc, "--steps", "train_seg-report", "--no-report_pass")
    assert metrics(work_dir)["eval_seg"]["scored"] == len(kit.val)
    valid = sum((kit.masks[name] != 255).sum() for name in kit.val)
    assert np.sum(metrics(work_dir)["eval_seg"]["confusion"]) == valid
    assert [name.removesuffix(".png") for name in masks(work_dir / "seg_truth")] == kit.val
    scored = metrics(work_dir)["eval_seg"]
    assert "no score" in run(work_dir, *voc, "--steps", "eval_seg", "--split", "test")
    predicted = masks(work_dir / "seg_truth/results/VOC2012/Segmentation/comp6_test_cls")
    assert list(predicted) == [f"{name}.png" for name in unlabelled]
    for name in unlabelled:
        assert predicted[f"{name}.png"].shape == kit.masks[name].shape and predicted[f"{name}.png"].max() <= 20
    assert metrics(work_dir)["eval_seg"] == scored and "miou" in scored


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "eval_seg"], "step train_seg makes it"),
        (["--steps", "train_seg", "--seg_labels", "pseudo"], "step make_sem_seg makes those"),
        ([*TRUTH, "--seg_init", "cam"], "step train_cam makes it"),
        ([*TRUTH, "--seg_init", "imagenet"], "no ImageNet weights for resnet14"),
        ([*TRUTH, "--seg_model", "deeplabv3_resnet50", "--seg_accumulate", "4"], "at least 2 images at a time"),
        (["--seg_labels", "rib"], "'rib' is none of pseudo, cam, truth"),
        (["--seg_batch_size", "9", "--seg_accumulate", "2"], "9; wanted a multiple of --seg_accumulate 2"),
        (["--seg_crf", "1,3"], "2 values, wanted 5"),
    ],
)
def test_mistakes_get_one_line(tmp_path, arguments, message):
    assert message in run(tmp_path, *SHAPES, *arguments, code=2).splitlines()[-1]


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_the_crf_of_probabilities(device):
    if device is None:
        pytest.importorskip("pydensecrf")
    rng = np.random.default_rng(0)
    image = np.full((40, 40, 3), 60.0)
    image[:, 20:] = 200
    image = np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
    probabilities = np.full((3, 40, 40), 0.2, np.float32)
    probabilities[0, :, :23], probabilities[1, :, 23:] = 0.6, 0.6  # three columns beyond the edge of the image
    probabilities[:, 10, 10] = 0.1, 0.1, 0.8  # and one lone pixel
    kernels = crf.Kernels(1, 3, 67, 3, 4)
    mask = crf.crf_probabilities(image, probabilities, kernels, 10, device)
    assert mask.dtype == np.uint8 and (mask[:, :20] == 0).all() and (mask[:, 20:] == 1).all()
    unrefined = crf.crf_probabilities(image, probabilities, kernels, 0, device)
    assert np.array_equal(unrefined, probabilities.argmax(0))
