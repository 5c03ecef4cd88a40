"""The one training loop: bar, checkpoint after every epoch, exact resume, stop on a loss that is not finite."""

import argparse
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data.errors import UserError
from data.files import save_json, save_torch
from data.loaders import SegmentationCrops, TrainingCrops, TrainingLoader, epoch_batches, stream_batches
from data.progress import bar
from misc import torchutils
from misc.run import board
from misc.run.made_by import differences
from misc.run.metricsfile import record
from misc.run.resume import begun, check_weights, marked, what_makes
from misc.run.workdir import PLACES, beside, place, record_path
from net.weights import find_doubled

BATCHES = {  # training step -> arguments: images of one step over all ranks, and the parts in which it is computed
    "train_cam": ("cam_batch_size",),
    "train_irn": ("irn_batch_size",),
    "train_seg": ("seg_batch_size", "seg_accumulate"),
}


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, tuple], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    loader: TrainingLoader,
    checkpoint: Path,
    title: str,
    settings: dict,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    accumulate: int = 1,
) -> list[float]:
    """Trains `model` in place and returns the mean loss of every epoch.

    loss_of(model, batch): the loss of a batch as the loader gives it. checkpoint: where the state after each epoch is
    kept, so that a run that was cut off goes on there; removed by the caller once the result is stored. settings: the
    record of what makes the weights; UserError if that of the checkpoint differs. accumulate: batches whose mean
    gradient makes one step; an epoch holds whole steps. FloatingPointError if a loss is not finite, on every rank.
    """
    first, losses, batches = 0, [], 0
    if torchutils.on_first_rank(checkpoint.is_file):
        first, losses, batches = _resume(checkpoint, settings, model, optimizer, scheduler)
        _check_same_epoch(checkpoint, first)
    model.train()
    parallel = _parallel(model)
    with bar(total=0, title=title, unit="batch") as progress:
        for epoch, n_batches, epoch_batches in loader.epochs(first):
            total = torch.zeros(())
            if epoch == first:  # one bar for the whole step, from the epoch on at which it is
                progress.reset((loader.n_epochs - first) * n_batches)
            for i, batch in enumerate(epoch_batches):
                if i % accumulate == 0:
                    optimizer.zero_grad(set_to_none=True)
                complete = (i + 1) % accumulate == 0
                with contextlib.nullcontext() if complete or parallel is model else parallel.no_sync():
                    loss = loss_of(parallel, batch)
                    (loss / accumulate).backward()
                if complete:
                    optimizer.step()
                    if scheduler is not None:
                        scheduler.step()
                value = torchutils.mean_over_ranks(loss.detach()).item()
                if not abs(value) < float("inf"):
                    raise FloatingPointError(
                        f"{title}: the loss is {value} in epoch {epoch + 1}, batch {i + 1}; lower the learning rate"
                    )
                total += value
                board.scalars(title, {"loss": value, "learning_rate": optimizer.param_groups[0]["lr"]}, batches)
                batches += 1
                _show(progress, f"epoch {epoch + 1}/{loader.n_epochs}, loss {total.item() / (i + 1):.4f}", batch)
            losses.append(total.item() / max(1, n_batches))
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict() if scheduler is not None else None,
                "epoch": epoch + 1,
                "losses": losses,
                "batches": batches,
                "settings": settings,
            }
            if torchutils.rank() == 0:
                save_torch(checkpoint, state)
            torchutils.barrier()
    return losses


def _show(progress: tqdm, text: str, batch: Sequence) -> None:
    """One batch more on the bar, with the images of all ranks per second."""
    rate = progress.format_dict["rate"]
    if rate:
        text += f", {rate * len(batch[0]) * torchutils.world_size():.1f} images/s"
    progress.set_postfix_str(text, refresh=False)
    progress.update()


def loader_by_epoch(
    crops: TrainingCrops | SegmentationCrops, names: Sequence[str], batch_size: int, n_epochs: int,
    args: argparse.Namespace, pin_memory: bool,
) -> tuple[TrainingLoader, int]:  # fmt: skip
    """The loader of a training for `fit`, and the steps of one epoch; UserError where a batch cannot be filled.

    batch_size: images of one step over all ranks.
    """
    if len(names) < batch_size:
        raise UserError(f"{len(names)} images do not fill one batch of {batch_size}; lower the batch size")
    _check_shares(batch_size)
    batches_of = partial(epoch_batches, names, batch_size, args.seed)
    return TrainingLoader(crops, batches_of, n_epochs, args.num_workers, pin_memory), len(names) // batch_size


def loader_by_iteration(
    crops: SegmentationCrops, names: Sequence[str], batch_size: int, parts: int, iterations: int, every: int,
    args: argparse.Namespace, pin_memory: bool,
) -> TrainingLoader:  # fmt: skip
    """The loader for `fit` of blocks of `every` iterations, the last of which may be shorter.

    batch_size: images of one step over all ranks and `parts`. Which images an iteration sees depends on the seed and
    its number alone, so that resuming needs no more than the number of the block.
    """
    _check_shares(batch_size, parts)

    def batches_of(block: int) -> list[list[tuple]]:
        first = block * every
        return stream_batches(names, batch_size, parts, args.seed, first, min(first + every, iterations))

    return TrainingLoader(crops, batches_of, -(-iterations // every), args.num_workers, pin_memory)


def check_batches(args: argparse.Namespace, weights: Sequence[str]) -> None:
    """UserError if the ranks cannot share the batches of a training that is still to come.

    weights: arguments of the weights files that the chosen steps make. For before the first step: the training itself
    would only find it after days of other steps.
    """
    for argument in weights:
        if _missing(args, argument):
            batch_size, *parts = BATCHES[PLACES[argument].step]
            _check_shares(getattr(args, batch_size), *(getattr(args, name) for name in parts), what=f"--{batch_size}")


def _check_shares(batch_size: int, parts: int = 1, what: str = "a batch of") -> None:
    shares = parts * torchutils.world_size()
    if batch_size % shares:
        raise UserError(
            f"{what} {batch_size} cannot be shared equally by {torchutils.world_size()} ranks"
            f"{f' in {parts} parts each' if parts > 1 else ''}; choose a multiple of {shares}, or change the others"
        )


def to_train(args: argparse.Namespace, argument: str) -> bool:
    """Whether the weights file is still to be made. A file that the user named is never replaced.

    UserError if it is there and was made with other arguments or from other inputs.
    """
    if torchutils.on_first_rank(lambda: _missing(args, argument)):
        return True
    there = torchutils.on_first_rank(lambda: find_doubled(place(args, argument)))
    logging.info("%s is there already%s", there, " and was named: it is not replaced" if args.overwrite else "")
    torchutils.on_first_rank(lambda: check_weights(args, argument))
    return False


def _missing(args: argparse.Namespace, argument: str) -> bool:
    """Whether the weights file is not there, or is to be replaced."""
    return find_doubled(place(args, argument)) is None or (not getattr(args, argument) and marked(args, argument))


def begin(args: argparse.Namespace, argument: str) -> tuple[Path, dict]:
    """The checkpoint beside the weights file and the record of what makes them; with `--overwrite` removes the old."""
    torchutils.on_first_rank(lambda: _remove_old(args, argument))
    return beside(place(args, argument), ".checkpoint"), what_makes(args, argument)


def _remove_old(args: argparse.Namespace, argument: str) -> None:
    """Removes what is to be made anew, now: a run that is cut off and goes on must not take the old for its own."""
    if marked(args, argument):
        target = place(args, argument)
        beside(target, ".checkpoint").unlink(missing_ok=True)
        while (old := find_doubled(target)) is not None:
            old.unlink()
        begun(args, argument)


def finish(
    args: argparse.Namespace, argument: str, model: nn.Module, settings: dict, values: dict, start: float
) -> None:
    """Stores the trained weights and the record of what made them, and removes the checkpoint.

    values: what the training measured, for metrics.json: stored before the weights, for once these are there nobody
    trains again. start: of the step, by time.perf_counter().
    """
    target = place(args, argument)
    record(args, PLACES[argument].step, {"seconds": round(time.perf_counter() - start, 2), **values})
    if torchutils.rank() == 0:
        save_json(record_path(args, argument), settings)
        save_torch(target, model.cpu().state_dict())
        beside(target, ".checkpoint").unlink(missing_ok=True)
    torchutils.barrier()


def _resume(
    checkpoint: Path,
    settings: dict,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
) -> tuple[int, list[float], int]:
    """Takes up a run that was cut off: the next epoch, the losses and the number of batches so far.

    UserError if the checkpoint is damaged or was made with other settings; what the system or the memory refuses says
    nothing of the file and goes through.
    """
    redo = f"delete {checkpoint} to begin anew, or add --overwrite"
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        changed = differences(state["settings"], settings)
        if not any(changed):
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if scheduler is not None:
                scheduler.load_state_dict(state["scheduler"])
            return int(state["epoch"]), [float(loss) for loss in state["losses"]], int(state["batches"])
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{checkpoint} is not a whole checkpoint; {redo}") from error
    raise UserError(f"{checkpoint} was made otherwise: {changed}. Give the same again, or {redo}")


def _check_same_epoch(checkpoint: Path, epoch: int) -> None:
    """UserError on every rank if one goes on at another epoch: over a network it may have read an older file."""
    epochs = torchutils.gather([epoch])
    if len(set(epochs)) > 1:
        raise UserError(
            f"the ranks read {checkpoint} as of epochs {', '.join(map(str, epochs))}: the disk shows some of them an "
            "older file; wait a minute, then the same command goes on"
        )


def _parallel(model: nn.Module) -> nn.Module:
    """The model for this many ranks; only buffers that training changes are sent around."""
    if torchutils.world_size() == 1:
        return model
    changing = any(isinstance(module, nn.BatchNorm2d) and module.training for module in model.modules())
    return DistributedDataParallel(model, broadcast_buffers=changing)
