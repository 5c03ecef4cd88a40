"""Progress bars: one per job, on rank 0, quiet when nobody watches a terminal."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from misc.torchutils import rank


def bar(total: int, title: str, unit: str = "image") -> tqdm:
    """A bar with ETA and rate on standard error, shown by rank 0 on a terminal only."""
    hidden = rank() != 0 or not sys.stderr.isatty()
    return tqdm(total=total, desc=title, unit=unit, dynamic_ncols=True, disable=hidden, smoothing=0.1)


class Stopwatch:
    """Seconds spent waiting for iterators, as those of data loaders, against all seconds since it was made."""

    def __init__(self):
        self.begin = time.perf_counter()
        self.waited = 0.0

    def iterate(self, items: Iterable) -> Iterator:
        """The items, with the time that each takes to arrive counted as waiting."""
        iterator = iter(items)
        while True:
            begin = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - begin
            yield item

    def share(self) -> float:
        """Waiting as a share of all time, 0 to 1."""
        return self.waited / max(1e-9, time.perf_counter() - self.begin)
