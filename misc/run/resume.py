"""What is still to be made, and whether what is there was made by the same: records, resume, `--overwrite`."""

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from data import dataset_module, image_names, open_dataset
from data.base import Dataset
from data.errors import UserError
from data.files import find_doubled, load_json, save_json
from misc.run import made_by
from misc.run.metricsfile import forget
from misc.run.workdir import ALWAYS, PLACES, place, record_path, result_file, seeds_argument
from misc.torchutils import on_first_rank, rank, shard

_INPUT_WORDS = {
    "seeds": "seeds", "cam_weights_name": "classifier weights", "irn_weights_name": "boundary network weights",
    "ir_label_out_dir": "CRF labels", "cam_out_dir": "plain CAMs", "sem_seg_out_dir": "pseudo masks",
}  # fmt: skip


def pending(args: argparse.Namespace, argument: str, names: Sequence[str], suffix: str) -> list[str]:
    """This rank's images whose result file is still to be made; with `--overwrite` all, and the old ones are removed.

    Also keeps the record of what makes them: UserError if what is there was made by something else.
    """
    missing = set(on_first_rank(lambda: _settle(args, argument, names, suffix)))
    return [name for name in shard(names) if name in missing]


@contextlib.contextmanager
def overwriting(args: argparse.Namespace, steps: Sequence[str]) -> Iterator[None]:
    """While the steps run: a note on disk of the places that `--overwrite` is to make anew and has not come to.

    A run that is cut off goes on without `--overwrite`, and must not take old results for new ones. A run that is
    refused before it has touched any leaves no note.
    """
    on_first_rank(lambda: _note(args, steps))
    before = set(_marks(args)) if rank() == 0 else set()
    added = set(_paths(args, steps)) if args.overwrite else set()
    if rank() == 0 and added:
        _keep_marks(args, before | added)
    try:
        yield
    except UserError:
        if rank() == 0 and added and added <= set(_marks(args)):
            _keep_marks(args, before)
        raise
    on_first_rank(lambda: _keep_marks(args, set(_marks(args)) - set(_paths(args, steps))))


def _note(args: argparse.Namespace, steps: Sequence[str]) -> None:
    """Says what an earlier run has left to be made anew."""
    left = sorted(set(_marks(args)) & set(_paths(args, steps)))
    if left and not args.overwrite:
        text = "an earlier --overwrite was cut off before it came to %s: made anew now (to keep it, stop and delete %s)"
        logging.warning(text, ", ".join(left), _marks_path(args))


def marked(args: argparse.Namespace, argument: str) -> bool:
    """Whether what is in a place is to be made anew: by `--overwrite`, or by that of a run that was cut off."""
    return args.overwrite or _path(args, argument) in _marks(args)


def begun(args: argparse.Namespace, argument: str) -> None:
    """A place that was marked holds nothing old any more; on rank 0."""
    _keep_marks(args, set(_marks(args)) - {_path(args, argument)})


def _paths(args: argparse.Namespace, steps: Sequence[str]) -> list[str]:
    return [_path(args, argument) for argument, entry in PLACES.items() if entry.step in steps and used(args, argument)]


def _path(args: argparse.Namespace, argument: str) -> str:
    """As the note has it: below `--work_dir`, wherever that is mounted."""
    return os.path.relpath(place(args, argument).resolve(), Path(args.work_dir).resolve())


def used(args: argparse.Namespace, argument: str) -> bool:
    """Whether a place is none of a segmentation network that `--seg_labels` does not name."""
    return PLACES[argument].seg_labels in (None, *args.seg_labels)


def _marks(args: argparse.Namespace) -> list[str]:
    found = load_json(_marks_path(args)).get("anew", [])
    if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
        raise UserError(f"{_marks_path(args)} is damaged; delete it and give the same command again with --overwrite")
    return found


def _keep_marks(args: argparse.Namespace, marks: set[str]) -> None:
    if marks != set(_marks(args)):
        save_json(_marks_path(args), {"anew": sorted(marks)})
    if not marks:
        _marks_path(args).unlink(missing_ok=True)


def _marks_path(args: argparse.Namespace) -> Path:
    return Path(args.work_dir) / ".overwrite.json"


def what_makes(args: argparse.Namespace, argument: str) -> dict:
    """The record, as `misc.run.made_by` compares it, of what would make the content of a place of PLACES now."""
    entry, dataset = PLACES[argument], open_dataset(args)
    named = [
        name for name in vars(args)
        if any(fnmatchcase(name, pattern) for pattern in (*ALWAYS, *entry.arguments))
        and not name.endswith(("_out_dir", "_weights_name", "_pass"))
    ]  # fmt: skip
    values = {f"--{name}": getattr(args, name) for name in sorted(named)}
    for purpose in entry.lists:
        values[f"--{purpose}_list"] = made_by.of_names(image_names(args, dataset, purpose))
    if entry.labels and (labels := _labels(args, dataset)):
        values["labels of --train_list"] = labels
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


def _labels(args: argparse.Namespace, dataset: Dataset) -> str | None:
    """The image-level labels of the training list, with those of bad images if they have any; None without the list."""
    with contextlib.suppress(UserError):  # who only makes CAMs of other images may have none
        names = dataset.names_of(args.train_list)
        for listed in (names, [name for name in names if name not in args.bad_images]):
            with contextlib.suppress(UserError):
                return made_by.of_array(dataset.labels(listed))
    return None


def some_images(args: argparse.Namespace, dataset: Dataset, purpose: str) -> dict[str, str]:
    """name -> digest of the pixels, of three images of a list without its `--limit`; {} where one cannot be read.

    They tell data at another `--data_root` from other data; without a root there is nothing to tell.
    """
    if not args.data_root:
        return {}
    try:
        names = [name for name in dataset.names_of(getattr(args, f"{purpose}_list")) if name not in args.bad_images]
        chosen = [names[i] for i in sorted({0, len(names) // 2, len(names) - 1})] if names else []
        return {name: made_by.of_array(dataset.image(name)) for name in chosen}
    except (UserError, OSError):
        return {}


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


def outdated(args: argparse.Namespace) -> list[str]:
    """The results that were made from inputs which have been replaced since, in words; for whoever shows them all."""
    found = []
    for argument, entry in PLACES.items():
        with contextlib.suppress(UserError):  # a damaged record
            for key, then in (made_by.read(record_path(args, argument)) or {"inputs": {}})["inputs"].items():
                name = key.removeprefix("--")
                # Seeds of either kind, whatever `--seeds` says today. What has been deleted was not replaced.
                sources = ("cam_out_dir", "cam_rib_out_dir") if name == "seeds" else (name,)
                there = all(source in PLACES and place(args, source).exists() for source in sources)
                if there and then not in [_input(args, source) for source in sources]:
                    found.append(f"{entry.path} was made from {_INPUT_WORDS[name]} that have been replaced since")
    return found


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
        forget(args, argument)
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
        forget(args, argument)
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


def _mixed(what: Path, found: made_by.Differences, record_file: Path, step: str) -> UserError:
    return UserError(
        f"{what} was made otherwise: {found}. Give the same again, add --overwrite to make it anew (from there on: "
        f"--steps {step}-report --overwrite), or choose another --work_dir; to take it as it is, delete {record_file}"
    )


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
