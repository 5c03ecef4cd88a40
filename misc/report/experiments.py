"""What the steps apart from the pipeline measured: the toy experiment and the ablations."""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from misc.report.markup import Html, at, join, measured_cell, number, tag
from misc.report.toytable import MARKS, holding, title_of
from misc.run.studies import STUDIES

LARGEST = 260_000  # bytes of a figure that is put into the page; eight of them leave the gallery its share
FIGURES = {
    "dataset": "digits with and without marks, and their regions",
    "gradients": "gradients of the layers on two test images",
    "curves": "HGR by layer, region and final activation",
}
ENDS = ("ended_early", "not_finite")  # of an ablation


def sections(folder: Path, measured: dict) -> list[tuple[str, str, Html]]:
    """(id, heading, content) of each experiment that metrics.json has something of. folder: the work_dir."""
    made = (("toy", "Toy experiment", _toy), ("ablate", "Ablations", _ablations))
    return [(key, heading, content(folder, measured)) for key, heading, content in made if measured.get(key)]


def _toy(folder: Path, measured: dict) -> Html:
    toy = measured["toy"]
    claims = toy.get("claims") or []
    kept = sum(claim["reproduced"] for claim in claims)
    accuracy = ", ".join(number(value) for value in toy.get("accuracy") or [])
    intro = (
        f"A small network tells 2 from 8 ({toy.get('digits')} digits); {len(toy.get('seeds') or [])} seeds, accuracy "
        f"{accuracy} percent. HGR is the share of pixels whose normalised gradient exceeds "
        f"{number(toy.get('threshold'), 2, 1)}, by layer and region. "
    )
    if claims:
        intro += (
            f"{kept} of the paper's {len(claims)} claims are reproduced; a claim counts only where its condition holds "
            "in every seed."
        )
    verdicts = []
    for i, claim in enumerate(claims, 1):
        found = "; ".join(
            f"{name} {', '.join(number(value, 2, 1) for value in values)}" for name, values in claim["measured"].items()
        )
        verdict, colour = ("reproduced", "up") if claim["reproduced"] else ("not reproduced", "down")
        texts = (claim["claim"], claim["condition"], found, claim["holds_in"])
        verdicts.append(tag("tr", tag("td", f"{i} {verdict}", class_=colour), *(tag("td", text) for text in texts)))
    heads = ("final activation", "logit after", "HGR at G_5", "at G_6", "fall", "deviation over seeds",
             "fall, % of G_5", "G_6 of both logits")  # fmt: skip
    return join(
        [
            tag("p", intro, class_="note"),
            _table("The paper's claims", ("", "claim", "condition", "measured, per seed", "holds in"), verdicts),
            *(tag("p", f"Note: {note}.", class_="note") for note in toy.get("notes") or []),
            _table(
                f"Fall of HGR at the last layer, {MARKS} region, mean of the seeds",
                heads,
                _falls(measured),
                "plain compared",
            ),
            _table(
                "The same by threshold of the gradient",
                ("threshold", "trained: HGR at G_5", "at G_6", "none: at G_5", "at G_6", "claims that hold"),
                _thresholds(toy),
                "plain compared",
            ),
            *(_figure(folder, Path("toy", f"{name}.png"), words) for name, words in FIGURES.items()),
        ]
    )


def _falls(measured: dict) -> list[Html]:
    """One row an activation."""
    rows = []
    for name in at(measured, "toy.fall") or {}:
        ratios = at(measured, f"toy.hgr.{name}.{MARKS}.mean") or []
        cells = [measured_cell(measured, f"toy.logit.{name}.mean", 1, 1)]
        cells += [tag("td", number(value, 3, 1), class_="n") for value in ratios[-2:]] or [tag("td", "", colspan=2)]
        cells += [measured_cell(measured, f"toy.fall.{name}.{key}", 3, 1) for key in ("mean", "std")]
        cells.append(measured_cell(measured, f"toy.fall.{name}.relative", 0))
        cells.append(measured_cell(measured, f"toy.whole_output.{name}.mean", 3, 1))
        rows.append(tag("tr", tag("th", title_of(name), scope="row"), *cells))
    return rows


def _thresholds(toy: dict) -> list[Html]:
    """One row a threshold."""
    rows = []
    for threshold, values in (toy.get("by_threshold") or {}).items():
        marks = [value for name in ("trained", "none") for value in values["hgr"][name][MARKS][-2:]]
        texts = [*(number(value, 3, 1) for value in marks), holding(values["reproduced"])]
        rows.append(tag("tr", tag("th", threshold, scope="row"), *(tag("td", text, class_="n") for text in texts)))
    return rows


def _ablations(folder: Path, measured: dict) -> Html:
    text = (
        "mIoU of RIB's seeds in percent, at the best threshold of the sweep and at the fixed one, on the same images "
        "for all settings of a study. In the figures the setting of this run is ringed."
    )
    parts = [tag("p", text, class_="note")]
    for study, values in (at(measured, "ablate.studies") or {}).items():
        title = STUDIES[study].title if study in STUDIES else ""
        rows = [
            tag("tr", tag("th", label, scope="row"), *(tag("td", text, class_="n") for text in texts))
            for label, *texts in _points(values)
        ]
        heads = ("setting", "mIoU, best", "at", "fixed", "ended early", "overflowed")
        parts.append(_table(f"{study}: {title}" if title else study, heads, rows, "plain compared"))
        if study in STUDIES:  # anything else in the file names no figure of the step
            parts.append(_figure(folder, Path("ablate", f"{study}.png"), title))
    return join(parts)


def _points(values: dict) -> Iterable[tuple[str, ...]]:
    """(setting, best, its threshold, fixed, images that ended early, that overflowed) of a study's points.

    Of a curve over the steps a line for each of them.
    """
    keys = ("best", "best_threshold", "fixed")
    if isinstance(values.get("best"), list):
        steps = list(zip(*(values[key] for key in keys), strict=True))
        notes = {0: " (CAM)", len(steps) - 2: " (make_rib_cam)"}
        points = [(f"after {k} updates{notes.get(k, '')}", step, values) for k, step in enumerate(steps)]
    else:
        points = [(label, [point.get(key) for key in keys], point) for label, point in values.items()]
    return [
        (label, number(best), number(at_best, 2, 1), number(fixed), *(str(of.get(key, "")) for key in ENDS))
        for label, (best, at_best, fixed), of in points
    ]


def _table(caption: str, heads: Sequence[str], rows: Sequence[Html], style: str = "plain") -> Html:
    if not rows:
        return Html("")
    head = tag("tr", *(tag("th", text, scope="col") for text in heads))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_=style)
    # The caption stands outside: inside, a long one would be as narrow as the table.
    return join([tag("h3", caption), tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption)])


def _figure(folder: Path, path: Path, words: str) -> Html:
    """The PNG in the page as it is, its place where it is too large, nothing where there is none."""
    if not (folder / path).is_file():
        return Html("")
    data = (folder / path).read_bytes()
    if len(data) > LARGEST:
        return tag("p", f"{path.as_posix()} in the folder of the run shows this; it is too large for this page.")
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = tag("img", src=uri, alt=words, loading="lazy", style="max-width:100%;height:auto;background:#fff")
    return tag("figure", image, class_="chart", style="margin:0.8rem 0")
