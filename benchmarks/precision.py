"""RIB in bfloat16 against float32 on `shapes`, from one trained classifier: do the seeds agree, and are they as good?

python -m benchmarks.precision [--run result/shapes] [--images 32] [--out benchmarks/results]

Writes precision.json and precision.md. Needs a run of step train_cam (`make sample`).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import run_sample
from benchmarks.common import row, write
from data.results import load_cam
from misc.cam import cams_to_mask
from misc.metrics import confusion, mean_iou


def _mask(path: Path, threshold: float) -> np.ndarray:
    seeds = load_cam(path)
    return cams_to_mask(seeds["high_res"], seeds["keys"], threshold)


def main() -> int:
    """Runs and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("result/shapes"), help="--work_dir with the classifier")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="the first N images")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = {precision: _seeds(args, Path(folder) / precision, precision) for precision in ("fp32", "bf16")}
        threshold = made["fp32"][0]["eval_rib_cam"]["best"]["threshold"]
        total = sum(
            confusion(*(_mask(made[p][1] / path.name, threshold) for p in ("bf16", "fp32")), 255)
            for path in sorted(made["fp32"][1].glob("[!.]*.npy"))
        )
    rows = []
    slow = np.array([made["fp32"][0]["make_rib_cam"]["seconds"]]) / args.images
    for precision, (metrics, _) in made.items():
        seconds = np.array([metrics["make_rib_cam"]["seconds"]]) / args.images
        note = f"seed mIoU {100 * metrics['eval_rib_cam']['best']['miou']:.1f}"
        if precision == "bf16":
            note += f"; mean IoU with the seeds in fp32 {100 * mean_iou(total):.1f}"
        rows.append(row(f"step make_rib_cam on shapes, {args.images} images, {precision}", seconds, "fp32", slow, note))
    print(write(rows, args.out, "precision"))
    return 0


def _seeds(args: argparse.Namespace, work_dir: Path, precision: str) -> tuple[dict, Path]:
    """Metrics and folder of the seeds that RIB makes in a precision."""
    command = (
        f"--work_dir {work_dir} --cam_weights_name {args.run / 'sess' / 'res50_cam.pth'} --limit {args.images} "
        f"--precision {precision} --steps make_rib_cam,eval_rib_cam"
    )
    if run_sample.main(run_sample.STEPS, command.split()):
        raise SystemExit(f"run_sample.py {command} did not run")
    return json.loads((work_dir / "metrics.json").read_text()), work_dir / "cam_rib"


if __name__ == "__main__":
    sys.exit(main())
