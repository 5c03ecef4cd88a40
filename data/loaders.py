"""The torch Datasets and their order. Every draw depends on (seed, image name, epoch or step) only."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from data.base import Dataset, rng
from data.errors import DataError
from data.process import in_worker, rank, world_size
from data.transforms import MEAN, STD, crop_box, normalize, paste, pyramid, raw_crop, rescale_size, resize

SHARED_MEMORY = "/dev/shm"


class RawCrops(torch.utils.data.Dataset):
    """Augmented crops of single images before normalisation, which `normalized` does on the device.

    An item is asked for by (name, *keys), and the keys seed its augmentation. long: as in `raw_crop`.
    """

    def __init__(self, dataset: Dataset, long: tuple[int, int], crop: int, seed: int):
        self.dataset, self.long, self.crop, self.seed = dataset, long, crop, seed

    def __getitem__(self, item: tuple) -> tuple[torch.Tensor, ...]:
        """(uint8 [crop, crop, 3], int64 [4] with top, bottom, left and right of the image in it, label float32 [C])."""
        name, *keys = item
        crop = raw_crop(self.dataset.image(name), self.long, self.crop, rng(self.seed, name, *keys))
        return *map(torch.from_numpy, crop), torch.from_numpy(self.dataset.label(name))


class TrainingCrops(RawCrops):
    """The same, normalised: four times as many bytes to send."""

    def __getitem__(self, item: tuple) -> tuple[torch.Tensor, ...]:
        """(float32 [3, crop, crop], label float32 [C])."""
        crop, box, label = super().__getitem__(item)
        return normalized(crop[None], box[None])[0].contiguous(), label


def normalized(crops: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Raw crops [B, H, W, 3] and their boxes [B, 4] -> float32 [B, 3, H, W], to the bit as `transforms.normalize`.

    Outside the box it is 0, the mean colour.
    """
    # Divisors are tensors: by a number a GPU multiplies with its inverse, which rounds differently.
    peak, mean, std = (_on(crops.device, tuple(values)) for values in ([255], MEAN.tolist(), STD.tolist()))
    images = (crops.permute(0, 3, 1, 2).float() / peak).sub_(mean).div_(std)
    top, bottom, left, right = boxes.T[..., None]
    y, x = (torch.arange(side, device=crops.device) for side in images.shape[2:])
    inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[:, None, None]
    return images.masked_fill_(~inside, 0.0)


@functools.cache
def _on(device: torch.device, values: tuple[float, ...]) -> torch.Tensor:
    """float32 [n, 1, 1]; kept, since sending it again would wait for the device."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


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
        try:
            levels = [torch.from_numpy(level) for level in pyramid(image, self.scales)]
        except MemoryError as error:
            size = f"{image.shape[1]} x {image.shape[0]}"
            raise DataError(f"image {name} ({size}) does not fit into memory at all scales; use --max_side") from error
        label = self.dataset.label(name) if self.labelled else np.zeros(0, np.float32)
        return name, image.shape[:2], levels, torch.from_numpy(label)


class Loader:
    """What torch's DataLoader gives, also where shared memory is too small for it, as the 64 MB of a container.

    There it would lose the item and wait for ever; here the item takes the slower way through a pipe. options: of the
    DataLoader; batches are of tensors or of tuples of tensors.
    """

    def __init__(self, dataset: torch.utils.data.Dataset, num_workers: int, batched: bool = True, **options: Any):
        self.loader = DataLoader(
            dataset, num_workers=num_workers, collate_fn=functools.partial(_collate, batched), worker_init_fn=in_worker,
            generator=torch.Generator(), **options,  # its own: the global one is dropout's
        )  # fmt: skip

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


def _collate(batched: bool, items: Any) -> Any:
    """A batch, or the item itself, as tensors; as arrays where shared memory may be too small for it."""
    if batched:
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


def iterate_images(dataset: torch.utils.data.Dataset, num_workers: int, pin_memory: bool = False) -> Loader:
    """One item after another, unbatched, read ahead by worker processes."""
    return Loader(dataset, num_workers, batched=False, batch_size=None, shuffle=False, pin_memory=pin_memory)


def epoch_batches(names: Sequence[str], batch_size: int, seed: int, epoch: int) -> list[list[tuple]]:
    """The (name, epoch) batches of an epoch: shuffled by (seed, epoch), the last incomplete one dropped.

    With several ranks every rank takes its part of the same global batches.
    """
    order = rng(seed, "order", epoch).permutation(len(names))
    batches = [order[i : i + batch_size] for i in range(0, len(names) - batch_size + 1, batch_size)]
    return [[(names[i], epoch) for i in batch[rank() :: world_size()]] for batch in batches]


def stream_batches(names: Sequence[str], batch_size: int, seed: int, first: int, last: int) -> list[list[tuple]]:
    """The (name, epoch) batches of the steps first..last - 1.

    They are cut from one endless stream, one shuffled epoch after another, so a list may be shorter than a batch. With
    several ranks every rank takes its share of the same global batches.
    """
    epoch, skip = divmod(first * batch_size, len(names))
    orders = ((k, rng(seed, "order", k).permutation(len(names))) for k in itertools.count(epoch))
    stream = itertools.islice(((names[i], k) for k, order in orders for i in order), skip, None)
    batches = [list(itertools.islice(stream, batch_size)) for _ in range(first, last)]
    return [batch[rank() :: world_size()] for batch in batches]
