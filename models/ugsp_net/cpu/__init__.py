"""What processors do pixel by pixel, compiled by Numba: search, paths, masks, colour and rendering.

One loop that keeps what it needs in registers takes a half to a tenth of the time that torch's operations take one
after the other. See ``compiled``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

before_compiling: list[Callable[[], None]] = []
"""Called, and taken away, when something is to be compiled that no earlier run has left: 10 to 30 s in all."""

_refused: list[None] = []


def available() -> bool:
    """Whether Numba is installed, which some versions of Python are too new for, and not told to compile nothing, and
    nobody asked for torch alone."""
    return _installed() and not _refused


@cache
def _installed() -> bool:
    return find_spec("numba") is not None and os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")


@contextmanager
def refused() -> Iterator[None]:
    """Inside, in all threads, it is not available."""
    _refused.append(None)
    try:
        yield
    finally:
        _refused.pop()
