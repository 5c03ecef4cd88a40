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
    Stage("seg", "network", "eval_seg", "train_seg"),
)
TRAINED_ON = {"rib": "RIB masks", "cam": "CAM masks", "pseudo": "pseudo masks", "truth": "ground truth"}
AP = {"map_50": "AP50", "map_70": "AP70", "map_50_95": "AP50:95"}
UNITS = {"threshold": (2, 1), "seconds": (0, 1), "images": (0, 1)}  # digits and factor; else percent
COLUMNS = ("stage", "mIoU", "threshold", "AP50", "seconds")
MORE = ("fixed threshold", "before CRF", "precision", "recall", "AP70", "AP50:95", "images", "paper")
PAPER = {"voc12": "68.3 val, 68.6 test", "coco14": "43.8 val"}  # mIoU of the network (arXiv 2110.06530)


def scored(measured: dict) -> list[Stage]:
    """The stages with a mIoU, in order. measured: the content of metrics.json."""
    return [stage for stage in STAGES if at(measured, f"{stage.best}.miou") is not None]


def networks(measured: dict) -> list[tuple[str, str]]:
    """(title, path of its mIoU) of the segmentation networks; the first is that of eval_seg's other figures."""
    keys = list(at(measured, "eval_seg.comparison") or [at(measured, "eval_seg.labels") or "pseudo"])
    paths = ["eval_seg.miou", *(f"eval_seg.comparison.{key}" for key in keys[1:])]
    return [(f"network trained on {TRAINED_ON[key]}", path) for key, path in zip(keys, paths, strict=True)]


def stage_table(measured: dict, title: str = "", dataset: str = "", full: bool = False) -> Table:
    """The stages: mIoU in percent, of seeds at the best threshold, and seconds of their step. No column is empty.

    full: with the columns MORE; dataset: its name, for what the paper reports.
    """
    rows, several = [], networks(measured)

    def row(label: str, paths: dict[str, str]) -> dict[str, str]:
        cells = {name: figure(measured, path, *UNITS.get(name, (1, 100))) for name, path in paths.items()}
        return {"stage": label, **{name: cell for name, cell in cells.items() if cell.key}}

    for stage in scored(measured):
        best, seg = stage.best, stage.key == "seg"
        paths = {
            "mIoU": f"{best}.miou", "threshold": f"{best}.threshold", "seconds": f"{stage.maker}.seconds",
            "fixed threshold": f"{stage.path}.fixed.miou", "before CRF": f"{stage.path}.before_crf.miou",
            "precision": f"{best}.foreground.precision", "recall": f"{best}.foreground.recall",
            "images": f"{stage.path}.images",
        }  # fmt: skip
        if seg and len(several) > 1:  # one step trains them all
            del paths["seconds"]
        rows.append(row(several[0][0] if seg else stage.label, paths))
        if seg:
            rows[-1]["paper"] = PAPER.get(dataset, "")
            rows += [row(label, {"mIoU": path}) for label, path in several[1:]]
    if at(measured, "eval_ins_seg.map_50") is not None:
        paths = {column: f"eval_ins_seg.{key}" for key, column in AP.items()}
        rows.append(row("instances", {**paths, "images": "eval_ins_seg.images", "seconds": "make_ins_seg.seconds"}))
    notes = []
    ignored, training = (at(measured, path) for path in ("eval_sem_seg.ir_label.ignored", "train_seg.seconds"))
    if ignored is not None:
        notes.append(f"IRN label: {number(ignored, 0)}% of pixels ignored, the others scored.")
    if training is not None and len(several) > 1:
        notes.append(f"Training of the {len(several)} networks: {training:.0f} seconds.")
    head = [column for column in (*COLUMNS, *(MORE if full else ())) if any(row.get(column) for row in rows)]
    return Table(title, head, [[row.get(column, "") for column in head] for row in rows], notes)


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
