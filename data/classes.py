"""Class names: the list of classes.txt, and names that may be no class."""

from collections.abc import Iterator
from pathlib import Path

from data.base import plain, read_lines

YES, NO = {"1", "1.0", "true", "yes", "y", "x"}, {"0", "0.0", "false", "no", "n"}
BACKGROUND = {"background", "_background_", "__background__", "__ignore__", "_ignore_"}
NOTHING = {
    "none", "nan", "null", "nil", "na", "n/a", "normal", "healthy", "negative", "nothing", "empty", "no object",
    "no_object", "no finding", "unlabeled", "unlabelled", "unknown", "-", "?",
}  # fmt: skip
JOINTS = (" ", "/", "+", "&", " and ", ",", "|", ";", "_", "-")  # between classes that are written as one


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
        elif name.lower() in BACKGROUND and not classes:
            notes.append(f"{where}: {name} is no class; the line after it counts as the first")
        elif name.lower() in BACKGROUND:
            problems.append(f"{where}: {name} is no class, it is the mask value 0 or 255; remove the line")
        elif name in classes:
            problems.append(f"{where}: class {name!r} is also in line {classes[name]}")
        else:
            classes[name] = number
    if not classes:
        problems.append(f"{path} names no class; write one per line, or delete it")
    return tuple(classes), problems, notes


def doubts(names: set[str]) -> Iterator[tuple[str, str, str]]:
    """(name, question, kind of question) of every class whose name may mean something else."""
    cases: dict[str, str] = {}
    for name in sorted(names):
        twin = cases.setdefault(name.lower(), name)
        parts = next((p for p in map(name.split, JOINTS) if len(p) > 1 and set(p) <= names), None)
        if name.lower() in YES | NO:
            yield name, f"{name!r} tells no class: name the column as the class that 1 stands for", "number"
        elif name.lower() in NOTHING:
            yield name, f"is {name!r} a class? Write nothing where there is no object", "nothing"
        elif twin != name:
            yield name, f"{name!r} and {twin!r} differ by case only; use one of them", "case"
        elif parts:
            yield name, f"{name!r} is made of other classes; write {';'.join(parts)}", "joined"
    for joint in JOINTS[:-2]:
        joined = sorted(name for name in names if joint in name)
        words = {word for name in names for word in name.split(joint)}
        if len(words) < len(names) and not words <= names:  # few words in many combinations
            yield (
                joined[0],
                f"{joined[0]!r} looks like several classes; write {';'.join(joined[0].split(joint))}",
                "joined",
            )
