"""What a process does besides its work: how a rank ends, Jupyter, other systems."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from data import failures
from data.process import SIGNALS, run_ranks
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


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def own_program(tmp_path, step):
    (tmp_path / "own_step.py").write_text(step)
    (tmp_path / "program.py").write_text(PROGRAM)
    return [str(tmp_path / "program.py"), "--device", "cpu", "--work_dir", str(tmp_path / "work")]


@pytest.mark.parametrize("bad_rank", [1, pytest.param(2, marks=pytest.mark.slow)])  # of 0 and 1
def test_a_rank_ends_in_order_and_with_the_traceback_of_a_bug(tmp_path, bad_rank):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, *own_program(tmp_path, RANK), "--seed", str(bad_rank)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == (bad_rank == 2)
    assert "terminate called" not in done.stderr and "Signal 6" not in done.stderr
    assert ("RuntimeError: a bug" in done.stderr) == (bad_rank == 1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_leaves_a_jupyter_kernel_alive(tmp_path):
    command = [sys.executable, "-c", NOTEBOOK, *own_program(tmp_path, SLEEPER)]
    kernel = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert kernel.stdout.readline() == "busy\n"
    time.sleep(0.2)
    kernel.send_signal(signal.SIGINT)
    said, errors = kernel.communicate(timeout=60)
    assert (kernel.returncode, said) == (0, "alive\n")
    assert "Traceback" not in errors


def test_windows_gets_one_line(monkeypatch):
    monkeypatch.setattr(failures.sys, "platform", "win32")
    with pytest.raises(SystemExit, match="needs Linux or macOS; on Windows, run it in WSL"):
        failures.prepare_process()


def ranks(capfd, code, n=2):
    """The exit code of n ranks of a piece of Python that knows `rank`, and what they and their launcher said."""
    script = f"import os, signal, sys, time; rank = int(os.environ['RANK'])\n{code}"
    before = {number: signal.getsignal(number) for number in SIGNALS}
    got = run_ranks(n, [sys.executable, "-c", script], again="go on")
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    return got, capfd.readouterr()


def test_ranks_know_each_other(capfd, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    names = "'RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'OMP_NUM_THREADS', 'TORCHELASTIC_USE_AGENT_STORE'"
    code, said = ranks(capfd, f"sys.stdout.write(' '.join(os.environ.get(key, '-') for key in ({names})) + chr(10))")
    assert code == 0 and sorted(said.out.splitlines()) == ["0 0 2 3 -", "1 1 2 3 -"] and not said.err


@pytest.mark.parametrize(
    ("died", "code", "told"),
    [
        ("sys.exit(2)", 2, ""),
        ("os.kill(os.getpid(), 9)", 137, "run_sample.py: rank 1 was killed (SIGKILL; out of memory?); go on"),
        ("os.kill(os.getpid(), 6)", 134, "run_sample.py: rank 1 was killed (SIGABRT); go on"),
        ("sys.exit(143)", 143, "run_sample.py: rank 1 was stopped by SIGTERM; go on"),
    ],
)
def test_a_rank_that_fails_ends_the_others(capfd, died, code, told):
    got, said = ranks(capfd, f"{died} if rank else time.sleep(600)")
    assert got == code and said.err.strip() == told


@pytest.mark.parametrize(("number", "how"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "stopped by SIGTERM")])
def test_a_signal_ends_all_ranks_with_one_line(capfd, number, how):
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    try:
        code, said = ranks(capfd, "time.sleep(600)")
    finally:
        timer.cancel()
    assert code == 128 + number and said.err == f"\nrun_sample.py: {how}; go on\n"
