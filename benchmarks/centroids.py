"""Refinement of centroids against a plain NumPy loop at VOC size, 94 x 125 positions, 300 iterations.

python -m benchmarks.centroids [--out benchmarks/results] [--threads N]

Writes centroids.json and centroids.md. What can be saved depends on the field: positions that have settled are not
moved again. So it is measured on fields of different kinds, down to noise in which nothing ever settles.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.common import measure, row, write
from misc.instances import centroids

SIZE = (94, 125)


def plain_centroids(displacement: np.ndarray, iterations: int = 300) -> np.ndarray:
    """As misc.instances.centroids, for float32 [2, h, w]: every position in every iteration."""
    height, width = displacement.shape[1:]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(iterations):
        up, down = np.ceil(y).astype(np.int32), np.floor(y).astype(np.int32)
        right, left = np.ceil(x).astype(np.int32), np.floor(x).astype(np.int32)
        fy, fx = y - down, x - left
        dy, dx = (
            d[up, right] * fy * fx
            + d[up, left] * fy * (1 - fx)
            + d[down, right] * (1 - fy) * fx
            + d[down, left] * (1 - fy) * (1 - fx)
            for d in displacement
        )
        y += dy
        x += dx
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    return np.stack([np.round(y), np.round(x)]).astype(np.int32)


def objects(size: tuple[int, int], n: int = 6, seed: int = 0) -> np.ndarray:
    """float32 [2, h, w]: every position points to 0.7 of the way to the nearest of n centres, blurred, with noise."""
    rng = np.random.default_rng(seed)
    grid = np.indices(size)
    centres = rng.uniform((0, 0), size, (n, 2))
    way = centres[:, :, None, None] - grid  # (n, 2, h, w)
    nearest = (way**2).sum(1).argmin(0)
    field = 0.7 * np.take_along_axis(way, nearest[None, None], 0)[0]
    return (gaussian_filter(field, (0, 2, 2)) + rng.normal(0, 0.3, field.shape)).astype(np.float32)


def smooth(size: tuple[int, int], amplitude: float, blur: float, seed: int = 0) -> np.ndarray:
    """float32 [2, h, w]: blurred noise of the given deviation before it is blurred."""
    noise = np.random.default_rng(seed).normal(0, amplitude, (2, *size))
    return gaussian_filter(noise, (0, blur, blur)).astype(np.float32)


FIELDS = {
    "six objects": lambda: objects(SIZE),
    "strong smooth field": lambda: smooth(SIZE, 40, 4),
    "weak smooth field, nothing settles": lambda: smooth(SIZE, 2, 6),
    "noise, nothing settles": lambda: smooth(SIZE, 3, 0),
}


def main() -> int:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the tables")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; NumPy's loop has one")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name, make in FIELDS.items():
        field = make()
        slow, wanted = measure(lambda field=field: plain_centroids(field))
        fast, got = measure(lambda field=field: centroids(torch.from_numpy(field)), runs=9, warm_up=2)
        same = (got.numpy() == wanted).all(0).mean()
        rows.append(row(f"centroids, {name}", fast, "plain NumPy loop", slow, f"{100 * same:.4g}% equal"))
    print(write(rows, args.out, "centroids"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
