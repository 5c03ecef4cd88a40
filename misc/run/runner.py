"""The command line: which steps, which values and where they come from; one line for a user's mistake."""

import argparse
import contextlib
import importlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from data import open_dataset
from data.errors import UserError
from data.failures import explain, prepare_process
from data.process import GO_ON, end_process, in_notebook, on_signals
from misc.run import board
from misc.run.arguments import parse
from misc.run.provenance import provenance
from misc.run.steps import Step, choose, table


def main(steps: Sequence[Step], add_arguments: Callable, argv: Sequence[str] | None = None) -> int:
    """Runs the chosen steps; returns the exit code: 0 done, 2 the user's to mend, 1 anything else, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    prepare_process()
    # Several processes share the cores: threads that wait must not spin. Read by OpenMP when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    try:
        args, sources, _ = parse(steps, add_arguments, argv)
        if args.list_steps:
            print(table(steps))
            return 0
        looks = args.check_data or args.compare or args.preview is not None
        again = "give the same command again" if looks else GO_ON
        if args.overwrite:
            again = again.replace("command", "command without --overwrite")
        with on_signals(os.environ.get("RANK", "0") == "0", again):
            return _look(args, sources) if looks else _run(args, sources, choose(steps, args), argv)
    except (Exception, KeyboardInterrupt) as error:
        explained = explain(error)
        one_of_several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        if isinstance(error, KeyboardInterrupt) and in_notebook():
            raise
        if explained is None:
            if not one_of_several:
                raise
            traceback.print_exc()
        text, code = explained or ("", 1)
        if text:
            print(f"run_sample.py: {text}", file=sys.stderr)
        if one_of_several:  # the others may be waiting for this rank; torchrun ends them
            board.stop()
            end_process(code)
        return code
    finally:
        board.stop()


def _look(args: argparse.Namespace, sources: dict[str, str]) -> int:
    """What runs no step: checks the data, compares two runs, or draws some images."""
    if args.check_data:
        from data.check import check_data

        return 0 if check_data(args) else 2
    if args.compare:
        from misc.report.compare import compare

        compare(args, Path(args.work_dir if sources["work_dir"] != "default" else "."))
        return 0
    from misc import torchutils
    from step.strips import preview

    torchutils.set_precision(args.precision)
    args.bad_images = {}
    for path in preview(args):
        print(path)
    return 0


def _run(args: argparse.Namespace, sources: dict[str, str], chosen: Sequence[Step], argv: Sequence[str]) -> int:
    if args.dry_run:
        print(f"dataset {args.dataset}, results in {args.work_dir}\n{table(chosen)}")
        return 0
    from misc import torchutils
    from misc.run import lock, resume

    torchutils.init_ranks(args.device)
    torchutils.set_precision(args.precision)
    _check_batches(args, chosen)
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
        possible = _possible(args, chosen)
        with resume.overwriting(args, [step.name for step in possible]):
            _run_steps(args, possible)
    if torchutils.world_size() > 1:
        torchutils.barrier()
        board.stop()
        end_process(0)
    return 0


def _check_batches(args: argparse.Namespace, chosen: Sequence[Step]) -> None:
    """UserError if the ranks cannot share the batches of one of the chosen steps."""
    from misc.run.resume import used
    from misc.run.trainloop import BATCHES, check_batches
    from misc.run.workdir import PLACES
    from misc.torchutils import on_first_rank

    training = BATCHES.keys() & {step.name for step in chosen}
    weights = [name for name, entry in PLACES.items() if entry.step in training and name.endswith("_weights_name")]
    on_first_rank(lambda: check_batches(args, [name for name in weights if used(args, name)]))


def _begin(args: argparse.Namespace, sources: dict[str, str], argv: Sequence[str]) -> None:
    """Clears away what a killed run left half done, and stores what this one is."""
    from data.files import load_json, save_json
    from misc.run.workdir import sweep_temporaries

    removed = sweep_temporaries(args)
    if removed:
        logging.info("%d unfinished files of a run that was killed are removed", removed)
    path = Path(args.work_dir) / "args.json"
    last = load_json(path)
    earlier = [*last.pop("earlier", []), last] if last else []
    save_json(path, {**provenance(args, sources, argv), "earlier": earlier})


def _run_steps(args: argparse.Namespace, chosen: Sequence[Step]) -> None:
    from misc import torchutils
    from misc.run import metricsfile

    reading = any(step.needs_dataset for step in chosen)
    args.bad_images = _bad_images(args) if args.skip_bad and reading else {}
    for step in chosen:
        logging.info("step %s", step.title)
        begin = time.perf_counter()
        try:
            values = importlib.import_module(step.module).run(args, **step.options)
        except (UserError, OSError) as error:
            if step.needs_dataset and args.data_root and not Path(args.data_root).is_dir():
                gone = f"--data_root {args.data_root} is gone: bring it back (is it mounted?); {GO_ON}"
                raise UserError(f"{explain(error)[0]}; {gone}") from error
            raise
        torchutils.barrier()
        seconds = time.perf_counter() - begin
        if values:
            metricsfile.record(args, step.name, {"seconds": round(seconds, 2), **values})
            board.scores(step.name, values)
        logging.info("step %s took %.1f s", step.title, seconds)
    for name, problem in args.bad_images.items():
        logging.warning("left out %s: %s", name, problem)


def _possible(args: argparse.Namespace, chosen: Sequence[Step]) -> Sequence[Step]:
    """The chosen steps without those that the dataset has no ground truth for; UserError if none is left."""
    if not any(step.needs_dataset for step in chosen):
        return chosen
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
    from data.files import save_json
    from misc import torchutils

    args.bad_images = {}
    bad = dict(torchutils.gather(list(find_bad_images(args).items())))  # every rank has read its share
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
