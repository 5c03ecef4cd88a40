"""Devices, precision, seeds, ranks and the published optimiser."""

import contextlib
import datetime
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from net.ranks import sum_over_ranks, world_size


class PolyOptimizer(torch.optim.SGD):
    """SGD whose learning rates fall as (1 - step / max_step) ** power (IRN, misc/torchutils.py).

    max_step: steps of the whole schedule; after it nothing changes any more. Groups carry their own `weight_decay`.
    options: of torch.optim.SGD.
    """

    def __init__(self, params, lr: float, weight_decay: float, max_step: int, power: float = 0.9, **options):
        # FIDELITY: the published optimiser hands weight decay to SGD's momentum slot, so momentum is 1e-4, not 0.9.
        super().__init__(params, lr, momentum=weight_decay, **options)
        self.global_step = 0
        self.max_step = max_step
        self.power = power
        self.initial_lr = [float(group["lr"]) for group in self.param_groups]

    def set_rates(self, step: int) -> None:
        """The learning rates of a step, 0-based; in place where they are tensors."""
        factor = poly_factor(step, self.max_step, self.power)
        for group, lr in zip(self.param_groups, self.initial_lr, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr * factor)
            else:
                group["lr"] = lr * factor

    def step(self, closure=None):
        """One step with the learning rates of this step; no change once `max_step` is reached."""
        if self.global_step < self.max_step:
            self.set_rates(self.global_step)
            super().step(closure)
        self.global_step += 1

    def update(self) -> None:
        """The update alone, at the rates that are set; the gradients are then gone."""
        super().step()
        self.zero_grad()

    def reset(self) -> None:
        """Back to the start: no gradients, and momentum buffers of zeros that keep their place in memory."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter)).zero_()
        self.zero_grad()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "global_step": self.global_step}

    def load_state_dict(self, state_dict: dict) -> None:
        self.global_step = state_dict["global_step"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "global_step"})


def poly_factor(step: int, max_step: int, power: float = 0.9) -> float:
    """The factor of the learning rate at `step` (0-based) of `max_step`, 0 from there on."""
    return max(0.0, 1 - step / max_step) ** power


def resolve_device(name: str) -> torch.device:
    """torch.device of "auto", "cpu" or "cuda"; with several ranks, the local rank's GPU, which ranks may share."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def set_precision(precision: str, deterministic: bool = False) -> None:
    """Float32 products in full precision, or in TF32 where `--precision tf32` says so.

    deterministic: cuDNN's algorithms are to give the same bits every time.
    """
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bfloat16 autocast for `--precision bf16`, nothing otherwise."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def seed_everything(seed: int) -> None:
    """Seeds torch's generators; NumPy draws come from `rng`, never from global state."""
    torch.manual_seed(seed)


def rank() -> int:
    """Rank of this process, 0 when there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Waits for the other ranks."""
    if dist.is_initialized():
        dist.barrier()


def on_first_rank(function: Callable[[], Any]) -> Any:
    """Calls function() on rank 0 alone and returns its value on every rank; an error on rank 0 ends the job.

    For what all ranks must decide alike: on a network disk they may see different states of a folder.
    """
    values = [function() if rank() == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def shard(items: Sequence) -> list:
    """Every R-th item, this rank's share."""
    return list(items[rank() :: world_size()])


def all_reduce_sum(array: np.ndarray) -> np.ndarray:
    """Sum of an integer or float array over the ranks."""
    if not dist.is_initialized():
        return array
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over the ranks."""
    return sum_over_ranks(value) / world_size()


def gather(values: list) -> list:
    """The values of all ranks, one list on every rank."""
    if not dist.is_initialized():
        return values
    parts: list = [None] * world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def init_ranks(device_name: str) -> None:
    """Joins the process group of the ranks: NCCL's if each has a GPU to itself, else gloo's."""
    device = resolve_device(device_name)  # named before the first collective: not all on GPU 0
    own = device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()
    # Ranks finish their shares of a step at different times; a rank that dies is its launcher's to notice.
    backend, patience = ("nccl" if own else "gloo"), datetime.timedelta(days=1)
    dist.init_process_group(backend, timeout=patience, device_id=device if own else None)
