"""Dense CRF: labels for the boundary network (IRN, step/cam_to_ir_label.py and misc/imutils.py)."""

from collections.abc import Sequence

import numpy as np

GT_PROB = 0.7
ITERATIONS = 10
GAUSSIAN = {"sxy": 3, "compat": 3}
BILATERAL = {"sxy": 50, "srgb": 5, "compat": 10}


def crf_labels(image: np.ndarray, labelings: Sequence[np.ndarray], n_labels: int) -> list[np.ndarray]:
    """Refines hard labelings of one image by a dense CRF (IRN: gt_prob 0.7, Gaussian 3/3, bilateral 50/5/10, 10 steps).

    image: uint8 [H, W, 3]. labelings: int [H, W] each, values below n_labels. Returns one uint8 [H, W] for each.
    The pairwise terms depend on the image only and are built once for all labelings.
    """
    if n_labels == 1:
        return [np.zeros(image.shape[:2], np.uint8) for _ in labelings]
    import pydensecrf.densecrf as densecrf
    from pydensecrf.utils import unary_from_labels

    height, width = image.shape[:2]
    crf = densecrf.DenseCRF2D(width, height, n_labels)
    crf.addPairwiseGaussian(**GAUSSIAN)
    crf.addPairwiseBilateral(**BILATERAL, rgbim=np.ascontiguousarray(image))
    refined = []
    for labeling in labelings:
        unary = unary_from_labels(labeling, n_labels, gt_prob=GT_PROB, zero_unsure=False)
        crf.setUnaryEnergy(np.ascontiguousarray(unary))
        refined.append(np.argmax(np.array(crf.inference(ITERATIONS)), 0).reshape(height, width).astype(np.uint8))
    return refined


def hard_labels(cams: np.ndarray, threshold: float) -> np.ndarray:
    """int64 [H, W]: argmax of [threshold, CAMs]; 0 is background, i + 1 the i-th CAM; ties go to background."""
    background = np.full((1, *cams.shape[1:]), threshold, cams.dtype)
    return np.concatenate([background, cams]).argmax(0)


def ir_label(image: np.ndarray, cams: np.ndarray, keys: np.ndarray, fg_thres: float, bg_thres: float) -> np.ndarray:
    """Labels for the boundary network from CAMs: confident foreground, confident background, the rest ignored.

    image: uint8 [H, W, 3]. cams: float32 [n, H, W] in [0, 1]. keys: [n], 0-based classes. fg_thres, bg_thres:
    background scores of the two labelings. Returns uint8 [H, W]: 0 background, class + 1, 255 ignore.
    """
    values = np.concatenate([[0], np.asarray(keys, np.int64) + 1]).astype(np.uint8)
    labelings = [hard_labels(cams, fg_thres), hard_labels(cams, bg_thres)]
    foreground, background = (values[label] for label in crf_labels(image, labelings, len(values)))
    label = foreground.copy()
    label[foreground == 0] = 255
    label[(foreground == 0) & (background == 0)] = 0
    return label
