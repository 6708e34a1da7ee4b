"""What all tests share."""

from __future__ import annotations

import os

import pytest

from tests import interpreter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a graphics card where there is none, unless one was promised: then those tests fail. What waits
    for the interpreter comes last, and is no test inside it."""
    waits = [item for item in items if item.name == interpreter.WAITS]
    items[:] = [item for item in items if item.name != interpreter.WAITS]
    if not interpreter.RUNS:
        items += waits
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items or os.environ.get("UGSP_REQUIRE_CUDA") == "1":
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Kernels are interpreted beside the other tests."""
    if not session.config.option.collectonly:
        interpreter.start([item.path for item in session.items if item.name == interpreter.WAITS])


def pytest_unconfigure() -> None:
    interpreter.stop()
