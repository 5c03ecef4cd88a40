"""The one training loop: bar, checkpoint after every epoch, exact resume, stop on a loss that is not finite."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from misc import torchutils
from misc.files import save_torch
from misc.progress import bar


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, tuple], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    loader_of: Callable[[int], torch.utils.data.DataLoader],
    epochs: int,
    checkpoint: Path,
    title: str,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> list[float]:
    """Trains `model` in place and returns the mean loss of every epoch.

    loss_of(model, batch): the loss of a batch as the loader gives it. loader_of(epoch): that epoch's batches, which
    must depend on nothing but the epoch. checkpoint: where the state after each epoch is kept, so that a run that was
    cut off goes on there; removed by the caller once the result is stored. FloatingPointError if a loss is not finite.
    """
    first, losses = 0, []
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(state["scheduler"])
        first, losses = state["epoch"], state["losses"]
    parallel = DistributedDataParallel(model) if torchutils.world_size() > 1 else model
    model.train()
    for epoch in range(first, epochs):
        loader = loader_of(epoch)
        total = torch.zeros(())
        with bar(total=len(loader), title=f"{title} {epoch + 1}/{epochs}", unit="batch") as progress:
            for i, batch in enumerate(loader):
                loss = loss_of(parallel, batch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                value = loss.item()
                if not abs(value) < float("inf"):
                    raise FloatingPointError(
                        f"{title}: the loss is {value} in epoch {epoch + 1}, batch {i + 1}; lower the learning rate"
                    )
                total += value
                progress.set_postfix_str(f"loss {total.item() / (i + 1):.4f}", refresh=False)
                progress.update()
        losses.append(total.item() / max(1, len(loader)))
        state = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1, "losses": losses,
            "scheduler": scheduler.state_dict() if scheduler is not None else None,
        }  # fmt: skip
        if torchutils.rank() == 0:
            save_torch(checkpoint, state)
        torchutils.barrier()
    return losses
