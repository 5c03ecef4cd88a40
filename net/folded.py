"""A network with frozen batch normalisation folded into its convolutions, and the gradients carried back."""

import copy
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from net.resnet50 import ResNet


class Folded:
    """A copy of a network in which every frozen batch normalisation is part of the convolution before it.

    gamma * (conv(x, w) - mean) / std + beta = conv(x, w * s) + (beta - mean * s) with s = gamma / std: the same
    function with fewer passes over the feature maps, forwards and backwards, and less that a backward pass has to keep.
    The affine parameters learn all the same: `push` gives the original ones their gradients by the chain rule.

    model: in evaluation mode. learned: those of its modules whose parameters change; all else of it must stay as it is.
    dtype: of the copy, `net`, and of all that goes through it.
    """

    def __init__(self, model: ResNet, learned: Sequence[nn.Module], dtype: torch.dtype = torch.float32):
        self.dtype = dtype
        self.net = copy.deepcopy(model).requires_grad_(False).eval()
        layers = []
        for (parent, conv, norm), (twin, ours, _) in zip(_layers(model), list(_layers(self.net)), strict=True):
            if norm is not None:
                ours.bias = nn.Parameter(ours.weight.new_zeros(len(ours.weight)), requires_grad=False)
                name = next(name for name, module in parent.named_children() if module is norm)
                setattr(twin, name, nn.Identity())
            layers.append(_Layer(conv, norm, ours))
        self.net.to(dtype)
        changing = {id(module) for part in learned for module in part.modules()}
        self.learned = [layer for layer in layers if id(layer.conv) in changing]
        for layer in layers:
            layer.pull()
        for layer in self.learned:
            layer.ours.requires_grad_(True)

    def pull(self) -> None:
        """Takes over the parameters of what learns, and forgets the gradients."""
        for layer in self.learned:
            layer.pull()

    def push(self) -> None:
        """Gives the original parameters of what learns the gradients that have come together in the copy."""
        for layer in self.learned:
            layer.push()

    def lower(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> features after layer2, without gradient."""
        with torch.no_grad():
            return self.net.lower(images.to(self.dtype))

    def cam(self, lower: torch.Tensor) -> torch.Tensor:
        """Features after layer2 -> raw CAM [B, C, h, w], float32."""
        return self.net.classifier(self.net.upper(lower)).float()


class _Layer:
    """A convolution, the normalisation after it or None, and the convolution that stands for both."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, ours: nn.Conv2d):
        self.conv, self.norm, self.ours = conv, norm, ours
        if norm is not None:
            self.inverse_std = torch.rsqrt(norm.running_var + norm.eps)

    @torch.no_grad()
    def pull(self) -> None:
        self.ours.weight.grad = None
        if self.norm is None:
            self.ours.weight.copy_(self.conv.weight)
            return
        self.ours.bias.grad = None
        scale = self.norm.weight * self.inverse_std
        torch.mul(self.conv.weight, scale.view(-1, 1, 1, 1), out=self.ours.weight)
        self.ours.bias.copy_(self.norm.bias - self.norm.running_mean * scale)

    @torch.no_grad()
    def push(self) -> None:
        weight = self.ours.weight.grad
        if weight is None:  # nothing went backwards through here
            for module in (self.conv, self.norm):
                if module is not None:
                    module.zero_grad()
            return
        if self.norm is None:
            self.conv.weight.grad = weight.to(self.conv.weight.dtype)
            return
        bias = self.ours.bias.grad.to(self.norm.bias.dtype)
        scale = self.norm.weight * self.inverse_std
        by_scale = (weight * self.conv.weight).sum((1, 2, 3)) - self.norm.running_mean * bias
        self.conv.weight.grad = weight * scale.view(-1, 1, 1, 1)
        self.norm.weight.grad = by_scale * self.inverse_std
        self.norm.bias.grad = bias


def _layers(network: nn.Module) -> Iterator[tuple[nn.Module, nn.Conv2d, nn.BatchNorm2d | None]]:
    """Every convolution with its parent, and the batch normalisation that follows it there."""
    for parent in list(network.modules()):
        children = [*parent.children(), None]
        for module, after in itertools.pairwise(children):
            if isinstance(module, nn.Conv2d):
                yield parent, module, after if isinstance(after, nn.BatchNorm2d) else None
