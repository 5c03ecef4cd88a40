"""Class activation maps of every image, over scales and mirrors (IRN, step/make_cam.py)."""

import argparse

import torch

from data import image_names
from data.base import Dataset
from data.loaders import Pyramids, iterate_images
from data.progress import bar
from data.results import save_cam
from misc import torchutils
from misc.cam import combine_scales, merge_mirrors
from misc.run.networks import load_cam
from misc.run.outputs import made, pending, require, result_file
from misc.run.recording import naming


@torch.inference_mode()
def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes `cam/NAME.npy` for every image of the inference list."""
    require(args, "cam_weights_name")
    names = image_names(args, dataset, "infer")
    todo = pending(args, dataset, "cam_out_dir", names, ".npy")
    device = torchutils.resolve_device(args.device)
    model = load_cam(args, dataset, device)
    with bar(len(todo), "make_cam") as progress:
        for name, size, levels, label in iterate_images(Pyramids(dataset, todo, args.cam_scales), args.num_workers):
            keys = label.nonzero().flatten()
            with naming(name, size), torchutils.autocast(device, args.precision):
                cams = [merge_mirrors(model(level.to(device)).float()) for level in levels]
                cam, high_res = combine_scales(cams, keys.to(device), size)
            cam, high_res = cam.cpu().numpy(), high_res.cpu().numpy()
            save_cam(result_file(args, "cam_out_dir", name, ".npy"), keys.numpy(), cam, high_res, args.cam_dtype)
            covered = (cam > args.cam_eval_thres).any(0).mean()
            progress.set_postfix_str(f"{covered:.0%} above {args.cam_eval_thres:g}", refresh=False)
            progress.update()
    return made(todo, names)
