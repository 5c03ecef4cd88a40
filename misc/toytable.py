"""What the toy experiment says in numbers: falls per activation, and the paper's claims held against them."""

import numpy as np

from data.digits import REGIONS
from misc.hgr import COMPARED, NON_DISCRIMINATIVE, SATURATING, fall

NEAR_ZERO = 0.1  # HGR below which a region has all but vanished
HIGH = 0.75  # HGR above which a region is mostly there
COLLAPSED = 0.2  # the paper's curve ends at about 0.1
FAR_MORE = 2  # a fall this many times as large as another


def summarise(curves: dict[str, np.ndarray]) -> dict:
    """For metrics.json: HGR (mean, standard deviation, every seed), falls per activation, claims.

    curves: HGR of the network as trained ("trained") and of its copies by activation, float [seeds, 3, 6].
    """
    ratios = {
        name: {
            region: {
                "mean": _plain(values[:, i].mean(0)),
                "std": _plain(values[:, i].std(0)),
                "seeds": [_plain(one) for one in values[:, i]],
            }
            for i, region in enumerate(REGIONS)
        }
        for name, values in curves.items()
    }
    return {"hgr": ratios, "fall": falls(curves), "claims": claims(curves)}


def falls(curves: dict[str, np.ndarray]) -> dict:
    """HGR G_5 - HGR G_6 of the non-discriminative region per activation: mean, deviation, every seed, share of G_5."""
    return {
        name: {
            "mean": float(fall(values).mean()),
            "std": float(fall(values).std()),
            "seeds": _plain(fall(values)),
            "relative": float(np.mean(_relative(values))),
        }
        for name, values in curves.items()
    }


def claims(curves: dict[str, np.ndarray]) -> list[dict]:
    """The paper's claims: each with its text, the condition, the measured values per seed, in how many seeds it holds.

    "reproduced" is true where the condition holds in every seed.
    """
    trained = curves["trained"]
    mark = trained[:, NON_DISCRIMINATIVE]
    found = {name: fall(values) for name, values in curves.items()}
    least = np.minimum.reduce([found[name] for name in SATURATING])
    most = np.maximum.reduce([found[name] for name in COMPARED if name not in SATURATING])
    return [
        _claim(
            "irrelevant regions vanish by G_3",
            f"HGR of irrelevant at G_3 <= {NEAR_ZERO}",
            {"G_3": trained[:, REGIONS.index("irrelevant"), 2]},
            trained[:, REGIONS.index("irrelevant"), 2] <= NEAR_ZERO,
        ),
        _claim(
            "non-discriminative regions stay high through G_5",
            f"HGR of non-discriminative at G_5 >= {HIGH}",
            {"G_5": mark[:, 4]},
            mark[:, 4] >= HIGH,
        ),
        _claim(
            "non-discriminative regions collapse at G_6 (published: to about 0.1)",
            f"HGR of non-discriminative at G_6 <= {COLLAPSED}",
            {"G_6": mark[:, 5]},
            mark[:, 5] <= COLLAPSED,
        ),
        _claim(
            "their fall at G_6 is far larger with the sigmoid than after fine-tuning without it",
            f"fall of the trained network >= {FAR_MORE} x |fall after fine-tuning without activation|",
            {"with the sigmoid": found["trained"], "fine-tuned without": found["none"]},
            found["trained"] >= FAR_MORE * np.abs(found["none"]),
        ),
        _claim(
            "activations that saturate on both sides keep the fall, ReLU and none do not",
            f"least fall of {', '.join(SATURATING)} >= {FAR_MORE} x |largest fall of relu, none|",
            {"least, saturating": least, "largest, others": most},
            least >= FAR_MORE * np.abs(most),
        ),
    ]


def table(curves: dict[str, np.ndarray], threshold: float) -> str:
    """HGR of the non-discriminative region around the last layer, per activation, mean and deviation over the seeds."""
    seeds = len(curves["trained"])
    lines = [
        f"toy experiment, non-discriminative region, threshold {threshold:g}, {seeds} seed{'s'[: seeds > 1]}",
        f"{'final activation':<28}{'HGR G_5':>9}{'HGR G_6':>9}{'fall G_5 - G_6':>20}{'of G_5':>8}",
    ]
    for name, values in curves.items():
        title = "sigmoid, as trained" if name == "trained" else f"fine-tuned: {name}"
        mark = values[:, NON_DISCRIMINATIVE].mean(0)
        size = f"{fall(values).mean():.3f} +- {fall(values).std():.3f}"
        lines.append(f"{title:<28}{mark[4]:9.3f}{mark[5]:9.3f}{size:>20}{np.mean(_relative(values)):8.0%}")
    return "\n".join(lines)


def threshold_table(by_threshold: dict[str, dict]) -> str:
    """How the fall depends on the threshold: one line each for the trained network and for fine-tuning without."""
    lines = [f"{'fall by threshold':<28}" + "".join(f"{threshold:>9}" for threshold in by_threshold)]
    for name, title in (("trained", "sigmoid, as trained"), ("none", "fine-tuned: none")):
        values = (one[name]["mean"] for one in by_threshold.values())
        lines.append(f"{title:<28}" + "".join(f"{value:9.3f}" for value in values))
    return "\n".join(lines)


def verdicts(found: list[dict]) -> str:
    """The claims in plain words, with the numbers they rest on."""
    lines = []
    for claim in found:
        verdict = "reproduced" if claim["reproduced"] else "NOT REPRODUCED"
        numbers = "; ".join(
            f"{name} {', '.join(f'{value:.2f}' for value in values)}" for name, values in claim["measured"].items()
        )
        lines.append(f"{verdict}: {claim['claim']}\n    {claim['condition']}: {numbers} (holds in {claim['holds_in']})")
    return "\n".join(lines)


def _claim(text: str, condition: str, measured: dict[str, np.ndarray], holds: np.ndarray) -> dict:
    return {
        "claim": text,
        "condition": condition,
        "measured": {name: _plain(values) for name, values in measured.items()},
        "holds_in": f"{int(holds.sum())} of {len(holds)} seeds",
        "reproduced": bool(holds.all()),
    }


def _relative(values: np.ndarray) -> np.ndarray:
    """The fall as a share of HGR at G_5, per seed; 0 where there was nothing to fall."""
    before = values[:, NON_DISCRIMINATIVE, 4]
    return np.divide(fall(values), before, out=np.zeros_like(before), where=before > 0)


def _plain(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
