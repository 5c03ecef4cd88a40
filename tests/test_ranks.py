"""A rank that dies takes its job down, with a message and not by waiting; the same command goes on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from data.process import GO_ON
from net.resnet50_cam import Net
from tests.folder_mini import make_folder
from tests.helpers import ROOT, small_command

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
WAIT_S = 300  # for a job on a busy machine; waiting for the dead rank would take a day


def start(work_dir, *arguments, ranks=2):
    python, *program = small_command(work_dir, *arguments)
    return subprocess.Popen(
        [python, *TORCHRUN, *program] if ranks > 1 else [python, *program],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process):
    """(exit code, what it said); nothing of its process group may be left."""
    _, said = process.communicate(timeout=WAIT_S)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return process.returncode, said
        time.sleep(0.1)
    raise AssertionError("some process of the job lives on")


def ranks_of(launcher):
    """Rank -> process id of the children of torchrun."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"RANK=" in folder.joinpath("environ").read_bytes():
                environment = dict(
                    item.partition("=")[::2] for item in folder.joinpath("environ").read_text().split("\0")
                )
                found[int(environment["RANK"])] = int(folder.name)
        except (OSError, ValueError, IndexError):
            continue
    return found


def results(folder, kind):
    return {path.name: path.read_bytes() for path in (folder / kind).glob("[!.]*")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.manual_seed(0)
    torch.save(Net(6, "resnet14").state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_killed_rank_ends_the_job_and_the_rerun_goes_on(tmp_path, trained, dies):
    steps = ("--cam_weights_name", str(trained), "--steps", "make_rib_cam", "--RIB_iter", "12")
    job = start(tmp_path / "two", *steps)
    while job.poll() is None and not list(tmp_path.glob("two/cam_rib/*.npy")):
        time.sleep(0.02)
    os.kill(ranks_of(job.pid)[dies], signal.SIGKILL)
    code, said = finish(job)
    assert code not in (0, None) and "Signal 9 (SIGKILL)" in said  # torchrun's report names the rank too
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("two/cam_rib/*.npy")}
    assert 0 < len(before) < 8
    assert finish(start(tmp_path / "two", *steps))[0] == 0
    assert finish(start(tmp_path / "one", *steps, ranks=1))[0] == 0
    assert results(tmp_path / "two", "cam_rib") == results(tmp_path / "one", "cam_rib")
    assert len(results(tmp_path / "one", "cam_rib")) == 8
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


@pytest.mark.slow
def test_sigterm_to_torchrun_ends_all_ranks_with_one_line(tmp_path, trained):
    job = start(tmp_path, "--cam_weights_name", str(trained), "--steps", "make_rib_cam", "--RIB_iter", "60")
    while job.poll() is None and not list(tmp_path.glob("cam_rib/*.npy")):
        time.sleep(0.02)
    job.terminate()
    code, said = finish(job)
    assert code not in (0, None)
    ours = [line for line in said.splitlines() if line.startswith("run_sample.py: ")]
    assert ours == [f"run_sample.py: stopped by SIGTERM; {GO_ON}"]
    assert not (tmp_path / ".lock").exists() and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_a_bad_image_of_one_rank_is_named_by_the_job(tmp_path):
    mini = make_folder(tmp_path / "data")
    torch.save(Net(3, "resnet14").state_dict(), tmp_path / "w.pth")
    bad = mini.root / "images" / mini.paths[mini.names[1]]  # the second image is rank 1's
    bad.write_bytes(bad.read_bytes()[:300])
    job = start(
        tmp_path / "work", "--dataset", "folder", "--data_root", str(mini.root), "--steps", "make_cam",
        "--cam_weights_name", str(tmp_path / "w.pth"), "--cam_network", "resnet14", "--irn_radius", "4",
    )  # fmt: skip
    code, said = finish(job)
    assert code not in (0, None)
    named = [line for line in said.splitlines() if line.startswith("run_sample.py: ") and bad.name in line]
    assert len(named) == 1 and "cannot be read as an image" in named[0]
    assert "step/make_cam.py" not in said  # no traceback of ours; torchrun adds one of its own


@pytest.mark.slow
def test_ranks_share_one_lock_and_one_refusal(tmp_path, trained):
    steps = ("--cam_weights_name", str(trained), "--steps", "make_rib_cam", "--RIB_iter", "80")
    job = start(tmp_path, *steps)
    while job.poll() is None and not list(tmp_path.glob("cam_rib/*.npy")):
        time.sleep(0.02)
    second = start(tmp_path, *steps)
    code, said = finish(second)
    refused = [line for line in said.splitlines() if "is in use by process" in line]
    assert code not in (0, None) and len(refused) == 1 and str(ranks_of(job.pid)[0]) in refused[0]
    assert finish(job)[0] == 0 and len(results(tmp_path, "cam_rib")) == 8
    assert not (tmp_path / ".lock").exists()
