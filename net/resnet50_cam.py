"""The classifier and its class activation maps (RIB and IRN, net/resnet50_cam.py)."""

import torch
import torch.nn.functional as F
from torch import nn

from net.resnet50 import ResNet


class Net(ResNet):
    """Multi-label classifier: ResNet, global average pooling, 1x1 convolution without bias.

    n_classes: foreground classes. arch: a name of `net.resnet50.ARCHS`. scratch: learn every layer with ordinary batch
    normalisation (for a network that starts from random weights); the published form (False) freezes the statistics of
    every batch normalisation, keeps conv1 and bn1 as they are and stops the gradient after layer2. bias: of the
    convolution, for a head that was trained elsewhere.
    """

    def __init__(self, n_classes: int, arch: str = "resnet50", scratch: bool = False, bias: bool = False):
        super().__init__(arch)
        self.scratch = scratch
        self.classifier = nn.Conv2d(self.n_features, n_classes, 1, bias=bias)
        if not scratch:
            for module in self.fixed:
                module.requires_grad_(False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W], normalised -> features after layer4 [B, D, h, w]."""
        lower = self.lower(x)
        return self.upper(lower if self.scratch else lower.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W], normalised -> logits [B, C]."""
        pooled = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(self.pre_logits(pooled)).flatten(1)

    def train(self, mode: bool = True) -> "Net":
        """As nn.Module.train, but batch normalisation keeps its running statistics unless `scratch`."""
        super().train(mode)
        if not self.scratch:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict]:
        """The backbone at `lr` and the head at ten times `lr` (IRN, step/train_cam.py)."""
        head = list(self.classifier.parameters())
        backbone = [p for name, p in self.named_parameters() if not name.startswith("classifier.") and p.requires_grad]
        return [
            {"params": backbone, "lr": lr, "weight_decay": weight_decay},
            {"params": head, "lr": 10 * lr, "weight_decay": weight_decay},
        ]


class CAM(Net):
    """The classifier read as class activation maps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W], normalised -> raw CAM [B, C, h, w], without relu."""
        return self.classifier(self.pre_logits(self.features(x)))
