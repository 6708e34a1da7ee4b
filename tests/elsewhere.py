"""A device beside the processor, for machines that have none: what is put together from both is an error, as on a card.

Tensors there say that their device is ``DEVICE`` and hold their values on the processor, which does the arithmetic. So
the ways of a graphics card run anywhere, one launch for a batch among them, and must give what the processor gives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # optimizers import it late, and it would meet the stand-in for torch.Generator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")
"""The one name of a device that every build of torch accepts; real meta tensors, which hold nothing, are refused."""

_aten = torch.ops.aten
_MOVES = {_aten._to_copy, _aten.to}
_TAKES_BOTH = {*_MOVES, _aten.copy_, _aten.index}
"""Operations that take tensors of two devices; CUDA's take indices from the processor."""
_Generator = torch.Generator


class Elsewhere(torch.Tensor):
    """A tensor on ``DEVICE``."""

    held: Tensor
    """On the processor."""

    @staticmethod
    def __new__(cls, values: Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.held = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class GeneratorElsewhere(_Generator):
    """A generator on ``DEVICE``, or one on the processor."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:  # type: ignore[misc]
        return _Generator.__new__(cls if _is_there(device) else _Generator)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it is."""
        return DEVICE


@contextlib.contextmanager
def device_elsewhere() -> Iterator[torch.device]:
    """While it is open, ``DEVICE`` works."""
    autocast, is_enabled, dtype = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype

    def named(device_type: str) -> str:
        return "cpu" if device_type == DEVICE.type else device_type

    with (
        mock.patch.object(torch, "Generator", GeneratorElsewhere),
        mock.patch.object(torch, "autocast", lambda kind, *rest, **how: autocast(named(kind), *rest, **how)),
        mock.patch.object(torch, "is_autocast_enabled", lambda kind: is_enabled(named(kind))),
        mock.patch.object(torch, "get_autocast_dtype", lambda kind: dtype(named(kind))),
        _Functions(),
        _Factories(),
    ):
        yield DEVICE


def _is_there(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation, where its operands are."""
    packet = func.overloadpacket
    if packet is _aten._has_compatible_shallow_copy_type:
        return False
    flat, spec = tree_flatten((args, kwargs))
    tensors = [item for item in flat if isinstance(item, Tensor)]
    there = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}
    for tensor in tensors:
        if not isinstance(tensor, Elsewhere):
            assert not _is_there(tensor.device), f"{func}: a tensor without values"
            if there and tensor.dim() and packet not in _TAKES_BOTH:
                raise RuntimeError(f"{func}: tensors on two devices, {[tuple(one.shape) for one in tensors]}")
    wanted = next((item for item in flat if isinstance(item, torch.device)), None)
    goes_there = bool(there) if wanted is None else _is_there(wanted)
    if packet is _aten.copy_:
        goes_there = isinstance(args[0], Elsewhere)

    def here(item: Any) -> Any:
        if isinstance(item, torch.device):
            return torch.device("cpu")
        return item.held if isinstance(item, Elsewhere) else item

    args, kwargs = tree_unflatten([here(item) for item in flat], spec)
    result = func(*args, **kwargs)
    if packet in _MOVES and goes_there != bool(there):
        result = result.clone()

    def placed(item: Any) -> Any:
        if not isinstance(item, Tensor) or not goes_there:
            return item
        return there.get(id(item)) if id(item) in there else Elsewhere(item)

    return tree_map(placed, result)


class _Factories(TorchDispatchMode):
    """Makes tensors there that are asked for there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does without telling the mode below."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there = bool(args) and isinstance(args[0], Elsewhere)
        if kwargs.get("generator") is not None:
            goes_there = there or _is_there(kwargs.get("device"))
            if isinstance(kwargs["generator"], GeneratorElsewhere) != goes_there:
                raise RuntimeError(f"{func}: a generator of another device")
        if func is torch.tensor and _is_there(kwargs.get("device")):
            del kwargs["device"]
            return torch.tensor(*args, **kwargs).to(DEVICE)
        if there and func is torch.Tensor.new_tensor:
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(DEVICE)
        if there and func is torch.Tensor.tolist:
            return args[0].held.tolist()
        if there and func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(item).to(DEVICE) if isinstance(item, list) else item for item in index)
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)
