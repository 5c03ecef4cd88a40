"""Instances: golden files, values by hand, edge cases, files, the step that scores them and the COCO export."""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from benchmarks.cpu import objects, smooth
from benchmarks.reference import plain_centroids
from data import cocojson
from data.results import ResultFileError, load_instances, save_instances
from data.shapes import Shapes
from misc import instances, metrics
from misc.indexing import propagate_to_edge
from misc.instances import centroids, clusters, detect, instance_map
from step import eval_ins_seg
from tests.helpers import golden


@pytest.fixture(scope="module")
def recorded():
    return golden("instances")


# centroids


def test_golden_centroids_and_clusters(recorded):
    displacement = torch.from_numpy(recorded["displacement"])
    got = centroids(displacement)
    assert got.dtype == torch.int32
    np.testing.assert_array_equal(got, recorded["centroids"])
    masks = clusters(got, displacement)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, recorded["instance_map"])


def round_trip(positions):
    """A field of one row in which each of `positions` leads to the next, the last to the first."""
    field = np.zeros((2, 1, 7), np.float32)
    for start, end in zip(positions, [*positions[1:], positions[0]], strict=True):
        field[1, 0, start] = end - start
    return field


FIELDS = [objects((24, 31), n=3), smooth((24, 31), 3, 0), round_trip([1, 3]), round_trip([1, 3, 5, 6, 2])]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("iterations", [1, 299, 300])
def test_centroids_equal_the_plain_loop(field, iterations):
    wanted = plain_centroids(field, iterations)
    np.testing.assert_array_equal(centroids(torch.from_numpy(field), iterations), wanted)
    assert len(np.unique(wanted.reshape(2, -1), axis=1).T) > 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_centroids_on_a_gpu_are_those_of_the_cpu():
    field = torch.from_numpy(objects((94, 125)))
    np.testing.assert_array_equal(centroids(field.cuda()).cpu(), centroids(field))


# clusters


def test_clusters_are_four_connected_and_strays_come_first():
    strong = 9.0
    displacement = torch.full((2, 3, 4), strong)
    displacement[:, 0, 0] = displacement[:, 1, 1] = 0.0  # touch at a corner only: two regions
    displacement[:, 2, 2:] = 1.0
    centroid = torch.zeros(2, 3, 4, dtype=torch.int32)  # everybody's centroid is (0, 0) but
    centroid[:, 0, 3] = torch.tensor([1, 1])
    centroid[:, 1, 0] = torch.tensor([2, 3])
    centroid[:, 1, 3] = torch.tensor([0, 2])  # no weak displacement here
    masks = clusters(centroid, displacement)
    assert masks.shape == (4, 3, 4) and (masks.sum(0) == 1).all()
    assert [np.argwhere(mask).tolist() for mask in (masks[0], masks[2], masks[3])] == [[[1, 3]], [[0, 3]], [[1, 0]]]
    assert len(clusters(centroid, displacement, threshold=20.0)) == 1


def test_two_touching_objects_of_one_class_become_two_instances():
    """Two 8 x 8 blocks side by side: displacement towards their centres, and CAM on both."""
    y, x = np.indices((12, 24)).astype(np.float32)
    displacement = torch.from_numpy(np.stack([5.5 - y, np.where(x < 12, 7.5, 15.5) - x]))
    cam = torch.zeros(1, 12, 24)
    cam[0, 2:10, 4:12], cam[0, 2:10, 12:20] = 1, 0.9
    edge = torch.zeros(1, 12, 24)
    edge[:, 1:11, 3], edge[:, 1:11, 20], edge[:, 1, 3:21], edge[:, 10, 3:21], edge[:, :, 11:13] = 1, 1, 1, 1, 0.5
    masks = clusters(centroids(displacement), displacement)
    index, score = instance_map(cam, masks, edge, (48, 96), 0.25, exp_times=3)
    detected = detect(index, score, np.full(len(masks), 7), 0.01 * 48 * 96)
    detected = {name: value[detected["score"] > 0] for name, value in detected.items()}
    assert detected["class"].tolist() == [7, 7] and detected["score"].max() == 1
    for mask, columns in zip(detected["mask"], (slice(16, 48), slice(48, 80)), strict=True):
        truth = np.zeros((1, 48, 96), bool)
        truth[0, 8:40, columns] = True
        assert metrics.mask_iou(mask[None], truth) > 0.8
    assert (ndimage.binary_dilation(detected["mask"][0]) & detected["mask"][1]).any()  # they touch


# the strongest instance of every pixel


def plain_instance_map(cam, masks, edge, size, bg_thres, exp_times):
    """As published: every class's CAM within every instance, all at once; index and score."""
    maps = (cam[:, None] * torch.from_numpy(masks).float()[None]).flatten(0, 1)
    walk = propagate_to_edge(maps, edge, 5, 10.0, exp_times)
    up = F.interpolate(walk, scale_factor=4, mode="bilinear", align_corners=False)[:, 0, : size[0], : size[1]]
    up = up / up.max()
    return F.pad(up, (0, 0, 0, 0, 1, 0), value=bg_thres).argmax(0).numpy(), up.amax(0).numpy()


def noisy_inputs(n_classes=3, size=(110, 163), seed=0):
    rng = np.random.default_rng(seed)
    h, w = -(-size[0] // 4), -(-size[1] // 4)
    displacement = torch.from_numpy(rng.normal(0, 3, (2, h, w)).astype(np.float32))
    masks = clusters(centroids(displacement), displacement)
    cam = ndimage.gaussian_filter(rng.random((n_classes, h, w)), (0, 2, 2)) - 0.45
    edge = ndimage.gaussian_filter(rng.random((1, h, w)), (0, 1, 1)) * 1.5
    return torch.from_numpy(np.maximum(cam, 0)).float(), masks, torch.from_numpy(np.clip(edge, 0, 1)).float(), size


def test_instance_map_equals_the_published_form(monkeypatch):
    monkeypatch.setattr(instances, "WALK_MAPS", 5)  # several rounds
    cam, masks, edge, size = noisy_inputs()
    index, score = instance_map(cam, masks, edge, size, 0.25, exp_times=4)
    wanted, wanted_score = plain_instance_map(cam, masks, edge, size, 0.25, 4)
    assert index.shape == score.shape == size and len(masks) > 10
    assert (index == wanted).mean() > 0.9999 and len(np.unique(wanted)) > 10 and (wanted == 0).any()
    np.testing.assert_allclose(score[index > 0], wanted_score[index > 0], rtol=1e-4)
    assert score.max() == 1


def test_an_image_without_a_class_has_no_instance(tmp_path):
    _, masks, edge, size = noisy_inputs()
    for n_classes in (0, 2):  # none, or two whose CAM is 0 everywhere
        index, score = instance_map(torch.zeros(n_classes, *edge.shape[1:]), masks, edge, size, 0.25, exp_times=2)
        assert not index.any() and not score.any()
    save_instances(tmp_path / "a.npy", detect(index, score, np.zeros(0, np.int64), 10))
    assert {name: value.shape for name, value in load_instances(tmp_path / "a.npy").items()} == {
        "score": (0,), "mask": (0, *size), "class": (0,)
    }  # fmt: skip


# detection


def test_golden_detection(recorded):
    index = (recorded["instance_map"] * np.array([1, 2])[:, None, None]).sum(0)
    score = np.where(index == 1, *recorded["score_map"])
    detected = detect(index, score, np.array([0, 1]))
    for name in ("score", "mask", "class"):
        np.testing.assert_array_equal(detected[name], recorded[f"det_{name}"])


def test_fragments_by_hand():
    index = np.array([[1, 1, 0, 3], [0, 1, 3, 0], [3, 0, 0, 3], [3, 3, 0, 3]])
    score = np.arange(16, dtype=np.float32).reshape(4, 4) / 16
    detected = detect(index, score, np.array([5, 8, 2]), max_fragment_size=2)
    # Instance 2 has no pixel. Instance 3 falls into four: pixels that meet at a corner do not belong together.
    assert detected["class"].tolist() == [5, 2, 2, 2, 2]
    assert detected["score"].tolist() == [5 / 16, 0, 0, 13 / 16, 15 / 16]
    assert detected["mask"].sum((1, 2)).tolist() == [3, 1, 1, 3, 2]
    np.testing.assert_array_equal(detected["mask"].any(0), index > 0)
    assert (detected["score"].dtype, detected["mask"].dtype, detected["class"].dtype) == (np.float32, bool, np.int64)


def test_beyond_the_memory_the_smallest_worthless_fragments_go(monkeypatch, caplog):
    monkeypatch.setattr(instances, "MASK_BYTES", 3 * 64)
    index = np.zeros((8, 8), np.int32)
    index[0, :2], index[2, :6], index[4, 0], index[6, :5], index[4, 4:7] = 1, 1, 2, 2, 2
    with caplog.at_level(logging.INFO):
        detected = detect(index, np.full((8, 8), 0.5, np.float32), np.array([0, 1]), max_fragment_size=5)
    assert detected["mask"].sum((1, 2)).tolist() == [6, 3, 5] and detected["score"].tolist() == [0.5, 0, 0.5]
    assert "2 fragments that score 0 are dropped" in caplog.text


# files


def test_instance_files_of_this_code_and_of_the_published_are_read_back(tmp_path):
    rng, path = np.random.default_rng(1), tmp_path / "a.npy"
    detected = {
        "score": rng.random(3).astype(np.float32), "mask": rng.random((3, 9, 11)) < 0.4, "class": np.array([4, 0, 4]),
    }  # fmt: skip
    save_instances(path, detected)
    for got in (load_instances(path, (9, 11), 5), np.load(path, allow_pickle=True).item()):
        assert all(np.array_equal(got[k], detected[k]) and got[k].dtype == detected[k].dtype for k in detected)
    np.save(path, {**detected, "score": detected["score"].astype(np.float64), "mask": detected["mask"] * 1.0})
    got = load_instances(path)
    assert all(np.array_equal(got[k], detected[k]) and got[k].dtype == detected[k].dtype for k in detected)
    np.save(path, {**detected, "score": np.zeros(2)})
    with pytest.raises(ResultFileError, match=r"a\.npy is not a valid instance file: scores of shape \(2,\), wanted"):
        load_instances(path, (9, 11), 5)


# the step and the export


@pytest.fixture(scope="module")
def shapes():
    return Shapes(n_train=300, n_val=1, size=48)


def truth_of(dataset, name):
    index, values = dataset.instances(name)
    return index[None] == np.arange(1, len(values) + 1)[:, None, None], values.astype(np.int64) - 1


@pytest.fixture
def scored(shapes, tmp_path):
    """Arguments for the step over 8 images; of the three with several objects the second is found badly or not."""
    train = shapes.names("train")
    names = [name for name in train if len(shapes.instances(name)[1]) > 1][:3] + train[:5]
    for i, name in enumerate(names):
        masks, labels = truth_of(shapes, name)
        if len(masks) > 1:
            masks[1] = np.roll(masks[1], 5, 0)
        score = np.linspace(0.9, 0.4, len(masks)) - 0.01 * i
        score[2:] = 0
        save_instances(tmp_path / "ins_seg" / f"{name}.npy", {"score": score, "mask": masks, "class": labels})
    (tmp_path / "list.txt").write_text("\n".join(names))
    return argparse.Namespace(
        limit=None, eval_list=str(tmp_path / "list.txt"), work_dir=str(tmp_path), ins_seg_out_dir=None, num_workers=0,
        coco_json=str(tmp_path / "coco"), names=names,
    )  # fmt: skip


def matches(args, dataset, lowest):
    """Those of the files' instances that score `lowest` or more."""
    out = []
    for name in args.names:
        got = load_instances(Path(args.work_dir) / "ins_seg" / f"{name}.npy")
        kept = [got[key][got["score"] >= lowest] for key in ("mask", "class", "score")]
        out.append(metrics.match_instances(*kept, *truth_of(dataset, name)))
    return out


def test_the_step_scores_all_files(scored, shapes):
    values = eval_ins_seg.run(scored, shapes)
    images = matches(scored, shapes, 0)
    ap = metrics.instance_ap(images, 6)
    for key, wanted in (("50", ap[0]), ("70", ap[4]), ("50_95", ap.mean(0))):
        got = [np.nan if v is None else v for v in values[f"ap_{key}"].values()]
        np.testing.assert_allclose(got, wanted, atol=1e-12)
        assert values[f"map_{key}"] == pytest.approx(np.nanmean(wanted))
    assert list(values["ap_50"]) == list(shapes.classes) and 0.2 < values["map_50_95"] < values["map_50"] < 1
    assert values["images"] == 8 and values["instances"] == sum(len(image.truths) for image in images)
    json.dumps(values, allow_nan=False)
    scored.num_workers = 2
    assert eval_ins_seg.run(scored, shapes) == values


def test_pycocotools_evaluates_the_export(scored, shapes, tmp_path):
    eval_ins_seg.run(scored, shapes)
    truth = COCO(str(tmp_path / "coco" / "truth.json"))
    results = truth.loadRes(str(tmp_path / "coco" / "results.json"))
    evaluation = COCOeval(truth, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    exported = matches(scored, shapes, 0.01)  # what scores 0 is not exported
    assert len(results.anns) == sum(len(image.scores) for image in exported) > 8
    # COCO samples the curve at 101 recalls: close to the area, not equal.
    ap = metrics.instance_ap(exported, 6)
    np.testing.assert_allclose(evaluation.stats[:2], [metrics.mean_ap(ap), metrics.mean_ap(ap[0])], atol=0.015)
    assert evaluation.stats[0] < evaluation.stats[1] - 0.05 and len(truth.imgs) == 8
    for image in truth.imgs.values():  # the exported truth is that of the dataset
        masks, labels = truth_of(shapes, image["file_name"].removesuffix(".jpg"))
        entries = truth.imgToAnns[image["id"]]
        np.testing.assert_array_equal([truth.annToMask(entry) for entry in entries], masks)
        assert [truth.cats[entry["category_id"]]["name"] for entry in entries] == [shapes.classes[c] for c in labels]
        assert [entry["area"] for entry in entries] == masks.sum((1, 2)).tolist()
        assert (image["height"], image["width"]) == (48, 48)


def test_image_ids():
    assert cocojson.image_ids(["000000057870", "000000000009"]) == {"000000057870": 57870, "000000000009": 9}
    assert cocojson.image_ids(["2007_000032", "000000000009"]) == {"2007_000032": 1, "000000000009": 2}
    assert cocojson.image_ids(["1", "01"]) == {"1": 1, "01": 2}
