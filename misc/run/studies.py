"""The ablations of RIB: which settings each study compares."""

import argparse
import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple

from data import image_names
from data.base import Dataset
from data.errors import UserError
from misc.run.outputs import path_of
from misc.run.provenance import digest_of_array, digest_of_file, digest_of_names
from net.weights import find_doubled


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
    """What the results of every point depend on besides the arguments: the classifier, the dataset, its labels."""
    names = image_names(args, dataset, "train")
    return {
        "classifier": digest_of_file(find_doubled(path_of(args, "cam_weights_name"))),
        "identity": dataset.identity,
        "train": [digest_of_names(names), digest_of_array(dataset.labels(names))],
        "bad_images": sorted(dataset.bad_images),
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
        points.sort(key=lambda point: (f"{study.argument}=" in point.label, getattr(point.args, study.argument)))
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
    setting |= inputs
    key = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]
    label = ", ".join(f"{name}={v:g}" if isinstance(v, float) else f"{name}={v}" for name, v in values.items())
    return Point(label or "as it is", changed, setting, key)


def is_number(study: Study, point: Point) -> bool:
    """Whether the argument of a study is a number."""
    return not isinstance(getattr(point.args, study.argument), str)
