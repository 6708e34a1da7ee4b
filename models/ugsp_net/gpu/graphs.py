"""CUDA graphs of functions that are many small launches: a launch takes the host longer than the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ugsp_net import gpu

MOST = 12
"""Graphs that are kept, those that were used last: one for each function and shape of what it is given."""
KNOWN = 64
"""Functions and shapes of which calls are counted."""
USES = 3
"""Calls with tensors of the same shapes up to which a function is not captured: that takes longer than it gains."""


@dataclass
class _Graph:
    """A function, and the graph that it was captured in."""

    calls: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    given: tuple[Tensor, ...] = ()
    """What it reads."""
    made: tuple[Tensor, ...] = ()
    """What it writes."""
    fails: bool = False
    """Whether it could not be captured, perhaps for want of memory."""


_graphs: OrderedDict[Any, _Graph] = OrderedDict()
_pools: dict[int, Any] = {}
"""Of each device: graphs are replayed one after the other, so that they share what they need in between."""


def replayed(function: Callable[..., tuple[Tensor, ...]], key: Any, *given: Tensor) -> tuple[Tensor, ...]:
    """What a function makes of tensors on one device; overwritten by the next call with such a key and such shapes.

    On a CUDA device it is captured in a graph after some calls with tensors of the same shapes, and replayed from then
    on. It must not wait for the device, and depend on nothing but the tensors and what the key stands for.
    """
    device = given[0].device
    if device.type != "cuda" or not gpu.available(device) or torch.cuda.is_current_stream_capturing():
        return function(*given)
    index = gpu.index_of(device)
    whole = key, index, *((one.shape, one.dtype, one.stride()) for one in given)
    known = _graphs.setdefault(whole, _Graph())
    _graphs.move_to_end(whole)
    while len(_graphs) > KNOWN:
        _graphs.popitem(last=False)
    known.calls += 1
    if known.graph is None and known.calls > USES and not known.fails:
        _capture(known, function, given, index)
    if known.graph is None:
        return function(*given)
    for own, one in zip(known.given, given, strict=True):
        own.copy_(one)
    with gpu.on(device):
        known.graph.replay()
    return known.made


def forget() -> None:
    """Give back the memory of all graphs."""
    _graphs.clear()
    _pools.clear()


def _capture(known: _Graph, function: Callable[..., tuple[Tensor, ...]], given: tuple[Tensor, ...], index: int) -> None:
    while sum(one.graph is not None for one in _graphs.values()) >= MOST:
        del _graphs[next(key for key, one in _graphs.items() if one.graph is not None)]
    if index not in _pools:
        _pools[index] = torch.cuda.graph_pool_handle()
    # What graphs read is written outside of inference mode too, in training.
    with gpu.on(given[0].device), torch.inference_mode(False), torch.no_grad():
        own = tuple(torch.empty_like(one).copy_(one) for one in given)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, those that pin batches for training, may go on.
            with torch.cuda.graph(graph, pool=_pools[index], capture_error_mode="thread_local"):
                known.made = function(*own)
        except RuntimeError:
            known.fails = True
            return
    known.graph, known.given = graph, own
