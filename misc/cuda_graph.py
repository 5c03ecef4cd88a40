"""A function as CUDA graphs: recorded for every shape of its arguments, then replayed."""

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from misc.memory import out_of_memory


class Graphs:
    """Calls a function, on a GPU by replaying a CUDA graph, which saves launching thousands of kernels one by one.

    On a CPU, and where recording fails, every call is an ordinary one; the results are the same.
    The function, always the same, takes and returns tensors, in lists and tuples, beside constants. What it changes
    besides (weights) has to keep its place in memory, and nothing in it may wait for the device. What it returns is
    overwritten by later calls.
    most: graphs that are kept; the least recently used one goes. They share the memory that they work in.
    enabled: set it to False for ordinary calls. recorded: how many graphs have been made.
    """

    def __init__(self, most: int = 16):
        self.most = most
        self.graphs: OrderedDict[Any, tuple] = OrderedDict()
        self.inputs: WeakValueDictionary[Any, torch.Tensor] = WeakValueDictionary()
        self.warm, self.enabled, self.recorded = False, True, 0

    def __call__(self, function: Callable, *args: Any) -> Any:
        """function(*args)."""
        leaves, structure = tree_flatten(args)
        tensors = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
        if not self.enabled or not all(tensor.is_cuda for tensor in tensors.values()):
            return function(*args)
        if not self.warm:  # the first call loads libraries and kernels, which must not happen while recording
            self.warm = True
            return function(*args)
        key = (structure, *(_kind(leaf) for leaf in leaves))
        if key not in self.graphs:
            if len(self.graphs) >= self.most:
                torch.cuda.synchronize()
                self.graphs.popitem(last=False)
            try:
                self.graphs[key] = self._record(function, leaves, structure)
                self.recorded += 1
            except RuntimeError as error:
                self.clear()
                if out_of_memory(error) or out_of_memory(error.__context__):  # the end of a recording hides the reason
                    raise torch.OutOfMemoryError("CUDA out of memory while recording a graph") from error
                self.enabled = False
                logging.warning("CUDA graph capture failed, running without graphs (slower): %s", error)
                return function(*args)
        self.graphs.move_to_end(key)
        graph, inputs, outputs = self.graphs[key]
        for i, tensor in tensors.items():
            inputs[i].copy_(tensor)
        graph.replay()
        return outputs

    def clear(self) -> None:
        """Forgets the graphs, which gives back their memory."""
        if self.graphs:
            torch.cuda.synchronize()
            self.graphs.clear()

    def _record(self, function: Callable, leaves: list, structure: Any) -> tuple[torch.cuda.CUDAGraph, list, Any]:
        """(graph, what it reads its arguments from, what it returns)."""
        inputs = [self._input(i, leaf) if isinstance(leaf, torch.Tensor) else leaf for i, leaf in enumerate(leaves)]
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        graph, stream, collects = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), gc.isenabled()
        gc.disable()  # were another graph collected as garbage meanwhile, the recording would fail
        try:  # other threads, as those of data loaders, may go on using the device
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = function(*tree_unflatten(inputs, structure))
        finally:
            torch.cuda.set_stream(stream)  # a recording that fails leaves its own behind
            if collects:
                gc.enable()
        return graph, inputs, outputs

    def _input(self, i: int, tensor: torch.Tensor) -> torch.Tensor:
        """Where the graphs read argument i of the tensor's kind from."""
        key = (i, _kind(tensor))
        fixed = self.inputs.get(key)
        if fixed is None:
            fixed = self.inputs[key] = torch.empty_like(tensor)
        return fixed


def read_later(numbers: torch.Tensor) -> Callable[[], list[float]]:
    """A function that gives numbers.tolist(), and waits for nothing that a GPU is given to do after this call."""
    if not numbers.is_cuda:
        return numbers.tolist
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def read() -> list[float]:
        event.synchronize()
        return host.tolist()

    return read


def _kind(leaf: Any) -> Any:
    """The part of a graph's key that one argument makes: shape, type and strides of a tensor, a constant itself.

    Arguments of equal parts are served by the same graph.
    """
    return (leaf.shape, leaf.dtype, leaf.stride()) if isinstance(leaf, torch.Tensor) else leaf
