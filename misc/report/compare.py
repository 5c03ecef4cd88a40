"""Two runs side by side, on the terminal and as compare.md: settings, stages, classes, the masks that changed most."""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from data import image_names, open_dataset
from data.errors import UserError
from data.files import load_json, write_atomic
from data.images import read_mask
from data.progress import progress_map
from misc.metrics import confusion, mean_iou
from misc.report.build import settings
from misc.report.tables import STAGES, UNITS, Cell, Table, at, number, stage_table
from misc.run.outputs import OUTPUTS, metrics, result_file
from misc.run.provenance import shown

MOST = 40  # images listed


class Run:
    """A finished run: its folder, its arguments as args.json holds them, metrics and dataset."""

    def __init__(self, folder: str, data_root: str | None):
        arguments = load_json(Path(folder) / "args.json").get("arguments")
        if arguments is None:
            raise UserError(f"--compare {folder}: there is no args.json; wanted the --work_dir of a run")
        self.args = argparse.Namespace(**{**dict.fromkeys(OUTPUTS), **arguments, "work_dir": folder})
        self.measured = metrics(self.args)
        self.args.data_root = data_root or self.args.data_root
        self.dataset = open_dataset(self.args)
        self.names = image_names(self.args, self.dataset, "infer")

    def file(self, name: str) -> Path:
        """The pseudo mask of an image."""
        return result_file(self.args, "sem_seg_out_dir", name, ".png")


def compare(args: argparse.Namespace, folder: Path) -> Path:
    """Prints the tables of the two work_dirs of `--compare`, writes them to compare.md in `folder`, returns its path.

    UserError where one of them is no run, or where the two are of different datasets.
    """
    a, b = (Run(path, args.data_root) for path in args.compare)
    if (a.dataset.name, a.dataset.classes) != (b.dataset.name, b.dataset.classes):
        raise UserError(
            f"--compare: {args.compare[0]} is of {a.dataset.name} with {a.dataset.n_classes} classes, "
            f"{args.compare[1]} of {b.dataset.name} with {b.dataset.n_classes}; wanted two runs of one dataset"
        )
    title = f"{a.dataset.name}: A is {args.compare[0]}, B is {args.compare[1]}"
    tables = [_settings(a, b), _stages(a, b), _classes(a, b), _images(a, b, args.num_workers)]
    text = "\n".join([f"# {title}\n", *(table.markdown() for table in tables)])
    path = Path(folder) / "compare.md"
    write_atomic(path, lambda file: file.write(text.encode()))
    print("\n\n".join([title, *(table.text() for table in tables), str(path)]))
    return path


def _settings(a: Run, b: Run) -> Table:
    changed = [settings(run.args) for run in (a, b)]
    rows = []
    for name in sorted({*changed[0], *changed[1]}):
        values = [own.get(name, shown(getattr(run.args, name, ""))) for own, run in zip(changed, (a, b), strict=True)]
        if values[0] != values[1]:
            rows.append((name, *values))
    return Table("Settings", ("setting", "A", "B"), rows, () if rows else ("The two runs have the same settings.",))


def _row(label: str, a: Run, b: Run, *path: str) -> list[str]:
    """A, B and their difference at a path in metrics.json, in percent."""
    before, after = (at(run.measured, *path) for run in (a, b))
    change = None if before is None or after is None else after - before
    return [label, number(before), number(after), number(change) if change is None else f"{100 * change:+.1f}"]


def _stages(a: Run, b: Run) -> Table:
    labels: dict[str, str] = {}
    for table in (stage_table(run.measured, full=True) for run in (a, b)):
        for stage, *cells in table.rows:
            for name, cell in zip(table.head[1:], cells, strict=True):
                if isinstance(cell, Cell) and name not in UNITS:
                    labels.setdefault(cell.key, f"{stage}, {name}")
    rows = [_row(label, a, b, path) for path, label in labels.items()]
    rows = [row for row in rows if row[3] != "\u2013"]
    notes = () if rows else ("There is no stage that both runs have scored.",)
    return Table("Stages (%)", ("stage", "A", "B", "B - A"), rows, notes)


def _classes(a: Run, b: Run) -> Table:
    """IoU per class at every stage that both have scored."""
    stages = [s for s in STAGES if all(at(run.measured, f"{s.best}.iou") for run in (a, b))]
    head = ["IoU (%)", *(text for stage in stages for text in (f"{stage.key}: A", "B", "B - A"))]
    rows = []
    for name in ("background", *a.dataset.classes):
        rows.append([name, *(cell for stage in stages for cell in _row("", a, b, f"{stage.best}.iou", name)[1:])])
    return Table("Classes", head, rows if stages else [])


def _images(a: Run, b: Run, num_workers: int) -> Table:
    names = [n for n in a.names if n in set(b.names) and all(run.file(n).is_file() for run in (a, b))]
    if not names:
        return Table("Images", ("image",), (), ["There is no image of which both runs have a pseudo mask."])
    if not np.array_equal(a.dataset.image(names[0]), b.dataset.image(names[0])):
        return Table("Images", ("image",), (), [f"The two runs saw different images under one name, {names[0]} first."])
    changes = list(progress_map(partial(_changed, a, b), names, "compare masks", num_workers))
    order = sorted(range(len(names)), key=lambda i: (-changes[i][0], names[i]))
    rows = [[names[i], *map(number, changes[i])] for i in order[:MOST] if changes[i][0] > 0]
    mean = np.mean([fraction for fraction, *_ in changes])
    note = f"Over the {len(names)} images of which both runs have a pseudo mask, {100 * mean:.1f}% of pixels changed."
    return Table("Images that changed most", ("image", "% of pixels", "mIoU A", "mIoU B"), rows, [note])


def _changed(a: Run, b: Run, name: str) -> tuple[float, float | None, float | None]:
    """The fraction of pixels in which the masks of an image differ, and the mIoU of both."""
    n, truth = a.dataset.n_classes, a.dataset.mask(name)
    masks = [read_mask(run.file(name), n) for run in (a, b)]
    if masks[0].shape != masks[1].shape:
        raise UserError(f"{name} has a mask of {masks[0].shape} in one run and of {masks[1].shape} in the other")
    scores = [None if truth is None else mean_iou(confusion(mask, truth, n + 1)) for mask in masks]
    return float((masks[0] != masks[1]).mean()), *scores
