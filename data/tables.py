"""Label tables in the forms that people's tools write. What can be meant in two ways is a problem, not a guess."""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from data.base import alike, plain, read_lines, shortened
from data.classes import BACKGROUND, IGNORED, NO, YES, doubts
from data.errors import DataError
from data.listing import FILE

SEPARATORS = ",;\t| "  # of columns, the likeliest first
FLAG = re.compile(
    r"is_.*|train|val|valid|validation|test|difficult|truncated|occluded|verified|.*[ _](id|count)", re.IGNORECASE
)
IMAGE_HEADER = re.compile(r"(image|img|file|path|name|picture|photo).*", re.IGNORECASE)
LABEL_HEADER = re.compile(
    r"(.*[ _-])?(label|class|[ck]lasse|[ck]ategor(y|ie)|tag|target|object|annotation)[ns]?([ _-]?names?)?[ _-]?\d*",
    re.IGNORECASE,
)
INDEX_HEADERS = {"", "index", "idx", "id", "no", "nr", "#"}
WANTED = "name,class1;class2"
SAMPLE = 200  # rows by which columns are told apart
Row = tuple[int, list[str]]  # line number, cells


class Labels:
    """What a table says.

    rows: image name -> its classes. classes: all of them. absent: text that names no image -> file and line. problems
    and notes: lines for the user.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, list[str]] = {}
        self.lines: dict[str, int] = {}  # class -> its first line
        self.absent: dict[str, str] = {}
        self.notes: list[str] = []
        self._problems: dict[str, list[str]] = {}  # by kind: one diagnosis each

    @property
    def classes(self) -> set[str]:
        return set(self.lines)

    @property
    def problems(self) -> list[str]:
        return [alike(problems) for problems in self._problems.values()]

    def complain(self, problem: str, kind: str = "") -> None:
        """Adds a problem, to those of its kind if it has one."""
        self._problems.setdefault(kind or problem, []).append(problem)


def read_labels(path: Path, find: Callable[[str], str | None], classes: Sequence[str] = ()) -> Labels:
    """The labels of a table: a column of images, and a column of classes, one per class (0/1), or a line per class.

    find: the image that a text names, or None. classes: the allowed ones, which also settles what is doubtful; empty:
    any. DataError if the file is not a table.
    """
    labels = Labels(path)
    header_line, header, rows = _table(path, find)
    columns = _columns(labels, rows, header, find, classes) if rows else None
    if columns is None:
        return labels
    image, chosen, one_hot = columns
    if one_hot:
        labels.lines = {header[j]: header_line for j in chosen}
        words = [[header[j] for j in chosen if cells[j].lower() in YES] for _, cells in rows]
    else:
        texts = [[cells[j] for j in chosen if cells[j]] for _, cells in rows]
        joint = _cell_separator([text for of_row in texts for text in of_row], classes)
        words = [[word for text in of_row for word in _words(text, joint)] for of_row in texts]
    _join(labels, [(n, cells[image], w) for (n, cells), w in zip(rows, words, strict=True)], find)
    _settle(labels, classes)
    return labels


def _table(path: Path, find: Callable[[str], str | None]) -> tuple[int, list[str], list[Row]]:
    """The header, its line number, and the rows below it, all of one width; without a header its cells are empty."""
    lines = read_lines(path)
    told = re.fullmatch(r"\"?sep=(.)\"?\s*", lines[0], re.IGNORECASE)  # as Excel reads and writes it
    if told:
        lines[0] = ""
    tables, errors = {}, []
    for separator in told[1] if told else SEPARATORS:
        try:
            tables[separator] = _split(path, lines, separator)
        except DataError as error:
            errors.append(error)
    if not tables:
        raise errors[0]

    def images(separator: str) -> int:
        return sum(len(cells) > 1 and any(map(find, cells)) for _, cells in tables[separator][:SAMPLE])

    separator = max(tables, key=images)
    rows = tables[separator]
    widest = max((len(cells) for _, cells in rows), default=0)
    while rows and rows[0][1][0].startswith("#") and len(rows[0][1]) < widest:  # a comment
        del rows[0]
    header_line, header = rows.pop(0) if rows and _is_header(rows, find) else (0, [])
    image = next((j for _, cells in rows for j, cell in enumerate(cells) if find(cell)), 0)
    width = len(header) or max(image + 2, min((len(cells) for _, cells in rows), default=0))
    for _, cells in rows:  # what goes beyond is of the last column: classes that are joined by the separator
        cells[width - 1 :] = [separator.join(cells[width - 1 :])]
        cells += [""] * (width - len(cells))
    return header_line, list(map(plain, header)) or [""] * width, rows


def _split(path: Path, lines: Sequence[str], separator: str) -> list[Row]:
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, skipinitialspace=True, strict=True)
    rows = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            while len(cells) > 2 and not cells[-1]:
                cells.pop()
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}") from error
    return rows


def _is_header(rows: Sequence[Row], find: Callable[[str], str | None]) -> bool:
    """Whether the first row names neither an image nor a class of the others."""
    first, *below = [{word for cell in cells for word in _words(cell, ";")} for _, cells in rows]
    return not any(find(word) or FILE.fullmatch(word) for word in first) and first.isdisjoint(set().union(*below))


def _columns(
    labels: Labels, rows: Sequence[Row], header: Sequence[str], find: Callable[[str], str | None],
    classes: Sequence[str],
) -> tuple[int, list[int], bool] | None:  # fmt: skip
    """(column of images, columns of classes, whether there is one per class); None and a problem if unclear."""
    path, line = labels.path, rows[0][0]
    sample = [cells for _, cells in rows[:: max(1, len(rows) // SAMPLE)]]

    def images(j: int) -> float:
        hits = sum(1 + bool(FILE.fullmatch(cells[j])) for cells in sample if find(cells[j]))
        return hits and hits + bool(IMAGE_HEADER.fullmatch(header[j]))

    image = max(range(len(header)), key=images)
    if not images(image):
        texts = " or ".join(repr(cell) for cell in rows[0][1][:2] if cell)
        labels.complain(f"{path} names no image: none is called {texts} (line {line}); wanted {WANTED}")
        return None
    values = {j: {cells[j].lower() for _, cells in rows} - {""} for j in range(len(header)) if j != image}
    others = [j for j in values if not _is_index(header, j, values[j], len(rows))]
    binary = [j for j in others if values[j] and values[j] <= YES | NO]
    named = [j for j in others if LABEL_HEADER.fullmatch(header[j].split(";")[0])]
    if len(binary) > len(named):
        named = [j for j in named if j not in binary]
    by_class = [j for j in others if header[j] in classes]
    text = [j for j in others if any(map(str.isalpha, values[j])) and j not in binary and len(values[j]) < len(rows)]
    one_hot = bool(by_class or (binary and any(header) and not named and (len(binary) > 1 or not text)))
    if one_hot:
        chosen = by_class or binary
        _ask_about_counts(labels, rows, header, chosen, others, bool(classes))
    elif named:
        chosen = [j for j in named if header[j].lower().rstrip("s").endswith("name")] or named
    elif len(others) < 2 or (classes and all(values[j] <= {name.lower() for name in classes} for j in others)):
        chosen = others
    else:
        which = shortened([repr(header[j] or str(j + 1)) for j in others], 10)
        labels.complain(
            f"{path} line {line}: which of the columns {which} hold classes? Wanted {WANTED}, or a header with one of "
            "them called label, or columns of 1 and 0 that are called as their class"
        )
        return None
    unused = [j for j in others if j not in chosen]
    if unused:
        labels.notes.append(f"{path.name}: columns that are not used: {shortened([header[j] for j in unused], 10)}")
    if not one_hot and len({cells[image] for _, cells in rows}) < len(rows):  # lines per image
        for j in set(binary) & set(unused):
            if values[j] & YES and values[j] & NO and not FLAG.fullmatch(header[j]):
                labels.complain(
                    f"{path}: where column {header[j]!r} says no, does the class not occur? Then remove these lines, "
                    "and else the column"
                )
    return image, chosen, one_hot


def _is_index(header: Sequence[str], j: int, values: set[str], n_rows: int) -> bool:
    named = header[j].lower() in INDEX_HEADERS or header[j].lower().startswith("unnamed:")
    return all(map(str.isdecimal, values)) and (named if any(header) else len(values) == n_rows > 2)


def _ask_about_counts(
    labels: Labels, rows: Sequence[Row], header: Sequence[str], chosen: Sequence[int], others: Sequence[int],
    listed: bool,
) -> None:  # fmt: skip
    """Numbers that may count objects, and columns that may be no class, beside those with a column per class."""
    for j in others:
        odd = [(n, cells[j]) for n, cells in rows if cells[j] and cells[j].lower() not in YES | NO]
        if odd and (j in chosen or (not listed and any(cells[j] in NO for _, cells in rows))):
            labels.complain(
                f"{labels.path} line {odd[0][0]}: column {header[j]!r} holds {odd[0][1]!r} where others hold 0 and 1; "
                "write 1 where the class occurs and else 0, or remove the column", "count",
            )  # fmt: skip
        elif j in chosen and not listed and FLAG.fullmatch(header[j]):
            labels.complain(
                f"{labels.path}: is column {header[j]!r} a class? If it is, list all classes in classes.txt, else "
                "remove the column", "flag",
            )  # fmt: skip


def _join(labels: Labels, rows: Sequence[tuple[int, str, list[str]]], find: Callable[[str], str | None]) -> None:
    """Fills in the classes of every image and what names none. rows: (line, image, classes)."""
    first: dict[str, tuple[int, str]] = {}
    line_each = all(len(words) <= 1 for *_, words in rows)  # a line per image and class
    for number, text, words in rows:
        name = find(text)
        if name is None:
            labels.absent[text] = f"{labels.path} line {number}"
            continue
        for word in words:
            labels.lines.setdefault(word, number)
        line, before = first.setdefault(name, (number, text))
        if line == number or (line_each and text == before and words and labels.rows[name]):
            labels.rows[name] = list(dict.fromkeys([*labels.rows.get(name, ()), *words]))
        else:
            labels.complain(f"{labels.path} line {number}: image {name!r} is also in line {line}", "twice")


def _settle(labels: Labels, classes: Sequence[str]) -> None:
    """Takes words that are no class out of the labels, and asks about those that may be none."""
    where = {name: f"{labels.path} line {line}" for name, line in labels.lines.items()}
    for name in [name for name in where if name.lower() in (*BACKGROUND, *IGNORED)]:
        labels.complain(f"{where[name]}: {name.lower()} is no class; leave it out", "background")
        del labels.lines[name]
    listed = classes or list(labels.lines)
    if unknown := [name for name in labels.lines if name not in listed]:
        more = f"; nor are {shortened([repr(name) for name in unknown[1:]])}" if unknown[1:] else ""
        known = labels.path.with_name("classes.txt")
        labels.complain(f"{where[unknown[0]]}: class {unknown[0]!r} is not in {known}{more}")
    for image, words in labels.rows.items():
        labels.rows[image] = [word for word in words if word in listed]
    for name, doubt, remedy, kind in () if classes else doubts(labels.lines):
        labels.complain(f"{where[name]}: {doubt}; if so {remedy}, else list all classes in classes.txt", kind)


def _words(cell: str, separator: str | None) -> list[str]:
    """The classes of a cell: a list as Python, JSON or NumPy write it, or joined by the separator."""
    inside = cell[1:-1].strip() if cell[:1] + cell[-1:] in ("[]", "()", "{}") else None
    if inside is not None:
        quoted = ["".join(pair) for pair in re.findall(r"'([^']*)'|\"([^\"]*)\"", inside)]
        parts = quoted or inside.split(",")
    else:
        parts = cell.split(separator) if separator else [cell]
    return [plain(part.strip()) for part in parts if part.strip()]


def _cell_separator(cells: Sequence[str], classes: Sequence[str]) -> str | None:
    """What joins classes in the cells: what gives the most listed ones, else the first of ; | , that occurs."""
    if not classes:
        return next((s for s in ";|," if any(s in cell and cell[0] not in "[({" for cell in cells)), None)
    known = set(classes)
    return max((";", None, *"|, /+&"), key=lambda s: sum(word in known for cell in cells for word in _words(cell, s)))
