"""metrics.json: what every step measured."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from data.files import load_json, save_json
from misc.run.workdir import PLACES
from misc.torchutils import gather, rank

SCHEMA = 1  # of metrics.json and per_image.json, see docs/METRICS.md; raised when a key changes its meaning or goes
WORK = ("seconds", "images", "of", "RIB_steps", "waiting_share")  # they tell of making the images


def made(todo: Sequence[str], names: Sequence[str]) -> dict:
    """For metrics.json: the images that all ranks together made in this run, of how many."""
    return {"images": len(gather(list(todo))), "of": len(names)}


def record(args: argparse.Namespace, step: str, values: dict) -> None:
    """Stores what a step measured in metrics.json; of a step that went on where it stopped, both runs together.

    A run that found all images made keeps what tells of that work; what it measured on them (the ablations) is stored.
    """
    if rank() != 0:
        return
    stored = metrics(args)
    if step in stored and values["images"] < values.get("of", 0):
        try:
            if values["images"]:
                values = _added(stored[step], values)
            else:
                values = {**stored[step], **{key: value for key, value in values.items() if key not in WORK}}
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{_metrics_path(args)} is damaged at {step} ({error}); mend it, or move it away"
            ) from error
    save_json(_metrics_path(args), {"schema": SCHEMA, **stored, step: values})


def _added(before: dict, now: dict) -> dict:
    """Counts and seconds of two runs added up, counts by key too; of all else the newer value."""
    out = {**before, **now}
    for key in ("seconds", "images", "RIB_steps"):
        if key in before and key in now:
            old, new = before[key], now[key]
            if isinstance(old, dict):
                out[key] = {k: old.get(k, 0) + new.get(k, 0) for k in sorted({*old, *new}, key=int)}
            else:
                out[key] = round(old + new, 2)
    out["images"] = min(out["images"], out["of"])  # files that were deleted and made again count once
    return out


def metrics(args: argparse.Namespace) -> dict[str, dict]:
    """The content of metrics.json: of every step what it measured."""
    stored = load_json(_metrics_path(args))
    wrong = [step for step, values in stored.items() if step != "schema" and not isinstance(values, dict)]
    if wrong:
        raise UserError(f"{_metrics_path(args)} holds no mapping under {wrong[0]!r}; mend it, or move it away")
    return stored


def forget(args: argparse.Namespace, argument: str) -> None:
    """Takes what metrics.json tells of results that are not there, or not for long, out of it."""
    entry, stored = PLACES[argument], metrics(args)
    if entry.seg_labels:  # entries of several networks, or of other images: their steps replace them as a whole
        return
    step, _, key = (entry.scored_by or "").partition(".")
    gone = {entry.step} if key else {entry.step, step}
    kept = {name: values for name, values in stored.items() if name not in gone}
    if key and key in kept.get(step, {}):
        kept[step] = {name: value for name, value in kept[step].items() if name != key}
    if kept != stored:
        save_json(_metrics_path(args), kept)


def _metrics_path(args: argparse.Namespace) -> Path:
    return Path(args.work_dir) / "metrics.json"
