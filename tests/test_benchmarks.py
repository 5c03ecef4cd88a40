"""The benchmarks run, in their smallest form: what they measure is theirs, that they end is ours."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import Budget, row, write
from benchmarks.shapes_seeds import STAGES, story

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
    # Two plain forms, one image, many sizes; the step.
    assert names == ["RIB"] * 6 + ["step make_rib_cam"] * 4
    assert float(rows[2]["agreement"].split(";")[0].removeprefix("error ")) < 1e-4
    assert "waiting for images; 1 workers" in rows[-1]["agreement"] and "Not measured" not in done.stdout
    assert "step make_rib_cam, fp32, pool" in done.stdout


def test_rows_that_there_is_no_time_for_are_named(tmp_path):
    budget = Budget(0.4)
    rows = []
    for what, seconds in {"a": 0.0, "b": 0.45, "c": 0.0, "d": 0.0}.items():
        if budget.allows(what):
            time.sleep(seconds)
            rows.append(row(what, np.array([seconds])))
    assert [r.what for r in rows] == ["a", "b"]
    table = write(rows, tmp_path, "table", budget.skipped)
    assert Budget(10).allows("long", least=9) and not Budget(10).allows("too long", least=11)
    assert json.loads((tmp_path / "table.json").read_text())["skipped"] == ["c", "d"]
    assert table.endswith("Not measured, for lack of time: c; d.\n") and (tmp_path / "table.md").read_text() == table


def test_the_claims_of_the_seeds_are_those_of_the_figures():
    miou = dict(zip(STAGES, ([40, 42], [49, 51], [60, 59], [60, 62], [70, 61], [80, 80]), strict=True))
    claims = story(miou, {"best threshold, CAM": [0.2, 0.1], "best threshold, RIB": [0.3, 0.4]})
    assert list(claims.values()) == [True, True, False, True, True]  # one network from CAM's masks was better
    figures = "least -1.0 (wanted above 0), mean 4.5 (above 3)"
    assert f"network trained on RIB masks over network trained on CAM masks: {figures}" in claims
    claims = story(miou | {"pseudo mask": [49, 60]}, {"best threshold, CAM": [0.01, 0.1]})
    assert list(claims.values())[1::2] == [False, False] and not list(claims.values())[4]
