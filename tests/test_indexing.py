"""Pairs, paths, affinity and random walk against brute force and the dense form."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from misc.indexing import PathIndex, neighbour_affinity, propagate_to_edge, transition
from net.resnet50_irn import edge_to_affinity
from tests.helpers import relative_error


def cells_between(a, b):
    """Grid cells in the bounding box of a and b whose distance to the line through them is below 1."""
    (ay, ax), (by, bx) = a, b
    dy, dx = by - ay, bx - ax
    cells = set()
    for y in range(min(ay, by), max(ay, by) + 1):
        for x in range(min(ax, bx), max(ax, bx) + 1):
            py, px = y - ay, x - ax
            along = Fraction(py * dy + px * dx, dy * dy + dx * dx)  # foot of the perpendicular, in lengths of the pair
            if (py - along * dy) ** 2 + (px - along * dx) ** 2 < 1:
                cells.add((y, x))
    return cells


def all_pairs(height, width, radius):
    """Every unordered pair of cells less than `radius` apart, as (earlier, later) in reading order."""
    cells = [(y, x) for y in range(height) for x in range(width)]
    return [
        (a, b) for i, a in enumerate(cells) for b in cells[i + 1 :]
        if (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 < radius**2
    ]  # fmt: skip


def dense_affinity(edge, radius):
    """float64 [hw, hw]: 1 - greatest edge on the path, 0 beyond the radius, ones on the diagonal."""
    height, width = edge.shape
    matrix = np.eye(height * width)
    for a, b in all_pairs(height, width, radius):
        value = 1 - max(edge[cell] for cell in cells_between(a, b))
        i, j = a[0] * width + a[1], b[0] * width + b[1]
        matrix[i, j] = matrix[j, i] = value
    return matrix


def dense_transition(edge, radius, beta):
    matrix = dense_affinity(edge, radius) ** beta
    return matrix / matrix.sum(0, keepdims=True)


def make_edge(height, width, seed=0):
    """float64 [h, w] in [0, 1]: mostly low, with a wall of 1."""
    edge = 0.3 * np.random.default_rng(seed).random((height, width))
    edge[:, width // 2] = np.where(np.arange(height) % 3 == 0, 0.2, 1.0)
    return edge


@pytest.mark.parametrize("radius", [2, 3, 5])
def test_pairs_are_those_within_the_radius_each_once(radius):
    height, width = 9, 11
    sources, destinations = PathIndex(radius, (height, width)).pairs()
    got = [(int(s), int(d)) for row in destinations for s, d in zip(sources, row, strict=True)]
    r = radius - 1
    wanted = {
        (a[0] * width + a[1], b[0] * width + b[1]) for a, b in all_pairs(height, width, radius)
        if a[0] < height - r and r <= a[1] < width - r  # where every destination lies inside
    }  # fmt: skip
    assert len(got) == len(set(got)) and set(got) == wanted
    for ours, theirs in zip(PathIndex(radius, (20, 20)).pairs((height, width)), (sources, destinations), strict=True):
        np.testing.assert_array_equal(ours, theirs)  # of another size than the default
    with pytest.raises(ValueError, match=rf"1 x 9 grid is too small for pairs within radius {radius}"):
        PathIndex(radius, (1, 9)).pairs()


@pytest.mark.parametrize("size", [(8, 9), (3, 7), (1, 6), (6, 1)])
def test_neighbour_affinity_equals_brute_force(size):
    """At the border too, and on grids smaller than the radius."""
    edge = make_edge(*size)
    affinity, directions = neighbour_affinity(torch.from_numpy(edge), 5)
    wanted = dense_affinity(edge, 5)
    height, width = size
    seen = 0
    for values, (dy, dx) in zip(affinity.numpy(), directions, strict=True):
        for y in range(height):
            for x in range(width):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    assert values[y, x] == wanted[y * width + x, (y + dy) * width + x + dx]
                    seen += 1
                else:
                    assert values[y, x] == 0
    assert seen == len(all_pairs(height, width, 5))


def test_edge_to_affinity_equals_neighbour_affinity():
    edge = torch.from_numpy(np.stack([make_edge(12, 14), make_edge(12, 14, seed=1)]))
    index = PathIndex(5, (12, 14))
    got = edge_to_affinity(edge.flatten(1), [torch.from_numpy(i) for i in index.path_indices()])
    for one, whole in zip(got, edge, strict=True):
        affinity, directions = neighbour_affinity(whole, 5)
        np.testing.assert_array_equal(directions, index.destinations)
        assert torch.equal(one, affinity.flatten(1)[:, index.sources()])


def test_transition_equals_the_dense_form():
    edge = make_edge(7, 9)
    matrix = transition(torch.from_numpy(edge), 5, 10.0)
    assert matrix.dtype == torch.float64
    np.testing.assert_allclose(matrix.to_dense().T, dense_transition(edge, 5, 10.0), rtol=1e-12, atol=1e-15)
    walls = transition(torch.ones(4, 5, dtype=torch.float64), 5, 10.0).to_dense()
    assert torch.equal(walls, torch.eye(20, dtype=torch.float64))  # everything stays where it is


@pytest.mark.parametrize(("size", "radius", "exp_times"), [((7, 9), 5, 8), ((7, 9), 3, 4), ((3, 4), 5, 0)])
def test_random_walk_equals_squaring_the_dense_matrix(size, radius, exp_times):
    rng = np.random.default_rng(1)
    edge, x = make_edge(*size), rng.random((2, *size))
    matrix = dense_transition(edge, radius, 10.0)
    for _ in range(exp_times):
        matrix = matrix @ matrix
    wanted = (x * (1 - edge)).reshape(2, -1) @ matrix
    got = propagate_to_edge(torch.from_numpy(x), torch.from_numpy(edge)[None], radius, 10.0, exp_times)
    assert got.shape == (2, 1, *size)
    assert relative_error(got.flatten(1), wanted) < 1e-4
    assert relative_error(x.reshape(2, -1), wanted) > 0.05  # the walk does move
