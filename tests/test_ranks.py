"""A rank that dies takes its job down, with a message and not by waiting; the same command goes on."""

import os
import signal
from pathlib import Path

import pytest
import torch

from data.process import GO_ON
from net.resnet50_cam import Net
from tests.folder_mini import make_folder
from tests.helpers import children, small_command
from tests.test_stopping import group_is_gone, start, wait_for

pytestmark = pytest.mark.slow
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def start_job(work_dir, *arguments, ranks=2, torchrun=False):
    python, *program = small_command(work_dir, *arguments)
    return start([python, *TORCHRUN, *program] if torchrun else [python, *program, "--ranks", str(ranks)])


def start_rib(work_dir, weights, n_iter, **options):
    """A job that makes RIB's CAMs."""
    steps = ("--steps", "make_rib_cam", "--RIB_iter", str(n_iter))
    return start_job(work_dir, "--cam_weights_name", str(weights), *steps, **options)


def wait_for_a_result(job, work_dir):
    wait_for(lambda: list(work_dir.glob("cam_rib/*.npy")), job)


def finish(job):
    """(exit code, what it said); nothing of its process group may be left."""
    _, said = job.communicate(timeout=300)  # on a busy machine; waiting for a dead rank would take a day
    assert group_is_gone(job.pid)
    return job.returncode, said


def results(folder):
    return {path.name: path.read_bytes() for path in folder.glob("cam_rib/*.npy")}


def rank_of(launcher, rank):
    """The process id of a rank."""
    (pid,) = (pid for pid in children(launcher) if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text())
    return pid


@pytest.mark.parametrize("dies", [0, 1])
def test_a_killed_rank_ends_the_job_and_the_rerun_goes_on(tmp_path, untrained, dies):
    job = start_rib(tmp_path / "two", untrained, 12)
    wait_for_a_result(job, tmp_path / "two")
    os.kill(rank_of(job.pid, dies), signal.SIGKILL)
    code, said = finish(job)
    assert code == 128 + signal.SIGKILL
    assert said.splitlines()[-1] == f"run_sample.py: rank {dies} was killed (SIGKILL; out of memory?); {GO_ON}"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("two/cam_rib/*.npy")}
    assert 0 < len(before) < 8
    assert finish(start_rib(tmp_path / "two", untrained, 12))[0] == 0
    assert finish(start_rib(tmp_path / "one", untrained, 12, ranks=1))[0] == 0
    assert results(tmp_path / "two") == results(tmp_path / "one") and len(results(tmp_path / "one")) == 8
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


@pytest.mark.parametrize("torchrun", [False, True])
def test_sigterm_ends_all_ranks_with_one_line(tmp_path, untrained, torchrun):
    job = start_rib(tmp_path, untrained, 60, torchrun=torchrun)
    wait_for_a_result(job, tmp_path)
    job.terminate()
    code, said = finish(job)
    ours = [line for line in said.splitlines() if line.startswith("run_sample.py: ")]
    assert torchrun or (code == 128 + signal.SIGTERM and "Traceback" not in said)
    assert code not in (0, None) and ours == [f"run_sample.py: stopped by SIGTERM; {GO_ON}"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_bad_image_of_one_rank_is_named_by_the_job(tmp_path):
    mini = make_folder(tmp_path / "data")
    torch.save(Net(3, "resnet14").state_dict(), tmp_path / "w.pth")
    bad = mini.root / "images" / mini.paths[mini.names[1]]  # the second image is rank 1's
    bad.write_bytes(bad.read_bytes()[:300])
    job = start_job(
        tmp_path / "work", "--dataset", "folder", "--data_root", str(mini.root), "--steps", "make_cam",
        "--cam_weights_name", str(tmp_path / "w.pth"), "--cam_network", "resnet14", "--irn_radius", "4",
    )  # fmt: skip
    code, said = finish(job)
    (line,) = (line for line in said.splitlines() if line.startswith("run_sample.py: "))
    assert code == 2 and bad.name in line and "cannot be read as an image" in line and "Traceback" not in said


def test_ranks_share_one_lock_and_one_refusal(tmp_path, untrained):
    job = start_rib(tmp_path, untrained, 80)
    wait_for_a_result(job, tmp_path)
    code, said = finish(start_rib(tmp_path, untrained, 80))
    refused = [line for line in said.splitlines() if "is in use by another run" in line]
    assert code not in (0, None) and len(refused) == 1
    assert finish(job)[0] == 0 and len(results(tmp_path)) == 8
