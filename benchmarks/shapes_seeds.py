"""The story of `shapes` over several seeds: seeds, pseudo masks, segmentation networks, each with mean and spread.

    python -m benchmarks.shapes_seeds --seeds 0 1 2 3 4 [--ranks N] [--work_dir result/seeds] [-- ARGUMENT ...]

Every seed generates its own images and trains its own networks. Prints the scores, and whether they tell the paper's
story; writes both as seeds.json and seeds.md below --work_dir. A seed that is finished is not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from data.files import save_json, write_atomic

ROOT = Path(__file__).resolve().parent.parent
STAGES = {
    "seed, CAM": lambda metrics: metrics["eval_cam"]["best"]["miou"],
    "seed, RIB": lambda metrics: metrics["eval_rib_cam"]["best"]["miou"],
    "pseudo mask": lambda metrics: metrics["eval_sem_seg"]["miou"],
    "network trained on CAM masks": lambda metrics: metrics["eval_seg"]["comparison"]["cam"],
    "network trained on RIB masks": lambda metrics: metrics["eval_seg"]["comparison"]["rib"],
    "network trained on ground truth": lambda metrics: metrics["eval_seg"]["comparison"]["truth"],
}
THRESHOLDS = {
    "best threshold, CAM": lambda metrics: metrics["eval_cam"]["best"]["threshold"],
    "best threshold, RIB": lambda metrics: metrics["eval_rib_cam"]["best"]["threshold"],
}
# What one stage gains over another: more than this in every seed, and more than that on average.
GAINS = (
    ("seed, RIB", "seed, CAM", 5, 8),
    ("pseudo mask", "seed, RIB", 3, 5),
    ("network trained on RIB masks", "network trained on CAM masks", 0, 3),
)
USUAL = 0.05, 0.4  # thresholds
MASK_SPREAD = 8


def main() -> int:
    """Runs, gathers, prints; returns the first exit code that is not 0, or 1 where a claim fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="of data, training and draws")
    parser.add_argument("--work_dir", type=Path, default=Path("result/seeds"), help="folder of all runs")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run")
    parser.add_argument("rest", nargs="*", metavar="ARGUMENT", help="after --: arguments for run_sample.py")
    args = parser.parse_args()
    metrics = []
    for seed in args.seeds:
        folder = args.work_dir / f"seed{seed}"
        options = [f"--seed={seed}", f"--work_dir={folder.resolve()}", f"--ranks={args.ranks}", *args.rest]
        code = subprocess.run([sys.executable, "run_sample.py", *options], cwd=ROOT, check=False).returncode
        if code:
            return code
        metrics.append(json.loads((folder / "metrics.json").read_text()))
    miou = {label: [100 * read(each) for each in metrics] for label, read in STAGES.items()}
    thresholds = {label: [read(each) for each in metrics] for label, read in THRESHOLDS.items()}
    claims = story(miou, thresholds)
    lines = [
        f"| shapes, mIoU | {' | '.join(f'seed {seed}' for seed in args.seeds)} | mean | spread |",
        "|---" * (len(args.seeds) + 3) + "|",
        *(_row(label, row, 1) for label, row in miou.items()),
        *(_row(label, row, 2) for label, row in thresholds.items()),
        "",
        *(f"- {text}: {'holds' if holds else 'FAILS'}" for text, holds in claims.items()),
    ]
    values = {"seeds": args.seeds, "ranks": args.ranks, "miou": miou, "thresholds": thresholds, "story": claims}
    save_json(args.work_dir / "seeds.json", values)
    text = "\n".join(lines) + "\n"
    write_atomic(args.work_dir / "seeds.md", lambda file: file.write(text.encode()))
    print(text, end="")
    return 0 if all(claims.values()) else 1


def story(miou: dict[str, list[float]], thresholds: dict[str, list[float]]) -> dict[str, bool]:
    """The claims of the paper as far as `shapes` can make them, with the figures, and whether each holds."""
    claims = {}
    for better, worse, least, mean in GAINS:
        gain = np.subtract(miou[better], miou[worse])
        figures = f"least {gain.min():.1f} (wanted above {least}), mean {gain.mean():.1f} (above {mean})"
        claims[f"{better} over {worse}: {figures}"] = bool(gain.min() > least and gain.mean() > mean)
    low, high = min(map(min, thresholds.values())), max(map(max, thresholds.values()))
    text = f"best thresholds: {low:.2f} to {high:.2f} (wanted {USUAL[0]} to {USUAL[1]})"
    claims[text] = USUAL[0] <= low and high <= USUAL[1]
    spread = np.ptp(miou["pseudo mask"])
    claims[f"spread of the pseudo masks: {spread:.1f} (wanted below {MASK_SPREAD})"] = bool(spread < MASK_SPREAD)
    return claims


def _row(label: str, row: list[float], digits: int) -> str:
    cells = [f"{value:.{digits}f}" for value in (*row, np.mean(row), np.ptp(row))]
    return f"| {label} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
