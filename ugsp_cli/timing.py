"""The network's speed: dense and pruned side by side, turn by turn in one run, at masks of chosen density."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ugsp_cli.console import Display
from ugsp_cli.engine import Interpolator
from ugsp_net.compiled import only_torch
from ugsp_net.cost import PRUNED, network_cost
from ugsp_net.gpu import graphs
from ugsp_net.masks import fixed_gate
from ugsp_net.network import UGSP
from ugsp_net.paths import carry, trace
from ugsp_net.precision import instructions
from ugsp_net.sparse import performed_share
from ugsp_net.warp import blend_enlarged

__all__ = ["STAGES", "Measured", "Timing", "Work", "document", "measure", "print_timings", "warm_up_turns"]

STAGES = ("encode", "pair", "levels")
"""Encoding one source frame; what differs in a pair, its search and its paths; the levels and the frame."""

ANGLE, CLOSER, NOISE = 1.0, 0.02, 2 / 255
"""Between the pictures that are drawn: degrees by which the camera turns, the share by which it comes closer, and the
standard deviation of its noise. So everything moves, up to about 20 pixels at 1280x720, and patches look at every
size."""

# Where a network spends its arithmetic; what is left is what it moves about.
_PRODUCTS = ("conv", "addmm", "bmm", "mm")


@dataclass(frozen=True)
class Measured:
    """One size at one density."""

    density: float | None
    """Share of every level's blocks that is computed; None: the dense network."""
    seconds: dict[str, float]
    """By stage, for each made frame; median over the turns."""
    macs: float
    """Multiply-accumulates spent on one made frame, with the encoding of one source frame, as a share of the dense
    network's."""

    @property
    def total(self) -> float:
        """Seconds for each made frame."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Timing:
    """One size."""

    width: int
    height: int
    flow_scale: float
    """Size at which the network saw the pictures, as a share of their own; what enlarges its motion counts."""
    batch: int
    """Frames made at once."""
    rows: list[Measured]
    """The dense network first."""
    products: float
    """Seconds that the dense network's convolutions and matrix products take when nothing else runs, for each made
    frame."""


def measure(
    engine: Interpolator, sizes: Sequence[tuple[int, int]], densities: Sequence[float], turns: int, display: Display
) -> list[Timing]:
    """Time the network at (width, height) sizes; densities in [0, 1]. Frames are drawn, so nothing is decoded."""
    timings = []
    warm_up = warm_up_turns(torch.device(engine.device))
    display.begin("bench", len(sizes) * (warm_up + turns + 1) * (len(densities) + 1))
    try:
        for width, height in sizes:
            timings.append(_measure_size(engine, width, height, densities, turns, display))
    finally:
        display.end()
    return timings


class Work:
    """What the network does for frames of one size, again and again, at masks of chosen density."""

    @torch.inference_mode()
    def __init__(self, engine: Interpolator, width: int, height: int, densities: Sequence[float]) -> None:
        net, device = engine.network, torch.device(engine.device)
        alignment = net.config.alignment
        self.network, self.device = net, device
        self.at_once = engine.batch_at(width, height)
        """Frames that are made at once."""
        # As the engine does it: a processor makes the frames of a batch beside each other, a card in one launch.
        self.beside, batch = (self.at_once, 1) if device.type == "cpu" else (1, self.at_once)
        """Times that ``stages`` is to be gone through at once."""
        self.factor = engine.factor_at(width, height)
        self.columns, self.rows = (-(-side // (alignment * self.factor)) * alignment for side in (width, height))
        """Of pixels, as the network sees the frames."""
        self.backend = "tiles" if engine.backend == "dense" else engine.backend
        self.masks = {
            density: [mask.to(device) for mask in _masks(net, self.rows, self.columns, batch, density)]
            for density in densities
        }
        self._gates = {density: fixed_gate(masks) for density, masks in self.masks.items()}
        self._batch = batch
        self._large = _pictures(batch, self.factor * self.rows, self.factor * self.columns).to(device)
        self._frames = F.avg_pool2d(self._large, self.factor)
        self._t = torch.full((batch,), 0.5, device=device)
        self._found: Tensor | None = None

    def stages(self, density: float | None) -> Iterator[None]:
        """One launch, ``STAGES`` one after the other; density: as in ``Measured``. To be gone through in inference
        mode."""
        net, batch, frames, t = self.network, self._batch, self._frames, self._t
        # Two encodings serve two made frames when one follows the other; one is what each costs.
        second = net.encode(frames[batch:])
        yield
        first = second
        compared = net.compare(frames[:batch], frames[batch:])
        flow = net.match(frames[:batch], frames[batch:], compared)
        # In a video the searches of the pairs before and after serve those pairs as well: each made pair pays for one.
        found = None if flow is None else carry(trace(flow, flow, flow), t, self._found)
        self._found = found if self.device.type == "cuda" else None
        yield
        gate = None
        if density is not None:
            # Graphs are known by their gate; frames that are made beside each other take masks in turn from one each.
            gate = self._gates[density] if self.beside == 1 else fixed_gate(self.masks[density])
        how = gate, self.backend, compared.agree, self.factor > 1
        made = net.make(frames[:batch], frames[batch:], [first], [second], found, t, *how)
        if self.factor > 1:
            blend_enlarged(self._large[:batch], self._large[batch:], made.flow, made.blend, self.factor)
        yield


@torch.inference_mode()
def _measure_size(
    engine: Interpolator, width: int, height: int, densities: Sequence[float], turns: int, display: Display
) -> Timing:
    work = Work(engine, width, height, densities)
    net, device, at_once = work.network, work.device, work.at_once
    cost = network_cost(net.config, work.columns, work.rows)
    kinds: list[float | None] = [None, *densities]
    marks: dict[float | None, list[list[_Mark]]] = {kind: [] for kind in kinds}
    warm_up = warm_up_turns(device)
    for turn in range(warm_up + turns):
        for kind in kinds:
            jobs = [partial(_advance, work.stages(kind)) for _ in range(work.beside)]
            passed = [_mark(device)]
            for _ in STAGES:
                engine.each(jobs)
                passed.append(_mark(device))
            if turn >= warm_up:
                marks[kind].append(passed)
            display.advance()
    dense = cost.encode + cost.match + cost.dense
    measured = []
    for kind in kinds:
        spent = dense
        if kind is not None:
            how = work.backend, net.dtype, work.factor > 1
            shares = [
                performed_share(mask, level, work.rows // stride, work.columns // stride, *how).mean(0)
                for mask, level, stride in zip(work.masks[kind], PRUNED, engine.strides, strict=True)
            ]
            spent = cost.encode + cost.match + cost.performed(*torch.stack(shares, dim=1).tolist())
        taken = zip(*([_between(*pair) / at_once for pair in pairwise(passed)] for passed in marks[kind]), strict=True)
        medians = dict(zip(STAGES, map(median, taken), strict=True))
        measured.append(Measured(kind, medians, spent / dense))
    with _Recorder() as recorder, only_torch():
        list(work.stages(None))
    alone = []
    for _ in range(turns + 1):
        begun = _mark(device)
        engine.each([partial(_replay, recorder.calls)] * work.beside)
        alone.append(_between(begun, _mark(device)) / at_once)
    for _ in kinds:
        display.advance()
    return Timing(width, height, 1 / work.factor, at_once, measured, median(alone[1:]))


@torch.inference_mode()
def _advance(stages: Iterator[None]) -> None:
    next(stages)


_Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""An operation of torch, its operands and its named ones."""


class _Recorder(TorchDispatchMode):
    """Notes every convolution and matrix product with its operands; activations that oneDNN does with them are left
    out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch is to tell its compiler to leave this alone: nobody uses that here, and torch would import it,
        and Triton where that is installed, which leaves lines behind when the program ends."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "_convolution_pointwise":  # (x, weight, bias, padding, stride, dilation, groups, activation ...)
            x, weight, bias, padding, stride, dilation, groups = args[:7]
            self.calls.append((torch.ops.aten.conv2d.default, (x, weight, bias, stride, padding, dilation, groups), {}))
        elif any(name.startswith(product) for product in _PRODUCTS):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def _replay(calls: Sequence[_Call]) -> None:
    """One after the other, and nothing between."""
    for func, args, kwargs in calls:
        func(*args, **kwargs)


def warm_up_turns(device: torch.device) -> int:
    """Turns that do not count: on a card graphs are captured in the last of them."""
    return 1 if device.type == "cpu" else graphs.USES + 1


_Mark = float | torch.cuda.Event
"""A point of time, on the host or in what a card has been told to do."""


def _mark(device: torch.device) -> _Mark:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(one: _Mark, other: _Mark) -> float:
    """Seconds from one point to another one. A card is waited for here alone, when all it has to do has been told: in a
    video the host is ahead of it."""
    if isinstance(one, float) and isinstance(other, float):
        return other - one
    assert isinstance(one, torch.cuda.Event)
    assert isinstance(other, torch.cuda.Event)
    other.synchronize()
    milliseconds: float = one.elapsed_time(other)
    return milliseconds / 1000


def _pictures(pairs: int, height: int, width: int) -> Tensor:
    """Pairs of pictures as a camera takes them that turns, moves closer and makes noise: the first ones, then the
    second ones, [2 * pairs, 3, height, width]."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.zeros(pairs, 3, height, width)
    for size, contrast in ((8, 0.7), (2, 0.3)):
        noise = torch.rand(pairs, 3, -(-height // size), -(-width // size), generator=generator)
        scene += contrast * F.interpolate(noise, (height, width), mode="bilinear", align_corners=False)
    angle, closer = math.radians(ANGLE), 1 - CLOSER
    across, down = closer * math.cos(angle), closer * math.sin(angle) * height / width
    there = torch.tensor([[across, -down, 0.0], [down * (width / height) ** 2, across, 0.0]]).expand(pairs, 2, 3)
    grid = F.affine_grid(there, list(scene.shape), align_corners=False)
    turned = F.grid_sample(scene, grid, padding_mode="reflection", align_corners=False)
    seen = torch.cat((scene, turned))
    return seen.add_(NOISE * torch.randn(seen.shape, generator=generator)).clamp_(0, 1)


def _masks(net: UGSP, height: int, width: int, batch: int, density: float) -> list[Tensor]:
    """Nested masks of connected regions, coarse to fine, with the density at every level."""
    masks = []
    for level in PRUNED:
        side = net.config.grid_stride(level)
        rows, columns = height // side, width // side
        generator = torch.Generator().manual_seed(1)
        coarse = torch.rand(batch, 1, 6, 8, generator=generator)
        field = F.interpolate(coarse, (rows, columns), mode="bicubic", align_corners=False).flatten(1)
        chosen = field.topk(round(density * rows * columns), dim=1).indices
        masks.append(torch.zeros_like(field).scatter_(1, chosen, 1.0).view(batch, 1, rows, columns))
    return masks


def document(engine: Interpolator, timings: Sequence[Timing]) -> dict[str, Any]:
    """Everything as plain values."""
    return {"schema": 1, "machine": _machine(engine), "timings": [asdict(timing) for timing in timings]}


def print_timings(console: Console, engine: Interpolator, timings: Sequence[Timing]) -> None:
    """A table for each size."""
    machine = _machine(engine)
    console.print(
        f"{machine['name']}, {machine['instructions']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"{machine['precision']}, backend {machine['backend']}"
    )
    for timing in timings:
        seen = "" if timing.flow_scale == 1 else f", flow scale {timing.flow_scale:g}"
        seen += "" if timing.batch == 1 else f", {timing.batch} frames at once"
        table = Table(title=f"{timing.width}x{timing.height}{seen}, seconds for each made frame")
        for column in ("computed", *STAGES, "all", "frames/s", "time", "MACs"):
            table.add_column(column, justify="right")
        dense = timing.rows[0].total
        for row in timing.rows:
            table.add_row(
                "dense" if row.density is None else f"{100 * row.density:.0f} %",
                *(f"{row.seconds[stage]:.4f}" for stage in STAGES),
                f"{row.total:.4f}",
                f"{1 / row.total:.1f}",
                f"{row.total / dense:.2f}",
                f"{row.macs:.2f}",
            )
        console.print(table)
        console.print(
            f"The dense network's convolutions and matrix products alone: {timing.products:.4f} s, "
            f"{100 * timing.products / dense:.0f} % of its time"
        )


def _machine(engine: Interpolator) -> dict[str, Any]:
    device = torch.device(engine.device)
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {
        "name": name,
        "instructions": instructions(),
        "device": engine.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": engine.precision,
        "backend": engine.backend,
        "model": engine.model_name,
        "weights_sha256": engine.weights_sha256,
    }
