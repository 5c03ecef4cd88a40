"""The report: one HTML file with everything in it, from whatever steps have run."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np

from data.base import Dataset
from data.files import load_json
from misc.report import plots, toy
from misc.report.gallery import gallery
from misc.report.pictures import data_uri
from misc.report.tables import Table, ablation_tables, at, class_table, figure, is_figure, number, scored, stage_table
from misc.run.options import preset
from misc.run.outputs import OUTPUTS, outdated, record_file
from misc.run.provenance import shown

FOLDER = Path(__file__).parent
# Arguments that say where and how to run, not what is computed.
ELSEWHERE = (
    "data_root", "work_dir", "config", "steps", "list_steps", "dry_run", "check_data", "overwrite", "skip_bad",
    "compare", "tensorboard", "num_workers", "coco_json", "dataset", "help", "help_all",
)  # fmt: skip
TABLE_CLASSES = 26  # up to here a confusion is a table of all classes, beyond it of its largest entries
LARGEST = 20
STRIPS = "CAM, and RIB's maps after k updates of the weights. The line is the seed at the fixed threshold."


def build(args: argparse.Namespace, dataset: Dataset, measured: dict, names: Sequence[str]) -> str:
    """The page. measured: the content of metrics.json; names: the images that got, or would get, pseudo masks."""
    work_dir = Path(args.work_dir)
    steps = {name: values for name, values in measured.items() if isinstance(values, dict) and name != "report"}
    cards = gallery(args, measured, dataset, names)
    sweep = plots.sweeps(measured, args.cam_eval_thres)
    curves = [("mIoU of the seeds", sweep)] if sweep else []
    return render(
        title=f"RIB report: {dataset.name}",
        dataset=dataset.name,
        n_images=len(names),
        warnings=[*(f"Mixed results: {text}" for text in outdated(args)), *_notes(steps)],
        settings=settings(args),
        hardware=hardware(work_dir),
        seconds=sum(values.get("seconds", 0) for values in steps.values()),
        headline=[(s, figure(measured, f"{s.best}.miou")) for s in scored(measured) if s.key != "label"],
        stages=stage_table(measured, "mIoU (%), of seeds at the best threshold"),
        details=stage_table(measured, "", dataset.name, full=True),
        best=next((card for card in cards["cards"] if card["groups"] != ["val"]), None),
        curves=[(title, plots.inline(plot)) for title, plot in (*curves, *plots.losses(measured))],
        scored=scored(measured),
        classes=class_table(measured),
        confusions=[_confusion(measured, stage) for stage in reversed(scored(measured))],
        experiments=_experiments(work_dir, dataset, measured),
        gallery=cards,
        steps=_steps(measured, steps),
        calls=calls(work_dir),
    )


def _notes(steps: dict[str, dict]) -> list[str]:
    """What was said of the steps' results when they were made, each once; the toy experiment says its own."""
    told: dict[str, list[str]] = {}
    for name, values in steps.items():
        for text in values.get("notes", ()) if name != "toy" else ():
            told.setdefault(text, []).append(name)
    return [f"{', '.join(names)}: {text}" for text, names in told.items()]


def render(**context: object) -> str:
    """The template, filled in; names and classes stay text."""
    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    environment.tests["figure"] = is_figure
    return environment.get_template("page.html.j2").render(**context)


def calls(work_dir: Path) -> list[dict]:
    """What args.json says of every call that wrote into a work_dir, the oldest first."""
    last = load_json(work_dir / "args.json")
    return [*last.pop("earlier", []), last] if last else []


def settings(args: argparse.Namespace) -> dict[str, str]:
    """Arguments that are not as the preset of the dataset has them, as they would be typed.

    What made a result stands in its record; of arguments that no record tells of, the last call that set them counts.
    """
    usual = {name: value for name, (value, _) in preset(args.dataset).items()}
    values: dict[str, list] = {}
    for call in calls(Path(args.work_dir)):
        words = [name for name, source in call["sources"].items() if source.startswith(("command line", "config "))]
        values |= {name: [call["arguments"][name]] for name in words if name in call["arguments"]}
    recorded: dict[str, list] = {}
    for argument in OUTPUTS:
        for key, value in load_json(record_file(args, argument)).get("arguments", {}).items():
            name = key.removeprefix("--")
            if not name.endswith("_list") and (name in usual or name in values) and value not in recorded.get(name, ()):
                recorded.setdefault(name, []).append(value)
    return {
        name: " and ".join(map(shown, each))
        for name, each in sorted({**values, **recorded}.items())
        if name not in ELSEWHERE and not name.endswith(("_pass", "_out_dir"))
        if each != [json.loads(json.dumps(usual.get(name)))]
    }


def hardware(work_dir: Path) -> str:
    """The machines that took part."""
    texts = []
    for call in calls(work_dir):
        machine = call.get("hardware")
        if machine:
            name = machine["cpu"] if call["arguments"].get("device") == "cpu" else machine.get("gpu") or machine["cpu"]
            texts.append(f"{name}, {machine['cores']} cores")
    return "; ".join(dict.fromkeys(texts))


def _confusion(measured: dict, stage) -> dict:
    """Of each true class, the fraction of its pixels given to each class; of many classes, the largest entries."""
    counts = np.array(at(measured, f"{stage.best}.confusion") or [], float)
    names = list(at(measured, f"{stage.best}.iou") or {})
    if not counts.size:
        return {}
    fraction = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    content = {"label": stage.label, "names": names}
    if len(names) <= TABLE_CLASSES:
        return {**content, "rows": list(zip(names, counts.tolist(), fraction.tolist(), strict=True))}
    off = fraction * ~np.eye(len(fraction), dtype=bool)
    off[0] = off[:, 0] = 0  # every class is mostly mistaken for the background
    largest = np.unravel_index(np.argsort(-off, axis=None, kind="stable")[:LARGEST], off.shape)
    pairs = [(i, j) for i, j in zip(*largest, strict=True) if off[i, j] > 0]
    rows = [(names[i], names[j], number(off[i, j]), f"{counts[i, j]:.0f}") for i, j in pairs]
    head = ("truth", "taken for", "% of its pixels", "pixels")
    return {**content, "largest": Table("Largest confusions of objects", head, rows)}


def _experiments(work_dir: Path, dataset: Dataset, measured: dict) -> list[dict]:
    """Sections: photographs (a run that lies beside this one), strips, toy experiment, ablations, where they ran."""
    sections = []

    def add(key: str, title: str, text: str, *parts: dict) -> None:
        sections.append({"id": key, "title": title, "text": text, "parts": parts})

    beside = work_dir.parent / dataset.beside
    if dataset.beside and (beside / "metrics.json").is_file():
        text = f"A ready classifier, no training. {STRIPS} More: ../{dataset.beside}/report.html."
        table = stage_table(load_json(beside / "metrics.json"), "mIoU (%), of seeds at the best threshold")
        add(dataset.beside, "Photographs", text, {"table": table}, _plot(beside, "strips.jpg", STRIPS))
    if "strips" in measured:
        add("strips", "Step by step", STRIPS, _plot(work_dir, "strips.jpg", STRIPS))
    if "toy" in measured:
        values = measured["toy"]
        text = (
            f"A small network tells 2 from 8 ({values['digits']} digits): {len(values['seeds'])} seeds, accuracy "
            f"{', '.join(number(value) for value in values['accuracy'])}%. HGR is the fraction of pixels whose "
            f"normalised gradient exceeds {values['threshold']:.2f}. A claim counts as reproduced where its condition "
            "holds in every seed."
        )
        figures = [_plot(work_dir, f"toy/{name}.png", words) for name, words in plots.TOY_FIGURES.items()]
        add("toy", "Toy experiment", text, *({"table": table} for table in toy.tables(values)), *figures)
    if "ablate" in measured:
        studies = load_json(work_dir / "ablate" / "results.json").get("studies", {})
        text = "mIoU of RIB's seeds at the best threshold of the sweep and at the fixed one, on the same images."
        parts = []
        for name, table in zip(studies, ablation_tables(studies), strict=True):
            parts += [{"table": table}, _plot(work_dir, f"ablate/{name}.png", table.title)]
        add("ablate", "Ablations", text, *parts)
    return sections


def _plot(work_dir: Path, path: str, words: str) -> dict:
    """A picture of the run for the page."""
    if not (work_dir / path).is_file():
        return {}
    return {"words": words, "picture": data_uri(path.rsplit(".", 1)[1], (work_dir / path).read_bytes())}


def _steps(measured: dict, steps: dict[str, dict]) -> Table:
    rows = []
    for name, values in steps.items():
        images, seconds, remark = values.get("images"), values.get("seconds"), ""
        rate = images / seconds if images and seconds else None
        if "RIB_steps" in values:
            remark = "RIB steps: " + ", ".join(f"{n} in {count} images" for n, count in values["RIB_steps"].items())
        known = [value for value in values.get("average_precision", {}).values() if value is not None]
        if known:
            remark = f"mean average precision on --val_list {number(sum(known) / len(known))}"
        cells = [figure(measured, f"{name}.{key}", digits, 1) for key, digits in (("images", 0), ("seconds", 1))]
        rows.append([name, *cells, number(rate, 2 if rate and rate < 10 else 1, 1), remark])
    return Table("Steps", ("step", "images", "seconds", "images/s", ""), rows)
