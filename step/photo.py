"""One photograph of the user's own through RIB, with a classifier that is trained already (`--photo`)."""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data.errors import UserError
from data.files import FileError, save_torch
from data.photos import OwnPhoto, Photos
from data.transforms import normalize
from misc import crf, torchutils
from misc.report.pictures import maps_of, save, strip
from misc.run.outputs import path_of
from misc.run.recording import Recording, record
from net import weights
from net.backbones import build
from net.imagenet import find_categories
from net.resnet50_cam import Net

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
    image = OwnPhoto(path, args.photos_size).image(str(path))
    labels = args.label or (_top_category(args, OwnPhoto(path, SEEN).image(str(path)), device),)
    shown = {index for label in labels for index in find_categories(label)}
    others = [name for name in Photos.classes if shown.isdisjoint(find_categories(name))]
    recording = _through_rib(args, OwnPhoto(path, args.photos_size, labels, others), device)
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


def _through_rib(args: argparse.Namespace, dataset: OwnPhoto, device: torch.device) -> Recording:
    with tempfile.TemporaryDirectory() as folder:
        args = argparse.Namespace(**{**vars(args), "work_dir": folder})
        save_torch(path_of(args, "cam_weights_name"), _classifier(args, dataset.classes).state_dict())
        return next(record(args, dataset, dataset.names("infer"), device))


def _classifier(args: argparse.Namespace, classes: Sequence[str]) -> Net:
    model = build(Net, len(classes), arch=args.cam_network, bias=True).eval()
    weights.load_head(model, args.cam_init.removeprefix("head:"), classes, args.cam_head_centred, imagenet_only=True)
    return model


@torch.inference_mode()
def _top_category(args: argparse.Namespace, image: np.ndarray, device: torch.device) -> str:
    """The name of the category that the classifier finds most likely."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    model = _classifier(args, info.label_names()).to(device)
    logits = model(torch.from_numpy(normalize(image))[None].to(device))[0]
    name = info.index_to_description(int(logits.argmax())).split(",")[0]
    print(f"the classifier sees: {name} (--label NAME to say otherwise)")
    return name
