"""Gaussian filtering on the permutohedral lattice (Adams, Baek, Davis, Eurographics 2010), in PyTorch.

The lattice of Kraehenbuehl and Koltun's dense CRF: points are splatted onto the vertices of the simplex around them,
blurred with (1/2, 1, 1/2) along each of the d + 1 directions and sliced back with the same weights.
"""

import torch
import torch.nn.functional as F

from misc.sparse import csr_matrix


class Lattice:
    """The lattice of a set of points, on the points' device.

    features: float32 [N, d], positions divided by the deviations of the kernel. `filter` costs O(N d) per channel.
    """

    def __init__(self, features: torch.Tensor):
        n, d = features.shape
        keys, weights = _simplices(features.float())
        low = keys.amin((0, 1)) - d - 1  # room for the neighbours
        radix = (keys.amax((0, 1)) - low + d + 2).tolist()
        place = torch.ones(d, dtype=torch.int64, device=features.device)
        for i in range(d - 2, -1, -1):
            place[i] = place[i + 1] * radix[i + 1]
        if float(place[0]) * radix[0] >= 2**63:
            raise ValueError(f"features span {radix} lattice steps, more than 63 bits hold; use larger deviations")
        vertices, vertex = torch.unique(((keys - low) * place).sum(-1), return_inverse=True)
        self.size = len(vertices)
        # Neighbours along direction j: every coordinate one less and the j-th d more, or the other way round.
        self.neighbours = []
        for j in range(d + 1):
            step = -torch.ones(d, dtype=torch.int64, device=features.device)
            if j < d:
                step[j] = d
            offset = (step * place).sum()
            self.neighbours.append((self._find(vertices, vertices + offset), self._find(vertices, vertices - offset)))
        self.scale = 1 / (1 + 2.0**-d)
        point = torch.arange(n, device=features.device)[:, None].expand(n, d + 1)
        self.splat = csr_matrix(vertex.reshape(-1), point.reshape(-1), weights.reshape(-1), (self.size, n))
        self.slice = csr_matrix(point.reshape(-1), vertex.reshape(-1), weights.reshape(-1), (n, self.size))

    @staticmethod
    def _find(vertices: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Index of every wanted key in the sorted vertices, `len(vertices)` (an empty row) where it is not there."""
        index = torch.searchsorted(vertices, wanted).clamp_(max=len(vertices) - 1)
        return torch.where(vertices[index] == wanted, index, len(vertices))

    def filter(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, C] -> the filtered [N, C]."""
        values = self.splat @ x
        for before, after in self.neighbours:
            padded = F.pad(values, (0, 0, 0, 1))
            values = values + 0.5 * (padded[before] + padded[after])
        return self.scale * (self.slice @ values)


def _simplices(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Corners and weights of the simplex around every point.

    Returns keys int64 [N, d + 1, d] (the first d coordinates of the d + 1 corners) and weights float32 [N, d + 1].
    """
    n, d = features.shape
    device = features.device
    index = torch.arange(1, d + 1, dtype=torch.float32, device=device)
    # Into the hyperplane of coordinates that sum to 0, with the standard deviation of the blur in mind.
    scaled = features * ((2 / 3) ** 0.5 * (d + 1) / (index * (index + 1)).sqrt())
    tail = scaled.flip(1).cumsum(1).flip(1)  # sums from j on
    elevated = torch.cat([tail[:, :1], F.pad(tail, (0, 1))[:, 1:] - index * scaled], 1)  # (N, d + 1)
    # The nearest point whose coordinates are multiples of d + 1, and how far off the plane the rounding went.
    rounded = torch.floor(elevated / (d + 1) + 0.5)
    total = rounded.sum(1, keepdim=True).long()
    base = (rounded * (d + 1)).long()
    # Rank of every coordinate's remainder, largest first, corrected by that excess.
    order = torch.argsort(elevated - base, dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(d + 1, device=device).expand(n, d + 1)) + total
    wrap = (rank < 0).long() - (rank > d).long()
    rank, base = rank + wrap * (d + 1), base + wrap * (d + 1)
    # Barycentric coordinates from the sorted remainders.
    remainder = (elevated - base) / (d + 1)
    weights = torch.zeros((n, d + 2), device=device)
    weights.scatter_add_(1, d - rank, remainder).scatter_add_(1, d + 1 - rank, -remainder)
    weights[:, 0] += 1 + weights[:, d + 1]
    corner = torch.arange(d + 1, device=device)[None, :, None]
    shift = corner - (d + 1) * (rank[:, None, :d] > d - corner).long()  # the canonical simplex
    return base[:, None, :d] + shift, weights[:, : d + 1]
