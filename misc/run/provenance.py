"""What made the results: digests of inputs, the version of the code, and for args.json the whole call and machine."""

import argparse
import datetime
import hashlib
import logging
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from data.errors import UserError

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pillow", "opencv-python-headless", "pydensecrf2")


def digest(data: bytes) -> str:
    """SHA-256 of some bytes, its first 12 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:12]


def digest_of_names(names: Sequence[str]) -> str:
    """A list of images in few characters."""
    return f"{len(names)} images ({digest(chr(10).join(names).encode())})"


def digest_of_array(array: np.ndarray) -> str:
    """Shape and content of an array in few characters."""
    return f"{' x '.join(map(str, array.shape))} ({digest(np.ascontiguousarray(array).tobytes())})"


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file; read again only where its size or time has changed."""
    status = path.stat()
    return _digest_of_file(path.resolve(), status.st_size, status.st_mtime_ns)


@cache
def _digest_of_file(path: Path, size: int, mtime_ns: int) -> str:
    total = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            total.update(part)
    return total.hexdigest()[:12]


@cache
def code_version() -> dict[str, str | None]:
    """Commit of this program (None outside git), and the versions of Python and torch."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    python = ".".join(platform.python_version_tuple()[:2])
    return {"commit": commit, "python": python, "torch": torch.__version__.split("+")[0]}


def differences(before: dict, now: dict) -> list[str]:
    """The arguments and inputs in which two records differ, as text; what only one of them tells is left out."""
    changed = []
    for part in ("arguments", "inputs"):
        old, new = before.get(part) or {}, now.get(part) or {}
        changed += [
            f"{key} {shown(old[key])}, now {shown(new[key])}" for key in old if new.get(key, old[key]) != old[key]
        ]
    return changed


def check_same(path: Path, before: dict, now: dict, how: str = "") -> None:
    """UserError if what made a file differs from what would make it now; other code is only a warning.

    how: of the advice, in parentheses.
    """
    changed = differences(before, now)
    if changed:
        raise UserError(f"{path} was created with {'; '.join(changed)}. Use --overwrite{how} or another --work_dir.")
    if before.get("code") != now.get("code"):
        logging.warning("%s was created by another version of the code or of torch; it is kept", path)


def shown(value: object) -> str:
    """A setting as it would be typed."""
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_call(args: argparse.Namespace, sources: dict[str, str], argv: Sequence[str]) -> dict:
    """For args.json: command, arguments and their sources, versions, commit, machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": shlex.join(["python", "run_sample.py", *argv]),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "arguments": vars(args),
        "sources": sources,
        "seed": args.seed,
        "git_commit": code_version()["commit"],
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {"cpu": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu},
    }


def _processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
