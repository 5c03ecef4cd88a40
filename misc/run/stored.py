"""What the JSON files of a run hold, checked whenever one is read: a damaged one is found before it is used.

A kind is a word of PLAIN; [kind] is a list of them, Each(kind) a mapping from any text to them; a dict has these
entries, those with a "?" may be absent, and others may be there; a tuple is all of its kinds at once; a function raises
ValueError for what it does not like.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

LARGEST = 1e15  # no seconds, losses or pixels reach it; beyond, a chart could not be drawn


class Each(NamedTuple):
    """A mapping from any text to values of one kind."""

    kind: Any


def problem(name: str, value: dict) -> str | None:
    """What is wrong with the content of a file of this name, None where nothing is or nothing is known of it."""
    try:
        _check(value, FILES.get(name, {}), "")
    except ValueError as error:
        return str(error)
    return None


def _check(value: Any, kind: Any, where: str) -> None:
    if isinstance(kind, dict | Each) and not isinstance(value, dict):
        raise _Wrong(where, value, "a mapping")
    if isinstance(kind, dict):
        for key, entry in kind.items():
            name, optional = key.removesuffix("?"), key.endswith("?")
            if name in value:
                _check(value[name], entry, _below(where, name))
            elif not optional:
                raise ValueError(f"it lacks {_below(where, name)}")
    elif isinstance(kind, Each):
        for name, entry in value.items():
            _check(entry, kind.kind, _below(where, name))
    elif isinstance(kind, list):
        if not isinstance(value, list):
            raise _Wrong(where, value, "a list")
        for i, entry in enumerate(value):
            _check(entry, kind[0], _below(where, str(i)))
    elif isinstance(kind, tuple):  # Each is one too, and was before
        for each in kind:
            _check(value, each, where)
    elif callable(kind):
        kind(value, where)
    elif not PLAIN[kind](value):
        raise _Wrong(where, value, f"a {kind}")


class _Wrong(ValueError):
    def __init__(self, where: str, value: Any, wanted: str):
        found = repr(value) if isinstance(value, int | float | None) else f"a {type(value).__name__}"
        super().__init__(f"{where} is {found[:40]}, wanted {wanted}")


def _below(where: str, name: str) -> str:
    return f"{where}.{name[:60]}" if where else name[:60]


def _is_number(value: Any) -> bool:
    """None and NaN stand where there was nothing to divide by."""
    return value is None or (
        isinstance(value, int | float) and not isinstance(value, bool) and (value != value or abs(value) < LARGEST)
    )


PLAIN: dict[str, Callable[[Any], bool]] = {
    "any": lambda value: True,
    "text": lambda value: isinstance(value, str),
    "flag": lambda value: isinstance(value, bool),
    "count": lambda value: type(value) is int and 0 <= value < LARGEST,
    "measure": lambda value: value is not None and _is_number(value),
    "number": _is_number,
    "share": lambda value: _is_number(value) and (value is None or value != value or 0 <= value <= 1),
}


def _scores(value: Any, where: str) -> None:
    """Scores of masks; a confusion has a row and a column for every class of the IoU."""
    kind = {
        "miou?": "share", "iou?": Each("share"), "foreground?": {"precision?": "share", "recall?": "share"},
        "ignored?": "share", "images?": "count", "confusion?": [["count"]],
    }  # fmt: skip
    _check(value, kind, where)
    rows, n = value.get("confusion", []), len(value.get("iou", {}))
    if rows and {len(rows), *map(len, rows)} != {n}:
        raise ValueError(f"{where}.confusion is not {n} x {n}, as the classes of {where}.iou")


def _at_threshold(value: Any, where: str) -> None:
    _scores(value, where)
    _check(value, {"threshold": "measure", "miou": "share"}, where)


def _sweep(value: Any, where: str) -> None:
    _check(value, Each("share"), where)
    if not value:
        raise ValueError(f"{where} is empty")
    for threshold in value:
        try:
            _check(float(threshold), "measure", where)
        except ValueError as error:
            raise ValueError(f"{where} has {threshold[:60]!r} for a threshold") from error


def _losses(value: Any, where: str) -> None:
    """A list, or one for every network."""
    _check(value, Each(["measure"]) if isinstance(value, dict) else ["measure"], where)


def _study(value: Any, where: str) -> None:
    """The points of an ablation, or its curve over the steps."""
    ends = {"ended_early?": "count", "not_finite?": "count"}
    if isinstance(value, dict) and isinstance(value.get("best"), list):
        _check(value, ends, where)
        _curve(value, where)
    else:
        _check(value, Each({"best?": "share", "best_threshold?": "number", "fixed?": "share", **ends}), where)


def _curve(value: Any, where: str) -> None:
    _check(value, {"best": ["share"], "best_threshold": ["number"], "fixed": ["share"]}, where)
    if not len(value["best"]) == len(value["best_threshold"]) == len(value["fixed"]) > 0:
        raise ValueError(f"{where} has lists of different lengths")


def _point(value: Any, where: str) -> None:
    """A point of ablate/results.json; `written` is a place on its curve."""
    kind = {
        "label": "text", "own": "flag", "images": "count", "written": "count", "ended_early?": "count",
        "not_finite?": "count", "curve": (_curve, Each(["measure"])),
    }  # fmt: skip
    _check(value, kind, where)
    if value["written"] >= len(value["curve"]["best"]):
        raise ValueError(f"{where}.written is {value['written']}, wanted a place on its curve")


def _points(value: Any, where: str) -> None:
    _check(value, [_point], where)
    if not value:
        raise ValueError(f"{where} is empty")


def _step(value: Any, where: str) -> None:
    """What every step may have measured; the file's schema stands beside the steps."""
    kind = {
        "seconds?": "measure", "images?": "count", "of?": "count", "loss?": _losses,
        "average_precision?": Each("share"), "RIB_steps?": Each("count"),
    }  # fmt: skip
    if where != "schema":
        _check(value, kind, where)


_SEEDS = {"best": _at_threshold, "fixed": _at_threshold, "sweep": _sweep}
_CLAIM = {
    "claim": "text", "condition": "text", "measured": Each(["number"]), "reproduced": "flag", "holds_in": "text",
}  # fmt: skip
_MARKS = {"non-discriminative": ["number"]}
_STEPS = {
    "eval_cam?": _SEEDS,
    "eval_rib_cam?": _SEEDS,
    "eval_sem_seg?": (_scores, {"ir_label?": _scores}),
    "eval_ins_seg?": {"images": "count", "map_50?": "share", "map_70?": "share", "map_50_95?": "share"},
    "eval_seg?": (_scores, {"before_crf?": {"miou?": "share"}, "comparison?": Each("share")}),
    "ablate?": {"studies?": Each(_study)},
    "toy?": {
        "accuracy?": ["share"], "threshold?": "number", "seeds?": ["any"], "claims?": [_CLAIM],
        "hgr?": Each(Each({"mean?": ["number"]})),
        "fall?": Each({"mean?": "number", "std?": "number", "relative?": "number"}), "notes?": ["text"],
        **{f"{name}?": Each({"mean?": "number"}) for name in ("logit", "whole_output", "steps")},
        "by_threshold?": Each({"hgr": {"trained": _MARKS, "none": _MARKS}, "reproduced": ["flag"]}),
    },
}  # fmt: skip
_CALL = {
    "arguments?": {"dataset?": "text"}, "sources?": Each("text"), "hardware?": Each("any"), "versions?": Each("any"),
}  # fmt: skip
FILES = {
    "metrics.json": (Each(_step), _STEPS),
    "per_image.json": {"sem_seg?": Each("share")},
    "args.json": {**_CALL, "earlier?": [_CALL]},
    "results.json": {
        "own": "text",
        "studies": Each({"title": "text", "argument": "any", "sweep?": ["number"], "points": _points}),
    },
}
