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
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
OnStep = Callable[[int, Sequence[torch.Tensor]], None]


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

    model: CAM network with the trained weights; every run starts from them and they are restored afterwards.
    lr: of the backbone (head 10x). pooling: "gndp" or "gap". stop_th: stop once |sum of the image's target logits|
    exceeds it. explode_th, explode_ratio: an image ends when the normalised map exceeds explode_th on more than
    explode_ratio of its positions. weight_decay: of every group. precision: "bf16" computes the network in bfloat16;
    weights, sums and pooling stay in float32. activation: f in the loss, of every pooled logit by itself; what stops an
    image stays the logits themselves. schedule: steps over which the learning rate falls, by default n_iter; with a
    fixed schedule the first steps do not depend on n_iter. ValueError for a word that is none of the choices.
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
            {"params": params, "lr": self.trained[0].new_tensor(rate), "weight_decay": weight_decay}
            for params, rate in ((upper, lr), (head, 10 * lr))
        ]
        self.optimizer = PolyOptimizer(groups, lr, weight_decay, max_step=schedule or n_iter, fused=True)
        self.network = for_rib(model, torch.bfloat16 if precision == "bf16" else torch.float32)
        self.rows, self.graphs = Rows(), Graphs()
        self.restore()

    def run(
        self, pyramid: Sequence[torch.Tensor], label: torch.Tensor, companions: Batches, on_step: OnStep | None = None
    ) -> tuple[list[torch.Tensor], int]:
        """The CAMs of one image, summed over the steps.

        pyramid: per scale [2, 3, h, w] (image, mirror); the first entry is scale 1.0, the second 0.5. label: [C].
        companions: per step B disjoint images [B, 3, H, W] and labels [B, C]; where they end the image learns alone.
        on_step: called as on_step(k, sums) once the CAMs of step k = 0, 1, ... are added (k = 0: the plain CAM); `sums`
        go on growing, so clone them. The last call has what is returned.
        Returns one [C, h', w'] per scale (relu, mirrors added, summed over steps) and the number of steps entered.
        FloatingPointError if CAMs or loss are not finite. Where memory runs out the image goes on with fewer rows at a
        time; the error is raised where one is too much.
        """
        features = ((self.lower(images), labels.to(label.device, non_blocking=True)) for images, labels in companions)
        return self.run_features(pyramid, label, features, on_step)

    def run_features(
        self, pyramid: Sequence[torch.Tensor], label: torch.Tensor, companions: Batches, on_step: OnStep | None = None
    ) -> tuple[list[torch.Tensor], int]:
        """As `run` with companions that have been through `lower`: (features after layer2 [B, D, h, w], labels)."""
        self.rows.most = None
        try:
            sums, n_steps = self._run(pyramid, label, companions, on_step or (lambda k, sums: None))
        finally:
            self.restore()
        if not torch.stack([torch.isfinite(cam).all() for cam in sums]).all():
            raise FloatingPointError("the CAMs are not finite; try a smaller --RIB_lr")
        return sums, n_steps

    @torch.no_grad()
    def lower(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> features after layer2 [B, D, h, w], which RIB never changes."""
        images = images.to(self.trained[0].device, non_blocking=True)

        def work(rows: int | None) -> torch.Tensor:
            return torch.cat([self.network.lower(part) for (part,) in split(rows, images)])

        return self.rows.retry(work, len(images), before=self.graphs.clear)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the trained weights back."""
        for parameter, trained in zip(self.parameters, self.trained, strict=True):
            parameter.copy_(trained)
        self.optimizer.reset()

    def _run(self, pyramid, label, companions: Batches, on_step: OnStep) -> tuple[list[torch.Tensor], int]:
        image = [self.lower(images) for images in pyramid]  # never changes: once per image
        batches = islice(companions, self.n_iter - 1)
        batch = next(batches, None)
        sums: list[torch.Tensor] = []
        for k in range(self.n_iter):
            last = k == self.n_iter - 1  # its update would never be used
            self.optimizer.set_rates(k)
            cams, read = self._call_step(image, label, batch, not last)
            batch = next(batches, None)  # goes through the lower layers before a GPU is waited for
            coverage, target, loss = read()
            exploded = k > 0 and coverage > self.explode_ratio
            sums = sums or [torch.zeros_like(cam) for cam in cams]
            # FIDELITY: an explosion is noticed once scale 1.0 is added; the other scales of its step are left out.
            for total, cam in zip(sums, cams[:1] if exploded else cams, strict=False):
                total += cam
            on_step(k, sums)
            if exploded or last:
                break
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is not finite in RIB step {k + 1}; try a smaller --RIB_lr")
            # FIDELITY: the sum over the image's six rows stands where the paper has min(m, y).
            if abs(target) > self.stop_th:
                break
        return sums, k + 1

    def _call_step(self, image, label, companions, learns: bool):
        """`_step` as a CUDA graph (the last one as a call), in parts where memory runs out; its numbers on call."""
        step = partial(*(self.graphs, self._step) if learns else (self._step,), image, label, companions, learns)
        cams, criteria = self.rows.retry(step, max(2, len(companions[0]) if companions else 0), self.graphs.clear)
        return cams, read_later(criteria)

    def _step(self, image: Sequence[torch.Tensor], label: torch.Tensor, companions, learns: bool, rows: int | None):
        """The CAMs with the weights as they are, and one update of these.

        image: features after layer2 of every scale [2, D, h, w]. companions: (features, labels) of B images or None.
        rows: images at a time. Returns the CAMs per scale [C, h', w'], and what the criteria look at: the fraction of
        the map that exceeds explode_th, the sum of the image's target logits, the loss.
        """
        self.optimizer.zero_grad()
        with torch.set_grad_enabled(learns):
            self.network.pull()
        cams, target, loss = [], 0.0, 0.0
        for scale, features in enumerate(image):
            in_loss = scale != 1  # FIDELITY: scale 0.5 gives a CAM but no logit
            raw, image_target, part_loss = self._backward(features, label.expand(2, -1), learns and in_loss, rows)
            cams.append(merge_mirrors(raw))
            if in_loss:
                target, loss = target + image_target, loss + part_loss
        if companions is not None:
            loss = loss + self._backward(*companions, learns, rows)[2]
        if learns:
            self.network.push()
            self.optimizer.update()
        covered = cams[0] / (cams[0].amax((-2, -1), keepdim=True) + EPSILON) > self.explode_th
        coverage = (covered & (label > 0)[:, None, None]).any(0).float().mean()
        return cams, torch.stack((coverage, target, loss))

    def _backward(self, features: torch.Tensor, labels: torch.Tensor, learns: bool, rows: int | None):
        """Adds the gradient of the loss - sum label * logit: the sigmoid is removed (RIB, section 4.1).

        features after layer2 [B, D, h, w], labels [B, C]. Returns the raw CAMs [B, C, h', w'], the sum of the target
        logits and the loss.
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
