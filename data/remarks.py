"""What must be known of a result before it is believed: in `--check_data`, in the log of its step, in the report."""

import argparse
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np

from data.agreement import TOO_MANY, disagreement, read_contents
from data.base import Dataset, alike, shortened
from data.errors import DataError, UserError
from data.process import world_size
from data.progress import progress_map

SEEDS_AND_MASKS = ("eval_cam", "eval_rib_cam", "eval_sem_seg", "eval_ins_seg", "ablate")
SCORED = {**dict.fromkeys(SEEDS_AND_MASKS, "eval"), "eval_seg": "val"}  # step -> purpose of the images it scores
BATCHES = {"train_cam": ("cam", "train"), "train_irn": ("irn", "infer")}  # step that takes whole batches -> of what
SAMPLE = 200  # masks that are compared with the labels


def remarks(
    args: argparse.Namespace, dataset: Dataset, names_of: Callable[[str], list[str]], steps: Sequence[str],
    masks_too: bool = True,
) -> dict[str, list[str]]:  # fmt: skip
    """Step -> what must be known of its result. names_of(purpose): the images of `--PURPOSE_list`.

    masks_too: compare masks with labels too. DataError where so many disagree, or cannot be read, that scores would
    mean nothing. What else cannot be read is left to the step.
    """
    compare = cache(partial(_compare, dataset, names_of))
    told: dict[str, list[str]] = {}
    for step in steps:
        texts = told[step] = []
        try:
            for argument, size in fitting_batches(args, names_of, [step]).items():
                texts.append(f"fewer images than --{argument} {getattr(args, argument)}, which is lowered to {size}")
            if step in ("train_cam", "make_rib_cam", "ablate") and _learns(args, step):
                texts += about_classes(dataset.labels(names_of("train")) > 0, dataset.classes, step != "train_cam")
            if step in ("train_cam", "eval_seg") and dataset.has_labels:
                learnt = names_of("train") if _learns(args, step) else ()
                texts += about_validation(dataset, learnt, names_of("val"), step == "train_cam")
            if step in SCORED and masks_too:
                texts += compare(SCORED[step])
        except Disagreement:
            raise
        except (UserError, OSError, LookupError):  # the latter of a user's own dataset
            continue
    return told


def _compare(dataset: Dataset, names_of: Callable[[str], list[str]], purpose: str) -> list[str]:
    """What a sample of the masks says beside the labels."""
    names = [name for name in names_of(purpose) if dataset.has_mask(name)]
    names = [name for name in names[:: max(1, -(-len(names) // SAMPLE))] if dataset.has_label(name)]
    read = dict(zip(names, progress_map(partial(read_contents, dataset), names, "compare masks", 0), strict=True))
    bad = [problem for values, problem in read.values() if values is None]
    values = {name: values for name, (values, _) in read.items() if values is not None}
    texts, too_many = disagreement([*values], dataset.labels([*values]), [*values.values()], dataset.classes)
    if len(bad) > TOO_MANY * len(names):
        texts, too_many = [alike(bad)], True
    if too_many:
        raise Disagreement(f"--{purpose}_list: {texts[0]}; or leave out the steps that score")
    return texts


class Disagreement(DataError):
    """Labels and masks do not belong together."""


def about_classes(labels: np.ndarray, classes: Sequence[str], in_rib: bool) -> list[str]:
    """What a classifier cannot learn of its images' labels bool [N, C], or what RIB's disjoint images cannot do."""
    n, counts = len(labels), labels.sum(0)
    everywhere = f"in all {n} training images, so the classifier has nothing to tell it from; add images without it"
    cases = {
        everywhere: counts == n,
        "in no training image, so it is not learnt": counts == 0,
        "in one training image only, so it is hardly learnt": (counts == 1) & (n > 1),
        "in no image without the other, so the classifier cannot tell them apart": _twins(labels) & (counts < n),
    }
    if in_rib:
        # An image without any class adds nothing to RIB's loss.
        helpless = np.array([not labels[~labels[:, c]].any() for c in range(len(classes))], bool)
        why = "no training image has a class but not this one, so disjoint images add nothing to RIB's loss"
        cases = {f"{why}; add images of other classes": helpless & (counts > 0)}
    named = {text: [name for name, yes in zip(classes, which, strict=True) if yes] for text, which in cases.items()}
    return [f"{shortened(names)}: {text}" for text, names in named.items() if names]


def _twins(labels: np.ndarray) -> np.ndarray:
    """bool [C]: the classes that occur in the very images in which another one does."""
    _, inverse, counts = np.unique(labels, axis=1, return_inverse=True, return_counts=True)
    return (counts[inverse.reshape(-1)] > 1) & labels.any(0)


def about_validation(dataset: Dataset, train: Sequence[str], val: Sequence[str], by_label: bool) -> list[str]:
    """Whether images that were learnt from are those that are scored, and whether their labels tell anything."""
    texts, known = [], len(set(train) & set(val))
    if known:
        number = "all" if known == len(set(val)) else f"{known} of the"
        texts.append(
            f"{number} {len(val)} images of --val_list are training images: the score says nothing of new images"
        )
    labels = dataset.labels([name for name in val if dataset.has_label(name)]) if by_label else np.ones((1, 1))
    if not labels.any():
        texts.append(f"none of the {len(val)} images of --val_list has a class, so there is no average precision")
    return texts


def _learns(args: argparse.Namespace, step: str) -> bool:
    return step != "train_cam" or not args.cam_init.startswith("head:")


def fitting_batches(args: argparse.Namespace, names_of: Callable[[str], list[str]], steps: Sequence[str]) -> dict:
    """Argument -> the lower batch size, for those of the steps whose list does not fill one batch.

    UserError where ranks and parts are more than the images.
    """
    lower = {}
    for kind, purpose in (BATCHES[step] for step in steps if step in BATCHES and _learns(args, step)):
        size, shares = getattr(args, f"{kind}_batch_size"), getattr(args, f"{kind}_accumulate") * world_size()
        try:
            n = len(names_of(purpose))
        except UserError:  # a step that is done needs no list
            continue
        if n < min(size, shares):
            raise UserError(f"{n} images of --{purpose}_list are fewer than the {shares} parts of a batch; use fewer")
        if n < size:
            lower[f"{kind}_batch_size"] = n - n % shares
    return lower
