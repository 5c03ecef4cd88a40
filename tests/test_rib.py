"""GNDRP by hand, and RIB against a plain form written from FIDELITY.md: nothing cached, nothing left out."""

import numpy as np
import pytest
import torch

from benchmarks.reference import plain_rib
from data.transforms import pyramid
from misc.rib import ACTIVATIONS, RIB, gndrp
from misc.torchutils import PolyOptimizer
from net.folded import Folded
from net.resnet50 import ARCHS, Arch
from net.resnet50_cam import CAM
from tests.helpers import golden_state, relative_error

SCALES = (1.0, 0.5, 1.5, 2.0)
N_CLASSES = 4
SETTINGS = dict(
    lr=3e-5, n_iter=4, pooling="gndp", score_th=0.4, stop_th=1e9, explode_th=0.3, explode_ratio=1.1, weight_decay=1e-4
)


# pooling


@pytest.mark.parametrize(
    ("cam", "score_th", "wanted"),
    [
        # Over the maximum: 0.25, 0.5, -0.75, 1. Below 0.4 lie 1 and -3, so (1 - 3) / 4 positions.
        ([[1, 2], [-3, 4]], 0.4, -0.5),
        ([[1, 2], [-3, 4]], 0.5, -0.5),  # strictly below: 0.5 is not below 0.5
        ([[1, 2], [-3, 4]], 0.6, 0.0),
        # Only -6 is below 0.4 of the maximum 2: (-6) / 6 positions, not (-6) / 1, and not 0 as with a relu.
        ([[2, 1, 1], [2, -6, 1]], 0.4, -1.0),
        # Every map by itself. Of the second only 8 is not below 0.4 * 8, so (1 + 0 + 2) / 4.
        ([[[1, 2], [-3, 4]], [[1, 8], [0, 2]]], 0.4, [-0.5, 0.75]),
    ],
)
def test_gndrp_by_hand(cam, score_th, wanted):
    assert gndrp(torch.tensor(cam, dtype=torch.float32), score_th).tolist() == wanted


def test_gndrp_mask_takes_no_gradient():
    cam = torch.tensor([[1.0, 2.0], [-3.0, 4.0]], requires_grad=True)
    gndrp(cam, 0.4).backward()
    assert cam.grad.tolist() == [[0.25, 0.0], [0.25, 0.0]]  # 1 / (H W) where kept; none through the maximum


# the plain form


@pytest.fixture(scope="module")
def model():
    # Like resnet14, but of a fixed width: the numbers below must not change when that is tuned.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHS, "small", Arch(blocks=(1, 1, 1, 1), width=24, max_pool=False))
        model = CAM(N_CLASSES, "small")
    state = golden_state(model)
    state["classifier.weight"] -= 0.005  # mean 0: raw CAMs of both signs
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    image = np.kron(coarse, np.ones((8, 8, 1), np.uint8))  # 32 x 48
    return [torch.from_numpy(level) for level in pyramid(image, SCALES)]


LABEL = torch.tensor([1.0, 0.0, 1.0, 0.0])


def make_companions(n, seed=0):
    """`n` batches: one of class 1, one of classes 1 and 3, one of none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([[0, 1.0, 0, 0], [0, 1.0, 0, 1], [0, 0, 0, 0]])
    return [(torch.randn(3, 3, 32, 32, generator=generator), labels) for _ in range(n)]


def run(model, images, label, companions, precision="fp32", **changes):
    return RIB(model, **{**SETTINGS, **changes}, precision=precision).run(images, label, companions)


def check(model, images, label, companions, entered=None, **changes):
    """Runs both forms on the same input and holds them equal; returns the plain one's outcome."""
    companions = list(companions)
    wanted = plain_rib(model, images, label, companions, **{**SETTINGS, **changes})
    cams, steps = run(model, images, label, companions, **changes)
    assert steps == wanted.entered == (entered or wanted.entered)
    for got, want in zip(cams, wanted.cams, strict=True):
        assert relative_error(got, want) < 1e-5
    return wanted


@pytest.fixture(scope="module")
def base(model, images):
    """CAMs with the settings of most tests and a companion batch for every step."""
    return run(model, images, LABEL, make_companions(4))[0]


@pytest.mark.parametrize(
    ("n_companions", "changes"),
    [
        (4, {}),
        (4, {"label": torch.zeros(N_CLASSES), "explode_ratio": 0.0}),
        (4, {"pooling": "gap"}),
        (4, {"score_th": 0.6}),
        (4, {"n_iter": 3}),
        (4, {"weight_decay": 0.2}),  # large enough for momentum, whose slot it is in, to tell
        (2, {}),  # goes on alone when companions end
        (0, {}),
    ],
)
def test_equals_the_plain_form(model, images, base, n_companions, changes):
    changes = {"label": LABEL, **changes}
    stream = iter(make_companions(n_companions))
    check(model, images, companions=make_companions(n_companions), entered=changes.get("n_iter", 4), **changes)
    got, n_steps = run(model, images, companions=stream, **changes)
    assert len(list(stream)) == max(n_companions - (n_steps - 1), 0)  # one batch a step, none for the last
    same = n_companions >= 3 and len(changes) == 1
    assert (relative_error(got[0], base[0]) > 1e-3) != same


def test_the_weights_move_from_step_to_step(model, images, base):
    first, _ = run(model, images, LABEL, [], n_iter=1)
    for total, one in zip(base, first, strict=True):
        assert relative_error(total, 4 * one) > 0.3
    learning = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {"layer3", "layer4", "classifier"}


def test_stops_after_the_step_whose_logits_exceed_the_threshold(model, images):
    totals = [abs(total) for total in check(model, images, LABEL, make_companions(4)).totals]
    assert totals[0] < totals[1] < totals[2]
    check(model, images, LABEL, make_companions(4), stop_th=(totals[1] + totals[2]) / 2, entered=3)
    check(model, images, LABEL, make_companions(4), stop_th=totals[0] * 0.99, entered=1)


def test_explosion_ends_the_image_after_scale_one(model, images):
    coverage = check(model, images, LABEL, make_companions(4)).coverage
    assert coverage[0] > 0
    # Step 0 is exempt, so 2 are entered; of the second only scale 1.0 is added.
    check(model, images, LABEL, make_companions(4), explode_ratio=0.0, entered=2)
    first, _ = run(model, images, LABEL, make_companions(4), n_iter=1)
    cams, _ = run(model, images, LABEL, make_companions(4), explode_ratio=0.0)
    assert not torch.equal(cams[0], first[0])
    for got, one in zip(cams[1:], first[1:], strict=True):
        torch.testing.assert_close(got, one, rtol=1e-6, atol=1e-6)


def test_explosion_counts_the_union_of_the_classes_in_every_step(model, images):
    guard = {"explode_th": 0.6, "explode_ratio": 0.52}
    check(model, images, LABEL, make_companions(4), **guard, entered=2)
    one, other = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])
    for label in (one, other):  # neither class covers so much by itself
        check(model, images, label, make_companions(4), **guard, entered=4)
    coverage = check(model, images, one, make_companions(4)).coverage
    assert coverage[0] < coverage[1] < coverage[2]
    check(model, images, one, make_companions(4), explode_ratio=sum(coverage[1:3]) / 2, entered=3)


def test_weights_are_restored_bit_for_bit(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def broken():
        yield from make_companions(2)
        raise OSError("gone")

    run(model, images, LABEL, make_companions(4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(OSError, match="gone"):
        run(model, images, LABEL, broken())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_image_does_not_depend_on_the_one_before(model, images):
    rib = RIB(model, **SETTINGS)
    first, _ = rib.run(images, LABEL, make_companions(4))
    rib.run(images, 1 - LABEL, make_companions(4, seed=1))
    again, _ = rib.run(images, LABEL, make_companions(4))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_words_that_are_no_choice_are_refused(model):
    for name in ("pooling", "activation", "precision"):
        with pytest.raises(ValueError, match="'none such' is none of"):
            RIB(model, **{**SETTINGS, name: "none such"})


def test_logits_that_are_not_finite_stop_the_image(model, images):
    with pytest.raises(FloatingPointError, match="not finite in RIB step"):
        run(model, images, LABEL, [], lr=1e30)


def test_bf16_follows_the_weights_and_stays_near_fp32(model, images):
    """Autocast keeps the weights it has cast; kept from step to step they would never seem to change."""
    first, _ = run(model, images, LABEL, [], precision="bf16", n_iter=1)
    half, _ = run(model, images, LABEL, make_companions(4), precision="bf16")
    full, _ = run(model, images, LABEL, make_companions(4))
    assert all(cam.dtype == torch.float32 for cam in half)
    for one, got, wanted in zip(first, half, full, strict=True):
        assert relative_error(got, 4 * one) > 0.5  # with frozen weights exactly 0
        assert relative_error(got, wanted) < 0.02


def test_an_image_that_runs_out_of_memory_goes_on_with_fewer_rows(model, images, monkeypatch):
    wanted, n_steps = run(model, images, LABEL, make_companions(3))
    cam, passes = Folded.cam, []

    def small_card(self, x):
        passes.append(len(x))
        if len(x) > 1 and len(passes) > 5:  # in the second step
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return cam(self, x)

    rib = RIB(model, **SETTINGS)
    monkeypatch.setattr(Folded, "cam", small_card)
    got, again = rib.run(images, LABEL, iter(make_companions(3)))  # a stream, which cannot be read twice
    assert rib.rows.most == 1 and again == n_steps and set(passes) == {1, 2, 3}
    for a, b in zip(got, wanted, strict=True):
        assert relative_error(a, b) < 1e-5
    monkeypatch.setattr(Folded, "cam", cam)
    rib.run(images, LABEL, make_companions(3))
    assert rib.rows.most is None  # for that image only


def test_companions_may_be_features(model, images):
    rib = RIB(model, **SETTINGS)
    wanted, _ = rib.run(images, LABEL, make_companions(3))
    got, _ = rib.run(images, LABEL, [(rib.lower(x), y) for x, y in make_companions(3)], lowered=True)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


# recorded steps


def recorded(model, images, **changes):
    """What `run` returns, and clones of what it gave to on_step."""
    steps = []

    def keep(k, sums):
        assert k == len(steps)
        steps.append([cam.clone() for cam in sums])

    sums, entered = RIB(model, **{**SETTINGS, **changes}).run(images, LABEL, make_companions(9), keep)
    return sums, entered, steps


def test_recording_changes_nothing(model, images, base):
    sums, entered, steps = recorded(model, images, activation="none", schedule=4)
    assert entered == len(steps) == 4
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(sums, base, steps[-1], strict=True))


def test_recording_ends_with_the_image(model, images):
    _, _, whole = recorded(model, images)
    _, entered, steps = recorded(model, images, stop_th=1e-9)
    assert entered == len(steps) == 1 and torch.equal(steps[0][0], whole[0][0])
    exploded, entered, steps = recorded(model, images, explode_ratio=0.0)
    assert entered == len(steps) == 2  # of the second step only scale 1.0 is added
    assert torch.equal(steps[1][0], whole[1][0]) and torch.equal(steps[1][1], whole[0][1])
    assert all(torch.equal(a, b) for a, b in zip(exploded, steps[1], strict=True))


# final activations

Z = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
ACTIVATION = {  # its values at Z, its slope
    "none": ([-2.0, -0.5, 0.0, 0.5, 2.0], torch.ones_like),
    "sigmoid": ([0.119203, 0.377541, 0.5, 0.622459, 0.880797], lambda z: torch.exp(-z) / (1 + torch.exp(-z)) ** 2),
    "softsign": ([-2 / 3, -1 / 3, 0.0, 1 / 3, 2 / 3], lambda z: 1 / (1 + z.abs()) ** 2),
    "tanh": ([-0.964028, -0.462117, 0.0, 0.462117, 0.964028], lambda z: 1 - (2 / (1 + torch.exp(-2 * z)) - 1) ** 2),
    "relu": ([0.0, 0.0, 0.0, 0.5, 2.0], lambda z: (z > 0).float()),
}


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_the_gradient_is_that_of_the_activation_of_every_row(model, images, name, monkeypatch):
    """f'(logit) weighs the gradient of every row and class by itself, the companions' too."""
    values, slope = ACTIVATION[name]
    torch.testing.assert_close(ACTIVATIONS[name](Z), torch.tensor(values), atol=1e-6, rtol=1e-5)
    rib = RIB(model, **{**SETTINGS, "n_iter": 2}, activation=name)
    gradients = []
    monkeypatch.setattr(PolyOptimizer, "update", lambda _: gradients.append([p.grad.clone() for p in rib.parameters]))
    ((others, other_labels),) = batches = make_companions(1)
    rib.run(images, LABEL, batches)
    logits = [gndrp(model(images[scale])[:, LABEL > 0], 0.4).flatten() for scale in (0, 2, 3)]
    logits = torch.cat([*logits, gndrp(model(others), 0.4)[other_labels > 0]])
    assert len(logits) == 6 * 2 + 3 and (logits > 0).any() and (logits < 0).any()
    wanted = torch.autograd.grad(-(slope(logits.detach()) * logits).sum(), rib.parameters)
    for got, want in zip(gradients[0], wanted, strict=True):
        assert relative_error(got, want) < 1e-4
