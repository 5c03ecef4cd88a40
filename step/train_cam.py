"""Trains the multi-label classifier whose CAMs are the first seeds (RIB, section 5.1; IRN, step/train_cam.py)."""

import argparse
import logging

import numpy as np
import torch
import torch.nn.functional as F

from data import image_names
from data.base import Dataset
from data.loaders import Pyramids, TrainingCrops, iterate_images
from data.progress import bar
from misc import torchutils
from misc.metrics import average_precision
from misc.run.trainloop import Training, fit, loader_by_epoch
from net import weights
from net.backbones import build
from net.resnet50_cam import Net


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes `sess/res50_cam.pth`; returns the loss of every epoch and the average precision per class."""
    training = Training(args, dataset, "cam_weights_name")
    if training.finished:
        return {}
    device = torchutils.resolve_device(args.device)
    if args.cam_init.startswith("head:"):
        return _take_head(args, dataset, training, device)
    names = image_names(args, dataset, "train")
    crops = TrainingCrops(dataset, args.cam_resize_long, args.cam_crop_size, args.seed)
    epochs = args.cam_num_epoches
    loader, steps = loader_by_epoch(crops, names, args.cam_batch_size, epochs, args, device.type == "cuda")
    scratch = args.cam_init == "scratch"
    torchutils.seed_everything(args.seed)
    model = build(Net, dataset.n_classes, arch=args.cam_network, scratch=scratch)
    if not scratch:
        weights.load_backbone(model, args.cam_init)
    model.to(device, memory_format=torch.channels_last)
    optimizer, scheduler = _optimizer(args, model, steps * epochs)

    def loss_of(model: torch.nn.Module, part: tuple, _: tuple) -> torch.Tensor:
        images = part[0].to(device, non_blocking=True, memory_format=torch.channels_last)
        labels = part[1].to(device, non_blocking=True)
        with torchutils.autocast(device, args.precision):
            logits = model(images)
        return F.multilabel_soft_margin_loss(logits.float(), labels)

    losses = fit(model, loss_of, optimizer, loader, training, "train_cam", scheduler, args.cam_accumulate)
    precision = _validate(args, model, dataset, device)
    values = {"images": len(names), "loss": losses, "average_precision": precision}
    training.finish(model, values)
    return values


def _take_head(args: argparse.Namespace, dataset: Dataset, training: Training, device: torch.device) -> dict:
    """Nothing to train: a network with its trained head, whose categories become the classes of the dataset."""
    model = build(Net, dataset.n_classes, arch=args.cam_network, bias=True)
    weights.load_head(model, args.cam_init.removeprefix("head:"), dataset.classes, args.cam_head_centred)
    model.to(device, memory_format=torch.channels_last)
    values = {"images": 0, "average_precision": _validate(args, model, dataset, device)}
    training.finish(model, values)
    return values


def _optimizer(args: argparse.Namespace, model: Net, steps: int):
    """The published optimiser with its own schedule, or AdamW with a one-cycle schedule for training from scratch."""
    if args.cam_optimizer == "sgd":
        groups = model.parameter_groups(args.cam_learning_rate, args.cam_weight_decay)
        return torchutils.PolyOptimizer(groups, args.cam_learning_rate, args.cam_weight_decay, max_step=steps), None
    optimizer = torch.optim.AdamW(model.parameters(), args.cam_learning_rate, weight_decay=args.cam_weight_decay)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, args.cam_learning_rate, total_steps=steps)


@torch.inference_mode()
def _validate(args: argparse.Namespace, model: Net, dataset: Dataset, device: torch.device) -> dict[str, float]:
    """Average precision per class on the validation images (None for a class that no or every image has)."""
    listed = image_names(args, dataset, "val")
    labelled = [name for name in listed if dataset.has_label(name)]
    if len(labelled) < len(listed):
        logging.warning("%d of %d images of --val_list have no label", len(listed) - len(labelled), len(listed))
    names = torchutils.shard(labelled)
    model.eval()
    truth, scores, right = [], [], 0.0
    with bar(len(names), "validate") as progress:
        for _, _, (images,), label in iterate_images(Pyramids(dataset, names, (1.0,)), args.num_workers):
            with torchutils.autocast(device, args.precision):
                scores.append(model(images[:1].to(device))[0].float().cpu().numpy())
            truth.append(label.numpy())
            right += ((scores[-1] > 0) == (truth[-1] > 0)).mean()
            progress.set_postfix_str(f"{right / len(truth):.1%} of the labels right", refresh=False)
            progress.update()
    truth, scores = torchutils.gather(truth), torchutils.gather(scores)
    shape = (-1, dataset.n_classes)  # also of no image
    truth, scores = np.reshape(truth, shape), np.reshape(scores, shape)
    values = average_precision(truth, scores)
    values[np.all(truth, 0)] = np.nan  # any order of the images is right
    if np.isfinite(values).any():
        logging.info("train_cam: mean average precision %.3f on %d images", np.nanmean(values), len(truth))
    else:
        logging.warning(
            "train_cam: no class is in some of the %d images of --val_list only: no average precision", len(truth)
        )
    return {name: None if np.isnan(v) else float(v) for name, v in zip(dataset.classes, values, strict=True)}
