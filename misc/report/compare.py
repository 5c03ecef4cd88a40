"""Two runs side by side: settings, stages, classes, and the images whose masks changed most."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data import image_names, open_dataset
from data.base import Dataset
from data.errors import UserError
from data.files import load_json, write_atomic
from data.images import read_mask
from data.pool import map_items
from data.progress import bar
from data.results import load_cam
from misc.metrics import confusion, mean_iou
from misc.report import pictures, runinfo
from misc.report.gallery import BY_NAME, controls, framed, seed_mask, tile
from misc.report.markup import NOTHING, Html, at, join, number, tag
from misc.report.page import page
from misc.report.stages import INSTANCES, STAGES, variants
from misc.run.metricsfile import metrics
from misc.run.workdir import PLACES, place, result_file

MOST = 40  # images shown
KINDS = ("sem_seg_out_dir", "cam_rib_out_dir", "cam_out_dir")  # what is compared, the first that both runs have


class Run:
    """A finished run: its folder, its arguments as args.json holds them, metrics and dataset."""

    def __init__(self, folder: str, data_root: str | None):
        self.folder = Path(folder)
        path = self.folder / "args.json"
        arguments = load_json(path).get("arguments")
        if arguments is None:
            raise UserError(f"--compare {folder}: there is no args.json; wanted the --work_dir of a run")
        self.args = argparse.Namespace(**{**arguments, "work_dir": str(self.folder), "bad_images": {}})
        for argument in PLACES:  # of runs older than the argument
            vars(self.args).setdefault(argument, None)
        self.measured = metrics(self.args)
        try:
            self.args.data_root = data_root or self.args.data_root
            self.dataset = open_dataset(self.args)
            self.names = image_names(self.args, self.dataset, "infer")
            self.args.cam_eval_thres = float(self.args.cam_eval_thres)
            for argument in PLACES:
                place(self.args, argument)
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:  # its values can be of any kind
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path} does not hold the arguments of a whole run ({reason}); mend it") from error

    def mask(self, kind: str, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 [H, W]: the mask of an image, of seeds that at the best threshold. size: which it must have."""
        n = self.dataset.n_classes
        if kind == "sem_seg_out_dir":
            return read_mask(result_file(self.args, kind, name, ".png"), n, size)
        step = "eval_rib_cam" if kind == "cam_rib_out_dir" else "eval_cam"
        threshold = at(self.measured, f"{step}.best.threshold")
        file = load_cam(result_file(self.args, kind, name, ".npy"), size, n)
        return seed_mask(file, self.args.cam_eval_thres if threshold is None else threshold)

    def has(self, kind: str, name: str) -> bool:
        """Whether there is such a mask."""
        return result_file(self.args, kind, name, ".png" if kind == "sem_seg_out_dir" else ".npy").is_file()


def compare(args: argparse.Namespace, folder: Path) -> Path:
    """Writes `compare.html` of the two work_dirs of `--compare` into a folder and returns its path.

    UserError where one of them is no run, or where the two are of different datasets.
    """
    a, b = (Run(path, args.data_root) for path in args.compare)
    if (a.dataset.name, a.dataset.classes) != (b.dataset.name, b.dataset.classes):
        raise UserError(
            f"--compare: {a.folder} is of {a.dataset.name} with {a.dataset.n_classes} classes, {b.folder} of "
            f"{b.dataset.name} with {b.dataset.n_classes}; wanted two runs of one dataset"
        )
    sections = [
        ("settings", "Settings", _settings(a, b)),
        ("stages", "Stages", _stages(a, b)),
        ("classes", "Classes", _classes(a, b)),
        ("gallery", "Images that changed most", _images(a, b, args.num_workers)),
    ]
    title = f"RIB comparison: {a.dataset.name}, {a.folder.name} and {b.folder.name}"
    text = page(title, sections).encode()
    path = Path(folder) / "compare.html"
    write_atomic(path, lambda file: file.write(text))
    print(path)
    return path


def _settings(a: Run, b: Run) -> Html:
    rows = []
    for name in sorted({*vars(a.args), *vars(b.args)}):
        if name in runinfo.ELSEWHERE or name.endswith(("_pass", "_out_dir")) or name == "bad_images":
            continue
        values = [_setting(run, name) for run in (a, b)]
        if values[0] != values[1]:
            rows.append(tag("tr", tag("th", name, scope="row"), *(tag("td", runinfo.shown(v)) for v in values)))
    intro = [tag("p", tag("b", letter), f" {run.folder} · {len(run.names)} images · {runinfo.hardware(run.folder)}",
                 class_="run") for letter, run in zip("AB", (a, b), strict=True)]  # fmt: skip
    if not rows:
        return join([*intro, tag("p", "The two have the same settings.", class_="note")])
    return join([*intro, _table(("setting", "A", "B"), rows)])


def _setting(run: Run, name: str) -> object:
    """What a run was given, over all its calls; else the value of its last one."""
    return runinfo.settings(run.folder).get(name, getattr(run.args, name, None))


def _stages(a: Run, b: Run) -> Html:
    paths = []
    for stage in STAGES:
        if stage.swept:
            paths += [(f"{stage.label}, {key} threshold", f"{stage.path}.{key}.miou") for key in ("best", "fixed")]
        else:
            paths.append((stage.label, f"{stage.path}.miou"))
        paths += [(f"{stage.label}, {k}", f"{stage.best}.foreground.{k}") for k in ("precision", "recall")]
    paths += [*variants(a.measured), *variants(b.measured), ("instances, AP at 0.5", f"{INSTANCES.path}.map_50")]
    rows = [_row(label, a, b, path) for label, path in dict.fromkeys(paths) if _both(a, b, path)]
    if not rows:
        return tag("p", "There is no stage that both runs have scored.", class_="note")
    return _table(("in percent", "A", "B", "B \u2212 A"), rows)


def _classes(a: Run, b: Run) -> Html:
    """The difference of IoU per class, at every stage that both have scored."""
    found = [stage for stage in STAGES if _both(a, b, f"{stage.best}.miou")]
    if not found:
        return tag("p", "There is no stage that both runs have scored.", class_="note")
    rows = []
    for name in ("background", *a.dataset.classes):
        cells = []
        for stage in found:
            values = [(at(run.measured, f"{stage.best}.iou") or {}).get(name) for run in (a, b)]
            cells += [tag("td", number(v), class_="n") for v in values] + [_difference(*values)]
        rows.append(tag("tr", tag("th", name, scope="row"), *cells))
    above = tag("tr", tag("th", ""), *(tag("th", stage.label, colspan=3, scope="colgroup") for stage in found))
    return _table(("IoU in percent", *(("A", "B", "B \u2212 A") * len(found))), rows, above)


def _both(a: Run, b: Run, path: str) -> bool:
    return all(isinstance(at(run.measured, path), int | float) for run in (a, b))


def _row(label: str, a: Run, b: Run, path: str) -> Html:
    values = [at(run.measured, path) for run in (a, b)]
    cells = [tag("td", number(value), class_="n", data_key=path) for value in values]
    return tag("tr", tag("th", label, scope="row"), *cells, _difference(*values))


def _difference(before: float | None, after: float | None) -> Html:
    if before is None or after is None:
        return tag("td", NOTHING, class_="n")
    change = 100 * (after - before)
    kind = "up" if change >= 0.05 else "down" if change <= -0.05 else "same"
    sign = {"up": "▲", "down": "▼", "same": ""}[kind]
    return tag("td", f"{sign} {change:+.1f}", class_=f"n {kind}")


def _table(titles: Sequence[str], rows: Sequence[Html], above: Html | str = "") -> Html:
    head = tag("thead", above, tag("tr", *(tag("th", title, scope="col") for title in titles)))
    table = tag("table", head, tag("tbody", *rows), class_="plain compared")
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=titles[0])


def _images(a: Run, b: Run, num_workers: int) -> Html:
    kind = next((k for k in KINDS if any(a.has(k, n) and b.has(k, n) for n in a.names)), None)
    if kind is None:
        return tag("p", "There is no image of which both runs have a mask.", class_="note")
    theirs = set(b.names)
    names = [name for name in a.names if name in theirs and a.has(kind, name) and b.has(kind, name)]
    if not np.array_equal(a.dataset.image(names[0]), b.dataset.image(names[0])):
        return tag("p", f"The two runs saw different images under the same names, {names[0]} first.", class_="note")
    shares = []
    with bar(len(names), "compare masks") as progress:
        for share in map_items(partial(_changed, a, b, kind), names, num_workers):
            shares.append(share)
            progress.update()
    order = sorted(range(len(names)), key=lambda i: (-shares[i], names[i]))
    shown = [i for i in order[:MOST] if shares[i] > 0]
    classes: set[int] = set()
    cards = []
    for i in shown:
        classes |= set(np.flatnonzero(a.dataset.label(names[i])).tolist())
        cards.append(_card(a, b, kind, names[i], shares[i]))
    what = {"sem_seg_out_dir": "pseudo mask", "cam_rib_out_dir": "RIB seed", "cam_out_dir": "CAM seed"}[kind]
    text = (
        f"{len(shown)} of {len(names)} images that both runs have a {what} of, by the share of pixels that changed; "
        f"over all of them {100 * np.mean(shares):.1f}%. Last picture: blue where only B is right, orange where only "
        "A was, grey where neither is or nothing is known."
    )
    if not cards:
        return tag("p", f"All {len(names)} images have the same {what} in both runs.", class_="note")
    return join(
        [
            tag("p", text, class_="note"),
            controls(a.dataset, set(), classes, [("down", "most changed first"), BY_NAME]),
            tag("div", *cards, class_="cards", id="cards"),
        ]
    )


def _changed(a: Run, b: Run, kind: str, name: str) -> float:
    before, after = a.mask(kind, name), b.mask(kind, name)
    if before.shape != after.shape:
        raise UserError(f"{name} has a mask of {before.shape} in {a.folder} and of {after.shape} in {b.folder}")
    return float((before != after).mean())


def _card(a: Run, b: Run, kind: str, name: str, share: float) -> Html:
    dataset: Dataset = a.dataset
    image, truth = dataset.image(name), dataset.mask(name)
    masks = [run.mask(kind, name, image.shape[:2]) for run in (a, b)]
    every = [*masks, *([] if truth is None else [truth])]
    drawn = set().union(*(np.unique(mask).tolist() for mask in every)) - {0, 255}
    colours = pictures.colours_of(sorted(drawn))
    layer: Callable = partial(pictures.mask_layer, colours=colours)
    tiles = [tile(image.shape, "image", name)]
    scores: list[float | None] = [None, None]
    if truth is not None:
        tiles.append(tile(image.shape, "ground truth", name, layer(truth), key="truth"))
        scores = [mean_iou(confusion(mask, truth, dataset.n_classes + 1)) for mask in masks]
    for letter, mask, score in zip("AB", masks, scores, strict=True):
        tiles.append(tile(image.shape, letter, name, layer(mask), score, key=letter))
    tiles.append(tile(image.shape, "changed", name, pictures.change_layer(*masks, truth), key="change"))
    note = f"{100 * share:.1f}% of the pixels changed"
    if truth is not None:
        note += f", mIoU {number(scores[0])} → {number(scores[1])}"
    return framed(dataset, name, [], image, tiles, colours, share, note)
