"""Runs tests of kernels without a card, in Triton's interpreter: one file after the other, beside the other tests.

Whether triton interprets is fixed when it is imported, so each file is run again in a process of its own, with
TRITON_INTERPRET=1. Its test named ``WAITS`` waits for that.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

WAITS = "test_interpreted"
RUNS = os.environ.get("TRITON_INTERPRET") == "1"
INSTALLED = importlib.util.find_spec("triton") is not None
ROOT = Path(__file__).parent.parent

_one_by_one = ThreadPoolExecutor(1)
_results: dict[Path, Future[str]] = {}
_running: list[subprocess.Popen[str]] = []


def start(files: list[Path]) -> None:
    """Begin to run these files of tests."""
    if INSTALLED and not RUNS:
        _results.update({file: _one_by_one.submit(_run, file) for file in files})


def wait(file: str) -> None:
    """Fail if a test of the file failed, or if triton is missing where the dev extra brings it."""
    if not INSTALLED:
        if sys.platform == "linux" and platform.machine() == "x86_64":
            pytest.fail("triton is missing: install the dev extra")
        pytest.skip("there is no triton for this kind of machine")
    failed = _results[Path(file)].result()
    assert not failed, failed


def stop() -> None:
    """Run nothing any more."""
    _one_by_one.shutdown(wait=False, cancel_futures=True)
    for process in _running:
        process.kill()


def _run(file: Path) -> str:
    """What a run that failed says, else nothing."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("UGSP_REQUIRE_CUDA", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        _running.append(process)
        said, _ = process.communicate()
        _running.remove(process)
    return said if process.returncode else ""
