"""The plain forms that the fast ones are measured against: the method as it is described, nothing saved."""

from collections.abc import Sequence

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


def plain_rib(
    model: CAM,
    pyramid: Sequence[torch.Tensor],
    label: torch.Tensor,
    companions: Sequence[tuple[torch.Tensor, torch.Tensor]],
    lr: float,
    n_iter: int,
    score_th: float,
    weight_decay: float = 1e-4,
) -> list[torch.Tensor]:
    """RIB with GNDRP straight from the description: CAMs and logits from separate passes over the pixels in every step.

    No stop and no explosion guard; the model is changed.
    """
    head = list(model.classifier.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith(("classifier.", "conv1.", "bn1."))]
    optimizer = torch.optim.SGD(
        [{"params": rest, "lr": lr}, {"params": head, "lr": 10 * lr}],
        lr,
        momentum=weight_decay,
        weight_decay=weight_decay,
    )  # weight decay in the momentum slot, as published
    sums = [0.0] * len(pyramid)
    for k in range(n_iter):
        with torch.no_grad():
            for i, images in enumerate(pyramid):
                cam = F.relu(model(images))
                sums[i] = sums[i] + cam[0] + cam[1].flip(-1)
        loss = 0.0
        for i, images in enumerate(pyramid):
            if i != 1:
                loss = loss - (_pooled(model(images), label.expand(2, -1), score_th) * label).sum()
        images, labels = companions[k]
        loss = loss - (_pooled(model(images), labels, score_th) * labels).sum()
        for group, factor in zip(optimizer.param_groups, (1, 10), strict=True):
            group["lr"] = lr * factor * (1 - k / n_iter) ** 0.9
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sums


def _pooled(cam: torch.Tensor, labels: torch.Tensor, score_th: float) -> torch.Tensor:
    """[B, C, h, w] -> [B, C]: GNDRP for the classes of a row, average pooling for the others."""
    mask = (cam / cam.amax((2, 3), keepdim=True) < score_th).float().detach()
    chosen = labels[:, :, None, None] > 0
    return torch.where(chosen, cam * mask, cam).mean((2, 3))


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
