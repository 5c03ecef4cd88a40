"""What holds for all tests, and the finished runs that they share."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Before torch is loaded. Each process of tests takes one core; threads that wait must not spin, or tests beside other
# work take a hundred times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")


def pytest_addoption(parser):
    parser.addoption(
        "--golden_table", action="store_true", help="print the largest relative error of every golden test"
    )


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--golden_table"):
        from tests.helpers import RECORDED

        worst = {}
        for test, error in RECORDED:
            worst[test] = max(error, worst.get(test, 0.0))
        for test, error in worst.items():
            terminalreporter.write_line(f"| {test.removeprefix('test_')} | {error:.1e} |")


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """once(name, make): a folder that make(folder) has filled, and what make returned.

    Made once for all processes of this session, so nobody may change it: tests that do take a copy.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
        folder, returned = base / f"once_{name}", base / f"once_{name}.pickle"
        with FileLock(base / f"once_{name}.lock"):
            if not returned.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                returned.write_bytes(pickle.dumps(make(folder)))
        return folder, pickle.loads(returned.read_bytes())

    return made


@pytest.fixture(scope="session")
def small_run_said(once):
    """The folder of a run of the whole small pipeline, and what it said. Not to be changed.

    Its classifier has learnt something.
    """
    from tests.helpers import said, small_arguments

    return once("small", lambda folder: said(*small_arguments(folder)))


@pytest.fixture(scope="session")
def small_run(small_run_said):
    """The folder of `small_run_said`."""
    return small_run_said[0]


@pytest.fixture(scope="session")
def untrained(once):
    """The path of weights of a classifier for the six classes of `shapes`."""
    import torch

    from net.resnet50_cam import Net

    def make(folder):
        torch.manual_seed(0)
        torch.save(Net(6, "resnet14").state_dict(), folder / "w.pth")

    return once("untrained", make)[0] / "w.pth"
