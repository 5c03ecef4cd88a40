"""The house: which rooms a room may import from."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
# room -> rooms of the project that it may import from, itself among them
ALLOWED = {
    "data": {"data"},
    "net": {"net", "data.errors"},
    "misc": {"net", "misc"},
    "misc/run": {"net", "data", "misc", "misc.run", "misc.report", "step"},
    "misc/report": {"net", "data", "misc", "misc.run", "misc.report"},
    "voc12": {"data", "voc12"},
    "coco14": {"data", "coco14"},
    "step": {"net", "data", "misc", "misc.run", "misc.report"},
}
ROOMS = {"data", "net", "misc", "misc.run", "misc.report", "voc12", "coco14", "step"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_arrows_point_down():
    for room, allowed in ALLOWED.items():
        for path in (ROOT / room).glob("*.py"):
            for name in imported(path):
                parts = name.split(".")
                of = {".".join(parts[:n]) for n in (1, 2)} & ROOMS
                if of and (room, path.name, parts[0]) != ("misc/run", "runner.py", "step"):
                    assert ".".join(parts[:2]) in allowed or max(of, key=len) in allowed - {"step"}, f"{path}: {name}"
