"""The processes of a run: its ranks, and how SIGTERM and Ctrl-C end them, with one line that says how to resume."""

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
from functools import partial

PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent dies, even by kill -9
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAUNCHED = "RIB_LAUNCHED"  # in the environment of ranks that `run_ranks` has started
END_S = 5.0  # how long ranks may take to end themselves
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


def run_ranks(n: int, command: Sequence[str], again: str = GO_ON) -> int:
    """Runs a command as n ranks of this machine, as torchrun does over several; returns its exit code.

    If a rank fails or is killed, the others are killed and the code is that rank's, or 128 + the signal. SIGTERM and
    Ctrl-C end all of them, with one line and the advice `again`.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC_")}
    env.setdefault("OMP_NUM_THREADS", max(1, cores() // n))
    env.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, LAUNCHED: 1}
    parent, signals, ranks = os.getpid(), [], []
    before = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in SIGNALS}
    try:
        for i in range(n):
            own = {key: str(value) for key, value in {**env, "RANK": i, "LOCAL_RANK": i}.items()}
            ranks.append(subprocess.Popen(command, env=own, preexec_fn=partial(_begin_rank, parent)))
        while None in (codes := [each.poll() for each in ranks]) and not (any(codes) or signals):
            time.sleep(0.05)
        if signals:
            for each in ranks:
                each.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                for each in ranks:
                    each.wait(END_S)
    finally:
        for each in ranks:
            each.kill()
            each.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        print(f"\nrun_sample.py: {_how(signals[0])}; {again}", file=sys.stderr)
        return 128 + signals[0]
    # Where one was killed, the others may have failed for that reason.
    code, failed = min(((code, i) for i, code in enumerate(codes) if code), default=(0, 0))
    if code < 0:
        name = signal.Signals(-code).name
        memory = "; out of memory?" if code == -signal.SIGKILL else ""
        print(f"run_sample.py: rank {failed} was killed ({name}{memory}); {again}", file=sys.stderr)
    elif code == 128 + signal.SIGTERM:  # sent to that rank alone
        print(f"run_sample.py: rank {failed} was {_how(signal.SIGTERM)}; {again}", file=sys.stderr)
    return 128 - code if code < 0 else code


def _begin_rank(parent: int) -> None:
    """What a rank does first: signals are its parent's business, and it dies with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    if os.getppid() != parent:  # it died before this could be asked for
        os._exit(1)


def _die_with_parent() -> None:
    """Kills this process when its parent ends, even by kill -9 (Linux)."""
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
    _die_with_parent()
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


def _how(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def _end(number: signal.Signals, line: str | None) -> None:
    from data.files import discard_unfinished

    with contextlib.suppress(OSError, ValueError):
        if line:
            print(line.format(_how(number)), file=sys.stderr, flush=True)
        sys.stdout.flush()
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError, ValueError):
            child.kill()
    discard_unfinished()
    os._exit(128 + number)
