"""What the toy experiment says in numbers: falls per activation, and the paper's claims held against them."""

from collections.abc import Mapping, Sequence

import numpy as np

from data.digits import REGIONS
from misc.hgr import CONTROL, G_5, G_6, NON_DISCRIMINATIVE, SATURATING, WHOLE_G_6, fall
from net.toy import LAYERS

NEAR_ZERO = 0.1  # HGR below which a region has all but vanished
HIGH = 0.75  # HGR above which a region is mostly there
COLLAPSED = 0.2  # the paper's curve ends at about 0.1
LEAST_FALL = 0.2  # less is none
FAR_MORE = 2  # a fall this many times as large as another
ACCURATE = 0.9  # accuracy below which a network has not learnt what the claims are about
IRRELEVANT, MARKS = REGIONS.index("irrelevant"), "non-discriminative"
HIGH_AT_G_5, COLLAPSED_AT_G_6 = 1, 2  # among the claims
TITLES = {"untrained": "before training", "trained": "sigmoid, as trained"}

Curves = Mapping[str, np.ndarray]  # "untrained", "trained" or a key of COMPARED -> HGR, float [seeds, 3, 7]


def summarise(
    by_threshold: Mapping[float, Curves],
    threshold: float,
    logits: Mapping[str, Sequence[float]],
    steps: Mapping[str, Sequence[float]],
    accuracy: Sequence[float],
    rate: float,
) -> dict:
    """For metrics.json; see docs/METRICS.md. All but `by_threshold` is for `threshold`, which is one of its keys.

    logits: median logit of the test images, of every seed; steps: their mean number of fine-tuning steps; accuracy: of
    every seed's network as trained; rate: learning rate of the fine-tuning.
    """
    curves = by_threshold[threshold]
    learnt = min(accuracy) >= ACCURATE
    found = {value: claims(one, rate) if learnt else [] for value, one in sorted(by_threshold.items())}
    withheld = (
        f"a network is right on {min(accuracy):.0%} of its test images, wanted {ACCURATE:.0%}: it has not learnt the "
        "task, so there is no verdict; raise --toy_train or --toy_epochs"
    )
    return {
        "threshold": threshold,
        "hgr": {
            name: {region: over_seeds(values[:, i, :LAYERS]) for i, region in enumerate(REGIONS)}
            for name, values in curves.items()
        },
        "fall": {name: {**over_seeds(fall(values)), "relative": _relative(values)} for name, values in curves.items()},
        "whole_output": {name: over_seeds(values[:, NON_DISCRIMINATIVE, WHOLE_G_6]) for name, values in curves.items()},
        "logit": {name: over_seeds(np.array(values)) for name, values in logits.items()},
        "steps": {name: over_seeds(np.array(values)) for name, values in steps.items()},
        "claims": found[threshold],
        "notes": notes(curves, logits, found) if learnt else [withheld],
        "by_threshold": {
            f"{value:g}": {
                "hgr": {
                    name: {region: _plain(one[:, i, :LAYERS].mean(0)) for i, region in enumerate(REGIONS)}
                    for name, one in by_threshold[value].items()
                },
                "reproduced": [claim["reproduced"] for claim in verdicts],
            }
            for value, verdicts in found.items()
        },
    }


def claims(curves: Curves, rate: float) -> list[dict]:
    """The paper's claims: each with its text, the condition, the measured values per seed, in how many seeds it holds.

    "reproduced" is true where the condition holds in every seed. Conditions are such that maps without any high
    gradient, or with nothing else, meet none of them.
    """
    trained, mark = curves["trained"], curves["trained"][:, NON_DISCRIMINATIVE]
    rest, found = trained[:, IRRELEVANT, 2], {name: fall(values) for name, values in curves.items()}
    least = np.minimum.reduce([found[name] for name in SATURATING])
    most = np.maximum(found["relu"], found["none"])
    at_rate = f"at this rate (--toy_rib_lr {rate:g})"
    return [
        _claim(
            "irrelevant regions vanish by G_3",
            f"HGR of irrelevant at G_3 <= {NEAR_ZERO} < that of non-discriminative",
            {
                "irrelevant": rest,
                "non-discriminative": mark[:, 2],
                "before training": curves["untrained"][:, IRRELEVANT, 2],
            },
            (rest <= NEAR_ZERO) & (mark[:, 2] > NEAR_ZERO),
        ),
        _claim(
            "non-discriminative regions stay high through G_5",
            f"HGR of non-discriminative at G_5 >= {HIGH}, of irrelevant <= {NEAR_ZERO}",
            {"non-discriminative": mark[:, G_5], "irrelevant": trained[:, IRRELEVANT, G_5]},
            (mark[:, G_5] >= HIGH) & (trained[:, IRRELEVANT, G_5] <= NEAR_ZERO),
        ),
        _claim(
            "non-discriminative regions collapse at G_6 (published: to about 0.1)",
            f"HGR of non-discriminative at G_6 <= {COLLAPSED}, at least {LEAST_FALL} below G_5",
            {"G_5": mark[:, G_5], "G_6": mark[:, G_6]},
            (mark[:, G_6] <= COLLAPSED) & (found["trained"] >= LEAST_FALL),
        ),
        _claim(
            f"their fall at G_6 is far larger with the sigmoid than after fine-tuning without it {at_rate}",
            f"fall of the trained network >= {LEAST_FALL} and >= {FAR_MORE} x fall after fine-tuning without",
            {"with the sigmoid": found["trained"], "fine-tuned without": found["none"]},
            found["trained"] >= np.maximum(LEAST_FALL, FAR_MORE * found["none"]),
        ),
        _claim(
            f"fine-tuned {at_rate}, activations that saturate on both sides keep the fall, ReLU and none do not",
            f"least fall of {', '.join(SATURATING)} >= {LEAST_FALL} and >= {FAR_MORE} x largest fall of relu, none",
            {"least, saturating": least, "largest, others": most},
            least >= np.maximum(LEAST_FALL, FAR_MORE * most),
        ),
    ]


def notes(curves: Curves, logits: Mapping[str, Sequence[float]], found: Mapping[float, list[dict]]) -> list[str]:
    """What must be known beside the verdicts, each in a sentence, as far as it was measured.

    found: the claims by threshold.
    """
    out = []
    before = curves["untrained"][:, IRRELEVANT, 2]
    if (before <= NEAR_ZERO).any():
        out.append(
            "claim 1 says little of learning: before training, HGR of irrelevant at G_3 is "
            f"{', '.join(f'{value:.2f}' for value in before)}, for without bias no layer has a gradient amid black"
        )
    if np.array_equal(curves["relu"], curves["none"]):
        out.append("ReLU equals none, one measurement and not two: while the logit is positive, it is no activation")
    size = {name: fall(values).mean() for name, values in curves.items()}
    grown = {name: np.mean(values) for name, values in logits.items()}
    text = (
        f"claims 4 and 5 are of a rate: the logit of {grown['trained']:.1f} becomes "
        f"{', '.join(f'{grown[name]:.1f} with {name}' for name in SATURATING)}, {grown['none']:.0f} with none; with "
        f"none at a tenth of the rate {grown[CONTROL]:.1f}, and the fall is {size[CONTROL]:.2f}"
    )
    if size[CONTROL] >= LEAST_FALL > size["none"]:
        text += ": it goes with the logit's growth, which saturation prevents, more than with the activation"
    out.append(text)
    both = [value for value, one in found.items() if all(one[i]["reproduced"] for i in (HIGH_AT_G_5, COLLAPSED_AT_G_6))]
    where = "threshold" if both else "none of the thresholds"
    shown = ", ".join(f"{value:g}" for value in both or found)
    out.append(f"claims 2 (high at G_5) and 3 (collapsed at G_6) hold together at {where} {shown}")
    return out


def text(values: dict) -> str:
    """Tables, verdicts and notes of what `summarise` returned, for a terminal."""
    return "\n\n".join(part for part in (_table(values), _threshold_table(values), _verdicts(values)) if part)


def over_seeds(values: np.ndarray) -> dict:
    """Mean and standard deviation of [seeds, ...] over the seeds, and the values themselves."""
    return {"mean": _plain(values.mean(0)), "std": _plain(values.std(0)), "seeds": _plain(values)}


def title_of(name: str) -> str:
    """A network in words: as trained, or by the activation of its fine-tuning."""
    return TITLES.get(name, f"fine-tuned: {name}")


def _table(values: dict) -> str:
    """HGR of the non-discriminative region around the last layer, per activation, mean and deviation over the seeds."""
    seeds = len(values["fall"]["trained"]["seeds"])
    lines = [
        f"toy experiment, {MARKS} region, threshold {values['threshold']:g}, {seeds} seed{'s'[: seeds > 1]}",
        f"{'final activation':<38}{'logit after':>12}{'HGR G_5':>9}{'HGR G_6':>9}{'fall G_5 - G_6':>18}{'of G_5':>8}"
        f"{'G_6, both logits':>18}",
    ]
    for name, size in values["fall"].items():
        mark = values["hgr"][name][MARKS]["mean"]
        logit, whole = (values[key][name]["mean"] for key in ("logit", "whole_output"))
        lines.append(
            f"{title_of(name):<38}{logit:12.1f}{mark[G_5]:9.3f}{mark[G_6]:9.3f}"
            f"{size['mean']:9.3f} +- {size['std']:.3f}{size['relative']:8.0%}{whole:18.3f}"
        )
    return "\n".join(lines)


def _threshold_table(values: dict) -> str:
    """How HGR and the claims depend on the threshold."""
    lines = [f"{'HGR by threshold':<18}{'trained G_5':>12}{'G_6':>8}{'none G_5':>12}{'G_6':>8}   claims that hold"]
    for threshold, one in values["by_threshold"].items():
        cells = [one["hgr"][name][MARKS][k] for name in ("trained", "none") for k in (G_5, G_6)]
        numbers = "".join(f"{value:{width}.3f}" for value, width in zip(cells, (12, 8, 12, 8), strict=True))
        lines.append(f"{threshold:<18}{numbers}   {holding(one['reproduced'])}")
    return "\n".join(lines)


def holding(reproduced: Sequence[bool]) -> str:
    """The numbers, from 1, of the claims that hold; a dash where there are no verdicts."""
    return " ".join(str(i) for i, holds in enumerate(reproduced, 1) if holds) or ("none" if reproduced else "-")


def _verdicts(values: dict) -> str:
    """The claims in plain words with the numbers they rest on, then the notes."""
    lines = []
    for i, claim in enumerate(values["claims"], 1):
        verdict = "reproduced" if claim["reproduced"] else "NOT REPRODUCED"
        numbers = "; ".join(
            f"{name} {', '.join(f'{value:.2f}' for value in measured)}" for name, measured in claim["measured"].items()
        )
        lines.append(f"{i} {verdict}: {claim['claim']}\n    {claim['condition']}: {numbers} ({claim['holds_in']})")
    return "\n".join([*lines, *(f"note: {note}" for note in values["notes"])])


def _claim(text: str, condition: str, measured: dict[str, np.ndarray], holds: np.ndarray) -> dict:
    return {
        "claim": text,
        "condition": condition,
        "measured": {name: _plain(values) for name, values in measured.items()},
        "holds_in": f"{int(holds.sum())} of {len(holds)} seeds",
        "reproduced": bool(holds.all()),
    }


def _relative(values: np.ndarray) -> float:
    """The fall as a share of HGR at G_5, mean over the seeds; 0 where there was nothing to fall."""
    before = values[:, NON_DISCRIMINATIVE, G_5]
    return _plain(np.divide(fall(values), before, out=np.zeros_like(before), where=before > 0).mean())


def _plain(values: np.ndarray) -> float | list:
    return np.round(values, 6).tolist()
