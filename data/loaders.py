"""The torch Datasets and their order. Every draw depends on (seed, image name, epoch or step) only."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from data.base import Dataset, rng
from data.process import in_worker, rank, world_size
from data.progress import Stopwatch, bar
from data.transforms import crop_box, normalize, paste, pyramid, rescale_size, resize, training_crop

POOL_BATCH = 16  # crops that go through the lower layers at once
SHARED_MEMORY = "/dev/shm"
LONG_LIST = 20_000  # names from which on companions are drawn without going through all of them


class TrainingCrops(torch.utils.data.Dataset):
    """Augmented crops of single images; an item is asked for by (name, *keys), and the keys seed its augmentation."""

    def __init__(self, dataset: Dataset, long: tuple[int, int], crop: int, seed: int):
        self.dataset, self.long, self.crop, self.seed = dataset, long, crop, seed

    def __getitem__(self, item: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """(float32 [3, crop, crop], label float32 [C])."""
        name, *keys = item
        image = training_crop(self.dataset.image(name), self.long, self.crop, rng(self.seed, name, *keys))
        return torch.from_numpy(image), torch.from_numpy(self.dataset.label(name))


class SegmentationCrops(torch.utils.data.Dataset):
    """Augmented crops of images with their masks: a random scale out of `scales`, random flip, random crop.

    read_label(name, (H, W) of the image): uint8 [H, W]. An item is asked for by (name, *keys), and the keys seed its
    augmentation.
    """

    def __init__(self, dataset: Dataset, read_label, scales: Sequence[float], crop: int, seed: int):
        self.dataset, self.read_label, self.scales = dataset, read_label, scales
        self.crop, self.seed = crop, seed

    def scale(self, draw: np.random.Generator) -> float:
        """One of the scales."""
        return float(draw.choice(self.scales))

    def __getitem__(self, item: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """(float32 [3, crop, crop], uint8 [crop, crop] with 255 for ignore and padding)."""
        name, *keys = item
        draw = rng(self.seed, name, *keys)
        image = self.dataset.image(name)
        label = self.read_label(name, image.shape[:2])
        size = rescale_size(image.shape, self.scale(draw))
        image, label = normalize(resize(image, *size)), resize(label, *size, nearest=True)
        if draw.random() < 0.5:
            image, label = image[..., ::-1], label[..., ::-1]
        box = crop_box(size, self.crop, draw)
        image, label = paste(image, box, self.crop, 0.0), paste(label, box, self.crop, 255)
        return torch.from_numpy(image), torch.from_numpy(label)


class AffinityCrops(SegmentationCrops):
    """The same with a scale anywhere in the range `scales`, masks reduced to stride 4 (IRN, the affinity dataset)."""

    def scale(self, draw: np.random.Generator) -> float:
        """A number between the two scales."""
        return draw.uniform(*self.scales)

    def __getitem__(self, item: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """(float32 [3, crop, crop], uint8 [crop / 4, crop / 4] with 255 for ignore and padding)."""
        image, label = super().__getitem__(item)
        small = resize(label.numpy(), self.crop // 4, self.crop // 4, nearest=True)
        return image, torch.from_numpy(small.copy())


class TopLeftCrops(torch.utils.data.Dataset):
    """The top left corner of whole images, padded to the crop where they are smaller."""

    def __init__(self, dataset: Dataset, names: Sequence[str], crop: int):
        self.dataset, self.names, self.crop = dataset, names, crop

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> torch.Tensor:
        """float32 [3, crop, crop]."""
        image = normalize(self.dataset.image(self.names[i]))
        rows, columns = (slice(0, min(side, self.crop)) for side in image.shape[1:])
        return torch.from_numpy(paste(image, (rows, columns, rows, columns), self.crop, 0.0))


class Pyramids(torch.utils.data.Dataset):
    """Whole images at several scales with their mirrors.

    labelled: whether the images have labels; those of a test split have none, and their label comes out empty.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str], scales: Sequence[float], labelled: bool = True):
        self.dataset, self.names, self.scales, self.labelled = dataset, names, tuple(scales), labelled

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[str, tuple[int, int], list[torch.Tensor], torch.Tensor]:
        """(name, (H, W), per scale float32 [2, 3, h, w], label float32 [C])."""
        name = self.names[i]
        image = self.dataset.image(name)
        levels = [torch.from_numpy(level) for level in pyramid(image, self.scales)]
        label = self.dataset.label(name) if self.labelled else np.zeros(0, np.float32)
        return name, image.shape[:2], levels, torch.from_numpy(label)


class Loader:
    """What torch's DataLoader gives, also where shared memory is too small for it, as the 64 MB of a container.

    There it would lose the item and wait for ever; here the item takes the slower way through a pipe. options: of the
    DataLoader; batches are of tensors or of tuples of tensors.
    """

    def __init__(self, dataset: torch.utils.data.Dataset, num_workers: int, batched: bool = True, **options: Any):
        self.loader = DataLoader(
            dataset, num_workers=num_workers, collate_fn=_Collate(batched), worker_init_fn=in_worker, **options
        )

    def __iter__(self) -> Iterator:
        for item in self.loader:
            yield _map(item, np.ndarray, torch.from_numpy)


class TrainingLoader:
    """The batches of a whole training, epoch after epoch, read ahead by workers that live as long as it does.

    batches_of(epoch): the items of every batch, which must depend on nothing but the epoch. What counts by iterations
    calls the iterations between two checkpoints an epoch.
    """

    def __init__(
        self, crops: TrainingCrops | SegmentationCrops, batches_of: Callable[[int], list[list[tuple]]], n_epochs: int,
        num_workers: int, pin_memory: bool,
    ):  # fmt: skip
        self.crops, self.batches_of, self.n_epochs = crops, batches_of, n_epochs
        self.options = {"num_workers": num_workers, "pin_memory": pin_memory}

    def epochs(self, first: int) -> Iterator[tuple[int, int, Iterator]]:
        """(epoch, number of batches, batches) for every epoch from `first` on."""
        items = itertools.chain.from_iterable(map(self.batches_of, range(first, self.n_epochs)))
        batches = iter(Loader(self.crops, batch_sampler=items, **self.options))
        for epoch in range(first, self.n_epochs):
            torch.manual_seed(int(rng(self.crops.seed, "epoch", epoch, rank()).integers(2**62)))  # dropout
            n_batches = len(self.batches_of(epoch))
            yield epoch, n_batches, itertools.islice(batches, n_batches)


class _Collate:
    def __init__(self, batched: bool):
        self.batched = batched

    def __call__(self, items: Any) -> Any:
        if self.batched:
            several = isinstance(items[0], tuple)
            items = [torch.stack(column) for column in zip(*items, strict=True)] if several else torch.stack(items)
        worker = get_worker_info()
        if worker is None:
            return items
        sizes: list[int] = []
        _map(items, torch.Tensor, lambda tensor: sizes.append(tensor.nbytes))
        # Each worker of each rank of this machine may be about to take as much.
        takers = worker.num_workers * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return items if sum(sizes) * takers < shared_memory() else _map(items, torch.Tensor, torch.Tensor.numpy)


def shared_memory() -> float:
    """Bytes of shared memory that are free; infinite where there is no telling."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return float("inf")
    return status.f_bavail * status.f_frsize


def _map(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """The value with function(x) in place of every x of a kind, in lists and tuples too."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_map(part, kind, function) for part in value)
    return value


def iterate_images(dataset: torch.utils.data.Dataset, num_workers: int) -> Loader:
    """One item after another, unbatched, read ahead by worker processes."""
    return Loader(dataset, num_workers, batched=False, batch_size=None, shuffle=False)


def epoch_batches(names: Sequence[str], batch_size: int, seed: int, epoch: int) -> list[list[tuple]]:
    """The (name, epoch) batches of an epoch: shuffled by (seed, epoch), the last incomplete one dropped.

    With several ranks every rank takes its part of the same global batches.
    """
    order = rng(seed, "order", epoch).permutation(len(names))
    batches = [order[i : i + batch_size] for i in range(0, len(names) - batch_size + 1, batch_size)]
    return [[(names[i], epoch) for i in batch[rank() :: world_size()]] for batch in batches]


def stream_batches(
    names: Sequence[str], batch_size: int, parts: int, seed: int, first: int, last: int
) -> list[list[tuple]]:
    """The (name, epoch) batches of the steps first..last - 1, each step in `parts` of batch_size / parts images.

    They are cut from one endless stream, one shuffled epoch after another, so a list may be shorter than a batch. With
    several ranks every rank takes its share of the same global batches.
    """
    orders: dict[int, np.ndarray] = {}

    def item(position: int) -> tuple[str, int]:
        epoch, place = divmod(position, len(names))
        if epoch not in orders:
            orders[epoch] = rng(seed, "order", epoch).permutation(len(names))
        return names[orders[epoch][place]], epoch

    size = batch_size // parts
    starts = range(first * batch_size, last * batch_size, size)
    return [[item(position) for position in range(start + rank(), start + size, world_size())] for start in starts]


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
        draw = rng(self.seed, "companions", self.targets[i])
        order = self._draw_some(draw, i, need) if len(self.names) > LONG_LIST else None
        if order is None:
            disjoint = np.flatnonzero(~(self.labels[:, self.target_labels[i]].any(1)))
            if not len(disjoint):
                return []
            # FIDELITY: where the list runs out the published loop ends; here it is shuffled anew.
            order = np.concatenate([draw.permutation(disjoint) for _ in range(-(-need // len(disjoint)))])[:need]
        rows = order.reshape(self.n_iter, self.batch_size)
        return [[(self.names[j], self.targets[i], k) for j in row] for k, row in enumerate(rows)]

    def _draw_some(self, draw: np.random.Generator, i: int, need: int) -> np.ndarray | None:
        """The first `need` of a random order of the disjoint images, without looking at all; None if they are rare."""
        chosen: dict[int, None] = {}
        for _ in range(8):
            some = draw.integers(len(self.names), size=4 * need)
            chosen |= dict.fromkeys(some[~self.labels[some][:, self.target_labels[i]].any(1)].tolist())
            if len(chosen) >= need:
                return np.array(list(chosen)[:need])
        return None

    def __iter__(self) -> Iterator[list[tuple]]:
        for i in range(len(self.targets)):
            yield from self.of(i)


class CompanionStream:
    """Companions of one target after another, decoded by worker processes ahead of need.

    lower(images [B, 3, H, W]) -> features after layer2 [B, D, h, w].
    """

    def __init__(
        self, crops: TrainingCrops, batches: CompanionBatches, lower: Callable[[torch.Tensor], torch.Tensor],
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
            images, labels = next(self.loader)
            features = self.lower(images)
            yield features, labels.to(features.device, non_blocking=True)


class CompanionPool:
    """Companions drawn from augmented crops whose features after layer2, which never change, were computed once.

    crops: of images and labels, asked for by name and a number. size: crops in the pool, every image equally often.
    batches_of(indices, labels): the CompanionBatches over them. lower(images [B, 3, H, W]) -> features [B, D, h, w].
    """

    def __init__(
        self, crops: TrainingCrops, names: Sequence[str], size: int,
        batches_of: Callable[[Sequence[int], np.ndarray], CompanionBatches],
        lower: Callable[[torch.Tensor], torch.Tensor], watch: Stopwatch, num_workers: int,
    ):  # fmt: skip
        draw = rng(crops.seed, "pool")
        order = np.concatenate([draw.permutation(len(names)) for _ in range(-(-size // len(names)))])[:size]
        items = [(names[j], "pool", i) for i, j in enumerate(order)]
        loader = Loader(crops, num_workers, batch_size=POOL_BATCH, sampler=items)
        labels, done = [], 0
        with bar(size, "companion pool", "crop") as progress:
            for images, their_labels in watch.iterate(loader):
                part = lower(images)
                if not labels:  # all of it at once: joining parts later would need twice the memory
                    self.features = part.new_empty((size, *part.shape[1:]))
                self.features[done : done + len(part)] = part
                done += len(part)
                labels.append(their_labels)
                progress.update(len(images))
        labels = torch.cat(labels)
        self.batches = batches_of(range(size), labels.numpy())
        self.labels = labels.to(self.features.device)

    def of(self, i: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of target i: features [B, D, h, w], labels [B, C]."""
        for batch in self.batches.of(i):
            index = [j for j, *_ in batch]
            yield self.features[index], self.labels[index]
