"""Dense CRF (Kraehenbuehl and Koltun, NeurIPS 2011), for the IRN labels (IRN: misc/imutils.py) and for the masks of the
segmentation network.

A backend is "scipy" (NumPy and SciPy on one processor), a `torch.device` (PyTorch there) or "pydensecrf" (the C++ code
that IRN uses, where it is installed). Every backend finds the same labels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from misc.cam import hard_labels
from misc.permutohedral import Lattice
from misc.sparse import Array

GT_PROB = 0.7
ITERATIONS = 10
CLIP = 1e-5  # least probability of a unary term
CHANNELS = 16  # that the lattices filter at once: labelings of few labels go together
Backend = str | torch.device


class Kernels(NamedTuple):
    """The pairwise terms of a dense CRF: deviations in pixels and in grey values, and weights (Potts)."""

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float


SEEDS = Kernels(3, 3, 50, 5, 10)  # IRN, misc/imutils.py


def resolve_backend(backend: str, device: torch.device) -> Backend:
    """The backend for a word of `--crf_backend`; auto: PyTorch on a GPU, else SciPy."""
    if backend == "auto":
        backend = "torch" if device.type == "cuda" else "scipy"
    return device if backend == "torch" else backend


def processes(backend: Backend, num_workers: int) -> int:
    """How many worker processes share the images: 0 on a GPU, which takes one image after another."""
    return 0 if isinstance(backend, torch.device) and backend.type == "cuda" else num_workers


def crf_labels(
    image: np.ndarray, labelings: Sequence[np.ndarray], n_labels: int, backend: Backend = "scipy"
) -> list[np.ndarray]:
    """Refines hard labelings of one image by a dense CRF (IRN: gt_prob 0.7, Gaussian 3/3, bilateral 50/5/10, 10 steps).

    image: uint8 [H, W, 3]. labelings: int [H, W] each, values below n_labels. Returns one uint8 [H, W] for each.
    The pairwise terms depend on the image only and are built once for all labelings.
    """
    if n_labels == 1:
        return [np.zeros(image.shape[:2], np.uint8) for _ in labelings]
    log_prior = np.full((n_labels, n_labels), np.log((1 - GT_PROB) / (n_labels - 1)), np.float32)
    np.fill_diagonal(log_prior, np.log(GT_PROB))
    return _infer(image, [log_prior[labeling.reshape(-1)] for labeling in labelings], SEEDS, ITERATIONS, backend)


def crf_probabilities(
    image: np.ndarray,
    probabilities: np.ndarray,
    kernels: Kernels,
    iterations: int = ITERATIONS,
    backend: Backend = "scipy",
) -> np.ndarray:
    """uint8 [H, W]: the labels of a network's probabilities float32 [L, H, W] after a dense CRF.

    image: uint8 [H, W, 3].
    """
    log_prior = np.log(np.clip(probabilities, CLIP, 1)).reshape(len(probabilities), -1).T
    return _infer(image, [log_prior], kernels, iterations, backend)[0]


def _infer(
    image: np.ndarray, log_priors: Sequence[np.ndarray], kernels: Kernels, iterations: int, backend: Backend
) -> list[np.ndarray]:
    """The labels uint8 [H, W] for each unary term, given as log probabilities [H * W, L]."""
    infer = _by_pydensecrf if backend == "pydensecrf" else _by_lattice
    return infer(image, log_priors, kernels, iterations, backend)


@torch.inference_mode()
def _by_lattice(
    image: np.ndarray, log_priors: Sequence[np.ndarray], kernels: Kernels, iterations: int, backend: Backend
) -> list[np.ndarray]:
    def put(array: np.ndarray) -> Array:
        return array if backend == "scipy" else torch.from_numpy(array).to(backend)

    height, width, n_labels = *image.shape[:2], log_priors[0].shape[1]
    y, x = np.mgrid[:height, :width]
    position = np.stack([x, y], -1).reshape(-1, 2).astype(np.float32)
    colour = image.reshape(-1, 3).astype(np.float32)
    bilateral = np.concatenate([position / kernels.bilateral_sxy, colour / kernels.bilateral_srgb], 1)
    smoothness = Lattice(put(position / kernels.gaussian_sxy)).normalise(kernels.gaussian_compat)
    appearance = Lattice(put(bilateral)).normalise(kernels.bilateral_compat)

    refined = []
    at_once = max(1, CHANNELS // n_labels)
    for group in (log_priors[i : i + at_once] for i in range(0, len(log_priors), at_once)):
        log_prior = put(np.concatenate(group, 1, dtype=np.float32))  # (N, labelings * labels)
        q = _softmax(log_prior, n_labels)
        for _ in range(iterations):
            logits = smoothness.filter(q)
            logits += appearance.filter(q)
            logits += log_prior
            q = _softmax(logits, n_labels)
        labels = q.reshape(len(q), -1, n_labels).argmax(2).T.reshape(-1, height, width)
        refined += [np.asarray(label, np.uint8) for label in (labels if backend == "scipy" else labels.cpu())]
    return refined


def _softmax(logits: Array, n_labels: int, rows: int = 8192) -> Array:
    """Softmax over each n_labels columns of float32 [N, C]."""
    if isinstance(logits, torch.Tensor):
        return logits.view(len(logits), -1, n_labels).softmax(2).flatten(1)
    # NumPy is slow along a short last axis: labels first, for as many rows as the cache holds.
    q = np.empty_like(logits)
    source, target = logits.reshape(-1, n_labels), q.reshape(-1, n_labels)
    for start in range(0, len(source), rows):
        part = source[start : start + rows].T.copy()
        part -= part.max(0)
        np.exp(part, out=part)
        part /= part.sum(0)
        target[start : start + rows] = part.T
    return q


def _by_pydensecrf(
    image: np.ndarray, log_priors: Sequence[np.ndarray], kernels: Kernels, iterations: int, backend: Backend
) -> list[np.ndarray]:
    import pydensecrf.densecrf as densecrf

    height, width = image.shape[:2]
    crf = densecrf.DenseCRF2D(width, height, log_priors[0].shape[1])
    crf.addPairwiseGaussian(sxy=kernels.gaussian_sxy, compat=kernels.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=kernels.bilateral_sxy, srgb=kernels.bilateral_srgb, compat=kernels.bilateral_compat,
        rgbim=np.ascontiguousarray(image),
    )  # fmt: skip
    refined = []
    for log_prior in log_priors:
        crf.setUnaryEnergy(np.ascontiguousarray(-log_prior.T, np.float32))
        q, *scratch = crf.startInference()
        for _ in range(iterations):  # as inference() does, but between two steps a signal can be noticed
            crf.stepInference(q, *scratch)
        refined.append(np.argmax(np.array(q), 0).reshape(height, width).astype(np.uint8))
    return refined


def ir_label(
    image: np.ndarray,
    cams: np.ndarray,
    keys: np.ndarray,
    fg_thres: float,
    bg_thres: float,
    backend: Backend = "scipy",
) -> np.ndarray:
    """The IRN label from CAMs: confident foreground, confident background, the rest ignored.

    image: uint8 [H, W, 3]. cams: float32 [n, H, W] in [0, 1]. keys: [n], 0-based classes. fg_thres, bg_thres:
    background scores of the two labelings. Returns uint8 [H, W]: 0 background, class + 1, 255 ignore.
    """
    values = np.concatenate([[0], np.asarray(keys, np.int64) + 1]).astype(np.uint8)
    labelings = [hard_labels(cams, fg_thres), hard_labels(cams, bg_thres)]
    foreground, background = (values[label] for label in crf_labels(image, labelings, len(values), backend))
    label = foreground.copy()
    label[foreground == 0] = 255
    label[(foreground == 0) & (background == 0)] = 0
    return label
