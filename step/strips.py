"""A strip per image: image, CAM, the map after some steps of RIB, ground truth (RIB, figure 3); also `--preview`."""

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data import image_names
from data.base import Dataset, Wrapped
from data.errors import DataError, UserError
from data.images import read_mask
from data.loaders import Pyramids, iterate_images
from data.progress import bar
from misc import torchutils
from misc.report.pictures import grid, maps_of, save, spread, strip, strip_note, strip_rows
from misc.run.masks import pseudo_mask
from misc.run.networks import load_cam, load_irn
from misc.run.outputs import path_of, require, result_file
from misc.run.recording import record
from net.weights import find_doubled


class Drawn(NamedTuple):
    """A strip: its file, and what `grid` takes."""

    path: Path
    captions: list[str]
    rows: list[tuple[str, list[np.ndarray]]]


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes `strips/NAME.png` for the images of `--strips_images`, names or so many of the inference list, and all of
    them in one picture, `strips.jpg`.

    They are few and always drawn again: existing ones may be of other weights or settings, or of `--preview`.
    """
    require(args, "cam_weights_name")
    drawn = _draw(args, dataset, torchutils.shard(_chosen(args, dataset)), "strips", with_masks=False)
    drawn = torchutils.gather(list(drawn))
    if torchutils.rank() == 0:
        captions = list(dict.fromkeys(caption for strip in drawn for caption in strip.captions))
        rows = [(name, dict(zip(strip.captions, row, strict=True))) for strip in drawn for name, row in strip.rows]
        rows = [(name, [row.get(caption) for caption in captions]) for name, row in rows]
        picture = grid(captions, rows, strip_note(args.cam_eval_thres), kind="JPEG")
        save(Path(args.work_dir) / "strips.jpg", picture)
    return {"images": len(drawn)}


def _chosen(args: argparse.Namespace, dataset: Dataset) -> list[str]:
    """The images of `--strips_images`: so many of the inference list, or names, as 000000057870 is one."""
    if not re.fullmatch("[1-9][0-9]*", args.strips_images):
        return find_names(dataset, args.strips_images, "--strips_images")
    listed = image_names(args, dataset, "infer")
    return [listed[i] for i in spread(len(listed), int(args.strips_images))]


def preview(args: argparse.Namespace, dataset: Dataset) -> list[Path]:
    """Makes the strips of the images of `--preview`, whether they are in a list or not, and returns their paths.

    They also have the pseudo mask, if there is an IRN. An image without label has the classes that the classifier
    sees in it.
    """
    require(args, "cam_weights_name")
    names = find_names(dataset, args.preview, "--preview", labelled=False)
    unlabelled = [name for name in names if not dataset.has_label(name)]
    if unlabelled:
        dataset = Classified(dataset, _classify(args, dataset, unlabelled))
    return [drawn.path for drawn in _draw(args, dataset, names, "preview", with_masks=True)]


class Classified(Wrapped):
    """A dataset with labels for some of the images that have none."""

    def __init__(self, dataset: Dataset, labels: dict[str, np.ndarray]):
        super().__init__(dataset)
        self.classified = labels

    def label(self, name: str) -> np.ndarray:
        return self.classified[name] if name in self.classified else self.dataset.label(name)

    def labels(self, names: Sequence[str]) -> np.ndarray:
        return np.stack([self.label(name) for name in names]) if len(names) else self.dataset.labels(names)


@torch.inference_mode()
def _classify(args: argparse.Namespace, dataset: Dataset, names: Sequence[str]) -> dict[str, np.ndarray]:
    """float32 [C] of every image: 1 for the classes with a positive logit, at least for that with the highest."""
    device = torchutils.resolve_device(args.device)
    model = load_cam(args, dataset, device)
    labels = {}
    for name, _, (images,), _ in iterate_images(Pyramids(dataset, names, (1.0,), labelled=False), 0):
        logits = model(images[:1].to(device)).mean((0, 2, 3)).cpu()
        labels[name] = ((logits > 0) | (logits == logits.max())).float().numpy()
    return labels


def find_names(dataset: Dataset, text: str, argument: str, labelled: bool = True) -> list[str]:
    """The images that a list joined by commas means, each once; UserError naming `argument` for one there is not.

    labelled: they need a label.
    """

    def known(part: str) -> str:
        name = dataset.find_name(part)
        dataset.image(name)
        if labelled:
            dataset.label(name)
        return name

    with contextlib.suppress(DataError):  # a name may hold commas itself
        return [known(text)]
    names = []
    for part in filter(None, map(str.strip, text.split(","))):
        try:
            names.append(known(part))
        except DataError as error:
            raise UserError(f"{argument} {part}: {error}") from error
    if not names:
        raise UserError(f"{argument} names no image")
    return list(dict.fromkeys(names))


def _draw(
    args: argparse.Namespace, dataset: Dataset, names: Sequence[str], title: str, with_masks: bool
) -> Iterator[Drawn]:
    """Writes the strips of `names`; the IRN label is in them where there is a file of it."""
    device = torchutils.resolve_device(args.device)
    irn = load_irn(args, device) if with_masks and find_doubled(path_of(args, "irn_weights_name")) else None
    with bar(len(names), title) as progress:
        for recording in record(args, dataset, names, device):
            name, written = recording.name, args.RIB_iter - 1
            image, maps, masks = dataset.image(name), maps_of(recording, args.RIB_iter), {}
            label_file = result_file(args, "ir_label_out_dir", name, ".png")
            if label_file.is_file():
                masks["IRN label"] = read_mask(label_file)
            if irn is not None:
                cam = recording.maps(0 if args.seeds == "cam" else written)[0]
                keys, images = recording.keys.cpu().numpy(), recording.levels[0]
                with torch.inference_mode():
                    masks["pseudo mask"], _ = pseudo_mask(args, irn, images, cam, keys, recording.size)
            truth = dataset.mask(name)
            if truth is not None:
                masks["ground truth"] = truth
            classes = [dataset.classes[key] for key in recording.keys.tolist()]
            ended = len(recording.sums) - 1
            note = f", ended after k = {ended}" if ended < args.RIB_iter and classes else ""
            note += ", classes as the classifier sees them" if name in getattr(dataset, "classified", ()) else ""
            note += "" if dataset.has_labels else ", no disjoint images"
            path = Path(args.work_dir) / "strips" / f"{name}.png"
            shown = (image, classes, maps, masks, args.cam_eval_thres)
            save(path, strip(f"{dataset.name}: {name}{note}", *shown))
            yield Drawn(path, ["image", *maps, *masks], strip_rows(*shown))
            progress.update()
