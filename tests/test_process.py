"""What a process does besides its work: how a rank ends, what a terminal cannot show, Jupyter, other systems."""

import os
import signal
import subprocess
import sys
import time

import pytest

from data import failures
from tests.helpers import ROOT

PROGRAM = """
import sys
from misc.run.runner import Step
from run_sample import main
sys.exit(main((Step(1, "own", "own_step", "nothing", "nothing", needs_dataset=False),), sys.argv[1:]))
"""
RANK = """
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from misc import torchutils
kept = []  # the model and its group are still referenced when the process ends
def run(args):
    kept.append((DistributedDataParallel(torch.nn.Linear(2, 2)), dist.group.WORLD))
    kept[0][0](torch.ones(1, 2)).sum().backward()
    if torchutils.rank() == args.seed:
        raise RuntimeError("a bug")
    torchutils.barrier()
"""
SLEEPER = """
import time
def run(args):
    print("busy", flush=True)
    time.sleep(60)
"""
NOTEBOOK = """
import signal, sys, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # as a kernel has it
sys.modules["ipykernel"] = types.ModuleType("ipykernel")
program = sys.argv.pop(1)
try:
    exec(compile(open(program).read(), program, "exec"))
except KeyboardInterrupt:
    print("alive", flush=True)
"""
CHEESE = """
import numpy as np
from data.base import Dataset
PRESET = {}
def open_dataset(args): return Cheese()
class Cheese(Dataset):
    name, classes = "cheese", ("Käse \\u2713",)
    def names(self, split): return ["a"]
    def image(self, name): return np.zeros((8, 8, 3), np.uint8)
    def label(self, name): return np.ones(1, np.float32)
"""


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def own_program(tmp_path, step):
    (tmp_path / "own_step.py").write_text(step)
    (tmp_path / "program.py").write_text(PROGRAM)
    return [str(tmp_path / "program.py"), "--device", "cpu", "--work_dir", str(tmp_path / "work")]


@pytest.mark.parametrize("bad_rank", [1, pytest.param(2, marks=pytest.mark.slow)])  # of 0 and 1
def test_a_rank_ends_in_order_and_with_the_traceback_of_a_bug(tmp_path, bad_rank):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, *own_program(tmp_path, RANK), "--seed", str(bad_rank)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == (bad_rank == 2)
    assert "terminate called" not in done.stderr and "Signal 6" not in done.stderr
    assert ("RuntimeError: a bug" in done.stderr) == (bad_rank == 1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_leaves_a_jupyter_kernel_alive(tmp_path):
    command = [sys.executable, "-c", NOTEBOOK, *own_program(tmp_path, SLEEPER)]
    kernel = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert kernel.stdout.readline() == "busy\n"
    time.sleep(0.2)
    kernel.send_signal(signal.SIGINT)
    said, errors = kernel.communicate(timeout=60)
    assert (kernel.returncode, said) == (0, "alive\n")
    assert "Traceback" not in errors


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_a_name_gets_it_escaped(tmp_path, encoding):
    (tmp_path / "cheese.py").write_text(CHEESE, encoding="utf-8")
    command = [sys.executable, "run_sample.py", "--dataset", str(tmp_path / "cheese.py"), "--check_data"]
    done = subprocess.run(
        [*command, "--num_workers", "0", "--val_list", "train"],
        cwd=ROOT, env=environment(PYTHONIOENCODING=encoding), capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name = {"ascii": b"K\\xe4se \\u2713", "latin-1": "Käse \\u2713".encode("latin-1")}[encoding]
    assert name in done.stdout


def test_windows_gets_one_line(monkeypatch):
    monkeypatch.setattr(failures.sys, "platform", "win32")
    with pytest.raises(SystemExit, match="needs Linux or macOS; on Windows, run it in WSL"):
        failures.prepare_process()
