"""COCO, a folder of own images and a dataset in a file of its own, through the command line with the small network."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from coco14.prepare import prepare
from data.results import load_cam
from run_sample import STEPS
from tests.coco_mini import make_coco
from tests.folder_mini import CLASSES, SMALL, make_folder
from tests.helpers import ROOT, said

KINDS = {"cam": ".npy", "cam_rib": ".npy", "ir_label": ".png", "sem_seg": ".png"}
METHOD = "train_cam-eval_sem_seg,report"


def run(work_dir, dataset, data_root, *arguments, code=0):
    return said("--dataset", dataset, "--data_root", data_root, "--work_dir", work_dir, *SMALL, *arguments, code=code)


def results(folder, kind):
    """The names of the results of a kind, from the paths below its folder."""
    paths = [path.relative_to(folder / kind) for path in (folder / kind).rglob("[!.]*") if path.is_file()]
    assert all(path.suffix == KINDS[kind] for path in paths)
    return sorted(str(path).removesuffix(KINDS[kind]) for path in paths)


def check_files(work_dir, sizes, classes):
    """Every image has its files, of its size, and no mask value but those of its classes."""
    for kind in KINDS:
        assert results(work_dir, kind) == sorted(sizes)
    for name, (height, width) in sizes.items():
        for kind in ("cam", "cam_rib"):
            file = load_cam(work_dir / kind / f"{name}.npy")
            assert file["keys"].tolist() == sorted(classes[name])
            n = len(classes[name])
            assert file["cam"].shape == (n, -(-height // 4), -(-width // 4))
            assert file["high_res"].shape == (n, height, width) and np.isfinite(file["high_res"]).all()
        for kind in ("ir_label", "sem_seg"):
            with Image.open(work_dir / kind / f"{name}.png") as png:
                mask = np.array(png)
            allowed = {0, *(c + 1 for c in classes[name]), *({255} if kind == "ir_label" and classes[name] else ())}
            assert mask.shape == (height, width) and set(np.unique(mask)) <= allowed


@pytest.fixture(scope="module")
def coco(once):
    def make(folder):
        mini = make_coco(folder / "data")
        prepare(mini.root)
        return mini, run(folder / "work", "coco14", mini.root)

    folder, (mini, printed) = once("coco14", make)
    return mini, folder / "work", printed


def test_coco_from_labels_to_masks_and_scores(coco, tmp_path):
    mini, work_dir, printed = coco
    index = {c["id"]: i for i, c in enumerate(json.loads(mini.json("train").read_text())["categories"])}
    classes = {name: {index[a["category_id"]] for a in mini.of(name)} for name in mini.names["train"]}
    check_files(work_dir, {name: mini.sizes[name] for name in mini.names["train"]}, classes)
    assert mini.sizes[mini.large][1] > 512 and not classes[mini.empty] and mini.grey in classes
    metrics = json.loads((work_dir / "metrics.json").read_text())
    confusion = np.zeros((81, 81), np.int64)
    for name in mini.names["train"]:
        truth = np.array(Image.open(mini.root / "coco14/masks" / f"{name}.png"))
        mask = np.array(Image.open(work_dir / "sem_seg" / f"{name}.png"))
        np.add.at(confusion, (truth[truth != 255], mask[truth != 255]), 1)
    assert metrics["eval_sem_seg"]["confusion"] == confusion.tolist()
    assert list(metrics) == ["schema", *(step.name for step in STEPS if step.number is not None)]
    sweep = [t for t in metrics["eval_cam"]["sweep"] if t != "0.15"]
    assert sweep[0] == "0.1" and sweep[-1] == "0.5" and "pseudo mask" in printed
    assert len(metrics["train_cam"]["average_precision"]) == 80
    assert metrics["make_rib_cam"]["RIB_steps"]["0"] == 1  # the image without any object
    printed = run(tmp_path, "coco14", tmp_path, "--steps", "1", code=2)
    assert "index.npz does not exist" in printed and "python -m coco14.prepare" in printed
    args = json.loads((work_dir / "args.json").read_text())
    assert args["arguments"]["stop_th"] == 1000 and args["sources"]["score_th"].endswith("for COCO")


@pytest.fixture(scope="module")
def own(once):
    def make(folder):
        mini = make_folder(folder / "data")
        (mini.root / "splits").mkdir()
        (mini.root / "splits" / "val.txt").write_text("plain\nsub/plain.webp\n")
        return mini, run(folder / "work", "folder", mini.root)

    folder, (mini, printed) = once("own images", make)
    return mini, folder / "work", printed


def test_own_images_from_labels_to_masks(own):
    mini, work_dir, printed = own
    train = [name for name in mini.names if name not in ("plain", "sub/plain")]
    check_files(work_dir, {name: mini.masks[name].shape for name in train}, mini.labels)
    metrics = json.loads((work_dir / "metrics.json").read_text())
    assert metrics["eval_sem_seg"]["images"] == len(train) == 8 and "pseudo mask" in printed
    assert list(metrics["train_cam"]["average_precision"]) == list(CLASSES)
    assert (work_dir / "cam" / "sub" / "deep er" / "picture.npy").is_file()
    assert not [path for path in work_dir.rglob("*") if path.suffix in (".tmp", ".checkpoint")]


def test_without_masks_one_line_says_what_is_left_out(own, tmp_path):
    _, work_dir, _ = own
    mini = make_folder(tmp_path / "data", masks=False)
    weights = ("--cam_weights_name", str(work_dir / "sess/res50_cam.pth"))
    steps = ("--steps", "make_cam-eval_rib_cam,report", "--infer_list", str(tmp_path / "some list.txt"))
    (tmp_path / "some list.txt").write_text("日本語 😀.png\nsub/deep er/picture\n", encoding="utf-8")
    printed = run(tmp_path / "work", "folder", mini.root, *weights, *steps)
    names = ["sub/deep er/picture", "日本語 😀"]
    assert results(tmp_path / "work", "cam") == names
    for path in (f"cam/{name}.npy" for name in names):
        assert (tmp_path / "work" / path).read_bytes() == (work_dir / path).read_bytes()
    lines = [line for line in printed.splitlines() if "no masks" in line]
    assert len(lines) == 1 and lines[0].endswith("dataset folder has no masks: left out eval_cam, eval_rib_cam")
    metrics = json.loads((tmp_path / "work" / "metrics.json").read_text())
    assert [step for step in metrics if step != "report"] == ["schema", "make_cam", "make_rib_cam"]
    assert (tmp_path / "work" / "overview.png").is_file() and (tmp_path / "work" / "report.html").is_file()


def test_the_documented_dataset_runs_as_written(tmp_path):
    text = (ROOT / "docs" / "adding_a_dataset.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) < 40
    (tmp_path / "sorted_photos.py").write_text(code, encoding="utf-8")
    rng = np.random.default_rng(0)
    names = {f"{c}/photo {i}": {k} for k, c in enumerate(("cat", "hot dog")) for i in range(3)}
    for name, (k,) in names.items():
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(100 * k, 100 * k + 90, (60, 72, 3), dtype=np.uint8)).save(path)
    dataset = tmp_path / "sorted_photos.py"
    printed = run(tmp_path / "work", dataset, tmp_path / "photos", "--steps", METHOD)
    assert "has no masks: left out eval_cam, eval_rib_cam, eval_sem_seg" in printed
    check_files(tmp_path / "work", dict.fromkeys(names, (60, 72)), names)
