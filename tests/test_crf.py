"""The dense CRF: lattice and labels against plain dense forms, the backends against each other, labels by hand."""

import cv2
import numpy as np
import pytest
import torch

from benchmarks.common import labelings_of, photograph
from misc import crf
from misc.permutohedral import Lattice
from tests.helpers import relative_error, run_cli

CPU = torch.device("cpu")
BACKENDS = ("scipy", CPU, "pydensecrf")


def skip_without(backend):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")


def plain_filter(features, x):
    """The same lattice, point by point with a dictionary, in float64."""
    d = features.shape[1]
    vertices, corners = {}, []
    for f in features.astype(np.float64):
        scaled = f * np.sqrt(2 / 3) * (d + 1) / np.sqrt(np.arange(1, d + 1) * np.arange(2, d + 2))
        elevated = np.array([scaled[j:].sum() - j * (scaled[j - 1] if j else 0) for j in range(d + 1)])
        assert abs(elevated.sum()) < 1e-6  # in the plane
        # Vertices near the point: those whose coordinates agree modulo d + 1 and sum to 0; the d + 1 that surround it
        # are found by walking from the nearest one of remainder 0 along the sorted remainders.
        base = np.round(elevated / (d + 1)) * (d + 1)
        excess = round(base.sum() / (d + 1))
        order = np.argsort(-(elevated - base), kind="stable")
        if excess > 0:
            base[order[-excess:]] -= d + 1
        elif excess < 0:
            base[order[:-excess]] += d + 1
        order = np.argsort(-(elevated - base), kind="stable")
        remainder = (elevated - base)[order] / (d + 1)
        weights = np.append(
            1 - (remainder[0] - remainder[-1]), [remainder[i - 1] - remainder[i] for i in range(d, 0, -1)]
        )
        for step in range(d + 1):
            key = base + step
            key[order[d + 1 - step :]] -= d + 1
            corners.append((vertices.setdefault(tuple(key.astype(int)), len(vertices)), weights[step]))
    values = np.zeros((len(vertices), x.shape[1]))
    for i, (vertex, weight) in enumerate(corners):
        values[vertex] += weight * x[i // (d + 1)]
    for j in range(d + 1):
        new = values.copy()
        for key, vertex in vertices.items():
            for sign in (1, -1):
                other = np.array(key) - sign
                other[j] += sign * (d + 1)
                if tuple(other) in vertices:
                    new[vertex] += 0.5 * values[vertices[tuple(other)]]
        values = new
    out = np.zeros_like(x, np.float64)
    for i, (vertex, weight) in enumerate(corners):
        out[i // (d + 1)] += weight * values[vertex] / (1 + 2.0**-d)
    return out


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_lattice_equals_the_plain_form(d, library):
    rng = np.random.default_rng(d)
    features = rng.normal(0, 1.5, (120, d)).astype(np.float32)
    x = rng.random((120, 3)).astype(np.float32)
    lattice = Lattice(library(features))
    kernel = plain_filter(features, np.eye(120))
    assert relative_error(lattice.filter(library(x)), kernel @ x) < 1e-4
    norm = kernel.sum(1) ** -0.5
    assert relative_error(lattice.normalise(3).filter(library(x)), 3 * np.outer(norm, norm) * kernel @ x) < 1e-4


def picture(seed, n_labels, size=(60, 80)):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (5, 7, 3)).astype(np.uint8)
    image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC) + rng.normal(0, 8, (*size, 3))
    labelings = [
        cv2.resize(rng.integers(0, n_labels, (6, 8)).astype(np.uint8), size[::-1], interpolation=0) for _ in "ab"
    ]
    return np.clip(image, 0, 255).astype(np.uint8), labelings


def plain_crf(image, labeling, n_labels, kernel):
    """Mean field with dense matrices in float64; kernel: [N, d] features -> [N, N]."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    position, colour = np.stack([x.ravel(), y.ravel()], 1), image.reshape(-1, 3).astype(float)
    messages = 0
    for features, weight in ((position / 3, 3), (np.concatenate([position / 50, colour / 5], 1), 10)):
        k = kernel(features.astype(np.float32))
        messages += weight * k / np.sqrt(np.outer(k.sum(1), k.sum(1)))
    prior = np.where(np.arange(n_labels) == labeling.reshape(-1, 1), 0.7, 0.3 / (n_labels - 1))
    q = prior
    for _ in range(10):
        q = prior * np.exp(messages @ q)
        q /= q.sum(1, keepdims=True)
    return q.argmax(1).reshape(labeling.shape)


@pytest.mark.parametrize("n_labels", [2, 5])
@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_labels_equal_those_of_dense_matrices(backend, n_labels):
    skip_without(backend)
    image, labelings = picture(n_labels, n_labels, (15, 20))
    refined = crf.crf_labels(image, labelings, n_labels, backend)
    for labeling, got in zip(labelings, refined, strict=True):
        wanted = plain_crf(image, labeling, n_labels, lambda features: plain_filter(features, np.eye(len(features))))
        np.testing.assert_array_equal(got, wanted)
    assert len(np.unique(refined)) > 1 and not np.array_equal(refined, labelings)


@pytest.mark.parametrize("n_labels", [2, 4, 20])
@pytest.mark.parametrize("backend", ["pydensecrf", CPU], ids=str)
def test_backends_agree_on_drawn_pictures_and_photographs(backend, n_labels):
    skip_without(backend)
    photographs = [photograph(name, 160) for name in ("chelsea", "rocket")]
    pairs = [picture(0, n_labels), *((image, labelings_of(image, n_labels)) for image in photographs)]
    for image, labelings in pairs:
        ours = crf.crf_labels(image, labelings, n_labels)
        theirs = [crf.crf_labels(image, [labeling], n_labels, backend)[0] for labeling in labelings]  # one by one
        np.testing.assert_array_equal(ours, theirs)
        assert len(np.unique(ours)) > 1


def test_labels_by_hand():
    cams = np.array([[[0.3, 0.31, 0.1]], [[0.3, 0.31, 0.5]]], np.float32)
    assert crf.hard_labels(cams, 0.3).tolist() == [[0, 1, 2]]  # ties go to the background
    # One label: nothing to refine. A uniform image with one clear majority: the CRF removes the lone pixel.
    assert crf.ir_label(np.zeros((4, 5, 3), np.uint8), np.zeros((0, 4, 5)), [], 0.3, 0.1).tolist() == [[0] * 5] * 4
    image = np.full((20, 20, 3), 90, np.uint8)
    cam = np.zeros((1, 20, 20), np.float32)
    cam[0, 10, 10] = 1
    assert crf.ir_label(image, cam, [6], 0.3, 0.1).max() == 0
    # Left half above both thresholds, right half between them (ignored), each of its own colour; the rest below both.
    image[:, :7], image[:, 7:14] = (250, 0, 0), (0, 0, 250)
    cam[0, :, :7], cam[0, :, 7:14], cam[0, :, 14:] = 0.9, 0.2, 0.0
    label = crf.ir_label(image, cam, [6], 0.3, 0.1)
    assert (label[:, :6] == 7).all() and (label[:, 8:13] == 255).all() and (label[:, 15:] == 0).all()


def test_auto_is_scipy_on_a_cpu_and_pytorch_on_a_gpu():
    gpu = torch.device("cuda", 0)
    assert crf.resolve_backend("auto", CPU) == crf.resolve_backend("scipy", gpu) == "scipy"
    assert crf.resolve_backend("auto", gpu) == gpu and crf.resolve_backend("torch", CPU) == CPU
    assert [crf.processes(backend, 4) for backend in ("scipy", "pydensecrf", CPU, gpu)] == [4, 4, 4, 0]


def test_pydensecrf_that_is_not_installed_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("misc.run.arguments.importlib.util.find_spec", lambda name: None)
    assert run_cli("--crf_backend", "pydensecrf", "--dry_run") == 2
    assert "wanted the package pydensecrf2: pip install -r requirements-pydensecrf.txt" in capsys.readouterr().err
    assert run_cli("--crf_backend", "auto", "--dry_run") == 0
