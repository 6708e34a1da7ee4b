"""What CUDA devices do patch by patch and pixel by pixel, in Triton's kernels: search, paths, masks, levels' inputs,
colour and rendering.

A kernel that keeps what it needs in registers takes a tenth of the time that torch's operations take one after the
other, each of which reads and writes whole maps and is a launch. See ``compiled``. Under ``TRITON_INTERPRET=1`` the
kernels run on the processor, so that tests without a card reach them; nothing else calls them there.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

before_compiling: list[Callable[[], None]] = []
"""Called, and taken away, before the first kernel where Triton keeps none yet: compiling them takes half a minute."""

_refused: list[None] = []


def available(device: torch.device) -> bool:
    """Whether kernels run on a device, and nobody asked for torch alone."""
    if _refused or why_not(device) is not None:
        return False
    if device.type == "cuda" and before_compiling:
        told = [] if _keeps_some() else before_compiling[:]
        before_compiling.clear()
        for tell in told:
            tell()
    return True


def why_not(device: torch.device) -> str | None:
    """Why kernels cannot run on a device, in words for the user; None where they can."""
    if not _installed():
        return "triton is not installed (PyTorch for CUDA on Linux brings it)"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if device.type != "cuda":
        return f"it runs on CUDA devices, not on {device.type}"
    return _too_old(index_of(device))


@contextmanager
def refused() -> Iterator[None]:
    """Inside, in all threads, it is not available."""
    _refused.append(None)
    try:
        yield
    finally:
        _refused.pop()


def on(device: torch.device) -> Any:
    """Inside, kernels are launched on that device: Triton takes the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def index_of(device: torch.device) -> int:
    """The number of a CUDA device; -1 for the processor, where kernels are interpreted."""
    if device.type != "cuda":
        return -1
    return torch.cuda.current_device() if device.index is None else device.index


@functools.cache
def multiprocessors(index: int) -> int:
    """Of a CUDA device; few when interpreted, so that programs take more than one tile there too."""
    return 1 if index < 0 else torch.cuda.get_device_properties(index).multi_processor_count


def fill(programs: int, device: torch.device) -> bool:
    """Whether so many programs keep all of a device busy; fewer are made smaller."""
    return programs >= 2 * multiprocessors(index_of(device))


@functools.cache
def shared_memory(index: int) -> int:
    """Bytes that one program may have on a CUDA device."""
    if index < 0:
        return 1 << 20
    properties = torch.cuda.get_device_properties(index)
    return getattr(properties, "shared_memory_per_block_optin", 64 << 10) - (4 << 10)


def power_of_two(number: int) -> int:
    """The next one, at least 1."""
    return 1 << max(0, number - 1).bit_length()


def empty(shape: tuple[int, ...], like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Uninitialised memory for a kernel to write to; tests fill it with NaN."""
    return like.new_empty(shape, dtype=dtype)


def _keeps_some() -> bool:
    """Whether Triton has compiled anything for this user, ours or not."""
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    return folder.is_dir() and any(folder.iterdir())


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _too_old(index: int) -> str | None:
    major, minor = torch.cuda.get_device_capability(index)
    return None if major >= 7 or torch.version.hip else f"compute capability {major}.{minor} is below triton's 7.0"
