"""Pictures as data URIs: photographs as JPEG, everything laid over them as small palette PNGs with transparency."""

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from misc.report import viz

SIDE = 320  # long side of a picture in the page
# Okabe and Ito's colours, told apart by colour-blind readers too; black is left to the background.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
OPEN, STROKE = 254, 255  # palette entries of ignored pixels


def colours_of(classes: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """A colour for each class (mask value) of an image, all different up to seven, and the same in most images."""
    free, out = list(range(len(COLOURS))), {}
    for value in sorted(classes):
        free = free or list(range(len(COLOURS)))
        wanted = (value - 1) % len(COLOURS)
        chosen = wanted if wanted in free else free[0]
        free.remove(chosen)
        out[value] = COLOURS[chosen]
    return out


def shown_size(shape: Sequence[int]) -> tuple[int, int]:
    """(height, width) at which an image [H, W, ...] stands in the page; never enlarged."""
    scale = min(1.0, SIDE / max(shape[:2]))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def photograph(image: np.ndarray) -> str:
    """uint8 [H, W, 3] as a JPEG."""
    height, width = shown_size(image.shape)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    data = io.BytesIO()
    Image.fromarray(small).save(data, format="JPEG", quality=84, optimize=True)
    return _uri("jpeg", data)


def mask_layer(mask: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> str:
    """uint8 [H, W] in colours, background clear, ignored pixels hatched."""
    height, width = shown_size(mask.shape)
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    index = np.where(small == 255, OPEN, small).astype(np.uint8)
    index[viz.hatching(small, max(2, round(max(small.shape) / 80)))] = STROKE
    palette = np.zeros((256, 4), np.uint8)
    for value, colour in colours.items():
        palette[value] = (*colour, 255)
    palette[OPEN], palette[STROKE] = (40, 40, 40, 130), (255, 255, 255, 255)
    return _palette_png(index, palette)


def heat_layer(cams: np.ndarray, size: tuple[int, int]) -> str:
    """The strongest of CAMs float32 [n, h, w] as heat, drawn like the overview; size: of the image, for no CAM."""
    strongest = cams.max(0) if len(cams) else np.zeros((max(1, size[0] // 4), max(1, size[1] // 4)), np.float32)
    levels = (np.sqrt(np.clip(strongest, 0, 1)) * 63).round().astype(np.uint8)
    strength = np.arange(64) / 63
    palette = np.zeros((256, 4), np.uint8)
    palette[:64, :3] = viz.heat_colours()[(strength * 255).astype(int)]
    palette[:64, 3] = 255 * (0.45 + 0.5 * strength)
    return _palette_png(_at_most(levels), palette)


def edge_layer(edge: np.ndarray) -> str:
    """A boundary map uint8 [h, w] as light on a darkened image."""
    levels = (edge.astype(np.float32) / 255 * 31).round().astype(np.uint8)
    share = np.arange(32)[:, None] / 31
    palette = np.zeros((256, 4), np.uint8)
    palette[:32, :3] = share * np.array([255, 236, 150])
    palette[:32, 3] = (255 * (0.72 + 0.28 * share[:, 0])).astype(np.uint8)
    return _palette_png(_at_most(levels), palette)


def instance_layer(masks: np.ndarray, scores: np.ndarray) -> str:
    """Instances bool [n, H, W], each in a colour with a white outline, the surest on top; none that scores 0."""
    height, width = shown_size(masks.shape[1:])
    index = np.zeros((height, width), np.uint8)
    palette = np.zeros((256, 4), np.uint8)
    palette[STROKE] = 255
    shown = [i for i in np.argsort(scores, kind="stable") if scores[i] > 0]
    for rank, i in enumerate(shown):
        entry = 1 + rank % (OPEN - 1)
        palette[entry] = (*viz.instance_colour(rank), 255)
        small = cv2.resize(masks[i].astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        index[small > 0] = entry
        outlines, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(index, outlines, -1, STROKE, 1)
    return _palette_png(index, palette)


def change_layer(before: np.ndarray, after: np.ndarray, truth: np.ndarray | None) -> str:
    """Where two masks differ: blue where the second is right, orange where the first was, grey else."""
    index = (before != after).astype(np.uint8) * 3
    if truth is not None:
        index[(index > 0) & (after == truth)] = 1
        index[(index > 0) & (before == truth)] = 2
        index[truth == 255] = 0
    height, width = shown_size(index.shape)
    palette = np.zeros((256, 4), np.uint8)
    palette[1:4] = (86, 180, 233, 255), (230, 159, 0, 255), (190, 190, 190, 255)
    return _palette_png(cv2.resize(index, (width, height), interpolation=cv2.INTER_NEAREST), palette)


def confusion_picture(share: np.ndarray) -> str:
    """Shares [C, C] in 0..1 as heat, one pixel each; the square root, or all but the diagonal would be dark."""
    palette = np.full((256, 4), 255, np.uint8)
    palette[:, :3] = viz.heat_colours()
    return _palette_png((255 * np.sqrt(share)).round().astype(np.uint8), palette)


def _at_most(levels: np.ndarray) -> np.ndarray:
    """Levels at no more than half the side of a picture: maps are smooth, and the browser enlarges them smoothly."""
    scale = min(1.0, SIDE / 2 / max(levels.shape))
    size = (max(1, round(levels.shape[1] * scale)), max(1, round(levels.shape[0] * scale)))
    return levels if scale == 1 else cv2.resize(levels, size, interpolation=cv2.INTER_AREA)


def _palette_png(index: np.ndarray, palette: np.ndarray) -> str:
    """Indices uint8 [h, w] with colours uint8 [256, 4]; only entries that occur are stored."""
    used, small = np.unique(index, return_inverse=True)
    image = Image.fromarray(small.reshape(index.shape).astype(np.uint8))
    image.putpalette(palette[used, :3].tobytes())
    data = io.BytesIO()
    image.save(data, format="PNG", transparency=palette[used, 3].tobytes(), optimize=True)
    return _uri("png", data)


def _uri(kind: str, data: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
