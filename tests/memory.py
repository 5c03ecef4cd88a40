"""Resident memory over 2,000 small images: after 200 of them, at the end, and what every image adds, step by step.

python -m tests.memory [--images 2000] [--early 200] [--size 64]     exit code 1 where it grows

The steps and the loaders run in this process, with weights that have learnt nothing.
"""

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data import progress, shapes
from tests.helpers import run_cli, write_networks

RUN = (  # all steps that go through images, but for training
    "make_cam", "eval_cam", "make_rib_cam", "eval_rib_cam", "cam_to_ir_label", "make_sem_seg", "eval_sem_seg",
    "make_ins_seg", "eval_ins_seg", "eval_seg",
)  # fmt: skip
SETTINGS = (
    "--infer_list train --eval_list train --val_list train --device cpu --RIB_iter 2 --RIB_batch_size 1 "
    "--RIB_crop_size 32 --RIB_resize_long 32,40 --cam_scales 1.0,0.5 --cam_eval_sweep 0,0.3,0.1 --conf_fg_thres 0.35 "
    "--conf_bg_thres 0.2 --exp_times 2 --seg_labels pseudo --seg_test_mirror False --seg_crf_iter 2"
)
MIB, KIB = 2**20, 2**10
MOST_GROWTH = 0.1  # from `--early` images to the last
MOST_PER_IMAGE = 0.5  # bytes per pixel that an image may leave behind; its mask has 1, a map of one class 4
CACHED = 16  # images that the dataset keeps here; its own 1,024 would be reached in mid-step and look like growth


class Growth(NamedTuple):
    """Resident bytes of a step after `--early` images and after the last one, and what each image added."""

    early: float
    last: float
    per_image: float

    def too_much(self, size: int) -> bool:
        """Whether images of `size` x `size` pixels leave too much behind."""
        return self.last > (1 + MOST_GROWTH) * self.early or self.per_image > MOST_PER_IMAGE * size**2


def resident() -> int:
    """Bytes of this process; what was freed goes back to the system first."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(readings: Sequence[tuple[int, int]], early: int) -> Growth:
    """Of (images so far, resident bytes); each image's part from the medians of the second and of the last third."""
    total = readings[-1][0]
    first = next(value for images, value in readings if images >= early)

    def median(low: float, high: float) -> float:
        return statistics.median(value for images, value in readings if low < images / total <= high)

    return Growth(first, readings[-1][1], (median(2 / 3, 1) - median(1 / 3, 2 / 3)) / (total / 3))


def measure(images: int, early: int, size: int, steps: Sequence[str] = RUN) -> dict[str, Growth]:
    """Title of the bar of a step -> what its memory did."""
    readings_of: dict[str, list[tuple[int, int]]] = {}
    between = max(1, images // 200)

    class Bar(progress.tqdm):
        """A bar that looks at the memory as it goes."""

        def __init__(self, total: int, desc: str, **options):
            super().__init__(total=total, desc=desc, **options)
            self.images, self.last, self.seen = 0, total, readings_of.setdefault(desc, [])

        def update(self, n: float = 1) -> None:
            self.images += n
            if not self.seen or self.images >= min(self.seen[-1][0] + between, self.last):
                self.seen.append((int(self.images), resident()))
            super().update(n)

    plain, progress.tqdm = progress.tqdm, Bar
    cached, shapes.CACHED = shapes.CACHED, CACHED
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_networks(Path(folder), 6)
            code = run_cli(
                "--work_dir", folder, "--steps", ",".join(steps), "--num_workers", "0",
                "--shapes_train", str(images), "--shapes_size", str(size), *SETTINGS.split(),
            )  # fmt: skip
            assert code == 0
    finally:
        progress.tqdm, shapes.CACHED = plain, cached
    return {title: growth(readings, early) for title, readings in readings_of.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("images", 2000), ("early", 200), ("size", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    print(f"{'':<30}{f'MiB after {given.early}':>16}{f'after {given.images}':>14}{'growth':>9}{'KiB per image':>15}")
    measured = measure(**vars(given))
    for title, its in measured.items():
        numbers = f"{its.early / MIB:>16.1f}{its.last / MIB:>14.1f}{its.last / its.early - 1:>9.1%}"
        print(f"{title:<30}{numbers}{its.per_image / KIB:>15.2f}{' too much' * its.too_much(given.size)}")
    print(f"limits: {MOST_GROWTH:.0%}, and {MOST_PER_IMAGE * given.size**2 / KIB:.2f} KiB per image")
    sys.exit(len(measured) < len(RUN) or any(its.too_much(given.size) for its in measured.values()))
