"""The toy experiment: pictures, gradient maps, fine-tuning, claims, and the whole step as a user runs it."""

import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from data.base import DataError
from data.digits import DIGITS, MARK_GAP, MARK_PX, REGIONS, SIDE, compose, draw_digit, make_pictures, mark_of
from misc import toytable
from misc.cli import main, parse
from misc.hgr import COMPARED, fall, finetune, gradient_maps, high_gradient_ratio
from misc.rib import ACTIVATIONS
from misc.steps import choose
from misc.torchutils import rng
from net.toy import LAYERS, ToyNet
from run_sample import STEPS, add_arguments
from tests.test_pipeline import undocumented

SMALL = ("--toy_seeds 2 --toy_train 16 --toy_test 4 --toy_epochs 1 --toy_batch_size 8 --toy_rib_iter 2 "
         "--steps toy --device cpu").split()  # fmt: skip
IRRELEVANT, DISCRIMINATIVE, NON_DISCRIMINATIVE = range(3)


@pytest.fixture(scope="module")
def pictures():
    return make_pictures("test", 40, 1.0, 0)


def small_net(seed=0):
    torch.manual_seed(seed)
    return ToyNet().eval()


def tensors(pictures, n):
    images = torch.from_numpy(pictures.images[:n])[:, None].float() / 255
    return images, torch.from_numpy(pictures.labels[:n]), torch.from_numpy(pictures.regions[:n])


def test_digits_are_distinct_and_deterministic():
    first, again, other = (make_pictures("train", 60, 0.1, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.images, again.images)
    everything = [*first.images, *other.images, *make_pictures("test", 60, 0.1, 0).images]
    assert len({image.tobytes() for image in everything}) == 180
    np.testing.assert_array_equal(make_pictures("train", 30, 0.1, 0).images, first.images[:30])
    drawn = [draw_digit(rng(0, i), label) for i in range(20) for label in (0, 1)]
    assert all(digit.max() == 255 and 80 < (digit >= 128).sum() < 1200 for digit in drawn)
    eights, twos = (np.mean([digit >= 128 for digit in drawn[first::2]], axis=0) for first in (1, 0))
    assert np.abs(eights - twos).max() > 0.5  # they are different digits, not the same blot


@pytest.mark.parametrize(("share", "count"), [(0.1, 6), (0.0, 0), (1.0, 60)])
def test_share_of_marks_per_class(share, count):
    drawn = make_pictures("train", 60, share, 0)
    assert drawn.marked.sum() == count
    assert [(drawn.labels == label).sum() for label in (0, 1)] == [30, 30]
    assert [drawn.marked[drawn.labels == label].sum() for label in (0, 1)] == [count / 2, count / 2]


def test_regions_partition_the_picture(pictures):
    for image, label, region in zip(pictures.images, pictures.labels, pictures.regions, strict=True):
        assert image.shape == region.shape == (SIDE, SIDE)
        assert set(np.unique(region)) == {IRRELEVANT, DISCRIMINATIVE, NON_DISCRIMINATIVE}
        assert (image[region == NON_DISCRIMINATIVE] == 255).all()
        assert (image[region == DISCRIMINATIVE] > 0).all()
        assert (region == NON_DISCRIMINATIVE).sum() == mark_of(label).sum()


def test_marks_lie_free_of_the_digit(pictures):
    for i, label in enumerate(pictures.labels):
        ys, xs = np.nonzero(pictures.regions[i] == NON_DISCRIMINATIVE)
        assert np.ptp(ys) == np.ptp(xs) == MARK_PX - 1
        window = tuple(slice(max(0, v.min() - MARK_GAP), v.max() + 1 + MARK_GAP) for v in (ys, xs))
        without = pictures.images[i] * (pictures.regions[i] != NON_DISCRIMINATIVE)
        assert not without[window].any()
        np.testing.assert_array_equal(
            pictures.regions[i][ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] == NON_DISCRIMINATIVE, mark_of(label)
        )


def test_a_mark_changes_nothing_else():
    plain, marked = (make_pictures("train", 10, share, 3) for share in (0.0, 1.0))
    outside = marked.regions != NON_DISCRIMINATIVE
    np.testing.assert_array_equal(plain.images[outside], marked.images[outside])


def test_a_place_is_found_where_the_digit_fills_the_middle():
    solid = np.full((48, 48), 255, np.uint8)
    for i in range(50):
        _, region = compose(rng(1, i), solid, 0, True)
        assert (region == NON_DISCRIMINATIVE).sum() == mark_of(0).sum()


def test_marks_differ():
    ring, square = mark_of(0), mark_of(1)
    assert not ring[0, 0] and square[0, 0] and not ring[MARK_PX // 2, MARK_PX // 2]
    assert ring.sum() > 20 and square.sum() == MARK_PX**2 - (MARK_PX - 4) ** 2


def test_hgr_of_constructed_gradients():
    regions = torch.zeros(2, 4, 4, dtype=torch.uint8)
    regions[:, 0] = DISCRIMINATIVE
    regions[0, 1, :2] = NON_DISCRIMINATIVE
    maps = torch.zeros(2, LAYERS, 4, 4)
    maps[:, 0] = 1
    maps[0, 1, 0, 0] = 0.5  # one of four pixels of the digit
    maps[0, 2, 1, 0] = 0.21  # one of two pixels of the mark
    maps[0, 3, 3] = 0.2  # not above the threshold
    maps[0, 4, 3] = 0.9  # four of ten pixels of the rest
    ratios = high_gradient_ratio(maps, regions, 0.2)
    assert ratios.shape == (2, 3, LAYERS)
    torch.testing.assert_close(ratios[0, IRRELEVANT], torch.tensor([1, 0, 0, 0, 0.4, 0]))
    torch.testing.assert_close(ratios[0, DISCRIMINATIVE], torch.tensor([1, 0.25, 0, 0, 0, 0]))
    torch.testing.assert_close(ratios[0, NON_DISCRIMINATIVE], torch.tensor([1, 0, 0.5, 0, 0, 0]))
    assert ratios[1, NON_DISCRIMINATIVE].isnan().all()


def test_fall_is_that_of_the_marks():
    ratios = np.zeros((2, 3, LAYERS))
    ratios[:, NON_DISCRIMINATIVE, 4:] = [[0.9, 0.1], [0.5, 0.6]]
    np.testing.assert_allclose(fall(ratios), [0.8, -0.1])


def test_gradient_maps_against_finite_differences(pictures):
    images, labels, _ = tensors(pictures, 2)
    net = small_net().double()
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    images = images.double() + 0.1 * noise  # black lies on the kink of every ReLU
    maps = gradient_maps(net, images, labels)
    assert maps.shape == (2, LAYERS, SIDE, SIDE)
    torch.testing.assert_close(maps.amax((2, 3)), torch.ones(2, LAYERS, dtype=torch.double))
    for k in range(LAYERS):
        wanted = []
        for y, x in ((10, 10), (30, 28), (25, 40)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = images.clone()
                moved[0, 0, y, x] += step
                output = net.outputs(moved)[k][0]
                ends.append(output[labels[0]] if k == LAYERS - 1 else output.sum())
            wanted.append(((ends[0] - ends[1]) / 2e-6).abs().item())
        got = maps[0, k][[10, 30, 25], [10, 28, 40]].numpy()
        assert max(wanted) > 0  # equal up to the one factor of the normalisation
        np.testing.assert_allclose(got / max(got), np.array(wanted) / max(wanted), atol=1e-3)


def test_an_activation_at_the_end_does_not_change_the_normalised_gradient(pictures):
    images, labels, _ = tensors(pictures, 1)
    net = small_net().double()
    x = images.double().requires_grad_()
    plain = gradient_maps(net, images.double(), labels)[0, -1]
    for name in ("sigmoid", "softsign", "tanh"):
        (gradient,) = torch.autograd.grad(ACTIVATIONS[name](net(x)[0, labels[0]]), x)
        torch.testing.assert_close(gradient[0, 0].abs() / gradient.abs().max(), plain)


@pytest.mark.parametrize("activation", COMPARED)
def test_copies_start_from_the_same_weights(pictures, activation):
    images, labels, _ = tensors(pictures, 1)
    net = small_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    still, _ = finetune(net, images, int(labels[0]), activation, 1e-9, 1, 100.0)
    moved, steps = finetune(net, images, int(labels[0]), activation, 1e-3, 3, 1e9)
    for name, value in before.items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=0, atol=0)  # the trained network is untouched
        torch.testing.assert_close(still.state_dict()[name], value, rtol=0, atol=1e-6)
    assert steps == 3
    own, other = moved(images)[0, labels[0]], net(images)[0, labels[0]]
    assert own > other if ACTIVATIONS[activation](other) != 0 else own == other


def test_finetuning_is_ribs_step(pictures):
    images, _, _ = tensors(pictures, 1)
    net = small_net()
    (-net(images)[0, 1]).backward()
    copied, _ = finetune(net, images, 1, "none", 1e-3, 4, 1e9)
    one, steps = finetune(net, images, 1, "none", 1e-3, 4, 0.0)  # ends after its first step
    assert steps == 1
    torch.testing.assert_close(one.fc.weight, net.fc.weight - 1e-2 * net.fc.weight.grad)
    torch.testing.assert_close(one.convs[0].weight, net.convs[0].weight - 1e-3 * net.convs[0].weight.grad)
    assert copied(images)[0, 1] > one(images)[0, 1] > net(images)[0, 1]


def test_a_logit_that_is_not_finite_stops(pictures):
    images, _, _ = tensors(pictures, 1)
    with pytest.raises(FloatingPointError, match="--toy_rib_lr"):
        finetune(small_net(), images, 0, "none", 1e6, 5, float("inf"))


def constructed(falls):
    """HGR curves whose non-discriminative region falls by the given amounts, all else as published."""
    curves = {}
    for name, size in falls.items():
        values = np.ones((2, 3, LAYERS))
        values[:, IRRELEVANT, 2:] = 0.02
        values[:, NON_DISCRIMINATIVE, 5] = 1 - size
        curves[name] = values
    return curves


def test_claims_hold_for_the_published_curves_and_fail_for_flat_ones():
    published = dict.fromkeys(("trained", "sigmoid", "softsign", "tanh"), 0.9) | {"relu": 0.05, "none": -0.1}
    found = toytable.claims(constructed(published))
    assert len(found) == 5 and all(claim["reproduced"] for claim in found)
    assert found[3]["measured"]["with the sigmoid"] == [0.9, 0.9]
    flat = toytable.claims(constructed(dict.fromkeys(published, 0.1)))
    assert [claim["reproduced"] for claim in flat] == [True, True, False, False, False]
    assert "NOT REPRODUCED" in toytable.verdicts(flat) and "0 of 2 seeds" in toytable.verdicts(flat)
    one_seed = constructed(published)
    one_seed["trained"][1, NON_DISCRIMINATIVE, 4] = 0.1
    one_seed["trained"][1, NON_DISCRIMINATIVE, 5] = 0.1
    assert not toytable.claims(one_seed)[1]["reproduced"]
    assert toytable.claims(one_seed)[1]["holds_in"] == "1 of 2 seeds"
    assert "0.900 +- 0.000" in toytable.table(constructed(published), 0.2)


def run(work_dir, *arguments):
    return main(STEPS, add_arguments, [*SMALL, "--work_dir", str(work_dir), *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    assert run(folder) == 0
    return folder


def test_the_step_leaves_figures_and_values(finished):
    for name in ("dataset", "gradients", "curves"):
        picture = Image.open(finished / "toy" / f"{name}.png").convert("RGB")
        assert picture.width > 600 and len(picture.getcolors(1 << 20)) > 10
        assert (finished / "toy" / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    values = json.loads((finished / "metrics.json").read_text())["toy"]
    assert undocumented("toy", values) == []
    assert values["images"] == 8 and values["seeds"] == [0, 1] and values["digits"] == "rendered"
    assert set(values["hgr"]) == set(values["fall"]) == {"trained", *COMPARED}
    for name, by_region in values["hgr"].items():
        assert tuple(by_region) == REGIONS
        for region in by_region.values():
            assert len(region["mean"]) == LAYERS and np.shape(region["seeds"]) == (2, LAYERS)
            np.testing.assert_allclose(region["mean"], np.mean(region["seeds"], 0), atol=1e-5)
            assert 0 <= min(region["mean"]) and max(region["mean"]) <= 1
        marks = by_region["non-discriminative"]["mean"]
        assert values["fall"][name]["mean"] == pytest.approx(marks[4] - marks[5], abs=1e-5)
    assert len(values["claims"]) == 5 and all(isinstance(claim["reproduced"], bool) for claim in values["claims"])
    assert list(values["fall_by_threshold"]) == ["0.05", "0.1", "0.2", "0.3"] and values["threshold"] == 0.2
    assert values["fall_by_threshold"]["0.2"] == values["fall"] != values["fall_by_threshold"]["0.1"]
    stored = json.loads((finished / "toy" / "seed_1.json").read_text())
    np.testing.assert_allclose(stored["hgr"]["none"][0][2], values["hgr"]["none"]["non-discriminative"]["seeds"][1])


def test_a_stored_seed_is_kept_and_a_missing_one_made_again(finished, capsys):
    before = {path.name: path.read_bytes() for path in (finished / "toy").glob("seed_*")}
    kept = (finished / "toy" / "seed_0.json").stat().st_mtime_ns
    (finished / "toy" / "seed_1.json").unlink()
    assert run(finished) == 0
    assert (finished / "toy" / "seed_0.json").stat().st_mtime_ns == kept
    after = {path.name: path.read_bytes() for path in (finished / "toy").glob("seed_*")}
    assert after["seed_1.json"] == before["seed_1.json"] and set(after) == set(before)
    assert "fine-tuned: none" in capsys.readouterr().out


def test_seeds_of_other_settings_or_other_code_are_made_anew(tmp_path, monkeypatch, capsys):
    file = tmp_path / "toy" / "seed_0.json"
    assert run(tmp_path, "--toy_seeds", "1") == 0
    before = json.loads(file.read_text())
    assert run(tmp_path, "--toy_seeds", "1", "--toy_threshold", "0.3") == 0
    assert "toy_threshold 0.2 then, 0.3 now" in capsys.readouterr().err
    assert json.loads(file.read_text())["thresholds"][0] == 0.3
    monkeypatch.setattr("misc.made_by.of_code", lambda *_: {"step/toy.py": "other"})
    assert run(tmp_path, "--toy_seeds", "1") == 0
    after = json.loads(file.read_text())
    assert len(after["settings"]["code_sha256"]) == 64
    assert after["settings"].pop("code_sha256") != before["settings"].pop("code_sha256") and after == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--toy_train", "4"], "do not fill one batch"),
        (["--toy_weight_decay", "-1"], "wanted 0 or more"),
        (["--toy_threshold", "0"], "not a number above 0"),
    ],
)
def test_mistakes_get_one_line(tmp_path, capsys, arguments, message):
    assert run(tmp_path, *arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


def write_mnist(root, n=12):
    """MNIST's four files with n images each: digits 2, 8 and 5 in turn, a bar whose place tells which."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = np.array([2, 8, 5], np.uint8)[np.arange(n) % 3]
    images = np.zeros((n, 28, 28), np.uint8)
    for i, digit in enumerate(digits):
        images[i, 4:24, digit : digit + 6 + i] = 200
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + digits.tobytes())
    return images, digits


def test_mnist_is_read_from_its_files(tmp_path):
    write_mnist(tmp_path)
    drawn = make_pictures("train", 8, 0.5, 0, str(tmp_path))
    assert [DIGITS[label] for label in drawn.labels] == [2, 8] * 4
    assert drawn.marked.sum() == 4 and (drawn.images.max((1, 2)) >= 200).all()
    for i, region in enumerate(drawn.regions):  # a bar of 20 x (6 + its index) pixels, the longer side 30 to 36
        ys, xs = np.nonzero(region == DISCRIMINATIVE)
        height, width = np.ptp(ys) + 1, np.ptp(xs) + 1
        index = [0, 1, 3, 4, 6, 7, 9, 10][i]
        assert 30 <= height <= 36 and width / height == pytest.approx((6 + index) / 20, abs=0.03)


def test_mnist_with_too_few_digits(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(DataError, match="4 images of digit 2 for training, 5 are wanted; lower --toy_train"):
        make_pictures("train", 10, 0.1, 0, str(tmp_path))


def test_mnist_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    assert run(tmp_path, "--mnist_root", str(tmp_path / "mnist")) == 2
    message = capsys.readouterr().err
    assert "could not be fetched" in message and "leave --mnist_root out" in message and "Traceback" not in message


def test_the_step_runs_by_its_name_alone():
    step = next(step for step in STEPS if step.name == "toy")
    assert step.number is None and not step.needs_masks
    assert "toy" not in [chosen.name for chosen in choose(STEPS, parse(STEPS, add_arguments, [])[0])]
    assert choose(STEPS, parse(STEPS, add_arguments, ["--steps", "toy"])[0]) == [step]
