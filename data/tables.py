"""Label tables in the forms that people's tools write. What can be meant in two ways is a problem, not a guess."""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from data.base import alike, plain, read_lines, shortened
from data.classes import BACKGROUND, IGNORED, NO, YES, doubts
from data.errors import DataError

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
FILE = re.compile(r".*\.(jpe?g|png|webp|tiff?|bmp|gif)", re.IGNORECASE)
WANTED = "name,class1;class2"
SAMPLE = 200  # rows by which columns are told apart


class Labels(NamedTuple):
    """What a table says: image name -> its classes; all classes; text that names no image -> file and line."""

    rows: dict[str, list[str]]
    classes: set[str]
    absent: dict[str, str]
    problems: list[str]
    notes: list[str]


def read_labels(path: Path, find: Callable[[str], str | None], classes: Sequence[str] = ()) -> Labels:
    """The labels of a table: a column of images, and a column of classes, one per class (0/1), or a line per class.

    find: the image that a text names, or None. classes: the allowed ones, which also settles what is doubtful; empty:
    any. DataError if the file is not a table.
    """
    return _Reader(path, find, classes).read()


class _Reader:
    def __init__(self, path: Path, find: Callable[[str], str | None], classes: Sequence[str]):
        self.path, self.find, self.classes = path, find, classes
        self.problems: dict[str, list[str]] = {}  # by kind: one diagnosis each
        self.notes: list[str] = []
        self.header: list[str] = []
        self.header_line = 0
        self.lines: dict[str, int] = {}  # class -> its first line

    def read(self) -> Labels:
        rows = self._table()
        labels: dict[str, list[str]] = {}
        absent: dict[str, str] = {}
        columns = self._columns(rows) if rows else None
        if columns:
            image, chosen, one_hot = columns
            if one_hot:
                self.lines = {self.header[j]: self.header_line for j in chosen}
                words = [[self.header[j] for j in chosen if row[j].lower() in YES] for _, row in rows]
            else:
                cells = [[row[j] for j in chosen if row[j]] for _, row in rows]
                joint = _cell_separator([cell for of_row in cells for cell in of_row], self.classes)
                words = [[word for cell in of_row for word in _words(cell, joint)] for of_row in cells]
            labels, absent = self._join([(n, row[image], w) for (n, row), w in zip(rows, words, strict=True)])
            self._settle(labels)
        problems = [alike(problems) for problems in self.problems.values()]
        return Labels(labels, set(self.lines), absent, problems, self.notes)

    # lines

    def _table(self) -> list[tuple[int, list[str]]]:
        """(line, cells) of the rows below the header, all of one width; sets the header."""
        lines = read_lines(self.path)
        told = re.fullmatch(r"\"?sep=(.)\"?\s*", lines[0], re.IGNORECASE)  # as Excel reads and writes it
        if told:
            lines[0] = ""
        tables, errors = {}, []
        for separator in told[1] if told else SEPARATORS:
            try:
                tables[separator] = self._split(lines, separator)
            except DataError as error:
                errors.append(error)
        if not tables:
            raise errors[0]
        rows = max(
            tables.values(), key=lambda rows: sum(len(r) > 1 and any(map(self.find, r)) for _, r in rows[:SAMPLE])
        )
        separator = next(key for key, value in tables.items() if value is rows)
        widest = max((len(cells) for _, cells in rows), default=0)
        while rows and rows[0][1][0].startswith("#") and len(rows[0][1]) < widest:  # a comment
            del rows[0]
        if rows and self._is_header(rows):
            self.header_line, cells = rows.pop(0)
            self.header = list(map(plain, cells))
        image = next((j for _, cells in rows for j, cell in enumerate(cells) if self.find(cell)), 0)
        width = len(self.header) or max(image + 2, min((len(cells) for _, cells in rows), default=0))
        for _, cells in rows:  # what goes beyond is of the last column: classes that are joined by the separator
            cells[width - 1 :] = [separator.join(cells[width - 1 :])]
            cells += [""] * (width - len(cells))
        return rows

    def _split(self, lines: Sequence[str], separator: str) -> list[tuple[int, list[str]]]:
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
            raise DataError(f"{self.path} line {reader.line_num}: {error}") from error
        return rows

    def _is_header(self, rows: Sequence[tuple[int, list[str]]]) -> bool:
        """Whether the first row names neither an image nor classes."""
        first, below = rows[0][1], [cells for _, cells in rows[1:]]
        if any(self.find(cell) or FILE.fullmatch(cell) for cell in first):
            return False
        words = [(j, word) for j, cell in enumerate(first) for word in _words(cell, ";") if j]
        known = {word for cells in below for cell in cells[1:] for word in _words(cell, ";")}
        # A class may stand above the column that tells where it occurs.
        one_hot = [
            below and all(c[j : j + 1] in ([], [""]) or c[j].lower() in YES | NO for c in below)
            for j in range(len(first))
        ]
        return (bool(words) or len(first) == 1) and not any(
            w in known or (w in self.classes and not one_hot[j]) for j, w in words
        )

    # columns

    def _columns(self, rows: Sequence[tuple[int, list[str]]]) -> tuple[int, list[int], bool] | None:
        """(column of images, columns of classes, whether there is one per class); None and a problem if unclear."""
        header = self.header or [""] * len(rows[0][1])
        sample = [cells for _, cells in rows[:: max(1, len(rows) // SAMPLE)]]

        def images(j: int) -> float:
            hits = sum(1 + bool(FILE.fullmatch(cells[j])) for cells in sample if self.find(cells[j]))
            return hits and hits + bool(IMAGE_HEADER.fullmatch(header[j]))

        image = max(range(len(header)), key=images)
        if not images(image):
            number, cells = rows[0]
            texts = " or ".join(repr(cell) for cell in cells[:2] if cell)
            self._complain(f"{self.path} names no image: none is called {texts} (line {number}); wanted {WANTED}")
            return None
        values = {j: {cells[j].lower() for _, cells in rows} - {""} for j in range(len(header)) if j != image}
        others = [j for j in values if not self._is_index(header[j], values[j], len(rows))]
        binary = [j for j in others if values[j] and values[j] <= YES | NO]
        named = [j for j in others if LABEL_HEADER.fullmatch(header[j].split(";")[0])]
        words = [j for j in named if j not in binary and not (len(binary) > 1 and all(map(str.isdecimal, values[j])))]
        named = words or (named if len(binary) <= len(named) else [])
        by_class = [j for j in others if header[j] in self.classes]
        known = self.classes and all(values[j] <= {name.lower() for name in self.classes} for j in others)
        chosen, one_hot = others, False
        text = [j for j in others if any(map(str.isalpha, values[j])) and len(values[j]) < len(rows)]
        if by_class or (binary and self.header and not named and (len(binary) > 1 or not {*text} - {*binary})):
            chosen, one_hot = by_class or binary, True
            self._ask_about(rows, chosen, others)
        elif named:
            chosen = [j for j in named if header[j].lower().rstrip("s").endswith("name")] or named
        elif len(others) > 1 and not known:
            which = shortened([repr(header[j] or str(j + 1)) for j in others], 10)
            self._complain(
                f"{self.path} line {rows[0][0]}: which of the columns {which} hold classes? Wanted {WANTED}, or a "
                "header with one of them called label, or columns of 1 and 0 that are called as their class"
            )
            return None
        unused = [header[j] for j in others if j not in chosen]
        if unused:
            self.notes.append(f"{self.path.name}: columns that are not used: {shortened(unused, 10)}")
        several = len({cells[image] for _, cells in rows}) < len(rows)  # lines per image
        for j in binary if several and not one_hot else ():
            if j not in chosen and values[j] & YES and values[j] & NO and not FLAG.fullmatch(header[j]):
                self._complain(
                    f"{self.path}: where column {header[j]!r} says no, does the class not occur? Then remove these "
                    "lines, and else the column", "where",
                )  # fmt: skip
        return image, chosen, one_hot

    def _is_index(self, header: str, values: set[str], n_rows: int) -> bool:
        numbers = all(map(str.isdecimal, values))
        named = header.lower() in INDEX_HEADERS or header.lower().startswith("unnamed:")
        return numbers and (named if self.header else len(values) == n_rows > 2)

    def _ask_about(self, rows: Sequence[tuple[int, list[str]]], chosen: Sequence[int], others: Sequence[int]) -> None:
        """Numbers that may count objects, and columns that may be no class, beside those with a column per class."""
        for j in others:
            odd = [(n, cells[j]) for n, cells in rows if cells[j] and cells[j].lower() not in YES | NO]
            counts = not self.classes and any(cells[j] in NO for _, cells in rows)
            if odd and (j in chosen or counts):
                self._complain(
                    f"{self.path} line {odd[0][0]}: column {self.header[j]!r} holds {odd[0][1]!r} where others hold 0 "
                    "and 1; write 1 where the class occurs and else 0, or remove the column", "count",
                )  # fmt: skip
            elif j in chosen and FLAG.fullmatch(self.header[j]) and not self.classes:
                self._complain(
                    f"{self.path}: is column {self.header[j]!r} a class? If it is, list all classes in classes.txt, "
                    "else remove the column", "flag",
                )  # fmt: skip

    # rows

    def _join(self, rows: Sequence[tuple[int, str, list[str]]]) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Image -> classes, and what names no image. rows: (line, image, classes)."""
        absent: dict[str, str] = {}
        first: dict[str, tuple[int, str]] = {}
        labels: dict[str, list[str]] = {}
        line_each = all(len(words) <= 1 for *_, words in rows)  # a line per image and class
        for number, text, words in rows:
            name = self.find(text)
            if name is None:
                absent[text] = f"{self.path} line {number}"
                continue
            for word in words:
                self.lines.setdefault(word, number)
            line, before = first.setdefault(name, (number, text))
            if line != number and not (line_each and text == before and words and labels[name]):
                self._complain(f"{self.path} line {number}: image {name!r} is also in line {line}", "twice")
            elif line != number:
                labels[name] = list(dict.fromkeys([*labels[name], *words]))
            else:
                labels[name] = list(dict.fromkeys(words))
        return labels, absent

    # names

    def _settle(self, labels: dict[str, list[str]]) -> None:
        """Takes words that are no class out of the labels, and asks about those that may be none."""
        listed = self.classes or self.lines.keys()
        background = [name for name in self.lines if name.lower() in (*BACKGROUND, *IGNORED)]
        unknown = [name for name in self.lines if name not in listed and name not in background]
        where = {name: f"{self.path} line {line}" for name, line in self.lines.items()}
        for name in background:
            self._complain(f"{where[name]}: {name.lower()} is no class; leave it out", "background")
            del self.lines[name]
        if unknown:
            more = f"; nor are {shortened([repr(name) for name in unknown[1:]])}" if unknown[1:] else ""
            known = self.path.with_name("classes.txt")
            self._complain(f"{where[unknown[0]]}: class {unknown[0]!r} is not in {known}{more}")
        for image, words in labels.items():
            labels[image] = [word for word in words if word in self.lines and word in listed]
        for name, doubt, remedy, kind in () if self.classes else doubts(self.lines):
            self._complain(f"{where[name]}: {doubt}; if so {remedy}, else list all classes in classes.txt", kind)

    def _complain(self, problem: str, kind: str = "") -> None:
        self.problems.setdefault(kind or problem, []).append(problem)


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
