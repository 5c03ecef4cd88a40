"""The command line: which steps, which values and where they come from; one line for a user's mistake."""

import argparse
import datetime
import importlib
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import yaml

from data import DATASETS, Choices, open_dataset, preset
from misc.errors import UserError

DESCRIPTION = """\
RIB: weakly supervised semantic segmentation by reducing the information bottleneck.

  python run_sample.py                                   every step on the embedded dataset `shapes`
  python run_sample.py --dataset voc12 --data_root DIR   every step on PASCAL VOC 2012 (coco14 likewise)
  python run_sample.py --dataset folder --data_root DIR  every step on your own images; add --check_data first
  python run_sample.py --steps 4-6                       steps by number or name: make_cam,eval_cam or 8-report
  python run_sample.py --list_steps                      what each step reads and writes
"""


@dataclass(frozen=True)
class Step:
    """One step: its number and name, the module whose run(args, **options) does it, what it reads and writes.

    needs_masks: it is left out for a dataset without ground truth.
    """

    number: int
    name: str
    module: str
    reads: str
    writes: str
    options: dict = field(default_factory=dict)
    needs_masks: bool = False


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def not_negative(text: str) -> int:
    """A whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def finite(text: str) -> float:
    """A number that is neither infinite nor NaN."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def above_zero(text: str) -> float:
    """A number above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


positive.__name__ = not_negative.__name__ = "whole number"
above_zero.__name__ = finite.__name__ = "number"


def floats(count: int | None = None) -> Callable[[str], tuple[float, ...]]:
    """A type of numbers joined by commas, exactly `count` of them if given."""
    return _numbers(finite, count)


def integers(count: int | None = None) -> Callable[[str], tuple[int, ...]]:
    """A type of whole numbers joined by commas, exactly `count` of them if given."""
    return _numbers(int, count)


def _numbers(kind: type, count: int | None) -> Callable:
    def parse(text: str) -> tuple:
        values = tuple(kind(part) for part in text.strip("()[] ").split(",") if part.strip())
        if count is not None and len(values) != count:
            raise argparse.ArgumentTypeError(f"{text!r} has {len(values)} values, wanted {count} joined by commas")
        return values

    parse.__name__ = "list of numbers joined by commas"
    return parse


def _boolean(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return words[text.lower()]


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
    group.add_argument("--overwrite", action="store_true", help="make files anew that are there already")

    group.add_argument(
        "--skip_bad",
        action="store_true",
        help="read every image and mask first; go on without those that cannot be read and list them at the end",
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
        group.add_argument(f"--{flag}", nargs="?", const=True, type=_boolean, metavar="BOOL", help=argparse.SUPPRESS)
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
        default = ",".join(f"{v:g}" for v in action.default) if isinstance(action.default, tuple) else action.default
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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        try:
            if isinstance(action.default, bool) or name.endswith("_pass"):
                values[name] = _boolean(text)
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
    low, high, step = args.cam_eval_sweep
    if low > high or step <= 0:
        parser.error(f"--cam_eval_sweep is {args.cam_eval_sweep}; wanted LO <= HI and STEP above 0")


def choose(steps: Sequence[Step], args: argparse.Namespace) -> list[Step]:
    """The steps to run, in order. UserError for a step that there is not."""
    flags = {step.name: getattr(args, f"{step.name}_pass") for step in steps}
    if args.steps is not None:
        chosen = _select(steps, args.steps)
        chosen |= {name for name, flag in flags.items() if flag}
    elif any(flags.values()):
        chosen = {name for name, flag in flags.items() if flag}
    else:
        chosen = set(flags)
    plan = [step for step in steps if step.name in chosen and flags[step.name] is not False]
    if not plan:
        raise UserError("no step is left to run: every one that was asked for is also switched off")
    return plan


def _select(steps: Sequence[Step], text: str) -> set[str]:
    keys = {key: i for i, step in enumerate(steps) for key in (str(step.number), step.name)}

    def index(key: str) -> int:
        if key not in keys:
            known = ", ".join(f"{step.number} {step.name}" for step in steps)
            raise UserError(f"--steps: there is no step {key!r}; there are {known}")
        return keys[key]

    chosen: set[str] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        begin, end = index(first.strip()), index((last if dash else first).strip())
        if begin > end:
            raise UserError(f"--steps: {part} runs backwards; steps always run in their own order")
        chosen |= {step.name for step in steps[begin : end + 1]}
    if not chosen:
        raise UserError("--steps names no step; see --list_steps")
    return chosen


def table(steps: Sequence[Step]) -> str:
    """The steps as text."""
    rows = [("", "step", "reads", "writes"), *((str(s.number), s.name, s.reads, s.writes) for s in steps)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(steps: Sequence[Step], add_arguments: Callable, argv: Sequence[str] | None = None) -> int:
    """Runs the chosen steps; returns the exit code: 0 done, 2 the user's to mend, 1 anything else, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Several processes share the cores: threads that wait must not spin. Read by OpenMP when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    try:
        args, sources, _ = parse(steps, add_arguments, argv)
        if args.list_steps:
            print(table(steps))
            return 0
        if args.check_data:
            from data.check import check_data

            return 0 if check_data(args) else 2
        chosen = choose(steps, args)
        if args.dry_run:
            print(f"dataset {args.dataset}, results in {args.work_dir}\n{table(chosen)}")
            return 0
        _run(args, sources, chosen, argv)
        return 0
    except UserError as error:
        print(f"run_sample.py: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"run_sample.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("run_sample.py: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace, sources: dict[str, str], chosen: Sequence[Step], argv: Sequence[str]) -> None:
    from misc import torchutils, workdir
    from misc.files import load_json, save_json

    torchutils.init_ranks(args.device)
    torchutils.set_precision(args.precision)
    first = torchutils.rank() == 0
    _start_log(Path(args.work_dir), first)
    if first:
        path = Path(args.work_dir) / "args.json"
        last = load_json(path)
        earlier = [*last.pop("earlier", []), last] if last else []
        save_json(path, {**_provenance(args, sources, argv), "earlier": earlier})
    chosen = _possible(args, chosen)
    args.bad_images = _bad_images(args) if args.skip_bad else {}
    for step in chosen:
        logging.info("step %d %s", step.number, step.name)
        begin = time.perf_counter()
        values = importlib.import_module(step.module).run(args, **step.options)
        torchutils.barrier()
        seconds = time.perf_counter() - begin
        if values:
            workdir.record(args, step.name, {"seconds": round(seconds, 2), **values})
        logging.info("step %d %s took %.1f s", step.number, step.name, seconds)
    for name, problem in args.bad_images.items():
        logging.warning("left out %s: %s", name, problem)


def _possible(args: argparse.Namespace, chosen: Sequence[Step]) -> Sequence[Step]:
    """The chosen steps without those that the dataset has no ground truth for; UserError if none is left."""
    dataset = open_dataset(args)
    for note in dataset.notes:
        logging.warning(note)
    scoring = [step.name for step in chosen if step.needs_masks]
    if dataset.has_masks or not scoring:
        return chosen
    if len(scoring) == len(chosen):
        raise UserError(f"dataset {args.dataset} has no masks, and all of these steps need some: {', '.join(scoring)}")
    logging.warning("dataset %s has no masks: left out %s", args.dataset, ", ".join(scoring))
    return [step for step in chosen if not step.needs_masks]


def _bad_images(args: argparse.Namespace) -> dict[str, str]:
    """The images that `--skip_bad` leaves out, also stored in bad_images.json."""
    from data import find_bad_images
    from misc import torchutils
    from misc.files import save_json

    args.bad_images = {}
    bad = find_bad_images(args)
    if torchutils.rank() == 0:
        save_json(Path(args.work_dir) / "bad_images.json", bad)
    logging.info("%d images cannot be read and are left out", len(bad))
    return bad


def _start_log(work_dir: Path, first: bool) -> None:
    """Messages to standard error and to log.txt, from rank 0 only."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        handlers: list[logging.Handler] = [logging.StreamHandler()]
        if first:
            handlers.append(logging.FileHandler(work_dir / "log.txt", encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--work_dir {work_dir} cannot be written: {error.strerror}; choose another") from error
    level = logging.INFO if first else logging.WARNING
    logging.basicConfig(
        level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True
    )


def _provenance(args: argparse.Namespace, sources: dict[str, str], argv: Sequence[str]) -> dict:
    """What made the results: arguments and their sources, versions, commit, machine."""
    import torch

    names = ("torch", "torchvision", "numpy", "scipy", "pillow", "opencv-python-headless", "pydensecrf2")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": shlex.join(["python", "run_sample.py", *argv]),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "arguments": vars(args),
        "sources": sources,
        "seed": args.seed,
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in names}},
        "hardware": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpu": gpu},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        folder = Path(__file__).parent
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
