"""Pictures: what a step makes of an image as a layer over its photograph; grids of them; data URIs for the page."""

import argparse
import base64
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from data.base import Dataset
from data.digits import font
from data.errors import UserError
from data.files import write_atomic
from data.images import read_mask
from data.results import load_cam, load_instances
from misc.cam import cams_to_mask
from misc.report.tables import at, number, scored
from misc.run.outputs import result_file

SIDE = 320  # long side of a picture in the page
TILE, GAP = 172, 4  # long side of a picture in a grid, and the space around it
# Okabe and Ito's colours, told apart by colour-blind readers too; black is left to the background.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
IGNORED, STROKE = 254, 255  # palette entries
KEYS = ("truth", "cam", "rib", "label", "edge", "mask", "instances", "seg")  # of what is shown, in this order
SHOWN_STEPS = (1, 3, 5, 10)  # of the paper's figure 3
LOW = 0.2  # thresholds below which a linear scale of a map would show nothing but the peak


class Layer(NamedTuple):
    """What lies over a photograph: palette entries uint8 [h, w] and their colours with opacity, uint8 [256, 4]."""

    index: np.ndarray
    palette: np.ndarray


class Output(NamedTuple):
    """What a step made of an image: a key and a title, the layer that shows it, the mask uint8 [H, W] if it is one."""

    key: str
    title: str
    layer: Layer
    mask: np.ndarray | None = None


def outputs(
    args: argparse.Namespace, measured: dict, dataset: Dataset, name: str, image: np.ndarray, truth: np.ndarray | None
) -> tuple[list[Output], dict[int, tuple[int, int, int]]]:
    """What there is of an image, in the order of the steps, and the colours of its classes.

    A file that is damaged, or of another image or other classes, is left out, and named in a warning.
    """
    size, n = image.shape[:2], dataset.n_classes
    layers: dict[str, tuple[str, Layer | None, np.ndarray | None]] = {}
    if truth is not None:
        layers["truth"] = "ground truth", None, truth
    for key, folder, step in (("cam", "cam_out_dir", "eval_cam"), ("rib", "cam_rib_out_dir", "eval_rib_cam")):
        file = readable(load_cam, result_file(args, folder, name, ".npy"), size, n)
        if file is not None:
            threshold = at(measured, f"{step}.best.threshold")
            mask = cams_to_mask(file["high_res"], file["keys"], args.cam_eval_thres if threshold is None else threshold)
            layers[key] = key.upper(), heat_layer(file["cam"]), dataset.full_size(name, mask)
    size = None if dataset.max_side else size  # of what is stored at the size of the image itself
    masks = {"label": ("IRN label", "ir_label"), "mask": ("pseudo mask", "sem_seg"), "seg": ("network", "seg")}
    for key, (title, folder) in masks.items():
        mask = readable(read_mask, result_file(args, f"{folder}_out_dir", name, ".png"), n, size)
        if mask is not None:
            layers[key] = title, None, mask
    edge = readable(read_mask, result_file(args, "edge_out_dir", name, ".png"))
    if edge is not None:
        layers["edge"] = "edge map", edge_layer(edge), None
    instances = readable(load_instances, result_file(args, "ins_seg_out_dir", name, ".npy"), size, n)
    if instances is not None:
        layers["instances"] = "instances", instance_layer(instances["mask"], instances["score"]), None
    drawn = {*(np.flatnonzero(dataset.label(name)) + 1).tolist()} if dataset.has_label(name) else set()
    drawn |= {value for _, layer, mask in layers.values() if layer is None for value in np.unique(mask).tolist()}
    colours = colours_of(drawn - {0, 255})
    listed = [(key, *layers[key]) for key in KEYS if key in layers]
    return [Output(key, title, layer or mask_layer(mask, colours), mask) for key, title, layer, mask in listed], colours


def readable(load: Callable, path: Path, *wanted: object) -> Any:
    """load(path, *wanted); None where there is no file, or a damaged one, which a warning names."""
    try:
        return load(path, *wanted) if path.is_file() else None
    except UserError as error:
        logging.warning("left out of the pictures: %s", error)
        return None


def colours_of(classes: Sequence[int] | set[int]) -> dict[int, tuple[int, int, int]]:
    """A colour for each class (mask value) of an image, all different up to seven, and the same in most images."""
    free, out = list(range(len(COLOURS))), {}
    for value in sorted(classes):
        free = free or list(range(len(COLOURS)))
        wanted = (value - 1) % len(COLOURS)
        free.remove(chosen := wanted if wanted in free else free[0])
        out[value] = COLOURS[chosen]
    return out


def fit(shape: Sequence[int], side: int = SIDE, enlarge: bool = False) -> tuple[int, int]:
    """(height, width) of an image [H, W, ...] shrunk to a long side."""
    scale = side / max(shape[:2]) if enlarge else min(1.0, side / max(shape[:2]))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def mask_layer(mask: np.ndarray, colours: dict[int, tuple[int, int, int]] | None = None) -> Layer:
    """A mask uint8 [H, W] in colours: background clear, ignored pixels (255) hatched."""
    small = _resize(mask, fit(mask.shape), cv2.INTER_NEAREST)
    y, x = np.indices(small.shape)
    strokes = (x + y) // max(2, round(max(small.shape) / 80)) % 3 == 0
    palette = np.zeros((256, 4), np.uint8)
    for value, colour in (colours or colours_of({*np.unique(mask).tolist()} - {0, 255})).items():
        palette[value] = (*colour, 255)
    palette[IGNORED], palette[STROKE] = (40, 40, 40, 130), 255
    return Layer(np.where(small == 255, np.where(strokes, STROKE, IGNORED), small).astype(np.uint8), palette)


def heat_layer(cams: np.ndarray, power: float = 0.5) -> Layer:
    """The strongest of CAMs float32 [n, h, w] as heat, to the given power.

    By default the square root, for seeds are often cut at low thresholds (LOW).
    """
    levels = np.arange(256, dtype=np.uint8)
    heat = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1]
    return _shaded(np.clip(cams.max(0, initial=0), 0, 1) ** power, heat, 0.45)


def edge_layer(edge: np.ndarray) -> Layer:
    """An edge map uint8 [h, w] as light on a darkened image."""
    return _shaded(edge / 255, np.linspace(0, 1, 256)[:, None] * (255, 236, 150), 0.72)


def _shaded(strength: np.ndarray, colours: np.ndarray, opacity: float) -> Layer:
    """Strengths [h, w] in 0..1 in 64 of 256 colours, from the given opacity up."""
    palette = np.zeros((256, 4), np.uint8)
    palette[:64, :3] = colours[np.linspace(0, 255, 64).astype(int)]
    palette[:64, 3] = 255 * np.linspace(opacity, 1, 64)
    levels = (strength * 63).round().astype(np.uint8)
    return Layer(_resize(levels, fit(levels.shape, SIDE // 2)), palette)  # smooth, and enlarged smoothly


def instance_layer(masks: np.ndarray, scores: np.ndarray) -> Layer:
    """Instances bool [n, H, W], each in a colour with a white outline, the surest on top; none that scores 0."""
    size = fit(masks.shape[1:])
    index, palette = np.zeros(size, np.uint8), np.zeros((256, 4), np.uint8)
    palette[STROKE] = 255
    for rank, i in enumerate(i for i in np.argsort(scores, kind="stable") if scores[i] > 0):
        entry, hue = 1 + rank % (IGNORED - 1), int(180 * (rank * 0.618034 % 1))  # golden section: neighbours differ
        palette[entry] = (*cv2.cvtColor(np.uint8([[[hue, 220, 255]]]), cv2.COLOR_HSV2RGB)[0, 0], 255)
        small = _resize(masks[i].astype(np.uint8), size, cv2.INTER_NEAREST)
        index[small > 0] = entry
        outlines, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(index, outlines, -1, STROKE, 1)
    return Layer(index, palette)


def over(image: np.ndarray, layer: Layer, opacity: float = 0.75) -> np.ndarray:
    """uint8 [h, w, 3]: a layer over the photograph in grey."""
    size = fit(image.shape)
    grey = _resize(image, size).mean(2, keepdims=True)
    rgba = _resize(layer.palette[layer.index], size, cv2.INTER_LINEAR).astype(np.float32)
    alpha = opacity * rgba[..., 3:] / 255
    return (rgba[..., :3] * alpha + grey * (1 - alpha)).astype(np.uint8)


def grid(
    captions: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray | None]]], title: str = "", tile: int = TILE,
    kind: str = "PNG",
) -> bytes:  # fmt: skip
    """A PNG or JPEG: a title, captions, then per row a name and its pictures; what is None is left grey.

    tile: long side of a picture.
    """
    sizes = [fit(next(p for p in row if p is not None).shape, tile, enlarge=True) for _, row in rows]
    heights = [height + GAP for height, _ in sizes]
    top, left = 26 + 22 * bool(title), 24 * any(name for name, _ in rows)
    sheet = Image.new("RGB", (left + len(captions) * (tile + GAP), top + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((left, 3), title, "black", font("DejaVuSans", 14))
    for i, caption in enumerate(captions):
        draw.text((left + i * (tile + GAP), top - 20), caption, "black", font("DejaVuSans", 13))
    for (name, pictures), size, height in zip(rows, sizes, heights, strict=True):
        for i, picture in enumerate(pictures):
            full = np.full((*size, 3), 225, np.uint8) if picture is None else picture
            small = _resize(full, size, cv2.INTER_AREA if len(full) > size[0] else cv2.INTER_NEAREST)
            sheet.paste(Image.fromarray(small), (left + i * (tile + GAP), top))
        label = Image.new("RGB", (height, left or 1), "white")
        ImageDraw.Draw(label).text((height / 2, 10), name, "black", font("DejaVuSans", 13), anchor="mm")
        sheet.paste(label.rotate(90, expand=True), (0, top))
        top += height
    data = io.BytesIO()
    sheet.save(data, format=kind, quality=88)
    return data.getvalue()


def overview(args: argparse.Namespace, measured: dict, dataset: Dataset, names: Sequence[str], most: int = 6) -> bytes:
    """A PNG for a paper or a mail: for `most` images, spread over the list, a row of what every step made of it."""
    rows, titles = [], {}
    for i in spread(len(names), most):
        image = dataset.image(names[i])
        made, colours = outputs(args, measured, dataset, names[i], image, dataset.mask(names[i]))
        label = ", ".join(dataset.classes[value - 1] for value in colours if value <= dataset.n_classes)
        rows.append((label, image, {output.key: over(image, output.layer) for output in made}))
        titles |= {output.key: output.title for output in made}
    scores = {stage.key: f" {number(at(measured, f'{stage.best}.miou'))}" for stage in scored(measured)}
    keys = [key for key in KEYS if key in titles]
    captions = ["image", *(titles[key] + scores.get(key, "") for key in keys)]
    title = f"{dataset.name}{': mIoU over all images in percent' if scores else ''}"
    return grid(captions, [(label, [image, *map(made.get, keys)]) for label, image, made in rows], title)


def spread(length: int, n: int) -> list[int]:
    """At most n indices over 0..length - 1, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(n, length)).round().astype(int)).tolist()


def strip(
    title: str, image: np.ndarray, classes: Sequence[str], maps: dict[str, np.ndarray], masks: dict[str, np.ndarray],
    threshold: float, tile: int = TILE,
) -> bytes:  # fmt: skip
    """A PNG as the paper's figure 3, of `strip_rows`. tile: long side of a picture."""
    rows = strip_rows(image, classes, maps, masks, threshold)
    return grid(["image", *maps, *masks], rows, f"{title} ({strip_note(threshold)})", tile)


def strip_note(threshold: float) -> str:
    """What a strip shows, in words."""
    return f"k: updates of the weights; line: {threshold:g} of the maximum" + "; maps: square root" * (threshold < LOW)


def strip_rows(
    image: np.ndarray, classes: Sequence[str], maps: dict[str, np.ndarray], masks: dict[str, np.ndarray],
    threshold: float,
) -> list[tuple[str, list[np.ndarray]]]:  # fmt: skip
    """A row per class, the columns image, maps, masks, for `grid`.

    classes: names of the n classes of the image; none gives one row with empty maps. maps: title -> [n, H, W] in
    [0, 1], drawn with the outline of what exceeds the threshold. masks: title -> uint8 [H, W] (0 background, c + 1
    class, 255 ignored).
    """
    rows = []
    for r in range(max(1, len(classes))):
        heats = [over(image, heat_layer(cams[r : r + 1], 0.5 if threshold < LOW else 1.0)) for cams in maps.values()]
        for heat, cams in zip(heats, maps.values(), strict=True):
            exceeds = (_resize(cams[r : r + 1].max(0, initial=0), heat.shape[:2]) > threshold).astype(np.uint8)
            heat[cv2.morphologyEx(exceeds, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0] = 255
        drawn = [over(image, mask_layer(mask)) for mask in masks.values()]
        rows.append((classes[r] if len(classes) else "no class", [image, *heats, *drawn]))
    return rows


def maps_of(recording: Any, n_iter: int) -> dict[str, np.ndarray]:
    """title -> high_res of a `misc.run.recording.Recording`: the CAM, and RIB after the steps that a strip shows."""
    return {"CAM": recording.maps(0)[1], **{f"RIB, k = {k}": recording.maps(k)[1] for k in shown_steps(n_iter)}}


def shown_steps(k_max: int) -> list[int]:
    """The steps that a strip shows: those of the paper's figure, as far as there are, and the last."""
    return sorted({k for k in SHOWN_STEPS if k < k_max} | {k_max})


def photograph(image: np.ndarray) -> str:
    """uint8 [H, W, 3] as the data URI of a JPEG."""
    data = io.BytesIO()
    Image.fromarray(_resize(image, fit(image.shape))).save(data, format="JPEG", quality=84, optimize=True)
    return data_uri("jpg", data.getvalue())


def layer_uri(layer: Layer) -> str:
    """A layer as the data URI of a palette PNG with transparency; only colours that occur are stored."""
    used, small = np.unique(layer.index, return_inverse=True)
    image = Image.fromarray(small.reshape(layer.index.shape).astype(np.uint8))
    image.putpalette(layer.palette[used, :3].tobytes())
    data = io.BytesIO()
    image.save(data, format="PNG", transparency=layer.palette[used, 3].tobytes(), optimize=True)
    return data_uri("png", data.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    """The data URI of an image of a kind ("png", "jpg")."""
    return f"data:image/{kind.replace('jpg', 'jpeg')};base64,{base64.b64encode(data).decode()}"


def save(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    write_atomic(path, lambda file: file.write(data))


def _resize(array: np.ndarray, size: Sequence[int], interpolation: int = cv2.INTER_AREA) -> np.ndarray:
    """[h, w, ...] at (height, width)."""
    return array if tuple(size) == array.shape[:2] else cv2.resize(array, size[::-1], interpolation=interpolation)
