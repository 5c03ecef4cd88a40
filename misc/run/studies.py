"""The ablations of RIB: which settings each study compares."""

import argparse
import json
from dataclasses import dataclass
from typing import NamedTuple

from data.base import Dataset
from misc.rib import ACTIVATIONS
from misc.run.outputs import provenance
from misc.run.provenance import digest


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
    "activation": Study("final activation during RIB", "RIB_activation", _each("RIB_activation", *ACTIVATIONS)),
    "companions": Study("companion images per step", "RIB_batch_size", _each("RIB_batch_size", 0, 2, 10, 20)),
    "learning_rate": Study(
        "learning rate of RIB", "RIB_lr", _each("RIB_lr", Times(0.25), Times(0.5), Times(2), Times(4))
    ),
}


class Point(NamedTuple):
    """One setting: how it is named, its arguments, all that its results depend on, and the key of just that."""

    label: str
    args: argparse.Namespace
    setting: dict[str, object]
    key: str


def points_of(study: Study, args: argparse.Namespace, dataset: Dataset) -> list[Point]:
    """The points of a study, the run's own setting among them; along the argument if that is a number."""
    own = make_point({}, args, dataset)
    if study.argument is None:
        return [own]
    points = [make_point(overrides, args, dataset) for overrides in study.overrides]
    if own.key not in [point.key for point in points]:
        points.append(make_point({study.argument: getattr(args, study.argument)}, args, dataset))
    if is_number(study, points[0]):
        points.sort(key=lambda point: (f"{study.argument}=" in point.label, getattr(point.args, study.argument)))
    return points


def make_point(overrides: dict[str, object], args: argparse.Namespace, dataset: Dataset) -> Point:
    """The point of the arguments with `overrides` in place: what makes its maps, and the thresholds they are cut at."""
    values = {}
    for name, value in overrides.items():
        values[name] = float(f"{value.factor * getattr(args, name):.6g}") if isinstance(value, Times) else value
    changed = argparse.Namespace(**{**vars(args), **values})
    made_by = provenance(changed, dataset, "cam_rib_out_dir")
    thresholds = {"--cam_eval_sweep": changed.cam_eval_sweep, "--cam_eval_thres": changed.cam_eval_thres}
    setting = {**made_by["arguments"], **made_by["inputs"], **thresholds}
    key = digest(json.dumps(setting, sort_keys=True).encode())
    label = ", ".join(f"{name}={v:g}" if isinstance(v, float) else f"{name}={v}" for name, v in values.items())
    return Point(label or "as it is", changed, setting, key)


def is_number(study: Study, point: Point) -> bool:
    """Whether the argument of a study is a number."""
    return not isinstance(getattr(point.args, study.argument), str)
