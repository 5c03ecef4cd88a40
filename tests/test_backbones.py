"""Networks of timm: logits against timm's own, RIB against the plain form, the pipeline, networks that do not fit."""

import pytest
import timm
import torch
from torch import nn

from benchmarks.reference import plain_rib
from data.errors import UserError
from net.backbones import Timm, build
from net.resnet50_cam import CAM, Net
from net.resnet50_irn import EdgeDisplacement
from net.weights import load
from tests.helpers import relative_error, run_cli, small_arguments
from tests.test_rib import LABEL, N_CLASSES, SETTINGS, images, make_companions, run  # noqa: F401

# Name -> what has stride 2 in its last stage, and so stride 1 here; a pooling of 2 x 2 falls away.
NETWORKS = {
    "resnet10t": ("layer4.0.conv1", "layer4.0.downsample.0"),
    "resnest14d": ("layer4.0.avd_last", "layer4.0.downsample.0"),
    "regnetx_002": ("s4.b1.conv2.conv", "s4.b1.downsample.conv"),
    "tf_efficientnet_lite0": ("blocks.5.0.conv_dw",),
    "mobilenetv2_035": ("blocks.5.0.conv_dw",),
    "mobilenetv3_small_050": ("blocks.4.0.conv_dw",),
    "convnext_atto": ("stages.3.downsample.1",),
}
BEYOND_LINEAR = ("mobilenetv3_small_050", "convnext_atto")  # layers between the pooling and the linear layer
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def trained(name: str, n_classes: int = N_CLASSES) -> nn.Module:
    """A network of timm whose every parameter and statistic does something."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=n_classes).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low in ((module.weight, 0.5), (module.bias, -0.2), (module.running_mean, -0.2)):
                nn.init.uniform_(values, low, low + 0.5)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    nn.init.uniform_(model.get_classifier().bias, 1, 2)
    return model


def photographs(*size: int) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))


def normalised(photographs: torch.Tensor, model: nn.Module) -> torch.Tensor:
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (photographs - mean) / std


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_logits_are_those_of_timm(name, monkeypatch):
    theirs, photos = trained(name), photographs(64, 96)
    monkeypatch.setattr(Timm, "_remove_last_stride", lambda self: setattr(self, "pads", False))
    ours = build(Net, N_CLASSES, arch=f"timm:{name}", bias=True).eval()
    load(ours, theirs.state_dict())
    x, own = (photos - MEAN) / STD, normalised(photos, theirs)
    assert relative_error(ours.features(x), theirs.forward_features(own)) < 1e-5
    assert relative_error(ours(x), theirs(own)) < 1e-5
    own_stages = theirs.forward_intermediates(own, intermediates_only=True)[::-1]
    assert len(own_stages) == 5 - (name == "convnext_atto")  # whose first is its stem
    assert all(relative_error(*pair) < 1e-5 for pair in zip(ours.stages(x)[::-1], own_stages, strict=False))
    cam = build(CAM, N_CLASSES, arch=f"timm:{name}").eval()
    load(cam, theirs.state_dict())
    difference = relative_error(cam(x).mean((2, 3)) + theirs.get_classifier().bias, theirs(own))
    assert (difference < 1e-5) != (name in BEYOND_LINEAR)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_last_stage_only_loses_its_stride(name):
    theirs, photos = trained(name), photographs(64, 96)
    ours = build(Net, N_CLASSES, arch=f"timm:{name}", bias=True).eval()
    load(ours, theirs.state_dict())
    for path in NETWORKS[name]:
        module = theirs.get_submodule(path)
        module.stride = 1 if isinstance(module, nn.AvgPool2d) else (1, 1)
        if getattr(module, "kernel_size", None) == 2:
            theirs.set_submodule(path, nn.Identity())
        elif name == "convnext_atto":  # its 2 x 2 convolution has no padding
            theirs.set_submodule(path, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), module))
    x, own = (photos - MEAN) / STD, normalised(photos, theirs)
    assert ours.features(x).shape[2:] == (4, 6)
    assert relative_error(ours.features(x), theirs.forward_features(own)) < 1e-5
    assert relative_error(ours(x), theirs(own)) < 1e-5
    stages = ours.stages(torch.zeros(1, 3, 75, 101))  # the maps cover the image
    assert ours.arch.channels == tuple(stage.shape[1] for stage in stages)
    for stage, stride in zip(stages, ours.arch.stage_strides, strict=True):
        assert stage.shape[2] >= 75 / stride and stage.shape[3] >= 101 / stride
    assert tuple(stages[4].shape[2:]) == (5, 7) == tuple(stages[3].shape[2:])


UPPER = {
    "mobilenetv2_035": (*(f"body.blocks.{i}" for i in range(3, 7)), "body.conv_head", "body.bn2"),
    "test_convnext": ("body.stages.2", "body.stages.3", "body.norm_pre", "body.head"),
}


@pytest.mark.parametrize("name", UPPER)
def test_rib_equals_the_plain_form(name, images):  # noqa: F811
    model = build(CAM, N_CLASSES, arch=f"timm:{name}").eval()
    load(model, trained(name).state_dict())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    settings = {**SETTINGS, "lr": 1e-4}
    wanted = plain_rib(model, images, LABEL, make_companions(4), **settings, upper=UPPER[name])
    cams, n_steps = run(model, images, LABEL, make_companions(4), lr=1e-4)
    first, _ = run(model, images, LABEL, [], n_iter=1)
    half, _ = run(model, images, LABEL, make_companions(4), lr=1e-4, precision="bf16")
    assert n_steps == wanted.entered == 4
    for got, want, one, rounded in zip(cams, wanted.cams, first, half, strict=True):
        assert relative_error(got, want) < 1e-5
        assert relative_error(4 * one, want) > 0.05 > relative_error(rounded, want)
    learning = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {key for key in dict(model.named_parameters()) if key.startswith((*UPPER[name], "classifier"))}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_classifier_trains_from_stride_8_on_with_frozen_statistics():
    model = build(Net, N_CLASSES, arch="timm:test_resnet").train()
    model(photographs(64, 64)).sum().backward()
    (backbone, head), before = model.parameter_groups(0.1, 0.0), {k: v.clone() for k, v in model.named_buffers()}
    learning = [name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None]
    assert {*learning} == {"layer3", "layer4", "weight"} and head["lr"] == 1.0  # of the classifier: its weight
    assert len(backbone["params"]) == len(learning) - 1
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    everything = build(Net, N_CLASSES, arch="timm:test_resnet", scratch=True).train()
    everything(photographs(64, 64)).sum().backward()
    assert all(p.grad is not None for p in everything.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_the_irn_takes_five_stages_of_any_network(name):
    model = build(EdgeDisplacement, 0, arch=f"timm:{name}").eval()
    load(model, trained(name).state_dict(), backbone_only=True)
    edge, displacement = model(photographs(75, 101))
    assert (tuple(edge.shape), tuple(displacement.shape)) == ((1, 19, 26), (2, 19, 26)) and edge.std() > 1e-4


def test_the_pipeline_runs_on_a_network_of_timm(tmp_path):
    chosen = "--cam_network timm:test_resnet --cam_num_epoches 2 --steps 1-2,4,6-9".split()
    assert run_cli(*small_arguments(tmp_path, *chosen)) == 0
    assert len(list((tmp_path / "cam_rib").glob("*.npy"))) == len(list((tmp_path / "sem_seg").glob("*.png"))) == 8
    state = torch.load(tmp_path / "sess" / "res50_irn.pth", weights_only=True)
    assert {"body.layer4.0.conv1.weight", "fc_edge6.weight"} <= set(state)


UNFIT = ("vit_tiny_patch16_224", "pvt_v2_b0", "hrnet_w18_small", "vgg11")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, "do not give maps of stride 4, 8, 16 and 32 and then its logits") for name in UNFIT),
        ("inception_v3", "does not fit .its last stage does not work without its stride"),
        ("resnet5O", "timm has no network 'resnet5O'; close to it: .*resnet50"),
        ("resnet50.a1_in2k", "timm has no network 'resnet50.a1_in2k'; close to it: .*resnet50.a1_in1k"),
    ],
)
def test_a_network_that_does_not_fit_is_told_why(name, reason):
    with pytest.raises(UserError, match=reason):
        build(CAM, 2, arch=f"timm:{name}")


def test_weights_of_another_network_are_refused():
    with pytest.raises(UserError, match=r"lacks \d+ of \d+ tensors: .*is it for this network"):
        load(build(CAM, N_CLASSES, arch="timm:test_resnet"), trained("regnetx_002").state_dict())
