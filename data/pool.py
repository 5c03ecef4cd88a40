"""A function over many items in worker processes, results in order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from data.process import in_worker


def map_items(function: Callable[[Any], Any], items: Iterable, num_workers: int) -> Iterator:
    """function(item) for every item, in order, by `num_workers` processes (0: in this one).

    Items are drawn a few ahead of need, so they may be a generator; the workers are started once for all of them.
    """
    calls = _Calls(function)
    yield from DataLoader(
        calls, batch_size=None, sampler=items, num_workers=num_workers, collate_fn=_same, worker_init_fn=in_worker
    )


def chunks(items: Sequence, size: int) -> list[Sequence]:
    """The items in runs of `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]


class _Calls(Dataset):
    """A loader hands each item of its sampler to a worker as the "index" of this dataset."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        return self.function(item)


def _same(value: Any) -> Any:
    return value
