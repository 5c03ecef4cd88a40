"""The gallery: which images are shown, and what stands on the card of each."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.base import Dataset
from data.files import load_json
from misc.metrics import confusion, mean_iou
from misc.report.pictures import fit, layer_uri, outputs, photograph, spread
from misc.run.outputs import path_of, result_file

PER_GROUP = 6  # images of each kind
PER_CLASS = (0.5, 1.0, 0.0, 0.25)  # of every class the median, the worst, the best and the one between
MOST = 120  # images altogether
MOST_BYTES = 12_000_000  # of pictures; the page may have 15 MB
ALL_SHOWN = 24  # lists up to this long are shown whole
GROUPS = {"best": "best", "median": "median", "worst": "worst", "class": "class examples", "val": "validation"}


def per_image(args: argparse.Namespace) -> dict[str, float]:
    """name -> mIoU of its pseudo mask, from per_image.json; empty before eval_sem_seg has run."""
    stored = load_json(Path(args.work_dir) / "per_image.json").get("sem_seg", {})
    return {name: value for name, value in stored.items() if value is not None and value == value}


def sample(args: argparse.Namespace, dataset: Dataset, names: Sequence[str]) -> dict[str, list[str]]:
    """name -> groups it is shown for: best, median, worst by mIoU and examples of every class; spread out without mIoU.

    names: the images that got pseudo masks. Images of `--val_list` with a mask of the segmentation network come last.
    """
    chosen: dict[str, list[str]] = {}

    def take(candidates: Sequence[str], group: str) -> None:
        for name in candidates:
            if (name in chosen or len(chosen) < MOST) and group not in chosen.get(name, ()):
                chosen.setdefault(name, []).append(group)

    scores = per_image(args)
    ranked = sorted((name for name in names if name in scores), key=lambda name: (-scores[name], name))
    if ranked:
        middle = max(0, (len(ranked) - PER_GROUP) // 2)
        take(ranked[:PER_GROUP], "best")
        take(ranked[middle : middle + PER_GROUP], "median")
        take(ranked[-PER_GROUP:], "worst")
        labels = dataset.labels(ranked) > 0
        for fraction in PER_CLASS:  # one image of every class before the second of any
            for c in range(dataset.n_classes):
                members = np.flatnonzero(labels[:, c])
                take([ranked[members[round(fraction * (len(members) - 1))]]] if len(members) else [], "class")
        take(ranked if len(ranked) <= ALL_SHOWN else (), "class")
    else:
        take([names[i] for i in spread(len(names), ALL_SHOWN)], "class")
    if path_of(args, "seg_out_dir").is_dir():
        val = [name for name in dataset.names_of(args.val_list) if name not in set(names)]
        val = [name for name in val if result_file(args, "seg_out_dir", name, ".png").is_file()]
        take([val[i] for i in spread(len(val), PER_GROUP)], "val")
    return chosen


def card(args: argparse.Namespace, measured: dict, dataset: Dataset, name: str, groups: Sequence[str]) -> dict:
    """One image with everything made of it; its score is the mIoU of the last mask there is."""
    image, truth = dataset.image(name), dataset.mask(name)
    made, colours = outputs(args, measured, dataset, name, image, truth)
    tiles, last = [{"title": "image"}], None
    for output in made:
        score = None
        if truth is not None and output.mask is not None and output.key not in ("truth", "label"):
            score = last = mean_iou(confusion(output.mask, truth, dataset.n_classes + 1))
        tiles.append({"key": output.key, "title": output.title, "picture": layer_uri(output.layer), "score": score})
    height, width = fit(image.shape)
    return {
        "name": name,
        "groups": groups,
        "classes": np.flatnonzero(dataset.label(name)).tolist() if dataset.has_label(name) else [],
        "colours": [(dataset.classes[v - 1] if v <= dataset.n_classes else v, rgb) for v, rgb in colours.items()],
        "score": last if last == last else None,  # NaN: the truth ignores every pixel
        "photograph": photograph(image),
        "aspect": f"{width}/{height}",
        "tiles": tiles,
    }


def gallery(args: argparse.Namespace, measured: dict, dataset: Dataset, names: Sequence[str]) -> dict:
    """The cards of the sample, best first, and what they are a sample of. names: the images that got pseudo masks."""
    cards, size = [], 0
    for name, groups in sample(args, dataset, names).items():
        made = card(args, measured, dataset, name, groups)
        size += 4000 + len(made["photograph"]) + sum(len(tile.get("picture", "")) for tile in made["tiles"])
        if size > MOST_BYTES:
            break
        cards.append(made)
    cards.sort(key=lambda card: (card["score"] is None, -(card["score"] or 0), card["name"]))
    shown = len({card["name"] for card in cards} & set(names))
    what = f"{'All ' if shown == len(names) else f'{shown} of '}{len(names)} image{'s'[: len(names) != 1]}"
    if shown < len(names):
        how = "the best, the median and the worst by mIoU of the pseudo mask, and examples of every class"
        what += f", a sample: {how if per_image(args) else 'spread over the list'}"
    if len(cards) > shown:
        what += f"; also {len(cards) - shown} validation image{'s'[: len(cards) - shown != 1]}"
    groups, classes = ({value for card in cards for value in card[key]} for key in ("groups", "classes"))
    filters = {
        "show": [("", "all"), *((group, title) for group, title in GROUPS.items() if group in groups)],
        "class": [("", "every class"), *((str(c), dataset.classes[c]) for c in sorted(classes))],
    }
    filters = {kind: choices for kind, choices in filters.items() if len(choices) > 2}  # the first is everything
    columns = max(6, *(len(card["tiles"]) for card in cards)) if cards else 6
    return {"what": what, "cards": cards, "filters": filters, "columns": columns}
