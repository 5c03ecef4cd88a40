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
from net.imagenet import COMMON, find_categories, name_of
from net.resnet50_cam import Net
from net.weights import WeightsError
from tests.helpers import ROOT, relative_error, said
from tests.test_backbones import trained
from voc12 import CLASSES as VOC

LITE0 = "timm:tf_efficientnet_lite0"


def test_words_mean_categories():
    for label, wanted in {
        "cat": [281, 282, 283, 284, 285],  # the domestic ones; not the Madagascar cat, 383, or the cougar, 286
        "Tabby_Cat": [281], "n02123045": [281], "hot-dog": [934], "tree frog": [31], "plane": [404, 895],
        "monkey": list(range(370, 383)),
    }.items():  # fmt: skip
        assert find_categories(label) == wanted
    assert len(VOC) == 20 and all(find_categories(name) for name in VOC)
    categories = [i for words in COMMON for i in find_categories(words.split()[0])]
    assert len(set(categories)) == len(categories) and max(categories) < 1000  # none belongs to two words
    assert [name_of(i) for i in (134, 281, 726)] == ["n02012849", "tabby", "carpenter's plane"]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("tabbi", "no category 'tabbi'; close to it: .*tabby"),
        ("hound", "no category 'hound'; close to it: .*walker hound"),
        ("qqqq", "no category 'qqqq'; close to it: nothing"),
        ("crane", "several categories 'crane'; .*: n02012849, crane: large .*; n03126707, crane: lifts"),
    ],
)
def test_words_that_mean_none_or_several(label, message):
    with pytest.raises(UserError, match=f"ImageNet has {message}"):
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
    weights.load_head(ours, str(tmp_path / "w.pth"), ("tabby", "cat", "plane"), centred)
    x, logits = pooled(theirs)
    wanted = torch.stack([logits[:, 281], logits[:, 281:286].mean(1), logits[:, [404, 895]].mean(1)], 1)
    wanted -= centred * logits.mean(1, keepdim=True)  # which changes no softmax
    assert relative_error(ours.classifier(x).flatten(1), wanted) < 1e-5
    assert torch.equal(ours.body.layer4[0].conv1.weight, theirs.layer4[0].conv1.weight)


@torch.no_grad()
def test_a_head_of_other_categories_stays_as_it_is_or_is_refused(tmp_path):
    theirs, ours = trained("test_resnet", 2), build(Net, 2, arch="timm:test_resnet", bias=True)
    file = str(tmp_path / "w.safetensors")
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, file)
    weights.load_head(ours, file, ("ripe", "rotten"))
    x, logits = pooled(theirs)
    assert relative_error(ours.classifier(x).flatten(1), logits) < 1e-6
    with pytest.raises(
        WeightsError, match=r"a head of 2 categories; wanted 1000, .*, or 3, the classes of the dataset"
    ):
        weights.load_head(ours, file, ("a", "b", "c"))
    save_file(theirs.layer4.state_dict(), file)
    with pytest.raises(WeightsError, match=r"has no head for this network; is it for timm:test_resnet\?"):
        weights.load_head(ours, file, ("ripe", "rotten"))
    Path(file).write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="is not a whole checkpoint"):
        weights.load(ours, file)


def test_weights_of_timm_without_a_network_say_what_to_do(monkeypatch, caplog):
    def offline(*args):
        raise FileNotFoundError("no route. Please check")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    url = r"https://huggingface\.co/timm/resnet10t\.c3_in1k/resolve/main/model\.safetensors"
    with pytest.raises(WeightsError, match=rf"could not be fetched \(no route\); without a network, fetch {url}"):
        weights.load_head(build(Net, 1, arch="timm:resnet10t", bias=True), "imagenet", ("cat",))
    assert caplog.messages == ["downloading timm/resnet10t.c3_in1k from Hugging Face"]
    with pytest.raises(WeightsError, match="there are no COCO weights for timm:test_resnet"):
        weights.load_backbone(build(Net, 1, arch="timm:test_resnet"), "coco")


def test_a_ready_classifier_needs_no_training(tmp_path):
    root, labels = tmp_path / "data", tmp_path / "data" / "labels.csv"
    (root / "images").mkdir(parents=True)
    classes = {"chelsea": "cat", "coffee": "cup", "rocket": "rocket"}
    for name in classes:
        Image.fromarray(getattr(photographs, name)()).resize((128, 96)).save(root / "images" / f"{name}.png")
    labels.write_text("".join(f"{name},{label}\n" for name, label in classes.items()))
    options = (
        "--cam_init head:imagenet --device cpu --num_workers 0 --steps train_cam,make_rib_cam --cam_scales 1,0.5 "
        "--val_list train --RIB_iter 2 --RIB_batch_size 2 --RIB_crop_size 96 --RIB_resize_long 96,128"
    )
    run = ("--dataset", "folder", "--data_root", root, "--work_dir", tmp_path / "run", "--cam_network", LITE0)
    run = (*run, *options.split())
    assert "train_cam: mean average precision 1.000 on 3 images" in said(*run)
    state = torch.load(tmp_path / "run" / "sess" / "res50_cam.pth", weights_only=True)
    assert state["classifier.weight"].shape == (3, 1280, 1, 1) and state["classifier.bias"].shape == (3,)
    cam = load_cam(tmp_path / "run" / "cam_rib" / "chelsea.npy")
    assert cam["keys"].tolist() == [0] and cam["high_res"].shape == (1, 96, 128)
    changed = said(*run, "--cam_head_centred", "False", code=2)
    assert "was created with --cam_head_centred True, now False" in changed
    labels.write_text(labels.read_text().replace("cat", "kat"))
    unknown = said(*run, "--overwrite", code=2)
    assert unknown.splitlines()[-1].startswith("run_sample.py: ImageNet has no category 'kat'; close to it: ")


@pytest.mark.slow
def test_the_example_as_written(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=2)
    torch.save({"epoch": 3, "model_state_dict": model.state_dict()}, tmp_path / "mine.pth")
    Image.fromarray(photographs.chelsea()).save(tmp_path / "photo.jpg")

    def run(*arguments):
        command = [sys.executable, "-m", "examples.own_classifier", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    files = (tmp_path / "mine.pth", tmp_path / "photo.jpg")
    done = run(*files, "0", tmp_path / "maps.png")
    assert done.returncode == 0, done.stderr
    maps = np.asarray(Image.open(tmp_path / "maps.png").convert("RGB")).astype(int)
    assert maps.shape == (213, 640, 3)  # of 300 x 451
    assert 1 < abs(maps[:, :320] - maps[:, 320:]).mean() < 60  # RIB changes the map of one photograph
    for arguments in (files, (*files[::-1], "0", "maps.png"), (*files, "2", "maps.png")):
        assert run(*arguments).stderr.splitlines()[1].startswith("own_classifier.py: error: ")
    assert len((ROOT / "examples" / "own_classifier.py").read_text().splitlines()) < 30
