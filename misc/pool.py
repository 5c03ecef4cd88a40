"""A function over many items in worker processes, results in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset


def map_items(function: Callable[[Any], Any], items: Sequence, num_workers: int) -> Iterator:
    """function(item) for every item, in order, by `num_workers` processes (0: in this one).

    The loader of torch does the work: it hands out, reads ahead, passes errors on and ends its workers with us.
    """
    yield from DataLoader(_Calls(function, items), batch_size=None, num_workers=num_workers, collate_fn=_same)


def chunks(items: Sequence, size: int) -> list[Sequence]:
    """The items in runs of `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]


class _Calls(Dataset):
    def __init__(self, function: Callable[[Any], Any], items: Sequence):
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.function(self.items[i])


def _same(value: Any) -> Any:
    return value
