"""The toy experiment: pictures, gradient maps, fine-tuning, claims, and the whole step as a user runs it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from data.base import rng
from data.digits import REGIONS, SIDE, make_pictures
from misc.hgr import COMPARED, CONTROL, finetune, gradient_maps, high_gradient_ratio
from misc.report.toy import claims, summarise, text
from misc.rib import ACTIVATIONS
from misc.run.arguments import parse
from net.toy import LAYERS, ToyNet
from run_sample import STEPS
from step import toy
from tests.helpers import run_cli, torchrun, undocumented

SMALL = ("--toy_seeds 2 --toy_train 16 --toy_test 4 --toy_epochs 1 --toy_batch_size 8 --toy_rib_iter 2 "
         "--steps toy --device cpu").split()  # fmt: skip
ONE = ("--toy_seeds", "1", "--toy_test", "2")
IRRELEVANT, DISCRIMINATIVE, NON_DISCRIMINATIVE = range(3)


def small_net(seed=0):
    torch.manual_seed(seed)
    return ToyNet().eval()


def tensors(n, split="test", marked=1.0, seed=0):
    return toy._tensors(make_pictures(split, n, marked, seed), torch.device("cpu"))


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


def test_gradient_maps_against_finite_differences():
    images, labels, _ = tensors(2)
    net = small_net().double()
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    images = images.double() + 0.1 * noise  # black lies on the kink of every ReLU
    maps = gradient_maps(net, images, labels)
    assert maps.shape == (2, LAYERS + 1, SIDE, SIDE)
    torch.testing.assert_close(maps.amax((2, 3)), torch.ones(2, LAYERS + 1, dtype=torch.double))
    for k in range(LAYERS + 1):

        def output(moved, k=k):
            layer = net.outputs(moved)[min(k, LAYERS - 1)][0]
            return layer[labels[0]] if k == LAYERS - 1 else layer.sum()

        wanted = []
        for y, x in ((10, 10), (30, 28), (25, 40)):
            step = torch.zeros_like(images)
            step[0, 0, y, x] = 1e-6
            wanted.append((output(images + step) - output(images - step)).abs().item())
        got = maps[0, k][[10, 30, 25], [10, 28, 40]].numpy()
        assert max(wanted) > 0  # equal up to the one factor of the normalisation
        np.testing.assert_allclose(got / max(got), np.array(wanted) / max(wanted), atol=1e-3)


@pytest.mark.parametrize("activation", ["none", "softsign"])
def test_finetuning_is_ribs_step(activation):
    images, _, _ = tensors(1)
    net, wanted, lr, n_steps = small_net(), small_net(), 3e-3, 4
    copied, steps, _ = finetune(net, images, 1, activation, lr, n_steps, 1e9)
    for step in range(n_steps):
        wanted.zero_grad()
        (-ACTIVATIONS[activation](wanted(images)[0, 1])).backward()
        with torch.no_grad():
            for name, weight in wanted.named_parameters():
                rate = lr * (10 if name.startswith("fc") else 1) * (1 - step / n_steps) ** 0.9
                weight -= rate * weight.grad
    assert steps == n_steps and copied(images)[0, 1] > net(images)[0, 1] + 0.1
    for name, weight in wanted.named_parameters():  # weight decay and momentum of 1e-4 weigh less
        moved = (weight - net.state_dict()[name]).abs().max()
        assert (copied.state_dict()[name] - weight).abs().max() < 0.01 * moved


def test_finetuning_ends_after_the_step_that_began_above_the_stop():
    images, _, _ = tensors(1)
    net = small_net(3)
    before = net(images)[0, 1].item()
    _, n_steps, once = finetune(net, images, 1, "none", 1e-3, 6, 0.0)
    assert n_steps == 1 and 0 < before < once
    assert [finetune(net, images, 1, "none", 1e-3, 6, stop)[1] for stop in ((before + once) / 2, 1e9)] == [2, 6]


def test_training_is_adam_on_the_cross_entropy(monkeypatch):
    words = "--toy_train 16 --toy_batch_size 8 --toy_epochs 3 --toy_weight_decay 0.5 --toy_lr 0.01"
    args = parse(STEPS, ["--steps", "toy", *words.split()])[0]
    trained = toy._trained(args, 4, torch.device("cpu"))
    net = small_net(4)
    optimizer = torch.optim.Adam(net.parameters(), 0.01, weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=6)
    images, labels, _ = tensors(16, "train", 0.1, 4)
    for epoch in range(3):
        for chosen in rng(4, "toy", epoch).permutation(16).reshape(2, 8):
            right = torch.sigmoid(net(images[chosen]))[torch.arange(8), labels[chosen]]
            wrong = torch.sigmoid(net(images[chosen]))[torch.arange(8), 1 - labels[chosen]]
            optimizer.zero_grad()
            (-(right.log() + (1 - wrong).log()).mean() / 2).backward()
            optimizer.step()
            schedule.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-3, atol=1e-4)


PUBLISHED = dict.fromkeys(("untrained", "trained", "sigmoid", "softsign", "tanh"), 0.9) | {
    "relu": 0.05, "none": -0.1, CONTROL: 0.6,
}  # fmt: skip


def constructed(falls, high=1.0):
    """HGR curves whose non-discriminative region falls from `high` by the given amounts, all else as published."""
    curves = {}
    for name, size in falls.items():
        values = np.full((2, 3, LAYERS + 1), high)
        values[:, IRRELEVANT, 2:] = 0.02
        values[:, NON_DISCRIMINATIVE, 5] = high - size
        curves[name] = values
    return curves


@pytest.mark.parametrize(
    ("changes", "hold"),
    [
        ({}, [1, 2, 3, 4, 5]),
        (dict.fromkeys(PUBLISHED, 0.1), [1, 2]),
        ({"none": 0.5, "relu": 0.5}, [1, 2, 3]),
        ({"relu": 0.5}, [1, 2, 3, 4]),
        ({"tanh": -0.9}, [1, 2, 3, 4]),
        ({"none": -0.9, "relu": -0.9}, [1, 2, 3, 4, 5]),  # HGR rises: no fall is left
    ],
)
def test_claims_hold_for_the_published_curves_and_fail_for_others(changes, hold):
    values = claims(constructed(PUBLISHED | changes), 1e-3)
    assert [k + 1 for k, claim in enumerate(values) if claim["reproduced"]] == hold and len(values) == 5


def test_a_claim_holds_in_every_seed_and_says_what_was_measured():
    one_seed = constructed(PUBLISHED)
    one_seed["trained"][1, NON_DISCRIMINATIVE, 4:6] = 0.1
    values = claims(one_seed, 1e-3)
    assert not values[1]["reproduced"] and values[1]["holds_in"] == "1 of 2 seeds"
    assert values[3]["measured"]["with the sigmoid"] == [0.9, 0.0]
    assert "at this rate (--toy_rib_lr 0.001)" in values[4]["claim"]
    for high in (0.0, 1.0):  # where nothing or everything is high, no claim holds
        same = {name: np.full((2, 3, LAYERS + 1), high) for name in PUBLISHED}
        assert not any(claim["reproduced"] for claim in claims(same, 1e-3))


def summary(curves, accuracy=(1.0, 0.95)):
    logits = {name: [8.0, 10.0] for name in curves} | {"none": [200.0, 300.0], CONTROL: [15.0, 17.0]}
    thresholds = {0.2: curves, 0.3: constructed(PUBLISHED | {"trained": 0.3})}
    return summarise(thresholds, 0.2, logits, {name: [10, 9] for name in COMPARED}, accuracy, 1e-3)


def test_what_is_printed():
    curves = constructed(PUBLISHED | {"relu": -0.1})
    curves["relu"][:, NON_DISCRIMINATIVE, 6] = curves["none"][:, NON_DISCRIMINATIVE, 6] = 0.777
    printed = " ".join(text(summary(curves)).split())
    for words in (
        "sigmoid, as trained 9.0 1.000 0.100 0.900 0.000 90% 1.000",
        "fine-tuned: none 250.0 1.000 1.100 -0.100 0.000 -10% 0.777",
        "1 reproduced: irrelevant regions vanish by G_3",
        "Note: ReLU equals none: while the logit is positive, ReLU is no activation.",
        "Claims that hold by threshold: 0.2: 1 2 3 4 5; 0.3: 1 2 4 5.",
        "before training, HGR of irrelevant at G_3 is 0.02, 0.02",
    ):
        assert words in printed
    assert "3 NOT REPRODUCED" in text(summary(constructed(PUBLISHED | {"trained": 0.7})))
    values = summary(curves, accuracy=(1.0, 0.89))  # a network that has not learnt
    assert values["claims"] == [] and values["by_threshold"]["0.2"]["reproduced"] == []
    assert "89% of a network's test images are right" in text(values) and "REPRODUCED" not in text(values).upper()


def run(work_dir, *arguments):
    return run_cli(*SMALL, "--work_dir", work_dir, *arguments)


@pytest.fixture
def without_figures(monkeypatch):
    monkeypatch.setattr(toy, "_draw", lambda *_: None)  # they take most of the time of a small run


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
    stored = [json.loads((finished / "toy" / f"seed_{seed}.json").read_text())["hgr"] for seed in (0, 1)]
    assert list(values["hgr"]) == ["untrained", "trained", *COMPARED] and list(values["steps"]) == list(COMPARED)
    for name, by_region in values["hgr"].items():
        of_seeds = np.array([one[name][3] for one in stored])  # at the threshold, (seeds, regions, layers and output)
        for i, region in enumerate(REGIONS):
            np.testing.assert_allclose(by_region[region]["seeds"], of_seeds[:, i, :LAYERS])
            np.testing.assert_allclose(by_region[region]["mean"], of_seeds[:, i, :LAYERS].mean(0), atol=1e-5)
        np.testing.assert_allclose(values["whole_output"][name]["seeds"], of_seeds[:, NON_DISCRIMINATIVE, LAYERS])
        marks = by_region["non-discriminative"]["mean"]
        assert values["fall"][name]["mean"] == pytest.approx(marks[4] - marks[5], abs=1e-5)
        assert values["by_threshold"]["0.2"]["hgr"][name] == {region: by_region[region]["mean"] for region in REGIONS}
    logit = {name: one["mean"] for name, one in values["logit"].items()}
    assert logit["untrained"] != logit["trained"] < logit[CONTROL] < (logit["trained"] + logit["none"]) / 2
    assert values["steps"]["none"] == {"mean": 2.0, "std": 0.0, "seeds": [2.0, 2.0]}
    assert values["claims"] == [] and "no verdict" in values["notes"][0]  # two steps of training
    assert list(values["by_threshold"]) == ["0.05", "0.1", "0.15", "0.2", "0.25", "0.3"] and values["threshold"] == 0.2
    assert (finished / "toy" / "table.txt").read_text() == f"{text(values)}\n"


def test_stored_ratios_are_means_over_the_test_images(finished):
    stored = json.loads((finished / "toy" / "seed_1.json").read_text())
    net = small_net()
    net.load_state_dict(torch.load(finished / "toy" / "seed_1.pth", weights_only=True))
    images, labels, regions = tensors(4, seed=1)
    ones = [slice(i, i + 1) for i in range(4)]
    copies = [finetune(net, images[one], int(labels[one]), "none", 1e-3, 2, 100.0)[0] for one in ones]
    for name, nets in (("untrained", [small_net(1)] * 4), ("trained", [net] * 4), ("none", copies)):
        maps = torch.cat([gradient_maps(nets[i], images[one], labels[one]) for i, one in enumerate(ones)])
        wanted = [high_gradient_ratio(maps, regions, threshold).mean(0) for threshold in stored["thresholds"]]
        np.testing.assert_allclose(stored["hgr"][name], wanted, atol=2e-3)


def test_a_stored_seed_is_kept_and_a_missing_one_made_again(finished, without_figures, capsys):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (finished / "toy").glob("seed_*")}
    (finished / "toy" / "seed_1.json").unlink()
    assert run(finished) == 0
    for path, (content, time) in before.items():
        assert path.read_bytes() == content and (path.stat().st_mtime_ns == time) == ("seed_0" in path.name)
    assert "fine-tuned: none" in capsys.readouterr().out


def test_seeds_of_other_settings_stop_and_of_other_code_are_kept(tmp_path, without_figures, monkeypatch, capsys):
    file = tmp_path / "toy" / "seed_0.json"
    assert run(tmp_path, *ONE) == 0
    before = json.loads(file.read_text())
    assert run(tmp_path, *ONE, "--toy_rib_lr", "0.002") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "created with toy_rib_lr 0.001, now 0.002. " in told and "--overwrite" in told
    assert json.loads(file.read_text()) == before
    assert run(tmp_path, *ONE, "--toy_rib_lr", "0.002", "--overwrite") == 0
    after = json.loads(file.read_text())
    assert after["hgr"]["trained"] == before["hgr"]["trained"] and after["hgr"]["none"] != before["hgr"]["none"]
    assert "another version" not in capsys.readouterr().err
    monkeypatch.setattr(toy, "code_version", lambda: {"commit": "other"})
    assert run(tmp_path, *ONE, "--toy_rib_lr", "0.002") == 0
    assert f"{file} was created by another version of the code or of torch; it is kept" in capsys.readouterr().err
    assert json.loads(file.read_text()) == after


def test_mistakes_get_one_line(tmp_path, without_figures, capsys):
    assert run(tmp_path, "--toy_train", "4") == 2
    assert "do not fill one batch" in capsys.readouterr().err.splitlines()[-1]
    assert run(tmp_path, *ONE) == 0
    for file in sorted((tmp_path / "toy").glob("seed_0.*")):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert run(tmp_path, *ONE) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert str(file) in told and "--overwrite" in told
        file.write_bytes(whole)


@pytest.mark.slow
def test_two_ranks_share_the_seeds_and_find_what_one_finds(tmp_path):
    results = []
    for ranks, shown in ((1, [0, 1, 2]), (2, [0, 2])):  # rank 0 alone tells what it does
        folder = tmp_path / str(ranks)
        told = torchrun(*SMALL, "--toy_seeds", "3", "--toy_test", "2", "--work_dir", folder, ranks=ranks)
        assert [seed for seed in range(3) if f"seed {seed}: accuracy" in told] == shown
        results.append(json.loads((folder / "metrics.json").read_text())["toy"])
        assert results[-1].pop("seconds") > 0
    assert results[0] == results[1] and len(results[0]["accuracy"]) == 3
