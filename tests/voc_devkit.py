"""A tiny VOC 2012 devkit for tests: a few random images with everything the real one has."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.images import IGNORE, voc_palette
from voc12 import CLASSES

BORDER_PX = 2
PARTS = ("head", "hand", "foot")


@dataclass
class Devkit:
    """What was written, and the truth that a reader must give back."""

    root: Path  # the data root
    folder: Path  # ROOT/VOCdevkit/VOC2012
    names: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)  # masks in SegmentationClassAug only
    grey: str = ""  # the greyscale JPEG
    labels: dict[str, set[int]] = field(default_factory=dict)  # 0-based classes, difficult objects too
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    instances: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # those of train and val

    @property
    def train_aug(self) -> list[str]:
        return sorted(self.train + self.extra)


def make_devkit(root: Path, n: int = 12, seed: int = 0) -> Devkit:
    """Writes `n` (at least 4) images to ROOT/VOCdevkit/VOC2012: a third train, a third val, the rest augmented only.

    Every image has one to three ellipses with a border of 255; every fourth has a difficult object, void in the mask;
    the second is a greyscale JPEG; sizes differ. The same arguments give the same files.
    """
    kit = Devkit(Path(root), Path(root) / "VOCdevkit" / "VOC2012")
    kit.names = [f"2007_{i:06d}" for i in range(1, n + 1)]
    kit.train, kit.val, kit.extra = kit.names[: n // 3], kit.names[n // 3 : 2 * (n // 3)], kit.names[2 * (n // 3) :]
    kit.grey = kit.names[1]
    for folder in (
        "JPEGImages", "Annotations", "SegmentationClass", "SegmentationClassAug", "SegmentationObject",
        "ImageSets/Segmentation",
    ):  # fmt: skip
        (kit.folder / folder).mkdir(parents=True)
    for i, name in enumerate(kit.names):
        _write_image(kit, name, np.random.default_rng([seed, i]), has_difficult=i % 4 == 0)
    for split, names in (("train", kit.train), ("val", kit.val), ("trainval", sorted(kit.train + kit.val))):
        (kit.folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return kit


def _write_image(kit: Devkit, name: str, rng: np.random.Generator, has_difficult: bool) -> None:
    height, width = (int(v) for v in rng.integers(60, 110, 2))
    image = rng.normal(110, 12, (height, width, 3)).astype(np.float32)
    mask, instances = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    objects = []
    n_objects = int(rng.integers(1, 4))
    columns = np.array_split(np.arange(width), n_objects + has_difficult)  # one beside the other: nothing is hidden
    for i, column in enumerate(columns):
        index = int(rng.integers(len(CLASSES)))
        difficult = i == n_objects
        centre = int(column.mean()), int(rng.integers(height // 3, 2 * height // 3))
        axes = max(3, len(column) // 2 - 2 * BORDER_PX), int(rng.integers(height // 6, height // 4))
        body = cv2.ellipse(np.zeros((height, width), np.uint8), centre, axes, 0, 0, 360, 1, -1) > 0
        border = cv2.ellipse(np.zeros((height, width), np.uint8), centre, axes, 0, 0, 360, 1, BORDER_PX) > 0
        image[body] += 4 * voc_palette()[index + 1].astype(np.float32) / 5 - 50
        mask[body], instances[body] = (IGNORE, IGNORE) if difficult else (index + 1, i + 1)
        mask[border] = instances[border] = IGNORE
        objects.append((index, difficult, centre, axes))
    jpeg = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    (jpeg.convert("L") if name == kit.grey else jpeg).save(kit.folder / "JPEGImages" / f"{name}.jpg", quality=95)
    (kit.folder / "Annotations" / f"{name}.xml").write_text(_xml(name, height, width, objects))
    in_voc = name in kit.train or name in kit.val
    folders = {"SegmentationClassAug": mask}
    if in_voc:
        folders |= {"SegmentationClass": mask, "SegmentationObject": instances}
        values = np.array([index + 1 for index, difficult, *_ in objects if not difficult], np.uint8)
        kit.instances[name] = np.where(instances == IGNORE, 0, instances).astype(np.uint8), values
    for folder, array in folders.items():
        write_png(kit.folder / folder / f"{name}.png", array)
    kit.masks[name] = mask
    kit.labels[name] = {index for index, *_ in objects}


def write_png(path: Path, mask: np.ndarray) -> None:
    """A palette PNG with VOC's colours."""
    png = Image.fromarray(mask)
    png.putpalette(voc_palette().tobytes())
    png.save(path)


def _xml(name: str, height: int, width: int, objects: list[tuple]) -> str:
    lines = [
        "<annotation>", f"<filename>{name}.jpg</filename>",
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]  # fmt: skip
    for index, difficult, (x, y), (a, b) in objects:
        box = f"<bndbox><xmin>{x - a}</xmin><ymin>{y - b}</ymin><xmax>{x + a}</xmax><ymax>{y + b}</ymax></bndbox>"
        parts = "".join(f"<part><name>{part}</name>{box}</part>" for part in PARTS)
        lines.append(
            f"<object><name>{CLASSES[index]}</name><difficult>{int(difficult)}</difficult>{box}{parts}</object>"
        )
    return "\n".join([*lines, "</annotation>", ""])
