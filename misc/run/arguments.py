"""The arguments: the parser, where each value comes from, and which values must fit each other."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from data import DATASETS, Choices, preset
from data.errors import UserError
from misc.run.argtypes import boolean, not_negative
from misc.run.steps import Step

DESCRIPTION = """\
RIB: weakly supervised semantic segmentation by reducing the information bottleneck.

  python run_sample.py                                   every step on the embedded dataset `shapes`
  python run_sample.py --dataset voc12 --data_root DIR   every step on PASCAL VOC 2012 (coco14 likewise)
  python run_sample.py --dataset folder --data_root DIR  every step on your own images; add --check_data first
  python run_sample.py --steps 4-6                       steps by number or name: make_cam,eval_cam or 8-report
  python run_sample.py --list_steps                      what each step reads and writes
"""


def build_parser(
    steps: Sequence[Step], add_arguments: Callable[[argparse.ArgumentParser], None]
) -> argparse.ArgumentParser:
    """The whole parser; values of the method have no default yet."""
    parser = _Parser(
        "run_sample.py",
        usage="run_sample.py [arguments]",
        description=DESCRIPTION,
        formatter_class=_Help,
        allow_abbrev=False,
        add_help=False,
    )
    group = parser.add_argument_group("what to run")
    group.add_argument("-h", "--help", action="store_true", help="this text, with the values of the chosen dataset")
    datasets = "; ".join(f"{name}: {text}" for name, (_, text) in DATASETS.items())
    group.add_argument(
        "--dataset",
        default="shapes",
        choices=Choices(DATASETS),
        metavar="NAME",
        help=f"{datasets}; or a Python file that offers one (default: shapes)",
    )
    group.add_argument("--data_root", metavar="DIR", help="folder of the dataset")
    group.add_argument("--work_dir", metavar="DIR", help="folder of all results (default: result/DATASET)")
    group.add_argument("--config", metavar="FILE.yaml", help="values by argument name, between preset and command line")
    group.add_argument(
        "--steps", metavar="LIST", help="steps by number or name, with ranges: 3-6 or train_cam,eval_cam"
    )
    group.add_argument("--list_steps", action="store_true", help="number, name, input and output of every step")
    group.add_argument("--dry_run", action="store_true", help="print the plan and do nothing")
    group.add_argument(
        "--check_data", action="store_true", help="read every image, label and mask, print what is there, and end"
    )
    group.add_argument(
        "--preview",
        metavar="NAME,...",
        help="for just these images, write strips/NAME.png (image, CAM, RIB, masks) with the trained networks, and end",
    )
    group.add_argument("--overwrite", action="store_true", help="make files anew that are there already")

    group.add_argument(
        "--skip_bad",
        action="store_true",
        help="read every image and mask first; go on without those that cannot be read and list them at the end",
    )

    group.add_argument(
        "--compare",
        nargs=2,
        metavar=("RUN_A", "RUN_B"),
        help="write compare.html: what differs between two work_dirs (into --work_dir if given, else here), and end",
    )
    group.add_argument(
        "--tensorboard", action="store_true", help="log losses, learning rates and scores below WORK_DIR/tensorboard"
    )

    group = parser.add_argument_group("machine")
    group.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto takes a GPU if there is one"
    )
    group.add_argument(
        "--precision", default="fp32", choices=("fp32", "tf32", "bf16"), help="of the networks' products"
    )
    group.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="of every random draw, and of the images of shapes"
    )
    workers = min(8, os.cpu_count() or 1)
    group.add_argument(
        "--num_workers", type=not_negative, default=workers, metavar="N", help="processes that read images; 0: none"
    )
    add_arguments(parser)

    group = parser.add_argument_group(
        "steps one by one",
        "--STEP_pass alone or with True runs just the steps so named; --no-STEP_pass or False leaves a step out",
    )
    for step in steps:
        flag = f"{step.name}_pass"
        group.add_argument(f"--{flag}", nargs="?", const=True, type=boolean, metavar="BOOL", help=argparse.SUPPRESS)
        group.add_argument(f"--no-{flag}", dest=flag, action="store_false", default=None, help=argparse.SUPPRESS)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, without the pages of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that shows the value each argument would have."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=110)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default is None or isinstance(action.default, bool) or "default" in text:
            return text
        default = action.default
        if isinstance(default, tuple):
            default = ",".join(v if isinstance(v, str) else f"{v:g}" for v in default)
        return f"{text} (default: {default})".replace("%", "%%")


def parse(
    steps: Sequence[Step], add_arguments: Callable, argv: Sequence[str]
) -> tuple[argparse.Namespace, dict[str, str], argparse.ArgumentParser]:
    """The arguments, and where each value comes from: command line, else config, else preset of the dataset."""
    parser = build_parser(steps, add_arguments)
    first, _ = _quiet(parser).parse_known_args(argv)
    config = _read_config(first.config, parser) if first.config else {}
    dataset = first.dataset if _given(argv, "dataset") else config.get("dataset", first.dataset)
    values = preset(dataset)
    sources = {name: source for name, (_, source) in values.items()}
    parser.set_defaults(**{name: value for name, (value, _) in values.items()})
    parser.set_defaults(**config)
    sources |= dict.fromkeys(config, f"config {first.config}")
    if first.help:
        parser.print_help()
        raise SystemExit(0)
    args = parser.parse_args(argv)
    for action in parser._actions:
        if any(word.split("=")[0] in action.option_strings for word in argv):
            sources[action.dest] = "command line"
    args.work_dir = args.work_dir or str(Path("result") / Path(args.dataset).stem)
    _check(args, parser)
    return args, {name: sources.get(name, "default") for name in vars(args)}, parser


def _quiet(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """A parser of just what decides the defaults of the others."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.error = parser.error
    first.add_argument("-h", "--help", action="store_true")
    first.add_argument("--dataset", default="shapes")
    first.add_argument("--config")
    return first


def _given(argv: Sequence[str], name: str) -> bool:
    return any(word == f"--{name}" or word.startswith(f"--{name}=") for word in argv)


def _read_config(path: str, parser: argparse.ArgumentParser) -> dict:
    """The values of a YAML file, checked as if they stood on the command line."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"--config {path} holds no mapping; write one `argument: value` per line")
    actions = {action.dest: action for action in parser._actions}
    values = {}
    for name, value in content.items():
        action = actions.get(str(name))
        if action is None or name in ("help", "config"):
            raise UserError(f"--config {path}: there is no argument {name!r}; see --help")
        if value is None:  # `name:` alone, as if it were not there
            continue
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, list | tuple | dict | set) for part in parts):  # shown, a few lines can fill a disk
            raise UserError(f"--config {path}: {name} is nested; wanted a value or a flat list of values")
        text = ",".join(map(str, parts))
        try:
            if isinstance(action.default, bool) or name.endswith("_pass"):
                values[name] = boolean(text)
            else:
                values[name] = action.type(text) if action.type else text
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(f"--config {path}: {name} cannot be {value!r}: {error}") from error
        if action.choices and values[name] not in action.choices:
            raise UserError(f"--config {path}: {name} is {value!r}; there are {', '.join(action.choices)}")
    return values


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Values that must fit each other."""
    scales = args.cam_scales
    if len(scales) < 2 or scales[0] != 1.0 or scales[1] != 0.5 or min(scales) <= 0:
        parser.error(f"--cam_scales is {scales}; RIB reads the first as scale 1.0 and the second as 0.5, all above 0")
    if args.irn_crop_size % 4:
        parser.error(f"--irn_crop_size is {args.irn_crop_size}; it must be a multiple of 4")
    if args.irn_crop_size // 4 <= 2 * (args.irn_radius - 1):
        parser.error(
            f"--irn_crop_size {args.irn_crop_size} gives a grid of {args.irn_crop_size // 4} positions, too small for "
            f"pairs within --irn_radius {args.irn_radius}; more than {8 * (args.irn_radius - 1)} pixels are needed"
        )
    for name in ("cam_resize_long", "RIB_resize_long", "irn_rescale"):
        low, high = getattr(args, name)
        if not 0 < low <= high:
            parser.error(f"--{name} is {low},{high}; wanted 0 < LO <= HI")
    for name in ("seg_scales", "seg_test_scales", "seg_msc_scales", "seg_aspp_rates"):
        if not getattr(args, name) or min(getattr(args, name)) <= 0:
            parser.error(f"--{name} is {getattr(args, name)}; wanted at least one number, all above 0")
    if args.seg_msc_scales[0] != 1:
        parser.error(f"--seg_msc_scales is {args.seg_msc_scales}; the first must be 1.0")
    smallest = args.seg_crop_size * min(args.seg_msc_scales)
    if args.seg_model.startswith("deeplabv2") and smallest < 8:
        parser.error(
            f"--seg_crop_size {args.seg_crop_size} x the smallest of --seg_msc_scales {args.seg_msc_scales} is "
            f"{smallest:g} pixels; wanted at least 8"
        )
    deviations, weights = (args.seg_crf[i] for i in (0, 2, 3)), (args.seg_crf[i] for i in (1, 4))
    if min(deviations) <= 0 or min(weights) < 0:
        parser.error(f"--seg_crf is {args.seg_crf}; wanted deviations (1st, 3rd, 4th) above 0, weights of at least 0")
    for name in ("cam_weight_decay", "RIB_weight_decay", "irn_weight_decay", "seg_weight_decay", "seg_momentum"):
        if getattr(args, name) < 0:
            parser.error(f"--{name} is {getattr(args, name)}; wanted at least 0")
    if args.seg_batch_size % args.seg_accumulate:
        parser.error(f"--seg_batch_size {args.seg_batch_size} is no multiple of --seg_accumulate {args.seg_accumulate}")
    low, high, step = args.cam_eval_sweep
    if low > high or step <= 0:
        parser.error(f"--cam_eval_sweep is {args.cam_eval_sweep}; wanted LO <= HI and STEP above 0")
