"""Pseudo masks: seeds spread by a random walk that the boundary map holds back (IRN, step/make_sem_seg_labels.py)."""

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from data import image_names, open_dataset
from data.base import voc_palette
from data.loaders import Pyramids, iterate_images
from misc import camfile, torchutils
from misc.files import save_mask
from misc.indexing import propagate_to_edge
from misc.progress import bar
from misc.workdir import made, pending, require, result_file, seeds_argument
from net.loading import load_irn


@torch.inference_mode()
def run(args: argparse.Namespace) -> dict:
    """Writes `sem_seg/NAME.png` for every image of the inference list."""
    require(args, "irn_weights_name")
    dataset = open_dataset(args)
    names = image_names(args, dataset, "infer")
    require(args, seeds_argument(args), names)
    todo = pending(args, "sem_seg_out_dir", names, ".png")
    device = torchutils.resolve_device(args.device)
    model = load_irn(args, device)
    with bar(len(todo), "make_sem_seg") as progress:
        for name, size, (images,), _ in iterate_images(Pyramids(dataset, todo, (1.0,)), args.num_workers):
            seeds = camfile.load(result_file(args, seeds_argument(args), name, ".npy"), size)
            with torchutils.autocast(device, args.precision):
                edge, _ = model(images.to(device))
            cam = torch.from_numpy(seeds["cam"]).to(device) ** args.cam_power
            walk = propagate_to_edge(cam, edge, args.walk_radius, args.beta, args.exp_times)
            label = semantic_label(walk, seeds["keys"], size, args.sem_seg_bg_thres)
            save_mask(result_file(args, "sem_seg_out_dir", name, ".png"), label, voc_palette())
            progress.update()
    return made(todo, names)


def semantic_label(walk: torch.Tensor, keys: np.ndarray, size: tuple[int, int], bg_thres: float) -> np.ndarray:
    """uint8 [H, W] from the walked maps [n, 1, h, w]: upsampled by 4, divided by the maximum of all, argmax.

    keys: [n], 0-based classes; bg_thres: the background's score. An image without classes is background throughout.
    """
    if not len(keys):
        return np.zeros(size, np.uint8)
    scores = F.interpolate(walk, scale_factor=4, mode="bilinear", align_corners=False)[:, 0, : size[0], : size[1]]
    # FIDELITY: by the maximum over all classes; maps that are zero throughout become NaN, and with it the first class.
    scores = scores / scores.max()
    background = scores.new_full((1, *size), bg_thres)
    index = torch.cat([background, scores]).argmax(0).cpu().numpy()
    return np.concatenate([[0], keys + 1]).astype(np.uint8)[index]
