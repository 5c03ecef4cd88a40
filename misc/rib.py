"""Reducing the information bottleneck: the per-image fine-tuning that widens the CAM (RIB, section 4)."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F

from misc.cam import merge_mirrors
from misc.torchutils import PolyOptimizer
from net.folded import Folded
from net.resnet50_cam import CAM

POOLINGS = ("gndp", "gap")
# The final activation of the loss - sum label * f(logit); RIB is the one without, the others are for comparison.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda logits: logits,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "tanh": torch.tanh,
    "relu": torch.relu,
}
OnStep = Callable[[int, Sequence[torch.Tensor]], None]


def gndrp(cam: torch.Tensor, score_th: float) -> torch.Tensor:
    """Global non-discriminative region pooling (RIB, equation 6): [..., h, w] raw CAM -> [...].

    The mean of CAM * [CAM / max(CAM) < score_th]; the mask takes no gradient.
    """
    # FIDELITY: the raw CAM is used, not its relu, so negative positions are kept by the mask and pull the mean down.
    mask = (cam / cam.amax((-2, -1), keepdim=True) < score_th).detach()
    # FIDELITY: the divisor is H * W, not the number of kept positions as in the paper's equation.
    return (cam * mask).mean((-2, -1))


class RIB:
    """Fine-tunes a classifier on one image at a time and collects the CAMs of every step.

    model: CAM network with the trained weights; every run starts from them and they are restored afterwards.
    lr: learning rate of the backbone (head 10x). n_iter: steps K. pooling: "gndp" or "gap". score_th: tau of GNDRP.
    stop_th: stop once |sum of the image's target logits| exceeds it. explode_th, explode_ratio: an image ends when the
    normalised map exceeds explode_th on more than explode_ratio of its positions. weight_decay: of every group.
    precision: "bf16" runs the network in bfloat16; the weights that learn, the sums and the pooling stay in float32.
    activation: f in the loss, of every pooled logit by itself; what stops an image stays the logits themselves.
    schedule: steps over which the learning rate falls, by default n_iter; with a fixed schedule the first steps do not
    depend on n_iter.
    """

    def __init__(
        self,
        model: CAM,
        lr: float,
        n_iter: int,
        pooling: str = "gndp",
        score_th: float = 0.4,
        stop_th: float = 600.0,
        explode_th: float = 0.3,
        explode_ratio: float = 0.7,
        weight_decay: float = 1e-4,
        precision: str = "fp32",
        activation: str = "none",
        schedule: int | None = None,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; there are {', '.join(POOLINGS)}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; there are {', '.join(ACTIVATIONS)}")
        self.model = model.eval()
        self.lr, self.n_iter, self.weight_decay = lr, n_iter, weight_decay
        self.pooling, self.score_th = pooling, score_th
        self.activation, self.schedule = ACTIVATIONS[activation], schedule or n_iter
        self.companion_rows: int | None = None  # companions per pass, None: all; lowered when memory runs out
        self.stop_th, self.explode_th, self.explode_ratio = stop_th, explode_th, explode_ratio
        # What learns: layer3, layer4 and the classifier, batch normalisation's affine parameters among them.
        upper = [*model.layer3.parameters(), *model.layer4.parameters()]
        self.parameters = [*upper, *model.classifier.parameters()]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.groups = [{"params": upper, "lr": lr}, {"params": list(model.classifier.parameters()), "lr": 10 * lr}]
        self.trained = [parameter.detach().clone() for parameter in self.parameters]
        learned = (model.layer3, model.layer4, model.classifier)
        self.folded = Folded(model, learned, torch.bfloat16 if precision == "bf16" else torch.float32)

    def run(
        self,
        pyramid: Sequence[torch.Tensor],
        label: torch.Tensor,
        companions: Iterable[tuple[torch.Tensor, torch.Tensor]],
        on_step: OnStep | None = None,
    ) -> tuple[list[torch.Tensor], int]:
        """The CAMs of one image, summed over the steps.

        pyramid: per scale [2, 3, h, w] (image, mirror); the first entry is scale 1.0, the second 0.5. label: [C].
        companions: one (images [B, 3, H, W], labels [B, C]) per step; when it ends early, the image learns alone. In
        place of images, their features after layer2 [B, D, h, w] as `folded.lower` gives them.
        on_step: called as on_step(k, sums) once the CAMs of step k = 0, 1, ... are added (k = 0: the plain CAM); `sums`
        go on growing, so clone them. The last call has what is returned. After running out of memory it starts from 0.
        Returns one [C, h', w'] per scale (relu, mirrors added, summed over steps) and the number of steps entered.
        """
        replay = _Replay(companions)
        while True:
            try:
                sums, entered = self._run(pyramid, label, iter(replay), on_step or (lambda k, sums: None))
                if not all(torch.isfinite(cam).all() for cam in sums):
                    raise FloatingPointError("the CAMs are not finite; try a smaller --RIB_lr")
                return sums, entered
            except torch.OutOfMemoryError:
                if self.companion_rows == 1:
                    raise
            finally:
                self.restore()
            # Again with half as many companions at a time, from now on; gradients add up, so that the result is the
            # same to rounding.
            rows = self.companion_rows or replay.batch_size
            self.companion_rows = max(1, rows // 2)
            logging.warning("out of GPU memory: companions now go through %d at a time", self.companion_rows)
            torch.cuda.empty_cache()

    def restore(self) -> None:
        """Puts the trained weights back."""
        with torch.no_grad():
            for parameter, trained in zip(self.parameters, self.trained, strict=True):
                parameter.copy_(trained)
        self.folded.pull()

    def _run(self, pyramid, label, companions, on_step: OnStep) -> tuple[list[torch.Tensor], int]:
        classes = label.nonzero().flatten()
        optimizer = PolyOptimizer(
            [{**group, "weight_decay": self.weight_decay} for group in self.groups],
            self.lr, self.weight_decay, max_step=self.schedule,
        )  # fmt: skip
        lower = [self.folded.lower(images) for images in pyramid]  # never changes: once per image
        sums: list[torch.Tensor] = []
        for k in range(self.n_iter):
            last = k == self.n_iter - 1  # its update would never be used
            total = label.new_zeros(())
            for scale, features in enumerate(lower):
                learns = scale != 1 and not last  # FIDELITY: scale 0.5 gives a CAM but no logit
                with torch.set_grad_enabled(learns):
                    raw = self.folded.cam(features)
                cam = merge_mirrors(raw.detach())
                if k == 0:
                    sums.append(cam)
                else:
                    sums[scale] += cam
                # FIDELITY: tested once scale 1.0 has been added; the other scales of this step are then left out.
                if scale == 0 and k >= 1 and self._exploded(cam[classes]):
                    on_step(k, sums)
                    return sums, k + 1
                if learns and len(classes):  # the loss is a sum: every scale gives back its memory before the next
                    logits = self._pool(raw[:, classes])
                    (-self.activation(logits).sum()).backward()
                    total += logits.detach().sum()
            on_step(k, sums)
            if last:
                return sums, k + 1
            images, labels = next(companions, (None, None))
            loss = -total
            if images is not None:
                loss = loss + self._add_companions(
                    images.to(label.device, non_blocking=True), labels.to(label.device, non_blocking=True)
                )
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is not finite in RIB step {k + 1}; try a smaller --RIB_lr")
            self.folded.push()
            optimizer.step()
            self.folded.pull()
            # FIDELITY: the sum over the image's six rows stands where the paper has min(m, y).
            if abs(float(total)) > self.stop_th:
                return sums, k + 1
        return sums, self.n_iter

    def _add_companions(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Adds the gradient of the companions, each counting with its own labels, and returns their loss."""
        total = images.new_zeros(())
        rows = self.companion_rows or max(1, len(images))
        for part, part_labels in zip(images.split(rows), labels.split(rows), strict=True):
            row, column = part_labels.nonzero(as_tuple=True)
            if not len(row):
                continue
            lower = self.folded.lower(part) if part.shape[1] == 3 else part
            loss = -self.activation(self._pool(self.folded.cam(lower)[row, column])).sum()
            loss.backward()
            total += loss.detach()
        return total

    def _pool(self, cam: torch.Tensor) -> torch.Tensor:
        if self.pooling == "gap":
            return cam.mean((-2, -1))
        return gndrp(cam, self.score_th)

    def _exploded(self, cam: torch.Tensor) -> bool:
        """cam: [n, h, w], relu'd and mirror-summed, of the image's classes."""
        if not len(cam):
            return False
        covered = (cam / cam.amax((-2, -1), keepdim=True) > self.explode_th).any(0)
        return float(covered.float().mean()) > self.explode_ratio


class _Replay:
    """An iterable that can be read again from its start, whatever part of it was read."""

    def __init__(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]):
        self.batches, self.seen = iter(batches), []

    @property
    def batch_size(self) -> int:
        """Rows of the largest batch so far, at least 1."""
        return max((len(images) for images, _ in self.seen), default=1)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from list(self.seen)
        for images, labels in self.batches:
            self.seen.append((images, labels))
            yield images, labels
