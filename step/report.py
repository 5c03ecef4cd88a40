"""Pictures, the page and the table of stages, from whatever steps have run."""

import argparse
import logging
from pathlib import Path

from misc.run.outputs import metrics, outdated

from data import image_names
from data.base import Dataset
from data.files import write_atomic
from misc import torchutils
from misc.report import viz
from misc.report.page import build
from misc.report.stages import stage_table


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes `report.html`, `overview.png` and `thresholds.png`, prints the table of stages."""
    if torchutils.rank() != 0:
        return {}
    folder = Path(args.work_dir)
    measured = metrics(args)
    names = image_names(args, dataset, "infer")
    for text in outdated(args):
        logging.warning("report: %s", text)
    viz.save_image(folder / "overview.png", viz.overview(args, dataset, names))
    curves = {
        label: measured[step]["sweep"]
        for step, label in (("eval_cam", "CAM"), ("eval_rib_cam", "RIB"))
        if step in measured
    }
    if curves:
        viz.plot_thresholds(
            folder / "thresholds.png", curves, f"{dataset.name}: seed mIoU over the background threshold"
        )
    page = build(args, dataset, measured, names).encode()
    write_atomic(folder / "report.html", lambda file: file.write(page))
    print(stage_table(dataset.name, measured))
    written = ["report.html", "overview.png", *(["thresholds.png"] if curves else [])]
    logging.info("report: %s", ", ".join(str(folder / name) for name in written))
    return {"images": len(names)}
