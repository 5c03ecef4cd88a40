"""One photograph of the user's own through RIB, with a classifier that is trained already (`--photo`)."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data.errors import DataError, UserError
from data.files import FileError
from data.photos import OwnPhoto, Photos
from data.transforms import normalize
from misc import crf, torchutils
from misc.report.pictures import maps_of, save, strip
from misc.run.recording import record
from net import weights
from net.backbones import build
from net.imagenet import find_categories, info, name_of
from net.resnet50_cam import CAM, Net

TILE = 320  # long side of a picture in the strip
SEEN = 256  # long side at which a category is guessed: networks learn from images of about that size


def photo(args: argparse.Namespace) -> Path:
    """Writes FILE.rib.png beside the photograph, or into the current folder where that is refused; returns its path.

    Companions are the photographs of `--dataset photos` that show something else. UserError for a file that is no image
    and for a label that ImageNet does not have.
    """
    if not args.cam_init.startswith("head:"):
        raise UserError(f"--photo needs a classifier with its head, --cam_init is {args.cam_init}; leave out --dataset")
    path, device = Path(args.photo), torchutils.resolve_device(args.device)
    if path.is_dir():
        raise UserError(f"{path} is a folder; --photo wants one image file")
    try:
        image = OwnPhoto(path, args.photos_size).image(str(path))
    except DataError as error:  # without the advice for many images
        raise UserError(str(error).removesuffix(": replace it or add --skip_bad")) from error
    labels = args.label or (_top_category(args, OwnPhoto(path, SEEN).image(str(path)), device),)
    shown = {index for label in labels for index in find_categories(label)}
    others = [name for name in Photos.classes if shown.isdisjoint(find_categories(name))]
    dataset = OwnPhoto(path, args.photos_size, labels, others)
    model = _classifier(CAM, args, dataset.classes, device)
    recording = next(record(args, dataset, dataset.names("infer"), device, model))
    cam = recording.maps(args.RIB_iter - 1)[1]
    backend = crf.resolve_backend(args.crf_backend, device)
    label = crf.ir_label(image, cam, np.arange(len(labels)), args.conf_fg_thres, args.conf_bg_thres, backend)
    maps, masks = maps_of(recording, args.RIB_iter), {"IRN label": label}
    picture = strip(path.name, image, labels, maps, masks, args.cam_eval_thres, TILE)
    written = path.with_name(f"{path.name}.rib.png")
    try:
        save(written, picture)
    except FileError as error:
        logging.warning("%s", error)
        written = Path(written.name)
        save(written, picture)
    return written


def _classifier(kind: type[Net], args: argparse.Namespace, classes: Sequence[str], device: torch.device) -> Net:
    model = build(kind, len(classes), arch=args.cam_network, bias=kind is Net)
    weights.load_head(model, args.cam_init.removeprefix("head:"), classes, args.cam_head_centred, imagenet_only=True)
    return model.eval().to(device, memory_format=torch.channels_last)


@torch.inference_mode()
def _top_category(args: argparse.Namespace, image: np.ndarray, device: torch.device) -> str:
    """The name of the category that the classifier finds most likely."""
    logits = _classifier(Net, args, info().label_names(), device)(torch.from_numpy(normalize(image))[None].to(device))
    name = name_of(int(logits.argmax()))
    print(f"the classifier sees: {name} (--label NAME to say otherwise)")
    return name
