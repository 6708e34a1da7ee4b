"""What a card's time for one made frame goes to: every kernel, by stage, and what lies between them.

    python benchmarks/launches.py [--size 1920x1080] [--density 20] [--device cuda] [--json FILE]

The stages are those of ``ugsp bench``, at masks of the density in percent, or without pruning where it is ``dense``.
Times are a batch's, divided by its frames. "idle" is the time between a stage's first and last kernel in which none
runs: launches that a graph does not hold, or that follow each other too closely. On a processor torch's operations are
listed instead, without what compiled code does.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ugsp_cli.engine import EngineOptions, Interpolator
from ugsp_cli.timing import STAGES, Work, warm_up_turns


@dataclass
class Kernel:
    """All launches of one kernel in one stage."""

    stage: str
    name: str
    launches: float
    """In a batch."""
    microseconds: float
    """For each made frame."""


@torch.inference_mode()
def measure(work: Work, density: float | None, turns: int) -> tuple[list[Kernel], dict[str, float]]:
    """Kernels, the longest of each stage first, and microseconds for each made frame in which none runs."""
    for _ in range(warm_up_turns(work.device)):
        list(work.stages(density))
    kernels: list[Kernel] = []
    idle: dict[str, float] = {}
    on_card = work.device.type == "cuda"
    for number, stage in enumerate(STAGES):
        found: dict[str, list[float]] = defaultdict(list)
        between = 0.0
        for _ in range(turns):
            steps = work.stages(density)
            for _ in range(number):
                next(steps)
            if on_card:
                torch.cuda.synchronize()
            activity = ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU
            with profile(activities=[activity], acc_events=True) as profiler:
                next(steps)
                if on_card:
                    torch.cuda.synchronize()
            events = [
                event
                for event in profiler.events() or []
                if (event.device_type == DeviceType.CUDA) == on_card and (on_card or event.cpu_parent is None)
            ]
            for event in events:
                found[event.name].append(event.time_range.elapsed_us())
            spans = sorted((event.time_range.start, event.time_range.end) for event in events)
            reached = spans[0][0] if spans else 0.0
            for start, end in spans:
                between += max(0.0, start - reached)
                reached = max(reached, end)
        each = turns * work.at_once / work.beside
        several = [Kernel(stage, name, len(taken) / turns, sum(taken) / each) for name, taken in found.items()]
        kernels += sorted(several, key=lambda kernel: -kernel.microseconds)
        idle[stage] = between / each
    return kernels, idle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--density", default="20", help="percent, or dense (default: 20)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--least", type=float, default=1.0, help="microseconds below which kernels are not printed")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    density = None if arguments.density == "dense" else float(arguments.density) / 100
    engine = Interpolator(EngineOptions(device=arguments.device))
    work = Work(engine, width, height, [] if density is None else [density])
    kernels, idle = measure(work, density, arguments.turns)
    console = Console()
    for stage in STAGES:
        own = [kernel for kernel in kernels if kernel.stage == stage]
        table = Table(title=f"{stage}, {arguments.size}, {arguments.density}, {work.at_once} frames at once")
        for column, justify in (("kernel", "left"), ("launches", "right"), ("us a frame", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for kernel in own:
            if kernel.microseconds >= arguments.least:
                table.add_row(kernel.name[:80], f"{kernel.launches:.0f}", f"{kernel.microseconds:.1f}")
        rest = [kernel for kernel in own if kernel.microseconds < arguments.least]
        table.add_row(
            "others", f"{sum(one.launches for one in rest):.0f}", f"{sum(one.microseconds for one in rest):.1f}"
        )
        table.add_row("idle", "", f"{idle[stage]:.1f}")
        total = sum(kernel.microseconds for kernel in own)
        table.add_row("all", f"{sum(kernel.launches for kernel in own):.0f}", f"{total + idle[stage]:.1f}")
        console.print(table)
    if arguments.json:
        document = {
            "device": torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "size": arguments.size,
            "density": arguments.density,
            "batch": work.at_once,
            "kernels": [asdict(kernel) for kernel in kernels],
            "idle": idle,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
