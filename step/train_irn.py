"""Trains the boundary and displacement branches on the IRN labels (IRN, step/train_irn.py)."""

import argparse
from functools import partial

import numpy as np
import torch

from data import image_names
from data.base import Dataset
from data.loaders import AffinityCrops, Loader, TopLeftCrops
from data.progress import bar
from misc import torchutils
from misc.indexing import PathIndex
from misc.run.masks import stored_mask
from misc.run.networks import load_backbone
from misc.run.outputs import require
from misc.run.trainloop import Training, fit, loader_by_epoch
from net.backbones import build
from net.resnet50_irn import AffinityDisplacementLoss, total_loss


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes `sess/res50_irn.pth`; returns the loss of every epoch."""
    training = Training(args, dataset, "irn_weights_name")
    if training.finished:
        return {}
    names = image_names(args, dataset, "infer")
    require(args, "ir_label_out_dir", names, ".png")
    device = torchutils.resolve_device(args.device)
    read_label = partial(stored_mask, args, dataset, "ir_label_out_dir")
    crops = AffinityCrops(dataset, read_label, args.irn_rescale, args.irn_crop_size, args.seed)
    epochs = args.irn_num_epoches
    loader, steps = loader_by_epoch(crops, names, args.irn_batch_size, epochs, args, device.type == "cuda")
    torchutils.seed_everything(args.seed)
    side = args.irn_crop_size // 4
    model = build(AffinityDisplacementLoss, PathIndex(args.irn_radius, (side, side)), arch=args.cam_network)
    load_backbone(args, model, args.irn_backbone)
    model.to(device, memory_format=torch.channels_last)
    groups = model.parameter_groups(args.irn_learning_rate, args.irn_displacement_lr, args.irn_weight_decay)
    optimizer = torchutils.PolyOptimizer(groups, args.irn_learning_rate, args.irn_weight_decay, max_step=steps * epochs)

    def loss_of(model: torch.nn.Module, part: tuple, batch: tuple) -> torch.Tensor:
        images = part[0].to(device, non_blocking=True, memory_format=torch.channels_last)
        labels, all_labels = (columns[1].to(device, non_blocking=True) for columns in (part, batch))
        with torchutils.autocast(device, args.precision):
            return total_loss(model(images, labels, all_labels))

    losses = fit(model, loss_of, optimizer, loader, training, "train_irn", accumulate=args.irn_accumulate)
    shift = _mean_displacement(args, model, dataset, names, device)
    model.mean_shift.running_mean.copy_(shift)
    values = {"images": len(names), "loss": losses, "mean_displacement": shift.tolist()}
    training.finish(model, values)
    return values


@torch.inference_mode()
def _mean_displacement(
    args: argparse.Namespace, model: AffinityDisplacementLoss, dataset: Dataset, names: list[str], device: torch.device
) -> torch.Tensor:
    """float32 [2]: mean displacement over the top left corners of the inference images (IRN, step/train_irn.py)."""
    own_names = torchutils.shard(names)
    model.eval()
    means = []
    crops = TopLeftCrops(dataset, own_names, args.irn_crop_size)
    with bar(len(own_names), "mean displacement") as progress:
        for images in Loader(crops, args.num_workers, batch_size=args.irn_batch_size // args.irn_accumulate):
            with torchutils.autocast(device, args.precision):
                _, displacement = model(images.to(device))
            means += displacement.float().mean((2, 3)).tolist()
            progress.set_postfix_str("y {:.2f}, x {:.2f}".format(*means[-1]), refresh=False)
            progress.update(len(images))
    return torch.tensor(np.mean(torchutils.gather(means), 0), dtype=torch.float32)
