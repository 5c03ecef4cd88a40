"""What lies where below `--work_dir`, what it was made from, what is still to do, and what was measured.

Beside its results every folder keeps `.made_by.json`, a weights file `NAME.made_by.json`: step, arguments that matter,
digests of the inputs, code version. Results of two settings are never mixed: a difference stops the run with one line.
"""

import argparse
import contextlib
import json
import logging
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from data import image_names
from data.base import Dataset
from data.errors import UserError
from data.files import load_json, save_json
from misc.run.provenance import check_same, code_version, digest, digest_of_array, digest_of_file, digest_of_names
from misc.torchutils import gather, on_first_rank, rank, shard
from net.weights import find_doubled


class Output(NamedTuple):
    """A folder or file of results: its default path below `--work_dir`, and what its content depends on.

    arguments: names or patterns, besides the seed. lists: purposes of the image lists that every result depends on.
    inputs: arguments that name weights files or folders of results; "seeds" is the folder that `--seeds` points at.
    labels: whether it depends on the image-level labels. scored_by: the step whose figures tell of it. seg_labels: the
    word of `--seg_labels` that it belongs to. What makes no difference (device, workers, ranks) is left out.
    """

    path: str
    step: str
    arguments: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    labels: bool = False
    scored_by: str | None = None
    seg_labels: str | None = None


NETWORK, CAM_FILES = ("cam_network", "precision"), ("cam_scales", "cam_dtype")
SCHEDULE = ("crop_size", "batch_size", "num_epoches", "learning_rate", "weight_decay")
WALK = (*NETWORK, "irn_infer_pad", "walk_radius", "beta", "exp_times")
MASK = (*WALK, "cam_power", "sem_seg_bg_thres")
RIB = ("RIB_*", "pooling", "score_th", "stop_th", "explode_*")
SEG_NETWORK = ("seg_model", "seg_msc_scales", "seg_aspp_rates", "precision")
SEG_TRAINING = (
    *SEG_NETWORK, "seg_loss", "seg_crop_size", "seg_scales", "seg_batch_size", "seg_accumulate", "seg_iter", "seg_lr",
    "seg_momentum", "seg_weight_decay", "seg_checkpoint_every",
)  # fmt: skip
NPY_FOLDERS = ("cam_out_dir", "cam_rib_out_dir", "ins_seg_out_dir")  # masks in the others
SEG_TEST = (*SEG_NETWORK, "seg_test_scales", "seg_test_mirror", "seg_crf", "seg_crf_iter")


class Segmentation(NamedTuple):
    """One network of `--seg_labels`: the end of its paths, and its arguments: masks (None: the truth), weights, out."""

    suffix: str
    masks: str | None
    weights: str
    out: str


SEG = {
    "pseudo": Segmentation("", "sem_seg_out_dir", "seg_weights_name", "seg_out_dir"),
    "cam": Segmentation("_cam", "sem_seg_cam_out_dir", "seg_cam_weights_name", "seg_cam_out_dir"),
    "truth": Segmentation("_truth", None, "seg_truth_weights_name", "seg_truth_out_dir"),
}

# argument of a folder or file -> what it is
OUTPUTS = {
    "cam_weights_name": Output(
        "sess/res50_cam.pth", "train_cam",
        (*NETWORK, *(f"cam_{name}" for name in (*SCHEDULE, "accumulate", "optimizer", "resize_long", "head_*"))),
        ("train",), ("cam_init",), labels=True,
    ),
    "irn_weights_name": Output(
        "sess/res50_irn.pth", "train_irn",
        (*NETWORK, *(f"irn_{name}" for name in SCHEDULE), "irn_rescale", "irn_radius", "irn_displacement_lr"),
        ("infer",), ("ir_label_out_dir", "irn_backbone"),
    ),
    "cam_out_dir": Output(
        "cam", "make_cam", (*NETWORK, *CAM_FILES), (), ("cam_weights_name",), labels=True, scored_by="eval_cam"
    ),
    "cam_rib_out_dir": Output(
        "cam_rib", "make_rib_cam", (*NETWORK, *CAM_FILES, *RIB), ("train",), ("cam_weights_name",),
        labels=True, scored_by="eval_rib_cam",
    ),
    "ir_label_out_dir": Output("ir_label", "cam_to_ir_label", ("seeds", "conf_*"), (), ("seeds",)),
    "sem_seg_out_dir": Output(
        "sem_seg", "make_sem_seg", MASK, (), ("seeds", "irn_weights_name"), scored_by="eval_sem_seg"
    ),
    "edge_out_dir": Output("edge", "make_sem_seg"),  # written with the masks and never read by a step
    "sem_seg_cam_out_dir": Output(
        "sem_seg_cam", "train_seg", MASK, (), ("cam_out_dir", "irn_weights_name"), seg_labels="cam"
    ),
    "ins_seg_out_dir": Output(
        "ins_seg", "make_ins_seg", (*WALK, "ins_seg_*"), (), ("seeds", "irn_weights_name"), scored_by="eval_ins_seg"
    ),
    **{
        seg.weights: Output(
            f"sess/deeplabv2{seg.suffix}.pth", "train_seg", SEG_TRAINING, ("infer",),
            (seg.masks, "seg_init") if seg.masks else ("seg_init",), seg_labels=labels,
        ) for labels, seg in SEG.items()
    },
    **{
        seg.out: Output(f"seg{seg.suffix}", "eval_seg", SEG_TEST, (), (seg.weights,), seg_labels=labels)
        for labels, seg in SEG.items()
    },
}  # fmt: skip


def path_of(args: argparse.Namespace, argument: str) -> Path:
    """The path that an argument of OUTPUTS names, by default below `--work_dir`."""
    value = getattr(args, argument)
    return Path(value) if value else Path(args.work_dir) / OUTPUTS[argument].path


def result_file(args: argparse.Namespace, argument: str, name: str, suffix: str) -> Path:
    """The result file of an image."""
    return path_of(args, argument) / f"{name}{suffix}"


def seeds_argument(args: argparse.Namespace) -> str:
    """The argument of the folder that `--seeds` points at."""
    return {"cam": "cam_out_dir", "cam_rib": "cam_rib_out_dir"}[args.seeds]


def record_file(args: argparse.Namespace, argument: str) -> Path:
    """Where the provenance of an output lies: in its folder, or beside its weights file."""
    path = path_of(args, argument)
    return path / ".made_by.json" if argument.endswith("_out_dir") else path.with_suffix(".made_by.json")


def missing_of(args: argparse.Namespace, argument: str, names: Sequence[str], suffix: str) -> list[str]:
    """The images whose result file is missing."""
    return [name for name in names if not result_file(args, argument, name, suffix).is_file()]


def require(args: argparse.Namespace, argument: str, names: Sequence[str] | None = None, suffix: str = ".npy") -> None:
    """UserError if a file that an earlier step makes is missing, naming that step. All ranks must call it.

    names: the images whose result files are needed; without, the argument names a single file.
    """
    step, path = OUTPUTS[argument].step, path_of(args, argument)

    def check() -> None:
        if names is None:
            if find_doubled(path) is None:
                raise UserError(f"{path} is missing; step {step} makes it: add --steps {step}")
        elif missing := missing_of(args, argument, names, suffix):
            raise UserError(
                f"{len(missing)} of {len(names)} files are missing, {path / missing[0]}{suffix} first; step {step} "
                f"makes those of --infer_list: add --steps {step}, or choose another list"
            )

    on_first_rank(check)


def provenance(args: argparse.Namespace, dataset: Dataset, argument: str) -> dict:
    """What would make the content of an output now."""
    entry = OUTPUTS[argument]
    named = [name for name in vars(args) if any(fnmatchcase(name, p) for p in ("seed", *entry.arguments))]
    named = [name for name in named if not name.endswith(("_out_dir", "_weights_name", "_pass"))]
    useless = {"RIB_pool_size": args.RIB_companions == "fresh", "cam_accumulate": args.cam_init != "scratch"}
    values = {f"--{name}": getattr(args, name) for name in sorted(named) if not useless.get(name)}
    for purpose in entry.lists:
        values[f"--{purpose}_list"] = digest_of_names(image_names(args, dataset, purpose))
    if entry.labels:
        with contextlib.suppress(UserError):  # CAMs of other images can be made without that list
            names = dataset.names_of(args.train_list)
            names = [name for name in names if name not in dataset.bad_images or dataset.has_label(name)]
            values["labels of --train_list"] = digest_of_array(dataset.labels(names))
    inputs = {f"--{name}": _input(args, name) for name in entry.inputs}
    record = {"step": entry.step, "arguments": {**dataset.identity, **values}, "inputs": inputs, "code": code_version()}
    return json.loads(json.dumps(record))  # tuples become lists, as in a file


def _input(args: argparse.Namespace, name: str) -> str | None:
    """What an input is now: the digest of a file, or of a folder's provenance; else the value itself."""
    if name in ("irn_backbone", "seg_init") and getattr(args, name) == "cam":
        name = "cam_weights_name"
    argument = seeds_argument(args) if name == "seeds" else name
    if argument.endswith("_out_dir"):
        record = load_json(record_file(args, argument))
        recorded = {key: record.get(key) for key in ("arguments", "inputs")}
        return digest(json.dumps(recorded, sort_keys=True).encode()) if record else "without provenance"
    value = path_of(args, argument) if argument in OUTPUTS else getattr(args, argument)
    file = find_doubled(str(value).removeprefix("head:"))
    return digest_of_file(file) if file else str(value)


def check_provenance(args: argparse.Namespace, argument: str, now: dict) -> bool:
    """Whether there is a record of what made an output. UserError if that differs; other code is only a warning."""
    before = load_json(record_file(args, argument))
    if before:
        check_same(path_of(args, argument), before, now, f" (--steps {OUTPUTS[argument].step}-report --overwrite)")
    return bool(before)


def pending(args: argparse.Namespace, dataset: Dataset, argument: str, names: Sequence[str], suffix: str) -> list[str]:
    """This rank's images whose result file is missing; UserError if the existing ones were made by something else."""

    def settle() -> list[str]:
        folder, now = path_of(args, argument), provenance(args, dataset, argument)
        missing = missing_of(args, argument, names, suffix)
        empty = len(missing) == len(names) and not any(folder.rglob(f"*{suffix}"))
        known = not empty and check_provenance(args, argument, now)
        if not empty and not known:
            logging.info("the results in %s have no provenance; they are used", folder)
        if missing and not known and load_json(record_file(args, argument)) != now:
            save_json(record_file(args, argument), now)
        if len(missing) < len(names):
            logging.info("%d of %d results exist in %s, skipping them", len(names) - len(missing), len(names), folder)
        return missing

    missing = set(on_first_rank(settle))
    return [name for name in shard(names) if name in missing]


def remove_results(args: argparse.Namespace, steps: Iterable[str]) -> None:
    """For `--overwrite`: removes the results of some steps and their figures; weights that the user named stay.

    UserError for a folder that the user named and this program has not filled. Each record goes after its results: what
    a kill leaves of them still does not fit other settings.
    """
    steps = set(steps)
    several = {entry.step for entry in OUTPUTS.values() if entry.seg_labels}  # they keep figures of other networks
    figures = {key: value for key, value in metrics(args).items() if key not in steps - several}
    for argument, entry in OUTPUTS.items():
        if entry.step not in steps or entry.seg_labels not in (None, *args.seg_labels):
            continue
        path, record, named = path_of(args, argument), record_file(args, argument), bool(getattr(args, argument))
        figures.pop(entry.scored_by, None)
        if argument.endswith("_out_dir"):
            folders = [path, Path(f"{path}_before_crf")] if entry.step == "eval_seg" else [path]
            kind = "*.npy" if argument in NPY_FOLDERS else "*.png"
            files = [file for folder in folders for file in folder.rglob(kind)]
            if named and files and entry.arguments and not record.is_file():
                raise UserError(
                    f"--{argument} {path} was not filled by this program: delete it yourself, or choose another"
                )
            files.append(record)
        else:
            files = [path.with_suffix(".checkpoint")]
            if not named:
                files += [path, path.with_name(f"{path.name}.pth"), record]
            elif find_doubled(path):
                logging.info("%s exists and was given with --%s, keeping it", path, argument)
        for file in files:
            file.unlink(missing_ok=True)
    save_json(Path(args.work_dir) / "metrics.json", figures)


def outdated(args: argparse.Namespace) -> list[str]:
    """The results that were made from inputs which have been replaced since, in words."""
    texts = []
    for argument, entry in OUTPUTS.items():
        if getattr(args, argument):  # the user's own file
            continue
        then = load_json(record_file(args, argument)).get("inputs", {})
        for name in entry.inputs:
            # Seeds of either kind, whatever `--seeds` says today.
            sources = ("cam_out_dir", "cam_rib_out_dir") if name == "seeds" else (name,)
            exist = all(source in OUTPUTS and path_of(args, source).exists() for source in sources)
            if exist and then.get(f"--{name}") not in (None, *(_input(args, source) for source in sources)):
                texts.append(f"{entry.path} was made from {OUTPUTS[sources[-1]].path} that has been replaced since")
    return texts


SCHEMA = 1  # of metrics.json and per_image.json, see docs/metrics.md; raised when a key changes its meaning or goes
WORK = ("seconds", "images", "of", "RIB_steps", "waiting_share")  # they tell of making the images


def made(todo: Sequence[str], names: Sequence[str]) -> dict:
    """For metrics.json: the images that all ranks together made in this run, of how many."""
    return {"images": len(gather(list(todo))), "of": len(names)}


def metrics(args: argparse.Namespace) -> dict[str, dict]:
    """The content of metrics.json: of every step what it measured."""
    return load_json(Path(args.work_dir) / "metrics.json")


def record(args: argparse.Namespace, step: str, values: dict) -> None:
    """Stores what a step measured; a run that found all images made keeps what tells of that work."""
    if rank() == 0:
        stored = metrics(args)
        if values["images"] == 0 and step in stored:
            values = {**stored[step], **{key: value for key, value in values.items() if key not in WORK}}
        save_json(Path(args.work_dir) / "metrics.json", {"schema": SCHEMA, **stored, step: values})
