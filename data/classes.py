"""Class names: the list of classes.txt, and names that may be no class."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from data.base import plain, read_lines

YES, NO = {"1", "1.0", "true", "yes", "y", "x"}, {"0", "0.0", "false", "no", "n"}
BACKGROUND = ("background", "_background_", "__background__")
IGNORED = ("__ignore__", "_ignore_", "ignore", "ignored", "void")
NOTHING = re.compile(
    r"none|nan|null|nil|n/?a|normal|healthy|negative|nothing|empty|unlabell?ed|unknown|notumou?r|[-?]|"
    r"(no|non|not|without)[ _-].+", re.IGNORECASE,
)  # fmt: skip


def read_classes(path: Path) -> tuple[tuple[str, ...], list[str], list[str]]:
    """The classes of a list, one per line, in the order of the mask values; problems; notes.

    `__ignore__` and `_background_` on top, as labelme writes them, are the mask values 255 and 0.
    """
    problems: list[str] = []
    notes: list[str] = []
    classes: dict[str, int] = {}
    lines = [plain(line.strip()) for line in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    for number, name in enumerate(lines, 1):
        where = f"{path} line {number}"
        if not name:
            problems.append(f"{where} is empty; line k is the class with the mask value k")
        elif name.lower() in (*BACKGROUND, *IGNORED) and not classes:
            notes.append(f"{where}: {name} is no class; the line after it counts as the first")
        elif name.lower() in (*BACKGROUND, *IGNORED):
            problems.append(f"{where}: {name} is no class, it is the mask value 0 or 255; remove the line")
        elif name in classes:
            problems.append(f"{where}: class {name!r} is also in line {classes[name]}")
        else:
            classes[name] = number
    if not classes:
        problems.append(f"{path} names no class; write one per line, or delete it")
    return tuple(classes), problems, notes


def doubts(names: Collection[str]) -> Iterator[tuple[str, str, str, str]]:
    """(class, what it may mean, what to write if so, kind) of every class whose name may mean something else."""
    first: dict[str, str] = {}
    for name in sorted(names):
        twin = first.setdefault(name.lower(), name)
        parts = joined(name, names)
        if set(re.split(r"\W+", name.lower())) <= YES | NO:
            yield name, f"{name!r} may only say whether an object is there", "name the column as its class", "number"
        elif NOTHING.fullmatch(name):
            yield name, f"{name!r} may mean that an image has no object", "write nothing there", "nothing"
        elif twin != name:
            yield name, f"{name!r} and {twin!r} may be one class", "use one spelling", "case"
        elif parts:
            yield name, f"{name!r} may mean {' and '.join(parts)} together", f"write {';'.join(parts)}", "joined"
    for joint in " ,;|/+&" if any(map(str.isalpha, "".join(names))) else "":
        words = {word for name in names for word in name.split(joint)}
        if len(words) < len(names) and not words <= set(names):  # few words in many combinations
            name = min(name for name in names if joint in name)
            yield name, f"{name!r} may be several classes", f"write {';'.join(name.split(joint))}", "joined"


def joined(name: str, names: Collection[str]) -> list[str]:
    """The classes that a name puts together, such as `apple+leaf`; empty if it does not."""
    joints = {letter for letter in name if not letter.isalnum()}
    ways = [re.split(r"[\W_]+(?:and[\W_]+)?", name), *(name.split(joint) for joint in sorted(joints))]
    ways = [[part.strip() for part in way if part.strip()] for way in ways]
    return next((parts for parts in ways if len(parts) > 1 and set(parts) <= set(names)), [])
