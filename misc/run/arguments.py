"""From a command line to checked values, and where each of them comes from."""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from data.errors import UserError
from misc.run.options import FLAG, OPTIONS, Option, boolean, preset

DESCRIPTION = """\
RIB: weakly supervised semantic segmentation by reducing the information bottleneck.

  python run_sample.py                                   every step on the embedded dataset `shapes`
  python run_sample.py --dataset photos                  photographs, with a classifier that is trained already
  python run_sample.py --photo FILE --label tabby        a photograph of your own
  python run_sample.py --dataset voc12 --data_root DIR   every step on PASCAL VOC 2012 (coco14 likewise)
  python run_sample.py --dataset folder --data_root DIR  every step on your own images; add --check_data first
  python run_sample.py --steps 4-6                       steps by number or name: make_cam,eval_cam or 8-report
  python run_sample.py --list_steps                      what each step reads and writes
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, without the pages of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that shows the value each argument would have."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=110)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default is None or action.nargs == 0 or "default" in text:
            return text
        if isinstance(default, tuple):
            default = ",".join(v if isinstance(v, str) else f"{v:g}" for v in default)
        return f"{text} (default: {default})".replace("%", "%%")


def build_parser(steps: Sequence, everything: bool = True) -> argparse.ArgumentParser:
    """The parser with the defaults of OPTIONS. everything: show all arguments in the help, not only the basic ones."""
    parser = _Parser(
        "run_sample.py", usage="run_sample.py [arguments]", description=DESCRIPTION, formatter_class=_Help,
        allow_abbrev=False, add_help=False,
    )  # fmt: skip
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        if title == "what to run":
            group.add_argument("-h", "--help", action="store_true", help="what is usually changed, with its values")
            group.add_argument("--help_all", action="store_true", help="every argument, with its value")
        for option in options:
            _add(group, option, everything or option.basic)
    group = parser.add_argument_group(
        "steps one by one",
        "--STEP_pass alone or with True runs only the steps so named; --no-STEP_pass or False leaves a step out",
    )
    for step in steps:
        flag = f"{step.name}_pass"
        group.add_argument(f"--{flag}", nargs="?", const=True, type=boolean, metavar="BOOL", help=argparse.SUPPRESS)
        group.add_argument(f"--no-{flag}", dest=flag, action="store_false", default=None, help=argparse.SUPPRESS)
    return parser


def _add(group: argparse._ArgumentGroup, option: Option, shown: bool) -> None:
    flags = [f"--{name}" for name in (option.name, *option.also)]
    settings = {"dest": option.name, "default": option.default, "help": option.help if shown else argparse.SUPPRESS}
    if option.kind == FLAG:
        group.add_argument(*flags, action="store_true", **settings)
        return
    if isinstance(option.metavar, tuple):
        settings["nargs"] = len(option.metavar)
    group.add_argument(*flags, type=option.kind, choices=option.choices, metavar=option.metavar, **settings)


def parse(steps: Sequence, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The arguments, and where each value comes from: command line, else config, else preset of the dataset.

    steps: those of the program (`misc.run.runner.Step`), each of which has a flag by its name. Prints the help and ends
    where it is asked for; UserError for a value that cannot be.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser = build_parser(steps, everything="--help_all" in argv)
    first.error = parser.error
    first.add_argument("--dataset")
    first.add_argument("--config")
    first.add_argument("--photo")
    early, _ = first.parse_known_args(argv)
    config = _read_config(early.config, parser) if early.config else {}
    if early.photo is not None or "photo" in config:
        parser.set_defaults(dataset="photos")
    values = preset(early.dataset or config.get("dataset") or parser.get_default("dataset"))
    sources = {name: source for name, (_, source) in values.items()}
    parser.set_defaults(**{name: value for name, (value, _) in values.items()})
    parser.set_defaults(**config)
    sources |= dict.fromkeys(config, f"config {early.config}")
    if {"-h", "--help", "--help_all"} & set(argv):
        parser.print_help()
        raise SystemExit(0)
    args = parser.parse_args(argv)
    for action in parser._actions:
        if any(word.split("=")[0] in action.option_strings for word in argv):
            sources[action.dest] = "command line"
    if sources.get("steps") != "command line" and "steps" not in config:  # those of the preset
        asked = any(getattr(args, f"{step.name}_pass") for step in steps)
        args.steps = None if asked else args.steps
    others = ("steps", *(f"{step.name}_pass" for step in steps), "check_data", "preview", "compare", "dry_run")
    others = [f"--{name}" for name in others if sources.get(name) == "command line"]
    if args.photo is not None and others:
        raise UserError(f"--photo does nothing but its strip; leave it out, or {' and '.join(others)}")
    args.work_dir = args.work_dir or str(Path("result") / Path(args.dataset).stem)
    _check(args)
    return args, {name: sources.get(name, "default") for name in vars(args)}


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
    actions = {flag.removeprefix("--"): action for action in parser._actions for flag in action.option_strings}
    values = {}
    for name, value in content.items():
        action = actions.get(str(name))
        if action is None or action.dest in ("help", "help_all", "config", "compare"):
            raise UserError(f"--config {path}: there is no argument {name!r}; see --help_all")
        if value is None:  # `name:` alone, as if it were not there
            continue
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, list | tuple | dict | set) for part in parts):
            raise UserError(f"--config {path}: {name} is nested; wanted a value or a flat list of values")
        text = ",".join(map(str, parts))
        kind = boolean if action.nargs == 0 else action.type or str
        try:
            values[action.dest] = kind(text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(f"--config {path}: {name} cannot be {value!r}: {error}") from error
        if action.choices and values[action.dest] not in action.choices:
            raise UserError(f"--config {path}: {name} is {value!r}; choose from {', '.join(action.choices)}")
    return values


def _check(args: argparse.Namespace) -> None:
    """UserError for values that do not fit each other."""

    def demand(condition: bool, name: str, wanted: str) -> None:
        if not condition:
            raise UserError(f"--{name} is {getattr(args, name)}; wanted {wanted}")

    starts = args.cam_scales[:2] == (1.0, 0.5)
    demand(starts, "cam_scales", "the first 1.0 and the second 0.5, as RIB reads them")
    demand(args.irn_crop_size % 4 == 0, "irn_crop_size", "a multiple of 4")
    smallest = 8 * (args.irn_radius - 1)
    demand(args.irn_crop_size > smallest, "irn_crop_size", f"more than {smallest} pixels for --irn_radius")
    for name in ("cam_resize_long", "RIB_resize_long", "irn_rescale"):
        low, high = getattr(args, name)
        demand(0 < low <= high, name, "0 < LO <= HI")
    demand(args.seg_msc_scales[0] == 1, "seg_msc_scales", "1.0 as the first")
    smallest = args.seg_crop_size * min(args.seg_msc_scales)
    enough = smallest >= 8 or not args.seg_model.startswith("deeplabv2")
    demand(enough, "seg_crop_size", f"at least 8 pixels at the smallest of --seg_msc_scales, this gives {smallest:g}")
    deviations, weights = (args.seg_crf[i] for i in (0, 2, 3)), (args.seg_crf[i] for i in (1, 4))
    fits = min(deviations) > 0 and min(weights) >= 0
    demand(fits, "seg_crf", "deviations (1st, 3rd, 4th) above 0 and weights of at least 0")
    for kind in ("cam", "irn", "seg"):
        size, parts = getattr(args, f"{kind}_batch_size"), getattr(args, f"{kind}_accumulate")
        demand(size % parts == 0, f"{kind}_batch_size", f"a multiple of --{kind}_accumulate {parts}")
    installed = args.crf_backend != "pydensecrf" or importlib.util.find_spec("pydensecrf") is not None
    demand(installed, "crf_backend", "the package pydensecrf2: pip install -r requirements-pydensecrf.txt")
    demand(args.label is None or args.photo is not None, "label", "it beside --photo")
    low, high, step = args.cam_eval_sweep
    demand(low <= high and step > 0, "cam_eval_sweep", "LO <= HI and STEP above 0")
