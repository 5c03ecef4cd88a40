"""The ResNet backbones with the strides of the method, and a small one of the same class for `shapes`."""

from dataclasses import dataclass

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck


@dataclass(frozen=True)
class Arch:
    """Shape of a bottleneck ResNet.

    blocks: blocks per stage; width: channels of the stem (64 in ResNet-50); strides: of layer1..layer4 given that the
    stem's convolution has stride 2; dilations: of layer1..layer4, of all blocks of a stage alike; max_pool: whether the
    stem ends in a 3x3 max pooling of stride 2.
    """

    blocks: tuple[int, int, int, int]
    width: int = 64
    strides: tuple[int, int, int, int] = (1, 2, 2, 1)
    dilations: tuple[int, int, int, int] = (1, 1, 1, 1)
    max_pool: bool = True

    @property
    def channels(self) -> tuple[int, int, int, int, int]:
        """Output channels of the stem and of layer1..layer4."""
        return (self.width, *(self.width * 4 * 2**i for i in range(4)))

    @property
    def stage_strides(self) -> tuple[int, int, int, int, int]:
        """Stride, against the input, of the stem's output and of layer1..layer4."""
        out = [4 if self.max_pool else 2]
        for stride in self.strides:
            out.append(out[-1] * stride)
        return tuple(out)

    @property
    def stride(self) -> int:
        """Overall output stride."""
        return self.stage_strides[-1]


ARCHS = {
    # IRN: strides (2, 2, 2, 1), the first being the stem's max pooling; the last stage keeps stride 1 and dilation 1.
    "resnet50": Arch(blocks=(3, 4, 6, 3)),
    # DeepLab-v2: overall stride 8. Every block of a dilated stage has the stage's dilation, the first one too, where
    # torchvision's replace_stride_with_dilation gives that one the dilation of the stage before.
    "resnet101": Arch(blocks=(3, 4, 23, 3), strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    # One block per stage, half the width, no max pooling: overall stride 8, for images of about 100 px.
    "resnet14": Arch(blocks=(1, 1, 1, 1), width=32, max_pool=False),
}


class ResNet(nn.Module):
    """A bottleneck ResNet without its classifier; parameters carry torchvision's names (`layer3.0.bn1.weight`).

    `net.backbones.Timm` puts another network in its place, with the same attributes.
    """

    head_name = "fc"  # of the classifier in a checkpoint of torchvision

    def __init__(self, arch: str = "resnet50"):
        super().__init__()
        self.arch_name = arch
        self._build()

    def _build(self) -> None:
        if self.arch_name not in ARCHS:
            raise ValueError(f"unknown network {self.arch_name!r}; there are {', '.join(ARCHS)}, or timm:NAME")
        self.arch = ARCHS[self.arch_name]
        self.n_features = self.arch.channels[-1]
        width = self.arch.width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if self.arch.max_pool else nn.Identity()
        inplanes = width
        stages = zip(self.arch.blocks, self.arch.strides, self.arch.dilations, strict=True)
        for i, (blocks, stride, dilation) in enumerate(stages):
            planes = width * 2**i
            setattr(self, f"layer{i + 1}", _stage(inplanes, planes, blocks, stride, dilation))
            inplanes = planes * Bottleneck.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def fixed(self) -> list[nn.Module]:
        """What never learns: everything up to layer2."""
        return [self.conv1, self.bn1, self.layer1, self.layer2]

    @property
    def learned(self) -> list[nn.Module]:
        """What learns besides a classifier, batch normalisation's affine parameters among it."""
        return [self.layer3, self.layer4]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> the features that a classifier takes [B, D, h, w]: after layer4 in a ResNet."""
        return self.pre_logits(self.upper(self.lower(x)))

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> [B, width, h, w]."""
        return self.maxpool(torch.relu(self.bn1(self.conv1(x))))

    def lower(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> features after layer2, the part that never learns in RIB."""
        return self.layer2(self.layer1(self.stem(x)))

    def upper(self, x: torch.Tensor) -> torch.Tensor:
        """Features after layer2 -> features after layer4."""
        return self.layer4(self.layer3(x))

    def pre_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Features [B, D, h, w], or pooled [B, D, 1, 1] -> what the classifier takes: the same in a ResNet."""
        return x

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images [B, 3, H, W] -> the five feature maps (stem, layer1..layer4)."""
        out = [self.stem(x)]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            out.append(layer(out[-1]))
        return out


def _stage(inplanes: int, planes: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    outplanes = planes * Bottleneck.expansion
    downsample = None
    if stride != 1 or inplanes != outplanes:
        downsample = nn.Sequential(
            nn.Conv2d(inplanes, outplanes, 1, stride=stride, bias=False), nn.BatchNorm2d(outplanes)
        )
    first = Bottleneck(inplanes, planes, stride, downsample, dilation=dilation)
    return nn.Sequential(first, *(Bottleneck(outplanes, planes, dilation=dilation) for _ in range(blocks - 1)))


def strided_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of the grid of a given stride: (ceil(H / stride), ceil(W / stride))."""
    return -(-size[0] // stride), -(-size[1] // stride)
