"""CUDA graphs of functions that are many small launches: a launch takes the host longer than the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ugsp_net import gpu

MOST = 16
"""Graphs that are kept, those that were used last: one for each function and shape of what it is given, and up to
``PLACES`` more."""
KNOWN = 64
"""Functions and shapes of which calls are counted, and of each as many places in memory."""
USES = 3
"""Calls with tensors of the same shapes, or in the same places, up to which a function is not captured: that takes
longer than it gains."""
LARGE = 1 << 20
"""Bytes from which a tensor is read where it lies, if it lies there often: what the levels read is 68 MB for a frame of
1920x1080. Memory that is asked for in the same order again and again lies in the same places."""
PLACES = 2
"""Places of large tensors, for each of which a function is captured by itself, at most: each keeps what it writes."""


@dataclass
class _Graph:
    """A captured function."""

    graph: torch.cuda.CUDAGraph
    given: tuple[Tensor | None, ...]
    """What it reads, into which everything is copied; None: that is read where it lies."""
    made: tuple[Tensor, ...]
    """What it writes."""

    def replay(self, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for own, one in zip(self.given, given, strict=True):
            if own is not None:
                own.copy_(one)
        with gpu.on(given[0].device):
            self.graph.replay()
        return self.made


@dataclass
class _Known:
    """A function and the shapes of what it is given. None stands for anywhere, beside places of large tensors."""

    calls: OrderedDict[tuple[int, ...] | None, int] = field(default_factory=OrderedDict)
    graphs: OrderedDict[tuple[int, ...] | None, _Graph] = field(default_factory=OrderedDict)
    fails: bool = False
    """Whether it could not be captured, perhaps for want of memory."""

    def called(self, where: tuple[int, ...] | None) -> int:
        """How often, with this call."""
        self.calls[where] = self.calls.get(where, 0) + 1
        self.calls.move_to_end(where)
        while len(self.calls) > KNOWN:
            self.calls.popitem(last=False)
        return self.calls[where]


_known: OrderedDict[Any, _Known] = OrderedDict()
_pools: dict[int, Any] = {}
"""Of each device: graphs are replayed one after the other, so that they share what they need in between."""


def replayed(function: Callable[..., tuple[Tensor, ...]], key: Any, *given: Tensor) -> tuple[Tensor, ...]:
    """What a function makes of tensors on one device; overwritten by a later call with such a key and such shapes.

    On a CUDA device it is captured in a graph after some calls with tensors of the same shapes, and replayed from then
    on. It must not wait for the device, and depend on nothing but the tensors and what the key stands for.
    """
    device = given[0].device
    if not _captures(device):
        return function(*given)
    whole = key, gpu.index_of(device), *((one.shape, one.dtype, one.stride()) for one in given)
    known = _known.setdefault(whole, _Known())
    _known.move_to_end(whole)
    while len(_known) > KNOWN:
        _known.popitem(last=False)
    places = tuple(one.data_ptr() if _is_large(one) else 0 for one in given)
    often = known.called(places) > USES and len(known.graphs) - (None in known.graphs) < PLACES
    where = places if any(places) and (often or places in known.graphs) else None
    if where is None:
        often = known.called(None) > USES
    if where not in known.graphs and often and not known.fails:
        _capture(known, where, function, given)
    if where not in known.graphs:
        return function(*given)
    known.graphs.move_to_end(where)
    return known.graphs[where].replay(given)


def forget() -> None:
    """Give back the memory of all graphs."""
    _known.clear()
    _pools.clear()


def _captures(device: torch.device) -> bool:
    return device.type == "cuda" and gpu.available(device) and not torch.cuda.is_current_stream_capturing()


def _is_large(one: Tensor) -> bool:
    return one.numel() * one.element_size() >= LARGE


def _capture(
    known: _Known, where: tuple[int, ...] | None, function: Callable[..., tuple[Tensor, ...]], given: tuple[Tensor, ...]
) -> None:
    while sum(len(one.graphs) for one in _known.values()) >= MOST:
        next(one for one in _known.values() if one.graphs).graphs.popitem(last=False)
    device, index = given[0].device, gpu.index_of(given[0].device)
    if index not in _pools:
        _pools[index] = torch.cuda.graph_pool_handle()
    # What graphs read is written outside of inference mode too, in training.
    with gpu.on(device), torch.inference_mode(False), torch.no_grad():
        own = tuple(None if where is not None and _is_large(one) else torch.empty_like(one).copy_(one) for one in given)
        read = (one if mine is None else mine for mine, one in zip(own, given, strict=True))
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, those that pin batches for training, may go on.
            with torch.cuda.graph(graph, pool=_pools[index], capture_error_mode="thread_local"):
                made = function(*read)
        except RuntimeError:
            known.fails = True
            return
    known.graphs[where] = _Graph(graph, own, made)
    if where is not None:  # perhaps the one that copies is no longer needed
        known.graphs.pop(None, None)
        known.calls.pop(None, None)
