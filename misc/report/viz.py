"""Pictures: maps over images, grids, curves."""

import argparse
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.base import Dataset
from data.errors import UserError
from data.files import write_atomic
from data.images import read_mask, voc_palette
from data.results import load_cam, load_instances
from misc.run.workdir import result_file

TILE = 144  # height of a picture in the overview
GAP = 4


def overlay_cam(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: a CAM [H, W] in [0, 1] as heat over the grey image.

    Its square root is drawn: seeds are cut at low thresholds, and there a linear scale shows nothing but the peak.
    """
    strength = np.sqrt(np.clip(cam, 0, 1))
    heat = heat_colours()[(strength * 255).astype(np.uint8)]
    grey = np.repeat(image.mean(2, keepdims=True), 3, 2)
    weight = 0.3 + 0.6 * strength[..., None]
    return (heat * weight + grey * (1 - weight)).astype(np.uint8)


def overlay_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: class colours over the image; ignored pixels (255) hatched in white."""
    colour = voc_palette()[mask]
    out = np.where((mask > 0)[..., None], 0.4 * image + 0.6 * colour, 0.8 * image)
    out[mask == 255] = image[mask == 255]
    out[hatching(mask)] = 255
    return out.astype(np.uint8)


def hatching(mask: np.ndarray, width: int = 2) -> np.ndarray:
    """bool [H, W]: diagonal strokes, `width` pixels wide, over the ignored pixels (255) of a mask."""
    y, x = np.indices(mask.shape)
    return (mask == 255) & ((x + y) // width % 3 == 0)


def heat_colours() -> np.ndarray:
    """uint8 [256, 3], RGB: the colour of a strength in 0..255, from dark to bright for any eye."""
    return cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1]


def instance_colour(rank: int) -> np.ndarray:
    """uint8 [3], RGB, of the instance of a rank; golden section: neighbours in rank differ in colour."""
    hue = int(180 * (rank * 0.618034 % 1))
    return cv2.cvtColor(np.uint8([[[hue, 220, 255]]]), cv2.COLOR_HSV2RGB)[0, 0]


def overlay_instances(image: np.ndarray, masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: every instance in a colour and a white outline over the image, the surest on top.

    masks: bool [n, H, W]. scores: [n]; fragments that score 0 are not drawn.
    """
    out = 0.8 * image.astype(np.float32)
    shown = [i for i in np.argsort(scores, kind="stable") if scores[i] > 0]
    for rank, i in enumerate(shown):
        shade = 0.4 * image[masks[i]] + 0.6 * instance_colour(rank)
        out[masks[i]] = shade
        outlines, _ = cv2.findContours(masks[i].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(out, outlines, -1, (255, 255, 255), 1)
    return out.astype(np.uint8)


def overview(args: argparse.Namespace, dataset: Dataset, names: Sequence[str], rows: int = 12) -> np.ndarray:
    """uint8 [H, W, 3]: for `rows` images, spread over the list, a row of what every step made of it.

    Columns: image, ground truth, CAM, RIB, CRF label, pseudo mask, and instances if there are files of them; what is
    not there, or not readable, is left grey.
    """
    columns = ("image", "ground truth", "CAM (sqrt)", "RIB (sqrt)", "CRF label", "pseudo mask")
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(rows, len(names))).round().astype(int))]
    instances = {name: result_file(args, "ins_seg_out_dir", name, ".npy") for name in chosen}
    has_instances = any(path.is_file() for path in instances.values())
    if has_instances:
        columns += ("instances",)
    tiles = [[_caption(title) for title in columns]]
    for name in chosen:
        image = dataset.image(name)
        truth = dataset.mask(name)
        size = image.shape[:2]
        row = [image, None if truth is None else overlay_mask(image, truth)]
        for folder in ("cam_out_dir", "cam_rib_out_dir"):
            path = result_file(args, folder, name, ".npy")
            file = readable(load_cam, path, size, dataset.n_classes)
            row.append(None if file is None else _heat(image, file["high_res"]))
        for folder in ("ir_label_out_dir", "sem_seg_out_dir"):
            path = result_file(args, folder, name, ".png")
            mask = readable(read_mask, path, dataset.n_classes, size)
            row.append(None if mask is None else overlay_mask(image, mask))
        if has_instances:
            found = readable(load_instances, instances[name], size, dataset.n_classes)
            row.append(None if found is None else overlay_instances(image, found["mask"], found["score"]))
        tiles.append([_tile(picture) for picture in row])
    return np.vstack([np.hstack(row) for row in tiles])


def readable(load: Callable, path: Path, *wanted: object) -> Any:
    """load(path, *wanted), None where there is no file; where it is damaged too, which is told."""
    if not path.is_file():
        return None
    try:
        return load(path, *wanted)
    except UserError as error:
        logging.warning("left out of the pictures: %s", error)
        return None


def save_image(path: Path, image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] RGB as PNG."""
    data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
    write_atomic(path, lambda file: file.write(data))


def plot_thresholds(path: Path, curves: dict[str, dict[str, float]], title: str) -> None:
    """Writes the mIoU of each named sweep (threshold -> mIoU) as one plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for (label, sweep), colour in zip(curves.items(), ("#0072B2", "#D55E00", "#009E73"), strict=False):
        x, y = np.array([float(t) for t in sweep]), 100 * np.array(list(sweep.values()), float)
        axes.plot(x, y, color=colour, label=f"{label}: best {y.max():.1f} at {x[y.argmax()]:.2f}")
        axes.plot(x[y.argmax()], y.max(), "o", color=colour)
    axes.set(xlabel="background threshold", ylabel="mIoU (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    write_atomic(path, lambda file: file.write(data.getvalue()))


def _heat(image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    return overlay_cam(image, maps.max(0) if len(maps) else np.zeros(image.shape[:2], np.float32))


def _tile(picture: np.ndarray | None) -> np.ndarray:
    """A picture fitted into a square of TILE pixels with a margin."""
    tile = np.full((TILE + GAP, TILE + GAP, 3), 255, np.uint8)
    if picture is None:
        tile[:TILE, :TILE] = 225
        return tile
    scale = TILE / max(picture.shape[:2])
    width, height = (max(1, round(side * scale)) for side in (picture.shape[1], picture.shape[0]))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    tile[:height, :width] = cv2.resize(picture, (width, height), interpolation=interpolation)
    return tile


def _caption(text: str) -> np.ndarray:
    tile = np.full((28, TILE + GAP, 3), 255, np.uint8)
    cv2.putText(tile, text, (2, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return tile
