"""Convolutional networks of timm in the place of the ResNet, for classifier, CAM, RIB and IRN."""

import difflib
import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data.errors import UserError
from net.resnet50 import ResNet, strided_size

PREFIX = "timm:"
STRIDE = 16  # of the last two maps
SIDE = 96  # pixels of the image that a network is tried on


def build(kind: type[ResNet], *args: Any, arch: str, **options: Any) -> ResNet:
    """A network `kind` (Net, CAM, AffinityDisplacementLoss, EdgeDisplacement) on a backbone, with random weights.

    arch: a name of `net.resnet50.ARCHS`, or timm:NAME; UserError if timm has no such network or it does not fit.
    args, options: of the kind.
    """
    if arch.startswith(PREFIX):
        kind = type(f"Timm{kind.__name__}", (Timm, kind), {})
    return kind(*args, arch=arch, **options)


class Stages(NamedTuple):
    """Channels and strides of the five maps of `stages`."""

    channels: tuple[int, ...]
    stage_strides: tuple[int, ...]


class Timm(ResNet):
    """A network of timm instead of the ResNet; a mixin, to stand before Net and the others among the base classes.

    `lower` ends after the stage of stride 8. The last stage keeps stride 16 without dilation, as the published ResNet
    does; what follows it before the pooling belongs to `upper`. Where layers lie between the pooling and the linear
    layer (ConvNeXt, MobileNetV3), logits take them after the pooling and CAMs at every position.
    Images come with ImageNet's mean and deviation; a network that was trained with others is given those.
    """

    def _build(self) -> None:
        import timm
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        name = self.arch_name.removeprefix(PREFIX)
        known = timm.list_models(pretrained="." in name)  # with a tag: NAME.TAG
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known, 5)) or "nothing"
            raise UserError(f"timm has no network {name!r}; close to it: {close}")
        self.body = timm.create_model(name, num_classes=1).eval()
        reason = "its layers, one after another, do not give maps of stride 4, 8, 16 and 32 and then its logits"
        try:
            self._cut()
            reason = "its last stage does not work without its stride"
            self._remove_last_stride()
        except Exception as error:  # a network that is built otherwise can raise anything
            raise UserError(
                f"--cam_network {self.arch_name} does not fit ({reason}); wanted a convolutional network whose stages "
                "run one after another and end in global average pooling and a linear layer"
            ) from error
        self.config = self.body.pretrained_cfg
        mean, std, own_mean, own_std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, self.config["mean"], self.config["std"])
        )
        self.register_buffer("gain", std / own_std, persistent=False)
        self.register_buffer("offset", (mean - own_mean) / own_std, persistent=False)

    def _cut(self) -> None:
        """Finds the stages, what follows them and what lies after the pooling; an error if it is no such network."""
        ends = {info["reduction"]: info["module"] for info in self.body.feature_info}
        classifier = self.body.get_classifier()
        self.head_name = next(name for name, module in self.body.named_modules() if module is classifier)
        layers = dict(_layers(self.body, [*ends.values(), self.head_name]))
        order = list(layers)
        pool, head = (
            next((i for i, name in enumerate(order) if name.split(".")[-1] == last), len(order))
            for last in ("global_pool", self.head_name.split(".")[-1])
        )
        cuts = [order.index(ends[stride]) + 1 for stride in (4, 8, 16, 32)]
        # Networks without a map of stride 2 begin with a stem of stride 4, the first of the five.
        first = order.index(ends[2]) + 1 if 2 in ends else cuts[0] - 1
        modules = list(layers.values())
        self.parts = [modules[a:b] for a, b in itertools.pairwise((0, first, *cuts, pool))]  # the last: what follows
        self.after_pool = [layer for layer in modules[pool + 1 : head] if not isinstance(layer, nn.Flatten)]
        self.n_features = classifier.weight.shape[1]

        image = torch.arange(3.0 * SIDE * SIDE).sin().view(1, 3, SIDE, SIDE)
        with torch.no_grad():
            maps = _maps(image, self.parts)
            pooled = self.pre_logits(maps[-1].mean((2, 3), keepdim=True)).flatten(1)
            logits = F.linear(pooled, classifier.weight.flatten(1), classifier.bias)
            pairs = ((maps[-1], self.body.forward_features(image)), (logits, self.body(image)))
        if any(got.shape != own.shape or (got - own).abs().max() > 1e-4 * own.abs().max() for got, own in pairs):
            raise ValueError
        strides = [SIDE // stage.shape[2] for stage in maps[:4]]
        self.arch = Stages(tuple(stage.shape[1] for stage in maps[:5]), (*strides, STRIDE))
        self.body.set_submodule(self.head_name, nn.Identity())

    def _remove_last_stride(self) -> None:
        """Sets stride 1 in the last stage, without dilation; an error if its maps do not come out at stride 16."""
        from timm.layers import BlurPool2d

        for layer in self.parts[4]:
            for name, module in list(layer.named_modules()):
                if not isinstance(module, nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d | BlurPool2d):
                    continue
                stride, kernel = (int(np.max(getattr(module, key, 1))) for key in ("stride", "kernel_size"))
                if stride == kernel > 1 and not isinstance(module, nn.Conv2d):
                    layer.set_submodule(name, nn.Identity())  # a pooling over one position
                elif stride > 1:
                    module.stride = type(module.stride)((1, 1)) if isinstance(module.stride, tuple) else 1
                    if isinstance(module, nn.Conv2d) and module.padding == (0, 0) and kernel > 1:
                        module.padding = "same"
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of padding="same" with kernels of even size, said once a process
            if _maps(torch.zeros(1, 3, SIDE, SIDE), self.parts[:5])[-1].shape[2] != SIDE // STRIDE:
                raise ValueError
            odd = _maps(torch.zeros(1, 3, 72, 40), self.parts[:5])
        sizes = [strided_size((72, 40), stride) for stride in self.arch.stage_strides]
        self.pads = [tuple(stage.shape[2:]) for stage in odd] != sizes  # it drops the last rows of maps of odd size

    @property
    def fixed(self) -> list[nn.Module]:
        """What never learns: everything up to stride 8."""
        return list(itertools.chain(*self.parts[:3]))

    @property
    def learned(self) -> list[nn.Module]:
        """What learns besides a classifier."""
        return list(itertools.chain(*self.parts[3:], self.after_pool))

    def lower(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> features of stride 8, the part that never learns in RIB."""
        return _through(self._prepared(x), self.fixed)

    def upper(self, x: torch.Tensor) -> torch.Tensor:
        """Features of stride 8 -> features before the pooling [B, D, h, w], of stride 16."""
        return _through(x, itertools.chain(*self.parts[3:]))

    def pre_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Features [B, D, h, w] or pooled [B, D, 1, 1] -> what the classifier takes."""
        return _through(x, self.after_pool)

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images [B, 3, H, W] -> the five feature maps."""
        return _maps(self._prepared(x), self.parts[:5])

    def _prepared(self, x: torch.Tensor) -> torch.Tensor:
        if self.pads:
            x = F.pad(x, (0, -x.shape[3] % STRIDE, 0, -x.shape[2] % STRIDE))
        return x * self.gain + self.offset


def _layers(module: nn.Module, inner: Iterable[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of a network in their order, with their paths; those that hold one of the paths `inner` are opened."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if any(other.startswith(f"{path}.") for other in inner):
            yield from _layers(child, inner, f"{path}.")
        else:
            yield path, child


def _through(x: torch.Tensor, layers: Iterable[nn.Module]) -> torch.Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _maps(x: torch.Tensor, parts: Iterable[list[nn.Module]]) -> list[torch.Tensor]:
    """What comes out of each part."""
    return list(itertools.accumulate(parts, _through, initial=x))[1:]
