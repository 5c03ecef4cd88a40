"""Full, read-only, forbidden and vanished disks: one clear line, finished files whole, nothing else left."""

import errno
import importlib
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch

from data.errors import UserError
from data.failures import explain
from data.files import FileError, save_json, save_torch, write_atomic
from data.images import save_mask, voc_palette
from data.results import load_cam
from misc.run.recording import naming
from net.resnet50_cam import Net
from tests.folder_mini import make_folder
from tests.helpers import ROOT, said, small_command
from tests.test_stopping import start, wait_for

NOBODY = 65534


def mount(folder, *options):
    return subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount(folder, "-t", "tmpfs", "-o", "size=64k", "none"):
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def run(work_dir, *arguments, before=()):
    """(exit code, its complaints) of run_sample.py; no traceback, whatever happens."""
    command = [*before, *small_command(work_dir, *arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("run_sample.py: ")]
    return done.returncode, [line.removeprefix("run_sample.py: ") for line in lines]


def test_shared_memory_may_be_too_small(tmp_path, untrained):
    """As in a container: the workers' images take another way, where torch's loader would wait for ever."""
    steps = ["--shapes_size", "192", "--num_workers", "2", "--steps", "make_cam", "--cam_weights_name", str(untrained)]
    small = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"'
    if subprocess.run(["unshare", "-m", "bash", "-c", small, "x", "true"], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    assert run(tmp_path, *steps, before=["unshare", "-m", "bash", "-c", small, "x"]) == (0, [])
    assert len(list(tmp_path.glob("cam/*.npy"))) == 8


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_torch(path, {"a": torch.rand(40_000)}),
        lambda path: write_atomic(path, lambda file: np.save(file, np.zeros(40_000))),
        lambda path: save_json(path, ["x"] * 40_000),
        lambda path: save_mask(path, np.random.default_rng(0).integers(0, 255, (400, 400)), voc_palette()),
    ],
    ids=["torch", "npy", "JSON", "PNG"],
)
def test_a_full_disk_leaves_nothing_of_a_file(disk, write):
    (disk / "x").write_bytes(b"old")
    with pytest.raises(FileError) as error:
        write(disk / "x")
    message = str(error.value)
    assert message.startswith(f"{disk / 'x'} cannot be written: ") and "run the command again" in message
    assert os.listdir(disk) == ["x"] and (disk / "x").read_bytes() == b"old"


def test_a_run_on_a_full_disk_goes_on_with_more_space(disk, untrained):
    arguments = ("--steps", "make_cam", "--cam_weights_name", str(untrained))
    code, said = run(disk / "work", *arguments)
    assert (code, len(said)) == (2, 1) and said[0].startswith("disk: about cam 0.0783 MB; 0.0")
    assert mount(disk, "-o", "remount,size=88k")  # enough by the estimate, which knows nothing of blocks
    code, said = run(disk / "work", *arguments)
    assert code == 2 and len(said) <= 2  # the second one is of the log
    assert "cannot be written: No space left on device. Free some space and run the command again" in said[-1]
    finished = {path: path.stat().st_mtime_ns for path in (disk / "work" / "cam").glob("*.npy")}
    assert 0 < len(finished) < 8 and all(load_cam(path) for path in finished)
    assert not list(disk.rglob("*.tmp"))
    assert mount(disk, "-o", "remount,size=1m")
    assert run(disk / "work", *arguments) == (0, [])
    assert len(list((disk / "work" / "cam").glob("*.npy"))) == 8
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())


def test_a_read_only_disk(disk, untrained):
    assert mount(disk, "-o", "remount,ro")
    code, said = run(disk / "work", "--steps", "make_cam", "--cam_weights_name", str(untrained))
    assert (code, len(said)) == (2, 1) and "Read-only file system; choose another" in said[0]


def test_missing_permission(tmp_path, untrained):
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("only root can make a folder somebody else's, and setpriv take root's privilege to write there")
    (tmp_path / "cam").mkdir()
    os.chown(tmp_path / "cam", NOBODY, NOBODY)
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    code, said = run(tmp_path, "--steps", "make_cam", "--cam_weights_name", str(untrained), before=bound)
    assert (code, len(said)) == (2, 1), said
    assert "cam/.made_by.json cannot be written: Permission denied. Check its permissions" in said[0]


def test_data_that_vanish_in_mid_run(tmp_path):
    mini = make_folder(tmp_path / "data")
    torch.save(Net(3, "resnet14").state_dict(), tmp_path / "w.pth")
    work = tmp_path / "work"
    command = small_command(
        work, "--dataset", "folder", "--data_root", str(mini.root), "--steps", "make_rib_cam",
        "--cam_weights_name", str(tmp_path / "w.pth"), "--cam_network", "resnet14", "--RIB_iter", "40",
        "--RIB_lr", "1e-8", "--irn_radius", "4", "--RIB_resize_long", "56,96",
    )  # fmt: skip
    process = start(command)
    wait_for(lambda: list(work.glob("cam_rib/*.npy")), process)
    shutil.move(mini.root, tmp_path / "elsewhere")
    _, said = process.communicate(timeout=200)
    assert process.returncode == 2 and "Traceback" not in said, said
    last = said.splitlines()[-1]
    assert "does not exist" in last and f"--data_root {mini.root} is gone (is it mounted?)" in last
    finished = list(work.glob("cam_rib/*.npy"))
    assert finished and all(load_cam(path) for path in finished) and not list(work.rglob("*.tmp"))


# what an error looks like


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (UserError("x.png is missing"), "x.png is missing", 2),
        (FloatingPointError("the loss is nan"), "the loss is nan", 1),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b cannot be used: No space left on device.", 2),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a cannot be used: Permission denied. Check", 2),
        (MemoryError(), "out of memory; to resume, run the same command again", 1),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a worker process ended: DataL", 1),
        (KeyboardInterrupt(), "interrupted; to resume, run the same command again", 130),
    ],
)  # fmt: skip
def test_an_error_is_one_line(error, text, code):
    line, got = explain(error)
    assert text in line and "\n" not in line and got == code


def test_bugs_keep_their_traceback(monkeypatch):
    assert explain(ZeroDivisionError("division by zero")) is None
    lost = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:9")
    assert explain(lost) is None  # there is one rank only
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert explain(lost)[0].startswith("rank 1: lost the other ranks ([../gloo")
    nccl = (
        "NCCL error in: /x/NCCLUtils.cpp:94, invalid usage, NCCL version 2.26.2\nncclInvalidUsage: This usually "
        "reflects invalid usage.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 4000"
    )
    line, code = explain(RuntimeError(f"{nccl}\nException raised from x at y.cpp:77\nframe #0: c10::Error"))
    assert line.startswith("rank 1: NCCL error in") and "Duplicate GPU detected : rank 1 and rank 0" in line
    assert "\n" not in line and "frame #0" not in line and code == 1
    assert "(wait timeout" in explain(torch.distributed.DistStoreError("wait timeout after 9 ms"))[0]
    assert explain(RuntimeError("the weights are not restored")) is None


ANEW = "{} or a smaller --RIB_{} with --steps make_rib_cam-report --overwrite"


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["train_cam"], "raise --cam_accumulate and run the command again; it resumes"),
        (["train_cam", "--cam_init", "scratch"], "raise --cam_accumulate and use --steps train_cam-report --overwrite"),
        (["train_irn"], "raise --irn_accumulate and run the command again; it resumes"),
        (["train_seg"], "raise --seg_accumulate and use --steps train_seg-report --overwrite"),
        (["cam_to_ir_label"], "use --device cpu or fewer --num_workers and run the command again; it resumes"),
        (
            ["make_rib_cam", "--RIB_companions", "fresh"],
            ANEW.format("or --max_side PX or --precision bf16", "crop_size"),
        ),
        (["make_rib_cam", "--RIB_companions", "pool"], ANEW.format("--RIB_crop_size", "pool_size")),
    ],
)
def test_memory_that_runs_out_is_one_line_with_what_the_step_can_save(tmp_path, monkeypatch, argv, advice):
    def run(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate.\nMore")

    monkeypatch.setattr(importlib.import_module(f"step.{argv[0]}"), "run", run)
    line = said("--work_dir", tmp_path, "--steps", *argv, code=2).splitlines()[-1]
    assert f"step {argv[0]}: CUDA out of memory. Tried to allocate; " in line and line.endswith(advice)


def test_memory_that_runs_out_names_the_image(tmp_path, monkeypatch):
    from step import make_rib_cam

    def combine(*_):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(make_rib_cam, "combine_scales", combine)
    with pytest.raises(MemoryError, match=r"^image a \(40 x 30\): out of memory$"):
        make_rib_cam._write(None, "a", (30, 40), None, None)
    with pytest.raises(RuntimeError, match="index"), naming("a", (30, 40)):
        raise RuntimeError("index out of range")
