"""Writing files so that each is either complete or absent, JSON, and what to say when the system refuses a file."""

import contextlib
import errno
import io
import json
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.errors import UserError


class FileError(UserError):
    """The system refuses a file; the message names it and says why and what to do."""


def write_atomic(path: Path, write: Callable[[Any], None]) -> None:
    """Calls write(binary file) on a temporary file beside `path` and renames it; on an error nothing is left.

    FileError if the file cannot be written.
    """
    path = Path(path)
    # The name is not part of it: it may be as long as the system allows.
    temporary = path.with_name(f".{os.getpid()}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _UNFINISHED.add(temporary)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(refusal(error, "written", path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _UNFINISHED.discard(temporary)


def refusal(error: OSError, done: str, path: Path | str | None = None) -> str:
    """One line about a file that the system refused: its name, the reason and what to do. done: "written", "read"."""
    path = path or error.filename
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    what = f"{path} cannot be {done}: {reason}" if path else reason
    return f"{what}. {_ADVICE.get(error.errno, 'Fix this and run the command again; it resumes.')}"


_FULL = "Free some space and run the command again; it resumes."
_REFUSED = "Check its permissions or choose another folder (--work_dir and --*_out_dir set where results go)."
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _REFUSED),
}
_UNFINISHED: set[Path] = set()
_TEMPORARY = re.compile(r"\.\d+\.[0-9a-f]{16}\.tmp")


def discard_unfinished() -> None:
    """Removes the temporary files that this process has not finished; it is about to end."""
    for path in list(_UNFINISHED):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> int:
    """Removes the temporary files that killed processes left in and below a folder; returns how many."""
    left = [path for path in Path(folder).rglob(".*.tmp") if _TEMPORARY.fullmatch(path.name)]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def save_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def load_json(path: Path) -> dict:
    """The mapping in a JSON file, {} if the file does not exist; UserError if it holds anything else."""
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise FileError(refusal(error, "read", path)) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); fix or delete it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, wanted a mapping; fix or delete it")
    return value


def save_torch(path: Path, value: Any) -> None:
    """torch.save through `write_atomic`, by way of memory: on a full disk torch would not say why it fails."""
    import torch  # takes seconds, which --help need not wait for

    content = io.BytesIO()
    torch.save(value, content)
    write_atomic(path, lambda file: file.write(content.getbuffer()))
