"""The one training loop: bar, checkpoint after every epoch, exact resume, stop on a loss that is not finite."""

import argparse
import contextlib
import inspect
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data.base import Dataset
from data.errors import UserError
from data.files import save_json, save_torch
from data.loaders import SegmentationCrops, TrainingCrops, TrainingLoader, epoch_batches, stream_batches
from data.progress import bar
from misc import torchutils
from misc.run import board
from misc.run.outputs import OUTPUTS, check_provenance, path_of, provenance, record, record_file
from misc.run.provenance import check_same
from net.weights import find_doubled


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, tuple, tuple], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    loader: TrainingLoader,
    training: "Training",
    title: str,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    accumulate: int = 1,
) -> list[float]:
    """Trains `model` in place and returns the mean loss of every epoch.

    loss_of(model, part, batch): the loss of a part of a batch as the loader gives it. training: its files; the state
    after each epoch is kept there, so that an interrupted run resumes bit by bit. accumulate: equal parts of a batch,
    computed one after the other to save memory; the mean of their losses is the batch's. FloatingPointError if a loss
    is not finite, on every rank.
    """
    parts = {"model": model, "optimizer": optimizer, **({"scheduler": scheduler} if scheduler else {})}
    first, losses, batches = 0, [], 0
    if torchutils.on_first_rank(training.checkpoint.is_file):
        first, losses, batches = _resume(training, parts)
        logging.info("%s: resuming after epoch %d", title, first)
    model.train()
    parallel = _parallel(model)
    with bar(total=0, title=title, unit="batch") as progress:
        for epoch, n_batches, loaded in loader.epochs(first):
            total = torch.zeros(())
            if epoch == first:  # one bar for the whole step, from the epoch on at which it is
                progress.reset((loader.n_epochs - first) * n_batches)
            for i, batch in enumerate(loaded):
                value = _train_step(parallel, loss_of, optimizer, batch, accumulate)
                if scheduler is not None:
                    scheduler.step()
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{title}: the loss is {value} in epoch {epoch + 1}, batch {i + 1}; lower the learning rate"
                    )
                total += value
                board.scalars(title, {"loss": value, "learning_rate": optimizer.param_groups[0]["lr"]}, batches)
                batches += 1
                _show(progress, f"epoch {epoch + 1}/{loader.n_epochs}, loss {total.item() / (i + 1):.4f}", batch)
            losses.append(total.item() / max(1, n_batches))
            if not sys.stderr.isatty():  # where the bar shows it
                logging.info("%s: epoch %d of %d, loss %.4f", title, epoch + 1, loader.n_epochs, losses[-1])
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"epoch": epoch + 1, "losses": losses, "batches": batches, "settings": training.provenance}
            if torchutils.rank() == 0:
                save_torch(training.checkpoint, state)
            torchutils.barrier()
    return losses


def _train_step(parallel, loss_of, optimizer, batch: Sequence, accumulate: int) -> float:
    """One update of the weights; returns the loss, its mean over the ranks."""
    optimizer.zero_grad(set_to_none=True)
    value = 0.0
    for n, part in enumerate(zip(*(column.chunk(accumulate) for column in batch), strict=True), 1):
        last = n == accumulate or not isinstance(parallel, DistributedDataParallel)
        with contextlib.nullcontext() if last else parallel.no_sync():
            loss = loss_of(parallel, part, batch) / accumulate
            loss.backward()
        value = value + loss.detach()
    optimizer.step()
    return torchutils.mean_over_ranks(value).item()


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
    batches_of = partial(epoch_batches, names, batch_size, args.seed)
    return TrainingLoader(crops, batches_of, n_epochs, args.num_workers, pin_memory), len(names) // batch_size


def loader_by_iteration(
    crops: SegmentationCrops, names: Sequence[str], batch_size: int, iterations: int, every: int,
    args: argparse.Namespace, pin_memory: bool,
) -> TrainingLoader:  # fmt: skip
    """The loader for `fit` of blocks of `every` iterations, the last of which may be shorter.

    batch_size: images of one step over all ranks. Which images an iteration sees depends on the seed and its number
    alone, so that resuming needs no more than the number of the block.
    """

    def batches_of(block: int) -> list[list[tuple]]:
        first = block * every
        return stream_batches(names, batch_size, args.seed, first, min(first + every, iterations))

    return TrainingLoader(crops, batches_of, -(-iterations // every), args.num_workers, pin_memory)


def check_batches(args: argparse.Namespace, steps: Sequence[str]) -> None:
    """UserError if a batch of one of these trainings, if it is still to be done, cannot be divided by ranks and parts.

    Called before the first step, so that a run does not stop days later.
    """
    for argument, entry in OUTPUTS.items():
        kind = entry.step.removeprefix("train_")
        wanted = entry.step in steps and kind != entry.step and entry.seg_labels in (None, *args.seg_labels)
        again = args.overwrite and not getattr(args, argument)
        if wanted and (again or find_doubled(path_of(args, argument)) is None):
            batch_size, parts = getattr(args, f"{kind}_batch_size"), getattr(args, f"{kind}_accumulate")
            shares = parts * torchutils.world_size()
            if batch_size % shares:
                raise UserError(
                    f"--{kind}_batch_size {batch_size} cannot be shared equally by {torchutils.world_size()} ranks"
                    f"{f' in {parts} parts each' if parts > 1 else ''}; choose a multiple of {shares}, or change the "
                    "others"
                )


class Training:
    """The files of one training: whether it is still to do, its checkpoint, and at its end its weights and figures.

    argument: of the weights file in OUTPUTS. UserError if the file exists and was made by something else, unless the
    user named it.
    """

    def __init__(self, args: argparse.Namespace, dataset: Dataset, argument: str):
        self.args, self.dataset, self.argument, self.start = args, dataset, argument, time.perf_counter()
        self.weights = path_of(args, argument)
        self.checkpoint = self.weights.with_suffix(".checkpoint")
        self.finished = torchutils.on_first_rank(self._is_finished)

    @cached_property
    def provenance(self) -> dict:
        """What makes the weights; asked for once the inputs are there, some of which the step itself makes."""
        return provenance(self.args, self.dataset, self.argument)

    def _is_finished(self) -> bool:
        if find_doubled(self.weights) is None:
            return False
        logging.info("%s exists, skipping the training", self.weights)
        if not getattr(self.args, self.argument):
            check_provenance(self.args, self.argument, self.provenance)
        return True

    def finish(self, model: nn.Module, values: dict) -> None:
        """Stores weights, provenance and figures (values: for metrics.json), and removes the checkpoint."""
        # The figures first: once the weights exist nobody trains again.
        step = OUTPUTS[self.argument].step
        record(self.args, step, {"seconds": round(time.perf_counter() - self.start, 2), **values})
        if torchutils.rank() == 0:
            save_json(record_file(self.args, self.argument), self.provenance)
            save_torch(self.weights, model.cpu().state_dict())
            self.checkpoint.unlink(missing_ok=True)
        torchutils.barrier()


def _resume(training: "Training", parts: dict) -> tuple[int, list[float], int]:
    """Takes up a run that was interrupted: the next epoch, the losses and the number of batches so far.

    UserError if the checkpoint is damaged or was made with other settings.
    """
    try:
        state = torch.load(training.checkpoint, map_location="cpu", weights_only=True)
        check_same(training.checkpoint, state["settings"], training.provenance)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["epoch"]), [float(loss) for loss in state["losses"]], int(state["batches"])
    except (UserError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{training.checkpoint} is damaged; delete it, or use --overwrite, to start again") from error


def _parallel(model: nn.Module) -> nn.Module:
    """The model for this many ranks; only buffers that training changes are sent around."""
    if torchutils.world_size() == 1:
        return model
    changing = any(isinstance(module, nn.BatchNorm2d) and module.training for module in model.modules())
    # torch 2.13 gave this flag a new name and warns of the old one.
    known = inspect.signature(DistributedDataParallel).parameters
    flag = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(model, **{flag: changing})
