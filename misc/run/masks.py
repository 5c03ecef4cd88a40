"""What several steps do with masks: pseudo masks from seeds by a random walk, and scores of a folder of masks."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data import image_names
from data.base import Dataset
from data.images import read_mask, save_grey, save_mask, voc_palette
from data.loaders import Pyramids, iterate_images
from data.progress import bar, progress_map
from data.results import load_cam
from misc import torchutils
from misc.cam import cams_to_mask
from misc.indexing import propagate_to_edge
from misc.metrics import confusion, foreground, iou_table, mean_iou, score
from misc.run.networks import load_irn
from misc.run.outputs import made, pending, require, result_file
from net.resnet50_irn import EdgeDisplacement


@torch.inference_mode()
def make_pseudo_masks(args: argparse.Namespace, dataset: Dataset, seeds: str, out: str) -> dict:
    """Writes a mask for every image of the inference list (IRN, step/make_sem_seg_labels.py).

    seeds, out: the arguments that name the folders of the seeds and of the masks. The masks of `--sem_seg_out_dir` come
    with `edge/NAME.png`, the boundary map at stride 4.
    """
    require(args, "irn_weights_name")
    names = image_names(args, dataset, "infer")
    require(args, seeds, names)
    todo = pending(args, dataset, out, names, ".png")
    device = torchutils.resolve_device(args.device)
    model = load_irn(args, device)
    with bar(len(todo), "pseudo masks") as progress:
        for name, size, (images,), _ in iterate_images(Pyramids(dataset, todo, (1.0,)), args.num_workers):
            seed = load_cam(result_file(args, seeds, name, ".npy"), size, dataset.n_classes)
            mask, edge = pseudo_mask(args, model, images.to(device), seed["cam"], seed["keys"], size)
            if out == "sem_seg_out_dir":
                save_grey(result_file(args, "edge_out_dir", name, ".png"), edge)
            save_mask(result_file(args, out, name, ".png"), dataset.full_size(name, mask), voc_palette())
            progress.set_postfix_str(f"{(mask > 0).mean():.0%} foreground", refresh=False)
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
    return semantic_mask(walk, keys, size, args.sem_seg_bg_thres), edge[0].float().cpu().numpy()


def semantic_mask(walk: torch.Tensor, keys: np.ndarray, size: tuple[int, int], bg_thres: float) -> np.ndarray:
    """uint8 [H, W] from the walked maps [n, 1, h, w]: upsampled by 4, divided by the maximum of all, argmax.

    keys: [n], 0-based classes; bg_thres: the background's score. An image without classes is all background.
    """
    if not len(keys):
        return np.zeros(size, np.uint8)
    # FIDELITY: by the maximum over all classes; maps that are zero throughout become NaN, and with it the first class.
    maps = F.interpolate(walk, scale_factor=4, mode="bilinear", align_corners=False)[:, 0, : size[0], : size[1]]
    return cams_to_mask((maps / maps.max()).float().cpu().numpy(), keys, bg_thres)


def stored_mask(
    args: argparse.Namespace, dataset: Dataset, folder: str | None, name: str, size: tuple[int, int]
) -> np.ndarray:
    """uint8 [H, W]: the mask of an image in the folder that an argument names; None: the ground truth.

    size: (H, W) at which the dataset hands out the image, which the mask has too unless there is `--max_side`.
    """
    if folder is None:
        return dataset.mask(name)
    path = result_file(args, folder, name, ".png")
    return read_mask(path, dataset.n_classes, None if dataset.max_side else size)


# scores


class Counted(NamedTuple):
    """What masks amount to against the truth."""

    confusion: np.ndarray  # int64 [C, C]
    ignored: int  # pixels with ground truth that were left out because the mask holds 255
    miou: dict[str, float]  # of every image on its own


def count_masks(
    args: argparse.Namespace, dataset: Dataset, names: Sequence[str], folder: Path, title: str,
    skip_ignored: bool = False,
) -> Counted:  # fmt: skip
    """Counts the masks folder/NAME.png over all ranks; skip_ignored: leave out pixels with 255 in the mask."""
    total = np.zeros((dataset.n_classes + 1,) * 2, np.int64)
    ignored, miou = 0, []
    count = partial(_count, dataset, folder, skip_ignored)
    for counted in progress_map(
        count, torchutils.shard(names), title, args.num_workers, grouped=True,
        status=lambda: f"mIoU {100 * mean_iou(total):.1f}",
    ):  # fmt: skip
        total += counted.confusion
        ignored += counted.ignored
        miou += counted.miou.items()
    total = torchutils.all_reduce_sum(total)
    return Counted(total, sum(torchutils.gather([ignored])), dict(torchutils.gather(miou)))


def _count(dataset: Dataset, folder: Path, skip_ignored: bool, names: Sequence[str]) -> Counted:
    n = dataset.n_classes + 1
    total, ignored, miou = np.zeros((n, n), np.int64), 0, {}
    for name in names:
        truth = dataset.mask(name)
        mask = read_mask(folder / f"{name}.png", dataset.n_classes, truth.shape)
        if skip_ignored:
            ignored += int(((mask == 255) & (truth != 255)).sum())
            truth = np.where(mask == 255, 255, truth)
        counted = confusion(mask, truth, n)
        total += counted
        miou[name] = mean_iou(counted)
    return Counted(total, ignored, miou)


def scores_of(counted: np.ndarray, dataset: Dataset) -> dict:
    """mIoU (None where the truth holds no object), IoU per class, precision and recall of the foreground, confusion."""
    return {
        "miou": score(counted),
        "iou": iou_table(counted, dataset.classes),
        "foreground": foreground(counted),
        "confusion": counted.tolist(),
    }
