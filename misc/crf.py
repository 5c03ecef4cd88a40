"""Dense CRF: labels for the boundary network (IRN, step/cam_to_ir_label.py and misc/imutils.py)."""

import importlib.util
import math
from collections.abc import Sequence

import numpy as np
import torch

from misc.errors import UserError
from misc.permutohedral import Lattice

GT_PROB = 0.7
ITERATIONS = 10
GAUSSIAN = {"sxy": 3, "compat": 3}
BILATERAL = {"sxy": 50, "srgb": 5, "compat": 10}


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
    if device is None:
        return _by_pydensecrf(image, labelings, n_labels)
    return _by_torch(image, labelings, n_labels, device)


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


def _by_pydensecrf(image: np.ndarray, labelings: Sequence[np.ndarray], n_labels: int) -> list[np.ndarray]:
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


@torch.inference_mode()
def _by_torch(
    image: np.ndarray, labelings: Sequence[np.ndarray], n_labels: int, device: torch.device
) -> list[np.ndarray]:
    height, width = image.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([x, y], -1).reshape(-1, 2).to(device, torch.float32)
    colour = torch.from_numpy(np.ascontiguousarray(image)).reshape(-1, 3).to(device, torch.float32)
    kernels = [
        (position / GAUSSIAN["sxy"], GAUSSIAN["compat"]),
        (torch.cat([position / BILATERAL["sxy"], colour / BILATERAL["srgb"]], 1), BILATERAL["compat"]),
    ]
    terms = []
    for features, compat in kernels:
        lattice = Lattice(features)
        norm = (lattice.filter(features.new_ones(len(features), 1)) + 1e-20).rsqrt()
        terms.append((lattice, norm, compat))
    # All labelings are channels of one pass: (pixels, labelings, labels).
    given = torch.from_numpy(np.stack([np.asarray(labeling, np.int64).reshape(-1) for labeling in labelings], 1))
    chance = math.log((1 - GT_PROB) / (n_labels - 1))
    log_prior = torch.full((*given.shape, n_labels), chance, device=device)
    log_prior.scatter_(2, given.to(device)[..., None], math.log(GT_PROB))
    q = torch.softmax(log_prior, 2)
    for _ in range(ITERATIONS):
        logits = log_prior
        for lattice, norm, compat in terms:
            message = norm * lattice.filter(norm * q.flatten(1))  # symmetric normalisation, Potts compatibility
            logits = logits + compat * message.view_as(q)
        q = torch.softmax(logits, 2)
    labels = q.argmax(2).T.reshape(len(labelings), height, width).to(torch.uint8).cpu().numpy()
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
