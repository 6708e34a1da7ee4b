"""Time the same frames with pruning on and off, turn by turn in one run, and print both beside what the MACs promise.

    python benchmarks/speed.py [CLIP ...] [--size 1280x720] [--pairs 8] [--fps 60] [--masks FILE.jpg] [--json FILE]

A CLIP is a file or the name of one of ``scenes.py``'s scenes; without one, all scenes. Frames are read or drawn before
the clock starts, so the seconds are the network's alone, planes in and planes out, each source frame encoded once. Of
scenes the true frame at any instant is known, so PSNR is printed too. ``--masks`` writes one picture for all clips: a
made frame of each, and below it what was computed (red at stride 8 only, yellow also at 4, white at all, grey at none).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from drawing import RATE, frame_at
from rich.console import Console
from rich.table import Table
from scenes import SCENES
from torch.nn import functional as F

from ugsp_cli.decode import Frame, FrameReader
from ugsp_cli.engine import EngineOptions, Interpolator, Made, Request
from ugsp_cli.pictures import from_frame
from ugsp_cli.timeline import Timeline
from ugsp_cli.timing import document
from ugsp_cli.worst import tinted
from ugsp_net.metrics import Picture, psnr

PANEL = 420
"""Pixels across of each picture of ``--masks``, and between them a hundredth of that."""


@dataclass
class Outcome:
    """One clip."""

    clip: str
    size: str
    frames: int
    """Frames made in each turn."""
    dense_seconds: float
    """The fastest turn: what else runs on the machine can only slow one down."""
    pruned_seconds: float
    dense_turns: list[float]
    """Every turn, which shows how far they were disturbed."""
    pruned_turns: list[float]
    performed: float
    """Share of the dense MACs that pruning left."""
    active: tuple[float, ...]
    """Mean share of active blocks at strides 8, 4, 2."""
    psnr: tuple[float, float] | None = None
    """Dense and pruned, dB of 8-bit RGB, mean over the frames; None where the truth is not known."""


def requests(frames: list[Frame], rate: Fraction) -> Iterator[tuple[Request, Fraction]]:
    """What the tool would ask for, and the instants in seconds."""
    timeline = Timeline(rate)
    around = [None, *frames, None]
    for frame in frames:
        for slot in timeline.push(frame.time, cut=False, duplicate=frame.duplicate):
            if slot.kind == "interpolated":
                before, left, right, after = around[slot.source : slot.source + 4]
                yield Request(left, right, float(slot.t), before, after), slot.time


def run(engine: Interpolator, wanted: list[Request], masks: bool = False) -> tuple[float, list[Made]]:
    engine.reset()
    begun = time.perf_counter()
    made = engine.interpolate(wanted, masks)
    return time.perf_counter() - begun, made


def measure(name: str, arguments: argparse.Namespace) -> tuple[Outcome, Picture, Interpolator]:
    """One clip: what was measured, its column of the masks' picture, and the engine that prunes."""
    paint = None
    if name in SCENES:
        width, height = map(int, arguments.size.split("x"))
        paint = SCENES[name](width, height)
        frames = [frame_at(paint, index, Fraction(index, RATE)) for index in range(arguments.pairs + 1)]
    else:
        with FrameReader(Path(name)) as reader:
            frames = list(islice(reader, arguments.pairs + 1))
    height, width = frames[0].planes[0].shape
    wanted, instants = map(list, zip(*requests(frames, arguments.fps), strict=True))
    engines = [
        Interpolator(
            EngineOptions(
                arguments.weights,
                arguments.device,
                arguments.precision,
                pruning=pruning,
                batch_size=arguments.batch_size,
            )
        )
        for pruning in (False, True)
    ]
    # The first turn warms up, and is looked at.
    dense, pruned = (run(engine, wanted, masks=True)[1] for engine in engines)
    seconds: list[list[float]] = [[], []]
    for _ in range(arguments.turns):
        for which, engine in enumerate(engines):
            seconds[which].append(run(engine, wanted)[0])
    quality = None
    if paint is not None:
        truths = [frame_at(paint, 0, instant) for instant in instants]
        quality = mean_psnr(dense, truths), mean_psnr(pruned, truths)
    middle = len(wanted) // 2
    outcome = Outcome(
        clip=name if paint else Path(name).stem,
        size=f"{width}x{height}",
        frames=len(wanted),
        dense_seconds=min(seconds[0]),
        pruned_seconds=min(seconds[1]),
        dense_turns=seconds[0],
        pruned_turns=seconds[1],
        performed=sum(one.performed_macs for one in pruned) / sum(one.dense_macs for one in pruned),
        active=tuple(float(np.mean(share)) for share in zip(*(one.active for one in pruned), strict=True)),
        psnr=quality,
    )
    return outcome, column(pruned[middle], wanted[middle].left), engines[1]


def mean_psnr(made: list[Made], truths: list[Frame]) -> float:
    """dB of 8-bit RGB."""
    pictures = [from_frame(replace(truth, planes=one.planes)) for one, truth in zip(made, truths, strict=True)]
    return float(np.mean([psnr(one, from_frame(truth)) for one, truth in zip(pictures, truths, strict=True)]))


def column(made: Made, like: Frame) -> Picture:
    """The made frame above, what was computed below."""
    assert made.masks is not None
    picture = from_frame(replace(like, planes=made.planes))
    height, gap = round(PANEL * picture.shape[0] / picture.shape[1]), PANEL // 100
    canvas = np.full((2 * height + gap, PANEL, 3), 255, np.uint8)
    for top, panel in ((0, picture), (height + gap, tinted(picture, made.masks))):
        small = F.interpolate(torch.from_numpy(panel).permute(2, 0, 1)[None].float(), (height, PANEL), mode="area")
        canvas[top : top + height] = small[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    return canvas


def write_jpeg(columns: list[Picture], path: Path) -> None:
    """Side by side, centred in height."""
    gap, rows = PANEL // 100, max(one.shape[0] for one in columns)
    canvas = np.full((rows, len(columns) * (PANEL + gap) - gap, 3), 255, np.uint8)
    for number, one in enumerate(columns):
        top, left = (rows - one.shape[0]) // 2, number * (PANEL + gap)
        canvas[top : top + one.shape[0], left : left + PANEL] = one
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        options = {"qmin": "3", "qmax": "3"}  # of 2, the best, to 31
        stream = container.add_stream("mjpeg", rate=1, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *canvas.shape[:2], "yuvj444p"
        frame = av.VideoFrame.from_ndarray(canvas, format="rgb24").reformat(format="yuvj444p", dst_colorspace="ITU601")
        container.mux([*stream.encode(frame), *stream.encode(None)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", default=list(SCENES), help="files, or names of scenes")
    parser.add_argument("--size", default="1280x720", help="of the scenes")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--fps", type=Fraction, default=Fraction(60))
    parser.add_argument("--weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", default="auto")
    parser.add_argument("--masks", type=Path, help="JPEG to write")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    outcomes, columns, engines = zip(*(measure(name, arguments) for name in arguments.clips), strict=True)
    machine = document(engines[0], [])["machine"]
    console = Console(width=130)
    console.print(f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}, {machine['precision']}")
    table = Table(title=f"seconds per made frame, fastest of {arguments.turns} turns; PSNR in dB")
    names = ("clip", "size", "frames", "dense", "pruned", "time saved", "MACs skipped", "active 8/4/2")
    for title in (*names, "PSNR dense", "pruned"):
        table.add_column(title, justify="left" if title == "clip" else "right")
    for one in outcomes:
        table.add_row(
            one.clip,
            one.size,
            str(one.frames),
            f"{one.dense_seconds / one.frames:.3f}",
            f"{one.pruned_seconds / one.frames:.3f}",
            f"{100 * (1 - one.pruned_seconds / one.dense_seconds):.0f} %",
            f"{100 * (1 - one.performed):.0f} %",
            "/".join(f"{share:.2f}" for share in one.active),
            *(f"{value:.2f}" for value in one.psnr or ()),
        )
    console.print(table)
    if arguments.masks:
        write_jpeg(list(columns), arguments.masks)
    if arguments.json:
        record = {"machine": machine, "clips": [vars(one) for one in outcomes]}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
