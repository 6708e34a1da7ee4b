"""Which code does what is not a convolution: compiled for the device where that is possible, else torch.

Torch has no operation for most of it, so there it is chains of small ones, each of which reads and writes whole maps.
``cpu`` holds loops that Numba compiles for processors, ``gpu`` kernels that Triton compiles for CUDA devices. Each
function of theirs stands for one in torch, which is the truth in the tests and runs everywhere else, and in training
wherever gradients are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch

from ugsp_net import cpu, gpu

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def only_torch() -> Iterator[None]:
    """Inside, in all threads, nothing is done by compiled code."""
    with cpu.refused(), gpu.refused():
        yield


def compiled_by(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let functions ("cpu.module.function", "gpu.module.function") do what this one does where its first argument, a
    tensor, is on such a device and no gradients are recorded."""
    packages = {name.partition(".")[0]: name for name in names}
    found: dict[str, Callable[..., Any]] = {}

    def decorate(in_torch: Callable[P, R]) -> Callable[P, R]:
        @wraps(in_torch)
        def either(*arguments: P.args, **named: P.kwargs) -> R:
            first: Any = arguments[0]
            name = None
            if not torch.is_grad_enabled():
                if first.device.type == "cpu" and cpu.available():
                    name = packages.get("cpu")
                elif first.device.type == "cuda" and gpu.available(first.device):
                    name = packages.get("gpu")
            if name is None:
                return in_torch(*arguments, **named)
            if name not in found:  # imported when it is needed: Numba takes a third of a second
                module, _, function = name.rpartition(".")
                found[name] = getattr(import_module(f"ugsp_net.{module}"), function)
            made: R = found[name](*arguments, **named)
            return made

        return either

    return decorate
