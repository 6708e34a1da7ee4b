"""CUDA graphs of functions that are many small launches: a launch takes the host longer than the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ugsp_net import gpu

MOST = 16
"""Graphs that are kept, those that were used last: one for each shape of what a function is given."""


@dataclass
class _Graph:
    """A function that was captured."""

    graph: torch.cuda.CUDAGraph
    given: list[Tensor]
    """What it reads."""
    made: Tensor
    """What it writes."""


_graphs: OrderedDict[Any, _Graph | None] = OrderedDict()
"""None: the function ran once for such tensors, which compiled its kernels; the next time it is captured."""


def replayed(function: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """What a function makes of tensors, all of which are on one device and contiguous.

    On a CUDA device it is captured in a graph when it is called for the second time with tensors of these shapes, and
    replayed from then on. It must not wait for the device, and may depend on nothing but the tensors.
    """
    device = given[0].device
    if device.type != "cuda" or not gpu.available(device) or torch.cuda.is_current_stream_capturing():
        return function(*given)
    key = function, gpu.index_of(device), *((one.shape, one.dtype) for one in given)
    if key not in _graphs:
        made = function(*given)
        _keep(key, None)
        return made
    known = _graphs[key]
    if known is None:
        known = _captured(function, given, device)
    _keep(key, known)
    for own, one in zip(known.given, given, strict=True):
        own.copy_(one)
    with gpu.on(device):
        known.graph.replay()
    return known.made.clone()


def forget() -> None:
    """Give back the memory of all graphs."""
    _graphs.clear()


def _keep(key: Any, graph: _Graph | None) -> None:
    _graphs[key] = graph
    _graphs.move_to_end(key)
    while len(_graphs) > MOST:
        _graphs.popitem(last=False)


def _captured(function: Callable[..., Tensor], given: tuple[Tensor, ...], device: torch.device) -> _Graph:
    # What graphs read is written outside of inference mode too, in training.
    with gpu.on(device), torch.inference_mode(False), torch.no_grad():
        own = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in given]
        for one, source in zip(own, given, strict=True):
            one.copy_(source)
        graph = torch.cuda.CUDAGraph()
        # Other threads, those that pin batches for training, may go on.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            made = function(*own)
    return _Graph(graph, own, made)
