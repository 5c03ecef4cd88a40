"""Tiny exports of annotation tools for tests: ten images of L-shaped objects, whose masks are exact in every form."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

CLASSES = ("apple", "leaf")
SIZE = (32, 40)
KINDS = (("apple",), ("leaf",), ("apple", "leaf"), ()) * 2 + (("leaf",), ("apple", "leaf"))
NAMES = tuple(f"orchard {i:03d}" if i == 4 else f"orchard_{i:03d}" for i in range(len(KINDS)))

ALL = list(range(len(KINDS)))
VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
OWN = [(0, 0, 0), (250, 50, 83), (36, 179, 83)]
SPLIT = ("train", "train", "valid", "test")


def corners(k: int, i: int) -> list[list[int]]:
    """The corners of the object of class k in image i, pixel edges."""
    x, y = 3 + 18 * k + i % 3, 5 + i
    return [[x, y], [x + 12, y], [x + 12, y + 5], [x + 6, y + 5], [x + 6, y + 14], [x, y + 14]]


def true_mask(i: int) -> np.ndarray:
    """uint8 [H, W] of image i: 0 background, 1 apple, 2 leaf."""
    mask = np.zeros(SIZE, np.uint8)
    for k, name in enumerate(CLASSES):
        if name in KINDS[i]:
            (x, y), *_ = corners(k, i)
            mask[y : y + 5, x : x + 12] = mask[y : y + 14, x : x + 6] = k + 1
    return mask


def jpeg(i: int) -> bytes:
    """Image i as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(np.dstack([true_mask(i) * 90 + 20 + i] * 3)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_image(path: Path, i: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(i))


def write_mask(path: Path, i: int, colours: list[tuple[int, int, int]] | None = None, palette: bool = False) -> None:
    """The mask of image i: indices in grey or, with `palette`, in these colours; without it the colours themselves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(true_mask(i) if palette or not colours else np.array(colours, np.uint8)[true_mask(i)])
    if palette and colours:
        picture.putpalette([value for colour in colours for value in colour])
    picture.save(path)


def write_xml(path: Path, i: int, file: str = "") -> None:
    """Image i in VOC's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(f"<object><name>{name}</name><part><name>head</name></part></object>" for name in KINDS[i])
    path.write_text(f"<annotation><filename>{file}</filename>{objects}</annotation>")


def coco(numbers: list[int], file_name, segmentation=None, first_id: int = 0, categories=CLASSES) -> dict:
    """A COCO JSON of images. file_name: number -> text. segmentation: (corners [6, 2], number) -> value; None: none."""
    annotations = [
        {"id": 10 * i + k, "image_id": i, "category_id": first_id + categories.index(name), "bbox": [1, 1, 9, 9]}
        | ({} if segmentation is None else {"segmentation": segmentation(corners(k, i), i)})
        for i in numbers
        for k, name in enumerate(CLASSES)
        if name in KINDS[i]
    ]
    images = [{"id": i, "file_name": file_name(i), "height": SIZE[0], "width": SIZE[1]} for i in numbers]
    groups = [{"id": first_id + k, "name": name, "supercategory": "orchard"} for k, name in enumerate(categories)]
    return {"images": images, "annotations": annotations, "categories": groups}


def polygon(shape: list[list[int]], i: int = 0) -> list:
    return [[value for corner in shape for value in corner]]


def png(inside: np.ndarray) -> str:
    """A PNG as labelme keeps that of a shape of the kind `mask`."""
    file = io.BytesIO()
    Image.fromarray(inside).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def labelme(i: int, image_path: str, embed: bool = False, shapes: list[dict] | None = None) -> dict:
    """A JSON of labelme: image i with its objects as polygons, or with these shapes."""
    objects = [
        {"label": name, "points": corners(k, i), "shape_type": "polygon", "group_id": None, "flags": {}}
        for k, name in enumerate(CLASSES)
        if name in KINDS[i]
    ]
    data = base64.b64encode(jpeg(i)).decode() if embed else None
    shapes = objects if shapes is None else shapes
    size = {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    return {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image_path, "imageData": data, **size}


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def cvat(root):
    for i in ALL:
        write_image(root / f"JPEGImages/cam1/{NAMES[i]}.jpg", i)
        write_xml(root / f"Annotations/cam1/{NAMES[i]}.xml", i)
        write_mask(root / f"SegmentationClass/cam1/{NAMES[i]}.png", i, OWN)
        write_mask(root / f"SegmentationObject/cam1/{NAMES[i]}.png", i, VOC)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, numbers in (("train", ALL[:6]), ("val", ALL[6:])):
        (lists / f"{name}.txt").write_text("".join(f"cam1/{NAMES[i]}\n" for i in numbers))
        (lists / f"apple_{name}.txt").write_text("".join(f"cam1/{NAMES[i]} {1 - i % 2 * 2:2}\n" for i in numbers))
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nleaf:36,179,83::\napple:250,50,83:stem:\nstone:1,1,1::\n"
    )


def cvat_masks(root):
    """CVAT's segmentation masks: no XML; a palette PNG whose values a tool has put in another order."""
    for i in ALL:
        write_image(root / f"JPEGImages/{NAMES[i]}.png", i)
        path = root / f"SegmentationClass/{NAMES[i]}.png"
        write_mask(path, i, [OWN[2], OWN[0], OWN[1]], palette=True)
        picture = Image.open(path)
        turned = Image.fromarray(np.array([1, 2, 0], np.uint8)[np.array(picture)])
        turned.putpalette([value for colour in (OWN[2], OWN[0], OWN[1]) for value in colour])
        turned.save(path)
    (root / "labelmap.txt").write_text("background:0,0,0::\napple:250,50,83::\nleaf:36,179,83::\n")


def labelme_voc(root):
    for i in ALL:
        write_image(root / f"JPEGImages/{NAMES[i]}.jpg", i)
        write_mask(root / f"SegmentationClassPNG/{NAMES[i]}.png", i, VOC, palette=True)
        write_image(root / f"SegmentationClassVisualization/{NAMES[i]}.jpg", i)
    (root / "class_names.txt").write_text("_background_\napple\nleaf\n")
    (root / "val.txt").write_text("".join(f"{NAMES[i]}\n" for i in ALL[6:]))


def roboflow_voc(root):
    for i in ALL:
        write_image(root / SPLIT[i % 4] / f"{NAMES[i]}_jpg.rf.0a1b.jpg", i)
        write_xml(root / SPLIT[i % 4] / f"{NAMES[i]}_jpg.rf.0a1b.xml", i)


def roboflow_masks(root):
    for i in ALL:
        folder = root / SPLIT[i % 4]
        write_image(folder / f"{NAMES[i]}.jpg", i)
        write_mask(folder / f"{NAMES[i]}_mask.png", i)
        (folder / "_classes.csv").write_text("Pixel Value, Class\n0, unlabeled\n1, apple\n2, leaf\n")


def xml_elsewhere(root):
    """Annotations whose names are not those of the images, and the VOC palette in colour."""
    for i in ALL:
        write_image(root / f"VOC2031/images/{NAMES[i]}.jpg", i)
        write_xml(root / f"VOC2031/annotations/xmls/{i}.xml", i, f"{NAMES[i]}.jpg")
        write_mask(root / f"VOC2031/masks/{NAMES[i]}.png", i, VOC)
    (root / "VOC2031/classes.txt").write_text("apple\nleaf\n")


def packed(shape, i):
    """The run lengths of an object, in both forms."""
    (x, y), *_ = shape
    inside = np.zeros(SIZE, np.uint8, order="F")
    inside[y : y + 5, x : x + 12] = inside[y : y + 14, x : x + 6] = 1
    runs = np.diff([0, *(np.flatnonzero(np.diff(inside.ravel("F"))) + 1), inside.size]).tolist()
    counts = runs if i % 2 else rle.encode(inside)["counts"].decode()
    return {"size": list(SIZE), "counts": counts}


def roboflow_coco(root):
    for split in ("train", "valid", "test"):
        numbers = [i for i in ALL if SPLIT[i % 4] == split]
        value = coco(numbers, lambda i: f"{NAMES[i]}_jpg.rf.1.jpg", polygon, 1)
        value["categories"].insert(0, {"id": 0, "name": "orchard", "supercategory": "none"})
        write_json(root / split / "_annotations.coco.json", value)
        for i in numbers:
            write_image(root / split / f"{NAMES[i]}_jpg.rf.1.jpg", i)


def label_studio(root):
    forms = ("images/{}%20b.JPG", "images\\1\\{}%20b.JPG", "https://host/data/upload/1/{}%2520b.JPG?token=x.y")
    value = coco(ALL, lambda i: forms[i % 3].format(i), polygon)
    value["images"][0].update(height=None, width=None)
    value["categories"] = [{"id": k, "name": name} for k, name in enumerate(CLASSES)]
    write_json(root / "result.json", value)
    for i in ALL:
        write_image(root / f"images/{i}%20b.jpg", i)


def cvat_coco(root):
    """Two tasks with numbers of their own, masks as run lengths, and captions that are no labels."""
    for task, numbers, classes in (("a", ALL[:5], CLASSES), ("b", ALL[5:], CLASSES[::-1])):
        value = coco(numbers, lambda i: f"{NAMES[i]}.jpg", packed, 1, classes)
        for annotation in value["annotations"]:
            annotation.update(iscrowd=1)
        write_json(root / f"{task}/annotations/instances_default.json", value)
        write_json(root / f"{task}/annotations/captions_default.json", {**value, "annotations": [{"caption": ""}]})
        for i in numbers:
            write_image(root / f"{task}/images/default/{NAMES[i]}.jpg", i)


def coco_numbers(root):
    """Images of two splits that have the same names."""
    for split, numbers in (("train", ALL[:5]), ("val", ALL[5:])):
        value = coco(numbers, lambda i: f"{i % 5}.jpg", polygon)
        write_json(root / f"annotations/instances_{split}2031.json", value)
        for i in numbers:
            write_image(root / f"{split}2031/{i % 5}.jpg", i)


def labelme_folder(root):
    """Paths as Windows writes them, of images that have been moved, and an area of background."""
    for i in ALL:
        value = labelme(i, f"..\\raw\\{NAMES[i]}.jpg")
        value["shapes"].insert(0, {"label": "_background_", "points": [[0, 0], [40, 32]], "shape_type": "rectangle"})
        write_json(root / f"{SPLIT[i % 4]}/{i}.json", value)
        write_image(root / f"{SPLIT[i % 4]}/{NAMES[i]}.jpg", i)


def labelme_embedded(root):
    for i in ALL:
        write_json(root / f"json/{NAMES[i]}.json", labelme(i, f"gone/{NAMES[i]}.jpg", embed=True))


# name of image i in the new folder; whether there are masks; split of i, None without
EXPORTS = [
    (cvat, "cam1/{}", True, lambda i: "train" if i < 6 else "val"),
    (cvat_masks, "{}", True, None),
    (labelme_voc, "{}", True, lambda i: "train" if i < 6 else "val"),
    (roboflow_voc, "{1}/{0}_jpg.rf.0a1b", False, lambda i: SPLIT[i % 4]),
    (roboflow_masks, "{1}/{0}", True, lambda i: SPLIT[i % 4]),
    (xml_elsewhere, "VOC2031/{}", True, None),
    (roboflow_coco, "{1}/{0}_jpg.rf.1", True, lambda i: SPLIT[i % 4]),
    (label_studio, "{2}%20b", True, None),
    (cvat_coco, "{3}/default/{0}", True, None),
    (coco_numbers, "{4}2031/{5}", True, lambda i: "train" if i < 5 else "val"),
    (labelme_folder, "{1}/{0}", True, lambda i: SPLIT[i % 4]),
    (labelme_embedded, "json/{}", True, None),
]
