"""DeepLab-v2 with multi-scale inputs (Chen et al., arXiv 1606.00915), and torchvision's DeepLab-v3 in the same form."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from net import backbones
from net.ranks import sum_over_ranks, world_size
from net.resnet50 import ResNet

IGNORE = 255


class ASPP(nn.ModuleList):
    """Atrous spatial pyramid pooling: 3x3 convolutions of several dilations (published: 6, 12, 18, 24), summed."""

    def __init__(self, channels: int, n_labels: int, rates: Sequence[int]):
        super().__init__(nn.Conv2d(channels, n_labels, 3, padding=rate, dilation=rate) for rate in rates)
        for layer in self:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, D, h, w] -> [B, L, h, w]."""
        return sum(layer(x) for layer in self)


class DeepLab(nn.Module):
    """A dilated backbone and a classifier of its features, at several scales of the input.

    backbone: images [B, 3, H, W] -> features [B, D, h, w], or a mapping that holds them as "out". classifier: features
    -> logits. scales: of the input, the first 1.0; their logits meet in a pixel-wise maximum. scratch: the backbone's
    batch normalisation learns, for a network that starts from random weights; else it stays as it is, statistics and
    affine parameters alike.
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module, scales: Sequence[float], scratch: bool = False):
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        self.scales, self.scratch = tuple(scales), scratch
        if not scratch:
            # FIDELITY: the published optimiser holds convolutions only, so that affine parameters stay too.
            for module in self._norms():
                module.requires_grad_(False)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W], normalised -> logits [B, L, h, w] of this one scale, at stride 8 (16 on timm)."""
        # FIDELITY: x is normalised as torchvision's weights expect; the published BGR mean (104.008, 116.669, 122.675)
        # belongs to the Caffe weights that DeepLab-v2 itself starts from.
        features = self.backbone(x)
        return self.classifier(features["out"] if isinstance(features, Mapping) else features)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Images [B, 3, H, W], normalised -> the maximum over the scales [B, L, h, w]; in training a list.

        The list: the logits of every scale, each of its own size, and the maximum; with one scale only its logits.
        """
        pyramid = [self.logits(x)]
        for scale in self.scales[1:]:
            pyramid.append(self.logits(F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)))
        first, *others = pyramid
        others = [F.interpolate(p, first.shape[-2:], mode="bilinear", align_corners=False) for p in others]
        largest = torch.stack([first, *others]).max(0).values
        if not self.training:
            return largest
        return [*pyramid, largest] if others else pyramid

    def train(self, mode: bool = True) -> "DeepLab":
        """As nn.Module.train, but the backbone's batch normalisation keeps its statistics unless `scratch`."""
        super().train(mode)
        if not self.scratch:
            for module in self._norms():
                module.eval()
        return self

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict]:
        """Backbone at `lr`; of the classifier, kernels at ten times, biases and norms at twenty times without decay."""
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        head = list(self.classifier.parameters())
        return [
            {"params": backbone, "lr": lr, "weight_decay": weight_decay},
            {"params": [p for p in head if p.ndim > 1], "lr": 10 * lr, "weight_decay": weight_decay},
            {"params": [p for p in head if p.ndim == 1], "lr": 20 * lr, "weight_decay": 0.0},
        ]

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.backbone.modules() if isinstance(module, nn.BatchNorm2d)]


def build(name: str, n_labels: int, scales: Sequence[float], rates: Sequence[int], scratch: bool = False) -> DeepLab:
    """A network with random weights.

    name: deeplabv2_ARCH, ARCH a name of `net.resnet50.ARCHS` or timm:NAME, or a DeepLab-v3 of torchvision. n_labels:
    labels with background. scales: of the input, for DeepLab-v2 (DeepLab-v3 has one). rates: of DeepLab-v2's ASPP.
    """
    family, arch = name.split("_", 1)
    if family == "deeplabv2":
        backbone = backbones.build(ResNet, arch=arch)
        return DeepLab(backbone, ASPP(backbone.n_features, n_labels, rates), scales, scratch)
    from torchvision.models import segmentation

    whole = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=n_labels, aux_loss=False)
    whole.backbone.arch_name = arch
    return DeepLab(whole.backbone, whole.classifier, (1.0,), scratch)


def segmentation_loss(outputs: Sequence[torch.Tensor], labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Sum over the outputs of their loss against the labels, shrunk to the size of each (nearest, as with PIL).

    outputs: logits [B, L, h, w] each. labels: uint8 [B, H, W], 255 ignored. kind: one of LOSSES.
    """
    total = labels.new_zeros((), dtype=torch.float32)
    for logits in outputs:
        small = F.interpolate(labels[:, None].float(), logits.shape[-2:], mode="nearest-exact")[:, 0].long()
        total = total + LOSSES[kind](logits.float(), small)
    return total


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the labelled pixels of the batch (of all ranks); logits [B, L, h, w], labels int64 [B, h, w]."""
    count = sum_over_ranks((labels != IGNORE).sum()) / world_size()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / count.clamp(min=1 / world_size())


def balanced_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Per image the mean over background pixels plus that over foreground pixels (DSRG, CVPR 2018); mean over images.

    Arguments as in `cross_entropy`. An image without one of the two has only the other.
    """
    each = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")  # 0 where ignored
    background, foreground = labels == 0, (labels != 0) & (labels != IGNORE)
    means = [(each * region).sum((1, 2)) / region.sum((1, 2)).clamp(min=1) for region in (background, foreground)]
    return (means[0] + means[1]).mean()


LOSSES = {"ce": cross_entropy, "balanced": balanced_cross_entropy}


def probabilities(levels: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """float32 [L, H, W]: softmax of the upsampled logits, averaged over scales and mirrors.

    levels: per scale the logits [1, L, h, w] of the image or [2, L, h, w] of the image and its mirror.
    """
    total = torch.zeros((levels[0].shape[1], *size), device=levels[0].device)
    for level in levels:
        softmax = F.interpolate(level.float(), size, mode="bilinear", align_corners=False).softmax(1)
        total += softmax[0]
        if len(softmax) == 2:
            total += softmax[1].flip(-1)
    return total / sum(map(len, levels))
