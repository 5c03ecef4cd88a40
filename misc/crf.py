"""Dense CRF: for the labels of the boundary network (IRN, misc/imutils.py) and the segmentation network's masks."""

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from data.errors import UserError
from misc.permutohedral import Lattice

GT_PROB = 0.7
ITERATIONS = 10
CLIP = 1e-5  # least probability of a unary term


class Kernels(NamedTuple):
    """The pairwise terms of a dense CRF: deviations in pixels and in grey values, and weights (Potts)."""

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float


SEEDS = Kernels(3, 3, 50, 5, 10)  # IRN, misc/imutils.py


def crf_labels(
    image: np.ndarray, labelings: Sequence[np.ndarray], n_labels: int, device: torch.device | None = None
) -> list[np.ndarray]:
    """Refines hard labelings of one image by a dense CRF (IRN: gt_prob 0.7, Gaussian 3/3, bilateral 50/5/10, 10 steps).

    image: uint8 [H, W, 3]. labelings: int [H, W] each, values below n_labels. device: None for pydensecrf, else where
    the same is computed in PyTorch. Returns one uint8 [H, W] for each labeling.
    The pairwise terms depend on the image only and are built once for all labelings.
    """
    if n_labels == 1:
        return [np.zeros(image.shape[:2], np.uint8) for _ in labelings]
    chance = (1 - GT_PROB) / (n_labels - 1)
    unaries = [
        -np.log(np.where(np.arange(n_labels)[:, None, None] == labeling, GT_PROB, chance)) for labeling in labelings
    ]
    return _infer(image, unaries, SEEDS, ITERATIONS, device)


def crf_probabilities(
    image: np.ndarray,
    probabilities: np.ndarray,
    kernels: Kernels,
    iterations: int = ITERATIONS,
    device: torch.device | None = None,
) -> np.ndarray:
    """uint8 [H, W]: the labels of a network's probabilities float32 [L, H, W] after a dense CRF.

    image: uint8 [H, W, 3]. device: as in `crf_labels`.
    """
    return _infer(image, [-np.log(np.clip(probabilities, CLIP, 1))], kernels, iterations, device)[0]


def _infer(
    image: np.ndarray,
    unaries: Sequence[np.ndarray],
    kernels: Kernels,
    iterations: int,
    device: torch.device | None,
) -> list[np.ndarray]:
    """The labels uint8 [H, W] for each unary energy [L, H, W]."""
    unaries = [np.ascontiguousarray(unary, np.float32) for unary in unaries]
    if device is None:
        return _by_pydensecrf(image, unaries, kernels, iterations)
    return _by_torch(image, unaries, kernels, iterations, device)


def resolve_backend(backend: str, device: torch.device) -> torch.device | None:
    """The `device` of `crf_labels` for "pydensecrf", "torch" or "auto" (torch on a GPU or without pydensecrf)."""
    installed = importlib.util.find_spec("pydensecrf") is not None
    if backend == "auto":
        backend = "pydensecrf" if installed and device.type == "cpu" else "torch"
    if backend == "pydensecrf" and not installed:
        raise UserError(
            "--crf_backend pydensecrf, but pydensecrf is not installed; pip install pydensecrf2, or use torch"
        )
    return None if backend == "pydensecrf" else device


def _by_pydensecrf(
    image: np.ndarray, unaries: Sequence[np.ndarray], kernels: Kernels, iterations: int
) -> list[np.ndarray]:
    import pydensecrf.densecrf as densecrf

    height, width = image.shape[:2]
    crf = densecrf.DenseCRF2D(width, height, len(unaries[0]))
    crf.addPairwiseGaussian(sxy=kernels.gaussian_sxy, compat=kernels.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=kernels.bilateral_sxy, srgb=kernels.bilateral_srgb, compat=kernels.bilateral_compat,
        rgbim=np.ascontiguousarray(image),
    )  # fmt: skip
    refined = []
    for unary in unaries:
        crf.setUnaryEnergy(unary.reshape(len(unary), -1))
        q, *scratch = crf.startInference()
        for _ in range(iterations):  # as inference() does, but between two steps a signal can be noticed
            crf.stepInference(q, *scratch)
        refined.append(np.argmax(np.array(q), 0).reshape(height, width).astype(np.uint8))
    return refined


@torch.inference_mode()
def _by_torch(
    image: np.ndarray, unaries: Sequence[np.ndarray], kernels: Kernels, iterations: int, device: torch.device
) -> list[np.ndarray]:
    height, width = image.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([x, y], -1).reshape(-1, 2).to(device, torch.float32)
    colour = torch.from_numpy(np.ascontiguousarray(image)).reshape(-1, 3).to(device, torch.float32)
    bilateral = torch.cat([position / kernels.bilateral_sxy, colour / kernels.bilateral_srgb], 1)
    terms = []
    for features, compat in (
        (position / kernels.gaussian_sxy, kernels.gaussian_compat),
        (bilateral, kernels.bilateral_compat),
    ):
        lattice = Lattice(features)
        norm = (lattice.filter(features.new_ones(len(features), 1)) + 1e-20).rsqrt()
        terms.append((lattice, norm, compat))
    # All unary terms are channels of one pass: (pixels, runs, labels).
    energies = torch.from_numpy(np.stack(unaries)).to(device)
    log_prior = -energies.flatten(2).permute(2, 0, 1).contiguous()
    q = torch.softmax(log_prior, 2)
    for _ in range(iterations):
        logits = log_prior
        for lattice, norm, compat in terms:
            message = norm * lattice.filter(norm * q.flatten(1))  # symmetric normalisation, Potts compatibility
            logits = logits + compat * message.view_as(q)
        q = torch.softmax(logits, 2)
    labels = q.argmax(2).T.reshape(len(unaries), height, width).to(torch.uint8).cpu().numpy()
    return list(labels)


def hard_labels(cams: np.ndarray, threshold: float) -> np.ndarray:
    """int64 [H, W]: argmax of [threshold, CAMs]; 0 is background, i + 1 the i-th CAM; ties go to background."""
    # FIDELITY: background comes first, so that a tie is its.
    background = np.full((1, *cams.shape[1:]), threshold, cams.dtype)
    return np.concatenate([background, cams]).argmax(0)


def ir_label(
    image: np.ndarray,
    cams: np.ndarray,
    keys: np.ndarray,
    fg_thres: float,
    bg_thres: float,
    device: torch.device | None = None,
) -> np.ndarray:
    """Labels for the boundary network from CAMs: confident foreground, confident background, the rest ignored.

    image: uint8 [H, W, 3]. cams: float32 [n, H, W] in [0, 1]. keys: [n], 0-based classes. fg_thres, bg_thres:
    background scores of the two labelings. device: as in `crf_labels`. Returns uint8 [H, W]: 0 background, class + 1,
    255 ignore.
    """
    values = np.concatenate([[0], np.asarray(keys, np.int64) + 1]).astype(np.uint8)
    labelings = [hard_labels(cams, fg_thres), hard_labels(cams, bg_thres)]
    foreground, background = (values[label] for label in crf_labels(image, labelings, len(values), device))
    label = foreground.copy()
    label[foreground == 0] = 255
    label[(foreground == 0) & (background == 0)] = 0
    return label
