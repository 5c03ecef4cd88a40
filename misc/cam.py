"""From raw network outputs to the CAMs that are stored (IRN, step/make_cam.py)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from net.resnet50 import strided_size

EPSILON = 1e-5


def merge_mirrors(cam: torch.Tensor) -> torch.Tensor:
    """Raw CAMs of an image and its mirror [2, C, h, w] -> [C, h, w]: relu, mirror flipped back, added."""
    cam = torch.relu(cam)
    return cam[0] + cam[1].flip(-1)


def combine_scales(
    cams: Sequence[torch.Tensor], keys: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored CAMs of an image from its per-scale CAMs.

    cams: per scale [C, h, w], not negative. keys: int64 [n], the image's classes. size: (H, W) of the image.
    Returns cam [n, ceil(H/4), ceil(W/4)] and high_res [n, H, W], each map divided by its maximum + 1e-5.
    """
    small = strided_size(size, 4)
    large = tuple(16 * n for n in strided_size(size, 16))
    cams = [cam[keys][None] for cam in cams]
    if not len(keys):
        return cams[0].new_zeros((0, *small)), cams[0].new_zeros((0, *size))

    def summed(target: tuple[int, int]) -> torch.Tensor:
        resized = [F.interpolate(cam, target, mode="bilinear", align_corners=False)[0] for cam in cams]
        return torch.stack(resized).sum(0)[:, : size[0], : size[1]]

    return tuple(cam / (cam.amax((-2, -1), keepdim=True) + EPSILON) for cam in (summed(small), summed(large)))


def hard_labels(cams: np.ndarray, threshold: float) -> np.ndarray:
    """int64 [H, W]: argmax of [threshold, CAMs]; 0 is background, i + 1 the i-th CAM; ties go to background."""
    # FIDELITY: background comes first, so that a tie is its.
    background = np.full((1, *cams.shape[1:]), threshold, cams.dtype)
    return np.concatenate([background, cams]).argmax(0)


def cams_to_mask(cams: np.ndarray, keys: np.ndarray, threshold: float) -> np.ndarray:
    """uint8 [H, W], 0 background, c + 1 class: the strongest of the CAMs [n, H, W] of classes `keys` [n], 0-based."""
    return np.concatenate([[0], np.asarray(keys, np.int64) + 1]).astype(np.uint8)[hard_labels(cams, threshold)]
