"""The gallery: which images are shown, and what every step made of each."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.base import Dataset
from data.files import load_json
from data.images import read_mask
from data.results import load_cam, load_instances
from misc.metrics import confusion, mean_iou
from misc.report import pictures, viz
from misc.report.markup import Html, at, join, number, tag
from misc.run.workdir import place, result_file

PER_GROUP, FROM_VAL = 6, 6  # images of each kind
PER_CLASS = (0.5, 1.0, 0.0, 0.25)  # of every class the median, the worst, the best and the one between
MOST = 120  # images altogether
MOST_BYTES = 12_000_000  # of pictures; the page may have 15 MB
GROUPS = {"best": "best", "median": "median", "worst": "worst", "class": "class examples", "val": "validation"}
SCORED, BY_NAME = (("down", "best first"), ("up", "worst first")), ("name", "name")  # orders
ORDER = ("truth", "cam", "rib", "label", "edge", "mask", "instances", "seg")  # of the steps
ALL_SHOWN = 24  # lists up to this long are shown whole


class Layer(NamedTuple):
    """What one step made of an image: a picture to lie over it, the mask it stands for and how that is called."""

    key: str
    title: str
    picture: str
    mask: np.ndarray | None = None


def per_image(args: argparse.Namespace) -> dict[str, float]:
    """name -> mIoU of its pseudo mask, from per_image.json; empty before eval_sem_seg has run."""
    stored = load_json(Path(args.work_dir) / "per_image.json").get("sem_seg", {})
    return {name: value for name, value in stored.items() if value is not None and value == value}


def sample(args: argparse.Namespace, dataset: Dataset, names: Sequence[str]) -> dict[str, list[str]]:
    """name -> groups it is shown for: best, median, worst by mIoU and examples of every class; spread out without mIoU.

    names: the images that got pseudo masks. Images of `--val_list` with a mask of the segmentation network come last.
    """
    chosen: dict[str, list[str]] = {}

    def take(some: Sequence[str], group: str) -> None:
        for name in some:
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
        for share in PER_CLASS:  # one image of every class before the second of any
            for c in range(dataset.n_classes):
                mine = np.flatnonzero(labels[:, c])
                take([ranked[mine[round(share * (len(mine) - 1))]]] if len(mine) else [], "class")
        if len(ranked) <= ALL_SHOWN:
            take(ranked, "class")
    else:
        take([names[i] for i in _spread(len(names), ALL_SHOWN)], "class")
    take(_validation(args, dataset, set(names)), "val")
    return chosen


def _validation(args: argparse.Namespace, dataset: Dataset, known: set[str]) -> list[str]:
    if not place(args, "seg_out_dir").is_dir():
        return []
    names = [name for name in dataset.names_of(args.val_list) if name not in known]
    there = [name for name in names if result_file(args, "seg_out_dir", name, ".png").is_file()]
    return [there[i] for i in _spread(len(there), FROM_VAL)]


def _spread(length: int, n: int) -> list[int]:
    """At most n indices over 0..length - 1, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(n, length)).round().astype(int)).tolist()


def layers(
    args: argparse.Namespace, measured: dict, dataset: Dataset, name: str, image: np.ndarray, truth: np.ndarray | None
) -> tuple[list[Layer], dict[int, tuple[int, int, int]]]:
    """What there is of an image, in the order of the steps, and the colours of its classes.

    A file that is damaged, or of another image or other classes, is left out, and named in a warning.
    """
    found: list[tuple[str, str, Callable | None, np.ndarray | None]] = []
    if truth is not None:
        found.append(("truth", "ground truth", None, truth))
    size, n = image.shape[:2], dataset.n_classes
    for key, folder, step in (("cam", "cam_out_dir", "eval_cam"), ("rib", "cam_rib_out_dir", "eval_rib_cam")):
        file = viz.readable(load_cam, result_file(args, folder, name, ".npy"), size, n)
        if file is not None:
            threshold = at(measured, f"{step}.best.threshold")
            mask = seed_mask(file, args.cam_eval_thres if threshold is None else threshold)
            found.append((key, key.upper(), partial(pictures.heat_layer, file["cam"], size), mask))
    masks = (("label", "CRF label", "ir_label"), ("mask", "pseudo mask", "sem_seg"), ("seg", "segmentation net", "seg"))
    for key, title, folder in masks:
        mask = viz.readable(read_mask, result_file(args, f"{folder}_out_dir", name, ".png"), n, size)
        if mask is not None:
            found.append((key, title, None, mask))
    edge = viz.readable(read_mask, result_file(args, "edge_out_dir", name, ".png"))
    if edge is not None:
        found.append(("edge", "edge map", partial(pictures.edge_layer, edge), None))
    instances = viz.readable(load_instances, result_file(args, "ins_seg_out_dir", name, ".npy"), size, n)
    if instances is not None:
        picture = partial(pictures.instance_layer, instances["mask"], instances["score"])
        found.append(("instances", "instances", picture, None))
    found.sort(key=lambda layer: ORDER.index(layer[0]))
    drawn = {*(np.flatnonzero(dataset.label(name)) + 1).tolist()}
    for _, _, picture, mask in found:
        if picture is None:
            drawn |= set(np.unique(mask).tolist()) - {0, 255}
    colours = pictures.colours_of(sorted(drawn))
    done = [
        Layer(key, title, picture() if picture else pictures.mask_layer(mask, colours), mask)
        for key, title, picture, mask in found
    ]
    return done, colours


def seed_mask(file: dict[str, np.ndarray], threshold: float) -> np.ndarray:
    """uint8 [H, W]: the mask that a CAM file gives at a background threshold."""
    maps = file["high_res"]
    scores = np.concatenate([np.full((1, *maps.shape[1:]), threshold, np.float32), maps])
    return np.concatenate([[0], file["keys"] + 1]).astype(np.uint8)[scores.argmax(0)]


def card(
    args: argparse.Namespace, measured: dict, dataset: Dataset, name: str, groups: Sequence[str]
) -> tuple[Html, float | None]:
    """One image with everything made of it, and its mIoU (of the last mask there is)."""
    image, truth = dataset.image(name), dataset.mask(name)
    found, colours = layers(args, measured, dataset, name, image, truth)
    tiles, last = [tile(image.shape, "image", name)], None
    for layer in found:
        score = None
        if truth is not None and layer.mask is not None and layer.key not in ("truth", "label"):
            score = last = mean_iou(confusion(layer.mask, truth, dataset.n_classes + 1))
        tiles.append(tile(image.shape, layer.title, name, layer.picture, score, layer.key))
    last = last if last == last else None  # NaN: the truth leaves every pixel out
    return framed(dataset, name, groups, image, tiles, colours, last), last


def framed(
    dataset: Dataset, name: str, groups: Sequence[str], image: np.ndarray, tiles: Sequence[Html],
    colours: dict[int, tuple[int, int, int]], score: float | None, note: str = "",
) -> Html:  # fmt: skip
    """The card of an image: name, classes with their colours, and the tiles."""
    labels = np.flatnonzero(dataset.label(name)).tolist()
    swatches = [
        tag("li", tag("i", class_="swatch", style=f"background:rgb{colour}".replace(" ", "")), _class(dataset, value))
        for value, colour in colours.items()
    ]
    figure = f"mIoU {number(score)}" if score is not None else ""
    head = tag(
        "header",
        tag("h3", name), tag("ul", *swatches, class_="classes"), tag("span", note or figure, class_="score"),
    )  # fmt: skip
    return tag(
        "article", head, tag("div", *tiles, class_="tiles"), class_="card", tabindex=0, data_name=name,
        data_groups=" ".join(groups), data_classes=" ".join(map(str, labels)),
        data_score=f"{score:.4f}" if score is not None else None,
        aria_label=f"{name}: {', '.join(_class(dataset, c + 1) for c in labels) or 'no class'}",
        style=f"--picture:url({pictures.photograph(image)})",
    )  # fmt: skip


def _class(dataset: Dataset, value: int) -> str:
    return dataset.classes[value - 1] if value <= dataset.n_classes else str(value)


def tile(
    shape: Sequence[int], title: str, name: str, picture: str | None = None, score: float | None = None, key: str = ""
) -> Html:
    """A picture with what it shows: the image, and over it what a step made of it."""
    height, width = pictures.shown_size(shape)
    words = f"{title} of {name}" + ("" if score is None else f", mIoU {number(score)}")
    layer = tag("img", src=picture, alt=words, class_="layer", loading="lazy", decoding="async") if picture else ""
    caption = tag("figcaption", title, " ", tag("b", number(score)) if score is not None else "")
    frame = tag(
        "div", layer, class_="tile", style=f"aspect-ratio:{width}/{height}",
        role=None if picture else "img", aria_label=None if picture else words,
    )  # fmt: skip
    return tag("figure", frame, caption, data_layer=key or None)


def controls(dataset: Dataset, groups: set[str], classes: set[int], orders: Sequence[tuple[str, str]]) -> Html:
    """Slider, filters and orders; shown by the page's script, which they need.

    orders: ("down", "up" or "name", text); the first is the one in which the cards stand.
    """

    def buttons(kind: str, entries: Sequence[tuple[str, str]], pressed: str) -> Html:
        made = [
            tag("button", text, type="button", data_value=value, aria_pressed="true" if value == pressed else "false")
            for value, text in entries
        ]
        return tag("div", *made, class_="buttons", data_kind=kind, role="group", aria_label=kind)

    slider = tag("input", type="range", id="fade", min=0, max=100, value=75, step=5)
    parts = [tag("label", "masks over the image ", slider, tag("output", "75%", for_="fade"), class_="slider")]
    if len(groups) > 1:
        parts.append(buttons("show", [("", "all"), *((g, GROUPS[g]) for g in GROUPS if g in groups)], ""))
    if len(classes) > 1:
        entries = [("", "every class"), *((str(c), dataset.classes[c]) for c in sorted(classes))]
        parts.append(buttons("class", entries, ""))
    if len(orders) > 1:
        parts.append(buttons("sort", orders, orders[0][0]))
    help_text = "Arrow keys go from image to image, Enter enlarges, digits 0 to 9 set the slider."
    return tag(
        "div", *parts, tag("p", tag("span", "", id="shown", aria_live="polite"), " ", help_text, class_="small"),
        class_="controls", id="controls", hidden=True,
    )  # fmt: skip


def gallery(args: argparse.Namespace, measured: dict, dataset: Dataset, names: Sequence[str]) -> Html:
    """The cards of the sample, best first, and what they are a sample of. names: the images that got pseudo masks."""
    chosen = sample(args, dataset, names)
    cards, groups, classes, size = [], set(), set(), 0
    for name, mine in chosen.items():
        made, score = card(args, measured, dataset, name, mine)
        size += len(made)
        if size > MOST_BYTES:
            break
        cards.append(((score is None, -(score or 0), name), made))  # those without a score last
        groups |= set(mine)
        classes |= set(np.flatnonzero(dataset.label(name)).tolist())
    cards.sort(key=lambda entry: entry[0])
    scored = any(not unscored for (unscored, _, _), _ in cards)
    listed = set(names)
    there = sum(name in listed for (_, _, name), _ in cards)
    besides, whole = len(cards) - there, there == len(listed)
    what = f"{'All ' if whole else f'{there} of '}{len(listed)} image{'s'[: len(listed) != 1]}"
    how = "the best, the median and the worst by mIoU of the pseudo mask, and examples of every class"
    if not per_image(args):
        how = "spread over the list"
    if not whole:
        what += f", a sample: {how}"
    if besides:
        what += f"; besides them {besides} validation image{'s'[: besides != 1]}"
    text = (
        f"{what}. Point at a picture, or move the slider, to "
        "see the image under it. CAMs are drawn as their square root; pixels that the CRF leaves open are hatched. "
        "mIoU of an image is the mean over the classes that occur in its mask or its truth, background included; seeds "
        "are cut at their best threshold."
    )
    return join(
        [
            tag("p", text, class_="note", id="sample"),
            controls(dataset, groups, classes, [*SCORED, BY_NAME] if scored else [BY_NAME]),
            tag("div", *(made for _, made in cards), class_="cards", id="cards"),
        ]
    )
