"""The report: one HTML file with everything in it, from whatever steps have run."""

import argparse
import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from string import Template

from misc.run.outputs import outdated

from data.base import Dataset
from misc.report import experiments, runinfo
from misc.report.charts import Line, bars, confusion_table, line_chart
from misc.report.gallery import gallery
from misc.report.markup import Html, at, html, join, measured_cell, number, tag
from misc.report.published import UNCHECKED, reference
from misc.report.stages import INSTANCES, Stage, instance_text, scored, variants

FOLDER = Path(__file__).parent
BY_EPOCH = ("train_cam", "train_irn")


def build(args: argparse.Namespace, dataset: Dataset, measured: dict, names: Sequence[str]) -> str:
    """The page. measured: the content of metrics.json; names: the images that got, or would get, pseudo masks."""
    found = scored(measured)
    intro = [runinfo.line(Path(args.work_dir), dataset.name, len(names), measured)]
    intro += [tag("p", f"Mixed results: {text}.", class_="warning") for text in outdated(args)]
    intro += [_headline(measured, found), _stages(args, dataset, measured, found)]
    sections = [("stages", "Stages", join(intro))]
    charts = [*_thresholds(args, measured), *_losses(measured)]
    if charts:
        sections.append(("curves", "Curves", tag("div", *charts, class_="charts")))
    if found:
        sections.append(("classes", "Classes", _classes(measured, found)))
        sections.append(("confusion", "Confusion", _confusions(measured, found)))
    sections += experiments.sections(Path(args.work_dir), measured)
    sections.append(("gallery", "Images", gallery(args, measured, dataset, names)))
    sections.append(("run", "The run", runinfo.details(Path(args.work_dir), measured)))
    return page(f"RIB report: {dataset.name}", sections)


def page(title: str, sections: Sequence[tuple[str, str, Html]]) -> str:
    """A whole document of (id, heading, content)."""
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    # Nothing but this very script may run, and nothing may be fetched, whatever names and classes hold.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    links = [tag("a", heading, href=f"#{key}") for key, heading, _ in sections]
    body = [tag("section", tag("h2", heading), content, id=key) for key, heading, content in sections]
    return Template((FOLDER / "page.html").read_text(encoding="utf-8")).substitute(
        title=html(title), digest=digest, style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script=script, links=join(links), body=join(body, "\n"),
    )  # fmt: skip


def _headline(measured: dict, found: Sequence[Stage]) -> Html:
    """The figure of each stage, large."""
    cards = []
    for stage in found:
        best = at(measured, stage.best)
        remark = ""
        if stage.swept:
            fixed = at(measured, f"{stage.path}.fixed")
            remark = f"at {best['threshold']:.2f}; {number(fixed['miou'])} at the fixed {fixed['threshold']:.2f}"
        elif "ignored" in best:
            remark = f"of labelled pixels; {number(best['ignored'], 0)}% left open"
        cards.append(_figure(stage.key, stage.label, best["miou"], remark or "mIoU"))
    if at(measured, f"{INSTANCES.path}.map_50") is not None:
        cards.append(_figure("instances", "instances", measured[INSTANCES.path]["map_50"], "AP at IoU 0.5"))
    return tag("div", *cards, class_="figures") if cards else tag("p", "Nothing has been scored yet.", class_="note")


def _figure(key: str, label: str, value: float | None, remark: str) -> Html:
    return tag("div", tag("span", label), tag("strong", number(value)), tag("small", remark), class_=f"figure s-{key}")


def _stages(args: argparse.Namespace, dataset: Dataset, measured: dict, found: Sequence[Stage]) -> Html:
    """The table of stages, beside what others reported where the dataset is one of the paper's."""
    keys = {stage.key: f"mask_{'rib' if args.seeds == 'cam_rib' else 'cam'}" if stage.key == "mask" else stage.key
            for stage in found}  # fmt: skip
    references = {key: reference(dataset.name, name) for key, name in keys.items()}
    compared = any(references.values())
    texts = ["stage", "mIoU, best", "at", "mIoU, fixed", "at", "precision", "recall", "images", "seconds"]
    head = tag("tr", *(tag("th", t, scope="col") for t in texts + ["paper", "reruns by users"] * compared))
    rows = []
    for stage in found:
        fixed = f"{stage.path}.fixed"
        cells = [measured_cell(measured, f"{stage.best}.miou")]
        cells += [measured_cell(measured, f"{path}.threshold", 2, 1) for path in (stage.best,) if stage.swept]
        cells += [measured_cell(measured, f"{fixed}.miou"), measured_cell(measured, f"{fixed}.threshold", 2, 1)]
        cells = cells if stage.swept else [cells[0], *(tag("td", "", class_="n") for _ in range(3))]
        cells += [measured_cell(measured, f"{stage.best}.foreground.{key}") for key in ("precision", "recall")]
        cells.append(measured_cell(measured, f"{stage.path}.images", 0, 1))
        cells.append(measured_cell(measured, f"{stage.maker}.seconds", 0, 1))
        if compared:
            other = references[stage.key]
            mark = "" if other is None or other.checked else " *"
            cells += [tag("td", (other.paper + mark * bool(other.paper)) if other else ""),
                      tag("td", other.rerun if other else "")]  # fmt: skip
        rows.append(tag("tr", tag("th", stage.label, scope="row"), *cells))
    width = len(texts) + 2 * compared
    for label, path in variants(measured):
        rows.append(
            tag("tr", tag("th", label, scope="row"), measured_cell(measured, path), tag("td", colspan=width - 2))
        )
    if at(measured, f"{INSTANCES.path}.map_50") is not None:
        rows.append(
            tag("tr", tag("th", "instances", scope="row"), tag("td", instance_text(measured), colspan=6),
                measured_cell(measured, f"{INSTANCES.path}.images", 0, 1),
                measured_cell(measured, f"{INSTANCES.maker}.seconds", 0, 1), *([tag("td", colspan=2)] * compared))
        )  # fmt: skip
    if not rows:
        return Html("")
    notes = (
        "In percent. Precision: of the pixels given a class, the share of that class; recall: of the objects' pixels, "
        "the share given the right class; both at the best threshold. Seconds: of the step that made it."
    )
    if any(stage.key == "label" for stage in found):
        share = number(at(measured, "eval_sem_seg.ir_label.ignored"), 0)
        notes += f" CRF labels are scored without the {share}% of pixels that they leave open."
    if any(other is not None and not other.checked for other in references.values()):
        notes += f" {UNCHECKED}."
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="plain stages")
    scrolling = tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="stages")
    return join([scrolling, tag("p", notes, class_="note")])


def _thresholds(args: argparse.Namespace, measured: dict) -> list[Html]:
    lines = []
    for key, step in (("cam", "eval_cam"), ("rib", "eval_rib_cam")):
        sweep = at(measured, f"{step}.sweep")
        if sweep:
            x, y = [float(t) for t in sweep], [math.nan if value is None else 100 * value for value in sweep.values()]
            best = max(range(len(y)), key=lambda i: (y[i] if y[i] == y[i] else -1, -i))
            lines.append(Line(key, f"{key.upper()}, best {y[best]:.1f} at {x[best]:.2f}", x, y, best))
    if not lines:
        return []
    rule = (args.cam_eval_thres, f"fixed {args.cam_eval_thres:g}")
    title = "Seeds over the background threshold"
    return [line_chart(lines, "background threshold", "mIoU (%)", title, rule)]


def _losses(measured: dict) -> list[Html]:
    charts = []
    for step, values in runinfo.steps(measured).items():
        loss = values.get("loss") or {}
        by_labels = loss if isinstance(loss, dict) else {"": loss}  # the segmentation network may be trained on several
        lines = [
            Line(key, f"loss{f' from {labels}' if labels else ''}, {y[-1]:.4g} at the end", range(1, len(y) + 1), y)
            for (labels, y), key in zip(by_labels.items(), (step, "cam", "label"), strict=False)
            if y
        ]
        if lines:
            charts.append(line_chart(lines, "epoch" if step in BY_EPOCH else "part of the training", "loss", step))
    return charts


def _classes(measured: dict, found: Sequence[Stage]) -> Html:
    """IoU of every class at every stage, and precision and recall of the foreground."""
    series = [(stage.key, stage.label) for stage in found]
    names = list(dict.fromkeys(name for stage in found for name in at(measured, f"{stage.best}.iou") or {}))
    rows = []
    for name in names:
        values = [(at(measured, f"{stage.best}.iou") or {}).get(name) for stage in found]
        paths = [f"{stage.best}.iou.{name}" for stage in found]
        rows.append((name, list(zip((s.key for s in found), values, paths, strict=True))))
    parts = [tag("h3", "IoU per class, in percent, seeds at their best threshold"), bars(rows, series)]
    scores = [
        (label, [(s.key, at(measured, f"{s.best}.foreground.{key}"), f"{s.best}.foreground.{key}") for s in found])
        for key, label in (("precision", "precision"), ("recall", "recall"))
    ]
    if any(value is not None for _, row in scores for _, value, _ in row):
        parts += [tag("h3", "Foreground, all classes together"), bars(scores, series)]
    return join(parts)


def _confusions(measured: dict, found: Sequence[Stage]) -> Html:
    """The confusion of the last stage, those of the others folded away."""
    parts = []
    for stage in reversed(found):
        path = f"{stage.best}.confusion"
        counted, names = at(measured, path), at(measured, f"{stage.best}.iou")
        if counted and names:
            text = f"{stage.label}: of each true class, the share of its pixels given to each class, in percent"
            content = [tag("summary", text), confusion_table(counted, list(names), path)]
            parts.append(tag("details", *content, open=not parts))
    return join(parts) if parts else tag("p", "No confusion has been stored.", class_="note")
