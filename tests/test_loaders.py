"""Which images come in which order: epochs, ranks, companions."""

import multiprocessing

import numpy as np
import pytest
import torch

from data import loaders
from data.base import Dataset
from data.companions import CompanionBatches, CompanionPool, CompanionStream
from data.loaders import RawCrops, TrainingCrops, epoch_batches, normalized
from data.progress import Stopwatch
from data.transforms import normalize

NAMES = [f"n{i}" for i in range(10)]
# Two classes of five images each, the last image of both; targets: class 0, class 1, both, none.
LABELS = np.array([[1, 0]] * 5 + [[0, 1]] * 4 + [[1, 1]], np.float32)
TARGETS, TARGET_LABELS = ["t0", "t1", "t2", "t3"], np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32)


def companions(n_iter=3, batch_size=3, seed=0):
    return CompanionBatches(NAMES, LABELS, TARGETS, TARGET_LABELS, n_iter, batch_size, seed)


# epochs


def test_an_epoch_shuffles_by_seed_and_epoch_and_drops_the_last_batch():
    def names(seed, epoch, size=5):
        batches = epoch_batches(NAMES, size, seed, epoch)
        assert [len(batch) for batch in batches] == [size] * (10 // size)
        assert {k for batch in batches for _, k in batch} == {epoch}
        return [name for batch in batches for name, _ in batch]

    first = names(0, 0)
    assert first == names(0, 0) and sorted(first) == NAMES and first != NAMES
    assert names(0, 1) != first != names(1, 0)
    assert len(set(names(0, 0, size=4))) == 8 and epoch_batches(NAMES[:3], 4, 0, 0) == []


def test_the_parts_of_the_ranks_make_up_the_batches(monkeypatch):
    whole = epoch_batches(NAMES, 4, seed=0, epoch=0)
    parts = []
    monkeypatch.setattr(loaders, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(loaders, "rank", lambda rank=rank: rank)
        parts.append(epoch_batches(NAMES, 4, seed=0, epoch=0))
    for batch, one, other in zip(whole, *parts, strict=True):
        assert len(one) == len(other) == 2 and sorted(one + other) == sorted(batch)


# companions


def test_companions_share_no_class_with_the_target():
    wanted = [set(NAMES[5:9]), set(NAMES[:5]), set(), set(NAMES)]
    for i, allowed in enumerate(wanted):
        batches = companions(n_iter=5).of(i)
        assert {name for batch in batches for name, *_ in batch} == allowed
        assert [{(target, step) for _, target, step in batch} for batch in batches] == [
            {(TARGETS[i], step)} for step in range(5 if allowed else 0)
        ]
    assert companions(batch_size=0).of(0) == companions(n_iter=0).of(0) == []  # --RIB_iter 1: the only step needs none


@pytest.mark.parametrize(("target", "n_disjoint"), [(0, 4), (1, 5)])
def test_companions_do_not_repeat_until_the_list_is_used_up(target, n_disjoint):
    batches = companions(n_iter=4, batch_size=3).of(target)
    assert [len(batch) for batch in batches] == [3, 3, 3, 3]
    names = [name for batch in batches for name, *_ in batch]
    rounds = [names[j : j + n_disjoint] for j in range(0, len(names), n_disjoint)]
    assert all(len(set(part)) == len(part) for part in rounds) and rounds[0] != rounds[1]  # reshuffled


def test_companions_depend_on_seed_and_target_name_only():
    whole = companions()
    alone = CompanionBatches(NAMES, LABELS, TARGETS[1:2], TARGET_LABELS[1:2], 3, 3, 0)
    assert alone.of(0) == whole.of(1) == companions().of(1)
    assert whole.of(1) != companions(seed=1).of(1)
    assert list(whole) == whole.of(0) + whole.of(1) + whole.of(3)


class Tiny(Dataset):
    """Images that tell their name by their colour."""

    name = "tiny"
    classes = ("a", "b")

    def image(self, name):
        return np.full((6, 8, 3), 20 * int(name[1:]) + 1, np.uint8)

    def label(self, name):
        return LABELS[int(name[1:])]


@pytest.mark.parametrize(("num_workers", "taken"), [(0, (3, 3, 0, 3)), (0, (0, 3, 0, 1)), (2, (1, 2, 0, 3))])
def test_a_stream_gives_each_target_its_own_batches_whatever_was_left_before(num_workers, taken):
    """Of each target's batches only the first taken[i] are used."""
    crops = TrainingCrops(Tiny(), (6, 12), 8, 0)
    stream = CompanionStream(crops, companions(), torch.Tensor.clone, Stopwatch(), num_workers, False)
    for i, count in enumerate(taken):
        batches = stream.of(i)
        for batch in companions().of(i)[:count]:
            images, labels = next(batches)
            wanted = [torch.stack(part) for part in zip(*[crops[item] for item in batch], strict=True)]
            assert images.shape == (3, 3, 8, 8) and torch.equal(images, wanted[0]) and torch.equal(labels, wanted[1])
        assert count < 3 or list(batches) == []


def test_crops_hold_the_named_image_and_its_label():
    image, label = TrainingCrops(Tiny(), (6, 6), 8, 0)["n7", 0]
    inside = image[:, (image != 0).all(0)]
    red = (inside[0] * 0.229 + 0.485) * 255
    assert inside.shape[1] == 24 and np.allclose(red, 141, atol=0.01)  # 4 x 6 pixels, long side 6
    assert label.tolist() == [0, 1]


def test_raw_crops_are_normalised_to_the_same_bits():
    class Noise(Tiny):
        def image(self, name):
            return np.random.default_rng(int(name[1:])).integers(0, 256, (30, 41, 3)).astype(np.uint8)

    for i, crop in enumerate((24, 48, 36)):  # cut, padded, both
        settings = (Noise(), (30, 60), crop, i)
        items = [("n7", k) for k in range(6)]
        crops, boxes, _ = (torch.stack(part) for part in zip(*map(RawCrops(*settings).__getitem__, items), strict=True))
        wanted = np.zeros((len(items), 3, crop, crop), np.float32)
        for image, raw, (top, bottom, left, right) in zip(wanted, crops.numpy(), boxes.tolist(), strict=True):
            image[:, top:bottom, left:right] = normalize(raw[top:bottom, left:right])
        got = normalized(crops, boxes)
        assert np.array_equal(got.numpy(), wanted) and not np.signbit(got.numpy()[wanted == 0]).any()
        assert torch.equal(torch.stack([TrainingCrops(*settings)[item][0] for item in items]), got)


def pool(size, num_workers=0):
    def batches_of(indices, labels):
        return CompanionBatches(indices, labels, TARGETS, TARGET_LABELS, 3, 3, 0)

    crops = TrainingCrops(Tiny(), (6, 12), 8, 0)
    return CompanionPool(crops, NAMES, size, batches_of, lambda images: images[:, :, ::2] + 1, Stopwatch(), num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pool_gives_features_of_crops_that_share_no_class(num_workers):
    made = pool(20, num_workers)
    assert torch.equal(made.features, pool(20).features)
    assert made.labels.sum(0).tolist() == [12, 10]  # every image equally often
    crops = TrainingCrops(Tiny(), (6, 12), 8, 0)
    items = [(name, "pool", i) for i in range(20) for name in NAMES]
    labels_of = {(crops[item][0][:, ::2] + 1).numpy().tobytes(): crops[item][1] for item in items}
    for i, label in enumerate(torch.from_numpy(TARGET_LABELS)):
        batches = list(made.of(i))
        assert len(batches) == (0 if label.all() else 3)
        for features, labels in batches:
            assert features.shape == (3, 3, 4, 8) and not (labels * label).any()
            for feature, own in zip(features, labels, strict=True):
                assert torch.equal(labels_of[feature.numpy().tobytes()], own)


# worker processes


class Numbered(torch.utils.data.Dataset):
    """Items as those of Pyramids: a name, a size, tensors in a list, a tensor; or as those of crops."""

    def __init__(self, crops):
        self.crops = crops

    def __len__(self):
        return 5

    def __getitem__(self, i):
        image = torch.full((3, 40, 50), float(i))
        return (image, torch.tensor([float(i)])) if self.crops else (f"n{i}", (40, 50), [image, 2 * image], image[0, 0])


@pytest.mark.parametrize("free", [float("inf"), 0])
def test_items_come_the_same_with_and_without_shared_memory(monkeypatch, free):
    if free == 0 and multiprocessing.get_start_method() != "fork":
        pytest.skip("other start methods inherit no patches")
    monkeypatch.setattr(loaders, "shared_memory", lambda: free)
    items = list(loaders.iterate_images(Numbered(False), 2))
    assert [(name, size) for name, size, _, _ in items] == [(f"n{i}", (40, 50)) for i in range(5)]
    for i, (_, _, levels, label) in enumerate(items):
        assert isinstance(levels, list) and torch.equal(levels[1], torch.full((3, 40, 50), 2.0 * i))
        assert torch.equal(label, torch.full((50,), float(i)))
        assert levels[0].is_shared() == (free > 0)
    for num_workers in (0, 2):
        batches = list(loaders.Loader(Numbered(True), num_workers, batch_size=2))
        assert [len(images) for images, _ in batches] == [2, 2, 1] == [len(labels) for _, labels in batches]
        assert torch.equal(batches[1][0][1], torch.full((3, 40, 50), 3.0)) and batches[2][1].tolist() == [[4.0]]
