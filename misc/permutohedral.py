"""Gaussian filtering on the permutohedral lattice (Adams, Baek, Davis, Eurographics 2010), as sparse products.

The lattice of Kraehenbuehl and Koltun's dense CRF: points are splatted onto the vertices of the simplex around them,
blurred with (1/2, 1, 1/2) along each of the d + 1 directions and sliced back with the same weights. The same lines run
on NumPy arrays, which SciPy multiplies, and on PyTorch tensors of any device; `xp` is the library of the features.

A vertex has d + 1 integer coordinates that sum to 0 and leave the same remainder r when divided by d + 1: coordinate i
is (d + 1) q_i + r. Its key is one integer with the digits q_0, ..., q_(d-1) and r; q_d follows from them.
"""

import math
from types import ModuleType

import numpy as np
import torch

from misc.sparse import Array, Matrix, compressed_rows, transpose


class Lattice:
    """The lattice of a set of points; `filter` costs O(N d) per channel.

    features: float32 [N, d], positions divided by the deviations of the kernel; a NumPy array or a tensor.
    Raises ValueError where the features span too many vertices for 63-bit keys.
    """

    def __init__(self, features: Array):
        xp = torch if isinstance(features, torch.Tensor) else np
        n, d = features.shape
        corners, self.weights, strides = _corners(features, xp)
        # One sort of (key, entry), packed into one integer, finds the vertices and the corners that share each.
        bits = (n * (d + 1)).bit_length()
        entry = xp.arange(n * (d + 1), device=features.device).reshape(n, d + 1)
        packed = xp.sort(((corners << bits) | entry.T).reshape(-1))
        packed = packed.values if xp is torch else packed
        keys, entry = packed >> bits, packed & ((1 << bits) - 1)
        first = xp.ones_like(keys, dtype=xp.bool)
        first[1:] = keys[1:] != keys[:-1]
        vertices = keys[first]
        self.vertex = xp.empty_like(entry, dtype=xp.int32)  # of every point's corners, the index into the vertices
        self.vertex[entry] = xp.asarray(xp.cumsum(first, 0) - 1, dtype=xp.int32)
        self.ends = xp.arange(n + 1, device=features.device) * (d + 1)
        self.blurs = [_blur(vertices, strides, j, xp) for j in range(d + 1)]
        self.scale = 1 / (1 + 2.0**-d)
        self._connect()

    def _connect(self):
        """The products between points and vertices, from the weights."""
        shape = len(self.ends) - 1, self.blurs[0].shape[0]
        self.slice = compressed_rows(self.ends, self.vertex, self.weights.reshape(-1), shape)
        self.splat = transpose(self.slice)

    def filter(self, x: Array) -> Array:
        """float32 [N, C] -> the filtered [N, C]."""
        values = self.splat @ x
        for blur in self.blurs:
            values = blur @ values
        values *= self.scale
        return self.slice @ values

    def normalise(self, weight: float) -> "Lattice":
        """Makes weight D^-1/2 K D^-1/2 of the kernel K, where the diagonal D holds the sums of its rows."""
        xp = torch if isinstance(self.weights, torch.Tensor) else np
        ones = xp.ones_like(self.weights[:, :1])
        self.weights = self.weights / xp.sqrt(self.filter(ones) + 1e-20)
        self.scale *= weight
        self._connect()
        return self


def _corners(features: Array, xp: ModuleType) -> tuple[Array, Array, list[int]]:
    """The simplex around every point: the keys of its corners, int64 [d + 1, N], and weights, float32 [N, d + 1].

    Also returns by how much a key grows with each coordinate's q. Raises ValueError where the keys need too many bits.
    """
    n, d = features.shape
    # Into the hyperplane of coordinates that sum to 0, with the standard deviation of the blur in mind.
    # FIDELITY: constants are rounded as in pydensecrf: the last bit decides which vertices exist, and so near ties.
    spread = float(np.float32((2 / 3) ** 0.5 * (d + 1)))
    elevated, tail = [], 0
    for i in range(d, 0, -1):
        scaled = features[:, i - 1] * (spread / (i * (i + 1)) ** 0.5)
        elevated.append(tail - i * scaled)
        tail = tail + scaled
    elevated = xp.stack([tail, *elevated[::-1]])  # (d + 1, N)

    # The nearest point whose coordinates are multiples of d + 1, and the rank of each remainder, largest first.
    q = xp.round(elevated * (1 / (d + 1)))
    remainder = elevated - (d + 1) * q
    rank = xp.zeros_like(remainder, dtype=xp.int32)
    for i in range(d + 1):
        for j in range(i + 1, d + 1):
            less = remainder[i] < remainder[j]
            rank[i] += less
            rank[j] += ~less
    # It is off the plane by the sum of q: the coordinates whose rounding moved them furthest go one multiple back.
    rank += xp.asarray(q.sum(0), dtype=xp.int32)
    q -= rank // (d + 1)
    rank %= d + 1
    remainder = (elevated - (d + 1) * q) * (1 / (d + 1))

    low = [int(least) - 2 for least in xp.amin(q[:d], 1)]  # a corner's q is up to 1 less, its neighbour's up to 2
    radix = [int(most) + 2 - least for most, least in zip(xp.amax(q[:d], 1), low, strict=True)]
    strides = [(d + 1) * math.prod(radix[:i]) for i in range(d)] + [0]  # the last q is not in the key
    if 2 * n * (d + 1) ** 2 * math.prod(radix) >= 2**63:  # packed with the entries
        raise ValueError(f"features span {radix} lattice steps, more than 63 bits hold; use larger deviations")

    # From corner c - 1 to c, r grows by one, and q falls by one where the remainder is the c-th smallest.
    slot = (d - rank) * n + xp.arange(n, device=features.device)
    ascending, fall = xp.empty_like(remainder), xp.empty_like(slot)
    ascending.reshape(-1)[slot] = remainder
    fall.reshape(-1)[slot] = xp.asarray(strides, device=features.device)[:, None]
    keys = xp.empty_like(slot)
    keys[0] = sum(strides[i] * xp.asarray(q[i] - low[i], dtype=xp.int64) for i in range(d))
    for c in range(1, d + 1):
        keys[c] = keys[c - 1] + 1 - fall[c - 1]
    weights = xp.concatenate([ascending[:1] + (1 - ascending[d:]), ascending[1:] - ascending[:-1]])
    return keys, weights.T, strides


def _blur(vertices: Array, strides: list[int], j: int, xp: ModuleType) -> Matrix:
    """(1/2, 1, 1/2) along direction j: half of each neighbour that exists is added to a vertex."""
    m, d = len(vertices), len(strides) - 1
    own = xp.arange(m, dtype=xp.int32, device=vertices.device)
    # The next vertex has the j-th coordinate d more and the others one less: r falls by one and q_j grows by one.
    wanted = vertices + (strides[j] - 1)
    wanted[vertices % (d + 1) == 0] += d + 1 - sum(strides)  # from r = 0 to r = d every q falls by one
    index = xp.searchsorted(vertices, wanted)
    index[index == m] = 0
    linked = vertices[index] == wanted
    before, after = xp.full_like(own, -1), xp.full_like(own, -1)
    before[index[linked]] = own[linked]
    after[linked] = xp.asarray(index[linked], dtype=xp.int32)
    columns = xp.stack([before, own, after], 1)
    present = columns >= 0
    ends = xp.zeros(m + 1, dtype=xp.int64, device=vertices.device)
    ends[1:] = xp.cumsum(1 + present[:, 0] + present[:, 2], 0)
    columns = columns[present]
    weights = xp.full_like(columns, 0.5, dtype=xp.float32)
    weights[ends[:-1] + present[:, 0]] = 1  # the vertex itself
    return compressed_rows(ends, columns, weights, (m, m))
