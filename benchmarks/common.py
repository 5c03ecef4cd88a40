"""How everything is measured: warm-up, median and interquartile range, and what it ran on."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from data.files import save_json, write_atomic
from misc.crf import hard_labels
from misc.run.provenance import describe_call


@dataclass
class Row:
    """One measured figure: seconds of `what`, its ratio to a reference, how far the results agree."""

    what: str
    median: float
    iqr: float
    runs: int
    against: str = ""
    ratio: float | None = None
    agreement: str = ""


def measure(function: Callable[[], object], runs: int = 5, warm_up: int = 1) -> tuple[np.ndarray, object]:
    """Seconds of every run after `warm_up` unmeasured ones, and the last result."""
    return measure_together([function], runs, warm_up)[0]


def measure_together(
    functions: Sequence[Callable[[], object]], runs: int = 7, warm_up: int = 1
) -> list[tuple[np.ndarray, object]]:
    """As `measure` for each of the functions, taking turns: what else the machine does slows all of them alike."""
    results: list = [None] * len(functions)
    seconds = np.zeros((len(functions), warm_up + runs))
    for run in range(warm_up + runs):
        for i, function in enumerate(functions):
            begin = time.perf_counter()
            results[i] = function()
            seconds[i, run] = time.perf_counter() - begin
    return list(zip(seconds[:, warm_up:], results, strict=True))


PHOTOGRAPHS = ("chelsea", "coffee", "rocket", "astronaut", "motorcycle")


def photograph(name: str, side: int = 500) -> np.ndarray:
    """uint8 [H, W, 3]: one of the PHOTOGRAPHS, which come with scikit-image; its longer side is `side` pixels long."""
    from skimage import data

    image = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    height, width = image.shape[:2]
    scale = side / max(height, width)
    return cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def labelings_of(image: np.ndarray, n_labels: int, seed: int = 0) -> list[np.ndarray]:
    """int64 [H, W], twice: the two labelings of an IRN label for an image, from made-up CAMs of its classes."""
    height, width = image.shape[:2]
    coarse = np.random.default_rng(seed).random((6, 8, n_labels - 1)).astype(np.float32)
    cams = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, -1)
    cams = np.clip(cams.transpose(2, 0, 1), 0, 1) ** 2
    return [hard_labels(cams, threshold) for threshold in (0.35, 0.17)]


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: smooth regions with noise."""
    coarse = rng.integers(0, 255, (12, 16, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 8, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def row(
    what: str, seconds: np.ndarray, against: str = "", reference: np.ndarray | None = None, agreement: str = ""
) -> Row:
    """A row from measured seconds; reference: those of the form it is compared with."""
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    ratio = None if reference is None else float(np.median(reference) / middle)
    return Row(what, float(middle), float(high - low), len(seconds), against, ratio, agreement)


def environment() -> dict:
    """Versions and hardware."""
    call = describe_call(argparse.Namespace(seed=None), {}, ())
    values = {**call["hardware"], **call["versions"]}
    return {name: value for name, value in values.items() if value is not None and name != "threads"}


class Budget:
    """Whether there is time for one more row. image: seconds of one image by precision, as far as measured."""

    def __init__(self, seconds: float):
        self.end = time.perf_counter() + seconds
        self.skipped: list[str] = []
        self.image: dict[str, float] = {}

    def allows(self, what: str, least: float = 0.0) -> bool:
        """Asked before each row that takes `least` seconds or more; where it is refused, `skipped` keeps its name."""
        if time.perf_counter() + least > self.end:
            self.skipped.append(what)
        return what not in self.skipped


def write(rows: list[Row], folder: Path, name: str, skipped: Sequence[str] = ()) -> str:
    """Writes NAME.json and NAME.md below `folder` and returns the table; skipped: rows that there was no time for."""
    machine = environment()
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; " + ", ".join(f"{k} {v}" for k, v in list(machine.items())[2:]),
        "",
        "| what | median s | IQR | runs | times faster than | agreement |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        ratio = "" if r.ratio is None else f"{r.ratio:.2f}x {r.against}"
        lines.append(f"| {r.what} | {r.median:.4g} | {r.iqr:.2g} | {r.runs} | {ratio} | {r.agreement} |")
    if skipped:
        lines += ["", f"Not measured, for lack of time: {'; '.join(skipped)}."]
    text = "\n".join(lines) + "\n"
    content = {"environment": machine, "rows": [asdict(r) for r in rows], "skipped": list(skipped)}
    save_json(folder / f"{name}.json", content)
    write_atomic(folder / f"{name}.md", lambda file: file.write(text.encode()))
    return text
