"""Damaged files, over every reader: an error in one line that names the file, or a sound value, and no code is run."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from coco14.dataset import Index
from coco14.prepare import prepare, read_annotations
from data.base import read_list
from data.download import unpack
from data.errors import UserError
from data.files import load_json, save_json
from data.folder import Folder
from data.images import image_size, read_image, read_mask, save_mask, voc_palette
from data.results import load_cam, load_instances, save_cam, save_instances
from net import weights
from tests.coco_mini import make_coco
from tests.folder_mini import make_folder
from tests.voc_devkit import make_devkit
from voc12.dataset import VOC12
from voc12.prepare import read_mat

RNG = np.random.default_rng(0)
PHOTOGRAPH = Image.fromarray(RNG.integers(0, 255, (40, 36, 3), dtype=np.uint8))
INSTANCES = {"score": RNG.random(3), "mask": RNG.random((3, 9, 8)) > 0.5, "class": np.arange(3)}
SEGMENTATION = RNG.integers(0, 20, (20, 24), dtype=np.uint8)


def write_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("in/a.txt", RNG.bytes(200) + bytes(200))


def load_weights(path):
    weights.load(torch.nn.Linear(3, 2), path)


FILES = {  # kind -> (file name, what writes it, what reads it)
    "CAM": ("x.npy", lambda path: save_cam(path, np.arange(2), *RNG.random((2, 2, 24, 20))), load_cam),
    "instances": ("x.npy", lambda path: save_instances(path, INSTANCES), load_instances),
    "weights": ("x.pth", lambda path: torch.save(torch.nn.Linear(3, 2).state_dict(), path), load_weights),
    "mask": ("x.png", lambda path: save_mask(path, SEGMENTATION, voc_palette()), lambda path: read_mask(path, 20)),
    "JPEG": ("x.jpg", PHOTOGRAPH.save, lambda path: read_image(path, exif=True)),
    "WebP": ("x.webp", PHOTOGRAPH.save, lambda path: read_image(path, exif=True)),
    "list": ("x.txt", lambda path: path.write_text("/JPEGImages/a.jpg /Masks/a.png\nKäse\n", "utf-8"), read_list),
    "SBD": ("x.mat", lambda path: savemat(path, {"GTcls": {"Segmentation": SEGMENTATION}}), read_mat),
    "JSON": ("x.json", lambda path: save_json(path, {"command": "python", "arguments": {"beta": 1.0}}), load_json),
    "zip": ("x.zip", write_zip, lambda path: unpack(path, path.parent / "out")),
}
DATASETS = {  # kind -> (what makes a dataset, the path of the file in it, what reads it)
    "labels.csv": (make_folder, lambda mini: mini.csv, lambda mini: Folder(mini.root)),
    "XML": (
        make_devkit,
        lambda kit: kit.folder / "Annotations" / f"{kit.names[0]}.xml",
        lambda kit: VOC12(kit.root).label(kit.names[0]),
    ),
    "COCO JSON": (make_coco, lambda mini: mini.json("train"), lambda mini: read_annotations(mini.json("train"))),
    "COCO index": (
        make_coco,
        lambda mini: prepare(mini.root) and next(mini.root.rglob("*.npz")),
        lambda mini: Index.load(next(mini.root.rglob("*.npz"))),
    ),
}
TEXT = ("labels.csv", "list")  # any text may be one; half of it is a shorter one


@pytest.mark.parametrize("kind", [*FILES, *DATASETS])
def test_files_that_are_cut_short_or_something_else(tmp_path, kind):
    if kind in FILES:
        name, write, read = FILES[kind]
        subject = path = tmp_path / name
        write(path)
    else:
        make, path_in, read = DATASETS[kind]
        subject = make(tmp_path)
        path = path_in(subject)
    whole = path.read_bytes()
    cuts = [] if kind in TEXT else [whole[: len(whole) * part // 10] for part in (3, 5, 9)]
    for content in (b"", b"\x00" * 4096, b"\xff\xfe" * 50, *cuts):
        path.write_bytes(content)
        if kind == "list" and content.startswith(b"\x00"):
            continue  # a name of zeros; that there is no such image is said later
        with pytest.raises(UserError) as error:
            read(subject)
        assert path.name in str(error.value) and "\n" not in str(error.value)


def test_an_image_over_the_limit_is_not_decoded(tmp_path):
    path = tmp_path / "x.png"
    Image.new("1", (12_000, 12_000)).save(path)
    for read in (read_image, image_size, read_mask):
        with pytest.raises(UserError, match=r"x\.png is too large .*the limit is 100 megapixels: scale it down"):
            read(path)


@pytest.mark.parametrize("kind", ["EPS", "TGA"])
def test_only_the_promised_formats_are_read(tmp_path, kind):
    """Pillow goes by the content, not by the name, and hands EPS to another program."""
    image, mask = tmp_path / "x.jpg", tmp_path / "x.png"
    Image.new("RGB", (16, 16), (200, 3, 3)).save(image, format=kind)
    Image.new("L", (16, 16), 3).save(mask, format="JPEG")
    with pytest.raises(
        UserError, match=r"x\.jpg cannot be read as an image .*wanted JPEG or PNG or WEBP or TIFF or BMP"
    ):
        read_image(image)
    with pytest.raises(UserError, match=r"x\.png cannot be read as an image .*wanted PNG"):
        read_mask(mask, 20)
