"""Pseudo masks: seeds spread by a random walk that the boundary map holds back (IRN, step/make_sem_seg_labels.py)."""

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from data import image_names, open_dataset
from data.images import save_grey, save_mask, voc_palette
from data.loaders import Pyramids, iterate_images
from data.progress import bar
from data.results import load_cam
from misc import torchutils
from misc.indexing import propagate_to_edge
from misc.run.metricsfile import made
from misc.run.networks import load_irn
from misc.run.resume import pending
from misc.run.workdir import require, result_file, seeds_argument
from net.resnet50_irn import EdgeDisplacement


@torch.inference_mode()
def run(args: argparse.Namespace, seeds: str | None = None, out: str = "sem_seg_out_dir") -> dict:
    """Writes `sem_seg/NAME.png` and `edge/NAME.png` (boundary map, stride 4) for every image of the inference list.

    seeds, out: the arguments that name the folders of the seeds (default: as `--seeds` says) and of the masks. Masks of
    another folder come without boundary maps, which do not depend on the seeds.
    """
    seeds = seeds or seeds_argument(args)
    require(args, "irn_weights_name")
    dataset = open_dataset(args)
    names = image_names(args, dataset, "infer")
    require(args, seeds, names)
    todo = pending(args, out, names, ".png")
    device = torchutils.resolve_device(args.device)
    model = load_irn(args, device)
    with bar(len(todo), "make_sem_seg") as progress:
        for name, size, (images,), _ in iterate_images(Pyramids(dataset, todo, (1.0,)), args.num_workers):
            seed = load_cam(result_file(args, seeds, name, ".npy"), size, dataset.n_classes)
            label, edge = pseudo_mask(args, model, images.to(device), seed["cam"], seed["keys"], size)
            if out == "sem_seg_out_dir":
                save_grey(result_file(args, "edge_out_dir", name, ".png"), edge)
            save_mask(result_file(args, out, name, ".png"), label, voc_palette())
            progress.set_postfix_str(f"{(label > 0).mean():.0%} foreground", refresh=False)
            progress.update()
    return made(todo, names)


def pseudo_mask(
    args: argparse.Namespace, model: EdgeDisplacement, images: torch.Tensor, cam: np.ndarray, keys: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The mask uint8 [H, W] and the edge map float32 [h, w] of an image.

    images: the image and its mirror [2, 3, H, W] on the device; cam, keys: its seeds as CAM files have them.
    """
    with torchutils.autocast(images.device, args.precision):
        edge, _ = model(images)
    powered = torch.from_numpy(cam).to(images.device) ** args.cam_power
    walk = propagate_to_edge(powered, edge, args.walk_radius, args.beta, args.exp_times)
    return semantic_label(walk, keys, size, args.sem_seg_bg_thres), edge[0].float().cpu().numpy()


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
