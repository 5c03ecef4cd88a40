"""Before torch is loaded: threads that wait must not spin, or tests beside other work take a hundred times as long."""

import os
import subprocess

import pytest

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
def small_run(tmp_path_factory):
    """The folder of a run of the whole small pipeline; its classifier has learnt something. Not to be changed."""
    from tests.helpers import ROOT, small_command

    folder = tmp_path_factory.mktemp("small_run")
    done = subprocess.run(small_command(folder), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder
