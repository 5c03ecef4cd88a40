"""The benchmarks run, in their smallest form: what they measure is theirs, that they end is ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_rib_on_a_gpu_runs_in_its_smallest_form(tmp_path):
    small = "--long 64 --crop 48 --companions 2 --steps 2 --network resnet14 --precisions fp32 bf16 --runs 1"
    command = ["-m", "benchmarks.rib_gpu", "--device", "cpu", *small.split(), "--images", "4", "--pool", "6"]
    done = subprocess.run(
        [sys.executable, *command, "--workers", "1", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "rib_gpu.json").read_text())["rows"]
    names = [r["what"].split(",")[0] for r in rows]
    assert names == ["RIB"] * 6 + ["step make_rib_cam"] * 4  # two plain forms, then one image and many sizes
    assert float(rows[2]["agreement"].split(";")[0].removeprefix("error ")) < 1e-4
    assert "waiting for images" in rows[-1]["agreement"] and "step make_rib_cam, fp32, pool" in done.stdout
