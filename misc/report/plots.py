"""Plots: curves of a run for the page, the ablations, the toy experiment after the paper's figure 2."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from data.digits import DIGITS, REGIONS, Pictures
from data.files import write_atomic
from misc.hgr import fall
from misc.report.tables import TRAINED_ON
from misc.report.toy import TITLES
from net.toy import LAYERS

# Colours that follow the page's theme: each stands for a variable of page.css.
THEME = {"ink": "#010101", "soft": "#5a636e", "hair": "#dde1e6", "cam": "#0072b2", "rib": "#d55e00", "label": "#dcae00",
         "mask": "#00835f", "seg": "#aa4f87"}  # fmt: skip
PLAIN = {"svg.hashsalt": "rib", "text.parse_math": False}  # same bytes for same figures; names stay text
SILENT = ("Date", "Creator", "Format", "Type")  # metadata of SVG
TOY_FIGURES = {
    "dataset": "digits with and without marks, and their regions",
    "gradients": "gradients of the layers on two test images",
    "curves": "HGR by layer, region and final activation",
}
LAYER_NAMES = [f"G{chr(0x2081 + k)}" for k in range(LAYERS)]  # with subscripts
# Markers and dashes say the same as the colours.
REGION_STYLE = {
    "irrelevant": ("#000000", "s", ":", "irrelevant (rest)"),
    "discriminative": ("#0072b2", "^", "--", "discriminative (digit)"),
    "non-discriminative": ("#d55e00", "o", "-", "non-discriminative (mark)"),
}


def save(figure: Figure, path: Path, kinds: Sequence[str] = ("png", "svg")) -> None:
    """Writes PATH.png and PATH.svg."""
    for kind in kinds:
        data = _bytes(figure, kind)
        write_atomic(path.with_name(f"{path.name}.{kind}"), lambda file, data=data: file.write(data))


def inline(figure: Figure) -> str:
    """The figure as markup for the page, in the page's colours and font."""
    with rc_context({"svg.fonttype": "none"}):
        text = _bytes(figure, "svg").decode()
    for name, colour in THEME.items():
        text = text.replace(colour, f"var(--{name})")
    return text[text.index("<svg") :]


def _bytes(figure: Figure, kind: str) -> bytes:
    data = io.BytesIO()
    with rc_context(PLAIN):
        figure.savefig(data, format=kind, dpi=120, metadata=dict.fromkeys(SILENT) if kind == "svg" else None)
    return data.getvalue()


@rc_context(PLAIN)
def lines(series: Sequence[tuple[str, str, Sequence, Sequence]], x_name: str, y_name: str, **more: object) -> Figure:
    """Curves of (key of THEME, label, x, y). more: title; rule, an x to mark; marked, whether the best y is dotted."""
    figure = Figure(figsize=(3.7, 3.1), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    for i, (key, label, x, y) in enumerate(series):
        y = np.array(y, float)
        dash = ("-", (0, (5, 2)), (0, (1, 1.5)))[i % 3]
        axes.plot(x, y, color=THEME[key], ls=dash, marker="" if len(y) > 30 else ".", label=label)
        if more.get("marked") and np.isfinite(y).any():
            axes.plot(x[np.nanargmax(y)], np.nanmax(y), "o", color=THEME[key])
    if "rule" in more:
        axes.axvline(more["rule"], color=THEME["soft"], ls=":", lw=1, label=f"fixed {more['rule']:g}")
    axes.xaxis.get_major_locator().set_params(integer=x_name != "background threshold")
    axes.set_xlabel(x_name, color=THEME["soft"])
    axes.set_ylabel(y_name, color=THEME["soft"])
    axes.set_title(more.get("title", ""), color=THEME["ink"], fontsize=10)
    axes.tick_params(color=THEME["hair"], labelcolor=THEME["soft"])
    axes.spines[:].set_color(THEME["hair"])
    axes.grid(color=THEME["hair"], lw=0.8)
    figure.legend(fontsize=8.5, labelcolor=THEME["ink"], frameon=False, loc="outside upper left")
    return figure


def sweeps(measured: dict, fixed: float, title: str = "") -> Figure | None:
    """mIoU of the seeds over the background threshold, None where no sweep is stored. fixed: threshold to mark."""
    series = []
    for key, step in (("cam", "eval_cam"), ("rib", "eval_rib_cam")):
        sweep = measured.get(step, {}).get("sweep")
        if sweep:
            x, y = (np.array(list(values), float) for values in (sweep, sweep.values()))
            best = f", best {100 * np.nanmax(y):.1f} at {x[np.nanargmax(y)]:.2f}" if np.isfinite(y).any() else ""
            series.append((key, key.upper() + best, x, 100 * y))
    more = {"rule": fixed, "marked": True, "title": title}
    return lines(series, "background threshold", "mIoU (%)", **more) if series else None


def losses(measured: dict) -> list[tuple[str, Figure]]:
    """(step, its loss curves) of every training. The segmentation network may be trained on several labels."""
    out = []
    for step, x_name in (("train_cam", "epoch"), ("train_irn", "epoch"), ("train_seg", "part of the training")):
        loss = measured.get(step, {}).get("loss") or {}
        by_labels, keys = (loss, ("seg", "cam", "mask")) if isinstance(loss, dict) else ({"": loss}, ("cam",))
        series = [
            (key, f"{TRAINED_ON.get(labels, labels) or 'loss'}, {y[-1]:.4g} at the end", np.arange(len(y)) + 1, y)
            for key, (labels, y) in zip(keys, by_labels.items(), strict=False)
            if y
        ]
        if series:
            out.append((step, lines(series, x_name, "loss")))
    return out


@rc_context(PLAIN)
def ablation(study: dict, title: str) -> Figure:
    """mIoU over the updates of the weights: of every setting at the best threshold; of one alone at the fixed one too.

    study: as in ablate/results.json.
    """
    points = study["points"]
    curves = [(point["label"], point, "best") for point in points]
    if study["argument"] is None:
        curves = [(f"{key} threshold", points[0], key) for key in ("best", "fixed")]
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(curves)))
    for (label, point, key), colour in zip(curves, colours, strict=True):
        y, written = 100 * np.array(point["curve"][key]), point["written"]
        style = {"ls": "-" if point["own"] else (0, (4, 2)), "lw": 1 + 1.5 * point["own"]}  # two equal curves are seen
        axes.plot(np.arange(len(y)), y, color=colour, label=label, **style)
        axes.plot(written, y[written], "o", color=colour)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("updates of the weights (0: CAM; dot: what make_rib_cam writes)")
    axes.set_ylabel("mIoU (%)" if study["argument"] is None else "mIoU (%), best threshold")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


@rc_context(PLAIN)
def toy_dataset(train: Pictures, test: Pictures, columns: int = 8) -> Figure:
    """Panel a: training images of both classes, some with their mark, test images, and what the regions are."""
    rows = []
    for label, digit in enumerate(DIGITS):
        own = np.flatnonzero(train.labels == label)
        marked = own[train.marked[own]][:2]
        plain = own[~train.marked[own]][: columns - len(marked)]
        rows.append((f"training\n{digit}", train.images[[*plain, *marked]]))
    rows += [(f"test\n{digit}", test.images[test.labels == label]) for label, digit in enumerate(DIGITS)]
    colours = [REGION_STYLE[name][0] for name in REGIONS]
    rows.append(("regions\n(test)", np.array([tuple(bytes.fromhex(c[1:])) for c in colours], np.uint8)[test.regions]))
    figure = Figure(figsize=(8.4, 5.9), layout="constrained")
    for line, (title, images) in zip(figure.subplots(len(rows), columns), rows, strict=True):
        for axes, image in zip(line, images, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(title)
    figure.suptitle("A ring goes with the 2, a square with the 8: in 10% of the training images, in every test image")
    handles = [Patch(facecolor=REGION_STYLE[r][0], edgecolor="grey", label=REGION_STYLE[r][3]) for r in REGIONS]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


@rc_context(PLAIN)
def toy_gradients(test: Pictures, rows: dict[tuple[int, str], np.ndarray]) -> Figure:
    """Panel b: G_1..G_6 of test images, the mark framed. rows: (index of the image, title) -> maps [6, H, W]."""
    figure = Figure(figsize=(9.6, 1.25 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), LAYERS + 1, squeeze=False)
    for line, ((i, title), maps) in zip(grid, rows.items(), strict=True):
        line[0].imshow(test.images[i], cmap="gray", vmin=0, vmax=255)
        line[0].set_ylabel(title.replace(", ", ",\n").replace(" with ", "\nwith "), fontsize=9)
        ys, xs = np.nonzero(test.regions[i] == REGIONS.index("non-discriminative"))
        for axes, gradient in zip(line[1:], maps, strict=True):
            shown = axes.imshow(gradient, cmap="inferno", vmin=0, vmax=1)
            frame = (xs.min() - 3.5, ys.min() - 3.5), np.ptp(xs) + 7, np.ptp(ys) + 7
            axes.add_patch(Rectangle(*frame, fill=False, edgecolor="#56b4e9"))
    for axes, title in zip(grid[0], ["image", *LAYER_NAMES], strict=True):
        axes.set_title(title, fontsize=11)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=grid, shrink=0.8, label="gradient over its maximum in the image")
    return figure


@rc_context(PLAIN)
def toy_curves(ratios: dict[str, np.ndarray], threshold: float) -> Figure:
    """Panel c: HGR over the layers per activation, mean and standard deviation over the seeds.

    ratios: per activation HGR [seeds, 3, 7], of which the second G_6 is not shown.
    """
    figure = Figure(figsize=(13.2, 6.2), layout="constrained")
    grid = figure.subplots(2, 4, sharex=True, sharey=True)
    x = np.arange(LAYERS)
    for axes, (name, values) in zip(grid.flat, ratios.items(), strict=True):
        for i, region in enumerate(REGIONS):
            colour, marker, dash, label = REGION_STYLE[region]
            mean, deviation = values[:, i, :LAYERS].mean(0), values[:, i, :LAYERS].std(0)
            style = {"color": colour, "marker": marker, "ls": dash, "capsize": 3, "ms": 5, "label": label}
            axes.errorbar(x + 0.06 * (i - 1), mean, deviation, **style)
        text = f"fall at {LAYER_NAMES[-1]}: {fall(values).mean():.2f}"
        axes.text(0.97, 0.14, text, transform=axes.transAxes, ha="right", color=REGION_STYLE["non-discriminative"][0])
        axes.set_title(TITLES.get(name, f"fine-tuned: {name}"))
        axes.set(ylim=(-0.03, 1.05), xticks=x, xticklabels=LAYER_NAMES)
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"HGR (fraction of pixels above {threshold:g})")
    for axes in grid[-1]:
        axes.set_xlabel("gradient of layer")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    seeds = len(ratios["trained"])
    figure.suptitle(f"High gradient ratio per layer and region, {seeds} seed{'s (mean and deviation)' * (seeds > 1)}")
    return figure
