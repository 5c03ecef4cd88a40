"""Sparse matrices in compressed rows."""

import warnings

import torch
import torch.nn.functional as F


def csr_matrix(rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A sparse CSR tensor of `shape` from entries in any order, on their device; places that repeat are added up.

    rows, columns: int64 [nnz], nnz below 2^31. values: float [nnz].
    """
    order = torch.argsort(rows * shape[1] + columns)
    ends = F.pad(torch.bincount(rows, minlength=shape[0]).cumsum(0), (1, 0)).int()  # 32 bits: products are 1.5x faster
    with warnings.catch_warnings():  # "Sparse CSR tensor support is in beta state", of every torch so far
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(ends, columns[order].int(), values[order], shape, check_invariants=False)
