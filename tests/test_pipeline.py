"""The whole pipeline on a handful of generated images: its files, its figures, its mistakes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data.results import load_cam, load_instances
from data.shapes import Shapes
from misc.metrics import confusion, mean_iou
from run_sample import STEPS
from tests.helpers import documented, said, small_arguments

PICTURES = ("report.html", "overview.png", "thresholds.png")
SIDE = 48
DATA = Shapes(12, 8, SIDE)
NAMES = DATA.names("train")[:8]


def run(work_dir, *arguments, code=0):
    return said(*small_arguments(work_dir, *arguments), code=code)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_step_leaves_its_files(small_run):
    folder = small_run
    arrays, masks = ("cam", "cam_rib", "ins_seg"), ("ir_label", "sem_seg", "sem_seg_cam", "edge")
    for kind, suffix in {**dict.fromkeys(arrays, ".npy"), **dict.fromkeys(masks, ".png")}.items():
        record = [] if kind == "edge" else [".made_by.json"]  # the boundary maps come with the masks
        wanted = [*record, *(f"{name}{suffix}" for name in NAMES)]
        assert sorted(path.name for path in (folder / kind).iterdir()) == wanted
    for name in ("sess/res50_cam.pth", "sess/res50_irn.pth", *PICTURES, "args.json", "log.txt"):
        assert (folder / name).stat().st_size > 0
    assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".checkpoint")]


def test_files_hold_what_they_should(small_run):
    folder = small_run
    for name in NAMES:
        for kind in ("cam", "cam_rib"):
            file = load_cam(folder / kind / f"{name}.npy")
            np.testing.assert_array_equal(file["keys"], np.flatnonzero(DATA.label(name)))
            assert file["cam"].shape[1:] == (12, 12) and file["high_res"].shape[1:] == (SIDE, SIDE)
            assert 0 <= file["high_res"].min() and 0.9 < file["high_res"].max() <= 1
        classes = {0, *(np.flatnonzero(DATA.label(name)) + 1)}
        assert set(np.unique(Image.open(folder / "ir_label" / f"{name}.png"))) <= classes | {255}
        assert set(np.unique(Image.open(folder / "sem_seg" / f"{name}.png"))) <= classes
        edge = Image.open(folder / "edge" / f"{name}.png")
        assert edge.mode == "L" and edge.size == (12, 12) and len(set(edge.tobytes())) > 10
        found = load_instances(folder / "ins_seg" / f"{name}.npy")
        assert found["mask"].shape == (len(found["score"]), SIDE, SIDE) and (found["mask"].sum(0) <= 1).all()
        assert {*found["class"] + 1} <= classes and found["score"].max(initial=0) <= 1


def test_metrics_and_provenance(small_run_said):
    folder, printed = small_run_said
    metrics = json.loads((folder / "metrics.json").read_text())
    steps = [step.name for step in STEPS if step.number is not None and step.name != "report"]
    assert [step for step in metrics if step != "report"] == ["schema", *steps] and metrics["schema"] == 1
    for step in steps:
        assert metrics[step]["seconds"] >= 0 and metrics[step]["images"] == 8
    seed = metrics["eval_rib_cam"]
    assert seed["best"]["miou"] == max(seed["sweep"].values())
    assert seed["sweep"]["0.15"] == seed["fixed"]["miou"] and seed["fixed"]["threshold"] == pytest.approx(0.15)
    assert set(seed["best"]["iou"]) == {"background", *Shapes.classes}
    assert metrics["make_rib_cam"]["RIB_steps"] == {"2": 8}
    labels = np.stack([Image.open(folder / "ir_label" / f"{name}.png") for name in NAMES])
    masks = metrics["eval_sem_seg"]
    assert np.sum(masks["confusion"]) == 8 * SIDE**2 and masks["ir_label"]["ignored"] == (labels == 255).mean()
    assert np.sum(masks["ir_label"]["confusion"]) == (labels != 255).sum() and masks["ir_label"]["images"] == 8
    per_image = json.loads((folder / "per_image.json").read_text())["sem_seg"]
    first = confusion(np.array(Image.open(folder / "sem_seg" / f"{NAMES[0]}.png")), DATA.mask(NAMES[0]), 7)
    assert list(per_image) == NAMES and per_image[NAMES[0]] == round(mean_iou(first), 4)
    assert set(metrics["eval_seg"]["comparison"]) == {"rib", "cam", "truth"}
    assert metrics["eval_seg"]["comparison"]["rib"] == metrics["eval_seg"]["miou"]
    assert re.search(r"^network trained on ground truth +\d", printed, re.MULTILINE)
    assert f"{100 * masks['miou']:.1f}" in printed and "overview.png" in printed
    args = json.loads((folder / "args.json").read_text())
    assert args["arguments"]["RIB_iter"] == 2 and args["sources"]["RIB_iter"] == "command line"
    assert args["sources"]["beta"].startswith("IRN") and args["versions"]["torch"]


def patterns(metrics):
    """Every key of metrics.json as docs/metrics.md writes it."""
    evaluations = ("eval_cam", "eval_rib_cam")

    def walk(value, path):
        if not isinstance(value, dict):
            yield ".".join(path)
            return
        for key, below in value.items():
            if path and path[-1] in ("iou", "average_precision", "ap_50", "ap_70", "ap_50_95"):
                key = "CLASS"
            elif path and path[-1] in ("sweep", "RIB_steps"):
                key = "T" if path[-1] == "sweep" else "K"
            elif path in (["train_seg", "loss"], ["eval_seg", "comparison"]):
                key = "LABELS"
            yield from walk(below, [*path, key])

    for step, values in metrics.items():
        for path in walk(values, [step]):
            last = path.split(".")[1:]
            if last in (["seconds"], ["images"], ["of"], ["notes"]):
                path = f"STEP.{last[0]}"
            yield f"EVAL.{'.'.join(last)}" if step in evaluations and not path.startswith("STEP") else path


def test_every_key_of_the_metrics_is_documented(small_run):
    metrics = json.loads((small_run / "metrics.json").read_text())
    apart = ("toy.", "ablate.", "strips.")  # not of the pipeline
    found, said = set(patterns(metrics)), [key for key in documented() if not key.startswith(apart)]
    assert found == set(said) and len(said) == len(set(said))


def test_finished_files_are_not_made_again(small_run, tmp_path):
    folder = Path(shutil.copytree(small_run, tmp_path / "work"))
    before = files(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    (folder / "cam" / f"{NAMES[3]}.npy").unlink()
    assert "replaced since" not in run(folder)  # every step again: what one made still fits what the next was made from
    after = files(folder)
    same = [path for path in before if path.suffix in (".npy", ".png", ".pth") and path.name not in PICTURES]
    assert len(same) > 60 and all(before[path] == after[path] for path in same)
    changed = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == [f"{NAMES[3]}.npy"]


def test_same_bytes_for_any_number_of_workers(small_run, tmp_path):
    folder = small_run
    (tmp_path / "sess").mkdir()
    for name in ("res50_cam.pth", "res50_irn.pth"):
        (tmp_path / "sess" / name).write_bytes((folder / "sess" / name).read_bytes())
    steps = "make_cam,make_rib_cam,cam_to_ir_label,make_sem_seg,make_ins_seg"
    run(tmp_path, "--steps", steps, "--num_workers", "2", "--coco_json", str(tmp_path / "coco"))
    for kind in ("cam", "cam_rib", "ir_label", "sem_seg", "edge", "ins_seg"):
        assert files(tmp_path / kind) == files(folder / kind)
    pseudo = COCO(str(tmp_path / "coco" / "pseudo.json"))
    found = [load_instances(folder / "ins_seg" / f"{name}.npy") for name in NAMES]
    assert [image["file_name"] for image in pseudo.imgs.values()] == [f"{name}.jpg" for name in NAMES]
    assert len(pseudo.anns) == sum((detected["score"] > 0).sum() for detected in found) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "make_cam"], "step train_cam makes it"),
        (["--steps", "eval_rib_cam"], "step make_rib_cam makes those"),
        (["--steps", "make_sem_seg"], "step train_irn makes it"),
        (["--train_list", "nowhere.txt", "--steps", "1"], "does not exist"),
        (["--work_dir", "/dev/null/here"], "cannot be written"),
    ],
)
def test_mistakes_get_one_line(tmp_path, arguments, message):
    printed = run(tmp_path, *arguments, code=2)
    assert message in printed
    assert "Traceback" not in printed
    assert len([line for line in printed.splitlines() if line.startswith("run_sample.py: ")]) == 1


@pytest.mark.slow
def test_the_preset_as_it_is(tmp_path):
    """The networks and sizes of `make sample`, on a few images; a second call makes nothing again."""
    few = "--device cpu --shapes_train 16 --shapes_val 4 --limit 4 --num_workers 1 --cam_num_epoches 1 --seg_iter 4"
    argv = ["--work_dir", tmp_path, *few.split(), "--irn_num_epoches", "1"]
    said(*argv)
    masks = {path.name: path.read_bytes() for path in (tmp_path / "seg").glob("*.png")}
    assert len(masks) == 4 and (tmp_path / "report.html").stat().st_size > 0
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.*") if path.suffix in (".npy", ".pth")}
    said(*argv)
    assert kept and kept == {path: path.stat().st_mtime_ns for path in kept}


def test_a_network_that_segmentation_cannot_start_from_is_named_first(tmp_path):
    text = said("--work_dir", tmp_path, "--cam_network", "resnet50", code=2)
    assert "--seg_model deeplabv2_timm:tf_efficientnet_lite0 cannot start from the classifier's" in text
