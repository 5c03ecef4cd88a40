"""Ctrl-C, SIGTERM, a killed worker: the commands that fetch and prepare data end with one line and no process left."""

import os
import signal
import sys
import time

import pytest

from data.process import GO_ON
from tests.coco_mini import make_coco
from tests.test_prepare_voc import make_unprepared
from tests.test_stopping import WAIT_S, group_is_gone, start, wait_for

pytestmark = pytest.mark.slow

# The command as it is, but for the function that makes one mask (or fetches): that says so and takes for ever.
SLOW = """
import pathlib, sys, time
import {module} as module
def slow(*_):
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(600)
module.{function} = slow
raise SystemExit(module.main(sys.argv[2:]))
"""
COMMANDS = {"voc12.prepare": "save_mask", "coco14.prepare": "save_mask", "data.download": "fetch"}


def begin(folder, program):
    """The command, once it is in the middle of its work."""
    sign, arguments = folder / "busy", ["--data_root", str(folder)]
    if program == "voc12.prepare":
        make_unprepared(folder)
    elif program == "coco14.prepare":
        make_coco(folder, 4, 1)
    arguments = [*arguments, "sbd"] if program == "data.download" else [*arguments, "--num_workers", "2"]
    text = SLOW.format(module=program, function=COMMANDS[program])
    process = start([sys.executable, "-c", text, str(sign), *arguments])
    wait_for(sign.exists, process)
    return process


def ended(process, code, line):
    _, said = process.communicate(timeout=WAIT_S)
    assert said.splitlines()[-1].startswith(line) and "Traceback" not in said
    assert process.returncode == code and group_is_gone(process.pid)


@pytest.mark.parametrize("program", COMMANDS)
@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")]
)
def test_a_signal_is_one_line(tmp_path, program, number, code, how):
    process = begin(tmp_path, program)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal does
    ended(process, code, f"{program}: {how}; {GO_ON}")


def children(process):
    """Process ids of its workers."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(number) for number in file.read().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("program", ["voc12.prepare", "coco14.prepare"])
def test_a_killed_worker_is_one_line(tmp_path, program):
    process = begin(tmp_path, program)
    time.sleep(0.2)
    os.kill(children(process)[0], signal.SIGKILL)
    ended(process, 1, f"{program}: a worker process ended: DataLoader worker")
