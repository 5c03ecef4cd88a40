"""The toy experiment's measures (RIB, section 3): gradient maps G_k, their high gradient ratio, and the fine-tuning."""

import copy

import numpy as np
import torch

from data.digits import REGIONS
from misc.rib import ACTIVATIONS
from misc.torchutils import poly_factor
from net.toy import LAYERS, ToyNet

SATURATING = ("sigmoid", "softsign", "tanh")  # on both sides
COMPARED = (*SATURATING, "relu", "none")  # final activations of the fine-tuning's loss
HEAD_LR = 10  # learning rate of the fully connected layer over that of the convolutions (RIB, step/make_rib_cam.py)
NON_DISCRIMINATIVE = REGIONS.index("non-discriminative")


def gradient_maps(net: ToyNet, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """G_1..G_6 of every image: float32 [B, 6, H, W] in [0, 1].

    images: float32 [B, 1, H, W]; labels: int64 [B], the class of each.
    G_k = |gradient, with respect to the image, of the sum of layer k's output|, divided by its maximum over the image;
    a map without any gradient stays 0. A layer's output is that of the convolution or, for k = 6, of the fully
    connected layer, before any activation; of the sixth's, that of the image's own class counts, as in RIB's loss (the
    sum of both logits would nearly cancel). With a final activation G_6 would be the same: it is monotone and acts on
    that one number, so it scales the map by one factor, which the normalisation takes away. What distinguishes
    activations here is what the network has learnt under them.
    """
    maps = []
    for k in range(LAYERS):
        x = images.detach().requires_grad_()
        output = net.outputs(x)[k]
        total = output.gather(1, labels[:, None]).sum() if k == LAYERS - 1 else output.sum()
        maps.append(torch.autograd.grad(total, x)[0][:, 0].abs())
    maps = torch.stack(maps, 1)
    return maps / maps.amax((2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def high_gradient_ratio(maps: torch.Tensor, regions: torch.Tensor, threshold: float) -> torch.Tensor:
    """HGR: the share of a region's pixels at which G_k exceeds `threshold`, float32 [B, 3, 6] in the order of REGIONS.

    maps: [B, 6, H, W]; regions: uint8 [B, H, W]. NaN for a region that an image does not have.
    """
    inside = torch.stack([regions == value for value in range(len(REGIONS))], 1)  # (B, 3, H, W)
    high = (maps > threshold).float()
    return torch.einsum("brhw,bkhw->brk", inside.float(), high) / inside.sum((2, 3))[..., None]


def finetune(
    net: ToyNet, image: torch.Tensor, label: int, activation: str, lr: float, n_steps: int, stop: float
) -> tuple[ToyNet, int]:
    """A copy of the network fine-tuned on one image as RIB does, with `activation` in the place of the sigmoid.

    image: float32 [1, 1, H, W]. As in RIB every image starts from the trained network and is alone with its label:
    SGD on - sum(label * activation(logit)), learning rate `lr` (the fully connected layer 10x) falling as
    (1 - step / n_steps) ** 0.9, and an end after the step at which |logit| exceeded `stop`. Without an activation the
    loss is unbounded and grows like a product of six layers, hence small steps, few, and the stop. Other images take no
    part (B = 0): they keep the classes of a real classifier apart, and would mix their regions into this one here.
    How far the copy moves decides what is left of the fall of HGR at G_6: without an activation logits grow far, the
    further the higher the rate. A saturating activation has a small slope at the logits of a trained network, so that
    at the default rate such copies hardly move: that they keep the fall says little of higher rates.
    Returns the copy and the number of steps. FloatingPointError where the logits are not finite.
    """
    copied = copy.deepcopy(net)
    rates = (lr, HEAD_LR * lr)
    optimizer = torch.optim.SGD([{"params": copied.convs.parameters()}, {"params": copied.fc.parameters()}], lr)
    done, logit = 0, copied(image)[0, label]
    while done < n_steps:
        before = logit.detach()
        optimizer.zero_grad()
        (-ACTIVATIONS[activation](logit)).backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * poly_factor(done, n_steps)
        optimizer.step()
        done += 1
        logit = copied(image)[0, label]
        if not torch.isfinite(logit):
            raise FloatingPointError(f"toy: a logit is {logit.item()} after {done} steps; lower --toy_rib_lr")
        if before.abs() > stop:
            break
    return copied, done


def fall(ratios: np.ndarray) -> np.ndarray:
    """HGR of G_5 minus HGR of G_6 in the non-discriminative region; ratios: [..., 3, 6]."""
    return ratios[..., NON_DISCRIMINATIVE, -2] - ratios[..., NON_DISCRIMINATIVE, -1]
