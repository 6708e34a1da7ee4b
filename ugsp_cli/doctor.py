"""`ugsp doctor`: is everything here that ugsp needs, and what of the optional things?

Nothing is believed by name: encoders are opened, the weights are loaded, cards are asked.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from ugsp_cli import __version__
from ugsp_cli.errors import UgspError

if TYPE_CHECKING:
    from ugsp_cli.engine import Interpolator

__all__ = ["Check", "examine"]

_REQUIRED = ("torch", "av", "numpy", "click", "rich", "safetensors")
_REINSTALL = "Install ugsp and what it needs again: pip install ."


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    """What was looked at."""
    status: Literal["ok", "info", "problem"]
    """ok: works. info: neither good nor bad. problem: ugsp needs it, and it does not work."""
    finding: str
    """What was seen."""
    hint: str = ""
    """What to do about a problem."""

    def to_json(self) -> dict[str, Any]:
        """The finding as plain values."""
        return {"name": self.name, "status": self.status, "finding": self.finding, "hint": self.hint}


def examine(load: Callable[[], Interpolator]) -> list[Check]:
    """All findings, in reading order. load: loads the network with the weights that would be used."""
    checks: list[Check] = []
    for name, part in {
        "versions": _versions,
        "processor": _processor,
        "graphics card": _cards,
        "encoders": _encoders,
        "network": lambda: _network(load),
    }.items():
        try:
            checks.extend(part())
        except ImportError as error:  # a broken installation is what this command is for
            checks.append(Check(name, "problem", f"could not be looked at: {error}", _REINSTALL))
    return checks


def _versions() -> Iterator[Check]:
    yield Check("ugsp", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    for name in _REQUIRED:
        try:
            yield Check(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, "problem", "not installed", _REINSTALL)
    try:
        yield Check("numba", "ok", metadata.version("numba"))
    except metadata.PackageNotFoundError:
        yield Check("numba", "info", "not installed: on the processor, search and rendering take several times as long")


def _processor() -> Iterator[Check]:
    import torch

    from ugsp_net.precision import instructions

    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads for the network"
    yield Check("processor", "ok", f"{platform.machine()}, {threads}, {instructions()}")


def _cards() -> Iterator[Check]:
    import torch

    from ugsp_net import gpu

    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = (
            "torch is built without CUDA" if built is None else f"torch is built for CUDA {built}, but sees no card"
        )
        yield Check("graphics card", "info", f"none that can be used ({reason}); the processor does the work")
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        capability = f"compute capability {properties.major}.{properties.minor}"
        finding = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {capability}"
        yield Check(f"cuda:{number}", "ok", finding)
        missing = gpu.why_not(torch.device("cuda", number))
        if missing is not None:
            yield Check("triton", "info", f"frames take several times as long without it: {missing}")


def _encoders() -> Iterator[Check]:
    from ugsp_cli.encoders import usable_encoders

    usable = usable_encoders()
    if "libx264" in usable:
        yield Check("encoders", "ok", ", ".join(usable))
    else:
        hint = "The av package of PyPI brings libx264; install that one, or choose another with --codec."
        yield Check("encoders", "problem", f"libx264, the default, does not work; usable: {', '.join(usable)}", hint)


def _network(load: Callable[[], Interpolator]) -> Iterator[Check]:
    try:
        engine = load()
    except UgspError as error:
        yield Check("network", "problem", error.message, error.hint)
        return
    where = f"runs on {engine.device} in {engine.precision}, backend {engine.backend}"
    yield Check("network", "ok", f"{engine.model_name}, {engine.parameters / 1e6:.2f} M parameters, {where}")
    yield Check("weights", "ok", f"sha256 {engine.weights_sha256}")
