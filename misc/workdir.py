"""What lies under `--work_dir`, and who makes it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from misc.errors import UserError
from misc.files import find_doubled, load_json, save_json
from misc.torchutils import gather, rank, shard

SCHEMA = 1  # of metrics.json and per_image.json, see docs/METRICS.md; raised when a key changes its meaning or goes
# argument of a folder or file -> (default below --work_dir, step that makes it)
PLACES = {
    "cam_weights_name": ("sess/res50_cam.pth", "train_cam"),
    "irn_weights_name": ("sess/res50_irn.pth", "train_irn"),
    "seg_weights_name": ("sess/deeplabv2.pth", "train_seg"),
    "cam_out_dir": ("cam", "make_cam"),
    "cam_rib_out_dir": ("cam_rib", "make_rib_cam"),
    "ir_label_out_dir": ("ir_label", "cam_to_ir_label"),
    "sem_seg_out_dir": ("sem_seg", "make_sem_seg"),
    "sem_seg_cam_out_dir": ("sem_seg_cam", "train_seg"),
    "edge_out_dir": ("edge", "make_sem_seg"),
    "ins_seg_out_dir": ("ins_seg", "make_ins_seg"),
    "seg_out_dir": ("seg", "eval_seg"),
}


def place(args: argparse.Namespace, argument: str, variant: str = "") -> Path:
    """The path that an argument of PLACES names, by default below `--work_dir`; `variant` goes before its ending."""
    value = getattr(args, argument)
    path = Path(value) if value else Path(args.work_dir) / PLACES[argument][0]
    return path.with_stem(path.stem + variant) if variant else path


def seeds_argument(args: argparse.Namespace) -> str:
    """Which folder argument `--seeds` points the steps after the seeds at."""
    return {"cam": "cam_out_dir", "cam_rib": "cam_rib_out_dir"}[args.seeds]


def result_file(args: argparse.Namespace, argument: str, name: str, suffix: str) -> Path:
    """The result file of an image."""
    return place(args, argument) / f"{name}{suffix}"


def require(
    args: argparse.Namespace,
    argument: str,
    names: Sequence[str] | None = None,
    suffix: str = ".npy",
    variant: str = "",
) -> None:
    """UserError if a file that an earlier step makes is not there, saying which step makes it.

    names: the images whose result files are needed; without, the argument names a single file, or the
    variant of it.
    """
    step = PLACES[argument][1]
    if names is None:
        path = place(args, argument, variant)
        if find_doubled(path) is None:
            raise UserError(f"{path} is missing; step {step} makes it: add --steps {step}")
        return
    folder = place(args, argument)
    missing = [name for name in names if not (folder / f"{name}{suffix}").is_file()]
    if missing:
        some = f"{len(missing)} of {len(names)} files are missing, {folder / missing[0]}{suffix} first"
        raise UserError(f"{some}; step {step} makes those of --infer_list: add --steps {step}, or choose another list")


def pending(args: argparse.Namespace, argument: str, names: Sequence[str], suffix: str) -> list[str]:
    """This rank's images whose result file is still to be made (all of them with `--overwrite`)."""
    mine = shard(names)
    return mine if args.overwrite else [n for n in mine if not result_file(args, argument, n, suffix).is_file()]


def made(todo: Sequence[str], names: Sequence[str]) -> dict:
    """For metrics.json: the images that all ranks together made in this run, of how many."""
    return {"images": len(gather(list(todo))), "of": len(names)}


def record(args: argparse.Namespace, step: str, values: dict) -> None:
    """Stores what a step measured in metrics.json; of a step that went on where it stopped, both runs together."""
    if rank() != 0:
        return
    path = Path(args.work_dir) / "metrics.json"
    stored = load_json(path)
    if step in stored and values["images"] < values.get("of", 0):
        if not values["images"]:
            return
        values = _added(stored[step], values)
    save_json(path, {"schema": SCHEMA, **stored, step: values})


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


def metrics(args: argparse.Namespace) -> dict:
    """The content of metrics.json."""
    return load_json(Path(args.work_dir) / "metrics.json")
