"""Sums over the ranks of a job, for losses that count pixels or pairs of all ranks."""

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor without gradient over the ranks."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value
