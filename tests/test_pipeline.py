"""The whole pipeline as a user runs it: `python run_sample.py` on a handful of generated images."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data.shapes import Shapes
from misc import camfile, insfile, viz
from run_sample import STEPS

ROOT = Path(__file__).parent.parent
SMALL = (
    "--limit 10 --num_workers 1 --cam_num_epoches 1 --cam_batch_size 5 --RIB_iter 3 --RIB_batch_size 2 "
    "--irn_num_epoches 1 --irn_batch_size 5 --exp_times 2"
).split()
NAMES = Shapes().names("train")[:10]


def run(work_dir, *arguments, code=0):
    """Runs run_sample.py and returns what it printed; the exit code must be `code`."""
    command = [sys.executable, "run_sample.py", "--work_dir", str(work_dir), *SMALL, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    return folder, run(folder)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_step_leaves_its_files(finished):
    folder, _ = finished
    suffixes = {"cam": ".npy", "cam_rib": ".npy", "ir_label": ".png", "sem_seg": ".png", "ins_seg": ".npy"}
    for kind, suffix in suffixes.items():
        wanted = [".made_by.json", *(f"{name}{suffix}" for name in NAMES)]
        assert sorted(path.name for path in (folder / kind).iterdir()) == wanted
    for name in ("sess/res50_cam.pth", "sess/res50_irn.pth", "overview.png", "thresholds.png", "args.json", "log.txt"):
        assert (folder / name).stat().st_size > 0
    assert Image.open(folder / "overview.png").width == 7 * (viz.TILE + viz.GAP)  # the last column shows instances
    left = ("*.tmp", "*.checkpoint", ".lock")
    assert not [path for pattern in left for path in folder.rglob(pattern)]


def test_files_hold_what_they_should(finished):
    folder, _ = finished
    dataset = Shapes()
    for name in NAMES:
        for kind in ("cam", "cam_rib"):
            file = camfile.load(folder / kind / f"{name}.npy")
            np.testing.assert_array_equal(file["keys"], np.flatnonzero(dataset.label(name)))
            assert file["cam"].shape[1:] == (24, 24) and file["high_res"].shape[1:] == (96, 96)
            assert 0 <= file["high_res"].min() and 0.9 < file["high_res"].max() <= 1
        classes = {0, *(np.flatnonzero(dataset.label(name)) + 1)}
        assert set(np.unique(Image.open(folder / "ir_label" / f"{name}.png"))) <= classes | {255}
        assert set(np.unique(Image.open(folder / "sem_seg" / f"{name}.png"))) <= classes
        found = insfile.load(folder / "ins_seg" / f"{name}.npy")
        assert found["mask"].shape == (len(found["score"]), 96, 96) and (found["mask"].sum(0) <= 1).all()
        assert {*found["class"] + 1} <= classes and found["score"].max(initial=0) <= 1


def test_metrics_and_provenance(finished):
    folder, printed = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    steps = [step.name for step in STEPS if step.name != "report"]
    assert [step for step in metrics if step != "report"] == steps
    for step in steps:
        assert metrics[step]["seconds"] >= 0 and metrics[step]["images"] == 10
    seed = metrics["eval_rib_cam"]
    assert seed["best"]["miou"] == max(seed["sweep"].values())
    assert seed["sweep"]["0.15"] == seed["fixed"]["miou"] and seed["fixed"]["threshold"] == pytest.approx(0.15)
    assert set(seed["best"]["iou"]) == {"background", *Shapes.classes}
    assert metrics["make_rib_cam"]["RIB_steps"] == {"3": 10}
    pixels = np.sum(metrics["eval_sem_seg"]["confusion"])
    assert pixels == 10 * 96 * 96
    assert f"{100 * metrics['eval_sem_seg']['miou']:.1f}" in printed and "overview.png" in printed
    args = json.loads((folder / "args.json").read_text())
    assert args["arguments"]["RIB_iter"] == 3 and args["sources"]["RIB_iter"] == "command line"
    assert args["sources"]["beta"].startswith("IRN") and args["versions"]["torch"]


def test_finished_files_are_not_made_again(finished):
    folder, _ = finished
    before = files(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    (folder / "cam" / f"{NAMES[3]}.npy").unlink()
    run(folder, "--steps", "1-11")
    after = files(folder)
    assert all(before[path] == after[path] for path in before if path.suffix in (".npy", ".png", ".pth"))
    changed = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == [f"{NAMES[3]}.npy"]


def test_same_bytes_for_any_number_of_workers(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "sess").mkdir()
    for name in ("res50_cam.pth", "res50_irn.pth"):
        (tmp_path / "sess" / name).write_bytes((folder / "sess" / name).read_bytes())
    steps = "make_cam,make_rib_cam,cam_to_ir_label,make_sem_seg,make_ins_seg"
    run(tmp_path, "--steps", steps, "--num_workers", "2", "--coco_json", str(tmp_path / "coco"))
    for kind in ("cam", "cam_rib", "ir_label", "sem_seg", "ins_seg"):
        assert files(tmp_path / kind) == files(folder / kind)
    pseudo = COCO(str(tmp_path / "coco" / "pseudo.json"))
    found = [insfile.load(folder / "ins_seg" / f"{name}.npy") for name in NAMES]
    assert [image["file_name"] for image in pseudo.imgs.values()] == [f"{name}.jpg" for name in NAMES]
    assert len(pseudo.anns) == sum((detected["score"] > 0).sum() for detected in found) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "make_cam"], "step train_cam makes it"),
        (["--steps", "eval_rib_cam"], "step make_rib_cam makes those"),
        (["--steps", "cam_to_ir_label", "--seeds", "cam"], "step make_cam makes those"),
        (["--steps", "make_sem_seg"], "step train_irn makes it"),
        (["--steps", "eval_sem_seg"], "step make_sem_seg makes those"),
        (["--steps", "eval_ins_seg"], "step make_ins_seg makes those"),
        (["--steps", "train_cam", "--cam_batch_size", "64"], "do not fill one batch"),
        (["--train_list", "nowhere.txt", "--steps", "1"], "does not exist"),
        (["--work_dir", "/dev/null/here"], "cannot be written"),
    ],
)
def test_mistakes_get_one_line(tmp_path, arguments, message):
    printed = run(tmp_path, *arguments, code=2)
    assert message in printed
    assert "Traceback" not in printed
    assert len([line for line in printed.splitlines() if line.startswith("run_sample.py: ")]) == 1
