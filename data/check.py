"""Reads every image, label and mask once, to find the bad ones before the work begins (`--check_data`)."""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from data.base import Dataset
from data.errors import DataError, MissingFile, UserError
from data.progress import progress_map

SHOWN = 50  # problems that are listed one by one
MISSING, UNREADABLE, UNLABELLED, BAD_MASK = "missing", "unreadable", "unlabelled", "bad mask"


class Finding(NamedTuple):
    """What reading an image found; `kind` and `problem` are empty if nothing is wrong."""

    name: str
    kind: str = ""
    problem: str = ""
    size: tuple[int, int] | None = None  # (H, W)
    label: np.ndarray | None = None  # bool [C]
    has_mask: bool = False


def bad_images(dataset: Dataset, names: Sequence[str], num_workers: int) -> dict[str, str]:
    """name -> what is wrong, for the images whose image file, label or mask cannot be read."""
    return {found.name: found.problem for found in findings(dataset, names, num_workers) if found.kind}


def findings(dataset: Dataset, names: Sequence[str], num_workers: int) -> Iterator[Finding]:
    """Reads every image with its label and mask; one Finding each, in order."""
    bad = 0
    read = partial(_read, dataset)
    for part in progress_map(read, names, "check images", num_workers, grouped=True, status=lambda: f"{bad} bad"):
        yield from part
        bad += sum(bool(found.kind) for found in part)


def check_data(args: argparse.Namespace, dataset: Dataset) -> bool:
    """Reads everything that the lists name and prints a summary and the problems; returns whether there are none."""
    from data import PURPOSES

    lists: dict[str, list[str]] = {}
    problems: list[str] = []
    for purpose in PURPOSES:
        source = getattr(args, f"{purpose}_list")
        try:
            lists[purpose] = dataset.names_of(source)[: args.limit]
        except DataError as error:
            lists[purpose] = []
            problems.append(f"--{purpose}_list {source}: {error}")
    listed = set().union(*lists.values())
    others = [] if args.limit else dataset.all_names()
    found = list(findings(dataset, sorted(listed | set(others)), args.num_workers))
    problems += dataset.problems
    # An image without a label does no harm as long as no list names it.
    problems += [f.problem for f in found if f.kind and (f.kind != UNLABELLED or f.name in listed)]
    problems = list(dict.fromkeys(problems))
    print(_table(dataset, lists, found))
    for note in dataset.notes:
        print(f"note: {note}")
    for problem in problems[:SHOWN]:
        print(f"problem: {problem}")
    if len(problems) > SHOWN:
        print(f"and {len(problems) - SHOWN} more problems")
    print(f"{len(problems)} problem{'s' * (len(problems) != 1)} to fix" if problems else "nothing is wrong")
    return not problems


def _table(dataset: Dataset, lists: dict[str, list[str]], found: Sequence[Finding]) -> str:
    kinds = [f.kind for f in found]
    sizes = [f.size for f in found if f.size]
    labels = [f.label for f in found if f.label is not None]
    per_class = np.sum(labels, axis=0, dtype=np.int64) if labels else np.zeros(dataset.n_classes, np.int64)
    extent = ""
    if sizes:
        low, high = np.min(sizes, 0), np.max(sizes, 0)
        extent = f"{low[1]} to {high[1]} pixels wide, {low[0]} to {high[0]} high"
    rows = [
        ("images", sum(kind != MISSING for kind in kinds), extent),
        ("classes", dataset.n_classes, ""),
        ("without any class", sum(not label.any() for label in labels), "images that hold no object"),
        ("missing", kinds.count(MISSING), "named somewhere, but no such image"),
        ("unreadable", kinds.count(UNREADABLE), ""),
        ("unlabelled", kinds.count(UNLABELLED), ""),
        ("bad masks", kinds.count(BAD_MASK), ""),
        ("without mask", sum(not f.has_mask for f in found if f.kind not in (MISSING, UNREADABLE, BAD_MASK)), ""),
        *((f"--{purpose}_list", len(names), "") for purpose, names in lists.items()),
    ]
    lines = [f"dataset {dataset.name}", *(f"{name:<18}{n:>9,}  {text}".rstrip() for name, n, text in rows)]
    lines += ["", f"{'mask value':>10}  {'images':>9}  class"]
    lines += [f"{c + 1:>10}  {n:>9,}  {dataset.classes[c]}" for c, n in enumerate(per_class)]
    return "\n".join(lines)


def _read(dataset: Dataset, names: Sequence[str]) -> list[Finding]:
    return [_read_one(dataset, name) for name in names]


def _read_one(dataset: Dataset, name: str) -> Finding:
    found = Finding(name)
    try:
        found = found._replace(size=dataset.image(name).shape[:2])
    except UserError as error:
        return found._replace(kind=MISSING if isinstance(error, MissingFile) else UNREADABLE, problem=str(error))
    try:
        found = found._replace(label=dataset.label(name) > 0)
    except UserError as error:
        found = found._replace(kind=UNLABELLED, problem=str(error))
    try:
        return found._replace(has_mask=dataset.mask(name) is not None)
    except UserError as error:
        return found._replace(kind=found.kind or BAD_MASK, problem=found.problem or str(error))
