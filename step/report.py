"""Pictures and the table of stages, from whatever steps have run."""

import argparse
import logging
from pathlib import Path

from data import image_names, open_dataset
from misc import torchutils, viz
from misc.workdir import metrics


def run(args: argparse.Namespace) -> dict:
    """Writes `overview.png` and `thresholds.png`, prints the table of stages."""
    if torchutils.rank() != 0:
        return {}
    dataset = open_dataset(args)
    folder = Path(args.work_dir)
    measured = metrics(args)
    names = image_names(args, dataset, "infer")
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
    print(stage_table(dataset.name, measured))
    logging.info("report: %s%s", folder / "overview.png", f" and {folder / 'thresholds.png'}" if curves else "")
    return {"images": len(names)}


def stage_table(name: str, measured: dict) -> str:
    """The stages with their mIoU in percent, seeds at the best threshold of the sweep and at the fixed one."""
    lines = [f"{name:<24}{'mIoU':>7}{'at':>8}{'fixed':>8}{'at':>7}{'images':>9}{'seconds':>9}"]
    for step, makes, label in (
        ("eval_cam", "make_cam", "seed, CAM"), ("eval_rib_cam", "make_rib_cam", "seed, RIB"),
        ("eval_sem_seg", "make_sem_seg", "pseudo mask"),
    ):  # fmt: skip
        if step not in measured:
            continue
        values = measured[step]
        seconds = measured.get(makes, {}).get("seconds", float("nan"))
        if "best" in values:
            best, fixed = values["best"], values["fixed"]
            scores = (
                f"{100 * best['miou']:7.1f}{best['threshold']:8.2f}{100 * fixed['miou']:8.1f}{fixed['threshold']:7.2f}"
            )
        else:
            scores = f"{100 * values['miou']:7.1f}{'':23}"
        lines.append(f"{label:<24}{scores}{values['images']:9d}{seconds:9.0f}")
    network = measured.get("eval_seg", {})
    if "miou" in network:
        seconds = f"{measured.get('train_seg', {}).get('seconds', float('nan')):9.0f}"
        for learnt_from, miou in network.get("comparison", {"pseudo masks": network["miou"]}).items():
            label = f"network, from {learnt_from}"
            lines.append(f"{label:<24}{100 * miou:7.1f}{'':23}{network['scored']:9d}{seconds}")
            seconds = ""  # one step trains them all
    return "\n".join(lines)
