"""The plain forms that the fast ones are measured against: the method as it is described, nothing saved."""

import copy
import dataclasses
import math
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F

from misc.indexing import neighbour_affinity
from net.resnet50_cam import CAM


def dense_walk(x: torch.Tensor, edge: torch.Tensor, radius: int, beta: float, exp_times: int) -> torch.Tensor:
    """The random walk by squaring a dense transition matrix; shapes as misc.indexing.propagate_to_edge."""
    height, width = edge.shape[-2:]
    n = height * width
    affinity, destinations = neighbour_affinity(edge.reshape(height, width), radius)
    dense = torch.eye(n)
    index = torch.arange(n).reshape(height, width)
    for a, (dy, dx) in zip(affinity, destinations.tolist(), strict=True):
        rows, columns = slice(0, height - dy), slice(max(0, -dx), width - max(0, dx))
        source = index[rows, columns].flatten()
        target = source + dy * width + dx
        dense[source, target] = dense[target, source] = a[rows, columns].flatten()
    transition = dense**beta
    transition = transition / transition.sum(0, keepdim=True)
    for _ in range(exp_times):
        transition = transition @ transition
    return ((x * (1 - edge)).reshape(-1, n) @ transition).reshape(-1, 1, height, width)


@dataclasses.dataclass
class Plain:
    """What `plain_rib` gives."""

    cams: list[torch.Tensor]  # per scale [C, h, w], summed over the steps
    entered: int  # steps
    totals: list[float]  # per step the sum of the six rows' target logits
    coverage: list[float]  # per step the fraction of the map that the explosion guard looks at


def plain_rib(
    model: CAM,
    pyramid: Sequence[torch.Tensor],
    label: torch.Tensor,
    companions: Iterable[tuple[torch.Tensor, torch.Tensor]],
    lr: float,
    n_iter: int,
    pooling: str = "gndp",
    score_th: float = 0.4,
    stop_th: float = math.inf,
    explode_th: float = 0.3,
    explode_ratio: float = math.inf,
    weight_decay: float = 1e-4,
    upper: tuple[str, ...] = ("layer3", "layer4"),
) -> Plain:
    """RIB straight from the description: CAMs and logits from separate passes over the pixels in every step.

    Arguments as of misc.rib.RIB and its `run`. upper: beginnings of the names of the backbone's layers that learn.
    """
    net = copy.deepcopy(model).eval().requires_grad_(False)
    head = list(net.classifier.requires_grad_(True).parameters())
    rest = [p.requires_grad_(True) for name, p in net.named_parameters() if name.startswith(upper)]
    groups, companions = [{"params": rest}, {"params": head}], iter(companions)
    # Weight decay in the momentum slot, as published.
    optimizer = torch.optim.SGD(groups, lr, momentum=weight_decay, weight_decay=weight_decay)
    out = Plain([0.0] * len(pyramid), 0, [], [])

    def target(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of the logits of the rows' classes, which are all that the loss and the criteria look at."""
        cam = net(images)
        mask = cam.detach() / cam.detach().amax((2, 3), keepdim=True) < score_th if pooling == "gndp" else 1
        return ((cam * mask).mean((2, 3)) * labels).sum()

    for k in range(n_iter):
        out.entered = k + 1
        for scale, images in enumerate(pyramid):
            with torch.no_grad():
                cam = F.relu(net(images))
            added = cam[0] + cam[1].flip(-1)
            out.cams[scale] = out.cams[scale] + added
            if scale == 0:
                normalised = added / (added.amax((1, 2), keepdim=True) + 1e-5)
                out.coverage.append((normalised[label > 0] > explode_th).any(0).float().mean().item())
                if k > 0 and out.coverage[-1] > explode_ratio:
                    return out
        total = sum(target(images, label) for scale, images in enumerate(pyramid) if scale != 1)
        loss = -total - sum(target(*batch) for batch in islice(companions, 1))
        optimizer.zero_grad()
        loss.backward()
        for group, base in zip(optimizer.param_groups, (lr, 10 * lr), strict=True):
            group["lr"] = base * (1 - k / n_iter) ** 0.9
        optimizer.step()
        out.totals.append(total.item())
        if abs(out.totals[-1]) > stop_th:
            break
    return out


def confusions_by_threshold(images: Sequence[tuple], thresholds: Sequence[float], n_classes: int) -> np.ndarray:
    """int64 [T, n, n]: every threshold on its own. images: (keys, cams, ground truth) each."""
    out = np.zeros((len(thresholds), n_classes, n_classes), np.int64)
    for t, threshold in enumerate(thresholds):
        for keys, cams, truth in images:
            padded = np.pad(cams, ((1, 0), (0, 0), (0, 0)), constant_values=np.float32(threshold))
            pred = np.append(0, keys + 1)[padded.argmax(0)]
            valid = truth != 255
            index = truth[valid].astype(np.int64) * n_classes + pred[valid]
            out[t] += np.bincount(index, minlength=n_classes**2).reshape(n_classes, n_classes)
    return out


def plain_centroids(displacement: np.ndarray, iterations: int = 300) -> np.ndarray:
    """As misc.instances.centroids, for float32 [2, h, w]: every position in every iteration."""
    height, width = displacement.shape[1:]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(iterations):
        up, down = np.ceil(y).astype(np.int32), np.floor(y).astype(np.int32)
        right, left = np.ceil(x).astype(np.int32), np.floor(x).astype(np.int32)
        fy, fx = y - down, x - left
        dy, dx = (
            d[up, right] * fy * fx
            + d[up, left] * fy * (1 - fx)
            + d[down, right] * (1 - fy) * fx
            + d[down, left] * (1 - fy) * (1 - fx)
            for d in displacement
        )
        y += dy
        x += dx
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    return np.stack([np.round(y), np.round(x)]).astype(np.int32)
