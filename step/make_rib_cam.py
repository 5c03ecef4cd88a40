"""CAMs widened by reducing the information bottleneck, image by image (RIB, step/make_rib_cam.py)."""

import argparse

import numpy as np

from data import image_names, open_dataset
from data.loaders import CompanionBatches, CompanionStream, Pyramids, TrainingCrops, iterate_images
from misc import camfile, torchutils
from misc.cam import combine_scales
from misc.progress import bar
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
    companions = image_names(args, dataset, "train")
    batches = CompanionBatches(
        companions, dataset.labels(companions), todo, dataset.labels(todo),
        args.RIB_iter - 1, args.RIB_batch_size, args.seed,
    )  # fmt: skip
    crops = TrainingCrops(dataset, args.RIB_resize_long, args.RIB_crop_size, args.seed)
    stream = CompanionStream(crops, batches, args.num_workers, pin_memory=device.type == "cuda")
    steps = []
    with bar(len(todo), "make_rib_cam") as progress:
        for i, (name, size, levels, label) in enumerate(
            iterate_images(Pyramids(dataset, todo, args.cam_scales), args.num_workers)
        ):
            levels = [level.to(device) for level in levels]
            companions_of = stream.of(i)
            try:
                if label.any():
                    cams, entered = rib.run(levels, label.to(device), companions_of)
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
            progress.set_postfix_str(f"{np.mean(steps):.1f} RIB steps an image", refresh=False)
            progress.update()
    steps = torchutils.gather(steps)
    return {**made(todo, names), "RIB_steps": {str(n): steps.count(n) for n in sorted(set(steps))}}
