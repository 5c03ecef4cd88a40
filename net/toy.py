"""The network of the toy experiment: five convolutions and one fully connected layer (RIB, section 3)."""

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = (16, 32, 32, 64, 64)
POOLED = (True, True, True, False, False)  # whether a max pooling of stride 2 follows the convolution
LAYERS = len(CHANNELS) + 1


class ToyNet(nn.Module):
    """Convolutions 3x3 with ReLU, global average pooling as in RIB's classifier, one logit per class.

    The paper gives the number of layers; widths, pooling and initialisation (He) are this program's choice. So is that
    the convolutions have no bias and wrap around at the border of the black image: black stays exactly 0 in every
    layer, and the gradient of the first layer's sum is the same at every pixel, with no border that stands out.
    """

    def __init__(self, n_classes: int = 2):
        super().__init__()
        inputs = (1, *CHANNELS[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1, padding_mode="circular", bias=False)
            for i, o in zip(inputs, CHANNELS, strict=True)
        )
        self.fc = nn.Linear(CHANNELS[-1], n_classes)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images [B, 1, H, W] -> what each of the six layers puts out, before its activation.

        Five maps [B, C_k, h, w] and the logits [B, n_classes].
        """
        out = []
        for conv, pooled in zip(self.convs, POOLED, strict=True):
            out.append(conv(x))
            x = F.relu(out[-1])
            x = F.max_pool2d(x, 2) if pooled else x
        return [*out, self.fc(x.mean((2, 3)))]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 1, H, W] -> logits [B, n_classes]."""
        return self.outputs(x)[-1]
