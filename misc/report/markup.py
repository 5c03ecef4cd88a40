"""HTML that cannot be broken by what is put into it: whatever is not markup already is escaped."""

from collections.abc import Iterable
from html import escape

VOID = ("img", "input")
NOTHING = "\u2013"  # where a figure would stand
CHILDLESS = ("line", "path")  # of SVG, which wants them closed


class Html(str):
    """Text that is markup already."""


def html(value: object) -> Html:
    """The value as markup: as it is where it is Html, else escaped."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable, between: str = "") -> Html:
    """Several values one after the other."""
    return Html(html(between).join(map(html, parts)))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element. A trailing underscore of an attribute's name is dropped, others become hyphens.

    True writes the bare attribute, None and False leave it out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    if name in VOID:
        return Html(opening)
    return Html(f"{opening[:-1]}/>" if name in CHILDLESS else f"{opening}{join(content)}</{name}>")


def number(value: float | None, digits: int = 1, factor: float = 100) -> str:
    """A share in percent (or factor times a value), a dash where there is none."""
    return NOTHING if value is None or value != value else f"{factor * value:.{digits}f}"


def at(values: dict, path: str) -> object:
    """The entry of nested dicts that `a.b.c` names, None where there is none."""
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    return values


def measured_cell(values: dict, path: str, digits: int = 1, factor: float = 100, cell: str = "td") -> Html:
    """A table cell with the figure of metrics.json that `path` names."""
    found = at(values, path)
    return tag(cell, number(found, digits, factor), class_="n", data_key=path if found is not None else None)
