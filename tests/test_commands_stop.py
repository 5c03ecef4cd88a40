"""Ctrl-C, SIGTERM, a killed worker: a command that prepares data ends with one line and no process left."""

import os
import signal
import sys
import time

import pytest

from data.process import GO_ON
from tests.coco_mini import make_coco
from tests.helpers import children
from tests.test_stopping import WAIT_S, group_is_gone, start, wait_for

pytestmark = pytest.mark.slow

PROGRAM = "coco14.prepare"
# The command as it is, but for the function that writes one mask: that says so and takes for ever.
SLOW = """
import pathlib, sys, time
import coco14.prepare as module
def slow(*_):
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(600)
module.save_mask = slow
raise SystemExit(module.main(sys.argv[2:]))
"""


def begin(folder):
    """The command, once it is in the middle of its work."""
    sign = folder / "busy"
    make_coco(folder, 4, 1)
    process = start([sys.executable, "-c", SLOW, str(sign), "--data_root", str(folder), "--num_workers", "2"])
    wait_for(sign.exists, process)
    return process


def ended(process, code, line):
    _, said = process.communicate(timeout=WAIT_S)
    assert said.splitlines()[-1].startswith(line) and "Traceback" not in said
    assert process.returncode == code and group_is_gone(process.pid)


@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")]
)
def test_a_signal_is_one_line(tmp_path, number, code, how):
    process = begin(tmp_path)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal does
    ended(process, code, f"{PROGRAM}: {how}; {GO_ON}")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_worker_is_one_line(tmp_path):
    process = begin(tmp_path)
    time.sleep(0.2)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    ended(process, 1, f"{PROGRAM}: a worker process ended: DataLoader worker")
