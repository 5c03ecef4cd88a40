"""Two runs compared, and what goes to TensorBoard."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from data.files import save_json
from misc.report.compare import compare
from misc.run import board, metricsfile
from misc.run.runner import main
from run_sample import STEPS
from tests.report_mini import Page, arguments, finished


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("run"), "--RIB_iter", "3")


def test_compare(run, tmp_path):
    other = finished(tmp_path / "b", "--RIB_iter", "3", "--beta", "5", seed=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    argv = ["--compare", run.work_dir, other.work_dir, "--work_dir", str(tmp_path), "--num_workers", "0"]
    assert main(STEPS, argv) == 0
    text = (tmp_path / "compare.html").read_text()
    assert {path: path.read_bytes() for path in before} == before
    page = Page(text)
    assert "beta10" + "5" in page.text and "RIB_iter" not in page.text
    shown = [value for path, value in page.shown if path == "eval_sem_seg.miou"]
    values = [metricsfile.metrics(args)["eval_sem_seg"]["miou"] for args in (run, other)]
    assert shown == [f"{100 * value:.1f}" for value in values]
    assert f"{100 * (values[1] - values[0]):+.1f}" in page.text
    shares = [float(card["data-score"]) for card in page.cards()]
    masks = [[np.array(Image.open(f"{args.work_dir}/sem_seg/{card['data-name']}.png")) for card in page.cards()]
             for args in (run, other)]  # fmt: skip
    assert shares == pytest.approx([(a != b).mean() for a, b in zip(*masks, strict=True)], abs=1e-4)
    assert shares == sorted(shares, reverse=True) and shares[-1] > 0


def test_compare_seeds_where_there_are_no_masks(tmp_path):
    runs = [finished(tmp_path / name, steps="eval_cam,eval_rib_cam", seed=i) for i, name in enumerate("ab")]
    for path in [*tmp_path.glob("*/sem_seg/*"), *tmp_path.glob("a/cam_rib/*")]:
        path.unlink()
    args, _ = arguments(tmp_path, "--compare", *(run.work_dir for run in runs))
    page = Page(compare(args, tmp_path).read_text())
    assert "have a CAM seed of" in page.text and page.cards()


@pytest.mark.parametrize(("argv", "text"), [(["--shapes_size", "40"], "saw different images"), ([], "have the same")])
def test_compare_runs_without_a_difference_to_show(run, tmp_path, argv, text):
    finished(tmp_path / "b", *argv)
    args, _ = arguments(tmp_path, "--compare", run.work_dir, str(tmp_path / "b"))
    page = Page(compare(args, tmp_path).read_text())
    assert text in page.text and not page.cards()


def test_compare_mistakes(run, tmp_path, capsys):
    assert main(STEPS, ["--compare", run.work_dir, str(tmp_path / "none")]) == 2
    assert "there is no args.json" in capsys.readouterr().err
    stored = json.loads((Path(run.work_dir) / "args.json").read_text())
    (tmp_path / "own.py").write_text(
        "from data.shapes import Shapes\nPRESET = {}\n"
        "class Own(Shapes):\n    name = 'own'\ndef open_dataset(args):\n    return Own(4, 4, 32)\n"
    )
    stored["arguments"] |= {"dataset": str(tmp_path / "own.py"), "limit": 4}
    save_json(tmp_path / "args.json", stored)
    args, _ = arguments(tmp_path, "--compare", run.work_dir, str(tmp_path))
    with pytest.raises(UserError, match="wanted two runs of one dataset"):
        compare(args, tmp_path)


# TensorBoard


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the package tensorboard is not installed")
def test_tensorboard_holds_scores_and_losses(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board.start(tmp_path)
    for step, loss in enumerate((0.5, 0.25)):
        board.scalars("train_cam", {"loss": loss, "learning_rate": 0.1}, step)
    board.scores("eval_cam", metricsfile.metrics(run)["eval_cam"])
    board.stop()
    board.scalars("train_cam", {"loss": 9.0}, 3)  # nobody listens any more
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("train_cam/loss")] == [0.5, 0.25]
    wanted = metricsfile.metrics(run)["eval_cam"]
    assert events.Scalars("eval_cam/best/miou")[0].value == pytest.approx(wanted["best"]["miou"])
    assert len(events.Scalars("eval_cam/sweep")) == len(wanted["sweep"])


def test_tensorboard_missing_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code = main(STEPS, ["--work_dir", str(tmp_path), "--tensorboard", "--steps", "report", "--limit", "1"])
    assert code == 2 and "pip install tensorboard" in capsys.readouterr().err
