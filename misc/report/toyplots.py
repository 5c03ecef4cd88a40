"""The three panels of the toy experiment, after the paper's figure 2: PNG and SVG."""

import io
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from data.digits import DIGITS, REGIONS, Pictures
from data.files import write_atomic
from misc.hgr import CONTROL, fall
from net.toy import LAYERS

FIGURES = ("dataset", "gradients", "curves")
LAYER_NAMES = [f"$G_{k + 1}$" for k in range(LAYERS)]
# Okabe and Ito's colours, told apart with any colour vision; markers and dashes say the same again.
REGION_STYLE = {
    "irrelevant": ("#000000", "s", ":"),
    "discriminative": ("#0072B2", "^", "--"),
    "non-discriminative": ("#D55E00", "o", "-"),
}
MEANINGS = {"irrelevant": "irrelevant (rest)", "discriminative": "discriminative (digit)",
            "non-discriminative": "non-discriminative (mark)"}  # fmt: skip
TITLES = {
    "untrained": "before training",
    "trained": "trained with sigmoid",
    "relu": "fine-tuned with ReLU",
    "none": "fine-tuned without activation",
    CONTROL: "without, a tenth of the rate",
}


def dataset(folder: Path, train: Pictures, test: Pictures, columns: int = 8) -> None:
    """Panel a: training images of both classes, some with their mark, test images, and what the regions are."""
    rows = []
    for label, digit in enumerate(DIGITS):
        own = np.flatnonzero(train.labels == label)
        marked = own[train.marked[own]][:2]
        plain = own[~train.marked[own]][: columns - len(marked)]
        rows.append((f"training\n{digit}", train.images[[*plain, *marked]]))
    for label, digit in enumerate(DIGITS):
        rows.append((f"test\n{digit}", test.images[test.labels == label]))
    palette = np.array([_rgb(REGION_STYLE[name][0]) for name in REGIONS], np.uint8)
    rows.append(("regions\n(test)", palette[test.regions]))
    figure = Figure(figsize=(8.4, 5.9), layout="constrained")
    for axis, (title, images) in zip(figure.subplots(len(rows)), rows, strict=True):
        axis.imshow(_strip(images[:columns], columns), cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[], ylabel=title)
        axis.spines[:].set_visible(False)
    figure.suptitle("A ring goes with the 2, a square with the 8: in 10% of the training images, in every test image")
    handles = [Patch(facecolor=REGION_STYLE[name][0], edgecolor="grey", label=MEANINGS[name]) for name in REGIONS]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    _save(figure, folder / "dataset")


def gradients(folder: Path, test: Pictures, rows: dict[tuple[int, str], np.ndarray]) -> None:
    """Panel b: G_1..G_6 of test images, the mark framed. rows: (index of the image, title) -> maps [6, H, W]."""
    figure = Figure(figsize=(9.6, 1.25 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), LAYERS + 1, squeeze=False)
    shown, mark = None, REGIONS.index("non-discriminative")
    for line, ((i, title), maps) in zip(axes, rows.items(), strict=True):
        line[0].imshow(test.images[i], cmap="gray", vmin=0, vmax=255)
        line[0].set_ylabel(title.replace(", ", ",\n").replace(" with ", "\nwith "), fontsize=9)
        for axis, one in zip(line[1:], maps, strict=True):
            shown = axis.imshow(one, cmap="inferno", vmin=0, vmax=1)
            axis.add_patch(Rectangle(*_box(test.regions[i] == mark), fill=False, edgecolor="#56B4E9"))
    for axis, title in zip(axes[0], ["image", *LAYER_NAMES], strict=True):
        axis.set_title(title, fontsize=11)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes, shrink=0.8, label="gradient over its maximum in the image")
    _save(figure, folder / "gradients")


def curves(folder: Path, ratios: dict[str, np.ndarray], threshold: float) -> None:
    """Panel c: HGR over the layers per activation, mean and standard deviation over the seeds.

    ratios: per activation HGR [seeds, 3, 7], of which the second G_6 is not shown.
    """
    figure = Figure(figsize=(13.2, 6.2), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    x = np.arange(LAYERS)
    for axis, (name, values) in zip(axes.flat, ratios.items(), strict=True):
        for i, region in enumerate(REGIONS):
            colour, marker, dash = REGION_STYLE[region]
            mean, deviation = values[:, i, :LAYERS].mean(0), values[:, i, :LAYERS].std(0)
            axis.errorbar(
                x + 0.06 * (i - 1), mean, deviation, color=colour, marker=marker, linestyle=dash, capsize=3,
                markersize=5, label=MEANINGS[region],
            )  # fmt: skip
        axis.text(
            0.97, 0.14, f"fall at $G_6$: {fall(values).mean():.2f}", transform=axis.transAxes, ha="right",
            color=REGION_STYLE["non-discriminative"][0],
        )  # fmt: skip
        axis.set_title(TITLES.get(name, f"fine-tuned with {name}"))
        axis.set(ylim=(-0.03, 1.05), xticks=x, xticklabels=LAYER_NAMES)
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"HGR (share of pixels above {threshold:g})")
    for axis in axes[-1]:
        axis.set_xlabel("gradient of layer")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    seeds = len(ratios["trained"])
    bars = f", mean and standard deviation over {seeds} seeds" if seeds > 1 else ", one seed"
    figure.suptitle(f"High gradient ratio per layer and region{bars}")
    _save(figure, folder / "curves")


def _strip(images: np.ndarray, columns: int, gap: int = 3) -> np.ndarray:
    """[H, W, 3]: up to `columns` grey or colour images side by side, white between them and where there is none."""
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, 3)
    out = np.full((images.shape[1], columns, images.shape[2] + gap, 3), 255, np.uint8)
    out[:, : len(images), :-gap] = images.transpose(1, 0, 2, 3)
    return out.reshape(len(out), -1, 3)[:, :-gap]


def _box(inside: np.ndarray, gap: int = 3) -> tuple[tuple[float, float], int, int]:
    """Corner (x, y), width and height of a frame around bool [H, W], `gap` pixels off."""
    ys, xs = np.nonzero(inside)
    corner = xs.min() - gap - 0.5, ys.min() - gap - 0.5
    return corner, np.ptp(xs) + 2 * gap + 1, np.ptp(ys) + 2 * gap + 1


def _rgb(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _save(figure: Figure, path: Path) -> None:
    """Writes PATH.png and PATH.svg."""
    for suffix in ("png", "svg"):
        data = io.BytesIO()
        with rc_context({"svg.hashsalt": "rib"}):  # the same bytes for the same numbers
            figure.savefig(data, format=suffix, dpi=100, metadata={"Date": None} if suffix == "svg" else None)
        write_atomic(path.with_suffix(f".{suffix}"), lambda file, data=data: file.write(data.getvalue()))
