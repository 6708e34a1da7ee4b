"""Time the same frames with pruning on and off, turn by turn in one run, and print both beside what the MACs promise.

    python benchmarks/speed.py [CLIP ...] [--size 1280x720] [--pairs 6] [--fps 60] [--weights FILE] [--json FILE]

Without clips a moving pattern before a still background is drawn. Frames are read from the clips before the clock
starts, so the seconds are the network's alone, planes in and planes out, with every source frame encoded once.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ugsp_cli.decode import Frame, FrameReader
from ugsp_cli.engine import EngineOptions, Interpolator, Made, Request
from ugsp_cli.media import ColourTags, PixelLayout
from ugsp_cli.timeline import Timeline


@dataclass
class Outcome:
    """One clip."""

    clip: str
    size: str
    frames: int
    """Frames made in each turn."""
    dense_seconds: float
    """Median over the turns."""
    pruned_seconds: float
    performed: float
    """Share of the dense MACs that pruning left."""
    active: tuple[float, ...]
    """Mean share of active blocks at strides 8, 4, 2."""


def drawn(width: int, height: int, count: int) -> list[Frame]:
    """A textured still background with a textured disc that moves by eight pixels a frame; 24 frames a second."""
    rng = np.random.default_rng(0)
    layout, colour = PixelLayout("yuv420p", 8, 1, 1, 3), ColourTags(1, 1, 1, 1)
    small = rng.integers(40, 200, (height // 8 + 1, width // 8 + 1)).astype(np.float32)
    still = np.kron(small, np.ones((8, 8), np.float32))[:height, :width]
    moving = np.roll(still.T.copy() if width == height else still[::-1, ::-1], 3, 1)
    y, x = np.mgrid[0:height, 0:width]
    frames = []
    for index in range(count):
        shift = 8 * index
        disc = (x - width / 3 - shift) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2
        luma = np.where(disc, np.roll(moving, shift, 1), still).astype(np.uint8)
        chroma = np.full(layout.plane_size(1, width, height), 128, np.uint8)
        frames.append(Frame(index, Fraction(index, 24), (luma, chroma, chroma), layout, colour, 0.0, False))
    return frames


def requests(frames: list[Frame], rate: Fraction) -> Iterator[Request]:
    """What the tool would ask for."""
    timeline = Timeline(rate)
    for frame in frames:
        for slot in timeline.push(frame.time, cut=False, duplicate=frame.duplicate):
            if slot.kind == "interpolated":
                yield Request(frames[slot.source], frames[slot.source + 1], float(slot.t))


def run(engine: Interpolator, wanted: list[Request]) -> tuple[float, list[Made]]:
    engine.reset()
    begun = time.perf_counter()
    made: list[Made] = []
    for start in range(0, len(wanted), max(1, engine.batch_size)):
        made += engine.interpolate(wanted[start : start + max(1, engine.batch_size)])
    return time.perf_counter() - begun, made


def measure(name: str, frames: list[Frame], rate: Fraction, arguments: argparse.Namespace) -> Outcome:
    wanted = list(requests(frames, rate))
    engines = [
        Interpolator(EngineOptions(arguments.weights, arguments.device, arguments.precision, pruning=pruning))
        for pruning in (False, True)
    ]
    seconds: list[list[float]] = [[], []]
    made: list[Made] = []
    for turn in range(arguments.turns + 1):
        for which, engine in enumerate(engines):
            spent, made = run(engine, wanted)
            if turn:  # the first one warms up
                seconds[which].append(spent)
    dense, performed = sum(one.dense_macs for one in made), sum(one.performed_macs for one in made)
    height, width = frames[0].planes[0].shape
    return Outcome(
        clip=name,
        size=f"{width}x{height}",
        frames=len(wanted),
        dense_seconds=statistics.median(seconds[0]),
        pruned_seconds=statistics.median(seconds[1]),
        performed=performed / dense,
        active=tuple(float(np.mean(share)) for share in zip(*(one.active for one in made), strict=True)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--size", default="1280x720", help="of the drawn clip")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--fps", type=Fraction, default=Fraction(60))
    parser.add_argument("--weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    outcomes = []
    if not arguments.clips:
        width, height = map(int, arguments.size.split("x"))
        frames = drawn(width, height, arguments.pairs + 1)
        outcomes.append(measure("drawn", frames, arguments.fps, arguments))
    for path in arguments.clips:
        with FrameReader(path) as reader:
            outcomes.append(measure(path.stem, list(islice(reader, arguments.pairs + 1)), arguments.fps, arguments))
    table = Table(title=f"seconds per made frame, {torch.get_num_threads()} threads, median of {arguments.turns} turns")
    for column in ("clip", "size", "frames", "dense", "pruned", "time ratio", "MACs ratio", "active 8/4/2", "frames/s"):
        table.add_column(column, justify="left" if column == "clip" else "right")
    for one in outcomes:
        table.add_row(
            one.clip,
            one.size,
            str(one.frames),
            f"{one.dense_seconds / one.frames:.3f}",
            f"{one.pruned_seconds / one.frames:.3f}",
            f"{one.pruned_seconds / one.dense_seconds:.2f}",
            f"{one.performed:.2f}",
            "/".join(f"{share:.2f}" for share in one.active),
            f"{one.frames / one.pruned_seconds:.1f}",
        )
    Console(width=120).print(table)
    if arguments.json:
        record = {
            "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
            "torch": torch.__version__,
            "clips": [vars(one) for one in outcomes],
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
