"""Damaged JSON of a run: one line that names file and entry, from whichever step or report reads it."""

import argparse
import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data import camfile, image_names, insfile, open_dataset
from data.base import voc_palette
from data.errors import UserError
from data.files import load_json, save_json, save_mask
from misc.report.compare import compare
from misc.run import metricsfile, stored, workdir
from step import report
from tests.report_mini import Page, finished
from tests.test_ablate import study
from tests.test_report import apart


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("run"), "--limit", "3")


@pytest.fixture
def run(whole, tmp_path):
    """The arguments of a copy of a scored run."""
    shutil.copytree(whole.work_dir, tmp_path / "run")
    return argparse.Namespace(**{**vars(whole), "work_dir": str(tmp_path / "run")})


def put(run, file, at, value):
    """Changes an entry of a JSON file; at: the keys down to it."""
    path = Path(run.work_dir) / file
    content = load_json(path)
    *above, last = at.split("/")
    entry = content
    for key in above:
        entry = entry[key]
    entry[last] = value
    save_json(path, content)


DAMAGE = {
    "per_image.json": [("sem_seg", 5, "sem_seg is 5, wanted a mapping"), ("sem_seg/x", "y", r"sem_seg\.x is a str")],
    "metrics.json": [
        ("eval_cam", {"seconds": 1.0}, r"it lacks eval_cam\.best"),
        ("eval_cam/best/miou", [], r"eval_cam\.best\.miou is a list, wanted a share"),
        ("eval_cam/best/threshold", None, r"eval_cam\.best\.threshold is None"),
        ("eval_cam/sweep", {"x": 0.5}, "eval_cam.sweep has 'x' for a threshold"),
        ("eval_cam/sweep", {}, "eval_cam.sweep is empty"),
        ("eval_sem_seg/miou", 7, r"eval_sem_seg\.miou is 7, wanted a share"),
        ("eval_sem_seg/ir_label", [1], "wanted a mapping"),
        ("eval_sem_seg/confusion", [[1, 2], [3]], r"eval_sem_seg\.confusion is not"),
        ("eval_ins_seg/images", 10**400, r"eval_ins_seg\.images is 1000.*, wanted a count"),
        ("train_cam/loss", "abc", r"train_cam\.loss is a str, wanted a list"),
        ("train_cam/seconds", True, r"train_cam\.seconds is True"),
        ("ablate", {"studies": {"steps": {"best": [0.1], "best_threshold": [], "fixed": [0.1]}}}, "different lengths"),
        ("toy", {"claims": [{"claim": "x"}]}, r"it lacks toy\.claims\.0\.condition"),
    ],
    "args.json": [
        ("arguments", 5, "arguments is 5, wanted a mapping"),
        ("sources", [], "sources is a list"),
        ("earlier", {}, "earlier is a dict, wanted a list"),
        ("hardware", 3, "hardware is 3"),
    ],
}
CASES = [(file, *case) for file, cases in DAMAGE.items() for case in cases]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "at", "value", "message"), CASES)
def test_damaged_json_is_named_by_the_report_and_the_comparison(run, whole, tmp_path, file, at, value, message):
    put(run, file, at, value)
    line = rf"run/{file} is damaged: .*{message}.*; mend it, or move it away"
    with pytest.raises(UserError, match=line):
        report.run(run)
    if file != "per_image.json":
        run.compare = (whole.work_dir, run.work_dir)
        with pytest.raises(UserError, match=line):
            compare(run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "spoilt"),
    [
        ({}, False), ({"dataset": "shapes"}, False),
        ({"limit": "x"}, True), ({"cam_eval_thres": []}, True), ({"cam_out_dir": 5}, True),
    ],
)  # fmt: skip
def test_a_comparison_with_arguments_of_no_run(run, whole, tmp_path, arguments, spoilt):
    path = Path(run.work_dir) / "args.json"
    content = load_json(path)
    save_json(path, {**content, "arguments": {**content["arguments"], **arguments} if spoilt else arguments})
    run.compare = (whole.work_dir, run.work_dir)
    with pytest.raises(UserError, match=r"run/args\.json does not hold the arguments of a whole run"):
        compare(run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"own": "k"}, "it lacks studies"),
        ({"own": "k", "studies": 5}, "studies is 5"),
        ({"own": "k", "studies": {"pooling": study(points=[])}}, r"studies\.pooling\.points is empty"),
        ({"own": "k", "studies": {"pooling": {**study(), "sweep": None}}}, r"studies\.pooling\.sweep is None"),
    ],
)
def test_damaged_results_of_the_ablations(tmp_path, content, message):
    save_json(tmp_path / "results.json", content)
    with pytest.raises(UserError, match=rf"results\.json is damaged: .*{message}"):
        load_json(tmp_path / "results.json")


def test_whole_files_are_whole(whole):
    measured = metricsfile.metrics(whole)
    for content in (measured, apart("x"), {"eval_cam": {**measured["eval_cam"], "sweep": {"0.1": None}}}):
        assert stored.problem("metrics.json", content) is None
    save_json(Path(whole.work_dir) / "other.json", {"sem_seg": 5})
    assert load_json(Path(whole.work_dir) / "other.json") == {"sem_seg": 5}


VALUES = (None, 5, -1, 0.5, True, "x", [], {}, [[]], [1, 2], {"a": 1}, 1e300, 10**400, float("nan"), float("inf"))


def places(value, at=()):
    """The ways to every entry; of a list to its first two."""
    keys = list(value) if isinstance(value, dict) else range(len(value))[:2] if isinstance(value, list) else ()
    for key in keys:
        yield (*at, key)
        yield from places(value[key], (*at, key))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_any_value_in_any_place_is_reported_or_refused(run, seed, capsys):
    """No mutation of bytes gets there: the file stays JSON."""
    draw = np.random.default_rng(seed)
    path = Path(run.work_dir) / "metrics.json"
    network = {"miou": 0.6, "before_crf": {"miou": 0.6}, "comparison": {"rib": 0.6}, "images": 4}
    content = {**load_json(path), **apart("x"), "eval_seg": network, "train_seg": {"loss": {"rib": [2.0, 1.0]}}}
    for _ in range(5):
        changed = copy.deepcopy(content)
        everywhere = list(places(content))
        *above, last = everywhere[draw.integers(len(everywhere))]
        entry = changed
        for key in above:
            entry = entry[key]
        entry[last] = VALUES[draw.integers(len(VALUES))]
        path.write_text(json.dumps(changed))
        try:
            report.run(run)
        except UserError as error:
            assert "metrics.json" in str(error)


def test_the_report_leaves_out_results_of_another_image_and_says_so(run, caplog, capsys):
    dataset = open_dataset(run)
    names = image_names(run, dataset, "infer")
    maps, n = np.ones((1, 40, 40), np.float32), dataset.n_classes
    paths = [workdir.result_file(run, "cam_out_dir", name, ".npy") for name in names]
    camfile.save(paths[0], np.array([0]), maps[:, ::4, ::4], maps)  # of another size
    camfile.save(paths[1], np.array([n]), maps[:, :8, :8], maps[:, :32, :32])  # a class too many
    paths[2].write_bytes(b"nothing")
    mask = workdir.result_file(run, "sem_seg_out_dir", names[0], ".png")
    save_mask(mask, np.full((32, 32), n + 1, np.uint8), voc_palette())
    instances = [workdir.result_file(run, "ins_seg_out_dir", name, ".npy") for name in names[:2]]
    nothing = {"score": np.zeros(0), "mask": np.zeros((0, 0, 0), bool), "class": np.zeros(0)}
    insfile.save(instances[0], nothing)
    insfile.save(instances[1], {**nothing, "mask": np.zeros((0, 32, 32), bool)})  # an image without instances
    report.run(run)
    for path in (*paths, mask, instances[0]):
        assert f"left out of the pictures: {path} " in caplog.text
    assert str(instances[1]) not in caplog.text
    page = Page((Path(run.work_dir) / "report.html").read_text())
    drawn = [attributes.get("data-layer") for _, attributes in page.tags if "data-layer" in attributes]
    assert len(page.cards()) == 3
    assert [drawn.count(key) for key in ("cam", "rib", "mask", "instances")] == [0, 3, 2, 2]


def test_a_comparison_with_masks_of_another_image(run, whole, tmp_path):
    names = image_names(run, open_dataset(run), "infer")
    run.compare, run.num_workers = (whole.work_dir, run.work_dir), 0
    path = workdir.result_file(run, "sem_seg_out_dir", names[0], ".png")
    save_mask(path, np.zeros((5, 5), np.uint8), voc_palette())
    with pytest.raises(UserError, match=rf"{names[0]} has a mask of \(32, 32\) in .* and of \(5, 5\)"):
        compare(run, tmp_path)
    save_mask(path, np.full((32, 32), 200, np.uint8), voc_palette())
    with pytest.raises(UserError, match="holds the value 200"):
        compare(run, tmp_path)
