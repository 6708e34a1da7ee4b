"""What processors do pixel by pixel, compiled by Numba: search, paths, masks, colour and rendering.

Torch has no operation for most of it, so there it is chains of small ones, each of which reads and writes whole maps,
and few of which torch vectorises. One loop that keeps what it needs in registers takes a half to a tenth of the time.
Every function here stands for one in torch, which is the truth in the tests and runs on other devices and in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

import torch

before_compiling: list[Callable[[], None]] = []
"""Called, and taken away, when something is to be compiled that no earlier run has left: 10 to 30 s in all."""

P = ParamSpec("P")
R = TypeVar("R")


_refused: list[None] = []


def available() -> bool:
    """Whether Numba is installed, which some versions of Python are too new for, and nobody asked for torch alone."""
    return _installed() and not _refused


@cache
def _installed() -> bool:
    return find_spec("numba") is not None


@contextmanager
def only_torch() -> Iterator[None]:
    """Inside, in all threads, nothing is done by compiled code."""
    _refused.append(None)
    try:
        yield
    finally:
        _refused.pop()


def compiled_by(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let the function ``name``, of a module of this package ("module.function"), do what this one does where that is
    on the processor and records no gradients. The first argument is a tensor."""
    module, function = name.split(".")

    def decorate(in_torch: Callable[P, R]) -> Callable[P, R]:
        @wraps(in_torch)
        def either(*arguments: P.args, **named: P.kwargs) -> R:
            first: Any = arguments[0]
            if first.device.type == "cpu" and not torch.is_grad_enabled() and available():
                # Imported when it is needed: Numba takes a third of a second.
                made: R = getattr(import_module(f"{__name__}.{module}"), function)(*arguments, **named)
                return made
            return in_torch(*arguments, **named)

        return either

    return decorate
