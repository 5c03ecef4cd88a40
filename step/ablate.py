"""The ablations: seed mIoU over RIB's steps, pooling, final activation, companions and learning rate."""

import argparse
import itertools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from data import scored_names
from data.base import Dataset, rng
from data.errors import UserError
from data.files import load_json, save_json, write_atomic
from data.progress import bar
from data.transforms import resize_maps
from misc import torchutils
from misc.metrics import ThresholdSweep, fixed_and_best, mean_iou, sweep_thresholds
from misc.report import plots
from misc.report.tables import ablation_tables
from misc.run.outputs import require
from misc.run.provenance import check_same, code_version, digest_of_array
from misc.run.recording import Recording, record
from misc.run.studies import STUDIES, Point, make_point, points_of

RESULTS = "results.json"


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes results.json, table.txt and a plot per study below `ablate/`, and prints the table.

    Every point runs RIB on the same images, the first `--ablate_limit` of a seeded order of those that are scored; what
    it counts is kept per point and image, so that nothing is computed twice.
    """
    require(args, "cam_weights_name")
    scored = scored_names(args, dataset)
    order = rng(args.seed, "ablate").permutation(len(scored))
    names = [scored[i] for i in order[: args.ablate_limit]]
    studies = {name: points_of(STUDIES[name], args, dataset) for name in STUDIES if name in args.ablate}
    points = {point.key: point for listed in studies.values() for point in listed}
    folder, device = Path(args.work_dir) / "ablate", torchutils.resolve_device(args.device)
    before = torchutils.on_first_rank(lambda: _before(args, folder, points, names))
    measured, made = {}, 0
    own_names = torchutils.shard(names)
    with bar(len(points) * len(own_names), "ablate") as progress:
        for i, point in enumerate(points.values()):
            into = folder / "points" / point.key
            counts, ends, computed = _measure(point, dataset, own_names, into, device, progress)
            made += computed
            curve = _curve(point.args, torchutils.all_reduce_sum(counts))
            ended_early, not_finite = torchutils.all_reduce_sum(ends).tolist()
            measured[point.key] = {"curve": curve, "ended_early": ended_early, "not_finite": not_finite}
            written = point.args.RIB_iter - 1
            progress.clear()
            logging.info(
                "point %d of %d, %s: mIoU %.1f at the best threshold, %.1f at the fixed; CAM %.1f, %.1f",
                i + 1, len(points), point.label,
                *(100 * curve[key][k] for k in (written, 0) for key in ("best", "fixed")),
            )  # fmt: skip
    made = sum(torchutils.gather([made]))
    own = make_point({}, args, dataset).key
    results = {name: _result(name, listed, own, measured, names) for name, listed in studies.items()}
    if torchutils.rank() == 0:
        results = _report(folder, dataset.name, own, results, before)
    return {"images": made, "of": len(points) * len(names), "points": len(points), "studies": _summary(results)}


def _before(args: argparse.Namespace, folder: Path, points: Iterable[str], names: Sequence[str]) -> dict:
    """What earlier runs measured. `--overwrite` removes the counts at once, so that a cut run resumes without it."""
    before = load_json(folder / RESULTS)
    if args.overwrite:
        for key, name in itertools.product(points, names):
            (folder / "points" / key / f"{name}.npz").unlink(missing_ok=True)
    elif before:
        check_same(folder, before, {"code": code_version()})
    return before


def _measure(
    point: Point, dataset: Dataset, names: Sequence[str], folder: Path, device: torch.device, progress
) -> tuple[np.ndarray, np.ndarray, int]:
    """The threshold counts of a point after every update, int64 [K + 1, C, C, T + 1], and how many images it took.

    Between the two int64 [2]: images that RIB ended before its last step, and those whose numbers overflowed.
    """
    args, n_steps = point.args, point.args.RIB_iter + 1
    if torchutils.rank() == 0:
        save_json(folder / "setting.json", point.setting)
    thresholds = _thresholds(args)
    stored = {name: _stored(folder / f"{name}.npz", dataset.mask(name)) for name in names}
    todo = [name for name in names if not stored[name]]
    progress.update(len(names) - len(todo))
    for recording in record(args, dataset, todo, device) if todo else ():
        name, counts = recording.name, _count(recording, dataset, thresholds, n_steps)
        early = len(recording.keys) > 0 and len(recording.sums) < args.RIB_iter and not recording.overflowed
        index = np.flatnonzero(counts)  # nearly all are 0
        stored[name] = {
            "index": index,
            "count": counts.flat[index],
            "end": np.array([early, recording.overflowed], np.int64),
            "truth": np.array(digest_of_array(dataset.mask(name))),
        }
        write_atomic(folder / f"{name}.npz", lambda file, arrays=stored[name]: np.savez(file, **arrays))
        progress.update()
    total = np.zeros((n_steps, *ThresholdSweep(thresholds, dataset.n_classes + 1).counts.shape), np.int64)
    for arrays in stored.values():
        total.reshape(-1)[arrays["index"]] += arrays["count"]
    return total, sum((arrays["end"] for arrays in stored.values()), np.zeros(2, np.int64)), len(todo)


def _count(recording: Recording, dataset: Dataset, thresholds: np.ndarray, steps: int) -> np.ndarray:
    keys, truth = recording.keys.cpu().numpy(), dataset.mask(recording.name)
    counts = []
    for k in range(steps):
        if k < len(recording.sums):
            sweep = ThresholdSweep(thresholds, dataset.n_classes + 1)
            sweep.add(keys, resize_maps(recording.maps(k)[1], *truth.shape), truth)
        counts.append(sweep.counts)  # an image that ended stays as it was
    return np.stack(counts)


def _stored(path: Path, truth: np.ndarray) -> dict[str, np.ndarray]:
    """What was counted of an image; {} where that is missing or was counted against another truth."""
    if not path.is_file():
        return {}
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
            return arrays if str(arrays["truth"]) == digest_of_array(truth) else {}
    except Exception as error:  # a damaged archive can raise anything
        raise UserError(f"{path} is damaged ({error}); delete it and run the command again") from error


def _curve(args: argparse.Namespace, counts: np.ndarray) -> dict[str, list[float]]:
    """mIoU after every update at the best threshold, that threshold, mIoU at the fixed one. counts: [K + 1, ...]."""
    thresholds = _thresholds(args)
    curve: dict[str, list[float]] = {"best": [], "best_threshold": [], "fixed": []}
    for of_step in counts:
        sweep = ThresholdSweep(thresholds, len(of_step))
        sweep.counts = of_step
        miou = np.array([mean_iou(confusion) for confusion in sweep.confusions()])
        fixed, best = fixed_and_best(miou, args.cam_eval_sweep, args.cam_eval_thres)
        curve["best"].append(float(miou[best]))
        curve["best_threshold"].append(float(thresholds[best]))
        curve["fixed"].append(float(miou[fixed]))
    return curve


def _thresholds(args: argparse.Namespace) -> np.ndarray:
    return sweep_thresholds(args.cam_eval_sweep, args.cam_eval_thres)[0]


def _result(name: str, points: Sequence[Point], own: str, measured: dict, names: Sequence[str]) -> dict:
    study = STUDIES[name]
    listed = []
    for point in points:
        entry = {"label": point.label, "own": point.key == own, "images": len(names)}
        written = point.args.RIB_iter - 1  # the published code adds up K maps, the plain one among them
        listed.append({**entry, "written": written, **measured[point.key], "setting": point.setting})
    return {
        "title": study.title,
        "argument": study.argument,
        "names": list(names),
        "sweep": _thresholds(points[0].args)[[0, -1]].tolist(),
        "points": listed,
    }


def _report(folder: Path, dataset: str, own: str, results: dict, before: dict) -> dict:
    """Writes results.json, table.txt and the plots; returns this run's studies and those of its setting from before."""
    together = {**(before.get("studies", {}) if before.get("own") == own else {}), **results}
    together = {name: together[name] for name in STUDIES if name in together}
    save_json(folder / RESULTS, {"own": own, "code": code_version(), "studies": together})
    for name, study in results.items():
        images = len(study["names"])
        title = f"{dataset}, {images} image{'s'[: images != 1]}: {study['title']}"
        plots.save(plots.ablation(study, title), folder / name)
    parts = [f"{dataset}, seed mIoU (%)", *(table.text() for table in ablation_tables(together))]
    text = "\n\n".join(parts)
    write_atomic(folder / "table.txt", lambda file: file.write(f"{text}\n".encode()))
    print(text)
    logging.info("ablate: table and plots in %s", folder)
    return together


def _summary(results: dict) -> dict:
    """For metrics.json: per study and point the mIoU that make_rib_cam would have; the curve itself for the steps."""
    short: dict = {}
    for name, study in results.items():
        for point in study["points"]:
            ends = {key: point[key] for key in ("ended_early", "not_finite")}
            if study["argument"] is None:
                short[name] = {**point["curve"], **ends}
            else:
                scores = {key: values[point["written"]] for key, values in point["curve"].items()}
                short.setdefault(name, {})[point["label"]] = {**scores, **ends}
    return short
