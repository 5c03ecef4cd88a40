"""VOC 2012 through the command line: a tiny devkit, a checkpoint in the published layout, bad input."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.models import resnet50

from data.results import load_cam
from net.resnet50_cam import Net
from tests.helpers import golden_state, golden_tensor, published, relative_error, said
from tests.voc_devkit import make_devkit

SMALL = (
    "--dataset voc12 --num_workers 0 --device cpu --RIB_iter 2 --RIB_batch_size 2 --RIB_crop_size 64 "
    "--RIB_resize_long 64,96 --irn_backbone cam --irn_crop_size 64 --irn_batch_size 4 --irn_num_epoches 1 "
    "--irn_radius 4 --irn_infer_pad 96 --exp_times 3 --irn_learning_rate 0.01 --irn_displacement_lr 0.1"
).split()


FAST = ("--cam_scales", "1.0,0.5")  # a sixth of the time, where all four scales are not the subject
VOC = "data/VOCdevkit/VOC2012"


def run(work_dir, data_root, *arguments, code=0):
    return said("--work_dir", work_dir, "--data_root", data_root, *SMALL, *arguments, code=code)


@pytest.fixture(scope="module")
def finished(once):
    """The devkit, the folder that holds it and the run on it, the arguments that name its weights, what it said."""

    def make(folder):
        kit = make_devkit(folder / "data", n=9)
        # The names the published classifier is saved under: everything two or three times.
        state = {**published("classifier", golden_state(Net(20))), "resnet50.fc.bias": torch.zeros(1000)}
        torch.save({f"module.{name}": value for name, value in state.items()}, folder / "res50_cam.pth")
        common = (folder / "work", kit.root, "--cam_weights_name", folder / "res50_cam.pth", "--steps")
        printed = run(*common, "make_cam,eval_cam") + run(*common, "make_rib_cam-eval_ins_seg,report", *FAST)
        return kit, printed

    folder, (kit, printed) = once("voc12", make)
    return kit, folder, ("--cam_weights_name", folder / "res50_cam.pth"), printed


def independent_cam(path, keys):
    """CAMs of an image from torchvision's network, Pillow and the text of the method, without the project's code."""
    network = resnet50(weights=None)
    network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
    network.load_state_dict(golden_state(network))
    classifier = golden_tensor("classifier.weight", (20, 2048, 1, 1))
    layers = torch.nn.Sequential(*list(network.children())[:-2]).eval()
    image = Image.open(path).convert("RGB")
    width, height = image.size
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    small, large = 0, 0
    for scale in (1.0, 0.5, 1.5, 2.0):
        scaled = image.resize((round(width * scale), round(height * scale)), Image.BICUBIC)
        x = ((torch.from_numpy(np.array(scaled)).float() / 255 - mean) / std).permute(2, 0, 1)[None]
        with torch.no_grad():
            one, two = (F.relu(F.conv2d(layers(view), classifier))[0, keys] for view in (x, x.flip(3)))
        cam = (one + two.flip(2))[None]
        small = small + F.interpolate(cam, (-(-height // 4), -(-width // 4)), mode="bilinear", align_corners=False)[0]
        padded = (-(-height // 16) * 16, -(-width // 16) * 16)
        large = large + F.interpolate(cam, padded, mode="bilinear", align_corners=False)[0, :, :height, :width]
    return tuple(cam / (cam.amax((1, 2), keepdim=True) + 1e-5) for cam in (small, large))


def test_cams_equal_an_independent_computation(finished):
    kit, folder, _, _ = finished
    for name in [*kit.train_aug[:3], kit.extra[-1]]:
        file = load_cam(folder / "work" / "cam" / f"{name}.npy")
        keys = sorted(kit.labels[name])
        assert file["keys"].tolist() == keys
        small, large = independent_cam(kit.folder / "JPEGImages" / f"{name}.jpg", keys)
        assert relative_error(file["cam"], small) < 1e-4
        assert relative_error(file["high_res"], large) < 1e-4
    assert kit.grey in kit.train_aug[:3]


def test_scores_are_those_of_the_files_that_every_image_gets(finished):
    kit, folder, _, printed = finished
    for kind, suffix in (("cam", ".npy"), ("cam_rib", ".npy"), ("ir_label", ".png"), ("sem_seg", ".png")):
        written = sorted(path.name for path in (folder / "work" / kind).glob("[!.]*"))
        assert written == [f"{name}{suffix}" for name in kit.train_aug]
    confusion = np.zeros((21, 21), np.int64)
    for name in kit.train_aug:
        mask = np.array(Image.open(folder / "work" / "sem_seg" / f"{name}.png"))
        assert mask.shape == kit.masks[name].shape
        assert set(np.unique(mask)) <= {0, *(c + 1 for c in kit.labels[name])}
        if name in kit.train:
            valid = kit.masks[name] != 255
            np.add.at(confusion, (kit.masks[name][valid], mask[valid]), 1)
    metrics = json.loads((folder / "work" / "metrics.json").read_text())
    assert metrics["eval_sem_seg"]["confusion"] == confusion.tolist()
    assert metrics["eval_sem_seg"]["images"] == len(kit.train) == metrics["eval_cam"]["images"]
    assert metrics["make_cam"]["images"] == len(kit.train_aug)
    assert list(metrics["eval_cam"]["sweep"]) == [f"{t / 100:g}" for t in range(20, 50)]
    assert "the published set has 10,582" in printed


def test_another_run_gives_the_same_bytes(finished, tmp_path):
    """Of some images only, by a list of the authors' form, from the flat layout, in workers."""
    kit, folder, weights, _ = finished
    shutil.copytree(kit.folder, tmp_path / "data" / "VOC2012_SEG_AUG")
    (tmp_path / "sess").mkdir()
    shutil.copy(folder / "work" / "sess" / "res50_irn.pth", tmp_path / "sess")
    chosen = kit.train_aug[1::3]
    (tmp_path / "some.txt").write_text("".join(f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png\n" for n in chosen))
    common = (*weights, "--num_workers", "2", "--infer_list", tmp_path / "some.txt", "--steps")
    run(tmp_path, tmp_path / "data", *common, "make_cam")
    run(tmp_path, tmp_path / "data", *common, "make_rib_cam,cam_to_ir_label,make_sem_seg", *FAST)
    for kind in ("cam", "cam_rib", "ir_label", "sem_seg"):
        paths = sorted((tmp_path / kind).glob("[!.]*"))
        assert [path.stem for path in paths] == chosen
        for path in paths:
            assert path.read_bytes() == (folder / "work" / kind / path.name).read_bytes(), path


def test_an_unreadable_jpeg_is_named_and_can_be_skipped(finished, tmp_path):
    kit, _, weights, _ = finished
    shutil.copytree(kit.root, tmp_path / "data")
    bad = tmp_path / VOC / "JPEGImages" / f"{kit.extra[1]}.jpg"
    bad.write_bytes(bad.read_bytes()[:400])
    make_cam = (tmp_path / "work", tmp_path / "data", *FAST, *weights, "--steps", "make_cam")
    printed = run(*make_cam, code=2)
    assert bad.name in printed and "--skip_bad" in printed
    printed = run(*make_cam, "--skip_bad")
    made = sorted(path.stem for path in (tmp_path / "work" / "cam").glob("[!.]*"))
    assert made == [name for name in kit.train_aug if name != kit.extra[1]]
    assert f"left out {kit.extra[1]}" in printed.splitlines()[-1]
    assert list(json.loads((tmp_path / "work" / "bad_images.json").read_text())) == [kit.extra[1]]


def test_lists_of_ones_own_serve_where_those_of_voc_are_missing(finished, tmp_path):
    kit, _, weights, _ = finished
    shutil.copytree(kit.root, tmp_path / "data")
    shutil.rmtree(tmp_path / VOC / "ImageSets")
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in kit.train[1:3]))
    lists = [word for key in ("train", "infer", "eval", "val") for word in (f"--{key}_list", tmp_path / "list.txt")]
    run(tmp_path / "work", tmp_path / "data", *FAST, *weights, *lists, "--steps", "make_cam,eval_cam")
    shutil.rmtree(tmp_path / VOC / "JPEGImages")
    printed = run(tmp_path / "work", tmp_path / "data", *weights, "--steps", "make_cam", code=2)
    assert "JPEGImages" in printed and "ImageSets" in printed
