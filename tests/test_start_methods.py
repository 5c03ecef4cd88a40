"""Worker processes that inherit nothing: as Python 3.14 (forkserver) and macOS (spawn) start them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT, children

METHODS = ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)]
RUN = """
import multiprocessing, sys
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    from run_sample import STEPS, main
    sys.exit(main(STEPS, sys.argv[2:]))
"""
DATASET = '''
"""One folder per class, and a helper whose objects travel to the workers too."""
from pathlib import Path
import numpy as np
from data.base import Dataset
from data.images import read_image
PRESET = {"val_list": ("train", "one list"), "irn_infer_pad": (0, "any size")}
class Where:
    def __init__(self, root):
        self.root = root
def open_dataset(args):
    return Fruits(Path(args.data_root))
class Fruits(Dataset):
    name = "fruits"
    classes = ("apple", "leaf")
    def __init__(self, root):
        self.where = Where(root)
    def names(self, split):
        return sorted(f"{path.parent.name}/{path.stem}" for path in self.where.root.glob("*/*.png"))
    def image(self, name):
        return read_image(self.where.root / f"{name}.png")
    def label(self, name):
        return np.array([name.startswith(c) for c in self.classes], np.float32)
'''
SMALL = (
    "--device cpu --num_workers 2 --cam_network resnet14 --cam_init scratch --cam_crop_size 32 --cam_batch_size 2 "
    "--cam_num_epoches 3 --cam_resize_long 32,40 --irn_crop_size 96"
).split()


def start(tmp_path, method, *arguments):
    """run_sample.py whose workers are started by `method`."""
    program = tmp_path / "program" / "with_method.py"
    program.parent.mkdir(exist_ok=True)
    program.write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(program), method, *arguments],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


@pytest.fixture
def fruits(tmp_path):
    """Arguments for a dataset in a Python file of its own, whose name is also that of a package of this program."""
    rng = np.random.default_rng(0)
    for k, folder in enumerate(("apple", "leaf")):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(100 * k, 100 * k + 90, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / folder / f"{i}.png")
    (tmp_path / "step.py").write_text(DATASET)
    return ["--dataset", str(tmp_path / "step.py"), "--data_root", str(tmp_path / "photos")]


@pytest.mark.parametrize("method", METHODS)
def test_a_dataset_file_of_ones_own_trains_and_makes_cams(tmp_path, fruits, method):
    work = ["--work_dir", str(tmp_path / "work"), *SMALL, "--steps", "train_cam,make_cam"]
    job = start(tmp_path, method, *fruits, *work)
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 0, said
    made = sorted(f"{path.parent.name}/{path.stem}" for path in (tmp_path / "work" / "cam").glob("*/*.npy"))
    assert made == [f"{folder}/{i}" for folder in ("apple", "leaf") for i in range(3)]
    assert "Traceback" not in said


def workers_of(pid):
    """Process ids of the loader workers: the processes below that have no children of their own."""
    tracker = "multiprocessing.resource_tracker import"
    below = [child for child in children(pid) if tracker not in Path(f"/proc/{child}/cmdline").read_text()]
    return [worker for child in below for worker in workers_of(child) or [child]]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_killed_worker_ends_the_training_within_seconds(tmp_path, fruits, method):
    work = tmp_path / "work"
    arguments = [*fruits, "--work_dir", str(work), *SMALL, "--cam_num_epoches", "100000", "--steps", "train_cam"]
    job = start(tmp_path, method, *arguments)
    checkpoint = work / "sess" / "res50_cam.checkpoint"
    while not checkpoint.exists() and job.poll() is None:
        time.sleep(0.1)
    workers = workers_of(job.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    begin = time.monotonic()
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 1 and time.monotonic() - begin < 20
    lines = [line for line in said.splitlines() if line.startswith("run_sample.py: ")]
    assert len(lines) == 1 and "a worker process ended" in lines[0] and "memory" not in lines[0]
