"""Classifiers with their trained head: ImageNet's categories by name, rows of a head, sources, and the example."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs

from data.errors import UserError
from data.results import load_cam
from net import weights
from net.backbones import build
from net.imagenet import COMMON, find_categories
from net.resnet50_cam import CAM, Net
from net.weights import WeightsError
from tests.helpers import ROOT, relative_error, said
from tests.test_backbones import trained
from voc12 import CLASSES as VOC

LITE0 = "timm:tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ("cat", [281, 282, 283, 284, 285]),  # the five domestic ones; not the Madagascar cat, 383, or the cougar, 286
        ("tabby", [281]), ("Tabby_Cat", [281]), ("n02123045", [281]),
        ("dog", list(range(151, 269))),
        ("hot-dog", [934]), ("hotdog", [934]),
        ("crane", [134, 517]),  # a bird and a machine
        ("cup", [504, 967, 968]), ("plane", [404, 895]), ("motorcycle", [665, 670]),
    ],
)  # fmt: skip
def test_words_mean_categories(label, wanted):
    assert find_categories(label) == wanted


def test_every_class_of_voc_is_an_everyday_word():
    assert len(VOC) == 20 and all(find_categories(name) for name in VOC)
    categories = [i for words in COMMON for i in find_categories(words.split()[0])]
    assert len(set(categories)) == len(categories) and max(categories) < 1000  # none belongs to two words


def test_an_unknown_word_gets_the_closest_names():
    for label, close in (("tabbi", "tabby"), ("hound", "walker hound"), ("qqqq", "nothing")):
        with pytest.raises(UserError, match=f"ImageNet has no category '{label}'; close to it: .*{close}"):
            find_categories(label)


def pooled(model):
    """Logits of the network's head for pooled features, by rows."""
    features = torch.rand(2, model.num_features, generator=torch.Generator().manual_seed(2))
    return features[:, :, None, None], model.get_classifier()(features)


@pytest.mark.parametrize("centred", [False, True])
@torch.no_grad()
def test_classes_are_means_of_rows(tmp_path, centred):
    theirs = trained("test_resnet", 1000)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "w.pth")
    ours = build(Net, 3, arch="timm:test_resnet", bias=True)
    weights.load_head(ours, str(tmp_path / "w.pth"), ("tabby", "cat", "crane"), centred)
    x, logits = pooled(theirs)
    wanted = torch.stack([logits[:, 281], logits[:, 281:286].mean(1), logits[:, [134, 517]].mean(1)], 1)
    wanted -= centred * logits.mean(1, keepdim=True)  # which changes no softmax
    assert relative_error(ours.classifier(x).flatten(1), wanted) < 1e-5
    assert torch.equal(ours.body.layer4[0].conv1.weight, theirs.layer4[0].conv1.weight)


@torch.no_grad()
def test_a_head_of_other_categories_stays_as_it_is_or_is_refused(tmp_path):
    theirs, file = trained("test_resnet", 2), str(tmp_path / "w.pth")
    torch.save(theirs.state_dict(), file)
    ours = build(Net, 2, arch="timm:test_resnet", bias=True)
    weights.load_head(ours, file, ("ripe", "rotten"))
    x, logits = pooled(theirs)
    assert relative_error(ours.classifier(x).flatten(1), logits) < 1e-6
    wanted = "a head of 2 categories; wanted 1000, .*, or 3, the classes of the dataset"
    other = r"no head for this network; is it for timm:test_resnet\?"
    for state, has in ((theirs.state_dict(), wanted), (theirs.layer4.state_dict(), other)):
        torch.save(state, file)
        with pytest.raises(WeightsError, match=rf"w\.pth has {has}"):
            weights.load_head(build(Net, 3, arch="timm:test_resnet", bias=True), file, ("a", "b", "c"))


def test_weights_of_timm_without_a_network_say_what_to_do(monkeypatch):
    def offline(*args):
        raise FileNotFoundError("no route. Please check")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    url = r"https://huggingface\.co/timm/resnet10t\.c3_in1k/resolve/main/model\.safetensors"
    with pytest.raises(WeightsError, match=rf"could not be fetched \(no route\); without a network, fetch {url}"):
        weights.load_head(build(Net, 1, arch="timm:resnet10t", bias=True), "imagenet", ("cat",))
    with pytest.raises(WeightsError, match="there are no COCO weights for timm:test_resnet"):
        weights.load_backbone(build(Net, 1, arch="timm:test_resnet"), "coco")


def test_safetensors_are_read(tmp_path):
    state = {name: value.contiguous() for name, value in trained("test_resnet").state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    model = build(CAM, 4, arch="timm:test_resnet")
    weights.load(model, tmp_path / "model.safetensors")
    assert torch.equal(model.classifier.weight.flatten(1), state["fc.weight"])
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"model\.safetensors is not a whole checkpoint"):
        weights.load(model, tmp_path / "model.safetensors")


def own_photographs(root: Path) -> Path:
    """A folder dataset of three photographs of scikit-image."""
    (root / "images").mkdir(parents=True)
    classes = {"chelsea": "cat", "coffee": "cup", "rocket": "rocket"}
    for name in classes:
        Image.fromarray(getattr(photographs, name)()).resize((128, 96)).save(root / "images" / f"{name}.png")
    (root / "labels.csv").write_text("".join(f"{name},{label}\n" for name, label in classes.items()))
    return root


def test_a_ready_classifier_needs_no_training(tmp_path):
    run = (
        "--dataset", "folder", "--data_root", own_photographs(tmp_path / "data"), "--work_dir", tmp_path / "run",
        "--cam_network", LITE0, "--cam_init", "head:imagenet", "--device", "cpu", "--num_workers", "0",
    )  # fmt: skip
    text = said(
        *run,
        "--steps",
        "train_cam,make_cam,make_rib_cam",
        "--val_list",
        "train",
        "--RIB_iter",
        "2",
        "--RIB_batch_size",
        "2",
        "--RIB_crop_size",
        "96",
        "--RIB_resize_long",
        "96,128",
        "--cam_scales",
        "1,0.5",
    )
    assert "train_cam: mean average precision 1.000 on 3 images" in text
    state = torch.load(tmp_path / "run" / "sess" / "res50_cam.pth", weights_only=True)
    assert state["classifier.weight"].shape == (3, 1280, 1, 1) and state["classifier.bias"].shape == (3,)
    for folder in ("cam", "cam_rib"):
        cam = load_cam(tmp_path / "run" / folder / "chelsea.npy")
        assert cam["keys"].tolist() == [0] and cam["high_res"].shape == (1, 96, 128)
    changed = said(*run, "--steps", "train_cam", "--cam_head_centred", "False", code=2)
    assert "was created with --cam_head_centred True, now False" in changed
    for name, label in (("cat", "wolf"), ("wolf", "kat")):
        labels = tmp_path / "data" / "labels.csv"
        labels.write_text(labels.read_text().replace(name, label))
    unknown = said(*run, "--steps", "train_cam", "--overwrite", code=2)
    assert unknown.splitlines()[-1].startswith("run_sample.py: ImageNet has no category 'kat'; close to it: ")


@pytest.mark.slow
def test_the_example_as_written(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=2)
    torch.save({"epoch": 3, "model_state_dict": model.state_dict()}, tmp_path / "mine.pth")
    Image.fromarray(photographs.chelsea()).save(tmp_path / "photo.jpg")
    command = [
        sys.executable,
        "-m",
        "examples.own_classifier",
        *(tmp_path / name for name in ("mine.pth", "photo.jpg")),
    ]
    done = subprocess.run([*command, "0", tmp_path / "maps.png"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    maps = np.asarray(Image.open(tmp_path / "maps.png").convert("RGB")).astype(int)
    assert maps.shape == (320, 640, 3)
    assert 1 < abs(maps[:, :320] - maps[:, 320:]).mean() < 60  # RIB changes the map of one photograph
    assert len((ROOT / "examples" / "own_classifier.py").read_text().splitlines()) < 30
