"""SIGTERM and Ctrl-C end a run at once, whatever it is doing, with one line that says how to go on."""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from functools import lru_cache

PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent dies, be it by -9
SIGNALS = (signal.SIGTERM, signal.SIGINT)
GO_ON = "the same command goes on where it stopped"


@contextlib.contextmanager
def on_signals(first: bool, again: str = GO_ON, program: str = "run_sample.py") -> Iterator[None]:
    """While it lasts, SIGTERM and SIGINT end this process with exit code 143 or 130.

    first: says so in one line of `program`; `again` is what that line advises. Every file is whole or not there at any
    moment, so nothing has to be unwound: a thread that the kernel's own handler wakes ends the process, also while the
    main thread waits for other ranks or computes outside Python.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch_forks()
    line = f"\n{program}: {{}}; {again}" if first else None
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, _nothing) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_wait, args=(reader, os.getpid(), line), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.shutdown(socket.SHUT_WR)  # ends the thread; closing would not: forked workers hold it open too
        thread.join()
        writer.close()
        reader.close()


@lru_cache(maxsize=1)
def _watch_forks() -> None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    parent: list[int] = []
    os.register_at_fork(
        before=lambda: parent.append(os.getpid()),
        after_in_parent=parent.pop,
        after_in_child=lambda: _in_child(library, parent.pop()),
    )


def _in_child(library: ctypes.CDLL | None, parent: int) -> None:
    """A worker process has no such thread: it ends with its parent, and a signal of its own must not reach that."""
    if signal.getsignal(signal.SIGTERM) is _nothing:
        if library is not None:
            library.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != parent:  # it was gone before it could be asked for
                os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _nothing(number: int, frame: object) -> None:
    """A handler of Python's must be there for its wakeup to be; the thread does the work."""


def _wait(reader: socket.socket, owner: int, line: str | None) -> None:
    while data := reader.recv(1):
        if data[0] in SIGNALS and os.getpid() == owner:
            _end(signal.Signals(data[0]), line)


def _end(number: signal.Signals, line: str | None) -> None:
    from multiprocessing import active_children

    from misc.files import discard_unfinished
    from misc.lock import release_all

    with contextlib.suppress(OSError, ValueError):
        if line:
            how = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
            print(line.format(how), file=sys.stderr, flush=True)
        sys.stdout.flush()
    for child in active_children():
        with contextlib.suppress(OSError, ValueError):
            child.kill()
    discard_unfinished()
    release_all()
    os._exit(128 + number)
