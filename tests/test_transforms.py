"""Sizes, crops and normalisation by hand; image and mask stay aligned."""

import numpy as np
import pytest
import torch

from data.base import Dataset, rng
from data.loaders import AffinityCrops, Pyramids, TopLeftCrops, TrainingCrops, normalized
from data.transforms import crop_box, normalize, paste, pyramid, raw_crop, rescale_size, resize, resize_long_size

MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))


def pixels(image):
    """Normalised [3, h, w] back to 0..255, rounded."""
    return np.rint((np.asarray(image).transpose(1, 2, 0) * STD + MEAN) * 255)


def test_normalize_by_hand():
    image = np.array([[[255, 0, 124], [0, 51, 255]]], np.uint8)
    wanted = [
        [[(1 - 0.485) / 0.229, -0.485 / 0.229]],
        [[-0.456 / 0.224, (0.2 - 0.456) / 0.224]],
        [[(124 / 255 - 0.406) / 0.225, (1 - 0.406) / 0.225]],
    ]
    got = normalize(image)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "scale", "wanted"),
    [
        ((375, 500), 0.5, (188, 250)),  # 187.5: to even
        ((5, 7), 0.5, (2, 4)),  # 2.5 and 3.5: to even
        ((10, 11), 1.06, (11, 12)),
        ((1, 300), 0.1, (1, 30)),  # never 0
    ],
)
def test_rescale_size(shape, scale, wanted):
    assert rescale_size(shape, scale) == wanted


def test_resize_long_draws_both_ends():
    draw = np.random.default_rng(0)
    sizes = {resize_long_size((50, 100, 3), 30, 32, draw) for _ in range(60)}
    assert sizes == {(15, 30), (16, 31), (16, 32)}  # 15.5 to even
    assert {resize_long_size((100, 50, 3), 40, 40, draw) for _ in range(3)} == {(40, 20)}


def test_resize_of_masks_makes_no_new_values():
    mask = np.random.default_rng(0).choice([0, 7, 255], (13, 17)).astype(np.uint8)
    assert set(np.unique(resize(mask, 31, 9, nearest=True))) == {0, 7, 255}
    image = np.repeat(mask[..., None], 3, 2)
    assert resize(image, 31, 9).shape == (31, 9, 3) and len(np.unique(resize(image, 31, 9))) > 3
    assert resize(mask, 13, 17, nearest=True) is mask


@pytest.mark.parametrize("shape", [(7, 9), (3, 4), (7, 4), (5, 5)])
def test_a_crop_is_cut_or_laid_at_every_offset(shape):
    crop, draw = 5, np.random.default_rng(0)
    array = np.arange(1, 1 + shape[0] * shape[1]).reshape(shape)
    size = np.minimum(shape, crop)
    offsets = set()
    for _ in range(200):
        out = paste(array[None], crop_box(shape, crop, draw), crop, 0)[0]  # leading axes are kept
        (top, left), (y, x) = np.argwhere(out)[0], np.argwhere(array == out[out > 0][0])[0]
        wanted = np.zeros((crop, crop), int)
        wanted[top : top + size[0], left : left + size[1]] = array[y : y + size[0], x : x + size[1]]
        np.testing.assert_array_equal(out, wanted)
        offsets.add((top, left, y, x))
    assert len(offsets) == (abs(shape[0] - crop) + 1) * (abs(shape[1] - crop) + 1)


def test_pyramid():
    image = np.random.default_rng(0).integers(0, 256, (10, 15, 3)).astype(np.uint8)
    levels = pyramid(image, (1.0, 0.5, 1.5))
    assert [level.shape for level in levels] == [(2, 3, 10, 15), (2, 3, 5, 8), (2, 3, 15, 22)]
    for level, size in zip(levels, ((10, 15), (5, 8), (15, 22)), strict=True):
        np.testing.assert_array_equal(level[0], normalize(resize(image, *size)))
        np.testing.assert_array_equal(level[1], level[0][..., ::-1])


def test_crops_are_padded_with_the_mean_colour_and_half_of_them_are_mirrored():
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, :10] = 255
    mirrored = 0
    for i in range(40):
        crop = normalized(*(torch.from_numpy(part)[None] for part in raw_crop(image, (20, 20), 32, rng(0, i))))[
            0
        ].numpy()
        inside = (crop != 0).all(0)
        assert crop.shape == (3, 32, 32) and inside.sum() == 200  # the rest is 0 after normalisation
        values = pixels(crop)[inside].reshape(10, 20, 3)
        assert np.array_equal(values, image) or np.array_equal(values, image[:, ::-1])
        mirrored += not np.array_equal(values, image)
    assert 10 < mirrored < 30


# the pipelines


class Encoded(Dataset):
    """Images whose red channel is ten times the mask value; sizes differ from image to image."""

    name = "encoded"
    classes = ("a", "b", "c")

    def mask(self, name, size=None):
        draw = np.random.default_rng(int(name))
        coarse = draw.integers(0, 4, (3, 4)).astype(np.uint8)
        return np.kron(coarse, np.ones((12 + int(name) % 9, 14), np.uint8))

    def image(self, name):
        mask = self.mask(name)
        return np.stack([10 * mask, 255 - 10 * mask, 0 * mask + 7], 2)

    def label(self, name):
        return np.array([(self.mask(name) == c).any() for c in (1, 2, 3)], np.float32)


def blocks_of(array):
    """[64, 64] in blocks of 4 x 4: [16, 16, 16]."""
    return array.reshape(16, 4, 16, 4).transpose(0, 2, 1, 3).reshape(16, 16, 16)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 0.9), (1.1, 1.5)])
def test_affinity_crops_keep_image_and_label_aligned(scales):
    """Away from edges, where bicubic and nearest agree."""
    crops = AffinityCrops(Encoded(), Encoded().mask, scales, 64, seed=0)
    compared, mirrored = 0, []
    for i in range(12):
        for epoch in range(3):
            image, label = (np.asarray(part) for part in crops[str(i), epoch])
            assert image.shape == (3, 64, 64) and label.shape == (16, 16) and label.dtype == np.uint8
            blocks, outside = blocks_of(pixels(image)[..., 0]), blocks_of((image == 0).all(0))
            flat = (blocks.min(2) == blocks.max(2)) & (blocks.min(2) % 10 == 0) & ~outside.any(2)
            np.testing.assert_array_equal(label[flat], blocks[flat, 0] / 10)
            assert (label[outside.all(2)] == 255).all()
            compared += flat.sum()
            original = Encoded().mask(str(i))
            if scales == (1.0, 1.0) and max(original.shape) <= 64:  # lies in the crop as a whole
                values = pixels(image)[(image != 0).all(0)][:, 0].reshape(original.shape) / 10
                mirrored.append(np.array_equal(values, original[:, ::-1]))
                assert mirrored[-1] or np.array_equal(values, original)
    assert compared > 600 and (not mirrored or 0.25 < np.mean(mirrored) < 0.75)


def test_items_depend_on_seed_and_keys_only():
    dataset = Encoded()
    for make in (
        lambda seed: TrainingCrops(dataset, (30, 60), 48, seed),
        lambda seed: AffinityCrops(dataset, dataset.mask, (0.5, 1.5), 48, seed),
    ):
        first = make(0)["3", 1]
        assert all(torch.equal(a, b) for a, b in zip(first, make(0)["3", 1], strict=True))
        for other in (make(0)["3", 2], make(1)["3", 1]):
            assert not torch.equal(first[0], other[0])


def test_top_left_crops_and_pyramids():
    dataset = Encoded()
    crop = TopLeftCrops(dataset, ["0", "5"], 40)[1]  # 51 x 56 is cut
    np.testing.assert_array_equal(pixels(crop), dataset.image("5")[:40, :40])
    padded = TopLeftCrops(dataset, ["0"], 60)[0]  # 36 x 56 is padded at the bottom and on the right
    np.testing.assert_array_equal(pixels(padded[:, :36, :56]), dataset.image("0"))
    assert (padded[:, 36:] == 0).all() and (padded[:, :, 56:] == 0).all()
    name, size, levels, label = Pyramids(dataset, ["0", "5"], (1.0, 0.5))[1]
    assert (name, size) == ("5", (51, 56)) and [tuple(level.shape[2:]) for level in levels] == [(51, 56), (26, 28)]
    np.testing.assert_array_equal(label, dataset.label("5"))
