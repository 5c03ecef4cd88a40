"""What made a result: arguments, inputs and code, kept beside it so that results of two kinds never get mixed.

A record is `{"step", "arguments", "inputs", "images", "code"}`; `misc.run.workdir` says what belongs into it, `pending`
and `to_train` write and compare it, so that steps need not know of it.
"""

import ast
import hashlib
import json
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import UserError
from data.files import load_json

NAME = ".made_by.json"  # in a folder of results; beside a weights file, FILE.made_by.json
ROOT = Path(__file__).parent.parent
PACKAGES = ("data", "misc", "net", "step", "voc12", "coco14")
# Modules that keep books, show progress or check: nothing in them changes a result.
WITHOUT_EFFECT = (
    "misc.run.board", "data.cocojson", "data.errors", "data.files", "misc.run.lock", "misc.run.made_by",
    "misc.run.metricsfile", "data.pool", "data.progress", "misc.run.resume", "data.process",
    "misc.report.pictures", "misc.report.plots", "misc.report.tables", "misc.report.toy", "misc.run.workdir",
    "data.check", "misc.run.presets",
)  # fmt: skip
SHOWN = 72  # characters of a value that a message shows
MODULES_SHOWN = 6


class Differences(NamedTuple):
    """What two records disagree in, as text: arguments and inputs on the one hand, code on the other."""

    values: list[str]
    code: list[str]

    def __str__(self) -> str:
        return "; ".join(self.values + self.code)


def read(path: Path) -> dict | None:
    """The record of a file, None where there is none; UserError if it is none."""
    if not path.is_file():
        return None
    record = load_json(path)
    if not all(isinstance(record.get(key), dict) for key in ("arguments", "inputs", "code")):
        raise UserError(f"{path} is not a record of what made a result; delete it to take the files as they are")
    return record


def differences(before: dict, now: dict) -> Differences:
    """What differs between two records. What only one of them tells is left out: an older program kept less.

    Data that lie elsewhere now, as where every job of a cluster copies them to a disk of its own, are the same data if
    those images are of which both records keep digests.
    """
    before, now = (json.loads(json.dumps(record)) for record in (before, now))  # tuples become lists, as in a file
    images = [record.get("images") or {} for record in (before, now)]
    both = images[0].keys() & images[1].keys()
    other = [name for name in sorted(both) if images[0][name] != images[1][name]]
    values = [f"image {_shown(other[0])} has other pixels now"] if other else []
    moved = {"--data_root"} if both and not other else set()
    for part in ("arguments", "inputs"):
        old, new = (record.get(part) or {} for record in (before, now))
        values += [
            f"{key} {_shown(old[key])} then, {_shown(new[key])} now"
            for key in old
            if key not in moved and new.get(key, old[key]) != old[key]
        ]
    old, new = before.get("code") or {}, now.get("code") or {}
    names = sorted(key for key in {*old, *new} if old.get(key) != new.get(key)) if old and new else []
    files = [name for name in names if name not in _versions()]
    code = [f"{name} {old.get(name)} then, {new.get(name)} now" for name in names if name in _versions()]
    if files:
        more = f" and {len(files) - MODULES_SHOWN} more" if len(files) > MODULES_SHOWN else ""
        code.append(f"the code of {', '.join(files[:MODULES_SHOWN])}{more} has changed")
    return Differences(values, code)


def of_names(names: Sequence[str]) -> str:
    """A list of images in few characters: how many, and a digest of their names."""
    return f"{len(names)} images ({digest(chr(10).join(names).encode())[:12]})"


def of_array(array: np.ndarray) -> str:
    """Shape and content of an array in few characters."""
    return f"{' x '.join(map(str, array.shape))} ({digest(np.ascontiguousarray(array).tobytes())[:12]})"


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def of_record(record: dict) -> str:
    """The digest of a record, which stands for its folder where that is an input: steps hang together in a chain."""
    told = {key: record.get(key) for key in ("arguments", "inputs", "code")}
    if told["arguments"]:  # the same data may lie elsewhere
        told["arguments"] = {key: value for key, value in told["arguments"].items() if key != "--data_root"}
    return digest(json.dumps(told, sort_keys=True).encode())


def of_file(path: Path) -> str:
    """The SHA-256 of a file's content; read again only where size or time of the file have changed."""
    status = path.stat()
    return _of_file(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _of_file(path: Path, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _in_parts(file)


def _in_parts(file) -> str:
    total = hashlib.sha256()  # Python 3.10
    for part in iter(lambda: file.read(1 << 20), b""):
        total.update(part)
    return total.hexdigest()


@lru_cache(maxsize=32)
def of_code(modules: tuple[str, ...], files: tuple[Path, ...] = ()) -> dict[str, str]:
    """Digests of modules of the project and of all that they import from it, besides the versions that matter.

    modules: names such as "step.make_cam". files: source files outside the project. Comments, docstrings and layout do
    not count, nor do the modules WITHOUT_EFFECT.
    """
    found: dict[str, str] = {}
    todo = [*modules]
    for path in files:
        tree = ast.parse(path.read_bytes())
        found[path.name] = _of_tree(tree)
        todo += _imported(tree)
    while todo:
        name = todo.pop()
        path = _source(name)
        if path is None or name in WITHOUT_EFFECT or str(path.relative_to(ROOT)) in found:
            continue
        tree = ast.parse(path.read_bytes())
        found[str(path.relative_to(ROOT))] = _of_tree(tree)
        todo += _imported(tree)
    return {**_versions(), **dict(sorted(found.items()))}


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    import torch

    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "torch": torch.__version__.split("+")[0]}  # what follows the + is the machine's


def _source(module: str) -> Path | None:
    """The file of a module of the project."""
    if module.split(".")[0] not in PACKAGES:
        return None
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a source file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if _source(name) else node.module for name in inner)


def _of_tree(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _is_docstring(body):
            node.body = body[1:] or [ast.Pass()]
    return digest(ast.dump(tree, annotate_fields=False).encode())[:16]


def _is_docstring(body: list[ast.stmt]) -> bool:
    first = body[0] if body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _shown(value: object) -> str:
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):  # a digest
        return value[:12]
    parts: Iterable = value if isinstance(value, list) else [value]
    text = ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
