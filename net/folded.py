"""A CAM network as RIB computes in it: a ResNet with its frozen batch normalisation folded into the convolutions.

Its gradients are carried back. Networks of timm stay as they are. In a CUDA graph folding takes 28 to 30% off a step
(tf32 and bf16, ResNet-50, one H200).
"""

import copy
import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from net.backbones import Timm
from net.resnet50_cam import CAM


def for_rib(model: CAM, dtype: torch.dtype = torch.float32) -> "Folded | Plain":
    """The form of a CAM network in which RIB computes, in this precision."""
    return (Plain if isinstance(model, Timm) else Folded)(model, dtype)


class Plain:
    """A CAM network as it is, with the methods of `Folded`; bfloat16 through autocast."""

    def __init__(self, model: CAM, dtype: torch.dtype = torch.float32):
        self.net, self.dtype = model, dtype

    def pull(self) -> None:
        """Nothing to do: the weights are the network's own."""

    def push(self) -> None:
        """Nothing to do: so are the gradients."""

    def _autocast(self, x: torch.Tensor) -> torch.autocast:
        # Without its cache, which would keep weights from before an update.
        return torch.autocast(x.device.type, self.dtype, self.dtype != torch.float32, cache_enabled=False)

    @torch.no_grad()
    def lower(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> features of stride 8, without gradient."""
        with self._autocast(images):
            return self.net.lower(images)

    def cam(self, lower: torch.Tensor) -> torch.Tensor:
        """Features of stride 8 -> raw CAM [B, C, h, w], float32."""
        with self._autocast(lower):
            return self.net.classifier(self.net.pre_logits(self.net.upper(lower))).float()


class Folded:
    """A copy of a CAM network in which every frozen batch normalisation is part of the convolution before it.

    gamma * (conv(x, w) - mean) / std + beta = conv(x, w * s) + (beta - mean * s) with s = gamma / std: the same
    function with fewer passes over the feature maps. The affine parameters learn all the same: `pull` computes the
    weights of the copy, `push` carries their gradients back.

    model: in evaluation mode. dtype: of the copy.
    """

    def __init__(self, model: CAM, dtype: torch.dtype = torch.float32):
        self.net = copy.deepcopy(model).requires_grad_(False).eval()
        changing = {id(module) for part in (*model.learned, model.classifier) for module in part.modules()}
        self.layers: list[tuple] = []  # (convolution, normalisation or None) of what learns
        self.weights: list[nn.Parameter] = []  # of the copy, for these
        self.values: list[torch.Tensor] = []  # what they are computed as, while gradients come in
        for (parent, name, after), (twin_parent, _, _) in zip(_layers(model), list(_layers(self.net)), strict=True):
            layer = (getattr(parent, name), getattr(parent, after) if after else None)
            twin = getattr(twin_parent, name)
            if after:
                setattr(twin_parent, after, nn.Identity())
                twin.bias = nn.Parameter(twin.weight.new_zeros(len(twin.weight)), requires_grad=False)
            with torch.no_grad():
                for weight, value in zip(twin.parameters(), _fold(*layer), strict=True):
                    weight.copy_(value)
            twin.to(dtype)
            if id(layer[0]) in changing:
                self.layers.append(layer)
                self.weights += twin.requires_grad_(True).parameters()
        for block in self.net.modules():
            if isinstance(block, Bottleneck):
                block.forward = partial(_bottleneck, block)

    def pull(self) -> None:
        """Takes over the parameters of what learns, and forgets the gradients."""
        self.values = []  # before new ones are made: what led to them must not be taken over
        values = [value for layer in self.layers for value in _fold(*layer)]
        for weight, value in zip(self.weights, values, strict=True):
            weight.data, weight.grad = value.detach().to(weight.dtype), None
        self.values = values if torch.is_grad_enabled() else []

    def push(self) -> None:
        """Adds the gradients that have come in since `pull` to those of the original parameters."""
        gradients = [weight.grad.to(value.dtype) for weight, value in zip(self.weights, self.values, strict=True)]
        torch.autograd.backward(self.values, gradients)
        self.values = []
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def lower(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> features after layer2, without gradient."""
        net = self.net
        return net.layer2(net.layer1(net.maxpool(conv_relu(net.conv1, images.to(net.conv1.weight.dtype)))))

    def cam(self, lower: torch.Tensor) -> torch.Tensor:
        """Features after layer2 -> raw CAM [B, C, h, w], float32."""
        return self.net.classifier(self.net.upper(lower)).float()


def conv_relu(conv: nn.Conv2d, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
    """relu(conv(x) + added), forwards in one kernel of cuDNN where there is a GPU for it."""
    if x.is_cuda and torch.version.cuda and torch.backends.cudnn.enabled:
        how = (conv.stride, conv.padding, conv.dilation, conv.groups)
        return _ConvReLU.apply(x, conv.weight, conv.bias, added, how)
    out = conv(x)
    if added is not None:
        out += added
    return torch.relu_(out)


class _ConvReLU(torch.autograd.Function):
    """PyTorch has cuDNN's kernel, but not its gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, added, how):
        if added is None:
            out = torch.cudnn_convolution_relu(x, weight, bias, *how)
        else:
            out = torch.cudnn_convolution_add_relu(x, weight, added, 1.0, bias, *how)
        ctx.save_for_backward(x, weight, out)
        ctx.how = how
        return out

    @staticmethod
    def backward(ctx, gradient):
        x, weight, out = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        wanted = ctx.needs_input_grad
        gradients = torch.ops.aten.convolution_backward(
            gradient, x, weight, [len(weight)], stride, padding, dilation, False, [0, 0], groups, wanted[:3]
        )
        return *gradients, gradient if wanted[3] else None, None


def _bottleneck(block: Bottleneck, x: torch.Tensor) -> torch.Tensor:
    """A block of torchvision's ResNet without normalisation."""
    inner = conv_relu(block.conv2, conv_relu(block.conv1, x))
    return conv_relu(block.conv3, inner, x if block.downsample is None else block.downsample(x))


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> list[torch.Tensor]:
    """Weight and bias of the convolution that stands for both, differentiable."""
    if norm is None:
        return list(conv.parameters())
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return [conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale]


def _layers(network: nn.Module) -> Iterator[tuple[nn.Module, str, str | None]]:
    """Every convolution as (parent, name, name of the batch normalisation that follows it there)."""
    for parent in list(network.modules()):
        for (name, module), after in itertools.pairwise([*parent.named_children(), None]):
            if isinstance(module, nn.Conv2d):
                yield parent, name, after[0] if after and isinstance(after[1], nn.BatchNorm2d) else None
