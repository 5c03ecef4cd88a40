"""Two runs compared, and what goes to TensorBoard."""

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image

from data import open_dataset
from misc.metrics import confusion, mean_iou
from misc.report.compare import compare
from misc.report.tables import at
from misc.run import board, outputs
from misc.run.runner import main
from run_sample import STEPS
from tests.report_mini import arguments, finished


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("run"), "--RIB_iter", "3")


def rows_of(text, title):
    """The cells of a table of compare.md."""
    lines = text.split(f"## {title}\n")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][2:]


def test_compare(run, tmp_path, capsys):
    other = finished(tmp_path / "b", "--RIB_iter", "3", "--beta", "5", seed=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    argv = ["--compare", run.work_dir, other.work_dir, "--work_dir", str(tmp_path), "--num_workers", "0"]
    assert main(STEPS, argv) == 0
    text, printed = (tmp_path / "compare.md").read_text(), capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    assert rows_of(text, "Settings") == [["beta", "10", "5"]] and "beta     10  5" in printed
    measured = [outputs.metrics(args) for args in (run, other)]
    stages = {row[0]: row[1:] for row in rows_of(text, "Stages (%)")}
    for label, path in (
        ("pseudo mask, mIoU", "eval_sem_seg.miou"),
        ("seed, RIB, fixed threshold", "eval_rib_cam.fixed.miou"),
        ("IRN label, recall", "eval_sem_seg.ir_label.foreground.recall"),
        ("instances, AP50", "eval_ins_seg.map_50"),
    ):  # fmt: skip
        a, b = (100 * at(values, path) for values in measured)
        assert stages[label] == [f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}"]
        assert " ".join([label, *stages[label]]) in [" ".join(line.split()) for line in printed.splitlines()]
    classes = {row[0]: row[1:] for row in rows_of(text, "Classes")}
    a, b = (100 * values["eval_rib_cam"]["best"]["iou"]["background"] for values in measured)
    assert classes["background"][3:6] == [f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}"]
    images = rows_of(text, "Images that changed most")
    changes = [float(row[1]) for row in images]
    masks = [[np.array(Image.open(f"{args.work_dir}/sem_seg/{row[0]}.png")) for row in images] for args in (run, other)]
    assert changes == pytest.approx([100 * (a != b).mean() for a, b in zip(*masks, strict=True)], abs=0.051)
    assert changes == sorted(changes, reverse=True) and changes[-1] > 0
    truth = open_dataset(run).mask(images[0][0])
    assert images[0][2:] == [f"{100 * mean_iou(confusion(mask[0], truth, 7)):.1f}" for mask in masks]


def test_compare_mistakes(run, tmp_path, capsys):
    assert main(STEPS, ["--compare", run.work_dir, str(tmp_path / "none")]) == 2
    assert "there is no args.json" in capsys.readouterr().err
    finished(tmp_path / "b", "--shapes_size", "40")
    args, _ = arguments(tmp_path, "--compare", run.work_dir, str(tmp_path / "b"))
    assert "saw different images" in compare(args, tmp_path).read_text()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the package tensorboard is not installed")
def test_tensorboard_holds_scores_and_losses(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board.start(tmp_path)
    for step, loss in enumerate((0.5, 0.25)):
        board.scalars("train_cam", {"loss": loss, "learning_rate": 0.1}, step)
    board.scores("eval_cam", outputs.metrics(run)["eval_cam"])
    board.stop()
    board.scalars("train_cam", {"loss": 9.0}, 3)  # nobody listens any more
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("train_cam/loss")] == [0.5, 0.25]
    wanted = outputs.metrics(run)["eval_cam"]
    assert events.Scalars("eval_cam/best/miou")[0].value == pytest.approx(wanted["best"]["miou"])
    assert len(events.Scalars("eval_cam/sweep")) == len(wanted["sweep"])


def test_tensorboard_missing_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code = main(STEPS, ["--work_dir", str(tmp_path), "--tensorboard", "--steps", "report", "--limit", "1"])
    assert code == 2 and "pip install tensorboard" in capsys.readouterr().err
