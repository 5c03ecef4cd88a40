"""Pictures, the page and the table of stages, from whatever steps have run."""

import argparse
import logging
from pathlib import Path

from data import image_names
from data.base import Dataset
from misc import torchutils
from misc.report import pictures, plots
from misc.report.build import build
from misc.report.tables import stage_table
from misc.run.outputs import metrics, outdated


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes `report.html`, `overview.png` and `thresholds.png`, prints the table of stages."""
    if torchutils.rank() != 0:
        return {}
    folder = Path(args.work_dir)
    measured = metrics(args)
    names = image_names(args, dataset, "infer")
    for text in outdated(args):
        logging.warning("report: %s", text)
    pictures.save(folder / "overview.png", pictures.overview(args, measured, dataset, names))
    curves = plots.sweeps(measured, args.cam_eval_thres, f"{dataset.name}: seed mIoU over the background threshold")
    if curves:
        plots.save(curves, folder / "thresholds", ["png"])
    pictures.save(folder / "report.html", build(args, dataset, measured, names).encode())
    print(stage_table(measured, dataset.name).text())
    written = ["report.html", "overview.png", *(["thresholds.png"] if curves else [])]
    logging.info("report: %s", ", ".join(str(folder / name) for name in written))
    return {"images": len(names)}
