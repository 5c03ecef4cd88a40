"""Labels against masks: whether they belong together, and what it looks like where they do not."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from data.base import Dataset, shortened
from data.errors import DataError, UnknownValue, UserError
from data.images import IGNORE, read_mask

BORDER = IGNORE + 1  # an entry of `contents`
TOO_MANY = 0.2  # fraction of images that may disagree
UNEXPLAINED = 0.05  # fraction of images that an explanation may leave aside


def contents(mask: np.ndarray) -> np.ndarray:
    """bool [257]: the values that occur in a mask uint8 [H, W], and whether objects cover 90% of its border."""
    found = np.bincount(mask.reshape(-1), minlength=BORDER + 1) > 0
    border = np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    found[BORDER] = ((border > 0) & (border < IGNORE)).mean() > 0.9
    return found


def black_and_white(paths: Iterable[Path]) -> bool:
    """Whether masks hold nothing but 0 and 255, and both of them. One that cannot be read does not count."""
    black = white = False
    for path in paths:
        try:
            mask = read_mask(path)
        except DataError:  # named where it is used
            continue
        if ((mask != 0) & (mask != IGNORE)).any():
            return False
        black, white = black or not mask.all(), white or bool(mask.any())
    return black and white


def read_contents(dataset: Dataset, name: str) -> tuple[np.ndarray | None, str]:
    """The `contents` of an image's mask, None where there is no mask that can be read, and what is wrong with it."""
    try:
        mask, problem = dataset.mask(name), ""
    except UserError as error:
        mask, problem = error.mask if isinstance(error, UnknownValue) else None, str(error)
    return None if mask is None else contents(mask), problem


def disagreement(
    names: Sequence[str], labels: Sequence[np.ndarray], values: Sequence[np.ndarray], classes: Sequence[str]
) -> tuple[list[str], bool]:
    """What does not fit, a line each, and whether it is too much to go on.

    labels: [N, C], above 0 where the class occurs. values: bool [N, 257], the `contents` of the masks.
    """
    if not len(names):
        return [], False
    labels, values = np.array(labels) > 0, np.array(values)
    shown = values[:, 1 : len(classes) + 1]
    wrong = _wrong(labels, shown, values[:, IGNORE]) | values[:, len(classes) + 1 : IGNORE].any(1)
    objects = shown.any(1)
    if not wrong.any():
        texts = [] if objects.any() else [f"no object in any of {len(names)} masks: no score"]
        if len(classes) == 1 and objects.sum() > 2 and values[objects, BORDER].mean() > 0.5:
            texts = [f"most masks are {classes[0]} all along the border; if they are inverse, swap it and background"]
        return texts, False
    i = int(wrong.argmax())
    words = [shortened([classes[c] for c in np.flatnonzero(row)]) or "no class" for row in (labels[i], shown[i])]
    held = shortened([str(value) for value in np.flatnonzero(values[i, :BORDER])], 10)
    text = (
        f"labels and masks disagree in {wrong.sum()} of {len(names)} images ({names[i]}: label {words[0]}, mask "
        f"{words[1]}, values {held}): {_explained(labels, values, classes)}"
    )
    # Where other masks hold classes, one with nothing but ignored pixels may be of a crowd, as in COCO.
    crowds = ~objects & values[:, IGNORE] & objects.any()
    return [text], bool((wrong & ~crowds).mean() > TOO_MANY)


def _wrong(labels: np.ndarray, shown: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """bool [N]: where label and mask differ. A class may hide in ignored pixels, as VOC's difficult objects do."""
    hidden = ignored & shown.any(1)
    return (shown & ~labels).any(1) | ((labels & ~shown).any(1) & ~hidden)


def _explained(labels: np.ndarray, values: np.ndarray, classes: Sequence[str]) -> str:
    """What mistake it looks like, and how to mend it."""
    n, shown, ignored = len(classes), values[:, 1 : len(classes) + 1], values[:, IGNORE]
    unknown = values[:, n + 1 : IGNORE].any(1)
    values_of = ", ".join(f"{c} for {name}" for c, name in enumerate(("background", *classes[:2])))
    wanted = f"store {values_of}{' and so on' * (n > 2)}"
    if not (shown.any() or unknown.any()):
        if ignored.any():
            return f"the masks hold nothing but 0 and {IGNORE}, which is ignored; {wanted}"
        return "the masks hold no object; are they those of these images?"
    good = min(UNEXPLAINED, (_wrong(labels, shown, ignored) | unknown).mean() / 4)
    background, order = _stored(labels, values[:, :IGNORE])
    others = np.delete(values[:, :IGNORE], [background, *order], 1).any(1)
    if (_wrong(labels, values[:, order], ignored) | others).mean() <= good:
        if background == 0 and order.max() <= n:
            listed = shortened([classes[c] for c in np.argsort(order)], 20)
            return f"the classes are in another order; list them in classes.txt as the masks do: {listed}"
        pairs = zip((background, *order), ("background", *classes), strict=True)
        return f"the masks seem to hold {shortened([f'{v} for {name}' for v, name in pairs], 20)}; {wanted}"
    if n > 1 and (_wrong(labels[:, 1:], shown[:, :-1], ignored) | unknown).mean() <= good:
        return "the masks count the classes from 0; add 1"
    if unknown.mean() > TOO_MANY:
        return f"{wanted}; other values come from JPEG, smooth resizing, counted objects or classes that are not listed"
    if n > 1 and not shown[:, 1:].any():
        return f"the masks do not tell the classes apart; {wanted}"
    absent, unnamed = (labels & ~shown).any(1).sum(), (shown & ~labels).any(1).sum()
    return (
        f"the mask lacks a class of the label in {absent} and has one that is not in the label in {unnamed}; correct "
        "the labels or the masks"
    )


def _stored(labels: np.ndarray, values: np.ndarray) -> tuple[int, np.ndarray]:
    """The value of the background and of every class [C], by which values bool [N, 255] occur with which labels."""
    background = int(values.mean(0).argmax())
    named, held = labels.astype(np.float32), values.astype(np.float32)
    misses = named.T @ (1 - held) + (1 - named).T @ held  # (class, value): images where one is without the other
    misses -= 0.5 * np.eye(*misses.shape, 1)  # where nothing tells, a class has the value that it should have
    misses[:, background] = len(labels) + 1
    return background, linear_sum_assignment(misses)[1]
