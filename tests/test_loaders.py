"""Which images come in which order: epochs, ranks, companions."""

import numpy as np
import pytest
import torch

from data import loaders
from data.base import Dataset
from data.companions import CompanionBatches, CompanionPool, CompanionStream
from data.loaders import RawCrops, TrainingCrops, epoch_batches, normalized
from data.progress import Stopwatch

NAMES = [f"n{i}" for i in range(10)]
# Two classes of five images each, the last image of both; targets: class 0, class 1, both, none.
LABELS = np.array([[1, 0]] * 5 + [[0, 1]] * 4 + [[1, 1]], np.float32)
TARGETS, TARGET_LABELS = ["t0", "t1", "t2", "t3"], np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32)


def companions(n_iter=3, batch_size=3, seed=0):
    return CompanionBatches(NAMES, LABELS, TARGETS, TARGET_LABELS, n_iter, batch_size, seed)


# epochs


def names_of(batches):
    return [name for batch in batches for name, _ in batch]


def test_an_epoch_shuffles_and_drops_the_last_batch():
    batches = epoch_batches(NAMES, 4, seed=0, epoch=2)
    assert [len(batch) for batch in batches] == [4, 4]
    names = names_of(batches)
    assert len(set(names)) == 8 and set(names) < set(NAMES) and names != NAMES[:8]
    assert {epoch for batch in batches for _, epoch in batch} == {2}


def test_an_epoch_of_whole_batches_holds_every_image():
    assert sorted(names_of(epoch_batches(NAMES, 5, 0, 0))) == NAMES
    assert epoch_batches(NAMES[:3], 4, 0, 0) == []


def test_the_order_depends_on_seed_and_epoch_only():
    first = names_of(epoch_batches(NAMES, 5, 0, 0))
    assert names_of(epoch_batches(NAMES, 5, 0, 0)) == first
    assert names_of(epoch_batches(NAMES, 5, 0, 1)) != first != names_of(epoch_batches(NAMES, 5, 1, 0))


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


def test_companions_are_empty_where_none_is_disjoint_or_asked_for():
    assert companions().of(2) == []
    assert companions(batch_size=0).of(0) == []
    assert companions(n_iter=0).of(0) == []  # --RIB_iter 1: the only step needs none


def test_companions_do_not_repeat_until_the_list_is_used_up():
    for i, n_disjoint in ((0, 4), (1, 5)):
        batches = companions(n_iter=4, batch_size=3).of(i)
        assert [len(batch) for batch in batches] == [3, 3, 3, 3]
        names = [name for batch in batches for name, *_ in batch]
        rounds = [names[j : j + n_disjoint] for j in range(0, len(names), n_disjoint)]
        assert all(len(set(part)) == len(part) for part in rounds)
        assert rounds[0] != rounds[1]  # shuffled anew


def test_companions_carry_target_and_step():
    for k, batch in enumerate(companions().of(1)):
        assert {(target, step) for _, target, step in batch} == {("t1", k)}


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


def seen_by(num_workers, taken):
    """What a stream gives when of each target's batches only the first taken[i] are used."""
    stream = CompanionStream(
        TrainingCrops(Tiny(), (6, 12), 8, 0), companions(), torch.Tensor.clone, Stopwatch(), num_workers, False
    )
    seen = []
    for i, count in enumerate(taken):
        batches = stream.of(i)
        seen.append([next(batches) for _ in range(count)])
    return seen


def wanted_from(taken):
    crops = TrainingCrops(Tiny(), (6, 12), 8, 0)
    wanted = []
    for i, count in enumerate(taken):
        items = [[crops[item] for item in batch] for batch in companions().of(i)[:count]]
        wanted.append([tuple(torch.stack(part) for part in zip(*batch, strict=True)) for batch in items])
    return wanted


@pytest.mark.parametrize(
    ("num_workers", "taken"), [(0, (3, 3, 0, 3)), (0, (1, 2, 0, 3)), (0, (0, 3, 0, 0)), (2, (1, 2, 0, 3))]
)
def test_a_stream_gives_each_target_its_own_batches_whatever_was_left_before(num_workers, taken):
    seen, wanted = seen_by(num_workers, taken), wanted_from(taken)
    for got_batches, batches in zip(seen, wanted, strict=True):
        for got, batch in zip(got_batches, batches, strict=True):
            assert got[0].shape == (3, 3, 8, 8) and got[1].shape == (3, 2)
            assert all(torch.equal(a, b) for a, b in zip(got, batch, strict=True))


def test_a_stream_ends_with_the_batches_of_the_target():
    stream = CompanionStream(
        TrainingCrops(Tiny(), (6, 12), 8, 0), companions(), torch.Tensor.clone, Stopwatch(), 0, False
    )
    assert [len(list(stream.of(i))) for i in range(4)] == [3, 3, 0, 3]


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
        wanted = torch.stack([TrainingCrops(*settings)[item][0] for item in items])
        raw = torch.stack([RawCrops(*settings)[item][0] for item in items])
        assert raw.dtype == torch.uint8 and raw.nbytes * 3 == wanted.nbytes
        assert torch.equal(normalized(raw), wanted) and not torch.signbit(normalized(raw)[wanted == 0]).any()


def pool(size, num_workers=0):
    def batches_of(indices, labels):
        return CompanionBatches(indices, labels, TARGETS, TARGET_LABELS, 3, 3, 0)

    crops = TrainingCrops(Tiny(), (6, 12), 8, 0)
    return CompanionPool(crops, NAMES, size, batches_of, lambda images: images[:, :, ::2] + 1, Stopwatch(), num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pool_gives_features_of_crops_that_share_no_class(num_workers):
    made = pool(25, num_workers)
    crops = TrainingCrops(Tiny(), (6, 12), 8, 0)
    names = [(name, "pool", i) for i in range(25) for name in NAMES]
    there = {(crops[item][0][:, ::2] + 1).numpy().tobytes(): crops[item][1] for item in names}
    for i, label in enumerate(torch.from_numpy(TARGET_LABELS)):
        batches = list(made.of(i))
        assert len(batches) == (0 if label.all() else 3)
        for features, labels in batches:
            assert features.shape == (3, 3, 4, 8) and not (labels * label).any()
            for feature, own in zip(features, labels, strict=True):
                assert torch.equal(there[feature.numpy().tobytes()], own)


def test_a_pool_holds_every_image_equally_often_and_is_the_same_again():
    made, again = pool(20), pool(20)
    assert made.labels.sum(0).tolist() == [12, 10] and torch.equal(made.features, again.features)
    assert len({feature.numpy().tobytes() for feature in made.features}) > 10


def test_a_stopwatch_counts_the_time_that_items_take(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 3.0, 4.0, 4.5, 5.0, 5.0, 8.0])
    monkeypatch.setattr("data.progress.time.perf_counter", lambda: next(clock))
    watch = Stopwatch()  # at 0; two items, arriving after 2 (not counted) and 0.5 seconds; the end after none
    assert list(watch.iterate("ab")) == ["a", "b"]
    assert watch.waited == 0.5 and watch.fraction() == 0.5 / (8 - 3)


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
    monkeypatch.setattr(loaders, "shared_memory", lambda: free)
    items = list(loaders.iterate_images(Numbered(False), 2))
    assert [(name, size) for name, size, _, _ in items] == [(f"n{i}", (40, 50)) for i in range(5)]
    for i, (_, _, levels, label) in enumerate(items):
        assert isinstance(levels, list) and torch.equal(levels[1], torch.full((3, 40, 50), 2.0 * i))
        assert torch.equal(label, torch.full((50,), float(i)))
        assert levels[0].is_shared() == (free > 0)
    batches = list(loaders.Loader(Numbered(True), 2, batch_size=2))
    assert [len(images) for images, _ in batches] == [2, 2, 1] == [len(labels) for _, labels in batches]
    assert torch.equal(batches[1][0][1], torch.full((3, 40, 50), 3.0)) and batches[2][1].tolist() == [[4.0]]


def test_a_loader_without_workers():
    batches = list(loaders.Loader(Numbered(True), 0, batch_size=2))
    assert [images.shape for images, _ in batches] == [(2, 3, 40, 50), (2, 3, 40, 50), (1, 3, 40, 50)]
