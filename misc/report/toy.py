"""What the toy experiment says in numbers: HGR per activation, and the paper's claims held against it."""

from collections.abc import Mapping, Sequence

import numpy as np

from data.digits import REGIONS
from misc.hgr import CONTROL, G_5, G_6, NON_DISCRIMINATIVE, SATURATING, WHOLE_G_6, fall
from misc.report.tables import Table
from net.toy import LAYERS

NEAR_ZERO = 0.1  # HGR below which a region has all but vanished
HIGH = 0.75  # HGR above which a region is mostly there
COLLAPSED = 0.2  # the paper's curve ends at about 0.1
LEAST_FALL = 0.2  # less is none
FAR_MORE = 2  # a fall this many times as large as another
ACCURATE = 0.9  # accuracy below which a network has not learnt what the claims are about
IRRELEVANT, MARKS = REGIONS.index("irrelevant"), "non-discriminative"
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
    """For metrics.json; see docs/metrics.md. All but `by_threshold` is for `threshold`, which is one of its keys.

    logits: median logit of the test images, of every seed; steps: their mean number of fine-tuning steps; accuracy: of
    every seed's network as trained; rate: learning rate of the fine-tuning.
    """
    curves, learnt = by_threshold[threshold], min(accuracy) >= ACCURATE
    verdicts = {value: claims(one, rate) if learnt else [] for value, one in sorted(by_threshold.items())}
    withheld = f"no verdict: {min(accuracy):.0%} of a network's test images are right, wanted {ACCURATE:.0%}; "
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
        "claims": verdicts[threshold],
        "notes": _notes(curves, logits) if learnt else [f"{withheld}raise --toy_train or --toy_epochs"],
        "by_threshold": {
            f"{value:g}": {
                "hgr": {
                    name: {region: _plain(one[:, i, :LAYERS].mean(0)) for i, region in enumerate(REGIONS)}
                    for name, one in by_threshold[value].items()
                },
                "reproduced": [claim["reproduced"] for claim in verdicts[value]],
            }
            for value in verdicts
        },
    }


def claims(curves: Curves, rate: float) -> list[dict]:
    """The paper's claims: each with its text, the condition, the measured values per seed, in how many seeds it holds.

    "reproduced" is true where the condition holds in every seed. Conditions are such that maps without any high
    gradient, or with nothing else, meet none of them.
    """
    rest, mark = curves["trained"][:, IRRELEVANT], curves["trained"][:, NON_DISCRIMINATIVE]
    falls = {name: fall(values) for name, values in curves.items()}
    least = np.minimum.reduce([falls[name] for name in SATURATING])
    most = np.maximum(falls["relu"], falls["none"])
    before, trained, free = curves["untrained"][:, IRRELEVANT, 2], falls["trained"], falls["none"]
    at_rate = f"at this rate (--toy_rib_lr {rate:g})"
    listed = [
        (
            "irrelevant regions vanish by G_3",
            f"HGR of irrelevant at G_3 <= {NEAR_ZERO} < that of non-discriminative",
            {"irrelevant": rest[:, 2], "non-discriminative": mark[:, 2], "before training": before},
            (rest[:, 2] <= NEAR_ZERO) & (mark[:, 2] > NEAR_ZERO),
        ),
        (
            "non-discriminative regions stay high through G_5",
            f"HGR of non-discriminative at G_5 >= {HIGH}, of irrelevant <= {NEAR_ZERO}",
            {"non-discriminative": mark[:, G_5], "irrelevant": rest[:, G_5]},
            (mark[:, G_5] >= HIGH) & (rest[:, G_5] <= NEAR_ZERO),
        ),
        (
            "non-discriminative regions collapse at G_6 (published: to about 0.1)",
            f"HGR of non-discriminative at G_6 <= {COLLAPSED}, at least {LEAST_FALL} below G_5",
            {"G_5": mark[:, G_5], "G_6": mark[:, G_6]},
            (mark[:, G_6] <= COLLAPSED) & (trained >= LEAST_FALL),
        ),
        (
            f"their fall at G_6 is far larger with the sigmoid than after fine-tuning without it {at_rate}",
            f"fall of the trained network >= {LEAST_FALL} and >= {FAR_MORE} x fall after fine-tuning without",
            {"with the sigmoid": trained, "fine-tuned without": free},
            trained >= np.maximum(LEAST_FALL, FAR_MORE * free),
        ),
        (
            f"fine-tuned {at_rate}, activations that saturate on both sides keep the fall, ReLU and none do not",
            f"least fall of {', '.join(SATURATING)} >= {LEAST_FALL} and >= {FAR_MORE} x largest fall of relu, none",
            {"least, saturating": least, "largest, others": most},
            least >= np.maximum(LEAST_FALL, FAR_MORE * most),
        ),
    ]
    return [
        {
            "claim": claim,
            "condition": condition,
            "measured": {name: _plain(values) for name, values in measured.items()},
            "holds_in": f"{int(holds.sum())} of {len(holds)} seeds",
            "reproduced": bool(holds.all()),
        }
        for claim, condition, measured, holds in listed
    ]


def _notes(curves: Curves, logits: Mapping[str, Sequence[float]]) -> list[str]:
    """What limits the verdicts, each in a sentence, as far as it was measured."""
    out = []
    before = curves["untrained"][:, IRRELEVANT, 2]
    if (before <= NEAR_ZERO).any():
        values = ", ".join(f"{value:.2f}" for value in before)
        out.append(f"claim 1 says little of learning: before training, HGR of irrelevant at G_3 is {values}")
    if np.array_equal(curves["relu"], curves["none"]):
        out.append("ReLU equals none: while the logit is positive, ReLU is no activation")
    size = {name: fall(values).mean() for name, values in curves.items()}
    logit = {name: np.mean(values) for name, values in logits.items()}
    text = (
        f"claims 4 and 5 are of a rate: the logit of {logit['trained']:.1f} becomes {logit['none']:.0f} with none, "
        f"and at a tenth of the rate {logit[CONTROL]:.1f}, and the fall is {size[CONTROL]:.2f}"
    )
    if size[CONTROL] >= LEAST_FALL > size["none"]:
        text += ": it goes with the logit's growth, which saturation prevents, more than with the activation"
    return [*out, text]


def tables(values: dict) -> list[Table]:
    """HGR of the non-discriminative region per activation, and the claims. values: of `summarise`."""
    rows = []
    for name, size in values["fall"].items():
        g_5, g_6 = values["hgr"][name][MARKS]["mean"][-2:]
        logit, whole = (values[key][name]["mean"] for key in ("logit", "whole_output"))
        shown = (f"{value:.3f}" for value in (g_5, g_6, size["mean"], size["std"]))
        title = TITLES.get(name, f"fine-tuned: {name}")
        rows.append([title, f"{logit:.1f}", *shown, f"{size['relative']:.0%}", f"{whole:.3f}"])
    seeds = len(values["fall"]["trained"]["seeds"])
    head = ("final activation", "logit", "G_5", "G_6", "fall", "+-", "of G_5", "G_6, both logits")
    title = f"HGR of the {MARKS} region, threshold {values['threshold']:g}, {seeds} seed{'s'[: seeds > 1]}"
    notes = [f"Note: {note}." for note in values["notes"]]
    if values["claims"]:
        holding = {
            threshold: " ".join(str(i) for i, holds in enumerate(one["reproduced"], 1) if holds) or "none"
            for threshold, one in values["by_threshold"].items()
        }
        notes.append(f"Claims that hold by threshold: {'; '.join(f'{t}: {which}' for t, which in holding.items())}.")
    out, rows = [Table(title, head, rows, notes)], []
    for i, claim in enumerate(values["claims"], 1):
        measured = [f"{name} {', '.join(f'{v:.2f}' for v in per_seed)}" for name, per_seed in claim["measured"].items()]
        verdict = "reproduced" if claim["reproduced"] else "NOT REPRODUCED"
        rows.append([f"{i} {verdict}", claim["claim"], claim["condition"], "; ".join(measured), claim["holds_in"]])
    if rows:
        out.append(Table("The paper's claims", ("", "claim", "condition", "measured, per seed", "holds in"), rows))
    return out


def text(values: dict) -> str:
    """The tables for a terminal; a claim takes two lines."""
    table, *verdicts = tables(values)
    lines = [table.text(), ""]
    for verdict, claim, condition, measured, holds_in in (row for part in verdicts for row in part.rows):
        lines.append(f"{verdict}: {claim}\n    {condition}: {measured} ({holds_in})")
    return "\n".join(lines).rstrip()


def over_seeds(values: np.ndarray) -> dict:
    """Mean and standard deviation of [seeds, ...] over the seeds, and the values themselves."""
    return {"mean": _plain(values.mean(0)), "std": _plain(values.std(0)), "seeds": _plain(values)}


def _relative(values: np.ndarray) -> float:
    """The fall as a fraction of HGR at G_5, mean over the seeds; 0 where there was nothing to fall."""
    before = values[:, NON_DISCRIMINATIVE, G_5]
    return _plain(np.divide(fall(values), before, out=np.zeros_like(before), where=before > 0).mean())


def _plain(values: np.ndarray) -> float | list:
    return np.round(values, 6).tolist()
