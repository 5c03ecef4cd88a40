"""The toy experiment's measures (RIB, section 3): gradient maps G_k, their high gradient ratio, and the fine-tuning."""

import copy

import numpy as np
import torch

from misc.rib import ACTIVATIONS
from misc.torchutils import PolyOptimizer
from net.toy import LAYERS, ToyNet

SATURATING = ("sigmoid", "softsign", "tanh")  # on both sides
CONTROL = "none, a tenth of the rate"
# name -> final activation of the fine-tuning's loss, and its learning rate over that of the others. The control tells
# what the activation does from what the growth of the logit does.
COMPARED = {name: (name, 1.0) for name in (*SATURATING, "relu", "none")} | {CONTROL: ("none", 0.1)}
HEAD_LR = 10  # learning rate of the fully connected layer over that of the convolutions (RIB, step/make_rib_cam.py)
WEIGHT_DECAY = 1e-4  # RIB, --RIB_weight_decay
N_REGIONS = 3  # irrelevant, discriminative, non-discriminative: the values 0, 1, 2 of a region map
NON_DISCRIMINATIVE = 2
G_5, G_6, WHOLE_G_6 = LAYERS - 2, LAYERS - 1, LAYERS  # where they are among the maps


def gradient_maps(net: ToyNet, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """G_1..G_6 of every image and G_6 by its literal definition: float32 [B, 7, H, W] in [0, 1].

    images: float32 [B, 1, H, W]; labels: int64 [B], the class of each.
    G_k = |gradient, with respect to the image, of the sum of layer k's output|, divided by its maximum over the image;
    a map without any gradient stays 0. A layer's output is taken before any activation. Of the sixth layer's, the logit
    of the image's own class counts, which RIB's loss raises and CAM explains; the seventh map is of both logits, as the
    definition has it to the letter. A final activation would only scale G_6 by a factor that the normalisation
    takes away: what distinguishes activations is what the network learns under them.
    """
    x = images.detach().requires_grad_()
    *outputs, logits = net.outputs(x)
    totals = [*(output.sum() for output in outputs), logits.gather(1, labels[:, None]).sum(), logits.sum()]
    maps = torch.stack([torch.autograd.grad(total, x, retain_graph=True)[0][:, 0].abs() for total in totals], 1)
    return maps / maps.amax((2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def high_gradient_ratio(maps: torch.Tensor, regions: torch.Tensor, threshold: float) -> torch.Tensor:
    """HGR: the share of a region's pixels at which G_k exceeds `threshold`, float32 [B, 3, K] by region value.

    maps: [B, K, H, W]; regions: uint8 [B, H, W]. NaN for a region that an image does not have.
    """
    inside = torch.stack([regions == value for value in range(N_REGIONS)], 1)  # (B, 3, H, W)
    high = (maps > threshold).float()
    return torch.einsum("brhw,bkhw->brk", inside.float(), high) / inside.sum((2, 3))[..., None]


def finetune(
    net: ToyNet, image: torch.Tensor, label: int, activation: str, lr: float, n_steps: int, stop: float
) -> tuple[ToyNet, int, float]:
    """A copy of the network fine-tuned on one image as RIB does, with `activation` in the place of the sigmoid.

    image: float32 [1, 1, H, W]. As in RIB every image starts from the trained network, and its optimiser takes steps on
    - activation(logit of its label): learning rate `lr`, the fully connected layer 10x, falling as
    (1 - step / n_steps) ** 0.9; it ends after the step whose logit, before the step, exceeded `stop`. Unlike RIB: no
    companions (they would mix their regions in), average pooling in place of GNDRP (all but the activation is as
    trained), one row in place of scales and mirrors (a mirrored 2 is none), no guard against an exploding CAM.
    Returns the copy, the number of steps and the logit after them. FloatingPointError where a logit is not finite.
    """
    copied = copy.deepcopy(net)
    groups = [
        {"params": copied.convs.parameters(), "lr": lr, "weight_decay": WEIGHT_DECAY},
        {"params": copied.fc.parameters(), "lr": HEAD_LR * lr, "weight_decay": WEIGHT_DECAY},
    ]
    optimizer = PolyOptimizer(groups, lr, WEIGHT_DECAY, max_step=n_steps)
    logit, done = copied(image)[0, label], 0
    while done < n_steps:
        before = logit.detach()
        optimizer.zero_grad()
        (-ACTIVATIONS[activation](logit)).backward()
        optimizer.step()
        done += 1
        logit = copied(image)[0, label]
        if not torch.isfinite(logit):
            raise FloatingPointError(f"toy: a logit is {logit.item()} after {done} steps; lower --toy_rib_lr")
        if before.abs() > stop:
            break
    return copied, done, logit.item()


def fall(ratios: np.ndarray) -> np.ndarray:
    """HGR of G_5 minus HGR of G_6 in the non-discriminative region; ratios: [..., 3, 7]."""
    return ratios[..., NON_DISCRIMINATIVE, G_5] - ratios[..., NON_DISCRIMINATIVE, G_6]
