"""The CPU benchmarks: `make bench`. Each fast form against a plain one in the same run; writes cpu.json and cpu.md.

python -m benchmarks.cpu [--only walk,rib] [--out benchmarks/results]
"""

import argparse
import copy
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from benchmarks import reference
from benchmarks.common import PHOTOGRAPHS, Row, labelings_of, measure, measure_together, photo, photograph, row, write
from data.progress import map_items
from data.results import load_cam, save_cam
from data.transforms import pyramid
from misc import crf
from misc.indexing import propagate_to_edge
from misc.instances import centroids
from misc.metrics import ThresholdSweep
from misc.rib import RIB
from net.resnet50_cam import CAM

SCALES = (1.0, 0.5, 1.5, 2.0)
THRESHOLDS = np.arange(0.20, 0.495, 0.01)


def walk_inputs(height: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """CAMs [classes, h, w] and an edge map [1, h, w] with contours in it."""
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.random((6, 8)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    edge = np.exp(-((np.abs(np.sin(12 * noise)) / 0.2) ** 2)).astype(np.float32)
    return torch.from_numpy(rng.random((classes, height, width), np.float32)), torch.from_numpy(edge)[None]


def bench_walk() -> list[Row]:
    """The random walk at VOC and COCO size, and against the dense form where that fits."""
    rows = []
    for name, size in (("VOC, 94 x 125, 2 classes", (94, 125, 2)), ("COCO, 120 x 160, 4 classes", (120, 160, 4))):
        x, edge = walk_inputs(*size)
        seconds, _ = measure(lambda x=x, edge=edge: propagate_to_edge(x, edge))
        rows.append(row(f"random walk, {name}, 256 steps", seconds))
    x, edge = walk_inputs(48, 64, 2)
    slow, wanted = measure(lambda: reference.dense_walk(x, edge, 5, 10.0, 8), runs=3, warm_up=0)
    fast, got = measure(lambda: propagate_to_edge(x, edge))
    error = float((got - wanted).abs().max() / wanted.abs().max())
    return [*rows, row("random walk, 48 x 64, 2 classes", fast, "dense squaring", slow, f"error {error:.1e}")]


def bench_crf() -> list[Row]:
    """Both CRF runs of an IRN label on photographs, against pydensecrf where it is installed."""
    rows = []
    backends = ["scipy", "pydensecrf"] if find_spec("pydensecrf") else ["scipy"]
    for name, n_labels in (*((name, 2) for name in PHOTOGRAPHS), ("chelsea", 20), ("motorcycle", 20)):
        image = photograph(name)
        labelings = labelings_of(image, n_labels)
        works = [partial(crf.crf_labels, image, labelings, n_labels, backend) for backend in backends]
        (ours, got), *others = measure_together(works)
        against = ()
        for seconds, wanted in others:
            different = np.count_nonzero(np.array(got) != np.array(wanted))
            against = "pydensecrf", seconds, f"{different} of {np.size(wanted)} pixels differ"
        what = f"IRN label, {name}, {image.shape[0]} x {image.shape[1]}, {n_labels} labels, both runs"
        rows.append(row(what, ours, *against))
    return rows


def cam_files(folder: Path, n_images: int, n_classes: int) -> list[tuple[Path, np.ndarray]]:
    """CAM files and their ground truth, 240 x 320, written below `folder`."""
    rng = np.random.default_rng(1)
    out = []
    for i in range(n_images):
        keys = np.sort(rng.choice(n_classes - 1, 2, replace=False))
        cams = cv2.resize(rng.random((8, 10, 2)).astype(np.float32), (320, 240)).transpose(2, 0, 1)
        truth = np.append(0, keys + 1)[rng.integers(0, 3, (240, 320))].astype(np.uint8)
        path = folder / f"{i}.npy"
        save_cam(path, keys, cams[:, ::4, ::4], cams)
        out.append((path, truth))
    return out


def sweep_files(files: list[tuple[Path, np.ndarray]], thresholds: np.ndarray, n_classes: int, workers: int):
    """Confusions at every threshold, as step eval_cam computes them."""
    total = ThresholdSweep(thresholds, n_classes)
    parts = [files[i : i + 16] for i in range(0, len(files), 16)]
    for counts in map_items(partial(_sweep_part, thresholds, n_classes), parts, workers):
        total.counts += counts
    return total.confusions()


def _sweep_part(thresholds: np.ndarray, n_classes: int, files: list[tuple[Path, np.ndarray]]) -> np.ndarray:
    sweep = ThresholdSweep(thresholds, n_classes)
    for path, truth in files:
        seeds = load_cam(path)
        sweep.add(seeds["keys"], seeds["high_res"], truth)
    return sweep.counts


def bench_eval() -> list[Row]:
    """Scoring seeds at 30 thresholds against one, for VOC's 21 and COCO's 81 classes."""
    rows = []
    for n_classes in (21, 81):
        with tempfile.TemporaryDirectory() as folder:
            files = cam_files(Path(folder), 128, n_classes)
            one, _ = measure(lambda: sweep_files(files, THRESHOLDS[:1], n_classes, 2))
            all_, _ = measure(lambda: sweep_files(files, THRESHOLDS, n_classes, 2))
            few = [(load_cam(path)["keys"], load_cam(path)["high_res"], truth) for path, truth in files[:16]]
            plain, wanted = measure(lambda: reference.confusions_by_threshold(few, THRESHOLDS, n_classes), 1, 0)
            same = np.array_equal(sweep_files(files[:16], THRESHOLDS, n_classes, 0), wanted)
        note = f"{'equal' if same else 'NOT EQUAL'}; {np.median(all_) / np.median(one):.2f}x the time of 1 threshold"
        what = f"seeds at 30 thresholds, 128 images, {n_classes} classes"
        rows.append(row(what, all_, "30 passes (1 process; 16 images, times 8)", 8 * plain, note))
    return rows


def bench_rib() -> list[Row]:
    """RIB of one 120 x 160 image: ResNet-50, B 4, crop 128, K 10."""
    torch.manual_seed(0)
    rng = np.random.default_rng(2)
    model = CAM(20).eval().to(memory_format=torch.channels_last)
    model.classifier.weight.data.abs_()  # features are not negative: no map is empty
    last = {"memory_format": torch.channels_last}
    levels = [torch.from_numpy(level).contiguous(**last) for level in pyramid(photo(rng, 120, 160), SCALES)]
    label, labels = F.one_hot(torch.tensor(3), 20).float(), F.one_hot(torch.arange(4) + 5, 20).float()
    companions = [(torch.randn(4, 3, 128, 128).contiguous(**last), labels) for _ in range(10)]
    settings = {"lr": 8e-6, "n_iter": 10, "score_th": 0.4}

    def plain_form() -> list[torch.Tensor]:
        contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        return reference.plain_rib(contiguous, levels, label, companions, **settings).cams

    plain, wanted = measure(plain_form, runs=3)
    rows = [row("RIB, plain form, float32", plain)]
    for precision in ("fp32", "bf16"):
        rib = RIB(model, stop_th=1e9, explode_ratio=2.0, precision=precision, **settings)
        seconds, (got, _) = measure(lambda rib=rib: rib.run(levels, label, companions), runs=3)
        error = max(float((g[3] - w[3]).abs().max() / w[3].abs().max()) for g, w in zip(got, wanted, strict=True))
        rows.append(row(f"RIB, {precision}", seconds, "plain form", plain, f"error {error:.1e}"))
    return rows


def objects(size: tuple[int, int], n: int = 6) -> np.ndarray:
    """float32 [2, h, w]: every position points to 0.7 of the way to the nearest of n centres, blurred, with noise."""
    rng = np.random.default_rng(0)
    centres = rng.uniform((0, 0), size, (n, 2))
    offset = centres[:, :, None, None] - np.indices(size)  # (n, 2, h, w)
    nearest = (offset**2).sum(1).argmin(0)
    field = 0.7 * np.take_along_axis(offset, nearest[None, None], 0)[0]
    return (gaussian_filter(field, (0, 2, 2)) + rng.normal(0, 0.3, field.shape)).astype(np.float32)


def smooth(size: tuple[int, int], amplitude: float, blur: float) -> np.ndarray:
    """float32 [2, h, w]: blurred noise of the given deviation before it is blurred."""
    noise = np.random.default_rng(0).normal(0, amplitude, (2, *size))
    return gaussian_filter(noise, (0, blur, blur)).astype(np.float32)


def bench_centroids() -> list[Row]:
    """Refinement of centroids at VOC size, 300 iterations, in one thread as NumPy's loop.

    Positions that have settled are not moved again, so it is measured on several fields, down to noise in which nothing
    ever settles.
    """
    size, rows = (94, 125), []
    fields = {
        "six objects": objects(size),
        "strong smooth field": smooth(size, 40, 4),
        "weak smooth field, nothing settles": smooth(size, 2, 6),
        "noise, nothing settles": smooth(size, 3, 0),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, field in fields.items():
        slow, wanted = measure(partial(reference.plain_centroids, field))
        fast, got = measure(partial(centroids, torch.from_numpy(field)), runs=9, warm_up=2)
        same = (got.numpy() == wanted).all(0).mean()
        rows.append(row(f"centroids, {name}", fast, "plain NumPy loop", slow, f"{100 * same:.4g}% equal"))
    torch.set_num_threads(threads)
    return rows


BENCHMARKS = {"walk": bench_walk, "eval": bench_eval, "crf": bench_crf, "rib": bench_rib, "centroids": bench_centroids}


def main() -> int:
    """Runs and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="some of them, joined by commas (default: all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the tables")
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    rows: list[Row] = []
    for name in args.only.split(","):  # the table is written after each: what has been measured is not lost
        rows += BENCHMARKS[name]()
        table = write(rows, args.out, "cpu")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
