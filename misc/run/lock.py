"""One run at a time on a `--work_dir`."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from data.errors import UserError
from data.files import FileError, refusal

LOCK = ".lock"  # in the work_dir of a run
BEAT_S = 15.0  # between two signs of life of the holder
WATCH_S = 50.0  # how long another host's holder is watched for one, three beats and a margin for cached attributes
STALE_S = 600.0  # a sign of life older than this is taken for none without watching; clocks differ by less

# lockf, not flock: both cross hosts on NFS (Linux sends either to the server's lock manager), and the kernel lets go of
# both when a process is killed. But flock is inherited by forked loader workers, which outlive a killed run by seconds
# and would keep the same command from going on; a lockf lock belongs to the one process. Its trap, that closing any
# descriptor of the file lets go, is avoided by opening the file once and reading it only where the lock was refused.
# Some file systems keep locks to the host (local_lock, FUSE) or have none: there the content tells, and the holder
# touches the file as a sign of life.


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder; UserError with host and process id of the run that has it already.

    The lock of a process that is dead, here or on another host, is taken over with one line.
    """
    path = folder / LOCK
    descriptor = _open(path)
    stopped = threading.Event()
    beat = threading.Thread(target=_beat, args=(descriptor, stopped), daemon=True)
    _HELD[path] = os.getpid()
    beat.start()
    try:
        yield
    finally:
        stopped.set()
        beat.join()
        release_all()
        os.close(descriptor)


def release_all() -> None:
    """Removes the lock files of this process, which is about to end or done."""
    for path, owner in list(_HELD.items()):
        if owner == os.getpid():  # not in a forked worker
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            _HELD.pop(path, None)


_HELD: dict[Path, int] = {}


def _open(path: Path) -> int:
    """The descriptor of the lock file, locked and with this process's name in it."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise FileError(refusal(error, "written", path)) from error
        try:
            _claim(path, descriptor)
            if _same_file(path, descriptor):  # else its last holder has removed it meanwhile
                _write(path, descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _claim(path: Path, descriptor: int) -> None:
    """Locks the file; UserError if another run has it."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except (BlockingIOError, PermissionError) as error:
        raise _in_use(path, _read(descriptor)) from error
    except OSError as error:
        logging.info("%s cannot be locked (%s): the sign of life in it has to do", path, error.strerror)
        locked = False
    holder = _read(descriptor)
    if not holder:
        return
    here = holder.get("host") == socket.gethostname()
    if here:
        alive = not locked and holder.get("started") == _started(holder.get("pid"))
    else:
        alive = _shows_life(path, holder)
    if alive:
        raise _in_use(path, holder)
    print(f"run_sample.py: taking over the lock of {_name(holder)}, which is dead", file=sys.stderr)


def _shows_life(path: Path, holder: dict) -> bool:
    """Whether the holder, on another host, touches its lock while we watch."""
    first = _touched(path)
    if abs(time.time() - first) > STALE_S:
        return False
    print(f"run_sample.py: {path} is {_name(holder)}'s: waiting {WATCH_S:.0f} s for a sign of life", file=sys.stderr)
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH_S / 10))
        if _touched(path) != first:
            return True
    return False


def _touched(path: Path) -> float:
    """When the file was last touched; listing the folder first, so that NFS asks the server anew. 0 if it is gone."""
    with contextlib.suppress(OSError):
        os.listdir(path.parent)
        return path.stat().st_mtime
    return 0.0


def _beat(descriptor: int, stopped: threading.Event) -> None:
    while not stopped.wait(BEAT_S):
        with contextlib.suppress(OSError):  # a full disk does not end the run
            os.utime(descriptor)


def _write(path: Path, descriptor: int) -> None:
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "since": time.ctime()}
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    except OSError as error:
        raise FileError(refusal(error, "written", path)) from error


def _read(descriptor: int) -> dict:
    """Who holds the lock, as far as the file tells: a killed run may leave anything in it."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _started(pid: object) -> str | None:
    """When a process of this host began, in the kernel's ticks, which tells it from a later one of the same number."""
    try:
        text = Path(f"/proc/{int(pid)}/stat").read_text()
    except (OSError, TypeError, ValueError):
        return None
    return text.rpartition(")")[2].split()[19]


def _name(holder: dict) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"


def _in_use(path: Path, holder: dict) -> UserError:
    who = _name(holder) if holder else "another process"
    return UserError(
        f"--work_dir {path.parent} is in use by {who}; wait for it or end it, or choose another --work_dir"
    )
