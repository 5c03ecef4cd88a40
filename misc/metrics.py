"""Confusion, IoU and the one-pass threshold sweep (ChainerCV, evaluations/eval_semantic_segmentation)."""

from collections.abc import Sequence

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


def iou_table(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, float | None]:
    """IoU by class name, background first; None for a class that never occurs."""
    values = iou(confusion)
    return {n: None if np.isnan(v) else float(v) for n, v in zip(("background", *classes), values, strict=True)}


class ThresholdSweep:
    """Confusions of CAMs at many background thresholds from one pass over the images.

    At threshold t a pixel is its strongest class if that exceeds t, else background (ties go to background). What
    decides is the strongest class and the number of thresholds below its value, so a histogram of the two holds every
    confusion. thresholds: ascending. n_classes: with background.
    """

    def __init__(self, thresholds: Sequence[float], n_classes: int):
        # CAMs are stored in float32; the published code compares there.
        self.thresholds = np.asarray(thresholds, np.float32)
        if (np.diff(self.thresholds) <= 0).any():
            raise ValueError("thresholds must ascend")
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
            chosen = cams[:, valid]
            strongest = chosen.argmax(0)
            value = np.take_along_axis(chosen, strongest[None], 0)[0]
            column = np.asarray(keys, np.int64)[strongest] + 1
            passed = np.searchsorted(self.thresholds, value, side="left")  # thresholds strictly below the value
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
