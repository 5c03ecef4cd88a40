"""A tiny COCO 2014 for tests: the official layout with every form of segmentation that the real one has."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle

from coco14 import CATEGORIES
from data.images import voc_palette

# Where the JPEG of image i lies, and how it is named: all the variants that are about.
VARIANTS = {
    "train": ("train2014/COCO_train2014_{}.jpg", "JPEGImages/{}.jpg", "train2014/{}.jpg"),
    "val": ("val2014/COCO_val2014_{}.jpg", "val2014/{}.jpg", "JPEGImages/COCO_val2014_{}.jpg"),
}
USED = (1, 3, 13, 27, 44, 90)  # official category ids on both sides of the gaps


@dataclass
class Mini:
    """What was written. `sizes` is (H, W); `annotations` are those of the JSON files by split."""

    root: Path
    names: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    annotations: dict[str, list[dict]] = field(default_factory=dict)
    grey: str = ""  # the greyscale JPEG
    empty: str = ""  # without any object
    large: str = ""  # over 512 pixels wide
    crowded: str = ""  # with a crowd above a large object and below a small one

    @property
    def all_names(self) -> list[str]:
        return sorted(self.names["train"] + self.names["val"])

    def json(self, split: str) -> Path:
        return self.root / "annotations" / f"instances_{split}2014.json"

    def of(self, name: str) -> list[dict]:
        """The annotations of an image."""
        chosen = [a for some in self.annotations.values() for a in some if a["image_id"] == int(name)]
        return sorted(chosen, key=lambda a: a["id"])

    def change(self, split: str, edit) -> None:
        """edit(content) of a JSON file, in place."""
        content = json.loads(self.json(split).read_text())
        edit(content)
        self.json(split).write_text(json.dumps(content))


def make_coco(root: Path, n_train: int = 8, n_val: int = 4, seed: int = 0) -> Mini:
    """Writes images and instances JSON files to `root`; the same arguments give the same files.

    Images hold up to three objects, as polygons, as two polygons each, or as run lengths of both forms, overlapping.
    Of the training images the first is greyscale, the second without any object, the third large, the fourth crowded.
    """
    mini = Mini(Path(root))
    rng = np.random.default_rng(seed)
    (mini.root / "annotations").mkdir(parents=True)
    annotation_id = 900
    for split, n in (("train", n_train), ("val", n_val)):
        ids = sorted(int(i) for i in rng.choice(np.arange(split == "val", 580_000, 2), n, replace=False))
        mini.names[split] = [f"{i:012d}" for i in ids]
        mini.annotations[split] = []
        if split == "train":
            mini.grey, mini.empty, mini.large, mini.crowded = mini.names[split][:4]
        images = []
        for i, name in enumerate(mini.names[split]):
            size = (56, 530) if name == mini.large else tuple(int(v) for v in rng.integers(52, 90, 2))
            mini.sizes[name] = size
            path = VARIANTS[split][i % 3].format(name)
            images.append({"id": int(name), "height": size[0], "width": size[1], "file_name": Path(path).name})
            for annotation in _annotations(mini, name, size, rng):
                annotation_id += int(rng.integers(1, 9))
                mini.annotations[split].append({"id": annotation_id, "image_id": int(name), **annotation})
            _write_jpeg(mini, name, path, rng)
        order = rng.permutation(len(mini.annotations[split]))  # the official files are not sorted either
        mini.json(split).write_text(
            json.dumps({
                "info": {"year": 2014},
                "images": images,
                "annotations": [mini.annotations[split][i] for i in order],
                "categories": [{"id": i, "name": name, "supercategory": "x"} for i, name in CATEGORIES.items()],
            })
        )  # fmt: skip
    return mini


def decode(annotation: dict, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W], as pycocotools' own COCO.annToMask decodes an annotation."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.imgs = {annotation["image_id"]: {"height": size[0], "width": size[1]}}
    return coco.annToMask(annotation) > 0


def _annotations(mini: Mini, name: str, size: tuple[int, int], rng: np.random.Generator) -> list[dict]:
    if name == mini.empty:
        return []
    height, width = size
    if name == mini.crowded:  # a large object, a crowd upon it, a small object upon the crowd, all one in the other
        boxes = [(2, 2, width - 4, height - 4), (8, 8, width - 20, height - 20), (14, 14, 9, 9)]
        kinds = ["polygon", "crowd", "polygon"]
    else:
        boxes = [
            (*rng.uniform(0, (0.5 * width, 0.5 * height)), *rng.uniform((0.3 * width, 0.3 * height), (width, height)))
            for _ in range(int(rng.integers(1, 4)))
        ]
        kinds = [str(rng.choice(["polygon", "polygons", "compressed", "crowd"])) for _ in boxes]
    annotations = []
    for box, kind in zip(boxes, kinds, strict=True):
        segmentation, area = _segmentation(kind, box, size, rng)
        crowd = int(kind == "crowd")
        x, y, w, h = box
        annotations.append({
            "category_id": int(rng.choice(USED)), "iscrowd": crowd, "segmentation": segmentation, "area": area,
            "bbox": [float(x), float(y), float(w), float(h)],
        })  # fmt: skip
    return annotations


def _segmentation(kind: str, box: tuple, size: tuple[int, int], rng: np.random.Generator) -> tuple[object, float]:
    x, y, w, h = box
    turn = np.linspace(0, 2 * np.pi, 9)[:-1]
    corners = np.stack([x + w / 2 + w / 2 * np.cos(turn), y + h / 2 + h / 2 * np.sin(turn)], 1)
    corners = np.clip(corners + rng.uniform(-1, 1, corners.shape), 0, size[::-1]).round(2)
    region = cv2.fillPoly(np.zeros(size, np.uint8), [corners.round().astype(np.int32)], 1)
    if kind == "polygon":
        return [corners.ravel().tolist()], float(region.sum())
    if kind == "polygons":
        return [corners[:5].ravel().tolist(), corners[[4, 5, 6, 7, 0]].ravel().tolist()], float(region.sum())
    packed = rle.encode(np.asfortranarray(region))
    if kind == "compressed":
        return {"size": list(size), "counts": packed["counts"].decode()}, float(region.sum())
    flat = region.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(size), "counts": [0, *runs] if flat[0] else runs}, float(region.sum())


def _write_jpeg(mini: Mini, name: str, path: str, rng: np.random.Generator) -> None:
    size = mini.sizes[name]
    image = rng.normal(120, 10, (*size, 3))
    for annotation in mini.of(name):
        image[decode(annotation, size)] += voc_palette()[annotation["category_id"]] / 2 - 60
    jpeg = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    (mini.root / path).parent.mkdir(exist_ok=True)
    (jpeg.convert("L") if name == mini.grey else jpeg).save(mini.root / path, quality=95)
