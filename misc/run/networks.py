"""Networks with the weights that the arguments name, ready for the device."""

import argparse

import torch

from data.base import Dataset
from misc.run.outputs import path_of, require
from net import deeplabv2, weights
from net.backbones import build
from net.resnet50_cam import CAM
from net.resnet50_irn import EdgeDisplacement


def load_backbone(args: argparse.Namespace, model: torch.nn.Module, init: str) -> None:
    """Loads the backbone that training starts from: `cam` is the classifier's, else as net.weights has it."""
    if init == "cam":
        require(args, "cam_weights_name")
        init = str(path_of(args, "cam_weights_name"))
    weights.load_backbone(model, init)


def load_cam(args: argparse.Namespace, dataset: Dataset, device: torch.device) -> CAM:
    """The classifier as CAM network, in evaluation mode."""
    model = build(CAM, dataset.n_classes, arch=args.cam_network)
    weights.load(model, path_of(args, "cam_weights_name"))
    return model.eval().to(device, memory_format=torch.channels_last)


def load_irn(args: argparse.Namespace, device: torch.device) -> EdgeDisplacement:
    """The IRN at inference, in evaluation mode."""
    model = build(EdgeDisplacement, args.irn_infer_pad, arch=args.cam_network)
    weights.load(model, path_of(args, "irn_weights_name"))
    return model.eval().to(device, memory_format=torch.channels_last)


def build_seg(args: argparse.Namespace, dataset: Dataset) -> deeplabv2.DeepLab:
    """The segmentation network with random weights."""
    scratch = args.seg_init == "scratch"
    return deeplabv2.build(args.seg_model, dataset.n_classes + 1, args.seg_msc_scales, args.seg_aspp_rates, scratch)


def load_seg(args: argparse.Namespace, dataset: Dataset, argument: str, device: torch.device) -> deeplabv2.DeepLab:
    """The segmentation network with the weights that `argument` names, in evaluation mode."""
    model = build_seg(args, dataset)
    weights.load(model, path_of(args, argument))
    return model.eval().to(device, memory_format=torch.channels_last)
