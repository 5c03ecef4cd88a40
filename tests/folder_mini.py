"""A tiny folder of a user's own images for tests: every ending, odd names, EXIF orientation, transparency."""

import csv
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.base import Dataset
from data.images import voc_palette

CLASSES = ("cat", "Käse", "hot dog")
# Path below images/ as it lies on disk; the name is the path without its ending, accents composed.
PATHS = (
    "plain.jpg", "two words.jpeg", "LOUD.JPG", "sub/deep er/picture.png", "sub/plain.webp", "日本語 😀.png",
    "a, b; 'c' \"d\".jpg", unicodedata.normalize("NFD", "Brücke é.jpg"), "v1.2 (final).tar.png", "turned.jpg",
)  # fmt: skip
TURNED = "turned"  # its file holds it lying on the side, with an EXIF orientation
SIZES = ((60, 76), (52, 64))
# Arguments that take the whole method through such images in seconds.
SMALL = (
    "--num_workers 0 --device cpu --cam_network resnet14 --cam_init scratch --cam_optimizer adamw "
    "--cam_learning_rate 1e-3 --cam_crop_size 64 --cam_resize_long 56,96 --cam_batch_size 4 --cam_num_epoches 1 "
    "--cam_scales 1.0,0.5 --RIB_iter 2 --RIB_batch_size 2 --RIB_crop_size 64 --RIB_resize_long 56,96 --irn_backbone "
    "cam --irn_crop_size 64 --irn_batch_size 4 --irn_num_epoches 1 --irn_radius 4 --irn_learning_rate 0.01 "
    "--irn_displacement_lr 0.1 --exp_times 3 --seg_model deeplabv2_resnet14 --seg_init cam --seg_crop_size 64 "
    "--seg_iter 2 --seg_batch_size 4 --seg_lr 1e-5 --seg_crf_iter 0"
).split()


@dataclass
class Mini:
    """What was written, and the truth that a reader must give back."""

    root: Path
    names: list[str] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)  # below images/
    labels: dict[str, set[int]] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)  # as they are to be read; JPEGs differ a little
    masks: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def csv(self) -> Path:
        return self.root / "labels.csv"

    def write_csv(self, header: bool = True, ending: bool = True, names: list[str] | None = None) -> None:
        """labels.csv of all images, or of `names`."""
        with open(self.csv, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if header:
                writer.writerow(["name", "class1;class2"])
            for name in self.names if names is None else names:
                text = unicodedata.normalize("NFC", self.paths[name]) if ending else name
                writer.writerow([text, ";".join(CLASSES[c] for c in sorted(self.labels[name]))])


def make_folder(root: Path, masks: bool = True, classes: bool = True, seed: int = 0) -> Mini:
    """Writes images, labels.csv and, if wanted, masks and classes.txt to `root`; the second image holds no object."""
    mini = Mini(Path(root))
    for i, path in enumerate(PATHS):
        name = unicodedata.normalize("NFC", path.rpartition(".")[0])
        rng = np.random.default_rng([seed, i])
        size = SIZES[i % 2]
        image = rng.normal(120, 8, (*size, 3))
        mask = np.zeros(size, np.uint8)
        present = [] if i == 1 else [i % 3, (i + 1) % 3][: 1 + i % 2]
        for k, c in enumerate(present):
            centre = (size[1] // 4 + k * size[1] // 2, size[0] // 2)
            body = cv2.ellipse(np.zeros(size, np.uint8), centre, (size[1] // 5, size[0] // 4), 0, 0, 360, 1, -1) > 0
            image[body] = voc_palette()[c + 1] * 0.8 + 40
            mask[body] = c + 1
        mask[:2] = 255
        mini.names.append(name)
        mini.paths[name], mini.labels[name], mini.masks[name] = path, set(present), mask
        mini.images[name] = np.clip(image, 0, 255).astype(np.uint8)
        _write(mini.root / "images" / path, mini.images[name], turned=name == TURNED)
        if masks:
            target = mini.root / "masks" / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            png = Image.fromarray(mask)
            if i % 2:
                png.putpalette(voc_palette().tobytes())
            png.save(target)
    (mini.root / "images" / ".hidden.jpg").write_bytes(b"")
    (mini.root / "images" / "sub" / "Thumbs.db").write_bytes(b"")
    if classes:
        (mini.root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    mini.write_csv()
    return mini


def labels_of(dataset: Dataset) -> dict[str, set[str]]:
    """Name -> classes of every labelled image."""
    return {
        name: {dataset.classes[c] for c in np.flatnonzero(dataset.label(name))} for name in dataset.names("all")
    }  # fmt: skip


def _write(path: Path, image: np.ndarray, turned: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    options: dict = {"quality": 95}
    if turned:
        picture = picture.transpose(Image.Transpose.ROTATE_90)  # shown turned back by orientation 6
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    if path.suffix == ".png":
        picture.putalpha(200)
    if path.suffix == ".webp":
        options["lossless"] = True
    picture.save(path, **options)
