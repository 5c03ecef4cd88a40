"""Confusion, IoU, the one-pass threshold sweep and the AP of instances (ChainerCV, evaluations/)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def confusion(pred: np.ndarray, label: np.ndarray, n_classes: int) -> np.ndarray:
    """Pixel counts int64 [n_classes, n_classes], row ground truth, column prediction.

    pred, label: integers of one shape, background included in n_classes; pixels with label 255 are left out and a
    prediction of 255 counts as background.
    """
    if pred.shape != label.shape:
        raise ValueError(f"prediction is {pred.shape}, ground truth {label.shape}; they must have one size")
    valid = label != 255
    pred, label = pred[valid].astype(np.int64), label[valid].astype(np.int64)
    pred[pred == 255] = 0
    highest = max(pred.max(initial=0), label.max(initial=0))
    if highest >= n_classes:
        raise ValueError(f"a mask holds the value {highest}, but there are {n_classes} classes with background")
    return np.bincount(label * n_classes + pred, minlength=n_classes**2).reshape(n_classes, n_classes)


def iou(confusion: np.ndarray) -> np.ndarray:
    """float64 [..., C]: intersection over union per class of [..., C, C]; NaN for a class that never occurs."""
    diagonal = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(-1) + confusion.sum(-2) - diagonal
    with np.errstate(invalid="ignore"):
        return np.where(union > 0, diagonal / np.where(union > 0, union, 1), np.nan)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean IoU over the classes that occur; NaN if none does."""
    values = iou(confusion)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def score(confusion: np.ndarray) -> float | None:
    """Mean IoU, None where the truth holds no object: that of the background alone would say nothing."""
    return mean_iou(confusion) if confusion[1:].any() else None


def iou_table(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, float | None]:
    """IoU by class name, background first; None for a class that never occurs."""
    values = iou(confusion)
    return {n: None if np.isnan(v) else float(v) for n, v in zip(("background", *classes), values, strict=True)}


def foreground(confusion: np.ndarray) -> dict[str, float | None]:
    """Precision and recall of the objects' pixels over all classes together, None where nothing is to be divided by.

    confusion: [C, C], background first. precision: of the pixels that were given a class, the share that has that class
    in truth; recall: of the objects' pixels, the share that was given the right class.
    """
    right = int(np.diagonal(confusion)[1:].sum())
    given, wanted = int(confusion[:, 1:].sum()), int(confusion[1:].sum())
    return {"precision": right / given if given else None, "recall": right / wanted if wanted else None}


class ThresholdSweep:
    """Confusions of CAMs at many background thresholds from one pass over the images.

    At threshold t a pixel is its strongest class if that exceeds t, else background (ties go to background). What
    decides is the strongest class and the number of thresholds below its value, so a histogram of the two holds every
    confusion. thresholds: ascending. n_classes: with background.
    """

    def __init__(self, thresholds: Sequence[float], n_classes: int):
        # CAMs are stored in float32; the published code compares there.
        self.thresholds = np.asarray(thresholds, np.float32)
        self.n_classes = n_classes
        # (ground truth, strongest class, thresholds passed)
        self.counts = np.zeros((n_classes, n_classes, len(self.thresholds) + 1), np.int64)

    def add(self, keys: np.ndarray, cams: np.ndarray, label: np.ndarray) -> None:
        """Adds one image. keys: [n], 0-based classes; cams: float32 [n, H, W]; label: [H, W] with 255 ignored."""
        if cams.shape[1:] != label.shape:
            raise ValueError(f"the CAM is {cams.shape[1:]}, the ground truth {label.shape}; they must have one size")
        valid = label != 255
        truth = label[valid].astype(np.int64)
        if truth.max(initial=0) >= self.n_classes:
            raise ValueError(
                f"a mask holds the value {truth.max()}, but there are {self.n_classes} classes with background"
            )
        if len(keys):
            if max(keys) + 1 >= self.n_classes:
                raise ValueError(f"class {max(keys)} (0-based), but there are {self.n_classes} classes with background")
            chosen = cams[:, valid]
            strongest = chosen.argmax(0)
            value = np.take_along_axis(chosen, strongest[None], 0)[0]
            column = np.asarray(keys, np.int64)[strongest] + 1
            # FIDELITY: a threshold that equals the value is not passed: ties go to background.
            passed = np.searchsorted(self.thresholds, value, side="left")
        else:
            column = passed = np.zeros_like(truth)
        flat = (truth * self.n_classes + column) * self.counts.shape[2] + passed
        occurring, count = np.unique(flat, return_counts=True)
        self.counts.reshape(-1)[occurring] += count

    def confusions(self) -> np.ndarray:
        """int64 [T, n_classes, n_classes]: the confusion at every threshold."""
        above = self.counts[:, :, ::-1].cumsum(2)[:, :, ::-1][:, :, 1:]  # pixels that pass threshold t
        out = np.moveaxis(above, 2, 0).copy()
        out[:, :, 0] += self.counts.sum((1, 2))[None] - out.sum(2)
        return out


def sweep_thresholds(sweep: tuple[float, float, float], fixed: float) -> tuple[np.ndarray, np.ndarray]:
    """float64 [T], ascending: the thresholds of a sweep (low, high, step) and the fixed one; bool [T]: of the sweep."""
    low, high, step = sweep
    swept = np.round(np.arange(low, high + step / 2, step), 6)
    thresholds = np.unique(np.append(swept, fixed))
    return thresholds, np.isin(thresholds, swept)


def fixed_and_best(miou: np.ndarray, sweep: tuple[float, float, float], fixed: float) -> tuple[int, int]:
    """Indices of the fixed threshold and of the best of the sweep. miou: [T], at those of `sweep_thresholds`."""
    thresholds, swept = sweep_thresholds(sweep, fixed)
    return int(np.flatnonzero(np.isclose(thresholds, fixed))[0]), int(np.flatnonzero(swept)[miou[swept].argmax()])


def average_precision(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """float64 [C]: per class the mean precision at the positives, ranked by score; NaN without a positive.

    truth: [N, C] 0 or 1. scores: [N, C].
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(truth > 0, order, 0)
    precision = hits.cumsum(0) / np.arange(1, len(hits) + 1)[:, None]
    positives = hits.sum(0)
    with np.errstate(invalid="ignore"):
        return np.where(positives > 0, (precision * hits).sum(0) / np.maximum(positives, 1), np.nan)


COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [n, m]: intersection over union of bool [n, H, W] with bool [m, H, W]; 0 where both are empty."""
    # Eight pixels a byte.
    a, b = (np.packbits(x.reshape(len(x), np.prod(x.shape[1:], dtype=int)), axis=1) for x in (a, b))
    area_a, area_b = (np.bitwise_count(x).sum(1, dtype=np.int64) for x in (a, b))
    both = np.zeros((len(a), len(b)))
    for j, row in enumerate(b):
        both[:, j] = np.bitwise_count(a & row).sum(1, dtype=np.int64)
    return both / np.maximum(area_a[:, None] + area_b[None] - both, 1)


class Matches(NamedTuple):
    """What the AP needs to know of an image: which of its predicted instances are right."""

    labels: np.ndarray  # int64 [n], class of each prediction
    scores: np.ndarray  # float64 [n]
    hits: np.ndarray  # bool [T, n], at each IoU threshold
    truths: np.ndarray  # int64 [m], class of each true instance


def match_instances(
    pred_masks: np.ndarray, pred_labels: np.ndarray, pred_scores: np.ndarray, gt_masks: np.ndarray,
    gt_labels: np.ndarray, thresholds: Sequence[float] = COCO_IOUS,
) -> Matches:  # fmt: skip
    """Predicted instances of one image against the true ones.

    pred_masks: bool [n, H, W]; gt_masks: bool [m, H, W]; labels: 0-based classes. In order of falling score each
    prediction goes for the true instance of its class that it overlaps most; it is right if their IoU reaches the
    threshold and no earlier one was right about it.
    """
    pred_labels, gt_labels = (np.asarray(labels, np.int64) for labels in (pred_labels, gt_labels))
    scores = np.asarray(pred_scores, np.float64)
    order = np.argsort(scores, kind="stable")[::-1]
    labels, scores = pred_labels[order], scores[order]
    hits = np.zeros((len(thresholds), len(order)), bool)
    for c in np.intersect1d(labels, gt_labels):
        of_class = np.flatnonzero(labels == c)
        iou = mask_iou(pred_masks[order[of_class]], gt_masks[gt_labels == c])
        nearest, reached = iou.argmax(1), iou.max(1)[None] >= np.asarray(thresholds)[:, None]
        for g in np.unique(nearest):
            right = reached & (nearest == g)
            hits[:, of_class] |= right & (right.cumsum(1) == 1)
    return Matches(labels, scores, hits, gt_labels)


def instance_ap(images: Sequence[Matches], n_classes: int) -> np.ndarray:
    """float64 [T, n_classes]: AP of instance masks per threshold and class; NaN for a class without a true instance.

    images: at least one, all at the same T thresholds. AP as in PASCAL VOC 2010 and later, the area under the precision
    curve made monotone (ChainerCV, eval_instance_segmentation_voc).
    """
    labels, scores, hits, truths = (np.concatenate(parts, -1) for parts in zip(*images, strict=True))
    order = np.argsort(scores, kind="stable")[::-1]
    labels, hits = labels[order], hits[:, order]
    out = np.full((len(hits), n_classes), np.nan)
    for c, positives in zip(*np.unique(truths, return_counts=True), strict=True):
        right = hits[:, labels == c]
        precision = right.cumsum(1) / np.arange(1, right.shape[1] + 1)
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        out[:, c] = (precision * right).sum(1) / positives  # recall grows by 1 / positives at every hit
    return out


def mean_ap(ap: np.ndarray) -> float:
    """Mean over all that is not NaN; NaN if nothing is."""
    return float(np.nanmean(ap)) if np.isfinite(ap).any() else float("nan")
