"""Errors as a user is to see them: one line, what was refused and what to do; a traceback is for bugs alone."""

import multiprocessing
import os
import re
import sys
from collections.abc import Callable

from data.errors import UserError, without_traceback
from data.files import refusal
from data.process import GO_ON, on_signals, rank, world_size

_KILLED = re.compile(r"DataLoader worker .*?(killed by signal: [\w ]+|exited unexpectedly)", re.DOTALL)
_NCCL = re.compile(r"NCCL error.*?(?=\s*\Z|\s*Exception raised from)", re.DOTALL)
_LOST = re.compile(r"NCCL error|\bgloo\b|\bconnection (closed|reset|refused)", re.IGNORECASE)


def explain(error: BaseException) -> tuple[str, int] | None:
    """(one line, exit code) of an error, None for what only a bug can raise.

    Exit code 2: the user's to fix; 1: anything else; 130: interrupted.
    """
    text = without_traceback(str(error))
    if isinstance(error, UserError):
        return text, 2
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {GO_ON}", 130
    if isinstance(error, FloatingPointError):
        return text, 1
    if isinstance(error, BrokenPipeError):
        return f"the output was closed (broken pipe); {GO_ON}", 1
    if isinstance(error, OSError):
        return _of_system(error), 2
    if isinstance(error, MemoryError):
        return f"out of memory; {GO_ON}", 1
    if isinstance(error, RuntimeError) and _KILLED.search(text):
        return f"a worker process ended: {_KILLED.search(text)[0]}; {GO_ON}", 1
    lost = isinstance(error, getattr(sys.modules.get("torch.distributed"), "DistError", ()))  # where torch is loaded
    if world_size() > 1 and (lost or (isinstance(error, RuntimeError) and _LOST.search(text))):
        nccl = _NCCL.search(text)  # its last lines say what happened
        what = "; ".join(nccl[0].splitlines()) if nccl else f"lost the other ranks ({text.splitlines()[0]})"
        return f"rank {rank()}: {what}; see the message of the rank that failed first; {GO_ON}", 1
    return None


def prepare_process() -> None:
    """For every command: text that the terminal cannot show is escaped, workers of a fork server start quickly.

    Ends with one line on Windows, whose processes and signals differ.
    """
    if sys.platform == "win32":
        raise SystemExit("This program needs Linux or macOS; on Windows, run it in WSL.")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # A run that a signal ends leaves its semaphores to Python's tracker, which removes them and would complain.
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    if quiet not in os.environ.get("PYTHONWARNINGS", ""):
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), quiet)))
    # Python 3.14 forks its workers from a server: what takes seconds to import is imported there, once.
    multiprocessing.set_forkserver_preload(["torch", "torch.utils.data", "cv2", "scipy.sparse", "PIL.Image"])


def one_line(program: str, work: Callable[[], None]) -> int:
    """Does the work of a command; its exit code, after one line where it fails. Signals end it with such a line too."""
    prepare_process()
    try:
        with on_signals(first=True, program=program):
            work()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        explained = explain(error)
        if explained is None:
            raise
        text, code = explained
        print(f"{program}: {text}", file=sys.stderr)
        return code


def _of_system(error: OSError) -> str:
    """The line of an error of the system, also of one that a worker process had and of which the text alone is left."""
    match = re.search(r"\[Errno (\d+)\] (.*?)(?:: '(.*)')?$", without_traceback(str(error)))
    if error.errno is None and match:
        error = OSError(int(match[1]), match[2], match[3])
    return refusal(error, "used")
