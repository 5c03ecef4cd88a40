"""Kills the pipeline with -9 at random moments, gives the same command again, and compares with a run left in peace.

python -m tests.kill_pipeline [--kills 30] [--seed 0]          prints where it struck and what it found
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from misc.workdir import WORK
from run_sample import STEPS
from tests.helpers import ROOT, small_command

AGAIN = (  # what every run writes, or steps that are not asked whether they have run
    "args.json", "log.txt", "metrics.json", "per_image.json", "report.html", "overview.png", "thresholds.png", ".lock",
)  # fmt: skip
NAMES = [step.name for step in STEPS if step.number is not None]
EARLY_S = 4.0  # from the start of the program to a kill that may strike before its first step
LONGEST_S = 1.0  # from the begin of a step to the kill; the steps take about a second or two
RUN_S = 600


def results(folder: Path) -> dict[str, Path]:
    """Every file of a run that is made once, by its path below the folder."""
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in AGAIN and path.suffix not in (".checkpoint", ".tmp")
    }


def strike(folder: Path, draw: random.Random, target: str | None) -> str | None:
    """Starts the pipeline and kills it with its workers; the step that was running, None if it came to its end.

    target: the step in which or soon after which the kill falls, None: while the program starts.
    """
    log = folder / "log.txt"
    seen = len(log.read_text()) if log.exists() else 0
    process = subprocess.Popen(
        small_command(folder), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if target is None:
        wait = draw.uniform(0.2, EARLY_S)
    else:
        while process.poll() is None and target not in _begun(log, seen):
            time.sleep(0.01)
        wait = draw.uniform(0.0, LONGEST_S)
    try:
        process.wait(wait)
        assert process.returncode == 0, f"the rerun failed with {process.returncode}: {log.read_text()[-2000:]}"
        return None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return next(reversed(_begun(log, seen)), "start")


def _begun(log: Path, seen: int) -> list[str]:
    """The steps that a log tells of after its first `seen` characters."""
    return re.findall(r"step (?:\d+ )?(\w+)$", log.read_text()[seen:], re.MULTILINE) if log.exists() else []


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file is made again; of the files that are finished."""
    there = results(folder)
    return {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in there.items() if _last(name) in there}


def _last(name: str) -> str:
    """The file that is written last of those that belong together: if a kill falls before it, all are made again."""
    folder, _, file = name.rpartition("/")
    folder = "sem_seg" if folder == "edge" else folder.removesuffix("_before_crf")
    return f"{folder}/{file.replace('.made_by.json', '.pth') if folder == 'sess' else file}"


def measured(folder: Path) -> dict:
    """metrics.json less what tells of runs rather than results; of train_seg the losses of every network apart."""
    values = json.loads((folder / "metrics.json").read_text())
    del values["schema"]
    for entry in values.values():
        for key in WORK if "of" in entry else ("seconds",):
            entry.pop(key, None)
    losses = values.pop("train_seg", {}).get("loss", {})
    return {**values, **{f"train_seg on {labels}": loss for labels, loss in losses.items()}}


def compare(folder: Path, wanted: Path) -> set[str]:
    """AssertionError unless both hold the same bytes; the trainings whose entry in metrics.json a kill has cost."""
    got, want = results(folder), results(wanted)
    assert got.keys() == want.keys(), f"other files: {sorted(got.keys() ^ want.keys())}"
    different = [name for name in want if got[name].read_bytes() != want[name].read_bytes()]
    assert not different, f"other bytes: {different}"
    told, all_told = measured(folder), measured(wanted)
    lost = {step for step in all_told.keys() - told.keys() if step.startswith("train_")}
    assert told == {step: entry for step, entry in all_told.items() if step not in lost}
    assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".checkpoint") or path.name == ".lock"]
    return lost


def kill(n_kills: int, seed: int, say=print) -> Counter:
    """Strikes `n_kills` times, over as many pipelines as that takes; by step, how often."""
    draw = random.Random(seed)
    where: Counter = Counter()
    deck: list[str | None] = []  # every step's turn comes, in random order
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch, "in_peace")
        subprocess.run(small_command(wanted), cwd=ROOT, check=True, capture_output=True, timeout=RUN_S)
        pipelines = kept = lost = 0
        while where.total() < n_kills:
            folder = Path(scratch, f"struck_{pipelines}")
            finished: dict[str, tuple[int, int]] = {}
            struck = True
            while struck:
                if where.total() < n_kills and finished.keys() < results(wanted).keys():
                    deck = deck or draw.sample([*NAMES, None, None], len(NAMES) + 2)
                    struck = strike(folder, draw, deck.pop())
                else:
                    subprocess.run(small_command(folder), cwd=ROOT, check=True, capture_output=True, timeout=RUN_S)
                    struck = None
                now = stamps(folder) if folder.exists() else {}
                twice = [name for name, stamp in finished.items() if now.get(name) != stamp]
                assert not twice, f"made twice: {twice}"
                finished = now
                if struck:
                    where[struck] += 1
                    say(f"kill {where.total():>3} in {struck:<16} {len(now):>3} files finished", flush=True)
            lost += len(compare(folder, wanted))
            pipelines, kept = pipelines + 1, kept + len(finished)
    say(f"{where.total()} kills over {pipelines} pipelines; all {kept} files equal a run in peace, none made twice")
    say(f"losses of {lost} trainings are not in metrics.json: killed between the weights and the entry")
    say(f"struck in {', '.join(f'{step} {n}' for step, n in where.most_common())}")
    return where


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kill(given.kills, given.seed)
