"""The ablations of RIB: which settings each study compares, and its table and plots."""

import argparse
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from misc.run.outputs import path_of, some_images

from data import dataset_module, image_names
from data.base import Dataset
from data.errors import UserError
from data.files import find_doubled, write_atomic
from misc.run import made_by


@dataclass(frozen=True)
class Times:
    """In place of a value: so many times the value that the run would have."""

    factor: float


@dataclass(frozen=True)
class Study:
    """A comparison of settings, each a dict of arguments and values that take the place of the run's own.

    argument: the one on the x axis; a setting without it becomes a horizontal line. None: the study is the curve over
    the steps of the run's own setting. That setting is a point of every study, listed or not.
    """

    title: str
    argument: str | None
    overrides: tuple[dict[str, object], ...] = ()


def _each(argument: str, *values: object, **others: object) -> tuple[dict[str, object], ...]:
    return tuple({**others, argument: value} for value in values)


STUDIES = {
    "steps": Study("number of RIB steps", None),
    "pooling": Study(
        "GNDRP with threshold tau, and global average pooling (gap)",
        "score_th",
        ({"pooling": "gap"}, *_each("score_th", 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, pooling="gndp")),
    ),
    "activation": Study(
        "final activation during RIB",
        "RIB_activation",
        _each("RIB_activation", "none", "sigmoid", "softsign", "tanh", "relu"),
    ),
    "companions": Study("companion images per step", "RIB_batch_size", _each("RIB_batch_size", 0, 2, 10, 20)),
    "learning_rate": Study(
        "learning rate of RIB", "RIB_lr", _each("RIB_lr", Times(0.25), Times(0.5), Times(2), Times(4))
    ),
}
# What an image's result depends on besides the arguments whose names begin with RIB_ or shapes_.
_SETTING = (
    "dataset", "seed", "train_list", "limit", "cam_network", "cam_scales", "cam_eval_sweep",
    "cam_eval_thres", "pooling", "score_th", "stop_th", "explode_th", "explode_ratio", "precision",
)  # fmt: skip


class Point(NamedTuple):
    """One setting: how it is named, its arguments, all that its results depend on, and the key of just that."""

    label: str
    args: argparse.Namespace
    setting: dict[str, object]
    key: str


def chosen_studies(text: str | None) -> list[str]:
    """The names of the studies of `--ablate`, all without it; UserError for one that there is not."""
    names = [part.strip() for part in text.split(",") if part.strip()] if text is not None else list(STUDIES)
    unknown = [name for name in names if name not in STUDIES]
    if unknown or not names:
        raise UserError(f"--ablate {text}: there is no study {', '.join(unknown)!r}; there are {', '.join(STUDIES)}")
    return [name for name in STUDIES if name in names]


def inputs_of(args: argparse.Namespace, dataset: Dataset) -> dict[str, object]:
    """What the results of every point depend on besides the arguments: SHA-256 of classifier and code, the dataset."""
    module, file = dataset_module(args.dataset)
    names = image_names(args, dataset, "train")
    return {
        "classifier_sha256": made_by.of_file(find_doubled(path_of(args, "cam_weights_name"))),
        "code_sha256": made_by.of_record({"code": made_by.of_code(("step.ablate", *module), file)}),
        "identity": dataset.identity,
        "train": [made_by.of_names(names), made_by.of_array(dataset.labels(names))],
        "images": some_images(args, dataset, "train"),
    }


def points_of(study: Study, args: argparse.Namespace, inputs: dict[str, object]) -> list[Point]:
    """The points of a study, the run's own setting among them; along the argument if that is a number."""
    own = make_point({}, args, inputs)
    if study.argument is None:
        return [own]
    points = [make_point(overrides, args, inputs) for overrides in study.overrides]
    if own.key not in [point.key for point in points]:
        points.append(make_point({study.argument: getattr(args, study.argument)}, args, inputs))
    if is_number(study, points[0]):
        points.sort(key=lambda point: (_on_axis(study, point), getattr(point.args, study.argument)))
    return points


def make_point(overrides: dict[str, object], args: argparse.Namespace, inputs: dict[str, object]) -> Point:
    """The point of the arguments with `overrides` in place. inputs: as of `inputs_of`."""
    values = {}
    for name, value in overrides.items():
        values[name] = float(f"{value.factor * getattr(args, name):.6g}") if isinstance(value, Times) else value
    changed = argparse.Namespace(**{**vars(args), **values})
    kept = sorted(name for name in vars(changed) if name in _SETTING or name.startswith(("RIB_", "shapes_")))
    setting = {name: getattr(changed, name) for name in kept if not name.endswith("_pass")}
    if setting.get("RIB_companions") == "fresh":
        setting.pop("RIB_pool_size", None)
    setting |= {"bad_images": sorted(args.bad_images), **inputs}
    key = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]
    label = ", ".join(f"{name}={v:g}" if isinstance(v, float) else f"{name}={v}" for name, v in values.items())
    return Point(label or "as it is", changed, setting, key)


def is_number(study: Study, point: Point) -> bool:
    """Whether the argument of a study is a number."""
    return not isinstance(getattr(point.args, study.argument), str)


def _on_axis(study: Study, point: Point) -> bool:
    return f"{study.argument}=" in point.label


def table(title: str, studies: dict[str, dict]) -> str:
    """Text: per point the mIoU in percent at the best threshold of the sweep and at the fixed one.

    studies: as in results.json, name -> {"argument", "sweep", "points": [{"label", "images", "curve", ...}]}. A
    threshold at an end of the sweep is marked, for a better one may lie beyond. "early": images that RIB ended before
    its last step; "over": those whose numbers overflowed and which count as they were before.
    """
    lines = [f"{title:<40}{'best':>7}{'at':>7}{'fixed':>8}{'images':>8}{'early':>7}{'over':>6}"]
    for name, study in studies.items():
        lines += ["", f"{name}: {study['title']}"]
        if study["argument"] is None:
            point = study["points"][0]
            for k in range(len(point["curve"]["best"])):
                notes = " (CAM)" * (k == 0) + " (make_rib_cam)" * (k == point["written"])
                lines.append(_row(f"after {k} updates{notes}", study, point, k))
            continue
        lines.append(_row("CAM", study, study["points"][0], 0))
        lines += [
            _row(point["label"] + " *" * point["own"], study, point, point["written"]) for point in study["points"]
        ]
    text = "\n".join([*lines, "", "* the setting of this run"])
    if "!" in text:
        text += "\n! an end of the sweep: a better threshold may lie beyond, see --cam_eval_sweep"
    if any(point["not_finite"] for study in studies.values() for point in study["points"]):
        text += (
            "\nover: their numbers overflowed, they count as they were before; make_rib_cam stops with an error there"
        )
    return text


def _row(label: str, study: dict, point: dict, k: int) -> str:
    """A line of the table: a point after k updates."""
    best, at, fixed = (point["curve"][key][k] for key in ("best", "best_threshold", "fixed"))
    edge = "!" if at in study["sweep"] else " "
    ends = f"{point['ended_early']:7d}{point['not_finite']:6d}" if k else ""
    return f"  {label:<38}{100 * best:7.1f}{at:6.2f}{edge}{100 * fixed:8.1f}{point['images']:8d}{ends}"


def plot(folder: Path, name: str, study: dict, title: str) -> None:
    """Writes NAME.png and NAME.svg: mIoU over the study's argument, and over the steps for each of its points.

    study: as for `table`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "rib"}):  # the same bytes for the same numbers
        if study["argument"] is None:
            figure = Figure(figsize=(6.4, 4), layout="constrained")
            _over_steps(figure.subplots(), study["points"], both=True)
        else:
            figure = Figure(figsize=(12, 6), layout="constrained")
            axes = figure.subplot_mosaic([["best", "steps"], ["fixed", "steps"]], width_ratios=(1, 1.2))
            _over_argument(axes["best"], study, "best")
            _over_argument(axes["fixed"], study, "fixed")
            _over_steps(axes["steps"], study["points"], both=False)
        figure.suptitle(title)
        for kind, options in (("png", {"dpi": 120}), ("svg", {"metadata": {"Date": None}})):
            data = io.BytesIO()
            figure.savefig(data, format=kind, **options)
            write_atomic(folder / f"{name}.{kind}", lambda file, data=data: file.write(data.getvalue()))


BEST, FIXED = "#D55E00", "#0072B2"


def _over_argument(axes, study: dict, key: str) -> None:
    """mIoU over the argument at the "best" or "fixed" threshold, each on axes of its own: they may lie far apart."""
    points = [point for point in study["points"] if "x" in point]
    x = [point["x"] for point in points]
    positions = np.arange(len(x)) if study["words"] else np.array(x, float)
    colour = {"best": BEST, "fixed": FIXED}[key]
    y = [100 * point["curve"][key][point["written"]] for point in points]
    axes.plot(positions, y, "o" if study["words"] else "o-", color=colour, label="RIB")
    for position, value, point in zip(positions, y, points, strict=True):
        if point["own"]:
            axes.plot(position, value, "o", ms=12, mfc="none", mec=colour, ls="", label="the setting of this run")
    axes.axhline(100 * study["points"][0]["curve"][key][0], color=colour, ls=":", label="CAM")
    for point in study["points"]:
        if "x" not in point:
            value = 100 * point["curve"][key][point["written"]]
            axes.axhline(value, color=colour, ls="--", label=point["label"])
    if study["words"]:
        axes.set_xticks(positions, x)
        axes.margins(x=0.15)
    else:
        axes.set_xscale("log" if study["log"] else "linear")
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.minorticks_off()
    _finish(axes, study["argument"] + (" (tau)" if study["argument"] == "score_th" else ""))
    axes.set_ylabel(f"mIoU (%), {key} threshold")
    axes.legend(fontsize=7)


def _over_steps(axes, points: Sequence[dict], both: bool) -> None:
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0, 0.92, len(points)))
    for i, point in enumerate(points):
        style = "-" if point["own"] else (0, (4, 2))  # of two equal curves both are seen
        for key in ("best", "fixed") if both else ("best",):
            y = 100 * np.array(point["curve"][key])
            colour = {"best": BEST, "fixed": FIXED}[key] if both else colours[i]
            label = f"{key} threshold" if both else point["label"]
            axes.plot(np.arange(len(y)), y, ls=style, color=colour, label=label, lw=2.5 if point["own"] else 1.4)
            axes.plot(point["written"], y[point["written"]], "o", color=colour)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(axes, "updates of the weights (0: CAM; dot: what make_rib_cam writes)")
    if not both:
        axes.set_ylabel("mIoU (%), best threshold")
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))  # lines cross the whole panel


def _finish(axes, label: str) -> None:
    axes.set(xlabel=label, ylabel="mIoU (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
