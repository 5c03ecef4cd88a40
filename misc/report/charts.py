"""Charts as markup that follows the page's colours: lines as SVG, bars and confusion as tables."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from misc.report.markup import Html, join, number, tag
from misc.report.pictures import confusion_picture

WIDTH, HEIGHT = 400, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 40
TABLE_CLASSES = 26  # up to here a confusion is a table of numbers, beyond it a picture and its largest entries
LARGEST = 20


class Line(NamedTuple):
    """A curve: key chooses its colour and dash, marked is the point that is emphasised and labelled."""

    key: str
    label: str
    x: Sequence[float]
    y: Sequence[float]
    marked: int | None = None


def line_chart(lines: Sequence[Line], x_name: str, y_name: str, title: str, rule: tuple[float, str] | None = None):
    """A figure with the curves. rule: (x, label) of a vertical line."""
    x_ticks = _ticks(min(min(line.x) for line in lines), max(max(line.x) for line in lines))
    y_ticks = _ticks(min(min(line.y) for line in lines), max(max(line.y) for line in lines))
    x_span, y_span = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])

    def x_at(value: float) -> float:
        return round(LEFT + (value - x_span[0]) / (x_span[1] - x_span[0]) * (WIDTH - LEFT - RIGHT), 1)

    def y_at(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_span[0]) / (y_span[1] - y_span[0]) * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for tick in y_ticks:
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y_at(tick), y2=y_at(tick), class_="grid"))
        parts.append(tag("text", f"{tick:g}", x=LEFT - 6, y=y_at(tick) + 4, text_anchor="end"))
    for tick in x_ticks:
        parts.append(tag("line", x1=x_at(tick), x2=x_at(tick), y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="ax"))
        parts.append(tag("text", f"{tick:g}", x=x_at(tick), y=HEIGHT - BOTTOM + 17, text_anchor="middle"))
    parts.append(tag("text", x_name, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle", class_="name"))
    parts.append(
        tag("text", y_name, transform=f"translate(11 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)", text_anchor="middle",
            class_="name")
    )  # fmt: skip
    if rule is not None and x_span[0] <= rule[0] <= x_span[1]:
        x = x_at(rule[0])
        parts.append(tag("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="rule"))
        right = x > WIDTH * 0.7
        anchor = "end" if right else "start"
        parts.append(tag("text", rule[1], x=x - 5 if right else x + 5, y=HEIGHT - BOTTOM - 6, text_anchor=anchor))
    for line in lines:
        points = [(x_at(x), y_at(y)) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        shapes = [tag("path", d=path, class_="curve")]
        for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            if math.isfinite(y):
                text = tag("title", f"{line.label}: {y:.4g} at {x:g}")
                shapes.append(tag("circle", text, cx=x_at(x), cy=y_at(y), r=5 if i == line.marked else 2.2))
        parts.append(tag("g", *shapes, class_=f"s-{line.key}"))
    svg = tag("svg", tag("title", title), *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    names = [tag("li", tag("i", class_=f"key s-{line.key}"), line.label) for line in lines]
    return tag("figure", tag("figcaption", title), svg, tag("ul", *names, class_="legend"), class_="chart")


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from below `low` to above `high`."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    largest = max(1.0, abs(low), abs(high))
    span = high - low if high - low > 1e-8 * largest else largest  # as far apart as the ticks are told
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 10) for i in range(first, max(last, first + 1) + 1)]


def bars(rows: Sequence[tuple[str, Sequence[tuple[str, float | None, str | None]]]], series: Sequence[tuple[str, str]]):
    """A table of horizontal bars in percent: per row a name and (series key, value in 0..1, path in metrics.json)."""
    body = []
    for name, values in rows:
        drawn = [
            tag(
                "div",
                tag("span", style=f"width:{100 * (value or 0):.1f}%", class_=f"bar s-{key}"),
                tag("b", number(value), data_key=path if value is not None else None),
                class_="track",
            )
            for key, value, path in values
        ]
        body.append(tag("tr", tag("th", name, scope="row"), tag("td", *drawn)))
    names = [tag("li", tag("i", class_=f"key s-{key}"), label) for key, label in series]
    return join([tag("ul", *names, class_="legend"), tag("table", tag("tbody", *body), class_="bars")])


def confusion_table(confusion: Sequence[Sequence[int]], names: Sequence[str], path: str) -> Html:
    """A confusion, rows truth, columns prediction, each row in percent. path: where it lies in metrics.json."""
    counts = np.asarray(confusion, np.float64)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    if len(names) > TABLE_CLASSES:
        return _large_confusion(counts, share, names)
    head = tag("tr", tag("td", "truth ↓ mask →"), *(tag("th", tag("span", name), scope="col") for name in names))
    rows = []
    for i, name in enumerate(names):
        cells = [
            tag(
                "td", f"{100 * value:.0f}" if value >= 0.005 else "", style=f"--v:{value:.3f}",
                class_=("hot " if value > 0.5 else "") + ("diagonal" if i == j else ""),
                title=f"{name} taken for {names[j]}: {counts[i, j]:.0f} pixels, {100 * value:.1f}%",
            )
            for j, value in enumerate(share[i])
        ]  # fmt: skip
        rows.append(tag("tr", tag("th", name, scope="row"), *cells))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="confusion", data_path=path)
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="confusion matrix")


def _large_confusion(counts: np.ndarray, share: np.ndarray, names: Sequence[str]) -> Html:
    off = share * ~np.eye(len(share), dtype=bool)
    off[0] = off[:, 0] = 0  # every class is mostly mistaken for the background; that stands in the picture
    flat = np.argsort(-off, axis=None, kind="stable")[:LARGEST]
    rows = []
    for i, j in zip(*np.unravel_index(flat, off.shape), strict=True):
        if off[i, j] > 0:
            cells = (names[i], names[j], f"{100 * off[i, j]:.1f}", f"{counts[i, j]:.0f}")
            rows.append(tag("tr", *(tag("td", cell, class_="n" if k > 1 else None) for k, cell in enumerate(cells))))
    head = tag("tr", *(tag("th", text, scope="col") for text in ("truth", "taken for", "% of its pixels", "pixels")))
    text = f"A row for every true class, a column for every predicted one, {len(names)} in their order; dark is 0."
    picture = tag("img", src=confusion_picture(share), alt=text, class_="pixels", width=len(names), height=len(names))
    caption = tag("caption", f"The {len(rows)} largest confusions between classes")
    largest = tag("table", caption, head, *rows, class_="plain")
    scrolling = tag("div", largest, class_="scroll", tabindex=0, role="region", aria_label="largest confusions")
    return tag("div", tag("figure", picture, tag("figcaption", text)), scrolling, class_="wide")
