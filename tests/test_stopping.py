"""SIGTERM and Ctrl-C end a run, whatever it is doing, with one line and nothing left behind."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data.process import GO_ON
from data.results import save_cam
from tests.helpers import ROOT, small_command

WAIT_S = 120  # until the moment has come; generous, for the machine may be busy
MOST_S = 5.0  # from the signal to the end of the last process
TRIES = 3  # for the same reason: slow every time is the program, not the machine
SIZE = 512  # of the images whose CRF is interrupted


def wait_for(condition, process):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.05)


def group_is_gone(group):
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def start(command):
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


TRAINING = ("--steps", "train_cam", "--cam_num_epoches", "1000")
RIB = ("--steps", "train_cam,make_rib_cam", "--cam_num_epoches", "1", "--RIB_iter", "1000")
CRF = ("--steps", "cam_to_ir_label", "--seeds", "cam", "--shapes_size", str(SIZE))


def write_seeds(work_dir):
    """CAM files for large images, over which a CRF takes seconds."""
    random = np.random.default_rng(0)
    for i in range(8):
        path = work_dir / "cam" / f"train_{i:05d}.npy"
        save_cam(path, np.array([i % 6]), random.random((1, SIZE // 4, SIZE // 4)), random.random((1, SIZE, SIZE)))


def stop(work_dir, number, workers, arguments, sign):
    """Starts a run, sends a signal once it is busy, and checks what it leaves; seconds from the signal to the end."""
    process = start(small_command(work_dir, *arguments, "--num_workers", workers))
    wait_for((work_dir / sign).exists, process)
    if "made_by" in sign:
        time.sleep(1.0)  # until the images are in work
    begin = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=WAIT_S)
    assert group_is_gone(process.pid)  # its loader workers too
    seconds = time.monotonic() - begin
    code, how = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "stopped by SIGTERM")}[number]
    assert process.returncode == code
    assert said.splitlines()[-1] == f"run_sample.py: {how}; {GO_ON}"
    assert "Traceback" not in said
    assert not [path for path in work_dir.rglob("*") if path.suffix == ".tmp"]
    return seconds


@pytest.mark.parametrize(
    ("number", "workers", "arguments", "sign"),
    [
        (signal.SIGINT, "2", TRAINING, "sess/res50_cam.checkpoint"),
        pytest.param(signal.SIGTERM, "2", RIB, "cam_rib/.made_by.json", marks=pytest.mark.slow),
        (signal.SIGTERM, "2", CRF, "ir_label/.made_by.json"),
        pytest.param(signal.SIGINT, "0", CRF, "ir_label/.made_by.json", marks=pytest.mark.slow),
    ],
    ids=["train_cam", "make_rib_cam", "CRF in workers", "CRF in the process"],
)
def test_a_signal_ends_the_run_in_time(tmp_path, number, workers, arguments, sign):
    seconds = []
    while len(seconds) < TRIES and min(seconds, default=MOST_S) >= MOST_S:
        work_dir = tmp_path / str(len(seconds))
        if "cam_to_ir_label" in arguments:
            write_seeds(work_dir)
        seconds.append(stop(work_dir, number, workers, arguments, sign))
    assert min(seconds) < MOST_S, f"from the signal to the end: {seconds} s"


FORKS = """
import os, sys, time
from data.process import in_worker, on_signals
reader, writer = os.pipe()
with on_signals(first=True):
    for _ in range(3):
        if os.fork() == 0:
            in_worker()
            os.write(writer, b"x")
            time.sleep(600)
            os._exit(0)
    for _ in range(3):
        os.read(reader, 1)
    print("busy", file=sys.stderr, flush=True)
    time.sleep(600)
"""
OUTSIDE = """
import hashlib, sys
from data.process import on_signals
with on_signals(first=True, again="go on"):
    print("busy", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)  # hours outside Python
"""


@pytest.mark.parametrize(
    ("program", "number", "wanted"),
    [
        pytest.param(
            FORKS, signal.SIGKILL, "",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process dies with its parent"),
        ),
        (OUTSIDE, signal.SIGTERM, "\nrun_sample.py: stopped by SIGTERM; go on\n"),
    ],
    ids=["killed with workers", "computing outside Python"],
)  # fmt: skip
def test_nothing_outlives_a_signal(program, number, wanted):
    process = start([sys.executable, "-W", "ignore", "-c", program])
    assert process.stderr.readline() == "busy\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=WAIT_S)
    assert said == wanted and process.returncode == (143 if number == signal.SIGTERM else -number)
    assert group_is_gone(process.pid)
