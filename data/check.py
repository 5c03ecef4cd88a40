"""Reads every image, label and mask once, to know the bad ones before the work begins."""

from collections.abc import Sequence
from functools import partial

from data.base import Dataset
from misc.errors import UserError
from misc.pool import chunks, map_items
from misc.progress import bar

IMAGES_PER_CALL = 16


def bad_images(dataset: Dataset, names: Sequence[str], num_workers: int) -> dict[str, str]:
    """name -> what is wrong, for the images that cannot be used: the image, its label or its mask cannot be read."""
    bad = {}
    parts = chunks(names, IMAGES_PER_CALL)
    with bar(len(names), "check images") as progress:
        for part, found in zip(parts, map_items(partial(_check, dataset), parts, num_workers), strict=True):
            bad |= found
            progress.set_postfix_str(f"{len(bad)} bad", refresh=False)
            progress.update(len(part))
    return bad


def _check(dataset: Dataset, names: Sequence[str]) -> dict[str, str]:
    bad = {}
    for name in names:
        try:
            dataset.image(name)
            dataset.label(name)
            dataset.mask(name)
        except UserError as error:
            bad[name] = str(error)
    return bad
