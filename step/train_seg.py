"""Trains the segmentation network on the pseudo masks (DeepLab-v2, with the settings that RIB reports)."""

import argparse
import logging
from functools import partial

import torch

from data import image_names
from data.base import Dataset
from data.errors import DataError, UserError
from data.loaders import SegmentationCrops
from misc import torchutils
from misc.run.masks import make_pseudo_masks, stored_mask
from misc.run.networks import build_seg, load_backbone
from misc.run.outputs import SEG, metrics, require
from misc.run.trainloop import Training, fit, loader_by_iteration
from net.deeplabv2 import DeepLab, segmentation_loss

DECAY_EVERY = 10  # iterations between two steps of the learning rate


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes the weights for each of `--seg_labels`; returns the mean loss of every stretch between checkpoints.

    Losses of networks that earlier runs trained on other labels stay in metrics.json.
    """
    names = image_names(args, dataset, "infer")
    values: dict = {}
    for labels in args.seg_labels:
        values = _train(args, dataset, names, labels) or values
    return values


def _train(args: argparse.Namespace, dataset: Dataset, names: list[str], labels: str) -> dict:
    """Trains on one kind of labels; what metrics.json is to hold, nothing where that was done before."""
    training = Training(args, dataset, SEG[labels].weights)
    if training.finished:
        return {}
    n_images = len(names)
    names = _labelled(args, dataset, names, labels)
    device = torchutils.resolve_device(args.device)
    read_label = partial(stored_mask, args, dataset, SEG[labels].masks)
    crops = SegmentationCrops(dataset, read_label, args.seg_scales, args.seg_crop_size, args.seed)
    loader = loader_by_iteration(
        crops, names, args.seg_batch_size, args.seg_iter, args.seg_checkpoint_every, args, device.type == "cuda"
    )  # fmt: skip
    model = _network(args, dataset).to(device, memory_format=torch.channels_last)
    optimizer, scheduler = optimize(args, model)

    def loss_of(model: torch.nn.Module, part: tuple, _: tuple) -> torch.Tensor:
        images, truth = (column.to(device, non_blocking=True) for column in part)
        with torchutils.autocast(device, args.precision):
            outputs = model(images.contiguous(memory_format=torch.channels_last))
        return segmentation_loss(outputs, truth, args.seg_loss)

    title = f"train_seg on {labels}"
    losses = fit(model, loss_of, optimizer, loader, training, title, scheduler, args.seg_accumulate)
    before = metrics(args).get("train_seg", {}).get("loss")
    values = {"images": n_images, "loss": {**(before if isinstance(before, dict) else {}), labels: losses}}
    training.finish(model, values)
    logging.info("%s: loss %.3f over the last iterations, %s", title, losses[-1], training.weights)
    return values


def _network(args: argparse.Namespace, dataset: Dataset) -> DeepLab:
    """The network as training starts, with the backbone of `--seg_init`."""
    images_at_once = args.seg_batch_size // (args.seg_accumulate * torchutils.world_size())
    if args.seg_model.startswith("deeplabv3") and images_at_once < 2:
        raise UserError(
            f"{args.seg_model} normalises over at least 2 images at a time, --seg_batch_size {args.seg_batch_size} "
            f"in {args.seg_accumulate} parts on {torchutils.world_size()} ranks leaves "
            f"{images_at_once}; raise the batch size"
        )
    torchutils.seed_everything(args.seed)
    model = build_seg(args, dataset)
    if args.seg_init != "scratch":
        load_backbone(args, model.backbone, args.seg_init)
    return model


def optimize(
    args: argparse.Namespace, model: DeepLab
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """SGD with momentum, and the poly schedule, which moves every DECAY_EVERY iterations only."""
    groups = model.parameter_groups(args.seg_lr, args.seg_weight_decay)
    optimizer = torch.optim.SGD(groups, args.seg_lr, momentum=args.seg_momentum)

    def factor(iteration: int) -> float:
        return torchutils.poly_factor(iteration - iteration % DECAY_EVERY, args.seg_iter)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _labelled(args: argparse.Namespace, dataset: Dataset, names: list[str], labels: str) -> list[str]:
    """The names to learn from; their masks are there. The plain CAM's pseudo masks are made here, by the same walk."""
    folder = SEG[labels].masks
    if labels == "cam":
        make_pseudo_masks(args, dataset, "cam_out_dir", folder)
        torchutils.barrier()
    if folder:
        require(args, folder, names, ".png")
        return names
    with_mask = [name for name in names if dataset.has_mask(name)]
    if not with_mask:
        raise DataError(
            f"--seg_labels {labels}, but none of the {len(names)} images of --infer_list {args.infer_list} has a mask"
        )
    return with_mask
