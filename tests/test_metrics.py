"""Confusion, IoU, sweep, average precision and AP of instances by hand and against the plain way."""

import numpy as np
import pytest

from misc import metrics
from misc.metrics import ThresholdSweep, average_precision, confusion, foreground, iou, iou_table, mean_iou
from tests.helpers import golden


def test_confusion_by_hand():
    label = np.array([[0, 0, 1], [1, 2, 255]], np.uint8)
    pred = np.array([[0, 1, 1], [2, 2, 2]], np.uint8)
    assert confusion(pred, label, 3).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]  # the pixel with 255 is left out
    # 255 in the prediction counts as background
    label, pred = np.array([[0, 1, 1]], np.uint8), np.array([[255, 255, 1]], np.uint8)
    assert confusion(pred, label, 2).tolist() == [[1, 0], [1, 1]]
    assert pred.tolist() == [[255, 255, 1]]  # the caller's array is left alone


def test_other_shapes_and_values_are_refused():
    """As a dataset of one's own may have them."""
    mask, cams = np.zeros((2, 3), np.uint8), np.zeros((1, 2, 3), np.float32)
    sweep = ThresholdSweep((0.1, 0.2), 2)
    for count, message in (
        (lambda: confusion(mask.T, mask, 2), r"prediction is \(3, 2\), ground truth \(2, 3\)"),
        (lambda: confusion(mask, mask + 2, 2), "a mask holds the value 2, but there are 2 classes with background"),
        (lambda: sweep.add([0], cams, mask.T), r"the CAM is \(2, 3\), the ground truth \(3, 2\)"),
        (lambda: sweep.add([0], cams, mask + 2), "a mask holds the value 2, but there are 2 classes"),
        (lambda: sweep.add([1], cams, mask), r"class 1 \(0-based\), but there are 2 classes with background"),
    ):
        with pytest.raises(ValueError, match=message):
            count()
    assert not sweep.counts.any()


COUNTS = np.array([[3, 1, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 5]])


def test_iou_by_hand():
    # 3 / (3 + 1 + 2), 4 / (4 + 1 + 2), never, 5 / 5
    np.testing.assert_allclose(iou(COUNTS), [1 / 2, 4 / 7, np.nan, 1])
    np.testing.assert_allclose(iou(np.stack([COUNTS, COUNTS.T]))[1], [1 / 2, 4 / 7, np.nan, 1])
    np.testing.assert_allclose(iou(np.array([[3, 1], [0, 0]])), [3 / 4, 0])  # only predicted
    assert mean_iou(COUNTS) == pytest.approx((1 / 2 + 4 / 7 + 1) / 3)
    assert np.isnan(mean_iou(np.zeros((2, 2), np.int64)))
    table = iou_table(COUNTS, ("a", "b", "c"))
    assert list(table) == ["background", "a", "b", "c"]
    assert table["background"] == 0.5 and table["b"] is None and table["c"] == 1.0


# the sweep

THRESHOLDS = (0.1, 0.2, 0.25, 0.5)


def plain_sweep(images, thresholds, n_classes):
    """The confusion at every threshold, one threshold after another, as the published code goes about it."""
    totals = []
    for t in thresholds:
        total = np.zeros((n_classes, n_classes), np.int64)
        for keys, cams, label in images:
            stack = np.concatenate([np.full((1, *label.shape), t, np.float32), cams])
            pred = np.concatenate([[0], np.asarray(keys) + 1])[stack.argmax(0)]
            total += confusion(pred, label, n_classes)
        totals.append(total)
    return np.stack(totals)


def random_images(n, n_classes, rng, thresholds):
    """Images of different sizes; half of the values are exactly a threshold or equal in several classes."""
    images = []
    for i in range(n):
        shape = (11 + i, 13)
        keys = rng.permutation(n_classes - 1)[: i % n_classes]  # the first has none
        cams = rng.random((len(keys), *shape)).astype(np.float32)
        exact = rng.choice(np.asarray(thresholds, np.float32), cams.shape)
        cams = np.where(rng.random(cams.shape) < 0.5, exact, cams)
        label = rng.choice([*range(n_classes), 255], shape).astype(np.uint8)
        images.append((keys, cams, label))
    return images


@pytest.mark.parametrize("thresholds", [THRESHOLDS, tuple(np.arange(0.01, 0.3, 0.01)), (0.3,)])
def test_sweep_equals_one_confusion_per_threshold(thresholds):
    images = random_images(6, 4, np.random.default_rng(0), thresholds)
    sweep = ThresholdSweep(thresholds, 4)
    for image in images:
        sweep.add(*image)
    wanted = plain_sweep(images, thresholds, 4)
    np.testing.assert_array_equal(sweep.confusions(), wanted)
    assert len({matrix.tobytes() for matrix in wanted}) == len(thresholds)  # the thresholds do differ


def test_ties_go_to_the_background_and_to_the_first_class():
    sweep = ThresholdSweep(THRESHOLDS, 2)
    sweep.add(np.array([0]), np.array([[[0.2, 0.25]]], np.float32), np.array([[1, 1]], np.uint8))
    # Foreground strictly above the threshold: both at 0.1, only 0.25 at 0.2, none from 0.25 on.
    assert sweep.confusions()[:, 1].tolist() == [[0, 2], [1, 1], [2, 0], [2, 0]]
    sweep = ThresholdSweep((0.1,), 4)
    sweep.add(np.array([2, 0]), np.full((2, 1, 1), 0.5, np.float32), np.array([[3]], np.uint8))
    assert sweep.confusions()[0, 3].tolist() == [0, 0, 0, 1]
    sweep = ThresholdSweep(THRESHOLDS, 3)
    # An image without a class is background
    sweep.add(np.zeros(0, np.int64), np.zeros((0, 1, 3), np.float32), np.array([[0, 2, 255]], np.uint8))
    assert (sweep.confusions() == np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0]])).all()


def test_average_precision_by_hand():
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    scores = np.array([[0.9, 0.9, 0.1], [0.8, 0.2, 0.2], [0.7, 0.1, 0.3], [0.6, 0.8, 0.4]])
    # Class 0: positives rank 1 and 3: (1/1 + 2/3) / 2. Class 1: ranks 3 and 4: (1/3 + 2/4) / 2. Class 2: no positive.
    np.testing.assert_allclose(average_precision(truth, scores), [5 / 6, 5 / 12, np.nan])


def test_foreground_precision_and_recall():
    counts = np.array([[50, 5, 5], [10, 20, 2], [0, 4, 4]])
    assert foreground(counts) == {"precision": 24 / 40, "recall": 24 / 40}
    counts[1, 0] = 30
    assert foreground(counts) == {"precision": 24 / 40, "recall": 24 / 60}
    assert foreground(np.diag([9, 0, 0])) == {"precision": None, "recall": None}


# AP of instances


def test_golden_ap():
    data = golden("chainercv")
    matches = [
        metrics.match_instances(*(data[f"{name}{i}"] for name in ("pm", "pl", "ps", "gm", "gl")), (0.5, 0.7))
        for i in range(5)
    ]
    got = metrics.instance_ap(matches, len(data["ap_0.5"]))
    for ap, threshold in zip(got, (0.5, 0.7), strict=True):
        np.testing.assert_allclose(ap, data[f"ap_{threshold}"], rtol=0, atol=1e-9)
        assert metrics.mean_ap(ap) == pytest.approx(float(data[f"map_{threshold}"]), abs=1e-9)


def test_ap_by_hand():
    truth = np.zeros((2, 4, 10), bool)
    truth[0, :, :4], truth[1, :, 6:] = True, True
    pred = np.zeros((4, 4, 10), bool)
    pred[0, :, :4], pred[1, :, :3], pred[2, :, 5:], pred[3, :, 6:8] = True, True, True, True  # IoU 1, 3/4, 4/5, 1/2
    matches = metrics.match_instances(pred, [0] * 4, [0.7, 0.9, 0.8, 0.1], truth, [0, 0], (0.5, 0.75, 0.78, 0.9))
    assert matches.scores.tolist() == [0.9, 0.8, 0.7, 0.1]
    # The copy of a truth that is already found is wrong; where the first was not good enough it is right.
    assert matches.hits.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    # Precision at the hits, made monotone: 1, 1; 1, 1; max(1/2, 2/3), 2/3; 1/3, each worth 1/2 of the recall.
    np.testing.assert_allclose(metrics.instance_ap([matches], 1)[:, 0], [1, 1, 2 / 3, 1 / 6])


def test_ap_of_classes_never_predicted_or_never_true():
    mask, none = np.ones((1, 2, 2), bool), np.zeros((0, 2, 2), bool)
    images = [metrics.match_instances(mask, [2], [0.5], none, []), metrics.match_instances(none, [], [], mask, [1])]
    got = metrics.instance_ap(images, 3)
    np.testing.assert_array_equal(got[0], [np.nan, 0, np.nan])
    assert metrics.mean_ap(got) == 0 and np.isnan(metrics.mean_ap(got[:, 2]))


def test_mask_iou_by_hand():
    a = np.array([[[1, 1, 0]], [[0, 0, 0]]], bool)
    b = np.array([[[0, 1, 1]], [[1, 1, 0]], [[0, 0, 0]]], bool)
    np.testing.assert_allclose(metrics.mask_iou(a, b), [[1 / 3, 1, 0], [0, 0, 0]])
    assert metrics.mask_iou(a, b[:0]).shape == (2, 0)
