"""Instance masks: displacement to instances, each spread by its own random walk (IRN, step/make_ins_seg_labels.py)."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from data import cocojson, image_names
from data.base import Dataset
from data.loaders import Pyramids, iterate_images
from data.progress import bar, progress_map
from data.results import load_cam, load_instances, save_instances
from misc import torchutils
from misc.instances import centroids, clusters, detect, instance_map
from misc.run.networks import load_irn
from misc.run.outputs import made, pending, require, result_file, seeds_argument


@torch.inference_mode()
def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes `ins_seg/NAME.npy` for every image of the inference list."""
    require(args, "irn_weights_name")
    names = image_names(args, dataset, "infer")
    require(args, seeds_argument(args), names)
    todo = pending(args, dataset, "ins_seg_out_dir", names, ".npy")
    device = torchutils.resolve_device(args.device)
    model = load_irn(args, device)
    with bar(len(todo), "make_ins_seg") as progress:
        for name, size, (images,), _ in iterate_images(Pyramids(dataset, todo, (1.0,)), args.num_workers):
            seeds = load_cam(result_file(args, seeds_argument(args), name, ".npy"), size, dataset.n_classes)
            with torchutils.autocast(device, args.precision):
                edge, displacement = model(images.to(device))
            displacement = displacement.float()
            masks = clusters(centroids(displacement), displacement, args.ins_seg_dp_thres)
            # FIDELITY: the CAM as it is; the power of make_sem_seg belongs to that step alone.
            cam = torch.from_numpy(seeds["cam"]).to(device)
            walk = (args.walk_radius, args.beta, args.exp_times)
            index, score = instance_map(cam, masks, edge, size, args.ins_seg_bg_thres, *walk)
            min_area = args.ins_seg_min_area * size[0] * size[1]
            detected = detect(index, score, seeds["keys"].repeat(len(masks)), min_area)
            detected["mask"] = dataset.full_size(name, detected["mask"])
            save_instances(result_file(args, "ins_seg_out_dir", name, ".npy"), detected)
            progress.set_postfix_str(f"{(detected['score'] > 0).sum()} instances", refresh=False)
            progress.update()
    torchutils.barrier()
    if args.coco_json and torchutils.rank() == 0:
        _export(args, dataset, names)
    return made(todo, names)


def _export(args: argparse.Namespace, dataset: Dataset, names: Sequence[str]) -> None:
    """Writes the instances of the whole inference list as a COCO annotation file, to train other networks on."""
    ids = cocojson.image_ids(names)
    sizes, entries = {}, []
    read = progress_map(partial(_read, args, dataset, ids), names, "write pseudo.json", args.num_workers)
    for name, (size, of_image) in zip(names, read, strict=True):
        sizes[name] = size
        entries += of_image
    content = cocojson.annotation_file(dataset, f"{dataset.name}: instances by RIB and IRN", ids, sizes, entries)
    cocojson.save(Path(args.coco_json) / "pseudo.json", content)


def _read(
    args: argparse.Namespace, dataset: Dataset, ids: dict[str, int], name: str
) -> tuple[tuple[int, int], list[dict]]:
    detected = load_instances(result_file(args, "ins_seg_out_dir", name, ".npy"), n_classes=dataset.n_classes)
    return detected["mask"].shape[1:], cocojson.results(ids[name], detected, dataset.category_ids)
