"""The CPU benchmarks: `make bench`. Each fast form against a plain one in the same run; writes cpu.json and cpu.md.

python -m benchmarks.cpu [--only walk,rib] [--out benchmarks/results]
"""

import argparse
import copy
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from benchmarks import reference
from benchmarks.common import (
    PHOTOGRAPHS,
    Row,
    labelings_of,
    measure,
    measure_together,
    peak_extra_mb,
    photo,
    photograph,
    row,
    write,
)
from data.progress import map_items
from data.results import load_cam, save_cam
from data.transforms import pyramid
from misc import crf
from misc.indexing import PathIndex, propagate_to_edge
from misc.metrics import ThresholdSweep
from misc.rib import RIB
from net.resnet50_cam import CAM
from net.resnet50_irn import AffinityDisplacementLoss, total_loss

SCALES = (1.0, 0.5, 1.5, 2.0)
THRESHOLDS = np.arange(0.20, 0.495, 0.01)


def walk_inputs(height: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """CAMs [classes, h, w] and an edge map [1, h, w] with contours in it."""
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.random((6, 8)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    edge = np.exp(-((np.abs(np.sin(12 * noise)) / 0.2) ** 2)).astype(np.float32)
    return torch.from_numpy(rng.random((classes, height, width), np.float32)), torch.from_numpy(edge)[None]


def walk_memory():
    """For peak_extra_mb: the VOC-size walk after its inputs."""
    x, edge = walk_inputs(94, 125, 2)
    propagate_to_edge(x[:, :12, :12], edge[:, :12, :12], exp_times=1)
    yield
    propagate_to_edge(x, edge)


def bench_walk() -> list[Row]:
    """The random walk at VOC and COCO size, and against the dense form where that fits."""
    rows = []
    for name, size in (("VOC, 94 x 125, 2 classes", (94, 125, 2)), ("COCO, 120 x 160, 4 classes", (120, 160, 4))):
        x, edge = walk_inputs(*size)
        seconds, _ = measure(lambda x=x, edge=edge: propagate_to_edge(x, edge))
        note = f"{peak_extra_mb('benchmarks.cpu', 'walk_memory()'):.0f} MB extra" if size[0] == 94 else ""
        rows.append(row(f"random walk, {name}, 256 steps", seconds, agreement=note))
    x, edge = walk_inputs(48, 64, 2)
    slow, wanted = measure(lambda: reference.dense_walk(x, edge, 5, 10.0, 8), runs=3, warm_up=0)
    fast, got = measure(lambda: propagate_to_edge(x, edge))
    error = float((got - wanted).abs().max() / wanted.abs().max())
    return [*rows, row("random walk, 48 x 64, 2 classes", fast, "dense squaring", slow, f"error {error:.1e}")]


def bench_crf() -> list[Row]:
    """Both CRF runs of an IRN label on photographs, against pydensecrf where it is installed."""
    rows = [_bench_crf(name, 2) for name in PHOTOGRAPHS] + [_bench_crf(name, 20) for name in ("chelsea", "motorcycle")]
    image = photograph("chelsea")
    labelings = labelings_of(image, 2)
    work = partial(crf.crf_labels, image, labelings)
    (together, got), (apart, wanted) = measure_together(
        lambda: work(2), lambda: [crf.crf_labels(image, [labeling], 2)[0] for labeling in labelings]
    )
    rows.append(row("CRF labels, chelsea, 2 labels", together, "two separate runs", apart, _equal(got, wanted)))
    (two, _), (one, _) = measure_together(*(lambda n=n: list(map_items(work, [2] * 8, n)) for n in (2, 1)), runs=3)
    return [*rows, row("CRF labels, an image of 8 in 2 processes", two / 8, "1 process", one / 8)]


def _bench_crf(name: str, n_labels: int) -> Row:
    image = photograph(name)
    labelings = labelings_of(image, n_labels)
    what = f"CRF labels, {name}, {image.shape[0]} x {image.shape[1]}, {n_labels} labels, both runs"
    backends = ["scipy", "pydensecrf"][: 1 + (find_spec("pydensecrf") is not None)]
    (ours, got), *others = measure_together(
        *(partial(crf.crf_labels, image, labelings, n_labels, backend) for backend in backends)
    )
    return row(what, ours, "pydensecrf", others[0][0], _equal(got, others[0][1])) if others else row(what, ours)


def _equal(labels: list[np.ndarray], wanted: list[np.ndarray]) -> str:
    different = np.count_nonzero(np.array(labels) != np.array(wanted))
    return f"{different} of {np.size(wanted)} pixels differ"


def cam_files(
    folder: Path, n_images: int, n_classes: int, size: tuple[int, int] = (240, 320)
) -> list[tuple[Path, np.ndarray]]:
    """CAM files and their ground truth, written below `folder`."""
    rng = np.random.default_rng(1)
    out = []
    for i in range(n_images):
        keys = np.sort(rng.choice(n_classes - 1, 2, replace=False))
        cams = cv2.resize(rng.random((8, 10, 2)).astype(np.float32), size[::-1]).transpose(2, 0, 1)
        truth = np.append(0, keys + 1)[rng.integers(0, 3, size)].astype(np.uint8)
        path = folder / f"{i}.npy"
        save_cam(path, keys, cams[:, ::4, ::4], cams)
        out.append((path, truth))
    return out


def sweep_files(
    files: list[tuple[Path, np.ndarray]], thresholds: np.ndarray, n_classes: int, workers: int
) -> np.ndarray:
    """Confusions at every threshold, as step eval_cam computes them."""
    total = ThresholdSweep(thresholds, n_classes)
    for counts in map_items(
        partial(_sweep_part, thresholds, n_classes), [files[i : i + 16] for i in range(0, len(files), 16)], workers
    ):
        total.counts += counts
    return total.confusions()


def _sweep_part(thresholds: np.ndarray, n_classes: int, files: list[tuple[Path, np.ndarray]]) -> np.ndarray:
    sweep = ThresholdSweep(thresholds, n_classes)
    for path, truth in files:
        seeds = load_cam(path)
        sweep.add(seeds["keys"], seeds["high_res"], truth)
    return sweep.counts


def eval_memory(repeats: int):
    """For peak_extra_mb: 50 images scored at 30 thresholds in this process, as often as said."""
    with tempfile.TemporaryDirectory() as folder:
        files = cam_files(Path(folder), 50, 81)
        sweep_files(files[:2], np.array([0.2]), 81, 0)
        yield
        sweep_files(files * repeats, THRESHOLDS, 81, 0)


def bench_eval() -> list[Row]:
    """Scoring seeds at 30 thresholds against one, for VOC's 21 and COCO's 81 classes."""
    rows = [_bench_eval(n_classes) for n_classes in (21, 81)]
    few, many = (peak_extra_mb("benchmarks.cpu", f"eval_memory({repeats})") for repeats in (1, 10))
    rows[-1].agreement += f"; {few:.0f} MB extra for 50 images, {many:.0f} MB for 500"
    return rows


def _bench_eval(n_classes: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        files = cam_files(Path(folder), 128, n_classes)
        one, _ = measure(lambda: sweep_files(files, THRESHOLDS[:1], n_classes, 2))
        all_, _ = measure(lambda: sweep_files(files, THRESHOLDS, n_classes, 2))
        few = [(load_cam(p)["keys"], load_cam(p)["high_res"], truth) for p, truth in files[:16]]
        begin = time.perf_counter()
        wanted = reference.confusions_by_threshold(few, THRESHOLDS, n_classes)
        plain = np.array([time.perf_counter() - begin]) * 8
        same = np.array_equal(sweep_files(files[:16], THRESHOLDS, n_classes, 0), wanted)
    note = f"{'equal' if same else 'NOT EQUAL'}; {np.median(all_) / np.median(one):.2f}x the time of 1 threshold"
    return row(
        f"seeds at 30 thresholds, 128 images, {n_classes} classes",
        all_,
        "30 passes (1 process; 16 images, times 8)",
        plain,
        note,
    )


def bench_rib() -> list[Row]:
    """RIB of one 120 x 160 image: ResNet-50, B 4, crop 128, K 10."""
    torch.manual_seed(0)
    rng = np.random.default_rng(2)
    model = CAM(20).eval().to(memory_format=torch.channels_last)
    model.classifier.weight.data.abs_()  # features are not negative: no map is empty
    levels = [
        torch.from_numpy(level).contiguous(memory_format=torch.channels_last)
        for level in pyramid(photo(rng, 120, 160), SCALES)
    ]
    label = F.one_hot(torch.tensor(3), 20).float()
    companions = [
        (
            torch.randn(4, 3, 128, 128).contiguous(memory_format=torch.channels_last),
            F.one_hot(torch.arange(4) + 5, 20).float(),
        )
        for _ in range(10)
    ]
    settings = {"lr": 8e-6, "n_iter": 10, "score_th": 0.4}
    plain, wanted = measure(
        lambda: reference.plain_rib(
            copy.deepcopy(model).to(memory_format=torch.contiguous_format), levels, label, companions, **settings
        ),
        runs=3,
    )
    rows = [row("RIB, plain form, float32", plain)]
    for precision in ("fp32", "bf16"):
        rib = RIB(model, stop_th=1e9, explode_ratio=2.0, precision=precision, **settings)
        seconds, (got, _) = measure(lambda rib=rib: rib.run(levels, label, companions), runs=3)
        error = max(float((g[3] - w[3]).abs().max() / w[3].abs().max()) for g, w in zip(got, wanted, strict=True))
        rows.append(row(f"RIB, {precision}", seconds, "plain form", plain, f"error {error:.1e}"))
    return rows


class PairCrops(torch.utils.data.Dataset):
    """Crops of 256 with a label map of stride 4 or, as the published loader ships it, all its pairs in float32."""

    def __init__(self, ship_pairs: bool):
        rng = np.random.default_rng(4)
        self.images = torch.from_numpy(rng.normal(size=(16, 3, 256, 256)).astype(np.float32))
        coarse = rng.integers(0, 3, (16, 8, 8)).astype(np.uint8)
        self.labels = torch.from_numpy(np.kron(coarse, np.ones((8, 8), np.uint8)))
        self.pairs = AffinityDisplacementLoss(PathIndex(10, (64, 64))).pair_labels if ship_pairs else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        if self.pairs is None:
            return self.images[i], self.labels[i]
        return self.images[i], *(part[0].float() for part in self.pairs(self.labels[i][None]))


def bench_irn() -> list[Row]:
    """Training the boundary network on 16 crops in batches of 4: pairs from the small map, or shipped by the loader."""

    def epoch(ship_pairs: bool) -> list[float]:
        torch.manual_seed(0)
        model = AffinityDisplacementLoss(PathIndex(10, (64, 64))).train()
        if ship_pairs:
            model.pair_labels = lambda pairs: pairs
        losses = []
        for images, *labels in DataLoader(PairCrops(ship_pairs), batch_size=4, num_workers=2):
            model.zero_grad(set_to_none=True)
            loss = total_loss(model(images, labels if ship_pairs else labels[0]))
            loss.backward()
            losses.append(float(loss.detach()))
        return losses

    shipped, wanted = measure(lambda: epoch(True), runs=3)
    here, got = measure(lambda: epoch(False), runs=3)
    rate = f"{16 / np.median(here):.2f} images/s, {16 / np.median(shipped):.2f} before"
    error = max(abs(a - b) / b for a, b in zip(got, wanted, strict=True))
    note = f"{rate}; losses differ by {error:.1e}"
    return [row("IRN training, 16 crops of 256 in batches of 4", here, "pairs shipped by the loader", shipped, note)]


BENCHMARKS = {"walk": bench_walk, "eval": bench_eval, "crf": bench_crf, "irn": bench_irn, "rib": bench_rib}


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
