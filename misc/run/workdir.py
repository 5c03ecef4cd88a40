"""What lies under `--work_dir`, who makes it, and what it was made from."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.errors import UserError
from data.files import sweep
from misc.run import made_by
from misc.torchutils import on_first_rank
from net.weights import find_doubled


class Place(NamedTuple):
    """A folder or file of results: where it is by default, below `--work_dir`, and what its content depends on.

    arguments: names or patterns, besides ALWAYS. lists: purposes of the image lists that every result depends on.
    inputs: arguments that name weights files or folders of results; "seeds" is the folder that `--seeds` points at.
    labels: whether it depends on the image-level labels. scored_by: the entry in metrics.json that tells of it, of a
    step, or STEP.KEY within that. seg_labels: the word of `--seg_labels` that it belongs to.
    What makes no difference (device, workers, ranks, backends that compute the same) has no business here.
    """

    path: str
    step: str
    arguments: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    labels: bool = False
    scored_by: str | None = None
    seg_labels: str | None = None


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
        "ir_label", "cam_to_ir_label", ("seeds", "conf_*"), (), ("seeds",), scored_by="eval_sem_seg.ir_label"
    ),
    "sem_seg_out_dir": Place(
        "sem_seg", "make_sem_seg", (*WALK, "cam_power", "sem_seg_bg_thres"), (), ("seeds", "irn_weights_name"),
        scored_by="eval_sem_seg",
    ),
    "edge_out_dir": Place("edge", "make_sem_seg"),  # written with the masks and never read by a step
    "sem_seg_cam_out_dir": Place(
        "sem_seg_cam", "train_seg", (*WALK, "cam_power", "sem_seg_bg_thres"), (), ("cam_out_dir", "irn_weights_name"),
        seg_labels="cam",
    ),
    "ins_seg_out_dir": Place(
        "ins_seg", "make_ins_seg", (*WALK, "ins_seg_*"), (), ("seeds", "irn_weights_name"), scored_by="eval_ins_seg"
    ),
    "seg_weights_name": Place(
        "sess/deeplabv2.pth", "train_seg", SEG_TRAINING, ("infer",), ("sem_seg_out_dir", "seg_init"),
        seg_labels="pseudo",
    ),
    "seg_cam_weights_name": Place(
        "sess/deeplabv2_cam.pth", "train_seg", SEG_TRAINING, ("infer",), ("sem_seg_cam_out_dir", "seg_init"),
        seg_labels="cam",
    ),
    "seg_truth_weights_name": Place(
        "sess/deeplabv2_truth.pth", "train_seg", SEG_TRAINING, ("infer",), ("seg_init",), seg_labels="truth"
    ),
    "seg_out_dir": Place(
        "seg", "eval_seg", SEG_TEST, (), ("seg_weights_name",), seg_labels="pseudo"
    ),
    "seg_cam_out_dir": Place(
        "seg_cam", "eval_seg", SEG_TEST, (), ("seg_cam_weights_name",), seg_labels="cam"
    ),
    "seg_truth_out_dir": Place(
        "seg_truth", "eval_seg", SEG_TEST, (), ("seg_truth_weights_name",), seg_labels="truth"
    ),
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


def sweep_temporaries(args: argparse.Namespace) -> int:
    """Removes the temporary files of runs that were killed; how many. The lock of `--work_dir` must be held."""
    return sweep(args.work_dir)


def record_path(args: argparse.Namespace, argument: str) -> Path:
    """Where the record of a place lies: in its folder, or beside its weights file."""
    path = place(args, argument)
    return path / made_by.NAME if argument.endswith("_out_dir") else beside(path, made_by.NAME)


def beside(weights: Path, suffix: str) -> Path:
    """The file that goes with a weights file: x.pth has x`suffix`, and x.1, which is no x.2, has x.1`suffix`."""
    return weights.with_name(weights.name.removesuffix(".pth") + suffix)
