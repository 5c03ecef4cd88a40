"""The published optimiser, draws that depend on their keys only, precision."""

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


@pytest.mark.parametrize(
    ("at", "power", "wanted"),
    [(0, 0.9, 1.0), (5, 0.9, 0.5358867312681466), (9, 0.9, 0.12589254117941673), (10, 0.9, 0.0), (5, 1.0, 0.5)],
)
def test_poly_factor(at, power, wanted):
    assert poly_factor(at, 10, power) == pytest.approx(wanted, rel=1e-12)


def test_learning_rates_by_hand():
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
    optimizer = PolyOptimizer([p], 0.1, 0.5, max_step=4, power=1.0)
    # The group has no weight decay of its own. Momentum 0.5 under gradient 1: velocity 1, 1.5, 1.75.
    assert step(optimizer, p, 1.0) == pytest.approx(1 - 0.1 * 1)  # 0.9
    assert step(optimizer, p, 1.0) == pytest.approx(0.9 - 0.075 * 1.5)  # 0.7875
    assert step(optimizer, p, 1.0) == pytest.approx(0.7875 - 0.05 * 1.75)  # 0.7


def test_weight_decay_of_a_group_applies():
    p = parameter(2.0)
    optimizer = PolyOptimizer([{"params": [p], "weight_decay": 0.25}], 0.1, 0.25, max_step=2, power=1.0)
    # Gradient 0, decay 0.25 * 2 = 0.5: 2 - 0.1 * 0.5 = 1.95; then 0.25 * 1.95 = 0.4875, velocity 0.25 * 0.5 + 0.4875.
    assert step(optimizer, p, 0.0) == pytest.approx(1.95)
    assert step(optimizer, p, 0.0) == pytest.approx(1.95 - 0.05 * 0.6125)


def test_nothing_changes_after_the_schedule():
    p = parameter()
    optimizer = PolyOptimizer([p], 0.1, 0.9, max_step=2)
    step(optimizer, p, 1.0)
    last = step(optimizer, p, 1.0)
    assert last != 1.0 and step(optimizer, p, 1.0) == last == step(optimizer, p, 1.0)
    assert optimizer.global_step == 4


def test_a_state_dict_goes_on_exactly(tmp_path):
    def start():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        groups = [
            {"params": model[0].parameters(), "lr": 0.1, "weight_decay": 0.2},
            {"params": model[1].parameters(), "lr": 1.0},
        ]
        return model, PolyOptimizer(groups, 0.1, 0.2, max_step=5)

    def train(model, optimizer, steps):
        for k in steps:
            x = torch.from_numpy(rng(0, k).normal(size=(8, 3)).astype(np.float32))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    whole = start()
    train(*whole, range(5))
    first = start()
    train(*first, range(2))
    torch.save([thing.state_dict() for thing in first], tmp_path / "state.pth")
    second = start()
    for thing, state in zip(second, torch.load(tmp_path / "state.pth", weights_only=True), strict=True):
        thing.load_state_dict(state)
    assert second[1].global_step == 2
    train(*second, range(2, 5))
    for name, value in whole[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[name], value), name
        assert not torch.equal(first[0].state_dict()[name], value), name


def test_draws_depend_on_seed_and_keys_only():
    first = {key: rng(3, "image", key).random(4).tolist() for key in range(5)}
    np.random.seed(1)  # noqa: NPY002 global state must not matter
    torch.manual_seed(1)
    assert {key: rng(3, "image", key).random(4).tolist() for key in reversed(range(5))} == first
    assert len({tuple(values) for values in first.values()}) == 5


@pytest.mark.parametrize("other", [(1, "a", 2), (0, "b", 2), (0, "a", 3), (0, "a"), (0, 2, "a")])
def test_other_seeds_and_keys_draw_otherwise(other):
    assert rng(*other).random() != rng(0, "a", 2).random()


def test_draws_stay_the_same_between_releases():
    raw = rng(0, "2007_000032", 1).bit_generator.random_raw(2).tolist()  # NumPy keeps these streams
    assert raw == [15932168751298512879, 7971495483629696565]


def test_autocast_is_bfloat16_where_asked_only():
    layer, x = nn.Linear(4, 4), torch.ones(1, 4)
    cpu = torch.device("cpu")
    with torchutils.autocast(cpu, "bf16"):
        assert layer(x).dtype == torch.bfloat16
    for precision in ("fp32", "tf32"):
        with torchutils.autocast(cpu, precision):
            assert layer(x).dtype == torch.float32


@pytest.fixture
def tf32_flags():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    yield backends
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.mark.parametrize(("precision", "wanted"), [("tf32", True), ("fp32", False), ("bf16", False)])
def test_tf32_is_used_only_where_asked(tf32_flags, precision, wanted):
    for backend in tf32_flags:
        backend.allow_tf32 = not wanted
    torchutils.set_precision(precision)
    assert [backend.allow_tf32 for backend in tf32_flags] == [wanted] * 2


def test_device():
    assert torchutils.resolve_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
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


@pytest.mark.parametrize(("device", "wanted"), [("auto", ("nccl", 1)), ("cpu", ("gloo", None))])
def test_ranks_join_with_the_gpu_of_their_own(monkeypatch, device, wanted):
    joined, chosen = [], []
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: chosen.append(gpu.index))
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **more: joined.append((backend, more)))
    torchutils.init_ranks(device)
    ((backend, more),) = joined
    assert (backend, more["device_id"].index if more["device_id"] else None) == wanted
    assert chosen == ([1] if device == "auto" else [])
