"""The boundary and displacement network and its pair losses (IRN, net/resnet50_irn.py)."""

import torch
import torch.nn.functional as F
from torch import nn

from net.ranks import sum_over_ranks, world_size
from net.resnet50 import ResNet, strided_size

STRIDE = 4  # of both outputs


class MeanShift(nn.Module):
    """Subtracts a stored mean per channel, in evaluation mode only."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] -> the same, shifted."""
        return x if self.training else x - self.running_mean.view(1, -1, 1, 1)


class Net(ResNet):
    """Frozen ResNet with an edge branch (1 channel) and a displacement branch (2 channels), both at stride 4.

    arch: a name of `net.resnet50.ARCHS`. Parameters of the branches are named `fc_edge*` and `fc_dp*`.
    """

    def __init__(self, arch: str = "resnet50"):
        super().__init__(arch)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        stem, layer1, layer2, layer3, layer4 = self.arch.channels
        for i, channels in enumerate(self.arch.channels):
            setattr(self, f"fc_edge{i + 1}", _projection(channels, 32, 4))
        self.fc_edge6 = nn.Conv2d(5 * 32, 1, 1)
        self.fc_dp1 = _projection(stem, 64, 8)
        self.fc_dp2 = _projection(layer1, 128, 16)
        self.fc_dp3 = _projection(layer2, 256, 16)
        self.fc_dp4 = _projection(layer3, 256, 16)
        self.fc_dp5 = _projection(layer4, 256, 16)
        self.fc_dp6 = _projection(768, 256, 16)
        self.fc_dp7 = nn.Sequential(
            nn.Conv2d(448, 256, 1, bias=False), nn.GroupNorm(16, 256), nn.ReLU(), nn.Conv2d(256, 2, 1, bias=False),
            MeanShift(2),
        )  # fmt: skip

    @property
    def mean_shift(self) -> "MeanShift":
        """The layer that holds the mean displacement over the inference images."""
        return self.fc_dp7[4]

    def train(self, mode: bool = True) -> "Net":
        """As nn.Module.train; the backbone stays in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, 3, H, W], normalised -> edge logits [B, 1, h, w], displacement (dy, dx) [B, 2, h, w] in steps."""
        with torch.no_grad():
            stages = self.stages(x)
        strides = self.arch.stage_strides
        size = strided_size(x.shape[-2:], STRIDE)

        def at(i: int, branch: str, stride: int) -> torch.Tensor:
            """Projection of stage i (1-based) on the grid of the given stride."""
            layer = getattr(self, f"fc_{branch}{i}")
            return torch.relu(
                _to_stride(layer(stages[i - 1]), strides[i - 1], stride, strided_size(x.shape[-2:], stride))
            )

        edge = self.fc_edge6(torch.cat([at(i, "edge", STRIDE) for i in range(1, 6)], 1))
        deep = self.fc_dp6(torch.cat([at(i, "dp", 2 * STRIDE) for i in (3, 4, 5)], 1))
        deep = torch.relu(_to_stride(deep, 2 * STRIDE, STRIDE, size))
        displacement = self.fc_dp7(torch.cat([at(1, "dp", STRIDE), at(2, "dp", STRIDE), deep], 1))
        return edge, displacement

    def parameter_groups(self, lr: float, displacement_lr: float, weight_decay: float) -> list[dict]:
        """The edge branch at `lr`, the displacement branch at its own rate (IRN, step/train_irn.py: ten times `lr`)."""
        branch = {
            prefix: [p for n, p in self.named_parameters() if n.startswith(prefix)] for prefix in ("fc_edge", "fc_dp")
        }
        return [
            {"params": branch["fc_edge"], "lr": lr, "weight_decay": weight_decay},
            {"params": branch["fc_dp"], "lr": displacement_lr, "weight_decay": weight_decay},
        ]


def _projection(channels: int, out: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.GroupNorm(groups, out))


def _to_stride(x: torch.Tensor, have: int, want: int, size: tuple[int, int]) -> torch.Tensor:
    """[B, C, h, w] at stride `have` to stride `want` by bilinear resizing, cropped to `size`."""
    if have > want:
        x = F.interpolate(x, scale_factor=have // want, mode="bilinear", align_corners=False)
    elif have < want:
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
    return x[..., : size[0], : size[1]]


class AffinityDisplacementLoss(Net):
    """The network with its pair losses.

    path_index: the pairs (misc.indexing.PathIndex); its default size is that of the stride-4 grid of the crops.
    """

    LOSSES = ("bg_positive", "fg_positive", "negative", "displacement_fg", "displacement_bg")

    def __init__(self, path_index, arch: str = "resnet50"):
        super().__init__(arch)
        self.path_index = path_index
        sources, destinations = path_index.pairs()
        self.register_buffer("sources", torch.as_tensor(sources), persistent=False)
        self.register_buffer("destinations", torch.as_tensor(destinations), persistent=False)
        self.path_names = []
        for i, indices in enumerate(path_index.path_indices()):
            self.register_buffer(f"path{i}", torch.as_tensor(indices), persistent=False)
            self.path_names.append(f"path{i}")
        target = torch.as_tensor(path_index.destinations.T.copy(), dtype=torch.float32)  # (2, D)
        self.register_buffer("displacement_target", target[None, :, :, None], persistent=False)

    def forward(self, x: torch.Tensor, segmentation: torch.Tensor | None = None, batch: torch.Tensor | None = None):
        """As Net without `segmentation`; with it, the dictionary of mean losses named by LOSSES.

        x: [B, 3, H, W]. segmentation: uint8 [B, H/4, W/4], 0 background, 255 ignore. batch: [N * B, H/4, W/4], those of
        the whole batch where x is one of its N parts: the mean of the losses of all parts is then that of the batch.
        """
        edge, displacement = super().forward(x)
        if segmentation is None:
            return edge, displacement
        pairs = self.pair_labels(segmentation)
        affinity = edge_to_affinity(torch.sigmoid(edge.float()).flatten(1), [getattr(self, n) for n in self.path_names])
        attract, repel = -torch.log(affinity + 1e-5), -torch.log(1 + 1e-5 - affinity)
        flat = displacement.float().flatten(2)
        difference = flat[:, :, None, self.sources] - flat[:, :, self.destinations]  # (B, 2, D, N)
        background, foreground, different = pairs
        # Means are over the pairs of all parts and ranks: their gradients are averaged later, hence the factor.
        parts = (segmentation if batch is None else batch).split(len(x))
        counted = [pairs] if len(parts) == 1 else map(self.pair_labels, parts)
        counts = torch.stack([torch.stack([chosen.sum() for chosen in kinds]) for kinds in counted]).sum(0)
        n_background, n_foreground, n_different = sum_over_ranks(counts)
        factor = world_size() * len(parts)

        def mean(values: torch.Tensor, chosen: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
            return factor * (values * chosen).sum() / (n + 1e-5)

        return {
            "bg_positive": mean(attract, background, n_background),
            "fg_positive": mean(attract, foreground, n_foreground),
            "negative": mean(repel, different, n_different),
            "displacement_fg": mean((difference - self.displacement_target).abs().sum(1), foreground, 2 * n_foreground),
            "displacement_bg": mean(difference.abs().sum(1), background, 2 * n_background),
        }

    def pair_labels(self, segmentation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """uint8 [B, h, w] -> three bool [B, D, N]: both background, both of one foreground class, different classes."""
        flat = segmentation.flatten(1)
        source, destination = flat[:, None, self.sources], flat[:, self.destinations]
        valid = (source != 255) & (destination != 255)
        equal = (source == destination) & valid
        return equal & (source == 0), equal & (source > 0), (source != destination) & valid


def edge_to_affinity(edge: torch.Tensor, path_indices: list[torch.Tensor]) -> torch.Tensor:
    """Affinity of every pair: 1 - the greatest edge value along its path.

    edge: [B, h * w] in [0, 1]. path_indices: as `PathIndex.path_indices`. Returns [B, D, N].
    """
    return torch.cat([1 - edge[:, indices].amax(2) for indices in path_indices], 1)


def total_loss(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """(positive + negative) / 2 + (displacement foreground + background) / 2 (IRN, step/train_irn.py)."""
    positive = (losses["bg_positive"] + losses["fg_positive"]) / 2
    return (positive + losses["negative"]) / 2 + (losses["displacement_fg"] + losses["displacement_bg"]) / 2


class EdgeDisplacement(Net):
    """The network at inference: image and mirror in, one edge map and one displacement field out.

    crop_size: smaller inputs are padded to this side with zeros; 0 pads nothing. stride: of the output.
    """

    def __init__(self, crop_size: int = 512, stride: int = STRIDE, arch: str = "resnet50"):
        super().__init__(arch)
        self.crop_size, self.stride = crop_size, stride

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [2, 3, H, W], image and mirror -> edge [1, h, w] in [0, 1], displacement [2, h, w]."""
        height, width = x.shape[-2:]
        rows, columns = strided_size((height, width), self.stride)
        pad = (0, max(0, self.crop_size - width), 0, max(0, self.crop_size - height))
        edge, displacement = super().forward(F.pad(x, pad))
        edge, displacement = edge[..., :rows, :columns], displacement[..., :rows, :columns]
        return torch.sigmoid((edge[0] + edge[1].flip(-1)) / 2), displacement[0]
