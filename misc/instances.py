"""Instances from displacement fields (IRN, step/make_ins_seg_labels.py): centroids, clusters, detection."""

import logging

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from misc.indexing import TINY, transition

CYCLE = 12  # iterations between two looks at what still moves; a multiple of the periods that occur
WALK_VALUES = 2**23  # upsampled values held at once: 32 MiB
WALK_MAPS = 64
MASK_BYTES = 2**26  # of the masks of one image, for as far as fragments that score 0 go


@torch.inference_mode()
def centroids(displacement: torch.Tensor, iterations: int = 300) -> torch.Tensor:
    """Where every position ends that follows the displacement field `iterations` times (IRN, section 4.1).

    displacement: float32 [2, h, w], (dy, dx) in grid steps. Returns int32 [2, h, w], (y, x), on the same device. A step
    adds the field at the position, read bilinearly, and clips to the map; the end is rounded.
    Positions are float32 and steps float64, which is what the published code's mixture of types comes to.
    """
    height, width = displacement.shape[1:]
    # A power of two as side makes grid_sample's coordinates exact: index i lies at (2 i + 1) / side - 1.
    side = 1 << (max(height, width) - 1).bit_length()
    field = F.pad(displacement.double().flip(0)[None], (0, side - width, 0, side - height))  # (1, (dx, dy), side, side)
    moving = torch.arange(height * width, device=displacement.device)
    position = torch.stack([moving % width, moving // width]).float()  # (x, y)
    last = position[:, -1:].clone()
    end = position.clone()
    left = iterations
    while left and len(moving):
        before = position
        steps = (left - 1) % CYCLE + 1
        position = _follow(field, position, last, steps)
        left -= steps
        # What CYCLE iterations bring back to its place will be there at the end too, whole cycles later.
        changed = (position != before).any(0)
        if not left or (steps == CYCLE and changed.sum() < 0.9 * len(moving)):  # for fewer it is not worth while
            end.index_copy_(1, moving, position)
            still = changed.nonzero().flatten()
            position, moving = position.index_select(1, still), moving.index_select(0, still)
    return end.flip(0).round().int().view(2, height, width)


def _follow(field: torch.Tensor, position: torch.Tensor, last: torch.Tensor, iterations: int) -> torch.Tensor:
    """float32 [2, n], (x, y): positions after some iterations. last: [2, 1], the greatest x and y."""
    position = position.clone()
    exact = torch.empty_like(position, dtype=torch.float64)
    grid = torch.empty_like(exact)
    side = field.shape[-1]
    origin = field.new_tensor([1 / side - 1])
    for _ in range(iterations):
        exact.copy_(position)
        torch.add(origin, exact, alpha=2 / side, out=grid)
        step = F.grid_sample(field, grid.T[None, None], padding_mode="border", align_corners=False)  # bilinear
        position.copy_(exact.add_(step[0, :, 0])).clamp_(min=0)
        torch.minimum(position, last, out=position)
    return position


def clusters(centroids: torch.Tensor, displacement: torch.Tensor, threshold: float = 2.5) -> np.ndarray:
    """Instances: the positions whose centroids lie in one region of weak displacement (IRN, section 4.1).

    centroids: int32 [2, h, w]. displacement: float32 [2, h, w]. threshold: in grid steps; regions are 4-connected.
    Returns bool [n, h, w]; every position belongs to exactly one instance.
    """
    y, x = torch.as_tensor(centroids).cpu().numpy()
    dy, dx = torch.as_tensor(displacement).float().cpu().numpy()
    regions, _ = ndimage.label(np.sqrt(dx**2 + dy**2) < threshold)
    # FIDELITY: centroids outside of every weak region are one more instance, the first.
    values, instance = np.unique(regions[y, x], return_inverse=True)
    return instance.reshape(1, *y.shape) == np.arange(len(values))[:, None, None]


@torch.inference_mode()
def instance_map(
    cam: torch.Tensor, masks: np.ndarray, edge: torch.Tensor, size: tuple[int, int], bg_thres: float,
    radius: int = 5, beta: float = 10.0, exp_times: int = 8,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The strongest instance of every pixel: each class's CAM within each instance, spread by the random walk.

    cam: [k, h, w], the image's classes. masks: bool [n, h, w], as `clusters`. edge: [1, h, w] in [0, 1]. size: (H, W).
    bg_thres: score of the background, in [0, 1). radius, beta, exp_times: as `propagate_to_edge`.
    Returns index int32 [H, W], 0 for background and 1 + c * n + i for instance i of class c, and score float32 [H, W]:
    the value there, divided by the maximum of all.
    """
    n, n_maps = len(masks), len(masks) * len(cam)
    height, width = cam.shape[1:]
    best = torch.zeros(size, device=cam.device)
    index = torch.zeros(size, dtype=torch.int32, device=cam.device)
    edge = edge.reshape(height, width).float()
    matrix = transition(edge, radius, beta)
    instance = torch.as_tensor(masks.argmax(0), device=cam.device).flatten()
    start = (cam.float() * (1 - edge)).flatten(1)  # (k, hw)
    of_map = (instance + n * torch.arange(len(cam), device=cam.device)[:, None]).flatten()
    mass = start.new_zeros(n_maps).index_add_(0, of_map, start.flatten())
    per_round = max(1, min(WALK_MAPS, WALK_VALUES // (size[0] * size[1])))
    top = 0.0
    for numbers in mass.argsort(descending=True).split(per_round):  # what is to win comes early, and lifts the floor
        maps = start[numbers // n] * (instance == (numbers % n)[:, None])
        walk, kept = _walk(matrix, maps.T + TINY, 2**exp_times, max(bg_thres * top, 2 * TINY))
        if not len(kept):
            continue
        numbers, walk = numbers[kept], walk.T.reshape(-1, 1, height, width)
        scores = F.interpolate(walk, scale_factor=4, mode="bilinear", align_corners=False)[:, 0, : size[0], : size[1]]
        value, which = scores.max(0)
        ahead = value > best
        best = torch.where(ahead, value, best)
        index = torch.where(ahead, numbers[which].int() + 1, index)
        top = max(top, float(value.max()))
    if top:
        best /= top
    index[best <= bg_thres] = 0
    return index.cpu().numpy(), best.cpu().numpy()


def _walk(matrix: torch.Tensor, walk: torch.Tensor, steps: int, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps [hw, m] after `steps` steps of the walk, without those that cannot end above `floor`, and which are left.

    A step takes weighted means, so that no map's maximum ever rises: one that has sunk to the floor need not go on.
    """
    left = torch.arange(walk.shape[1], device=walk.device)
    for step in range(steps):
        if step & (step - 1) == 0:  # 0, 1, 2, 4, 8 ...
            above = walk.amax(0) > floor
            walk, left = walk[:, above].contiguous(), left[above]
            if not len(left):
                break
        walk = matrix @ walk
    return walk, left


def detect(index: np.ndarray, score: np.ndarray, classes: np.ndarray, max_fragment_size: float = 0) -> dict:
    """Every connected fragment (4-connectivity) of every instance, with its score and class.

    index: int [H, W], 0 background, i + 1 instance i. score: float32 [H, W]. classes: [n], the class of each instance.
    max_fragment_size: fragments of fewer pixels score 0; the others score the maximum of `score` within.
    Returns score float32 [m], mask bool [m, H, W], class int64 [m].
    """
    fragments = []  # (box of an instance, its fragments numbered, the number of one of them, score, area, class)
    for i, box in enumerate(ndimage.find_objects(index)):
        if box is None:
            continue
        parts, count = ndimage.label(index[box] == i + 1)
        area = np.bincount(parts.reshape(-1), minlength=count + 1)[1:]
        peak = ndimage.maximum(score[box], parts, np.arange(1, count + 1))
        scored = np.where(area < max_fragment_size, 0, peak)
        fragments += [(box, parts, j + 1, scored[j], area[j], classes[i]) for j in range(count)]
    scores = np.array([fragment[3] for fragment in fragments], np.float32)
    areas, kinds = (np.array([fragment[k] for fragment in fragments], np.int64) for k in (4, 5))
    # FIDELITY: fragments that score 0 are kept, as published, but only the largest of them as far as memory goes.
    room = max(MASK_BYTES // index.size, (scores > 0).sum())
    kept = np.sort(np.lexsort((-areas, scores == 0))[:room])
    if len(kept) < len(scores):
        logging.info("%d fragments that score 0 are dropped, the smallest", len(scores) - len(kept))
    masks = np.zeros((len(kept), *index.shape), bool)
    for mask, j in zip(masks, kept, strict=True):
        box, parts, number, *_ = fragments[j]
        mask[box] = parts == number
    return {"score": scores[kept], "mask": masks, "class": kinds[kept]}
