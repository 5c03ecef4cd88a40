"""Resident memory over 2,000 small images: after 200 of them, and at the end, step by step.

python -m tests.memory [--images 2000] [--early 200] [--size 32] [--num_workers 0]     exit code 1 above MOST_GROWTH

The steps run in this process; with `--num_workers` above 0 the memory of the loaders' processes is added up with it,
shared pages in equal parts.
"""

import argparse
import os
import sys
import tempfile
from multiprocessing import active_children
from pathlib import Path

import torch

from misc import progress
from misc.cli import main
from net.resnet50_cam import Net
from run_sample import STEPS, add_arguments

RUN = ("make_cam", "eval_cam", "make_rib_cam", "eval_rib_cam", "cam_to_ir_label")
MIB = 2**20
MOST_GROWTH = 0.1


def resident() -> int:
    """Bytes of this process, and of its worker processes by their share."""
    mine = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return mine + sum(_share(child.pid) for child in active_children())


def _share(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def measure(images: int, early: int, size: int, num_workers: int) -> dict[str, tuple[int, int]]:
    """step -> resident bytes after the first `early` images and after the last one."""
    found: dict[str, list[int]] = {}

    class Bar(progress.tqdm):
        """A bar that looks at the memory as it goes."""

        def __init__(self, total: int, desc: str, **options):
            super().__init__(total=total, desc=desc, **options)
            self.images, self.last, self.seen = 0, total, found.setdefault(desc, [])

        def update(self, n: float = 1) -> None:
            self.images += n
            if (self.images >= early and not self.seen) or (self.images >= self.last and len(self.seen) == 1):
                self.seen.append(resident())
            super().update(n)

    plain, progress.tqdm = progress.tqdm, Bar
    try:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            weights = Path(folder, "w.pth")
            torch.save(Net(6, "resnet14").state_dict(), weights)
            command = (
                f"--work_dir {folder} --cam_weights_name {weights} --steps {','.join(RUN)} --num_workers {num_workers} "
                f"--shapes_train {images} --shapes_size {size} --infer_list train --eval_list train --device cpu "
                "--RIB_iter 2 --RIB_batch_size 1 --RIB_crop_size 32 --RIB_resize_long 32,40 --cam_scales 1.0,0.5 "
                "--cam_eval_sweep 0,0.3,0.1"
            )
            code = main(STEPS, add_arguments, command.split())
            assert code == 0
    finally:
        progress.tqdm = plain
    return {step: (seen[0], seen[-1]) for step, seen in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--early", type=int, default=200)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=0)
    given = parser.parse_args()
    print(f"{'':<20}{f'MiB after {given.early}':>16}{f'after {given.images}':>14}{'growth':>9}")
    growths = []
    for step, (first, last) in measure(**vars(given)).items():
        growths.append(last / first - 1)
        print(f"{step:<20}{first / MIB:>16.1f}{last / MIB:>14.1f}{growths[-1]:>9.1%}")
    sys.exit(len(growths) < len(RUN) or max(growths) > MOST_GROWTH)
