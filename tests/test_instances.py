"""Instances: golden files, values by hand, edge cases, AP, files and the COCO export."""

import argparse
import json
import logging

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


FIELDS = [
    objects((24, 31), n=3), smooth((24, 31), 20, 3), smooth((24, 31), 3, 0), round_trip([1, 3]),
    round_trip([1, 3, 5, 6, 2]), round_trip([1, 3]).transpose(0, 2, 1),
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("iterations", [1, 13, 299, 300])
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


def two_blocks():
    """Displacement towards the centres of two 8 x 8 blocks side by side, and CAM on both."""
    y, x = np.indices((12, 24)).astype(np.float32)
    displacement = torch.from_numpy(np.stack([5.5 - y, np.where(x < 12, 7.5, 15.5) - x]))
    cam = np.zeros((1, 12, 24), np.float32)
    cam[0, 2:10, 4:12], cam[0, 2:10, 12:20] = 1, 0.9
    return displacement, torch.from_numpy(cam)


def test_two_touching_objects_of_one_class_become_two_instances():
    displacement, cam = two_blocks()
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


@pytest.mark.parametrize("maps", [64, 5])
def test_instance_map_equals_the_published_form(maps, monkeypatch):
    monkeypatch.setattr(instances, "WALK_MAPS", maps)
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


@pytest.fixture
def detected():
    rng = np.random.default_rng(1)
    return {
        "score": rng.random(3).astype(np.float32),
        "mask": rng.random((3, 9, 11)) < 0.4,
        "class": np.array([4, 0, 4], np.int64),
    }


def same(got, wanted):
    return all(np.array_equal(got[name], wanted[name]) and got[name].dtype == wanted[name].dtype for name in wanted)


class Payload:
    def __reduce__(self):
        return print, ("unpickled",)


def test_instance_files_of_this_code_and_of_the_published_are_read_back(tmp_path, detected):
    save_instances(tmp_path / "a.npy", detected)
    assert same(load_instances(tmp_path / "a.npy", (9, 11), 5), detected)
    assert same(np.load(tmp_path / "a.npy", allow_pickle=True).item(), detected)
    np.save(
        tmp_path / "a.npy", {**detected, "score": detected["score"].astype(np.float64), "mask": detected["mask"] * 1.0}
    )
    assert same(load_instances(tmp_path / "a.npy"), detected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.zeros((3, 11, 9), bool)}, r"its image is \(11, 9\), wanted \(9, 11\)"),
        ({"class": np.array([4, 0, 5])}, r"it has classes \[4, 0, 5\], wanted 0 to 4"),
        ({"score": Payload()}, "it would run builtins.print, which is refused"),
        ({"score": np.zeros(2)}, r"scores of shape \(2,\), wanted a finite one"),
        ({"mask": None}, "it has no 'mask'"),
    ],
)
def test_instance_files_that_do_not_fit_are_refused(tmp_path, detected, change, message, capsys):
    value = {name: entry for name, entry in {**detected, **change}.items() if entry is not None}
    np.save(tmp_path / "a.npy", value)
    with pytest.raises(ResultFileError, match=rf"a\.npy is not a valid instance file: .*{message}"):
        load_instances(tmp_path / "a.npy", (9, 11), 5)
    assert capsys.readouterr().out == ""


# AP


def test_golden_ap():
    data = golden("chainercv")
    images = [[data[f"{name}{i}"] for name in ("pm", "pl", "ps", "gm", "gl")] for i in range(5)]
    for threshold in (0.5, 0.7):
        wanted = data[f"ap_{threshold}"]
        matches = [metrics.match_instances(*image, (threshold,)) for image in images]
        got = metrics.instance_ap(matches, len(wanted))[0]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-9)
        assert metrics.mean_ap(got) == pytest.approx(float(data[f"map_{threshold}"]), abs=1e-9)


def plain_ap(images, threshold, n_classes):
    """One class after another over all images at once, the curve integrated step by step."""
    out = np.full(n_classes, np.nan)
    for c in range(n_classes):
        rows, positives = [], 0
        for pm, pl, ps, gm, gl in images:
            truths = [mask for mask, label in zip(gm, gl, strict=True) if label == c]
            positives += len(truths)
            taken = set()
            for i in sorted(np.flatnonzero(np.asarray(pl) == c), key=lambda i: -ps[i]):
                ious = [(pm[i] & t).sum() / max((pm[i] | t).sum(), 1) for t in truths]
                best = int(np.argmax(ious)) if ious else -1
                near = bool(ious) and ious[best] >= threshold
                rows.append((ps[i], near and best not in taken))
                taken |= {best} if near else set()
        if positives:
            hits = [hit for _, hit in sorted(rows, reverse=True)]
            precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
            out[c] = sum(max(precision[i:]) / positives for i, hit in enumerate(hits) if hit)
    return out


def random_images(n_images=8, n_classes=4, seed=0):
    """Predictions that are shifted truths, some twice, some of another class, and some noise."""
    rng = np.random.default_rng(seed)
    images = []
    for k in range(n_images):
        n = k % 4
        truth = np.zeros((n, 20, 24), bool)
        for mask in truth:
            y, x = rng.integers(0, 12, 2)
            mask[y : y + rng.integers(4, 9), x : x + rng.integers(4, 12)] = True
        labels = rng.integers(0, n_classes - 1, n)  # the last class is never true
        copies = rng.integers(0, n, 3) if n else np.zeros(0, np.int64)
        pred = np.concatenate([np.roll(truth[copies], 1, 1 + k % 2), rng.random((k % 3, 20, 24)) < 0.3])
        pred_labels = np.concatenate([labels[copies], rng.integers(0, n_classes, k % 3)])
        images.append((pred, pred_labels, rng.random(len(pred)), truth, labels))
    return images


@pytest.mark.parametrize("seed", range(3))
def test_streaming_ap_equals_the_plain_one(seed):
    images = random_images(seed=seed)
    thresholds = (0.5, 0.7, 0.9)
    got = metrics.instance_ap([metrics.match_instances(*image, thresholds) for image in images], 4)
    for ap, threshold in zip(got, thresholds, strict=True):
        np.testing.assert_allclose(ap, plain_ap(images, threshold, 4), rtol=0, atol=1e-12)
    assert 0 < metrics.mean_ap(got[0]) < 1 and np.isnan(got[:, 3]).all()


def test_ap_by_hand():
    truth = np.zeros((2, 4, 10), bool)
    truth[0, :, :4], truth[1, :, 6:] = True, True
    pred = np.zeros((4, 4, 10), bool)
    pred[0, :, :4], pred[1, :, :3], pred[2, :, 5:], pred[3, :, 6:8] = True, True, True, True  # IoU 1, 3/4, 4/5, 1/2
    matches = metrics.match_instances(pred, [0] * 4, [0.7, 0.9, 0.8, 0.1], truth, [0, 0], (0.5, 0.75, 0.78, 0.9))
    assert matches.scores.tolist() == [0.9, 0.8, 0.7, 0.1]
    # The copy of a truth that is already found is wrong; where the first was not good enough it is right.
    assert matches.hits.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    # Precision at the hits, made monotone: 1, 1; 1, 1; max(1/2, 2/3), 2/3; 1/3, each worth 1/2 of the recall.
    np.testing.assert_allclose(metrics.instance_ap([matches], 1)[:, 0], [1, 1, 2 / 3, 1 / 6])


def test_ap_of_classes_never_predicted_or_never_true():
    mask = np.ones((1, 2, 2), bool)
    none = np.zeros((0, 2, 2), bool)
    images = [metrics.match_instances(mask, [2], [0.5], none, []), metrics.match_instances(none, [], [], mask, [1])]
    got = metrics.instance_ap(images, 3)
    np.testing.assert_array_equal(got[0], [np.nan, 0, np.nan])
    assert metrics.mean_ap(got) == 0 and np.isnan(metrics.mean_ap(got[:, 2]))


def test_mask_iou_by_hand():
    a = np.array([[[1, 1, 0]], [[0, 0, 0]]], bool)
    b = np.array([[[0, 1, 1]], [[1, 1, 0]], [[0, 0, 0]]], bool)
    np.testing.assert_allclose(metrics.mask_iou(a, b), [[1 / 3, 1, 0], [0, 0, 0]])
    assert metrics.mask_iou(a, b[:0]).shape == (2, 0)
    with pytest.raises(ValueError, match="one size"):
        metrics.mask_iou(a, b.transpose(0, 2, 1))


# the dataset, the step and the export


@pytest.fixture(scope="module")
def shapes():
    return Shapes(n_train=300, n_val=1, size=48)


def truth_of(dataset, name):
    index, values = dataset.instances(name)
    return index[None] == np.arange(1, len(values) + 1)[:, None, None], values.astype(np.int64) - 1


def crowded(dataset, count):
    """The first images with a pair of one class that touches."""
    names = []
    for name in dataset.names("train"):
        masks, labels = truth_of(dataset, name)
        pairs = [(i, j) for i in range(len(labels)) for j in range(i) if labels[i] == labels[j]]
        names += [name] if any((ndimage.binary_dilation(masks[i]) & masks[j]).any() for i, j in pairs) else []
    assert len(names) >= count
    return names[:count]


@pytest.fixture
def scored(shapes, tmp_path):
    """Arguments for the step, over touching pairs whose second instance is found badly or not at all."""
    names = crowded(shapes, 3) + shapes.names("train")[:5]
    for i, name in enumerate(names):
        masks, labels = truth_of(shapes, name)
        masks = masks.copy()
        if len(masks) > 1:
            masks[1] = np.roll(masks[1], 5, 0)
        score = np.linspace(0.9, 0.4, len(masks)) - 0.01 * i
        score[2:] = 0
        save_instances(tmp_path / "ins_seg" / f"{name}.npy", {"score": score, "mask": masks, "class": labels})
    (tmp_path / "list.txt").write_text("\n".join(names))
    return argparse.Namespace(
        limit=None, eval_list=str(tmp_path / "list.txt"), work_dir=str(tmp_path), ins_seg_out_dir=None, num_workers=0,
        coco_json=str(tmp_path / "coco"),
    )  # fmt: skip


def test_the_step_scores_all_files(scored, shapes, tmp_path):
    values = eval_ins_seg.run(scored, shapes)
    names = (tmp_path / "list.txt").read_text().split()
    images = []
    for name in names:
        got = load_instances(tmp_path / "ins_seg" / f"{name}.npy")
        images.append((got["mask"], got["class"], got["score"], *truth_of(shapes, name)))
    for key, thresholds in (("50", [0.5]), ("70", [0.7]), ("50_95", metrics.COCO_IOUS)):
        ap = np.mean([plain_ap(images, t, 6) for t in thresholds], 0)
        got = [np.nan if v is None else v for v in values[f"ap_{key}"].values()]
        np.testing.assert_allclose(got, ap, atol=1e-12)
        assert values[f"map_{key}"] == pytest.approx(np.nanmean(ap))
    assert list(values["ap_50"]) == list(shapes.classes) and 0.2 < values["map_50_95"] < values["map_50"] < 1
    assert values["images"] == len(names) == 8 and values["instances"] == sum(len(image[4]) for image in images)
    json.dumps(values, allow_nan=False)
    scored.num_workers = 2
    assert eval_ins_seg.run(scored, shapes) == values


def coco_stats(folder):
    """(AP over 0.5:0.95, AP at 0.5) by pycocotools, the results and the truth it read."""
    truth = COCO(str(folder / "truth.json"))
    results = truth.loadRes(str(folder / "results.json"))
    evaluation = COCOeval(truth, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:2], results.anns.values(), truth


def test_pycocotools_evaluates_the_export(scored, shapes, tmp_path):
    eval_ins_seg.run(scored, shapes)
    stats, results, truth = coco_stats(tmp_path / "coco")
    matches, count = [], 0
    for name in (tmp_path / "list.txt").read_text().split():
        got = load_instances(tmp_path / "ins_seg" / f"{name}.npy")
        kept = got["score"] > 0  # what scores 0 is not exported
        count += kept.sum()
        kept = [got[key][kept] for key in ("mask", "class", "score")]
        matches.append(metrics.match_instances(*kept, *truth_of(shapes, name)))
    assert len(results) == count > 8
    # COCO samples the curve at 101 recalls: close to the area, not equal.
    ap = metrics.instance_ap(matches, 6)
    np.testing.assert_allclose(stats, [metrics.mean_ap(ap), metrics.mean_ap(ap[0])], atol=0.015)
    assert stats[0] < stats[1] - 0.05 and len(truth.imgs) == 8
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
