"""Kills and memory over long runs; `python -m tests.kill_pipeline` and `python -m tests.memory` do and say more."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT
from tests.kill_pipeline import kill


@pytest.mark.slow
def test_a_pipeline_that_is_killed_again_and_again(capsys):
    assert kill(8, seed=2).total() == 8  # compares files and what was made twice by itself
    assert "none made twice" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_is_flat():
    command = [sys.executable, "-m", "tests.memory", "--images", "600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
