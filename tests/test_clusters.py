"""Runs without a terminal, on some of the cores, on a disk that may be too small, with output that is not UTF-8."""

import argparse
import collections
import contextlib
import logging
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

import data.progress
import misc.run.beforehand
from data.base import Dataset
from data.errors import UserError
from data.process import cores
from data.progress import progress_map
from data.results import load_cam, save_cam
from misc.run.beforehand import check_disk
from tests.folder_mini import make_folder
from tests.helpers import ROOT, said, small_arguments

GB = 1e9


@pytest.fixture
def every_moment(monkeypatch):
    monkeypatch.setattr(data.progress, "LINE_S", 0.05)


def slow(item):
    time.sleep(0.04)
    return item


def test_without_a_terminal_there_is_a_line_now_and_then(every_moment, caplog, capsys):
    with caplog.at_level(logging.INFO):
        assert list(progress_map(slow, range(20), "walk", 0, status=lambda: "half done")) == list(range(20))
    lines = [record.getMessage() for record in caplog.records]
    form = r"walk: (\d+) of 20 images, [\d.]+ a second, 00:0\d left, half done"
    numbers = [int(re.fullmatch(form, line)[1]) for line in lines]
    assert 4 <= len(numbers) <= 19 and numbers == sorted(set(numbers)) and numbers[-1] < 20
    assert capsys.readouterr() == ("", "")


def test_nothing_is_said_of_what_takes_less_than_a_minute(caplog, monkeypatch, capsys):
    with caplog.at_level(logging.INFO):
        assert list(progress_map(slow, range(4), "walk", 0)) == list(range(4))
    monkeypatch.setattr(data.progress, "LINE_S", 0.02)
    monkeypatch.setenv("RANK", "1")  # rank 0 speaks for all
    assert list(progress_map(slow, range(4), "walk", 0)) == list(range(4))
    assert not caplog.records and capsys.readouterr() == ("", "")


def test_a_command_without_a_log_says_it_too(every_moment, monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    list(progress_map(slow, range(8), "fit", 0))
    out, err = capsys.readouterr()
    assert not out and re.match(r"fit: \d of 8 images, [\d.]+ a second, 00:00 left\n", err)


def test_the_loss_of_every_epoch_is_in_the_log(small_run_said):
    folder, text = small_run_said
    losses = re.findall(r"train_cam: epoch (\d+) of 16, loss (\d\.\d{4})\n", text)
    assert [int(epoch) for epoch, _ in losses] == list(range(1, 17)) and float(losses[0][1]) > float(losses[-1][1])
    assert losses == re.findall(r"train_cam: epoch (\d+) of 16, loss (\d\.\d{4})\n", (folder / "log.txt").read_text())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux hands out cores")
def test_workers_are_as_many_as_the_cores_that_may_be_used():
    assert cores() == len(os.sched_getaffinity(0))
    ask = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from misc.run.arguments import parse; from run_sample import STEPS; print(parse(STEPS, [])[0].num_workers)"
    )
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


class COCOSized(Dataset):
    """What the estimate asks for: 82,783 images of 640 x 480 with 3 of 80 classes."""

    name, classes = "coco-sized", tuple(map(str, range(80)))

    def names(self, split):
        return [str(i) for i in range(82_783)]

    def image(self, name):
        return np.broadcast_to(np.uint8(0), (480, 640, 3))

    def label(self, name):
        return np.float32([1] * 3 + [0] * 77)


@pytest.mark.parametrize(
    ("steps", "dtype", "free", "wanted"),
    [
        (["make_cam", "make_rib_cam"], "float16", 700, "cam 162 GB, cam_rib 162 GB; 700 GB are free"),
        (["make_rib_cam"], "float32", 300, "cam_rib 324 GB; 300 GB are free"),  # it may or may not fit
        (["make_ins_seg"], "float32", 700, "ins_seg 76.3 GB; 700 GB are free"),
        (["make_cam", "make_rib_cam"], "float32", 400, None),
        (["train_cam", "eval_cam"], "float32", 1, ""),
    ],
)
def test_the_disk_that_a_run_takes_is_said_first(tmp_path, monkeypatch, caplog, steps, dtype, free, wanted):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(misc.run.beforehand.shutil, "disk_usage", lambda path: usage(free * GB))
    args = argparse.Namespace(
        work_dir=tmp_path / "not/there yet", infer_list="train", limit=None, cam_dtype=dtype, cam_out_dir=None,
        cam_rib_out_dir=None, ins_seg_out_dir=None,
    )  # fmt: skip
    refused = pytest.raises(UserError, match=r"disk: about cam .*are free in .*; free some, .*--cam_dtype float16")
    with caplog.at_level(logging.INFO), contextlib.nullcontext() if wanted is not None else refused:
        check_disk(args, COCOSized(), steps)
    level = logging.WARNING if free == 300 else logging.INFO
    lines = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert lines == [(level, f"disk: about {wanted} in {tmp_path}")] * bool(wanted)


def test_cam_files_of_half_the_size(tmp_path):
    rng = np.random.default_rng(0)
    keys, cam, high_res = np.array([1, 3]), rng.random((2, 24, 32)), rng.random((2, 96, 128))
    for dtype in ("float32", "float16"):
        save_cam(tmp_path / f"{dtype}.npy", keys, cam, high_res, dtype)
        file = load_cam(tmp_path / f"{dtype}.npy", (96, 128), 5)
        assert file["high_res"].dtype == file["cam"].dtype == np.float32
        assert np.abs(file["high_res"] - high_res).max() <= (2**-12 if dtype == "float16" else 1e-7)
    sizes = {path.stem: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["float16"] < 0.51 * sizes["float32"]


def test_a_run_takes_what_was_estimated_and_keeps_the_type_of_its_files(tmp_path):
    arguments = small_arguments(tmp_path, "--steps", "1,2,4", "--cam_num_epoches", "1", "--cam_dtype")
    told = dict(re.findall(r"(cam|cam_rib) ([\d.]+) MB", said(*arguments, "float16")))
    for kind in ("cam", "cam_rib"):
        files = list((tmp_path / kind).glob("*.npy"))
        taken = sum(path.stat().st_size for path in files) / 1e6
        assert 0.9 * taken < float(told[kind]) < 1.02 * taken
        file = np.load(files[0], allow_pickle=True).item()  # as other code reads it
        assert file["cam"].dtype == file["high_res"].dtype == np.float16
    assert "disk" not in said(*arguments, "float16")  # everything exists
    text = said(*arguments, "float32", code=2)
    assert "was created with --cam_dtype float16, now float32. Use --overwrite" in text


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_no_encoding_of_the_output_ends_a_command(tmp_path, encoding):
    mini = make_folder(tmp_path / "Käse 日本語", masks=False)
    command = [sys.executable, "run_sample.py", "--dataset", "folder", "--num_workers", "0", "--check_data"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([*command, "--data_root", str(mini.root)], cwd=ROOT, capture_output=True, env=environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert ("Käse" if encoding != "ascii" else "K\\xe4se") in done.stdout.decode(encoding)
