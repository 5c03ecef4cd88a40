"""CAMs widened by reducing the information bottleneck, image by image (RIB, step/make_rib_cam.py)."""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from data import image_names, open_dataset
from data.base import Dataset
from data.loaders import CompanionBatches, CompanionPool, CompanionStream, Pyramids, TrainingCrops, iterate_images
from misc import camfile, torchutils
from misc.cam import combine_scales
from misc.progress import Stopwatch, bar
from misc.rib import RIB
from misc.workdir import made, pending, require, result_file
from net.loading import load_cam


def run(args: argparse.Namespace) -> dict:
    """Writes `cam_rib/NAME.npy` for every image of the inference list; returns how many steps the images took."""
    require(args, "cam_weights_name")
    dataset = open_dataset(args)
    names = image_names(args, dataset, "infer")
    todo = pending(args, "cam_rib_out_dir", names, ".npy")
    device = torchutils.resolve_device(args.device)
    rib = RIB(
        load_cam(args, dataset, device), args.RIB_lr, args.RIB_iter, args.pooling, args.score_th,
        args.stop_th, args.explode_th, args.explode_ratio, args.RIB_weight_decay, args.precision,
    )  # fmt: skip
    watch = Stopwatch()
    companions = _companions(args, dataset, todo, rib, device, watch)
    steps = []
    with bar(len(todo), "make_rib_cam") as progress:
        images = iterate_images(Pyramids(dataset, todo, args.cam_scales), args.num_workers)
        for i, (name, size, levels, label) in enumerate(watch.iterate(images)):
            levels = [level.to(device) for level in levels]
            own_companions = companions.of(i)
            try:
                if label.any():
                    cams, entered = rib.run(levels, label.to(device), own_companions)
                else:  # no class, no map: nothing to widen
                    cams, entered = [levels[0].new_zeros((len(label), 1, 1))], 0
            except FloatingPointError as error:
                raise FloatingPointError(f"image {name}: {error}") from error
            keys = label.nonzero().flatten()
            cam, high_res = combine_scales(cams, keys.to(device), size)
            camfile.save(
                result_file(args, "cam_rib_out_dir", name, ".npy"),
                keys.numpy(),
                cam.cpu().numpy(),
                high_res.cpu().numpy(),
            )
            steps.append(entered)
            progress.set_postfix_str(
                f"{np.mean(steps):.1f} RIB steps an image, {watch.share():.0%} waiting for images", refresh=False
            )
            progress.update()
    steps = torchutils.gather(steps)
    counts = {str(n): steps.count(n) for n in sorted(set(steps))}
    return {**made(todo, names), "RIB_steps": counts, "waiting_share": round(watch.share(), 4)}


def _companions(
    args: argparse.Namespace, dataset: Dataset, todo: Sequence[str], rib: RIB, device: torch.device, watch: Stopwatch
) -> CompanionStream | CompanionPool:
    """Where the companions of every image to be made come from, by `--RIB_companions`."""
    names = image_names(args, dataset, "train")
    crops = TrainingCrops(dataset, args.RIB_resize_long, args.RIB_crop_size, args.seed)

    def batches_of(names: Sequence, labels: np.ndarray) -> CompanionBatches:
        return CompanionBatches(
            names, labels, todo, dataset.labels(todo), args.RIB_iter - 1, args.RIB_batch_size, args.seed
        )

    if args.RIB_companions == "pool" and todo and args.RIB_batch_size:
        return CompanionPool(
            crops, names, args.RIB_pool_size, batches_of, lambda images: rib.folded.lower(images.to(device)),
            args.num_workers,
        )  # fmt: skip
    batches = batches_of(names, dataset.labels(names))
    return CompanionStream(crops, batches, watch, args.num_workers, pin_memory=device.type == "cuda")
