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
from tests.helpers import Payload
from tests.voc_devkit import make_devkit
from voc12.dataset import VOC12
from voc12.prepare import read_mat

RNG = np.random.default_rng(0)


# Each writes a file and returns its path and what reads it.


def cam_file(folder):
    save_cam(folder / "x.npy", np.arange(2), RNG.random((2, 6, 5)), RNG.random((2, 24, 20)))
    return folder / "x.npy", load_cam


def instance_file(folder):
    found = {"score": RNG.random(3), "mask": RNG.random((3, 9, 8)) > 0.5, "class": np.arange(3)}
    save_instances(folder / "x.npy", found)
    return folder / "x.npy", load_instances


def weights_file(folder):
    torch.save(torch.nn.Linear(3, 2).state_dict(), folder / "x.pth")
    return folder / "x.pth", lambda path: weights.load(torch.nn.Linear(3, 2), path)


def mask_file(folder):
    save_mask(folder / "x.png", RNG.integers(0, 4, (20, 24)), voc_palette())
    return folder / "x.png", lambda path: read_mask(path, 20)


def photograph(ending):
    def make(folder):
        Image.fromarray(RNG.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(folder / f"x.{ending}")
        return folder / f"x.{ending}", lambda path: read_image(path, exif=True)

    return make


def own_labels(folder):
    mini = make_folder(folder / "own")
    return mini.csv, lambda _: Folder(mini.root)


def list_file(folder):
    (folder / "list.txt").write_text("/JPEGImages/a.jpg /Masks/a.png\nb\n\nKäse\n", encoding="utf-8")
    return folder / "list.txt", read_list


def annotation(folder):
    kit = make_devkit(folder, n=4)
    path = kit.folder / "Annotations" / f"{kit.names[0]}.xml"
    return path, lambda _: VOC12(kit.root).label(kit.names[0])


def coco_json(folder):
    return make_coco(folder, 4, 1).json("train"), read_annotations


def coco_index(folder):
    mini = make_coco(folder, 4, 1)
    prepare(mini.root)
    return next(mini.root.rglob("*.npz")), Index.load


def sbd(folder):
    savemat(folder / "x.mat", {"GTcls": {"Segmentation": RNG.integers(0, 20, (20, 24), dtype=np.uint8)}})
    return folder / "x.mat", read_mat


def json_file(folder):
    save_json(folder / "args.json", {"command": "python", "arguments": {"beta": 1.0}})
    return folder / "args.json", load_json


def archive(folder):
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("in/a.txt", RNG.bytes(200) + bytes(200))
    return folder / "x.zip", lambda path: unpack(path, folder / "out")


READERS = {
    "CAM": cam_file, "instances": instance_file, "weights": weights_file,
    "mask": mask_file, "JPEG": photograph("jpg"), "WebP": photograph("webp"),
    "labels.csv": own_labels, "list": list_file, "XML": annotation, "COCO JSON": coco_json, "COCO index": coco_index,
    "SBD": sbd, "JSON": json_file, "zip": archive,
}  # fmt: skip
TEXT = ("labels.csv", "list")  # any text may be one; half of it is a shorter one


@pytest.mark.parametrize("kind", READERS)
def test_files_that_are_cut_short_or_something_else(tmp_path, kind):
    path, read = READERS[kind](tmp_path)
    whole = path.read_bytes()
    cuts = [] if kind in TEXT else [whole[: len(whole) * part // 10] for part in (3, 5, 9)]
    for content in (b"", b"\x00" * 4096, b"\xff\xfe" * 50, *cuts):
        path.write_bytes(content)
        if kind == "list" and content.startswith(b"\x00"):
            continue  # a name of zeros; that there is no such image is said later
        with pytest.raises(UserError) as error:
            read(path)
        assert path.name in str(error.value) and "\n" not in str(error.value)


def test_code_in_weights_is_not_run(tmp_path):
    path, read = weights_file(tmp_path)
    for value in (Payload(tmp_path / "it_ran"), {"model": Payload(tmp_path / "it_ran")}):
        torch.save(value, path)
        with pytest.raises(UserError):
            read(path)
        assert not (tmp_path / "it_ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "it_ran").exists()  # it does run elsewhere


def test_an_image_over_the_limit_is_not_decoded(tmp_path):
    path = tmp_path / "x.png"
    Image.new("1", (12_000, 12_000)).save(path)
    for read in (read_image, image_size, read_mask):
        with pytest.raises(UserError, match=r"x\.png is too large .*the limit is 100 megapixels: scale it down"):
            read(path)


@pytest.mark.parametrize("kind", ["EPS", "TIFF"])
def test_only_the_promised_formats_are_read(tmp_path, kind):
    """Pillow goes by the content, not by the name, and hands EPS to another program."""
    image, mask = tmp_path / "x.jpg", tmp_path / "x.png"
    Image.new("RGB", (16, 16), (200, 3, 3)).save(image, format=kind)
    Image.new("L", (16, 16), 3).save(mask, format="JPEG")
    with pytest.raises(UserError, match=r"x\.jpg cannot be read as an image .*wanted JPEG or PNG or WEBP"):
        read_image(image)
    with pytest.raises(UserError, match=r"x\.png cannot be read as an image .*wanted PNG"):
        read_mask(mask, 20)
