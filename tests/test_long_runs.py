"""Kills and memory; `python -m tests.kill_pipeline` and `python -m tests.memory` do and say more."""

import subprocess
import sys

import pytest

from data.results import load_cam, save_cam
from step import eval_cam, make_cam
from tests.helpers import MASKS, ROOT, assert_mixed
from tests.kill_pipeline import Job, kill, kill_all
from tests.memory import measure


def test_the_small_pipeline_has_masks_that_say_something(small_run):
    assert_mixed(small_run, MASKS)
    with pytest.raises(AssertionError, match="cam: 0 of 0"):
        assert_mixed(small_run, ["cam"])


def test_a_part_of_the_pipeline_that_is_killed(tmp_path, small_run, capsys):
    learnt = str(small_run / "sess" / "res50_cam.pth")
    job = Job(("--cam_weights_name", learnt, "--steps", "make_rib_cam,cam_to_ir_label-make_sem_seg"))
    assert kill(job, tmp_path, 2, seed=1, masks=("ir_label", "sem_seg")).total() == 2
    assert "none made twice" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_that_are_killed_again_and_again(capsys):
    assert kill_all(8, 3, seed=2).total() == 17  # compares files and what was made twice by itself
    assert capsys.readouterr().out.count("none made twice") == 4


@pytest.mark.slow
def test_memory_is_flat():
    command = [sys.executable, "-m", "tests.memory", "--images", "500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("leaks", [False, True])
def test_steps_that_keep_one_map_per_image_are_found(monkeypatch, leaks):
    """The control of the measurement; a map is not much: 0.2% more memory after 200 images."""
    kept, save, load = [], save_cam, load_cam

    def keep_saved(path, keys, cam, high_res):
        kept.append(high_res.copy())
        save(path, keys, cam, high_res)

    def keep_loaded(*arguments):
        kept.append(load(*arguments))
        return kept[-1]

    if leaks:
        monkeypatch.setattr(make_cam, "save_cam", keep_saved)
        monkeypatch.setattr(eval_cam, "load_cam", keep_loaded)
    measured = measure(200, 20, size=48, steps=("make_cam", "eval_cam"))
    assert {title: its.too_much(48) for title, its in measured.items()} == {"make_cam": leaks, "eval cam": leaks}
