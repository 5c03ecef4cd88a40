"""Tables of a run: the same rows for the terminal, for Markdown and for the page."""

import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

NOTHING = "\u2013"  # where a figure would stand


class Cell(str):
    """The text of a figure. key: its path in metrics.json."""

    key = ""

    def __new__(cls, text: str, key: str = "") -> "Cell":
        cell = super().__new__(cls, text)
        cell.key = key
        return cell


class Table(NamedTuple):
    """A title, a heading per column, rows of texts whose first names the row, and sentences to go below."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """For a terminal: figures to the right, words to the left."""
        columns = [[str(cell) for cell in column] for column in zip(self.head, *self.rows, strict=True)]
        for i, column in enumerate(columns):
            right = i > 0 and all(is_figure(cell) for cell in column[1:])
            width = max(map(len, column))
            columns[i] = [cell.rjust(width) if right else cell.ljust(width) for cell in column]
        lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
        return "\n".join([*([self.title] if self.title else []), *lines, *self.notes])

    def markdown(self) -> str:
        """For Markdown, with names that stay text."""

        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(escape(str(cell)).replace('|', chr(92) + '|') for cell in cells)} |"

        below = line(["---", *("---:" for _ in self.head[1:])])
        lines = [f"## {escape(self.title)}", "", line(self.head), below, *map(line, self.rows)]
        return "\n".join([*lines, *(f"\n{escape(note)}" for note in self.notes), ""])


def is_figure(text: str) -> bool:
    """Whether a text is a number or a few signs, to stand on the right of its column."""
    return re.fullmatch(r"[-+\u2212\u2013\u00b1\d.,:!*% ]*", text) is not None


def at(values: dict, path: str, *names: str) -> object:
    """The entry of nested dicts that `a.b.c`, then each of the names (which may hold dots), leads to; else None."""
    for key in (*path.split("."), *names):
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    return values


def number(value: float | None, digits: int = 1, factor: float = 100) -> str:
    """A fraction in percent (or `factor` times a value), a dash where there is none."""
    return NOTHING if value is None or value != value else f"{factor * value:.{digits}f}"


def figure(measured: dict, path: str, digits: int = 1, factor: float = 100) -> Cell:
    """The figure of metrics.json that `path` names, in percent."""
    value = at(measured, path)
    return Cell(number(value, digits, factor), path if value is not None else "")


class Stage(NamedTuple):
    """A stage with a mIoU: short name, title, its path in metrics.json, the step whose seconds it costs.

    swept: it is scored at the best threshold of a sweep and at the fixed one.
    """

    key: str
    label: str
    path: str
    maker: str
    swept: bool = False

    @property
    def best(self) -> str:
        """The path of the figures that stand for the stage."""
        return f"{self.path}.best" if self.swept else self.path


STAGES = (
    Stage("cam", "seed, CAM", "eval_cam", "make_cam", swept=True),
    Stage("rib", "seed, RIB", "eval_rib_cam", "make_rib_cam", swept=True),
    Stage("label", "IRN label", "eval_sem_seg.ir_label", "cam_to_ir_label"),
    Stage("mask", "pseudo mask", "eval_sem_seg", "make_sem_seg"),
    Stage("seg", "segmentation network", "eval_seg", "train_seg"),
)
AP = {"map_50": "instances, AP at 0.5", "map_70": "instances, AP at 0.7", "map_50_95": "instances, AP at 0.5:0.95"}
# dataset -> stage -> (paper, reruns by users), mIoU in percent. RIB is arXiv 2110.06530; issues are those of its
# published repository. *: not checked against the paper's tables.
REFERENCES: dict[str, dict[str, tuple[str, str]]] = {
    "voc12": {
        "cam": ("48.8 (IRN baseline, train) *", "48.1 (train)"),
        "rib": ("56.5 (train) *", ""),
        "mask_cam": ("66.3 (IRN baseline, train) *", "64.9 (train)"),
        "mask_rib": ("70.6 (train) *", "69.x before CRF (train)"),
        "seg": ("68.3 val, 68.6 test", "65.3 val (issue 5, weak pseudo labels)"),
    },
    "coco14": {
        "rib": ("36.5 (train) *", "34.8 at threshold 0.31 (issue 6, train)"),
        "mask_rib": ("45.6 (train) *", "39.9 (issue 6, train)"),
        "seg": ("43.8 val", ""),
    },
}


def scored(measured: dict) -> list[Stage]:
    """The stages with a mIoU, in order. measured: the content of metrics.json."""
    return [stage for stage in STAGES if at(measured, f"{stage.best}.miou") is not None]


def variants(measured: dict) -> list[tuple[str, str]]:
    """(title, path) of further figures: the network before the CRF or trained on other masks, and the APs."""
    compared = [f"eval_seg.comparison.{labels}" for labels in at(measured, "eval_seg.comparison") or {}]
    listed = [("network, before CRF", "eval_seg.before_crf.miou")]
    listed += [(f"network from {path.rsplit('.', 1)[1]}", path) for path in compared]
    listed += [(title, f"eval_ins_seg.{key}") for key, title in AP.items()]
    return [(title, path) for title, path in listed if at(measured, path) is not None]


def stage_table(measured: dict, title: str = "", dataset: str = "", seeds: str = "cam_rib") -> Table:
    """The stages with their mIoU, seeds at the best threshold and at the fixed one, and what they cost.

    dataset, seeds: of the run, for the columns with what others reported; without, there are none.
    """
    others = REFERENCES.get(dataset, {})
    head = ["stage", "mIoU", "at", "fixed", "at", "precision", "recall", "images", "seconds"]
    head += ["paper", "reruns by users"] if others else []
    rows, notes = [], []
    for stage in scored(measured):
        row = [stage.label, figure(measured, f"{stage.best}.miou")]
        if stage.swept:
            row += [figure(measured, f"{stage.best}.threshold", 2, 1), figure(measured, f"{stage.path}.fixed.miou")]
            row += [figure(measured, f"{stage.path}.fixed.threshold", 2, 1)]
        row += [""] * (5 - len(row))
        row += [figure(measured, f"{stage.best}.foreground.{key}") for key in ("precision", "recall")]
        row += [figure(measured, path, 0, 1) for path in (f"{stage.path}.images", f"{stage.maker}.seconds")]
        reference = f"mask_{seeds.removeprefix('cam_')}" if stage.key == "mask" else stage.key
        rows.append([*row, *(others.get(reference, ("", "")) if others else ())])
        if at(measured, f"{stage.path}.ignored") is not None:
            notes.append(f"IRN label: {number(at(measured, f'{stage.path}.ignored'), 0)}% of pixels ignored.")
    for label, path in variants(measured):
        cost = [Cell(""), Cell("")]
        if path == "eval_ins_seg.map_50":
            cost = [figure(measured, key, 0, 1) for key in ("eval_ins_seg.images", "make_ins_seg.seconds")]
        rows.append([label, figure(measured, path), *[""] * 5, *cost, *[""] * (len(head) - 9)])
    if any("*" in row[-2] for row in rows if others):
        notes.append("* not checked against the paper's tables.")
    return Table(title, head, rows, notes)


def class_table(measured: dict) -> Table:
    """IoU of every class at every stage, seeds at their best threshold."""
    stages = scored(measured)
    names = dict.fromkeys(name for stage in stages for name in at(measured, f"{stage.best}.iou") or {})
    rows = []
    for name in names:
        cells = [(at(measured, f"{stage.best}.iou", name), f"{stage.best}.iou.{name}") for stage in stages]
        rows.append([name, *(Cell(number(value), path if value is not None else "") for value, path in cells)])
    return Table("IoU per class (%), seeds at their best threshold", ["class", *(s.label for s in stages)], rows)


def ablation_tables(studies: dict[str, dict]) -> list[Table]:
    """A table per study of ablate/results.json: mIoU in percent at the best threshold of the sweep and at the fixed.

    A best threshold at an end of the sweep is marked (!): a better one may lie beyond. early: images that RIB ended
    before its last step; over: images whose numbers overflowed, and which count as they were before.
    """
    head = ("setting", "best", "at", "fixed", "images", "early", "over")
    tables = []
    for name, study in studies.items():

        def row(label: str, point: dict, k: int, sweep: Sequence[float] = study["sweep"]) -> list[str]:
            best, threshold, fixed = (point["curve"][key][k] for key in ("best", "best_threshold", "fixed"))
            ends = [str(point[key]) if k else "" for key in ("ended_early", "not_finite")]
            edge = "!" if threshold in sweep else ""
            return [label, number(best), f"{threshold:.2f}{edge}", number(fixed), str(point["images"]), *ends]

        points = study["points"]
        if study["argument"] is None:
            remarks = {0: " (CAM)", points[0]["written"]: " (make_rib_cam)"}
            steps = range(len(points[0]["curve"]["best"]))
            rows = [row(f"after {k} updates{remarks.get(k, '')}", points[0], k) for k in steps]
        else:
            rows = [row("CAM", points[0], 0)]
            rows += [row(point["label"] + " *" * point["own"], point, point["written"]) for point in points]
        notes = []
        if any(cells[0].endswith(" *") for cells in rows):
            notes.append("* the setting of this run")
        if any(cells[2].endswith("!") for cells in rows):
            notes.append("! an end of the sweep: a better threshold may lie beyond, see --cam_eval_sweep")
        if any(point["not_finite"] for point in points):
            notes.append("over: overflowed, counted as they were before; make_rib_cam stops with an error there")
        tables.append(Table(f"{name}: {study['title']}", head, rows, notes))
    return tables
