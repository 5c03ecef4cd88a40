"""A strip per image, as in the paper's figure 3: image, CAM, the map as RIB widens it, ground truth."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.files import write_atomic
from misc.report.viz import overlay_cam, overlay_mask

TILE_INCHES = 1.45
SHOWN_STEPS = (1, 3, 5, 10)  # of the paper's figure


def shown_steps(k_max: int) -> list[int]:
    """The steps that a strip shows: those of the paper's figure, as far as there are, and the last."""
    return sorted({k for k in SHOWN_STEPS if k < k_max} | {k_max})


def draw_strip(
    title: str, image: np.ndarray, classes: Sequence[str], maps: dict[str, np.ndarray], masks: dict[str, np.ndarray]
) -> bytes:
    """A PNG with a row per class and the columns image, maps, masks.

    image: uint8 [H, W, 3]. classes: names of the n classes of the image; none gives one row with empty maps.
    maps: title -> [n, H, W] in [0, 1]. masks: title -> uint8 [H, W] (0 background, c + 1 class, 255 ignored).
    """
    from matplotlib.figure import Figure

    rows, columns = max(1, len(classes)), 1 + len(maps) + len(masks)
    height = TILE_INCHES * image.shape[0] / image.shape[1]
    figure = Figure(figsize=(TILE_INCHES * columns, (height + 0.1) * rows + 0.62), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    for r, line in enumerate(grid):
        heats = [overlay_cam(image, drawn[r] if len(classes) else np.zeros(image.shape[:2])) for drawn in maps.values()]
        pictures = [image, *heats, *(overlay_mask(image, mask) for mask in masks.values())]
        for axes, picture, caption in zip(line, pictures, ("image", *maps, *masks), strict=True):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if r == 0:
                axes.set_title(caption, fontsize=9)
        line[0].set_ylabel(classes[r] if len(classes) else "no class", fontsize=9, parse_math=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.supxlabel("maps over their maximum, drawn as the square root; k: updates of the weights", fontsize=7)
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a file name that the font cannot show
        figure.savefig(data, format="png", dpi=120)
    return data.getvalue()


def save_strip(path: Path, png: bytes) -> None:
    """Writes the strip, whole or not at all."""
    write_atomic(path, lambda file: file.write(png))
