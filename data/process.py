"""The processes of a run: its ranks, and their end by SIGTERM or Ctrl-C with one line that says how to resume."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent dies, even by kill -9
SIGNALS = (signal.SIGTERM, signal.SIGINT)
GO_ON = "to resume, run the same command again"


def rank() -> int:
    """Rank of this process among those of its run, 0 when there is one."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes that share the work of this run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def cores() -> int:
    """Number of processor cores that this process may use, of which a cluster's scheduler may hand out only some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_ranks(n: int, command: Sequence[str]) -> int:
    """Runs a command as n ranks of this machine, as torchrun does, and returns the exit code of the first that failed.

    One that fails or is killed takes the others with it; signals go to all of them.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    loopback = "lo" if sys.platform == "linux" else "lo0"
    env = {"OMP_NUM_THREADS": max(1, cores() // n), "GLOO_SOCKET_IFNAME": loopback, **os.environ}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
    ranks: list[subprocess.Popen] = []
    signals = []

    def forward(number: int, frame: object) -> None:
        signals.append(number)
        for each in ranks:
            each.send_signal(number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        for i in range(n):
            own = {key: str(value) for key, value in {**env, "RANK": i, "LOCAL_RANK": i}.items()}
            ranks.append(subprocess.Popen(command, env=own))
        while None in (codes := [each.poll() for each in ranks]) and (signals or not any(codes)):
            time.sleep(0.05)
    finally:
        for each in ranks:
            each.kill()
            each.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    failed = next((i for i, code in enumerate(codes) if code), None)
    if failed is None or codes[failed] > 0:
        return 0 if failed is None else codes[failed]
    name = signal.Signals(-codes[failed]).name
    print(f"run_sample.py: rank {failed} was killed ({name}; out of memory?); {GO_ON}", file=sys.stderr)
    return 128 - codes[failed]


def die_with_parent() -> None:
    """Has the system kill this process when its parent ends, however that may be (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel, which must survive an interrupt."""
    return "ipykernel" in sys.modules


@contextlib.contextmanager
def on_signals(first: bool, again: str = GO_ON, program: str = "run_sample.py") -> Iterator[None]:
    """While it lasts, SIGTERM and SIGINT end this process with exit code 143 or 130; not in a Jupyter kernel.

    first: print one line of `program`, with the advice `again`. Every file is complete or absent at any moment, so
    nothing needs unwinding: a thread, woken by Python's own handler, ends the process even while the main thread waits
    for other ranks or computes outside Python.
    """
    if threading.current_thread() is not threading.main_thread() or in_notebook():
        yield
        return
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


def in_worker(worker_id: int = 0) -> None:
    """What every worker process does first: it dies with its parent, and Ctrl-C is its parent's business.

    For `worker_init_fn` of a DataLoader, under any start method.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it died before this could be asked for
        os._exit(1)


def end_process(code: int) -> None:
    """Ends this process for good, without what the interpreter and C++ threads do while they shut down."""
    import logging

    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _nothing(number: int, frame: object) -> None:
    """A Python handler must exist for the wakeup to work; the thread does the work."""


def _wait(reader: socket.socket, owner: int, line: str | None) -> None:
    while data := reader.recv(1):
        if data[0] in SIGNALS and os.getpid() == owner:
            _end(signal.Signals(data[0]), line)


def _end(number: signal.Signals, line: str | None) -> None:
    from data.files import discard_unfinished

    with contextlib.suppress(OSError, ValueError):
        if line:
            how = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
            print(line.format(how), file=sys.stderr, flush=True)
        sys.stdout.flush()
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError, ValueError):
            child.kill()
    discard_unfinished()
    os._exit(128 + number)
