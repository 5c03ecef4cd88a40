"""The segmentation network: shapes, backbone, parameter groups, losses, order of the images, exact resume."""

import argparse
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from data.base import Dataset
from data.loaders import SegmentationCrops, TrainingLoader, stream_batches
from data.transforms import resize
from misc.run.trainloop import fit
from net import deeplabv2, weights
from net.deeplabv2 import balanced_cross_entropy, build, cross_entropy, probabilities, segmentation_loss
from step.train_seg import optimize
from tests.helpers import golden_state, relative_error, run_cli

MSC, RATES = (1.0, 0.75, 0.5), (6, 12, 18, 24)


@pytest.mark.parametrize(
    "name",
    [pytest.param("deeplabv2_resnet101", marks=pytest.mark.slow), "deeplabv2_resnet14", "deeplabv3_resnet50"],
)
def test_logits_have_stride_8(name):
    torch.manual_seed(0)
    model = build(name, 5, MSC, RATES).eval()
    for side, at_8 in ((65, 9), (97, 13)):
        with torch.no_grad():
            logits = model(torch.randn(1, 3, side, side - 8))
        assert logits.shape == (1, 5, at_8, at_8 - 1)
        assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto"])
def test_a_network_of_timm_has_stride_16_and_learns_as_a_whole(name):
    model = build(f"deeplabv2_timm:{name}", 5, (1.0,), (1, 2)).train()
    (logits,) = model(torch.randn(1, 3, 65, 57))
    assert logits.shape == (1, 5, 5, 4)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_training_gives_every_scale_and_their_maximum():
    torch.manual_seed(0)
    model = build("deeplabv2_resnet14", 5, MSC, (1, 2)).train()
    x = torch.randn(2, 3, 64, 96)
    outputs = model(x)
    assert [tuple(output.shape) for output in outputs] == [
        (2, 5, 8, 12), (2, 5, 6, 9), (2, 5, 4, 6), (2, 5, 8, 12)
    ]  # fmt: skip
    up = [F.interpolate(output, (8, 12), mode="bilinear", align_corners=False) for output in outputs[:3]]
    torch.testing.assert_close(outputs[3], torch.maximum(torch.maximum(up[0], up[1]), up[2]))
    assert (outputs[3] > outputs[0]).any()
    assert torch.equal(model.eval()(x), outputs[3])
    assert len(build("deeplabv2_resnet14", 5, (1.0,), (1,)).train()(x)) == 1


def test_torchvisions_resnet101_lands_where_it_should():
    theirs = torchvision.models.resnet101(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict(golden_state(theirs))
    # torchvision gives the first block of a dilated stage the dilation of the stage before; DeepLab-v2 its own.
    for layer, dilation in ((theirs.layer3, 2), (theirs.layer4, 4)):
        layer[0].conv2.dilation = layer[0].conv2.padding = (dilation, dilation)
    model = build("deeplabv2_resnet101", 21, MSC, RATES).eval()
    weights.load(model.backbone, theirs.state_dict(), backbone_only=True)
    x = torch.randn(1, 3, 65, 73)
    with torch.no_grad():
        wanted = [theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))]
        for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            wanted.append(layer(wanted[-1]))
        got = model.backbone.stages(x)
    for a, b in zip(got, wanted, strict=True):
        assert relative_error(a, b) < 1e-5
    assert got[-1].shape == (1, 2048, 9, 10)


def test_a_deeplabv3_backbone_is_found_in_torchvisions_file(tmp_path):
    theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21)
    model = build("deeplabv3_resnet50", 5, MSC, RATES)
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    weights.load_backbone(model.backbone, str(tmp_path / "coco.pth"))
    got = model.backbone.state_dict()
    assert all(torch.equal(got[name], value) for name, value in theirs.backbone.state_dict().items())


# what learns, and how fast


def named_groups(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = model.parameter_groups(2.5e-4, 5e-4)
    return [([names[id(p)] for p in g["params"]], round(g["lr"] / 2.5e-4), g["weight_decay"]) for g in groups]


def test_parameter_groups_are_those_of_deeplab():
    (backbone, one, decay), (kernels, ten, kernel_decay), (biases, twenty, bias_decay) = named_groups(
        build("deeplabv2_resnet101", 21, MSC, RATES)
    )
    assert (one, ten, twenty) == (1, 10, 20) and (decay, kernel_decay, bias_decay) == (5e-4, 5e-4, 0.0)
    assert kernels == [f"classifier.{i}.weight" for i in range(4)]
    assert biases == [f"classifier.{i}.bias" for i in range(4)]
    # Every convolution of ResNet-101 and nothing of its batch normalisation: 1 + 3 x 33 + 4 in the shortcuts.
    assert len(backbone) == 104 and not [name for name in backbone if "bn" in name or name.endswith("bias")]
    (backbone, *_), (kernels, ten, _), (others, twenty, bias_decay) = named_groups(
        build("deeplabv3_resnet50", 21, MSC, RATES)
    )
    assert len(backbone) == 1 + 3 * 16 + 4 and (ten, twenty, bias_decay) == (10, 20, 0)
    assert "classifier.4.weight" in kernels and {"classifier.4.bias", "classifier.2.weight"} <= set(others)


def test_batch_normalisation_is_frozen():
    model = build("deeplabv2_resnet14", 5, MSC, (1, 2))
    before = {name: value.clone() for name, value in model.state_dict().items() if "bn" in name}
    optimizer = torch.optim.SGD(model.parameter_groups(1e-3, 5e-4), 1e-3, momentum=0.9)
    model.train()
    segmentation_loss(model(torch.randn(2, 3, 64, 64)), torch.zeros(2, 64, 64, dtype=torch.uint8), "ce").backward()
    optimizer.step()
    assert before and all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    learns = build("deeplabv2_resnet14", 5, MSC, (1, 2), scratch=True).train()
    learns(torch.randn(2, 3, 64, 64))
    assert learns.backbone.bn1.training and not torch.equal(learns.backbone.bn1.running_mean, torch.zeros(32))
    assert any(name.endswith("bn1.weight") for name in named_groups(learns)[0][0])


def test_the_schedule_moves_every_ten_iterations():
    args = argparse.Namespace(seg_lr=2.5e-4, seg_weight_decay=5e-4, seg_momentum=0.9, seg_iter=40)
    optimizer, scheduler = optimize(args, build("deeplabv2_resnet14", 5, MSC, (1, 2)))
    rates = []
    for _ in range(40):
        rates.append([group["lr"] / 2.5e-4 for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    for iteration, (one, ten, twenty) in enumerate(rates):
        assert one == pytest.approx((1 - iteration // 10 * 10 / 40) ** 0.9)
        assert (ten, twenty) == pytest.approx((10 * one, 20 * one))
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)


# losses


def test_losses_by_hand():
    logits = torch.zeros(2, 3, 1, 4)
    logits[0, :, 0] = torch.log(torch.tensor([[0.5, 0.2, 0.3, 0.9], [0.3, 0.7, 0.3, 0.05], [0.2, 0.1, 0.4, 0.05]]))
    labels = torch.tensor([[[0, 1, 2, 255]], [[0, 0, 0, 0]]])
    logs = [np.log(0.5), np.log(0.7), np.log(0.4), *[np.log(1 / 3)] * 4]
    assert cross_entropy(logits, labels).item() == pytest.approx(-np.mean(logs), rel=1e-5)
    # First image: its one background pixel, plus the mean of its two foreground pixels. Second: background only.
    wanted = (-np.log(0.5) - (np.log(0.7) + np.log(0.4)) / 2 - np.log(1 / 3)) / 2
    assert balanced_cross_entropy(logits, labels).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", deeplabv2.LOSSES)
def test_pixels_without_label_do_not_count(kind):
    logits = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.full((1, 12, 12), 255, dtype=torch.uint8)
    assert segmentation_loss([logits], labels, kind).item() == 0
    labels[:, :6] = 2
    segmentation_loss([logits, logits], labels, kind).backward()
    assert (logits.grad[:, :, 3:] == 0).all() and (logits.grad[:, :, :3] != 0).all()


def test_labels_shrink_as_with_pillow():
    labels = np.random.default_rng(0).integers(0, 4, (21, 34)).astype(np.uint8)
    small = torch.from_numpy(resize(labels, 5, 9, nearest=True).astype(np.int64))
    logits = 50 * F.one_hot(small, 4).permute(2, 0, 1)[None].float()
    assert segmentation_loss([logits], torch.from_numpy(labels)[None], "ce").item() < 1e-6


def test_probabilities_average_scales_and_mirrors():
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 2, 4), torch.randn(1, 3, 4, 8)
    got = probabilities([first, second], (4, 8))
    up = F.interpolate(first, (4, 8), mode="bilinear", align_corners=False).softmax(1)
    wanted = (up[0] + up[1].flip(-1) + second.softmax(1)[0]) / 3
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(got.sum(0), torch.ones(4, 8))


# data


class Ramp(Dataset):
    """Images whose red channel holds the label, so that a crop shows whether both went through the same transform."""

    name, classes = "ramp", ("one",)

    def image(self, name):
        return np.repeat(40 * self.mask(name)[..., None], 3, 2)

    def mask(self, name, size=None):
        return np.kron(np.arange(1, 6, dtype=np.uint8)[None], np.ones((30, 12), np.uint8))


def test_crops_treat_image_and_mask_alike():
    dataset = Ramp()
    crops = SegmentationCrops(dataset, dataset.mask, (0.5, 1.0, 1.5), 64, seed=0)
    sizes = set()
    for epoch in range(12):
        image, label = crops["a", epoch]
        assert image.shape == (3, 64, 64) and label.shape == (64, 64) and label.dtype == torch.uint8
        seen = label != 255
        assert (image[:, ~seen] == 0).all()
        value = (image[0] * 0.229 + 0.485) * 255 / 40
        assert ((value - label).abs()[seen] < 0.5).float().mean() > 0.9  # bicubic softens the steps
        sizes.add(int(seen.any(1).sum()))
        torch.testing.assert_close(crops["a", epoch][0], image)
    assert sizes == {15, 30, 45}


def test_a_stream_of_batches_that_ranks_share(monkeypatch):
    names = [f"image{i}" for i in range(7)]
    batches = stream_batches(names, 4, seed=0, first=0, last=7)
    assert [len(batch) for batch in batches] == [4] * 7
    items = [item for batch in batches for item in batch]
    for epoch in range(4):  # every image once in each epoch, in another order
        assert sorted(name for name, e in items if e == epoch) == names
    assert [name for name, _ in items[:7]] != [name for name, _ in items[7:14]]
    assert stream_batches(names, 4, 0, 3, 5) == batches[3:5]
    assert len(stream_batches(names[:2], 5, 0, 0, 1)[0]) == 5  # fewer images than a batch
    monkeypatch.setattr("data.loaders.world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("data.loaders.rank", lambda rank=rank: rank)
        parts.append(stream_batches(names, 4, 0, 0, 7))
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in batches]


# training


def test_accumulated_parts_are_the_whole_batch(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 3, (4, 32, 32), generator=generator).to(torch.uint8)
    states = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        model = build("deeplabv2_resnet14", 3, (1.0, 0.5), (1, 2))
        epochs = [(epoch, 1, [(images, labels)]) for epoch in range(2)]
        loader = SimpleNamespace(n_epochs=2, epochs=lambda first, epochs=epochs: epochs[first:])
        optimizer = torch.optim.SGD(model.parameter_groups(1e-3, 5e-4), 1e-3, momentum=0.9)

        def loss_of(model, part, batch, size=4 // accumulate):
            assert len(part[0]) == size and batch[0] is images
            return segmentation_loss(model(part[0]), part[1], "balanced")

        training = SimpleNamespace(checkpoint=tmp_path / f"{accumulate}", provenance={})
        fit(model, loss_of, optimizer, loader, training, "train", accumulate=accumulate)
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["deeplabv2_resnet14", pytest.param("deeplabv3_resnet50", marks=pytest.mark.slow)])
def test_going_on_gives_the_same_bits(tmp_path, monkeypatch, model):
    arguments = (
        f"--device cpu --shapes_train 5 --shapes_val 1 --shapes_size 32 --num_workers 0 --steps train_seg --seg_model "
        f"{model} --seg_init scratch --seg_labels truth --seg_crop_size 32 --seg_batch_size 4 --seg_accumulate 2 "
        "--seg_iter 3 --seg_checkpoint_every 2 --seg_lr 1e-4 --work_dir"
    ).split()
    assert run_cli(*arguments, tmp_path / "whole") == 0
    real = TrainingLoader.epochs

    def cut(loader, first):
        yield next(real(loader, first))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoader, "epochs", cut)
        assert run_cli(*arguments, tmp_path / "cut") == 130
    assert not (tmp_path / "cut/sess/deeplabv2_truth.pth").exists()
    torch.manual_seed(12345)  # whatever happened in between
    assert run_cli(*arguments, tmp_path / "cut") == 0
    sess = "sess/deeplabv2_truth.pth"
    whole, again = (torch.load(tmp_path / kind / sess, weights_only=True) for kind in ("whole", "cut"))
    assert list(whole) == list(again) and all(torch.equal(whole[name], again[name]) for name in whole)
    assert not (tmp_path / "cut/sess/deeplabv2_truth.checkpoint").exists()
