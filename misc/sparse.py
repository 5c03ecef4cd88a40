"""Sparse matrices in compressed rows: of SciPy from NumPy arrays, of PyTorch from tensors."""

import warnings

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F

Array = np.ndarray | torch.Tensor
Matrix = scipy.sparse.csr_matrix | scipy.sparse.csc_matrix | torch.Tensor


def csr_matrix(rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A sparse CSR tensor of `shape` from entries in any order, on their device; places that repeat are added up.

    rows, columns: int64 [nnz], nnz below 2^31. values: float [nnz].
    """
    order = torch.argsort(rows * shape[1] + columns)
    ends = F.pad(torch.bincount(rows, minlength=shape[0]).cumsum(0), (1, 0))
    return compressed_rows(ends, columns[order], values[order], shape)


def compressed_rows(ends: Array, columns: Array, values: Array, shape: tuple[int, int]) -> Matrix:
    """The matrix of `shape` whose row i has the entries ends[i] to ends[i + 1], fewer than 2^31 in all."""
    if isinstance(ends, np.ndarray):
        return scipy.sparse.csr_matrix((values, columns.astype(np.int32), ends.astype(np.int32)), shape)
    with warnings.catch_warnings():  # "Sparse CSR tensor support is in beta state", of every torch so far
        warnings.simplefilter("ignore", UserWarning)
        # 32 bits: products are 1.5x faster.
        return torch.sparse_csr_tensor(ends.int(), columns.int(), values, shape, check_invariants=False)


def transpose(matrix: Matrix) -> Matrix:
    """The transposed matrix. SciPy multiplies by compressed columns as fast as by rows; PyTorch does not."""
    return matrix.t().to_sparse_csr() if isinstance(matrix, torch.Tensor) else matrix.T
