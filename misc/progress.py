"""Progress bars: one per job, on rank 0, quiet when nobody watches a terminal."""

import sys

from tqdm import tqdm

from misc.torchutils import rank


def bar(total: int, title: str, unit: str = "image") -> tqdm:
    """A bar with ETA and rate on standard error, shown by rank 0 on a terminal only."""
    hidden = rank() != 0 or not sys.stderr.isatty()
    return tqdm(total=total, desc=title, unit=unit, dynamic_ncols=True, disable=hidden, smoothing=0.1)
