"""Batch normalisation folded into convolutions: the same outputs, gradients and steps."""

import copy

import pytest
import torch

from net.folded import Folded
from net.resnet50_cam import CAM
from tests.helpers import relative_error


@pytest.fixture
def model():
    """A small CAM network whose batch normalisation does something."""
    torch.manual_seed(0)
    model = CAM(3, "resnet14").double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                torch.nn.init.uniform_(values, low, low + 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_same_cam_and_gradients_without_any_normalisation(model):
    plain, images = copy.deepcopy(model), torch.randn(2, 3, 32, 40, dtype=torch.float64)
    folded = Folded(model, torch.float64)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.net.modules())
    assert relative_error(folded.lower(images), model.lower(images)) < 1e-12
    got = folded.cam(folded.lower(images))
    assert got.dtype == torch.float32 and relative_error(got, model(images)) < 1e-6
    folded.pull()
    for scale in (1.0, 2.0):  # two passes whose gradients add up
        (scale * folded.net.classifier(folded.net.upper(folded.lower(images))) ** 2).sum().backward()
    folded.push()
    (3.0 * plain(images) ** 2).sum().backward()
    got, wanted = gradients(model), gradients(plain)
    assert set(got) == {name for name in wanted if name.startswith(("layer3.", "layer4.", "classifier."))}
    for name, gradient in got.items():
        assert relative_error(gradient, wanted[name]) < 1e-10 or wanted[name].abs().max() < 1e-9, name
    for one in (model, plain):
        torch.optim.SGD([p for n, p in one.named_parameters() if n in got], 1e-3).step()
    folded.pull()
    assert relative_error(folded.cam(folded.lower(images)), plain(images)) < 1e-6
    assert all(p.grad is None for p in folded.net.parameters())


def test_bf16_is_near(model):
    images = torch.randn(2, 3, 32, 32)
    folded = Folded(model.float(), torch.bfloat16)
    assert folded.lower(images).dtype == torch.bfloat16
    assert relative_error(folded.cam(folded.lower(images)), model(images)) < 0.05
