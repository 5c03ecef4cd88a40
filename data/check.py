"""Reads every image, label and mask once, to find the bad ones before the work begins (`--check_data`)."""

import argparse
import os
import re
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from data.agreement import TOO_MANY, disagreement, read_contents
from data.base import Dataset, alike, class_table
from data.errors import DataError, MissingFile, UserError
from data.progress import progress_map
from data.remarks import BATCHES, remarks

SHOWN = 50  # problems that are listed one by one
# Measured: the peak memory of make_rib_cam in float32 on a CPU, over the pixels of an image at its largest scale.
GIB, GIB_PER_MEGAPIXEL = 1.2, 0.87
MISSING, UNREADABLE, UNLABELLED, BAD_MASK = "missing", "unreadable", "unlabelled", "bad mask"


class Finding(NamedTuple):
    """What reading an image found; `kind` and `problem` are empty if nothing is wrong."""

    name: str
    kind: str = ""
    problem: str = ""
    size: tuple[int, int] | None = None  # (H, W)
    label: np.ndarray | None = None  # bool [C]
    mask: np.ndarray | None = None  # its `contents`, where there is one


def bad_images(dataset: Dataset, names: Sequence[str], labelled: Collection[str], num_workers: int) -> dict[str, str]:
    """name -> what is wrong, for the images whose image file, label or mask cannot be read; labelled: need a label."""
    found = findings(dataset, names, num_workers)
    return {f.name: f.problem for f in found if f.kind and (f.kind != UNLABELLED or f.name in labelled)}


def findings(dataset: Dataset, names: Sequence[str], num_workers: int) -> Iterator[Finding]:
    """Reads every image with its label and mask; one Finding each, in order."""
    bad = 0
    read = partial(_read, dataset)
    for part in progress_map(read, names, "check images", num_workers, grouped=True, status=lambda: f"{bad} bad"):
        yield from part
        bad += sum(bool(found.kind) for found in part)


def check_data(args: argparse.Namespace, dataset: Dataset) -> bool:
    """Reads everything that the lists name and prints a summary and the problems; returns whether there are none."""
    from data import LABELLED, PURPOSES

    lists: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}  # problem -> the lists that have it
    for purpose in PURPOSES:
        source = getattr(args, f"{purpose}_list")
        try:
            lists[purpose] = dataset.names_of(source)[: args.limit]
        except DataError as error:
            lists[purpose] = []
            refused.setdefault(str(error), []).append(f"--{purpose}_list {source}")
    problems = [f"{', '.join(of)}: {problem}" for problem, of in refused.items()]
    listed = set().union(*lists.values())
    labelled = set().union(*(lists[purpose] for purpose in LABELLED if dataset.has_labels))
    others = [] if args.limit else dataset.all_names()
    found = list(findings(dataset, sorted(listed | set(others)), args.num_workers))
    problems += dataset.problems
    # An image without a label does no harm as long as none of these lists names it.
    bad = [f for f in found if f.kind and (f.kind != UNLABELLED or f.name in labelled)]
    compared = [f for f in found if f.label is not None and f.mask is not None]
    unknown = {f.name for f in compared if f.kind == BAD_MASK}
    if len(unknown) > TOO_MANY * len(compared):  # one diagnosis for all
        bad = [f for f in bad if f.name not in unknown]
    else:
        compared = [f for f in compared if f.name not in unknown]
    columns = ([getattr(f, key) for f in compared] for key in ("name", "label", "mask"))
    texts, too_many = disagreement(*columns, dataset.classes)
    kinds: dict[tuple[str, str], list[str]] = {}  # what is wrong with many images is one problem
    for f in bad:
        text = re.sub(r"(line|value) \d+", "", f.problem.replace(f.name, ""))
        kinds.setdefault((f.kind, text), []).append(f.problem)
    problems += [alike(problems) for problems in kinds.values()]
    problems, warnings = [*problems, *texts[: int(too_many)]], texts[int(too_many) :]
    unusable = {f.name for f in bad if f.kind != BAD_MASK}
    usable = {purpose: [name for name in names if name not in unusable] for purpose, names in lists.items()}
    if dataset.has_labels and all(usable.values()) and not (dataset.problems or too_many):  # else consequences
        told = remarks(args, dataset, usable.__getitem__, [*BATCHES, "make_rib_cam", "eval_seg"], masks_too=False)
        warnings += [text for texts in told.values() for text in texts]
    warnings += _too_large(args, [f for f in found if f.size])
    problems, warnings = (list(dict.fromkeys(texts)) for texts in (problems, warnings))
    print(_table(dataset, lists, found))
    for kind, texts in (("note", dataset.notes), ("warning", warnings)):
        for text in texts:
            print(f"{kind}: {text}")
    for problem in problems[:SHOWN]:
        print(f"problem: {problem}")
    if len(problems) > SHOWN:
        print(f"and {len(problems) - SHOWN} more problems")
    end = f"{len(problems)} problem{'s' * (len(problems) != 1)} to fix" if problems else "nothing is wrong"
    print(end + (f", {len(warnings)} warning{'s' * (len(warnings) != 1)} above" if warnings else ""))
    return not problems


def _too_large(args: argparse.Namespace, found: Sequence[Finding]) -> list[str]:
    """Whether RIB with a ResNet-50 would take more memory than there is for the largest image."""
    largest = max(found, key=lambda f: f.size[0] * f.size[1], default=None)
    if largest is None or args.cam_network != "resnet50":
        return []
    pixels = largest.size[0] * largest.size[1] * max(args.cam_scales) ** 2 / 1e6
    need, have = GIB + GIB_PER_MEGAPIXEL * pixels, _memory(args.device) / 2**30
    if need < 0.8 * have:
        return []
    fits = max(largest.size) * ((0.8 * have - GIB) / (need - GIB)) ** 0.5
    return [
        f"{largest.name} is {largest.size[1]} x {largest.size[0]}: make_rib_cam takes about {need:.0f} GiB of memory "
        f"for it, there are {have:.0f}; --max_side {fits // 100 * 100:.0f} would fit (CPU and float32; less with bf16)"
    ]


def _memory(device: str) -> int:
    """Bytes of memory of the GPU, or of the machine without one."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
        ("without mask", sum(f.mask is None for f in found if f.kind not in (MISSING, UNREADABLE, BAD_MASK)), ""),
        *((f"--{purpose}_list", len(names), "") for purpose, names in lists.items()),
    ]
    lines = (f"{name:<18}{n:>9,}  {text}".rstrip() for name, n, text in rows)
    return "\n".join([f"dataset {dataset.name}", *lines, *class_table(dataset.classes, per_class)])


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
    mask, problem = read_contents(dataset, name)
    if problem and not found.kind:
        found = found._replace(kind=BAD_MASK, problem=problem)
    return found._replace(mask=mask)
