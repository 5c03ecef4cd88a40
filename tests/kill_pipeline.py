"""Kills runs with -9 at random moments, gives the same command again, and compares with a run left in peace.

python -m tests.kill_pipeline [--kills 30] [--apart 6] [--seed 0]      prints where it struck and what it found

First the whole pipeline, then each of the steps that run only by name.
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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from misc.run.outputs import WORK
from tests.helpers import MASKS, ROOT, assert_mixed, small_command

AGAIN = (  # what every run writes, or steps that are not asked whether they have run
    "args.json", "log.txt", "metrics.json", "per_image.json", "report.html", "overview.png", "thresholds.png", ".lock",
)  # fmt: skip
EARLY_S = 4.0  # from the start of the program to a kill that may strike before its first step
LATE_S = 0.3  # after the time that a step took in peace a kill may still fall: then on what comes next
RUN_S = 600  # a whole run takes less
START = "start"  # in place of a step: before the first


class Job(NamedTuple):
    """What is killed: arguments besides those of `small_command`, and a pattern of files that every run rewrites."""

    arguments: tuple[str, ...] = ()
    rewritten: str = ""

    def run(self, folder: Path) -> None:
        """Runs it in peace, with results in `folder`."""
        command = small_command(folder, *self.arguments)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S)
        assert done.returncode == 0, f"it failed with {done.returncode}: {done.stderr[-2000:]}"


TOY = "--steps toy --toy_seeds 3 --toy_train 64 --toy_test 4 --toy_epochs 2 --toy_batch_size 8 --toy_rib_iter 2"
APART = {  # toy keeps what a seed gave, ablate what an image gave at a point, strips nothing
    "toy": Job(tuple(TOY.split()), r"toy/.*\.(png|svg|txt)"),
    "ablate": Job(
        tuple("--steps ablate --ablate steps,learning_rate --ablate_limit 4".split()),
        r"ablate/[^/]*\.(png|svg|json|txt)",
    ),
    "strips": Job(tuple("--steps strips --strips_images 6".split()), "strips/.*"),
}


def results(folder: Path) -> dict[str, Path]:
    """Every file of a run that is made once, by its path below the folder."""
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in AGAIN and path.suffix not in (".checkpoint", ".tmp")
    }


def strike(job: Job, folder: Path, draw: random.Random, target: str, seconds: float) -> str | None:
    """Starts the job and kills it with its workers; the step that was running, None if it came to its end.

    The kill falls up to `seconds` after the step `target` has begun, or after the program has started.
    """
    log = folder / "log.txt"
    seen = len(log.read_text()) if log.exists() else 0
    command, silent = small_command(folder, *job.arguments), subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=silent, stderr=silent)
    while target != START and process.poll() is None and target not in _begun(log, seen):
        time.sleep(0.01)
    try:
        process.wait(draw.uniform(0.0, seconds))
        assert process.returncode == 0, f"the rerun failed with {process.returncode}: {log.read_text()[-2000:]}"
        return None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return next(reversed(_begun(log, seen)), START)


def _begun(log: Path, seen: int) -> list[str]:
    """The steps that a log tells of after its first `seen` characters."""
    return re.findall(r"step (?:\d+ )?(\w+)$", log.read_text()[seen:], re.MULTILINE) if log.exists() else []


def stamps(job: Job, folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file is made again; of the files that are finished and made once."""
    files = results(folder)
    once = [name for name in files if _last(name) in files and not re.fullmatch(job.rewritten, name)]
    return {name: (files[name].stat().st_ino, files[name].stat().st_mtime_ns) for name in once}


def _last(name: str) -> str:
    """The file that is written last of those that belong together: if a kill falls before it, all are made again."""
    folder, _, file = name.rpartition("/")
    folder = "sem_seg" if folder == "edge" else folder.removesuffix("_before_crf")
    if folder == "toy":
        file = file.replace(".pth", ".json")
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


def compare(folder: Path, wanted: Path) -> None:
    """AssertionError unless both hold the same bytes and tell the same in metrics.json."""
    got, want = results(folder), results(wanted)
    assert got.keys() == want.keys(), f"other files: {sorted(got.keys() ^ want.keys())}"
    different = [name for name in want if got[name].read_bytes() != want[name].read_bytes()]
    assert not different, f"other bytes: {different}"
    assert measured(folder) == measured(wanted)
    assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".checkpoint")]


def kill(job: Job, scratch: Path, n_kills: int, seed: int, masks: Sequence[str] = ()) -> Counter:
    """Strikes `n_kills` times, over as many runs as that takes, in folders below `scratch`; by step, how often.

    masks: kinds of masks that must hold background and foreground, so that comparing them says something.
    """
    draw, where, wanted = random.Random(seed), Counter(), scratch / "in_peace"
    deck: list[str] = []  # every step's turn comes, in random order
    job.run(wanted)
    assert_mixed(wanted, masks)
    once = stamps(job, wanted).keys()
    lines = re.findall(r"step (?:\d+ )?(\w+) took ([\d.]+) s$", (wanted / "log.txt").read_text(), re.MULTILINE)
    took = {step: float(seconds) for step, seconds in lines}
    targets = [*took, *[START] * (1 + len(took) // 10)]
    runs = kept = 0
    while where.total() < n_kills:
        folder = scratch / f"struck_{runs}"
        finished: dict[str, tuple[int, int]] = {}
        struck: str | None = START
        while struck:
            if where.total() < n_kills and (not once or finished.keys() < once):
                deck = deck or draw.sample(targets, len(targets))
                target = deck.pop()
                struck = strike(job, folder, draw, target, EARLY_S if target == START else took[target] + LATE_S)
            else:
                job.run(folder)
                struck = None
            now = stamps(job, folder) if folder.exists() else {}
            twice = [name for name, stamp in finished.items() if now.get(name) != stamp]
            assert not twice, f"made twice: {twice}"
            finished = now
            if struck:
                where[struck] += 1
                print(f"kill {where.total():>3} in {struck:<16} {len(now):>3} files finished", flush=True)
        compare(folder, wanted)
        runs, kept = runs + 1, kept + len(results(folder))
    print(f"{where.total()} kills over {runs} runs; all {kept} files equal a run in peace, none made twice")
    print(f"struck in {', '.join(f'{step} {n}' for step, n in where.most_common())}")
    return where


def kill_all(n_kills: int, n_apart: int, seed: int) -> Counter:
    """Strikes the pipeline `n_kills` times and each of the steps apart `n_apart` times; by step, how often."""
    with tempfile.TemporaryDirectory() as scratch:
        where = kill(Job(), Path(scratch, "pipeline"), n_kills, seed, MASKS)
        learnt = ("--cam_weights_name", str(Path(scratch, "pipeline", "in_peace", "sess", "res50_cam.pth")))
        for name, job in APART.items():
            print(f"{name}:")
            where += kill(job._replace(arguments=job.arguments + learnt), Path(scratch, name), n_apart, seed)
    return where


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--apart", type=int, default=6, help="kills of each of the steps that run only by name")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kill_all(given.kills, given.apart, given.seed)
