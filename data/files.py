"""Files that are either whole or not there."""

import contextlib
import errno
import io
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.errors import UserError
from misc.run import stored

LOCK = ".lock"  # in the work_dir of a run


class FileError(UserError):
    """The system refuses a file; the message names it, says why and what to do."""


def write_atomic(path: Path, write: Callable[[Any], None]) -> None:
    """Calls write(binary file) on a temporary file beside `path` and renames it; on an error nothing is left.

    FileError if the file cannot be written, whatever `write` made of that.
    """
    path = Path(path)
    # Without the name in it: that may be as long as the system allows.
    temporary = path.with_name(f".{os.getpid()}.{secrets.token_hex(8)}.tmp")
    raw = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _UNFINISHED.add(temporary)
        raw = _Raw(temporary, "wb")
        with io.BufferedWriter(raw) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        refused = raw.refused if raw is not None and raw.refused else error  # torch.save makes something else of it
        if not isinstance(refused, OSError) or isinstance(refused, io.UnsupportedOperation):
            raise
        raise FileError(refusal(refused, "written", path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _UNFINISHED.discard(temporary)


class _Raw(io.FileIO):
    """A file that remembers why it could not be written."""

    refused: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.refused = error
            raise


def refusal(error: OSError, done: str, path: Path | str | None = None) -> str:
    """One line of what the system refused: file, reason and what to do. done: "written" or "read"."""
    path = path or error.filename
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    what = f"{path} cannot be {done}: {reason}" if path else reason
    return f"{what}; {_ADVICE.get(error.errno, 'mend that and give the same command again: it goes on')}"


_FULL = "free some space and give the same command again: it goes on where it stopped"
_REFUSED = "see to its permissions, or name another folder (--work_dir and --*_out_dir say where results go)"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) and give the same command again: it goes on",
    errno.EROFS: _REFUSED,
    errno.EACCES: _REFUSED,
    errno.EPERM: _REFUSED,
}
_UNFINISHED: set[Path] = set()
_TEMPORARY = re.compile(r"\.\d+\.[0-9a-f]{16}\.tmp")


def discard_unfinished() -> None:
    """Removes the temporary files that this process has not finished; it is about to end."""
    for path in list(_UNFINISHED):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def sweep(folder: Path, older_than_s: float = 0.0) -> int:
    """Removes temporary files that killed processes left in a folder and below it; how many.

    older_than_s: leaves younger ones alone, for folders into which others may be writing. Folders below it that have a
    lock of their own belong to other runs and are left alone.
    """
    removed = 0
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not os.path.exists(os.path.join(where, name, LOCK))]
        for path in (Path(where, name) for name in names if _TEMPORARY.fullmatch(name)):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime >= older_than_s:
                    path.unlink()
                    removed += 1
    return removed


def look_anew(folder: Path) -> None:
    """Makes the system ask a network disk for the content of a folder, of which it may remember an older one."""
    with contextlib.suppress(OSError):
        os.close(os.open(folder, os.O_RDONLY))


def save_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON."""
    text = json.dumps(value, indent=2, sort_keys=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def load_json(path: Path) -> dict:
    """The mapping in a JSON file, {} where there is none; UserError if it is damaged or holds anything else.

    Of the files that `misc.run.stored` knows by name the content is checked too.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise FileError(refusal(error, "read", path)) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not whole JSON ({error}); mend it, or move it away") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, wanted a mapping; mend it, or move it away")
    problem = stored.problem(path.name, value)
    if problem:
        raise UserError(f"{path} is damaged: {problem}; mend it, or move it away")
    return value


def save_mask(path: Path, mask: np.ndarray, palette: np.ndarray) -> None:
    """Writes uint8 [H, W] as a palette PNG; palette: uint8 [256, 3]."""
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    write_atomic(path, lambda file: image.save(file, format="PNG"))


def save_grey(path: Path, values: np.ndarray) -> None:
    """Writes [H, W] in [0, 1] as an 8-bit grey PNG."""
    image = Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))
    write_atomic(path, lambda file: image.save(file, format="PNG", compress_level=1))


def load_mask(path: Path, size: tuple[int, int] | None = None, n_labels: int | None = None) -> np.ndarray:
    """uint8 [H, W] of a palette or grey PNG; UserError if it is anything else or damaged.

    size: (H, W) of the image that it must belong to. n_labels: values must be below it, or 255.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()  # the checksums, at which decoding does not look; then it has to be opened again
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"its mode is {image.mode}, wanted a palette or grey of 8 bits")
            if size is not None and (image.height, image.width) != tuple(size):  # before it is decoded
                raise UserError(
                    f"{path} is {image.height} x {image.width} pixels, wanted {size[0]} x {size[1]} (height x width) "
                    "as its image; delete it and make it again"
                )
            mask = np.array(image)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path} is not a whole mask ({error}); delete it and make it again") from error
    highest = mask.max(initial=0, where=mask != 255)
    if n_labels is not None and highest >= n_labels:
        raise UserError(
            f"{path} holds the value {highest}, wanted values from 0 to {n_labels - 1}, or 255; it belongs to other "
            "classes: delete it and make it again"
        )
    return mask


def find_doubled(path: Path) -> Path | None:
    """`path`, or the doubled `.pth.pth` that the published scripts write, or None where neither is there."""
    both = (Path(path), Path(f"{path}.pth"))
    return next((candidate for candidate in both if candidate.is_file()), None)


def save_torch(path: Path, value: Any) -> None:
    """torch.save, whole or not at all."""
    import torch  # takes seconds, which the command line need not spend on --help

    write_atomic(path, lambda file: torch.save(value, file))
