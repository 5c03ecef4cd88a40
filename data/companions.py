"""RIB's disjoint images: which companions an image learns beside, and how their crops reach the network."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from data.base import rng
from data.loaders import Loader, TrainingCrops
from data.progress import Stopwatch, bar

POOL_BATCH = 16  # crops that go through the lower layers at once


class CompanionBatches:
    """For each target image K batches of B (name, target, step): images that share no class with the target.

    Drawn without repeats until the list of disjoint images is used up, then reshuffled; empty where there is none.
    """

    def __init__(
        self, names: Sequence[str], labels: np.ndarray, targets: Sequence[str], target_labels: np.ndarray,
        n_iter: int, batch_size: int, seed: int,
    ):  # fmt: skip
        self.names, self.labels = names, labels > 0
        self.targets, self.target_labels = targets, target_labels > 0
        self.n_iter, self.batch_size, self.seed = n_iter, batch_size, seed

    def of(self, i: int) -> list[list[tuple]]:
        """The batches of target i: K of them, or none where no image is disjoint."""
        need = self.n_iter * self.batch_size
        if not need:
            return []
        disjoint = np.flatnonzero(~(self.labels[:, self.target_labels[i]].any(1)))
        if not len(disjoint):
            return []
        draw = rng(self.seed, "companions", self.targets[i])
        # FIDELITY: where the list runs out the published loop ends; here it is reshuffled.
        order = np.concatenate([draw.permutation(disjoint) for _ in range(-(-need // len(disjoint)))])[:need]
        rows = order.reshape(self.n_iter, self.batch_size)
        return [[(self.names[j], self.targets[i], k) for j in row] for k, row in enumerate(rows)]

    def __iter__(self) -> Iterator[list[tuple]]:
        for i in range(len(self.targets)):
            yield from self.of(i)


class CompanionStream:
    """Companions of one target after another, decoded by worker processes ahead of need.

    lower(*what the crops are, without their labels) -> features after layer2 [B, D, h, w].
    """

    def __init__(
        self, crops: TrainingCrops, batches: CompanionBatches, lower: Callable[..., torch.Tensor],
        watch: Stopwatch, num_workers: int, pin_memory: bool,
    ):  # fmt: skip
        self.batches, self.lower = batches, lower
        loader = Loader(crops, num_workers, batch_sampler=batches, pin_memory=pin_memory)
        self.loader = watch.iterate(loader)
        self.left = 0  # batches of the last target that were not taken

    def of(self, i: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of target i: features [B, D, h, w], labels [B, C].

        Targets are to be asked for in order. What is not used is skipped.
        """
        for _ in range(self.left):
            next(self.loader)
        self.left = len(self.batches.of(i))
        return self._take()

    def _take(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while self.left:
            self.left -= 1
            *crops, labels = next(self.loader)
            features = self.lower(*crops)
            yield features, labels.to(features.device, non_blocking=True)


class CompanionPool:
    """Companions drawn from augmented crops whose features after layer2, which never change, were computed once.

    crops: of images and labels, asked for by name and a number. size: crops in the pool, every image equally often.
    batches_of(indices, labels): the CompanionBatches over them. lower: as in CompanionStream.
    """

    def __init__(
        self, crops: TrainingCrops, names: Sequence[str], size: int,
        batches_of: Callable[[Sequence[int], np.ndarray], CompanionBatches],
        lower: Callable[..., torch.Tensor], watch: Stopwatch, num_workers: int,
    ):  # fmt: skip
        draw = rng(crops.seed, "pool")
        order = np.concatenate([draw.permutation(len(names)) for _ in range(-(-size // len(names)))])[:size]
        items = [(names[j], "pool", i) for i, j in enumerate(order)]
        loader = Loader(crops, num_workers, batch_size=POOL_BATCH, sampler=items)
        labels, done = [], 0
        with bar(size, "companion pool", "crop") as progress:
            for *crops, their_labels in watch.iterate(loader):
                part = lower(*crops)
                if not labels:  # all of it at once: joining parts later would need twice the memory
                    dense = part.is_contiguous(memory_format=torch.channels_last)
                    layout = torch.channels_last if dense else torch.contiguous_format
                    self.features = torch.empty(
                        (size, *part.shape[1:]), dtype=part.dtype, device=part.device, memory_format=layout
                    )
                self.features[done : done + len(part)] = part
                done += len(part)
                labels.append(their_labels)
                progress.update(len(part))
        labels = torch.cat(labels)
        self.batches = batches_of(range(size), labels.numpy())
        self.labels = labels.to(self.features.device)

    def of(self, i: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of target i: features [B, D, h, w], labels [B, C]."""
        for batch in self.batches.of(i):
            index = [j for j, *_ in batch]
            yield self.features[index], self.labels[index]
