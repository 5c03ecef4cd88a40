"""Long work: a function over many items in worker processes, with one progress bar on rank 0."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.process import in_worker, rank

IMAGES_PER_CALL = 16
LINE_S = 60.0  # between two lines where there is no terminal
_END = object()


def bar(total: int, title: str, unit: str = "image") -> tqdm:
    """A bar with ETA and rate on standard error, shown by rank 0; without a terminal a line every LINE_S seconds."""
    kind, often = (tqdm, 0.1) if sys.stderr.isatty() else (_Lines, LINE_S)
    return kind(
        total=total, desc=title, unit=unit, dynamic_ncols=True, disable=rank() != 0, smoothing=0.1, mininterval=often,
        maxinterval=max(10.0, often), leave=kind is tqdm,
    )  # fmt: skip


class _Lines(tqdm):
    """A bar that is a line of the log: images done, rate, what is left, status."""

    def display(self, *_: object, **__: object) -> None:
        """Called every `mininterval` seconds, and at the beginning and the end."""
        done = self.format_dict
        if not self.total or not self.n or self.n == self.total or done["elapsed"] < self.mininterval:
            return
        rate = done["rate"] or (self.n - self.initial) / done["elapsed"]
        left = self.format_interval((self.total - self.n) / rate)
        line = f"{self.desc}: {self.n:,} of {self.total:,} {self.unit}{'es' if self.unit[-2:] == 'ch' else 's'}"
        line += f", {rate:.3g} a second, {left} left" + (f", {self.postfix}" if self.postfix else "")
        if logging.getLogger().hasHandlers():
            logging.info(line)
        else:
            print(line, file=sys.stderr)


def progress_map(
    function: Callable[[Any], Any], items: Iterable, title: str, num_workers: int, total: int | None = None,
    grouped: bool = False, status: Callable[[], str] | None = None,
) -> Iterator:  # fmt: skip
    """function(item) for every item, in order, by `num_workers` processes (0: in this one), under one bar.

    items: a few are drawn ahead of need, so they may be a generator; then give their number as `total`. grouped: the
    function takes lists of IMAGES_PER_CALL items. status: text behind the bar, asked for once a result has been used.
    """
    if grouped:
        items = list(items)
        total, items = len(items), [items[i : i + IMAGES_PER_CALL] for i in range(0, len(items), IMAGES_PER_CALL)]
        num_workers = num_workers if len(items) > 2 else 0  # starting them would take longer
    sizes = map(len, items) if grouped else None
    with bar(len(items) if total is None else total, title) as progress:
        for result in map_items(function, items, num_workers):
            yield result
            if status is not None and not progress.disable:
                progress.set_postfix_str(status(), refresh=False)
            progress.update(next(sizes) if sizes else 1)


def map_items(function: Callable[[Any], Any], items: Iterable, num_workers: int) -> Iterator:
    """function(item) for every item, in order, by `num_workers` processes that are started once; without a bar."""
    calls = _Calls(function)
    yield from DataLoader(
        calls, batch_size=None, sampler=items, num_workers=num_workers, collate_fn=_same, worker_init_fn=in_worker
    )


class _Calls(Dataset):
    """A loader hands each item of its sampler to a worker as the "index" of this dataset."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        return self.function(item)


def _same(value: Any) -> Any:
    return value


class Stopwatch:
    """Seconds spent waiting for iterators, as those of data loaders, once each has given its first item."""

    def __init__(self):
        self.begin = time.perf_counter()
        self.waited = 0.0

    def iterate(self, items: Iterable) -> Iterator:
        """The items, with the time that each takes to arrive counted as waiting, but for the first."""
        iterator, started = iter(items), False
        while True:
            begin = time.perf_counter()
            item = next(iterator, _END)
            self.waited += time.perf_counter() - begin
            if item is _END:
                return
            if not started:  # what a loader takes to start is no lack of speed
                self.begin, self.waited, started = time.perf_counter(), 0.0, True
            yield item

    def fraction(self) -> float:
        """Waiting as a fraction of all time, 0 to 1."""
        return self.waited / max(1e-9, time.perf_counter() - self.begin)
