"""Reducing the information bottleneck: the per-image fine-tuning that widens the CAM (RIB, section 4)."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F

from misc.cam import EPSILON, merge_mirrors
from misc.cuda_graph import Graphs, read_later
from misc.memory import Rows, split
from misc.torchutils import PolyOptimizer
from net.folded import for_rib
from net.resnet50_cam import CAM

POOLINGS, PRECISIONS = ("gndp", "gap"), ("fp32", "tf32", "bf16")
# The final activation of the loss - sum label * f(logit); RIB is the one without, the others are for comparison.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda logits: logits,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


def gndrp(cam: torch.Tensor, score_th: float) -> torch.Tensor:
    """Global non-discriminative region pooling (RIB, equation 6): [..., h, w] raw CAM -> [...].

    The mean of CAM * [CAM / max(CAM) < score_th]; the mask takes no gradient.
    """
    # FIDELITY: the raw CAM is used, not its relu, so negative positions are kept by the mask and pull the mean down.
    mask = cam.detach() / cam.detach().amax((-2, -1), keepdim=True) < score_th
    # FIDELITY: the divisor is H * W, not the number of kept positions as in the paper's equation.
    return (cam * mask).mean((-2, -1))


class RIB:
    """Fine-tunes a classifier on one image at a time and collects the CAMs of every step.

    model: CAM network with the trained weights; every image starts from them and they are restored afterwards.
    lr: of the backbone (head 10x). stop_th: stop once |sum of the image's target logits| exceeds it. explode_th,
    explode_ratio: an image ends when the normalised map exceeds explode_th on more than explode_ratio of its positions.
    precision: "bf16" computes the network in bfloat16; weights, sums and pooling stay in float32. activation: f in the
    loss; what stops an image stays the logits themselves. schedule: steps over which the learning rate falls, by
    default n_iter. ValueError for a word that is none of the choices.
    """

    def __init__(
        self,
        model: CAM,
        lr: float,
        n_iter: int,  # K
        pooling: str = "gndp",
        score_th: float = 0.4,  # tau of GNDRP
        stop_th: float = 600.0,  # M
        explode_th: float = 0.3,
        explode_ratio: float = 0.7,
        weight_decay: float = 1e-4,
        precision: str = "fp32",
        activation: str = "none",
        schedule: int | None = None,
    ):
        for word, choices in ((pooling, POOLINGS), (activation, ACTIVATIONS), (precision, PRECISIONS)):
            if word not in choices:
                raise ValueError(f"{word!r} is none of {', '.join(choices)}")
        self.model, self.n_iter = model.eval().requires_grad_(False), n_iter
        self.pooling, self.score_th, self.activation = pooling, score_th, ACTIVATIONS[activation]
        self.stop_th, self.explode_th, self.explode_ratio = stop_th, explode_th, explode_ratio
        upper = [parameter for module in model.learned for parameter in module.parameters()]
        head = list(model.classifier.parameters())
        self.parameters = [parameter.requires_grad_(True) for parameter in (*upper, *head)]
        self.trained = [parameter.detach().clone() for parameter in self.parameters]
        groups = [
            {"params": parameters, "lr": self.trained[0].new_tensor(rate), "weight_decay": weight_decay}
            for parameters, rate in ((upper, lr), (head, 10 * lr))
        ]
        self.optimizer = PolyOptimizer(groups, lr, weight_decay, max_step=schedule or n_iter, fused=True)
        self.network = for_rib(model, torch.bfloat16 if precision == "bf16" else torch.float32)
        self.graphs = Graphs()
        self.rows = Rows(before=self.graphs.clear)
        self.restore()

    def run(
        self, pyramid: Sequence[torch.Tensor], label: torch.Tensor,
        companions: Iterable[tuple[torch.Tensor, torch.Tensor]],
        on_step: Callable[[int, Sequence[torch.Tensor]], None] | None = None, lowered: bool = False,
    ) -> tuple[list[torch.Tensor], int]:  # fmt: skip
        """The CAMs of one image, summed over the steps.

        pyramid: per scale [2, 3, h, w] (image, mirror); the first entry is scale 1.0, the second 0.5. label: [C].
        companions: per step B disjoint images [B, 3, H, W] and labels [B, C]; where they end the image learns alone.
        lowered: they are what `lower` gives of the images. on_step: called as on_step(k, sums) once the CAMs of step
        k = 0, 1, ... are added (k = 0: the plain CAM).
        Returns one [C, h', w'] per scale (relu, mirrors added, summed over steps) and the number of steps entered.
        ValueError for one scale only. FloatingPointError if CAMs or loss are not finite. Where memory runs out the
        image goes on with fewer rows at a time; the error is raised where one is too much.
        """
        if len(pyramid) < 2:
            raise ValueError("the pyramid holds one scale; wanted 1.0, 0.5, and any others")
        if not lowered:
            companions = ((self.lower(images), labels.to(label.device)) for images, labels in companions)
        self.rows.most = None
        image = [self.lower(images) for images in pyramid]
        batches = islice(companions, self.n_iter - 1)
        batch = next(batches, None)
        sums = [0.0] * len(image)
        try:
            for k in range(self.n_iter):
                learns = k < self.n_iter - 1  # the last update would never be used
                self.optimizer.set_rates(k)
                step = partial(self.graphs, self._step) if learns else self._step
                n_rows = 2 if batch is None else max(2, len(batch[0]))
                cams, criteria = self.rows.retry(partial(step, image, label, batch, learns), n_rows)
                read = read_later(criteria)
                batch = next(batches, None)  # goes through the lower layers before a GPU is waited for
                coverage, target, loss = read()
                exploded = k > 0 and coverage > self.explode_ratio
                # FIDELITY: an explosion is noticed once scale 1.0 is added; the other scales of its step are left out.
                for scale in range(1 if exploded else len(cams)):
                    sums[scale] = sums[scale] + cams[scale]
                if on_step is not None:
                    on_step(k, sums)
                if exploded or not learns:
                    break
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss is not finite in RIB step {k + 1}; try a smaller --RIB_lr")
                # FIDELITY: the sum over the image's six rows stands where the paper has min(m, y).
                if abs(target) > self.stop_th:
                    break
        finally:
            self.restore()
        if not torch.stack([torch.isfinite(cam).all() for cam in sums]).all():
            raise FloatingPointError("the CAMs are not finite; try a smaller --RIB_lr")
        return sums, k + 1

    @torch.no_grad()
    def lower(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> features after layer2 [B, D, h, w], which RIB never changes."""
        images = images.to(self.trained[0].device, non_blocking=True)

        def work(rows: int | None) -> torch.Tensor:
            return torch.cat([self.network.lower(part) for (part,) in split(rows, images)])

        return self.rows.retry(work, len(images))

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the trained weights back."""
        for parameter, trained in zip(self.parameters, self.trained, strict=True):
            parameter.copy_(trained)
        self.optimizer.reset()

    def _step(self, image: Sequence[torch.Tensor], label: torch.Tensor, companions, learns: bool, rows: int | None):
        """The CAMs [C, h', w'] of every scale with the weights as they are, and one update of these.

        image: features of every scale. companions: features and labels, or None. rows: images at a time. Also returns
        what the criteria look at: the fraction of covered positions, the sum of the image's target logits, the loss.
        """
        self.optimizer.zero_grad()
        with torch.set_grad_enabled(learns):
            self.network.pull()
        batches = [(features, label.expand(2, -1)) for features in image] + ([companions] if companions else [])
        outcomes = [self._backward(x, y, learns and i != 1, rows) for i, (x, y) in enumerate(batches)]
        cams = [merge_mirrors(raw) for raw, _, _ in outcomes[: len(image)]]
        del outcomes[1]  # FIDELITY: scale 0.5 gives a CAM but no logit
        target = sum(target for _, target, _ in outcomes[: len(image) - 1])
        loss = sum(loss for _, _, loss in outcomes)
        if learns:
            self.network.push()
            self.optimizer.update()
        covered = cams[0] / (cams[0].amax((-2, -1), keepdim=True) + EPSILON) > self.explode_th
        coverage = (covered & (label > 0)[:, None, None]).any(0).float().mean()
        return cams, torch.stack((coverage, target, loss))

    def _backward(self, features: torch.Tensor, labels: torch.Tensor, learns: bool, rows: int | None):
        """Adds the gradient of the loss - sum label * logit: the sigmoid is removed (RIB, section 4.1).

        Returns the raw CAMs [B, C, h', w'], the sum of the target logits and the loss.
        """
        cams, target, loss = [], 0.0, 0.0
        for x, y in split(rows, features, labels):  # the loss is a sum: each part gives back its memory
            with torch.set_grad_enabled(learns):
                cam = self.network.cam(x)
                logits = gndrp(cam, self.score_th) if self.pooling == "gndp" else cam.mean((-2, -1))
                part_loss = -(self.activation(logits) * y).sum()
            if learns:
                part_loss.backward()
            cams.append(cam.detach())
            target, loss = target + (logits.detach() * y).sum(), loss + part_loss.detach()
        return torch.cat(cams), target, loss
