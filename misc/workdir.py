"""What lies under `--work_dir`, who makes it, and what it was made from."""

import argparse
import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from data.base import Dataset
from misc import made_by
from misc.errors import UserError
from misc.files import find_doubled, load_json, look_anew, save_json, sweep
from misc.torchutils import gather, on_first_rank, rank, shard

SCHEMA = 1  # of metrics.json and per_image.json, see docs/METRICS.md; raised when a key changes its meaning or goes


class Place(NamedTuple):
    """A folder or file of results: where it is by default, below `--work_dir`, and what its content depends on.

    arguments: names or patterns, besides ALWAYS. lists: purposes of the image lists that every result depends on.
    inputs: arguments that name weights files or folders of results; "seeds" is the folder that `--seeds` points at.
    labels: whether it depends on the image-level labels. scored_by: the step whose entry in metrics.json tells of it.
    What makes no difference (device, workers, ranks, backends that compute the same) has no business here.
    """

    path: str
    step: str
    arguments: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    labels: bool = False
    scored_by: str | None = None


WORK = ("seconds", "images", "of", "RIB_steps", "waiting_share")  # of metrics.json: they tell of making the images
SHARED_S = 3600.0  # other runs may be writing into a folder outside --work_dir: no file takes them this long
ALWAYS = ("seed",)
NETWORK = ("cam_network", "precision")
SCHEDULE = ("crop_size", "batch_size", "num_epoches", "learning_rate", "weight_decay")
WALK = (*NETWORK, "irn_infer_pad", "walk_radius", "beta", "exp_times")
RIB = ("RIB_*", "pooling", "score_th", "stop_th", "explode_*")
SEG_NETWORK = ("seg_model", "seg_msc_scales", "seg_aspp_rates", "precision")
SEG_TRAINING = (
    *SEG_NETWORK, "seg_loss", "seg_crop_size", "seg_scales", "seg_batch_size", "seg_accumulate", "seg_iter", "seg_lr",
    "seg_momentum", "seg_weight_decay", "seg_checkpoint_every",
)  # fmt: skip
SEG_TEST = (*SEG_NETWORK, "seg_test_scales", "seg_test_mirror", "seg_crf", "seg_crf_iter")

# argument of a folder or file -> what it is
PLACES = {
    "cam_weights_name": Place(
        "sess/res50_cam.pth", "train_cam",
        (*NETWORK, *(f"cam_{name}" for name in SCHEDULE), "cam_optimizer", "cam_resize_long"),
        ("train",), ("cam_init",), labels=True,
    ),
    "irn_weights_name": Place(
        "sess/res50_irn.pth", "train_irn",
        (*NETWORK, *(f"irn_{name}" for name in SCHEDULE), "irn_rescale", "irn_radius", "irn_displacement_lr"),
        ("infer",), ("ir_label_out_dir", "irn_backbone"),
    ),
    "cam_out_dir": Place(
        "cam", "make_cam", (*NETWORK, "cam_scales"), (), ("cam_weights_name",), labels=True, scored_by="eval_cam"
    ),
    "cam_rib_out_dir": Place(
        "cam_rib", "make_rib_cam", (*NETWORK, "cam_scales", *RIB), ("train",), ("cam_weights_name",),
        labels=True, scored_by="eval_rib_cam",
    ),
    "ir_label_out_dir": Place(
        "ir_label", "cam_to_ir_label", ("seeds", "conf_*"), (), ("seeds",), scored_by="eval_sem_seg"
    ),
    "sem_seg_out_dir": Place(
        "sem_seg", "make_sem_seg", (*WALK, "cam_power", "sem_seg_bg_thres"), (), ("seeds", "irn_weights_name"),
        scored_by="eval_sem_seg",
    ),
    "edge_out_dir": Place("edge", "make_sem_seg"),  # written with the masks and never read by a step
    "sem_seg_cam_out_dir": Place(
        "sem_seg_cam", "train_seg", (*WALK, "cam_power", "sem_seg_bg_thres"), (), ("cam_out_dir", "irn_weights_name")
    ),
    "ins_seg_out_dir": Place(
        "ins_seg", "make_ins_seg", (*WALK, "ins_seg_*"), (), ("seeds", "irn_weights_name"), scored_by="eval_ins_seg"
    ),
    "seg_weights_name": Place(
        "sess/deeplabv2.pth", "train_seg", SEG_TRAINING, ("infer",), ("sem_seg_out_dir", "seg_init")
    ),
    "seg_cam_weights_name": Place(
        "sess/deeplabv2_cam.pth", "train_seg", SEG_TRAINING, ("infer",), ("sem_seg_cam_out_dir", "seg_init")
    ),
    "seg_truth_weights_name": Place(
        "sess/deeplabv2_truth.pth", "train_seg", SEG_TRAINING, ("infer",), ("seg_init",)
    ),
    "seg_out_dir": Place("seg", "eval_seg", SEG_TEST, (), ("seg_weights_name",)),
    "seg_cam_out_dir": Place("seg_cam", "eval_seg", SEG_TEST, (), ("seg_cam_weights_name",)),
    "seg_truth_out_dir": Place("seg_truth", "eval_seg", SEG_TEST, (), ("seg_truth_weights_name",)),
}  # fmt: skip


def place(args: argparse.Namespace, argument: str) -> Path:
    """The path that an argument of PLACES names, by default below `--work_dir`."""
    value = getattr(args, argument)
    return Path(value) if value else Path(args.work_dir) / PLACES[argument].path


def seeds_argument(args: argparse.Namespace) -> str:
    """Which folder argument `--seeds` points the steps after the seeds at."""
    return {"cam": "cam_out_dir", "cam_rib": "cam_rib_out_dir"}[args.seeds]


def result_file(args: argparse.Namespace, argument: str, name: str, suffix: str) -> Path:
    """The result file of an image."""
    return place(args, argument) / f"{name}{suffix}"


def require(args: argparse.Namespace, argument: str, names: Sequence[str] | None = None, suffix: str = ".npy") -> None:
    """UserError if a file that an earlier step makes is not there, saying which step makes it.

    names: the images whose result files are needed; without, the argument names a single file. All ranks must call it.
    """
    on_first_rank(lambda: _require(args, argument, names, suffix))
    path = place(args, argument)
    look_anew(path.parent if names is None else path)  # other ranks have just written there


def _require(args: argparse.Namespace, argument: str, names: Sequence[str] | None, suffix: str) -> None:
    step = PLACES[argument].step
    if names is None:
        if find_doubled(place(args, argument)) is None:
            raise UserError(f"{place(args, argument)} is missing; step {step} makes it: add --steps {step}")
        return
    folder = place(args, argument)
    missing = [name for name in names if not (folder / f"{name}{suffix}").is_file()]
    if missing:
        some = f"{len(missing)} of {len(names)} files are missing, {folder / missing[0]}{suffix} first"
        raise UserError(f"{some}; step {step} makes those of --infer_list: add --steps {step}, or choose another list")


def pending(args: argparse.Namespace, argument: str, names: Sequence[str], suffix: str) -> list[str]:
    """This rank's images whose result file is still to be made; with `--overwrite` all, and the old ones are removed.

    Also keeps the record of what makes them: UserError if what is there was made by something else.
    """
    missing = set(on_first_rank(lambda: _settle(args, argument, names, suffix)))
    return [name for name in shard(names) if name in missing]


def mark(args: argparse.Namespace, steps: Sequence[str]) -> None:
    """Notes on disk that `--overwrite` is to make the results of these steps anew; on rank 0.

    A run that is cut off before it has come to one of them goes on without `--overwrite`, and must not take its old
    results for new ones.
    """
    save_json(_marks_path(args), {"anew": sorted({*_marks(args), *_paths(args, steps)})})


def unmark(args: argparse.Namespace, steps: Sequence[str]) -> None:
    """Takes the note of `mark` back once the steps are done; on rank 0."""
    _keep_marks(args, set(_marks(args)) - set(_paths(args, steps)))


def marked(args: argparse.Namespace, argument: str) -> bool:
    """Whether what is in a place is to be made anew: by `--overwrite`, or by that of a run that was cut off."""
    return args.overwrite or str(place(args, argument).resolve()) in _marks(args)


def begun(args: argparse.Namespace, argument: str) -> None:
    """A place that was marked holds nothing old any more; on rank 0."""
    _keep_marks(args, set(_marks(args)) - {str(place(args, argument).resolve())})


def _paths(args: argparse.Namespace, steps: Sequence[str]) -> list[str]:
    return [str(place(args, argument).resolve()) for argument, entry in PLACES.items() if entry.step in steps]


def _marks(args: argparse.Namespace) -> list[str]:
    found = load_json(_marks_path(args)).get("anew", [])
    if not isinstance(found, list):
        raise UserError(f"{_marks_path(args)} is damaged; delete it and give the same command again with --overwrite")
    return found


def _keep_marks(args: argparse.Namespace, marks: set[str]) -> None:
    if marks != set(_marks(args)):
        save_json(_marks_path(args), {"anew": sorted(marks)})
    if not marks:
        _marks_path(args).unlink(missing_ok=True)


def _marks_path(args: argparse.Namespace) -> Path:
    return Path(args.work_dir) / ".overwrite.json"


def made(todo: Sequence[str], names: Sequence[str]) -> dict:
    """For metrics.json: the images that all ranks together made in this run, of how many."""
    return {"images": len(gather(list(todo))), "of": len(names)}


def record(args: argparse.Namespace, step: str, values: dict) -> None:
    """Stores what a step measured in metrics.json; of a step that went on where it stopped, both runs together.

    A run that found all images made keeps what tells of that work; what it measured on them (the ablations) is stored.
    """
    if rank() != 0:
        return
    stored = metrics(args)
    if step in stored and values["images"] < values.get("of", 0):
        try:
            if values["images"]:
                values = _added(stored[step], values)
            else:
                values = {**stored[step], **{key: value for key, value in values.items() if key not in WORK}}
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{_metrics_path(args)} is damaged at {step} ({error}); mend it, or move it away"
            ) from error
    save_json(_metrics_path(args), {"schema": SCHEMA, **stored, step: values})


def _added(before: dict, now: dict) -> dict:
    """Counts and seconds of two runs added up, counts by key too; of all else the newer value."""
    out = {**before, **now}
    for key in ("seconds", "images", "RIB_steps"):
        if key in before and key in now:
            old, new = before[key], now[key]
            if isinstance(old, dict):
                out[key] = {k: old.get(k, 0) + new.get(k, 0) for k in sorted({*old, *new}, key=int)}
            else:
                out[key] = round(old + new, 2)
    out["images"] = min(out["images"], out["of"])  # files that were deleted and made again count once
    return out


def metrics(args: argparse.Namespace) -> dict[str, dict]:
    """The content of metrics.json: of every step what it measured."""
    stored = load_json(_metrics_path(args))
    wrong = [step for step, values in stored.items() if step != "schema" and not isinstance(values, dict)]
    if wrong:
        raise UserError(f"{_metrics_path(args)} holds no mapping under {wrong[0]!r}; mend it, or move it away")
    return stored


def _metrics_path(args: argparse.Namespace) -> Path:
    return Path(args.work_dir) / "metrics.json"


def sweep_temporaries(args: argparse.Namespace) -> int:
    """Removes the temporary files of runs that were killed; how many. The lock of `--work_dir` must be held."""
    work_dir = Path(args.work_dir).resolve()
    paths = {argument: place(args, argument).resolve() for argument in PLACES}
    named = {path if argument.endswith("_out_dir") else path.parent for argument, path in paths.items()}
    outside = [folder for folder in named if not folder.is_relative_to(work_dir)]
    return sweep(work_dir) + sum(sweep(folder, SHARED_S) for folder in outside)


def what_makes(args: argparse.Namespace, argument: str) -> dict:
    """The record, as `misc.made_by` compares it, of what would make the content of a place of PLACES now."""
    from data import dataset_module, image_names, open_dataset

    entry, dataset = PLACES[argument], open_dataset(args)
    named = [
        name for name in vars(args)
        if any(fnmatchcase(name, pattern) for pattern in (*ALWAYS, *entry.arguments))
        and not name.endswith(("_out_dir", "_weights_name", "_pass"))
    ]  # fmt: skip
    values = {f"--{name}": getattr(args, name) for name in sorted(named)}
    for purpose in entry.lists:
        values[f"--{purpose}_list"] = made_by.of_names(image_names(args, dataset, purpose))
    if entry.labels:
        values["labels of --train_list"] = made_by.of_array(dataset.labels(dataset.names_of(args.train_list)))
    root = Path(args.data_root).resolve() if args.data_root else None
    data = {"--data_root": str(root) if root else None, **dataset.identity}
    module, file = dataset_module(args.dataset)
    return {
        "step": entry.step,
        "arguments": {**data, **values},
        "inputs": {f"--{name}": _input(args, name) for name in entry.inputs},
        "images": some_images(args, dataset, (*entry.lists, "infer")[0]),
        "code": made_by.of_code((f"step.{entry.step}", *module), file),
    }


def some_images(args: argparse.Namespace, dataset: Dataset, purpose: str) -> dict[str, str]:
    """name -> digest of the pixels, of three images of a list without its `--limit`; {} where one cannot be read.

    They tell data at another `--data_root` from other data; without a root there is nothing to tell.
    """
    if not args.data_root:
        return {}
    names = [name for name in dataset.names_of(getattr(args, f"{purpose}_list")) if name not in args.bad_images]
    chosen = [names[i] for i in sorted({0, len(names) // 2, len(names) - 1})] if names else []
    try:
        return {name: made_by.of_array(dataset.image(name)) for name in chosen}
    except (UserError, OSError):
        return {}


def record_path(args: argparse.Namespace, argument: str) -> Path:
    """Where the record of a place lies: in its folder, or beside its weights file."""
    path = place(args, argument)
    return path / made_by.NAME if argument.endswith("_out_dir") else beside(path, made_by.NAME)


def beside(weights: Path, suffix: str) -> Path:
    """The file that goes with a weights file: x.pth has x`suffix`, and x.1, which is no x.2, has x.1`suffix`."""
    return weights.with_name(weights.name.removesuffix(".pth") + suffix)


def check_weights(args: argparse.Namespace, argument: str) -> None:
    """UserError if the weights that are there were made with other arguments or inputs; other code is only told."""
    file, path = place(args, argument), record_path(args, argument)
    before = made_by.read(path)
    if before is None:
        logging.info("%s has no record of what made it: taken as it is", file)
        return
    found = made_by.differences(before, what_makes(args, argument))
    if getattr(args, argument) and any(found):
        logging.warning("%s was named and is taken as it is, though made otherwise: %s", file, found)
    elif found.values:
        raise _mixed(file, found, path, PLACES[argument].step)
    elif found.code:
        logging.warning("%s was made by other code and is kept: %s", file, found)


def _settle(args: argparse.Namespace, argument: str, names: Sequence[str], suffix: str) -> list[str]:
    """Compares what made the results of a folder with what would make the rest, and writes that down; on rank 0.

    Returns the images whose results are not there.
    """
    folder, path = place(args, argument), record_path(args, argument)
    there = [name for name in names if result_file(args, argument, name, suffix).is_file()]
    before, now, anew = made_by.read(path), what_makes(args, argument), marked(args, argument)
    same = made_by.Differences([], [])
    found = made_by.differences(before, now) if before else same
    if not there and not any(folder.rglob(f"*{suffix}")):
        _forget(args, argument)
        if any(found):
            before, found = None, same  # the record of a run that ended before its first result
    others = set()  # results of images outside this list, of which the new record would tell too
    if before is None or any(found):
        others = {file for file in folder.rglob(f"*{suffix}") if file.is_file()}
        others -= {result_file(args, argument, name, suffix) for name in there}
    if anew:
        if others and (before is None or any(found)):
            how = f"made with other settings ({found})" if before else "without a record of what made them"
            what = f"{folder} holds {len(others)} results besides those of this list, {how}"
            raise UserError(f"{what}; --overwrite would mix them: delete the folder, or choose another")
        # First: a run that is cut off must not take the old results for its own, nor their figures.
        _forget(args, argument)
        for name in there:
            result_file(args, argument, name, suffix).unlink()
        there = []
    elif before is None and (there or others):
        unknown = len(there) + len(others)
        logging.info("%d results in %s have no record of what made them: taken as they are", unknown, folder)
        now["taken_as_they_were"] = unknown
    elif found.values or (found.code and len(there) < len(names)):
        raise _mixed(folder, found, path, PLACES[argument].step)
    elif found.code:
        logging.warning("%s was made by other code and is kept: %s", folder, found)
    if len(there) < len(names) and (before is None or any(found)):
        save_json(path, now)
    if anew:
        begun(args, argument)
    whole = set(there)
    return [name for name in names if name not in whole]


def _forget(args: argparse.Namespace, argument: str) -> None:
    """Takes what metrics.json tells of results that are not there, or not for long, out of it."""
    entry, stored = PLACES[argument], metrics(args)
    kept = {step: values for step, values in stored.items() if step not in (entry.step, entry.scored_by)}
    if entry.step != "train_seg" and kept.keys() != stored.keys():  # train_seg's entry is of several networks
        save_json(_metrics_path(args), kept)


def _mixed(what: Path, found: made_by.Differences, record_file: Path, step: str) -> UserError:
    return UserError(
        f"{what} was made otherwise: {found}. Give the same again, add --overwrite to make it anew (from there on: "
        f"--steps {step}-report --overwrite), or choose another --work_dir; to take it as it is, delete {record_file}"
    )


def outdated(args: argparse.Namespace) -> list[str]:
    """The results that were made from inputs which have been replaced since, in words; for whoever shows them all."""
    found = []
    for argument, entry in PLACES.items():
        record_file = record_path(args, argument)
        try:
            before = made_by.read(record_file)
        except UserError:  # damaged
            continue
        for key, then in before["inputs"].items() if before else ():
            name = key.removeprefix("--")
            if name == "seeds":  # of either kind, whatever `--seeds` says today
                now = [_input(args, "cam_out_dir"), _input(args, "cam_rib_out_dir")]
            elif name in vars(args):
                now = [_input(args, name)]
            else:
                continue
            if then not in now and any(value != "missing" for value in now):
                found.append(f"{entry.path} was made from {_INPUT_WORDS.get(name, key)} that have been replaced since")
    return found


_INPUT_WORDS = {
    "seeds": "seeds", "cam_weights_name": "classifier weights", "irn_weights_name": "boundary network weights",
    "ir_label_out_dir": "CRF labels", "cam_out_dir": "plain CAMs", "sem_seg_out_dir": "pseudo masks",
}  # fmt: skip


def _input(args: argparse.Namespace, name: str) -> str:
    """What an input was when it was used: the digest of a file, or of the record of a folder; else the value itself."""
    if name in ("irn_backbone", "seg_init") and getattr(args, name) == "cam":
        name = "cam_weights_name"
    argument = seeds_argument(args) if name == "seeds" else name
    if argument not in PLACES:
        file = find_doubled(getattr(args, argument))
        return made_by.of_file(file) if file else getattr(args, argument)
    path = place(args, argument)
    if not argument.endswith("_out_dir"):
        file = find_doubled(path)
        return made_by.of_file(file) if file else "missing"
    before = made_by.read(record_path(args, argument))
    if before is None:
        inside = path.resolve().is_relative_to(Path(args.work_dir).resolve())
        where = path.resolve().relative_to(Path(args.work_dir).resolve()) if inside else path.resolve()
        return f"{where}, without record"
    return made_by.of_record(before)
