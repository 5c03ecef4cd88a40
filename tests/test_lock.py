"""One run at a time on a work folder; a dead one's lock is taken over."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data.errors import UserError
from misc.run import lock
from misc.run.runner import main
from run_sample import STEPS, add_arguments

ROOT = Path(__file__).parent.parent
HOLD = """
import os, sys, time
from pathlib import Path
from misc.run import lock
with lock.held(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(60)  # a loader worker that outlives a killed run
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        os.killpg(process.pid, signal.SIGKILL)


def take(folder):
    """Takes the lock and gives it back."""
    with lock.held(folder):
        return json.loads((folder / lock.LOCK).read_text())


def left_by(folder, **holder):
    text = {"host": socket.gethostname(), "pid": os.getpid(), "started": None, "since": "then", **holder}
    (folder / lock.LOCK).write_text(json.dumps(text))


def test_the_lock_says_who_and_is_gone_afterwards(tmp_path):
    said = take(tmp_path)
    assert (said["host"], said["pid"]) == (socket.gethostname(), os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_stops_and_touches_nothing(tmp_path, holder, capsys):
    before = sorted(tmp_path.iterdir())
    assert main(STEPS, add_arguments, ["--work_dir", str(tmp_path), "--steps", "1"]) == 2
    said = capsys.readouterr().err
    assert f"process {holder.pid} on {socket.gethostname()}" in said and said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before == [tmp_path / lock.LOCK]


@pytest.mark.parametrize("harmless", [["--dry_run"], ["--list_steps"], ["--check_data", "--limit", "1"]])
def test_what_only_looks_takes_no_lock(tmp_path, holder, harmless):
    small = ["--work_dir", str(tmp_path), "--num_workers", "0", "--shapes_size", "48"]
    assert main(STEPS, add_arguments, [*small, *harmless]) == 0


def test_a_killed_run_leaves_no_lock_though_its_workers_live_on(tmp_path, holder):
    with pytest.raises(UserError, match="in use"):
        take(tmp_path)
    holder.kill()
    holder.wait()
    assert take(tmp_path)["pid"] == os.getpid()


@pytest.mark.slow
def test_two_runs_that_start_at_once_do_not_both_get_it(tmp_path):
    command = [sys.executable, "-c", HOLD.replace("sleep(60)", "sleep(8)"), str(tmp_path)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        for _ in range(3)
    ]
    lines = [process.stdout.readline() for process in processes]
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert sorted(lines) == [b"", b"", b"held\n"]


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b"{", b'{"host": 3, "pid": "x"}'])
def test_anything_may_be_in_a_lock_file_that_nobody_holds(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lock, "WATCH_S", 0.2)
    (tmp_path / lock.LOCK).write_bytes(content)
    assert take(tmp_path)["pid"] == os.getpid()


@pytest.mark.slow
def test_another_host_without_a_sign_of_life_is_taken_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "WATCH_S", 0.5)
    left_by(tmp_path, host="elsewhere", pid=7)
    take(tmp_path)
    said = capsys.readouterr().err
    assert "for a sign of life" in said and "taking over the lock of process 7 on elsewhere" in said
    left_by(tmp_path, host="elsewhere", pid=7)
    os.utime(tmp_path / lock.LOCK, (time.time() - 2 * lock.STALE_S,) * 2)
    take(tmp_path)
    assert "for a sign of life" not in capsys.readouterr().err  # too old to be worth watching


@pytest.mark.slow
def test_another_host_that_lives_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WATCH_S", 20.0)
    left_by(tmp_path, host="elsewhere", pid=7)
    descriptor = os.open(tmp_path / lock.LOCK, os.O_RDWR)
    stop = threading.Event()

    def beat():
        while not stop.wait(0.3):
            os.utime(descriptor)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(UserError, match=r"in use by process 7 on elsewhere \(since then\)"):
        take(tmp_path)
    stop.set()
    thread.join()
    os.close(descriptor)
    assert (tmp_path / lock.LOCK).exists()


@pytest.mark.slow
def test_the_holder_shows_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    with lock.held(tmp_path):
        os.utime(tmp_path / lock.LOCK, (1.0, 1.0))
        end = time.monotonic() + 20
        while (tmp_path / lock.LOCK).stat().st_mtime == 1.0 and time.monotonic() < end:
            time.sleep(0.02)
        assert (tmp_path / lock.LOCK).stat().st_mtime > 1.0


@pytest.mark.slow
def test_a_file_system_without_locks(tmp_path, monkeypatch, holder):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with pytest.raises(UserError, match=f"process {holder.pid}"):
        take(tmp_path)
    left_by(tmp_path, pid=os.getpid(), started="1")  # another process has had this number
    assert take(tmp_path)["pid"] == os.getpid()
    left_by(tmp_path, pid=2**22 + 1, started="1")  # there is none
    assert take(tmp_path)["pid"] == os.getpid()
