"""Going on with less at a time where memory runs out."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")
# As PyTorch, CUDA, cuDNN and cuBLAS say it, and PyTorch on a CPU; not all of them raise torch.OutOfMemoryError.
_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|CUDA (driver )?error: out of memory|CU(DNN|BLAS)_STATUS_\w*ALLOC\w*_FAILED|DefaultCPUAllocator"
)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, of a GPU or of the machine, in any form in which PyTorch tells of it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def split(rows: int | None, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors [B, ...], B > 0, in parts of so many rows; None: all at once."""
    return zip(*(tensor.split(rows or len(tensor)) for tensor in tensors), strict=True)


class Rows:
    """How many rows of a batch go through a network at once: all, or fewer once memory has run out.

    most: rows at a time, None: all. before: called before every further attempt.
    """

    def __init__(self, before: Callable[[], None] = lambda: None):
        self.most: int | None = None
        self.before = before

    def retry(self, work: Callable[[int | None], T], batch: int) -> T:
        """work(most), and again with half as many rows at a time for as long as memory runs out.

        batch: rows of the largest batch in it. The error is raised where one row at a time is too much.
        """
        while True:
            try:
                return work(self.most)
            except (RuntimeError, MemoryError) as error:
                if self.most == 1 or not out_of_memory(error):
                    raise
            self.most = max(1, min(batch, self.most or batch) // 2)  # out of the handler: errors keep tensors alive
            logging.warning("out of memory, retrying with %d images at a time", self.most)
            self.before()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
