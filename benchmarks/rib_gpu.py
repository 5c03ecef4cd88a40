"""RIB at the published settings on one GPU: ResNet-50, images of VOC's sizes, K 10, B 20, crop 512.

python -m benchmarks.rib_gpu [--out benchmarks/results]

Needs no dataset and no weights: it draws photographs, writes them as JPEG files below a temporary folder and starts
from random weights, with the stop and the explosion guard switched off, so that every image takes all its steps. It
measures the computation alone (companions on the device) in every precision, with CUDA graphs and with ordinary calls,
against the plain form; images of many sizes one after another; the memory of the largest image; the whole step
`make_rib_cam` with a pool of companions and with fresh ones, decoded by worker processes. What does not fit into
--minutes is left out, and the table says so.
"""

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

import run_sample
from benchmarks import reference
from benchmarks.common import Budget, Row, measure, photo, row, write
from data.process import cores
from data.transforms import pyramid
from misc.rib import RIB
from misc.torchutils import resolve_device, set_precision
from net.resnet50_cam import CAM

SCALES = (1.0, 0.5, 1.5, 2.0)
CLASSES = 20
LEARNING_RATE = 8e-6
TRAIN_AUG = 10_582  # images of VOC's augmented training set
# Height and width over 500 of images as VOC has them: a few sizes make up most of it, the others a long tail.
SIZES = [
    (0.75, 1), (0.666, 1), (0.75, 1), (1, 0.75), (0.668, 1), (0.75, 1), (1, 0.666), (0.664, 1), (0.75, 1), (1, 1),
    (0.666, 1), (0.75, 1), (1, 0.75), (0.562, 1), (0.748, 1), (0.75, 1),
]  # fmt: skip
FEWER_IMAGES = {"fp32": 6, "tf32": 2, "bf16": 1}  # slower precisions get so many times fewer images


def main() -> int:
    """Runs and writes rib_gpu.json and rib_gpu.md."""
    args = _arguments()
    device = resolve_device(args.device)
    torch.backends.cudnn.benchmark = False  # as in the program: every image has another size
    budget, rows = Budget(60 * args.minutes), []
    for part in (bench_compute, bench_sizes, bench_memory, bench_step):
        for made in part(args, device, budget):
            rows.append(made)
            write(rows, args.out, "rib_gpu")  # after each: what has been measured is not lost
    print(write(rows, args.out, "rib_gpu", budget.skipped))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--long", type=int, default=500, metavar="PX", help="long side of the images")
    parser.add_argument("--crop", type=int, default=512, metavar="PX", help="side of the companions")
    parser.add_argument("--companions", type=int, default=20, metavar="B", help="companions per step")
    parser.add_argument("--steps", type=int, default=10, metavar="K", help="RIB steps per image")
    parser.add_argument("--network", default="resnet50", choices=("resnet50", "resnet14"))
    choices = ("fp32", "tf32", "bf16")
    parser.add_argument("--precisions", nargs="+", default=choices, choices=choices, metavar="P", help="some of them")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="measured images per row")
    parser.add_argument("--images", type=int, default=60, metavar="N", help="images of the whole step in bf16")
    parser.add_argument("--pool", type=int, default=400, metavar="N", help="crops in the companion pool")
    parser.add_argument("--minutes", type=float, default=4, metavar="M", help="time for all of it")
    parser.add_argument("--workers", type=int, default=min(8, cores()), metavar="N")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the tables")
    return parser.parse_args()


def bench_compute(args: argparse.Namespace, device: torch.device, budget: Budget) -> Iterator[Row]:
    """One image with companions on the device: the plain form, then RIB in every precision."""
    size = _size(args, 0)
    levels, label, companions = _inputs(args, size, device)
    model = _model(args, device)

    def plain() -> list[torch.Tensor]:
        return reference.plain_rib(model, levels, label, companions, lr=LEARNING_RATE, n_iter=args.steps).cams

    set_precision("tf32")  # as PyTorch computes convolutions where nothing is said
    fast, _ = _measured(plain, device, runs=2, warm_up=1)
    shape = f"{size[0]} x {size[1]}, K {args.steps}, B {args.companions}, crop {args.crop}"
    yield row(f"RIB, plain form, tf32, {shape}", fast)
    set_precision("fp32")
    slow, wanted = _measured(plain, device, warm_up=1)
    yield row("RIB, plain form, fp32", slow)
    for what, precision, graph in _forms(args, device, budget):
        against = ("plain form, fp32", slow) if precision == "fp32" else ("plain form, tf32", fast)
        rib = _rib(args, device, precision, graph)
        runs = args.runs if graph else min(args.runs, 3)
        seconds, (got, _) = _measured(lambda rib=rib: rib.run(levels, label, companions), device, runs, warm_up=2)
        error = max(float((g[3] - w[3]).abs().max() / w[3].abs().max()) for g, w in zip(got, wanted, strict=True))
        middle = budget.image[precision] = float(np.median(seconds))
        yield row(what, seconds, *against, f"error {error:.1e}; {_pace(middle)}")


def bench_sizes(args: argparse.Namespace, device: torch.device, budget: Budget) -> Iterator[Row]:
    """Images of many sizes for the first time, so that recording their graphs counts too; seconds per image."""
    inputs = [_inputs(args, _size(args, i), device) for i in range(len(SIZES))]
    for what, precision, graph in _forms(args, device, budget, ", images of many sizes, each"):
        count = len(SIZES) // FEWER_IMAGES[precision]
        rib = _rib(args, device, precision, graph)
        rib.run(*_inputs(args, (args.long // 2, args.long // 2), device))  # libraries are loaded
        rib.graphs.recorded = 0
        seconds, _ = _measured(lambda rib=rib, count=count: [rib.run(*x) for x in inputs[:count]], device)
        note = f"{count} images of {len(set(SIZES[:count]))} sizes; {_pace(seconds[0] / count)}"
        note += f"; {rib.graphs.recorded} graphs recorded" if rib.graphs.recorded else ""
        yield row(what, seconds / count, agreement=note)


def bench_memory(args: argparse.Namespace, device: torch.device, budget: Budget) -> Iterator[Row]:
    """GPU memory that the process holds for images of several sizes, the largest of VOC among them, weights and all."""
    if device.type != "cuda":
        return
    sizes = [_size(args, 0), (args.long, args.long), _size(args, 3)]
    for precision in args.precisions:
        what = f"RIB, {precision}, {args.long} x {args.long}, the largest image"
        if not budget.allows(what):
            continue
        gc.collect()  # of what was measured before
        torch.cuda.empty_cache()
        rib = _rib(args, device, precision, True)
        torch.cuda.reset_peak_memory_stats()
        inputs = [_inputs(args, size, torch.device("cpu")) for size in sizes]
        inputs = [([level.to(device) for level in levels], label.to(device), rest) for levels, label, rest in inputs]
        seconds, _ = _measured(lambda rib=rib, inputs=inputs: [rib.run(*x) for x in inputs], device)
        note = f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB of GPU memory reserved at most"
        yield row(what, seconds / 3, agreement=note)
        del rib


def bench_step(args: argparse.Namespace, device: torch.device, budget: Budget) -> Iterator[Row]:
    """The whole step with files, loaders and results; seconds per image once a quarter of the images is done."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_images(args, root / "data")
        (root / "sess").mkdir()
        torch.save(_model(args, torch.device("cpu")).state_dict(), root / "sess" / "cam.pth")
        for precision in args.precisions[::-1]:
            for companions in ("pool", "fresh"):
                what = f"step make_rib_cam, {precision}, {companions}"
                count = max(4, args.images // FEWER_IMAGES[precision])
                if not budget.allows(what, count * budget.image.get(precision, 0.0)):
                    continue
                values, times = _step(args, root, device, precision, companions, count)
                begin = count // 4
                seconds = (times[-1] - times[begin]) / (count - 1 - begin)
                note = f"{_pace(seconds)}; {values['waiting_share']:.1%} waiting for images; {args.workers} workers"
                yield row(what, np.array([seconds]), agreement=note)


def _step(
    args: argparse.Namespace, root: Path, device: torch.device, precision: str, companions: str, n: int
) -> tuple[dict, list[float]]:
    """What step make_rib_cam stores of itself for the first n images, and when it had written them."""
    work_dir = root / f"{precision}_{companions}"
    command = (
        f"--dataset folder --data_root {root / 'data'} --work_dir {work_dir} --steps make_rib_cam "
        f"--cam_weights_name {root / 'sess' / 'cam.pth'} --cam_network {args.network} --stop_th 1e30 "
        f"--explode_ratio 2 --RIB_iter {args.steps} --RIB_batch_size {args.companions} --RIB_crop_size {args.crop} "
        f"--RIB_companions {companions} --RIB_pool_size {args.pool} --infer_list {root / 'data' / f'{n}.txt'} "
        f"--precision {precision} --device {device.type} --num_workers {args.workers}"
    )
    (root / "data" / f"{n}.txt").write_text("".join(f"{i:04d}.jpg\n" for i in range(n)))
    if run_sample.main(run_sample.STEPS, command.split()):
        raise SystemExit(f"run_sample.py {command} did not run")
    values = json.loads((work_dir / "metrics.json").read_text())["make_rib_cam"]
    return values, sorted(path.stat().st_mtime for path in (work_dir / "cam_rib").glob("[!.]*.npy"))


def _rib(args: argparse.Namespace, device: torch.device, precision: str, graph: bool) -> RIB:
    set_precision(precision)
    endless = {"stop_th": 1e30, "explode_ratio": 2.0}
    rib = RIB(_model(args, device), LEARNING_RATE, args.steps, precision=precision, **endless)
    rib.graphs.enabled = graph
    return rib


def _forms(
    args: argparse.Namespace, device: torch.device, budget: Budget, suffix: str = ""
) -> Iterator[tuple[str, str, bool]]:
    """(name of the row, precision, whether with CUDA graphs) of what there is time for."""
    for precision in args.precisions:
        for graph in (False, True) if device.type == "cuda" else (False,):
            what = f"RIB, {precision}, {'CUDA graphs' if graph else 'ordinary calls'}{suffix}"
            if budget.allows(what):
                yield what, precision, graph


def _size(args: argparse.Namespace, i: int) -> tuple[int, int]:
    """Height and width of image i."""
    return tuple(round(args.long * part) for part in SIZES[i % len(SIZES)])


def _model(args: argparse.Namespace, device: torch.device) -> CAM:
    torch.manual_seed(0)
    model = CAM(CLASSES, args.network).eval()
    model.classifier.weight.data.abs_()  # features are not negative: no map is empty
    return model.to(device, memory_format=torch.channels_last)


def _inputs(args: argparse.Namespace, size: tuple[int, int], device: torch.device) -> tuple:
    """(pyramid, label, companions of every step), on the device."""
    rng = np.random.default_rng(0)
    levels = [torch.from_numpy(level).to(device) for level in pyramid(photo(rng, *size), SCALES)]
    label = F.one_hot(torch.tensor(3), CLASSES).float().to(device)
    torch.manual_seed(1)
    others = F.one_hot(torch.arange(args.companions) % (CLASSES - 4) + 4, CLASSES).float().to(device)
    crops = [torch.randn(args.companions, 3, args.crop, args.crop, device=device) for _ in range(2)]
    return levels, label, [(crops[k % 2], others) for k in range(args.steps)]


def _measured(work: Callable[[], object], device: torch.device, runs: int = 1, warm_up: int = 0) -> tuple:
    """As `measure`, until the device is done."""

    def run() -> object:
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return result

    return measure(run, runs, warm_up)


def _write_images(args: argparse.Namespace, root: Path) -> None:
    """Photographs as JPEG files with one class each, in the layout of a user's own folder."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(3)
    lines = []
    for i in range(max(args.images, 120)):
        cv2.imwrite(str(root / "images" / f"{i:04d}.jpg"), photo(rng, *_size(args, i)))
        lines.append(f"{i:04d}.jpg,class{i % CLASSES:02d}\n")
    (root / "labels.csv").write_text("".join(lines))


def _pace(seconds: float) -> str:
    return f"{3600 / seconds:.0f} images/h; train_aug in {TRAIN_AUG * seconds / 3600:.2f} h"


if __name__ == "__main__":
    sys.exit(main())
