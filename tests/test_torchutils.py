"""The published optimiser, draws that depend on their keys only, precision, ranks."""

import numpy as np
import pytest
import torch
from torch import nn

from data.base import rng
from misc import torchutils
from misc.torchutils import PolyOptimizer, poly_factor
from tests.helpers import run_cli


def parameter(value=1.0):
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


def step(optimizer, p, grad):
    p.grad = torch.full_like(p, grad)
    optimizer.step()
    return p.item()


def test_learning_rates_by_hand():
    for at, power, wanted in ((0, 0.9, 1.0), (5, 0.9, 0.5358867312681466), (10, 0.9, 0.0), (5, 1.0, 0.5)):
        assert poly_factor(at, 10, power) == pytest.approx(wanted, rel=1e-12)
    a, b = parameter(), parameter()
    optimizer = PolyOptimizer([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 1.0}], 7.0, 0.0, max_step=4)
    rates = []
    for _ in range(4):
        step(optimizer, a, 0.0)
        rates.append([group["lr"] for group in optimizer.param_groups])
    # (1 - k / 4) ** 0.9 = 1, 0.75 ** 0.9, 0.5 ** 0.9, 0.25 ** 0.9
    np.testing.assert_allclose(np.array(rates)[:, 1], [1, 0.7718895, 0.5358867, 0.2871746], rtol=1e-6)
    np.testing.assert_allclose(np.array(rates)[:, 0], 0.1 * np.array(rates)[:, 1], rtol=1e-12)


def test_weight_decay_lands_in_the_momentum_slot():
    p = parameter()
    optimizer = PolyOptimizer([p], 0.1, 0.5, max_step=3, power=1.0)
    # The group has no weight decay of its own. Momentum 0.5 under gradient 1: velocity 1, 1.5, 1.75.
    wanted = [1 - 0.1, 0.9 - 0.1 * 2 / 3 * 1.5, 0.8 - 0.1 / 3 * 1.75]
    assert [step(optimizer, p, 1.0) for _ in range(3)] == pytest.approx(wanted)
    assert step(optimizer, p, 1.0) == step(optimizer, p, 1.0) == pytest.approx(wanted[-1])  # after the schedule
    assert optimizer.global_step == 5
    p = parameter(2.0)
    optimizer = PolyOptimizer([{"params": [p], "weight_decay": 0.25}], 0.1, 0.25, max_step=2, power=1.0)
    # Gradient 0, decay 0.25 * 2 = 0.5: 2 - 0.1 * 0.5 = 1.95; then 0.25 * 1.95 = 0.4875, velocity 0.25 * 0.5 + 0.4875.
    assert step(optimizer, p, 0.0) == pytest.approx(1.95)
    assert step(optimizer, p, 0.0) == pytest.approx(1.95 - 0.05 * 0.6125)


def test_draws_depend_on_seed_and_keys_only():
    keys = [(0, "a", 2), (1, "a", 2), (0, "b", 2), (0, "a", 3), (0, "a"), (0, 2, "a")]
    first = {key: rng(*key).random(4).tolist() for key in keys}
    np.random.seed(1)  # noqa: NPY002 global state must not matter
    assert {key: rng(*key).random(4).tolist() for key in reversed(keys)} == first
    assert len({tuple(values) for values in first.values()}) == len(keys)
    raw = rng(0, "2007_000032", 1).bit_generator.random_raw(2).tolist()  # NumPy keeps these streams
    assert raw == [15932168751298512879, 7971495483629696565]


@pytest.mark.parametrize(("precision", "tf32"), [("tf32", True), ("fp32", False), ("bf16", False)])
def test_precision_is_the_one_asked_for(precision, tf32):
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        torchutils.set_precision(precision)
        assert [backend.allow_tf32 for backend in backends] == [tf32] * 2
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
    with torchutils.autocast(torch.device("cpu"), precision):
        wanted = torch.bfloat16 if precision == "bf16" else torch.float32
        assert nn.Linear(4, 4)(torch.ones(1, 4)).dtype == wanted


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_said(tmp_path, capsys):
    assert run_cli("--device", "cuda", "--work_dir", tmp_path / "out") == 2
    assert "--device cuda, but PyTorch sees no GPU" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_shards_make_up_the_whole(monkeypatch):
    items = list("abcdefg")
    assert torchutils.shard(items) == items
    monkeypatch.setattr(torchutils, "world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(torchutils, "rank", lambda rank=rank: rank)
        parts.append(torchutils.shard(items))
    assert parts == [["a", "d", "g"], ["b", "e"], ["c", "f"]]


@pytest.mark.parametrize(
    ("device", "ranks", "wanted"),
    [("auto", "2", ("nccl", 1)), ("auto", "3", ("gloo", None)), ("cpu", "2", ("gloo", None))],
)
def test_ranks_join_with_the_gpu_of_their_own_or_share_it(monkeypatch, device, ranks, wanted):
    joined, chosen = [], []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: chosen.append(gpu.index))
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **more: joined.append((backend, more)))
    torchutils.init_ranks(device)
    ((backend, more),) = joined
    assert (backend, more["device_id"].index if more["device_id"] else None) == wanted
    assert chosen == ([1] if device == "auto" else [])
