"""The step of RIB as a CUDA graph against ordinary calls, and memory that runs out; most of it needs a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.transforms import pyramid
from misc import memory
from misc.cuda_graph import Graphs, read_later
from misc.rib import RIB
from misc.torchutils import set_precision
from net.folded import Folded
from net.resnet50_cam import CAM
from tests.helpers import golden_state, relative_error

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SETTINGS = dict(lr=3e-5, n_iter=5, score_th=0.4, stop_th=1e9, explode_ratio=1.1)
N_CLASSES = 4


def test_on_a_cpu_every_call_is_an_ordinary_one():
    calls = []

    def function(x, pair, constant):
        calls.append(constant)
        return x + sum(pair), constant

    graphs = Graphs()
    for constant in (1, 2):
        total, got = graphs(function, torch.ones(2), [torch.ones(2), torch.ones(2)], constant)
        assert total.tolist() == [3, 3] and got == constant
    assert calls == [1, 2] and not graphs.graphs


class OnGpu(torch.Tensor):
    """A tensor that looks as if it were on a GPU."""

    is_cuda = True


def on_gpu(*shape, **options):
    return torch.ones(shape, **options).as_subclass(OnGpu)


def add(x, number):
    return x + number


@pytest.fixture
def made_up(monkeypatch):
    """Graphs whose recordings are made up: shapes of what was recorded."""
    shapes = []

    def record(self, function, leaves, structure):
        shapes.append(tuple(leaves[0].shape))
        return SimpleNamespace(replay=lambda: None), leaves, function(*leaves)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(Graphs, "_record", record)
    return shapes


def test_a_graph_serves_arguments_of_its_kind(made_up):
    graphs = Graphs(most=3)
    assert graphs(add, on_gpu(2), 1).tolist() == [2, 2] and not made_up  # the first call loads libraries
    for x, number, recorded in (
        (on_gpu(2), 1, 1), (on_gpu(2), 1, 1), (on_gpu(2), 2, 2), (on_gpu(2, dtype=torch.float64), 1, 3),
        (on_gpu(2), 1, 3), (on_gpu(2, 3), 1, 4), (on_gpu(2), 1, 4), (on_gpu(3, 2).T, 1, 5), (on_gpu(2), 2, 6),
    ):  # fmt: skip
        assert torch.equal(graphs(add, x, number), x + number)
        assert graphs.recorded == len(made_up) == recorded  # the least recently used one of three goes
    assert made_up == [(2,), (2,), (2,), (2, 3), (2, 3), (2,)] and len(graphs.graphs) == 3


@pytest.mark.parametrize("kind", ["memory", "memory, hidden by the end of the recording", "a wait in the function"])
def test_a_recording_that_fails(made_up, monkeypatch, caplog, kind):
    graphs = Graphs()
    graphs(add, on_gpu(2), 1), graphs(add, on_gpu(2), 1)

    def record(*_):
        if kind == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        try:
            raise torch.OutOfMemoryError("CUDA out of memory") if "memory" in kind else ValueError("a wait")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(Graphs, "_record", record)
    if "memory" in kind:
        with pytest.raises(torch.OutOfMemoryError, match="while recording a graph"):
            graphs(add, on_gpu(3), 1)
    else:  # an ordinary call, from then on
        assert graphs(add, on_gpu(3), 1).tolist() == [2, 2, 2] and "CUDA graph capture failed" in caplog.text
    assert graphs.enabled == ("memory" in kind) and not graphs.graphs  # what they held is given back


def test_numbers_are_read_later():
    assert read_later(torch.tensor([1.0, 2.5]))() == [1.0, 2.5]


def test_rows_are_halved_until_memory_suffices():
    tried, freed = [], []
    rows = memory.Rows(before=lambda: freed.append(1))

    def work(most):
        tried.append(most)
        if most is None or most > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [len(part) for (part,) in memory.split(most, torch.ones(5))]

    assert rows.retry(work, 20) == [2, 2, 1]
    assert tried == [None, 10, 5, 2] and len(freed) == 3
    assert rows.retry(work, 20) == [2, 2, 1]  # it remembers


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_known_in_every_form(error):
    assert memory.out_of_memory(error)
    assert not memory.out_of_memory(RuntimeError("CUDA error: CUDNN_STATUS_EXECUTION_FAILED"))


# on a GPU


def small_model():
    model = CAM(N_CLASSES, "resnet14").eval()
    state = golden_state(model)
    state["classifier.weight"] -= 0.005  # mean 0: raw CAMs of both signs
    model.load_state_dict(state)
    return model


@pytest.fixture(autouse=True)
def as_before():
    yield
    set_precision("fp32")


def rib(graph, precision="fp32", **changes):
    set_precision(precision, deterministic=True)
    model = small_model().to("cuda", memory_format=torch.channels_last)
    made = RIB(model, **{**SETTINGS, **changes}, precision=precision)
    made.graphs.enabled = graph
    return made


def image_of(height, width):
    coarse = np.random.default_rng(height).integers(0, 256, (height // 8, width // 8, 3))
    levels = pyramid(np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8), (1.0, 0.5, 1.5, 2.0))
    return [torch.from_numpy(level).cuda() for level in levels]


LABELS = [torch.tensor(row) for row in ([1.0, 0, 1, 0], [0.0, 1, 0, 0], [0.0, 0, 0, 0])]
SIZES = [(32, 48), (48, 32), (32, 48), (40, 40), (48, 32), (32, 48)]


def companions(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([[0, 1.0, 0, 0], [0, 1.0, 0, 1]])
    return [(torch.randn(2, 3, 32, 32, generator=generator).cuda(), labels) for _ in range(n)]


def results(made, sizes=SIZES):
    """Sums and steps of images of several sizes and labels, one after the other."""
    out = []
    for i, size in enumerate(sizes):
        label = LABELS[i % len(LABELS)].cuda()
        out.append(made.run(image_of(*size), label, companions(9 if i != 2 else 2, i)))
    return out


def assert_near(got, wanted, error):
    """The same steps, and sums that differ by less than `error`; 0: by no bit."""
    assert [n for _, n in got] == [n for _, n in wanted]
    for (sums, _), (want, _) in zip(got, wanted, strict=True):
        for a, b in zip(sums, want, strict=True):
            assert torch.equal(a.cpu(), b.cpu()) or relative_error(a.cpu(), b.cpu()) < error


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, {"stop_th": 20.0}, {"explode_ratio": 0.3}, {"activation": "tanh"}])
def test_a_graph_gives_what_ordinary_calls_give(precision, changes):
    wanted = results(rib(False, precision, **changes))
    made = rib(True, precision, **changes)
    got = results(made)
    assert made.graphs.enabled and made.graphs.graphs
    assert_near(got, wanted, 1e-6 if precision == "fp32" else 1e-2)
    assert_near(results(rib(True, precision, **changes)), got, 0)  # deterministic: the same bits again


@needs_gpu
def test_a_gpu_gives_what_a_cpu_gives():
    image, others = [level.cpu() for level in image_of(48, 64)], [(x.cpu(), y) for x, y in companions(9, 0)]
    wanted = RIB(small_model(), **SETTINGS).run(image, LABELS[0], others)
    assert_near([rib(True).run(image_of(48, 64), LABELS[0].cuda(), others)], [wanted], 1e-4)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_size_has_a_kernel(dtype):
    set_precision("fp32")
    for arch in ("resnet14", "resnet50"):
        model = CAM(N_CLASSES, arch).eval().to("cuda", memory_format=torch.channels_last)
        network = Folded(model, dtype)
        for height in (1, 2, 3, 5, 8, 17, 33, 65, 100, 281, 333, 375, 499, 500, 667, 1000):
            images = torch.randn(2, 3, height, height * 3 // 4 + 1, device="cuda")
            assert torch.isfinite(network.cam(network.lower(images))).all()


@needs_gpu
def test_what_cannot_be_recorded_is_called(caplog):
    made = rib(True)
    step = made._step

    def waits(*args):
        cams, criteria = step(*args)
        float(criteria[0])
        return cams, criteria

    made._step = waits
    assert_near(results(made), results(rib(False)), 1e-6)
    assert not made.graphs.enabled and "CUDA graph capture failed" in caplog.text


@needs_gpu
def test_a_small_card_computes_with_fewer_rows():
    """A limit of memory between what one row and what all rows at once take."""
    images = torch.randn(64, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    many = [(images, torch.tensor([[0, 1.0, 0, 1]]).expand(64, -1))] * 4
    wanted = rib(False).run(image_of(64, 96), LABELS[0].cuda(), many)
    made = rib(True)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    before = torch.cuda.memory_reserved()
    try:
        torch.cuda.set_per_process_memory_fraction((before + 160 * 2**20) / total)
        got = made.run(image_of(64, 96), LABELS[0].cuda(), many)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert made.rows.most is not None
    assert_near([got], [wanted], 1e-5)
