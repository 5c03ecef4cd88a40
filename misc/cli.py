"""The command line: which steps, which values and where they come from; one line for a user's mistake."""

import argparse
import contextlib
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from data import DATASETS, Choices, open_dataset, preset
from misc import board
from misc.argtypes import boolean, not_negative
from misc.errors import UserError
from misc.failures import explain
from misc.provenance import provenance
from misc.steps import Step, choose, table
from misc.stopping import GO_ON, on_signals

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
    if args.seg_batch_size % args.seg_accumulate:
        parser.error(f"--seg_batch_size {args.seg_batch_size} is no multiple of --seg_accumulate {args.seg_accumulate}")
    low, high, step = args.cam_eval_sweep
    if low > high or step <= 0:
        parser.error(f"--cam_eval_sweep is {args.cam_eval_sweep}; wanted LO <= HI and STEP above 0")


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
        if args.compare:
            from misc.report.compare import compare

            compare(args, Path(args.work_dir if sources["work_dir"] != "default" else "."))
            return 0
        if args.preview is not None:
            return _preview(args)
        chosen = choose(steps, args)
        if args.dry_run:
            print(f"dataset {args.dataset}, results in {args.work_dir}\n{table(chosen)}")
            return 0
        again = GO_ON.replace("command", "command without --overwrite") if args.overwrite else GO_ON
        with on_signals(os.environ.get("RANK", "0") == "0", again):
            _run(args, sources, chosen, argv)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        explained = explain(error)
        if explained is None:
            raise
        text, code = explained
        print(f"run_sample.py: {text}", file=sys.stderr)
        return code
    finally:
        board.stop()


def _preview(args: argparse.Namespace) -> int:
    """Prints the paths of the strips."""
    from misc import torchutils
    from step.strips import preview

    torchutils.set_precision(args.precision)
    args.bad_images = {}
    for path in preview(args):
        print(path)
    return 0


def _run(args: argparse.Namespace, sources: dict[str, str], chosen: Sequence[Step], argv: Sequence[str]) -> None:
    from misc import lock, torchutils

    torchutils.init_ranks(args.device)
    torchutils.set_precision(args.precision)
    work_dir, first = Path(args.work_dir), torchutils.rank() == 0
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--work_dir {work_dir} cannot be written: {error.strerror}; choose another") from error
    with lock.held(work_dir) if first else contextlib.nullcontext():  # one for all ranks of a job
        torchutils.barrier()
        _start_log(work_dir, first)
        if first:
            _begin(args, sources, argv)
            if args.tensorboard:
                board.start(work_dir / "tensorboard")
        _run_steps(args, _possible(args, chosen))


def _begin(args: argparse.Namespace, sources: dict[str, str], argv: Sequence[str]) -> None:
    """Clears away what a killed run left half done, and stores what this one is."""
    from misc.files import load_json, save_json
    from misc.workdir import sweep_temporaries

    removed = sweep_temporaries(args)
    if removed:
        logging.info("%d unfinished files of a run that was killed are removed", removed)
    path = Path(args.work_dir) / "args.json"
    last = load_json(path)
    earlier = [*last.pop("earlier", []), last] if last else []
    save_json(path, {**provenance(args, sources, argv), "earlier": earlier})


def _run_steps(args: argparse.Namespace, chosen: Sequence[Step]) -> None:
    from misc import torchutils, workdir

    args.bad_images = _bad_images(args) if args.skip_bad else {}
    for step in chosen:
        logging.info("step %s", step.title)
        begin = time.perf_counter()
        try:
            values = importlib.import_module(step.module).run(args, **step.options)
        except (UserError, OSError) as error:
            if args.data_root and not Path(args.data_root).is_dir():
                gone = f"--data_root {args.data_root} is gone: bring it back (is it mounted?); {GO_ON}"
                raise UserError(f"{explain(error)[0]}; {gone}") from error
            raise
        torchutils.barrier()
        seconds = time.perf_counter() - begin
        if values:
            workdir.record(args, step.name, {"seconds": round(seconds, 2), **values})
            board.scores(step.name, values)
        logging.info("step %s took %.1f s", step.title, seconds)
    for name, problem in args.bad_images.items():
        logging.warning("left out %s: %s", name, problem)


def _possible(args: argparse.Namespace, chosen: Sequence[Step]) -> Sequence[Step]:
    """The chosen steps without those that the dataset has no ground truth for; UserError if none is left."""
    dataset = open_dataset(args)
    for note in dataset.notes:
        logging.warning(note)
    scoring = [step.name for step in chosen if step.needs_masks]
    if not scoring:
        return chosen
    lacks = f"dataset {args.dataset} has no masks"
    if dataset.has_masks:
        if any(map(dataset.has_mask, dataset.names_of(args.eval_list)[: args.limit])):
            return chosen
        lacks += f" for --eval_list {args.eval_list}"
    if len(scoring) == len(chosen):
        raise UserError(f"{lacks}, and all of these steps need some: {', '.join(scoring)}")
    logging.warning("%s: left out %s", lacks, ", ".join(scoring))
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
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if first:
        try:
            handlers.append(_LogFile(work_dir / "log.txt", encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--work_dir {work_dir} cannot be written: {error.strerror}; choose another") from error
    level = logging.INFO if first else logging.WARNING
    logging.basicConfig(
        level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True
    )


class _LogFile(logging.FileHandler):
    """A log that ends with one line where its disk is full; the run may do without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif self.level <= logging.CRITICAL:
            self.setLevel(logging.CRITICAL + 1)
            print(f"run_sample.py: {self.baseFilename} cannot be written any more: {error.strerror}", file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what is left in the buffer of a full disk
            super().close()
