"""RIB over the images of a dataset, and what it makes of each in every step on the way."""

import argparse
import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from data import image_names
from data.base import Dataset
from data.companions import CompanionBatches, CompanionPool, CompanionStream
from data.loaders import Pyramids, RawCrops, iterate_images, normalized
from data.progress import Stopwatch
from misc.cam import combine_scales
from misc.memory import out_of_memory
from misc.rib import RIB
from misc.run.networks import load_cam
from net.resnet50_cam import CAM

Item = tuple[str, tuple[int, int], list[torch.Tensor], torch.Tensor, Iterator[tuple[torch.Tensor, torch.Tensor]]]


def open_rib(
    args: argparse.Namespace, dataset: Dataset, names: Sequence[str], device: torch.device, n_iter: int | None = None,
    model: CAM | None = None,
) -> tuple[RIB, Iterator[Item], Stopwatch]:  # fmt: skip
    """RIB with the trained classifier, and for each of `names` what `RIB.run` takes.

    Items are (name, (H, W), pyramid, label [C], companions), on the device.

    n_iter: steps, by default `--RIB_iter`, to which the learning rates belong in any case. model: the classifier, by
    default that of train_cam. The stopwatch counts how long images were waited for.
    """
    n_iter = n_iter or args.RIB_iter
    rib = RIB(
        model or load_cam(args, dataset, device), args.RIB_lr, n_iter, args.pooling, args.score_th,
        args.stop_th, args.explode_th, args.explode_ratio, args.RIB_weight_decay, args.precision,
        args.RIB_activation, args.RIB_iter,
    )  # fmt: skip
    watch = Stopwatch()
    companions = _companions(args, dataset, names, rib, device, watch, n_iter)
    pyramids = iterate_images(Pyramids(dataset, names, args.cam_scales), args.num_workers, device.type == "cuda")

    def items() -> Iterator[Item]:
        for i, (name, size, levels, label) in enumerate(watch.iterate(pyramids)):
            levels = [level.to(device, non_blocking=True) for level in levels]
            yield name, size, levels, label.to(device, non_blocking=True), companions.of(i)

    return rib, items(), watch


def _companions(
    args: argparse.Namespace, dataset: Dataset, todo: Sequence[str], rib: RIB, device: torch.device, watch: Stopwatch,
    n_iter: int,
) -> CompanionStream | CompanionPool:  # fmt: skip
    """Where the companions of every image to be made come from, by `--RIB_companions`."""
    names = image_names(args, dataset, "train") if dataset.has_labels else []
    crops = RawCrops(dataset, args.RIB_resize_long, args.RIB_crop_size, args.seed)

    def batches_of(names: Sequence, labels: np.ndarray) -> CompanionBatches:
        return CompanionBatches(names, labels, todo, dataset.labels(todo), n_iter - 1, args.RIB_batch_size, args.seed)

    def lower(*crops: torch.Tensor) -> torch.Tensor:
        return rib.lower(normalized(*(part.to(device, non_blocking=True) for part in crops)))

    if args.RIB_companions == "pool" and todo and args.RIB_batch_size:
        return CompanionPool(crops, names, args.RIB_pool_size, batches_of, lower, watch, args.num_workers)
    batches = batches_of(names, dataset.labels(names))
    return CompanionStream(crops, batches, lower, watch, args.num_workers, pin_memory=device.type == "cuda")


@contextlib.contextmanager
def naming(name: str, size: tuple[int, int]) -> Iterator[None]:
    """Errors that name the image: FloatingPointError, and MemoryError where memory does not suffice."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"image {name}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise MemoryError(f"image {name} ({size[1]} x {size[0]}): out of memory") from error


class Recording(NamedTuple):
    """The CAMs of one image after k = 0, 1, ... updates of the weights, k + 1 of them added up."""

    name: str
    size: tuple[int, int]  # of the image
    levels: list[torch.Tensor]  # the image and its mirror at every scale
    keys: torch.Tensor  # int64 [n], the image's classes
    sums: list[list[torch.Tensor]]  # per k and scale [n, h, w]; as many k as the image lasted
    overflowed: bool = False  # whether it ended because its numbers did; make_rib_cam stops with an error there

    def maps(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """cam float32 [n, ceil(H/4), ceil(W/4)] and high_res [n, H, W] after k updates, as stored in CAM files.

        k = 0 is the plain CAM. An image that RIB ended earlier stays as it was then.
        """
        sums = self.sums[min(k, len(self.sums) - 1)]
        cam, high_res = combine_scales(sums, torch.arange(len(self.keys), device=sums[0].device), self.size)
        return cam.cpu().numpy(), high_res.cpu().numpy()


def record(
    args: argparse.Namespace, dataset: Dataset, names: Sequence[str], device: torch.device, model: CAM | None = None
) -> Iterator[Recording]:
    """Every image of `names` through RIB with `--RIB_iter` K updates of the weights, one more than make_rib_cam.

    K is the last step of the paper's sum over 0 <= k <= K; the published code ends at K - 1, and so do the files of
    make_rib_cam. The rate of a step depends on K, so k steps of a recording are not `--RIB_iter k`. An image whose
    numbers overflow on the way stays as it was before. Companions are those of make_rib_cam.
    """
    rib, items, _ = open_rib(args, dataset, names, device, args.RIB_iter + 1, model)
    for name, size, levels, label, companions in items:
        keys = label.nonzero().flatten()
        recorded: list[list[torch.Tensor]] = []
        overflowed = False

        def keep(_: int, sums: Sequence[torch.Tensor], keys=keys, recorded=recorded) -> None:
            if all(torch.isfinite(cam).all() for cam in sums):
                recorded.append([cam[keys] for cam in sums])

        if len(keys):
            try:
                with naming(name, size):
                    rib.run(levels, label, companions, keep, lowered=True)
            except FloatingPointError as error:
                if not recorded:
                    raise
                overflowed = True
                logging.warning("%s; using its CAM after %d updates", error, len(recorded) - 1)
        else:  # no class, no map
            recorded.append([levels[0].new_zeros((0, 1, 1))])
        yield Recording(name, size, levels, keys, recorded, overflowed)
