"""The program: which steps run, in a locked and logged `--work_dir`; one line for a user's mistake."""

import argparse
import contextlib
import importlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from data import open_dataset
from data.base import Dataset
from data.errors import UserError
from data.failures import explain, prepare_process
from data.process import GO_ON, LAUNCHED, end_process, in_notebook, on_signals, rank, run_ranks, world_size
from misc.report.tables import Table
from misc.run import board
from misc.run.arguments import parse

PROGRAM = Path(__file__).resolve().parents[2] / "run_sample.py"
LOCK_S = 5.0  # how long the workers of a killed run may still hold its lock


@dataclass(frozen=True)
class Step:
    """One step: its number and name, the module whose run(args, dataset, **options) does it, what it reads and writes.

    number: None for a step that stands apart from the chain and runs only where it is asked for by its name.
    needs_masks, needs_labels: it is left out for a dataset without ground truth, without labels. needs_dataset:
    without it, run(args) is called.
    """

    number: int | None
    name: str
    module: str
    reads: str
    writes: str
    options: dict = field(default_factory=dict)
    needs_masks: bool = False
    needs_labels: bool = True
    needs_dataset: bool = True

    @property
    def title(self) -> str:
        """Number and name."""
        return self.name if self.number is None else f"{self.number} {self.name}"


def main(steps: Sequence[Step], argv: Sequence[str] | None = None) -> int:
    """Runs the chosen steps; returns the exit code: 0 done, 2 the user's to fix, 1 anything else, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    prepare_process()
    # Several processes share the cores: threads that wait must not spin. Read by OpenMP when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    several = world_size() > 1
    try:
        args, sources = parse(steps, argv)
        if args.list_steps:
            print(table(steps))
            return 0
        looks = args.check_data or args.compare or args.preview is not None or args.photo is not None
        chosen = [] if looks else choose(steps, args)
        again = GO_ON.replace("command", "command without --overwrite") if args.overwrite else GO_ON
        if several and args.ranks not in (1, world_size()):
            raise UserError(f"--ranks {args.ranks}, but WORLD_SIZE is {world_size()}; leave --ranks out under torchrun")
        if args.ranks > 1 and not (several or looks or args.dry_run):
            return run_ranks(args.ranks, [sys.executable, str(PROGRAM), *argv], again)
        with on_signals(rank() == 0 and LAUNCHED not in os.environ, again):
            if looks:
                return _look(args, sources)
            _run(args, sources, chosen, argv)
        code = 0
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) and in_notebook():
            raise
        explained = explain(error)
        # The first to end ends the others: rank 0 tells what all have met, none that it has lost the one that failed.
        time.sleep(0 if not several else 2 if rank() else isinstance(error, RuntimeError))
        if explained is None:
            if not several:
                raise
            traceback.print_exc()
        text, code = explained or ("an error in the program, see above", 1)
        print(f"run_sample.py: {text}", file=sys.stderr)
    finally:
        board.stop()
    if several:  # the others may be waiting for this rank; what started them ends them
        end_process(code)
    return code


def _look(args: argparse.Namespace, sources: dict[str, str]) -> int:
    """What runs no step: checks the data, compares two runs, or draws some images."""
    if args.check_data:
        from data.check import check_data

        return 0 if check_data(args, open_dataset(args)) else 2
    if args.compare:
        from misc.report.compare import compare

        compare(args, Path(args.work_dir if sources["work_dir"] != "default" else "."))
        return 0
    from misc.run.advice import within_memory
    from step.photo import photo
    from step.strips import preview

    _set_device(args)
    with within_memory(args, "strips"):
        for path in preview(args, open_dataset(args)) if args.photo is None else [photo(args)]:
            print(path)
    return 0


def _set_device(args: argparse.Namespace) -> None:
    import torch

    from misc import torchutils

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but PyTorch sees no GPU; check nvidia-smi, or use --device cpu")
    torchutils.set_precision(args.precision, args.deterministic)


def _run(args: argparse.Namespace, sources: dict[str, str], chosen: Sequence[Step], argv: Sequence[str]) -> None:
    if args.dry_run:
        print(f"dataset {args.dataset}, results in {args.work_dir}\n{table(chosen)}")
        return
    from misc import torchutils
    from misc.run.beforehand import check_disk, possible, remark, skip_bad_images
    from misc.run.outputs import remove_results
    from misc.run.trainloop import check_batches

    _set_device(args)
    if world_size() > 1:
        torchutils.init_ranks(args.device)
    work_dir, first = Path(args.work_dir), torchutils.rank() == 0
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--work_dir {work_dir} cannot be written: {error.strerror}; choose another") from error
    with locked(work_dir) if first else contextlib.nullcontext():  # one for all ranks of a job
        torchutils.barrier()
        _start_log(work_dir, first)
        if first:
            _begin(args, sources, argv)
        dataset, told, bad_images = None, {}, {}
        names = [step.name for step in chosen]
        if any(step.needs_dataset for step in chosen):
            dataset = open_dataset(args)
            if args.skip_bad:
                skip_bad_images(args, dataset)
            bad_images, chosen = dataset.bad_images, possible(args, dataset, chosen)
            names = [step.name for step in chosen]
            told = remark(args, dataset, names)
            torchutils.on_first_rank(lambda: check_batches(args, names))
            torchutils.on_first_rank(lambda: check_disk(args, dataset, names))
        if args.overwrite:
            torchutils.on_first_rank(lambda: remove_results(args, names))
        for step in chosen:
            _run_step(args, dataset, step, told.get(step.name, []))
        for name, problem in bad_images.items():
            logging.warning("left out %s: %s", name, problem)
        torchutils.barrier()


def _run_step(args: argparse.Namespace, dataset: Dataset | None, step: Step, notes: Sequence[str]) -> None:
    """notes: what must be known of its result, for the log and for metrics.json."""
    from misc import torchutils
    from misc.run.advice import within_memory
    from misc.run.outputs import record

    logging.info("step %s", step.title)
    for text in notes if torchutils.rank() == 0 else ():
        logging.warning("%s: %s", step.name, text)
    begin = time.perf_counter()
    try:
        inputs = (args, dataset) if step.needs_dataset else (args,)
        with within_memory(args, step.name):
            values = importlib.import_module(step.module).run(*inputs, **step.options)
    except (UserError, OSError) as error:
        if step.needs_dataset and args.data_root and not Path(args.data_root).is_dir():
            raise UserError(f"{explain(error)[0]}; --data_root {args.data_root} is gone (is it mounted?)") from error
        raise
    torchutils.barrier()
    seconds = time.perf_counter() - begin
    if values:
        record(args, step.name, {"seconds": round(seconds, 2), **values, **({"notes": notes} if notes else {})})
        board.scores(step.name, values)
    logging.info("step %s took %.1f s", step.title, seconds)


@contextlib.contextmanager
def locked(work_dir: Path) -> Iterator[None]:
    """Holds the lock of a folder; UserError if another run has it. The system releases it when a process is killed."""
    lock = filelock.FileLock(work_dir / ".lock")
    try:
        lock.acquire(timeout=LOCK_S)
    except filelock.Timeout as error:
        raise UserError(
            f"--work_dir {work_dir} is in use by another run; wait for it or stop it, or choose another --work_dir"
        ) from error
    except (OSError, NotImplementedError) as error:
        raise UserError(f"--work_dir {work_dir} cannot be locked ({error}); choose another") from error
    try:
        yield
    finally:
        lock.release()


def _begin(args: argparse.Namespace, sources: dict[str, str], argv: Sequence[str]) -> None:
    """Removes what a killed run left unfinished, and stores what this one is."""
    from data.files import load_json, save_json, sweep
    from misc.run.provenance import describe_call

    sweep(Path(args.work_dir))
    path = Path(args.work_dir) / "args.json"
    last = load_json(path)
    earlier = [*last.pop("earlier", []), last] if last else []
    save_json(path, {**describe_call(args, sources, argv), "earlier": earlier})
    if args.tensorboard:
        board.start(Path(args.work_dir) / "tensorboard")


def _start_log(work_dir: Path, first: bool) -> None:
    """Messages to standard error and to log.txt, from rank 0 only."""
    logging.raiseExceptions = False  # a log on a full disk ends silently; the next result says why the run ends
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if first:
        handlers.append(logging.FileHandler(work_dir / "log.txt", encoding="utf-8"))
    level = logging.INFO if first else logging.WARNING
    logging.basicConfig(
        level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True
    )


def choose(steps: Sequence[Step], args: argparse.Namespace) -> list[Step]:
    """The steps to run, in order. UserError for a step that there is not."""
    flags = {step.name: getattr(args, f"{step.name}_pass") for step in steps}
    chosen = {name for name, flag in flags.items() if flag}
    if args.steps is not None:
        chosen |= _select(steps, args.steps)
    elif not chosen:
        chosen = {step.name for step in steps if step.number is not None}
    plan = [step for step in steps if step.name in chosen and flags[step.name] is not False]
    if not plan:
        raise UserError("all selected steps are switched off")
    return plan


def _select(steps: Sequence[Step], text: str) -> set[str]:
    keys = {key: i for i, step in enumerate(steps) for key in (str(step.number or ""), step.name) if key}

    def index(key: str) -> int:
        if key not in keys:
            known = ", ".join(step.title for step in steps)
            raise UserError(f"--steps: there is no step {key!r}; there are {known}")
        return keys[key]

    chosen: set[str] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        begin, end = index(first.strip()), index((last if dash else first).strip())
        if begin > end:
            raise UserError(f"--steps: {part} runs backwards; steps always run in their own order")
        if dash and None in (steps[begin].number, steps[end].number):
            raise UserError(f"--steps: {part} is no range; a step without a number is asked for by its name alone")
        chosen |= {step.name for step in steps[begin : end + 1] if not dash or step.number is not None}
    if not chosen:
        raise UserError("--steps names no step; see --list_steps")
    return chosen


def table(steps: Sequence[Step]) -> str:
    """The steps as text."""
    rows = [(str(step.number or ""), step.name, step.reads, step.writes) for step in steps]
    return Table("", ("", "step", "reads", "writes"), rows).text()
