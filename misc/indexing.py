"""Pairs of grid positions, the affinity along the path between them, and the random walk (IRN, misc/indexing.py)."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from misc.sparse import csr_matrix

# Added to maps before the walk. A constant stays as it is in the walk, so the result grows by this, which is nothing;
# without it far positions fill with denormal numbers, on which a CPU is ten times slower.
TINY = 1e-20


class PathIndex:
    """Pairs of positions within a radius on a grid, with the straight path between them.

    A pair is a source (y, x) and a destination (y + dy, x + dx) with 0 < dy^2 + dx^2 < radius^2, each pair once
    (dy > 0, or dy = 0 and dx > 0). Its path holds the positions of their bounding box less than one step from the line.

    radius: in grid steps. default_size: (height, width) of the grid for which `pairs` gives indices.
    Attributes: `destinations` int64 [D, 2], the (dy, dx); `paths`, D arrays int64 [length, 2], destination first;
    both ordered by path length, then by direction.
    """

    def __init__(self, radius: int, default_size: tuple[int, int]):
        self.radius = radius
        self.radius_floor = int(np.ceil(radius)) - 1
        self.default_size = tuple(default_size)
        self.paths = _paths(radius)
        self.destinations = np.array([path[0] for path in self.paths])

    def sources(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """int64 [N]: flat indices of the positions from which every destination lies inside the grid."""
        height, width = size or self.default_size
        r = self.radius_floor
        if height <= r or width <= 2 * r:
            raise ValueError(f"a {height} x {width} grid is too small for pairs within radius {self.radius}")
        return np.arange(height * width).reshape(height, width)[: height - r, r : width - r].reshape(-1)

    def pairs(self, size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(sources int64 [N], destinations int64 [D, N]) as flat indices into a grid of `size`."""
        width = (size or self.default_size)[1]
        sources = self.sources(size)
        offsets = self.destinations[:, 0] * width + self.destinations[:, 1]
        return sources, sources[None] + offsets[:, None]

    def path_indices(self, size: tuple[int, int] | None = None) -> list[np.ndarray]:
        """Per path length one int64 [paths, length, N]: flat indices along the paths, ordered as `destinations`."""
        width = (size or self.default_size)[1]
        sources = self.sources(size)
        by_length: dict[int, list[np.ndarray]] = {}
        for path in self.paths:
            offsets = path[:, 0] * width + path[:, 1]
            by_length.setdefault(len(path), []).append(sources[None] + offsets[:, None])
        return [np.stack(indices) for indices in by_length.values()]


@cache
def _paths(radius: int) -> list[np.ndarray]:
    r = int(np.ceil(radius)) - 1
    directions = [(0, dx) for dx in range(1, r + 1)]
    directions += [(dy, dx) for dy in range(1, r + 1) for dx in range(-r, r + 1) if dy * dy + dx * dx < radius * radius]
    paths = []
    for dy, dx in directions:
        ys, xs = np.meshgrid(np.arange(dy + 1), np.arange(min(0, dx), max(0, dx) + 1), indexing="ij")
        # Squared distance to the line through both ends: (cross product)^2 / length^2.
        near = (dy * xs - dx * ys) ** 2 < dy * dy + dx * dx
        path = np.stack([ys[near], xs[near]], 1)
        paths.append(path[np.argsort(-np.abs(path).sum(1), kind="stable")])
    return sorted(paths, key=len)


def neighbour_affinity(edge: torch.Tensor, radius: int) -> tuple[torch.Tensor, np.ndarray]:
    """Affinity of every position with the later one of each pair, by shifted maxima.

    edge: [h, w] in [0, 1]. Returns affinity [D, h, w], 0 where the destination lies outside, and (dy, dx) [D, 2].
    """
    index = PathIndex(radius, edge.shape)
    r = index.radius_floor
    height, width = edge.shape
    # Outside lies a wall: a path that leaves the grid has edge 1, affinity 0.
    padded = F.pad(edge[None, None], (r, r, 0, r), value=1.0)[0, 0]
    affinity = []
    for path in index.paths:
        along = [padded[dy : dy + height, r + dx : r + dx + width] for dy, dx in path]
        affinity.append(1 - torch.stack(along).amax(0))
    return torch.stack(affinity), index.destinations


def transition(edge: torch.Tensor, radius: int, beta: float) -> torch.Tensor:
    """The random walk's transition, transposed, as a sparse CSR matrix [h * w, h * w].

    T = A^beta with columns that sum to 1; A symmetric, ones on the diagonal, affinity within `radius`. `T^T @ x` is one
    step of the walk for x [h * w, n].
    """
    affinity, destinations = neighbour_affinity(edge, radius)
    height, width = edge.shape
    n = height * width
    weight = (affinity**beta).flatten(1)  # (D, n), pair (i, i + offset)
    index = torch.arange(n, device=edge.device)
    offsets = torch.as_tensor(destinations[:, 0] * width + destinations[:, 1], device=edge.device)
    target = index[None] + offsets[:, None]
    keep = weight > 0
    source = index.expand_as(target)[keep]
    target, weight = target[keep], weight[keep]
    rows = torch.cat([source, target, index])
    columns = torch.cat([target, source, index])
    values = torch.cat([weight, weight, weight.new_ones(n)])
    total = torch.zeros(n, dtype=values.dtype, device=edge.device).index_add_(0, columns, values)
    # Row i of T^T is column i of T: entries T[j, i] = A[j, i] / sum_j A[j, i].
    return csr_matrix(columns, rows, values / total[columns], (n, n))


def propagate_to_edge(
    x: torch.Tensor, edge: torch.Tensor, radius: int = 5, beta: float = 10.0, exp_times: int = 8
) -> torch.Tensor:
    """Random walk of CAMs under a boundary map: x * (1 - edge), times T^(2^exp_times) (IRN, equation 7).

    x: [n, h, w] or [n, 1, h, w]. edge: [1, h, w] or [h, w] in [0, 1]. Returns [n, 1, h, w].
    The published form squares a dense (hw x hw) matrix exp_times times; this makes 2^exp_times sparse products.
    """
    edge = edge.reshape(edge.shape[-2:]).float()
    height, width = edge.shape
    walk = (x.reshape(-1, height, width).float() * (1 - edge)).flatten(1).T.contiguous() + TINY  # (hw, n)
    matrix = transition(edge, radius, beta)
    for _ in range(2**exp_times):
        walk = matrix @ walk
    return walk.T.reshape(-1, 1, height, width)
