"""The story of `shapes` over several seeds: seeds, pseudo masks, segmentation networks, each with mean and spread.

    python -m benchmarks.shapes_seeds --seeds 0 1 2 [--work_dir result/seeds] [-- any argument of run_sample.py]

Every seed generates its own images and trains its own networks. Writes seeds.json and seeds.md below --work_dir and
prints the table. A seed that is finished is not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from data.files import save_json, write_atomic

ROOT = Path(__file__).resolve().parent.parent
STAGES = (
    ("seed, CAM", lambda metrics: metrics["eval_cam"]["best"]["miou"]),
    ("seed, RIB", lambda metrics: metrics["eval_rib_cam"]["best"]["miou"]),
    ("pseudo mask", lambda metrics: metrics["eval_sem_seg"]["miou"]),
    ("network trained on RIB's masks", lambda metrics: metrics["eval_seg"]["comparison"]["rib"]),
    ("network trained on CAM's masks", lambda metrics: metrics["eval_seg"]["comparison"]["cam"]),
    ("network trained on the truth", lambda metrics: metrics["eval_seg"]["comparison"]["truth"]),
)


def main() -> int:
    """Runs, gathers, prints; returns the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of data, training and draws")
    parser.add_argument("--work_dir", type=Path, default=Path("result/seeds"), help="folder of all runs")
    parser.add_argument("rest", nargs="*", metavar="ARGUMENT", help="after --: arguments for run_sample.py")
    args = parser.parse_args()
    metrics = {}
    for seed in args.seeds:
        folder = args.work_dir / f"seed{seed}"
        options = [f"--seed={seed}", f"--work_dir={folder.resolve()}", *args.rest]
        code = subprocess.run([sys.executable, "run_sample.py", *options], cwd=ROOT, check=False).returncode
        if code:
            return code
        metrics[seed] = json.loads((folder / "metrics.json").read_text())
    values = {label: [100 * miou(metrics[seed]) for seed in args.seeds] for label, miou in STAGES}
    lines = [
        f"| shapes, mIoU | {' | '.join(f'seed {seed}' for seed in args.seeds)} | mean | spread |",
        "|---" * (len(args.seeds) + 3) + "|",
        *(
            f"| {label} | {' | '.join(f'{v:.1f}' for v in row)} | {np.mean(row):.1f} | {np.ptp(row):.1f} |"
            for label, row in values.items()
        ),
    ]
    save_json(args.work_dir / "seeds.json", {"seeds": args.seeds, "miou": values})
    text = "\n".join(lines) + "\n"
    write_atomic(args.work_dir / "seeds.md", lambda file: file.write(text.encode()))
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
