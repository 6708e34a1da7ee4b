"""Restore removed frames of real clips and print PSNR per clip: the network, dense and pruned, beside the classics.

    python benchmarks/quality.py CLIPS_DIR [--weights FILE] [--methods blend,dis,dense,pruned,keep=0.5] [--json FILE]

Protocols: ``half`` removes every second frame of a clip's first 41 (t = 0.5); ``60`` keeps every fifth frame of the
clips of 50 frames a second and more and restores the frames between by 2.5, as 24 -> 60 does (t = 0.4, 0.8, 0.2, 0.6);
``instants`` keeps every fourth frame of a clip's first 41 and restores t = 0.25, 0.5, 0.75, and keeps every tenth and
restores t = 0.1, 0.4, 0.5, 0.9: PSNR by t, to be compared within one span.
PSNR and SSIM of 8-bit RGB over the restored frames only. The network runs as in the tool: planes in, planes out;
``keep=SHARE`` is the pruned network with that ``--keep``. Shimmer: the variance over time of the restored frames, as a
share of that of the true ones, where the kept frames show a background that stands still. The optical
flow method (OpenCV's DIS, both ways, warped and blended by agreement) needs ``pip install 'ugsp[train]'``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from figure import keep_curve
from minterpolate import minterpolate_graph, pulled
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ugsp_cli.colour import planes_to_rgb
from ugsp_cli.decode import Frame, FrameReader
from ugsp_cli.engine import EngineOptions, Interpolator, Request
from ugsp_net.metrics import psnr, ssim

Picture = NDArray[np.uint8]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """One clip under one protocol."""

    clip: str
    kept: list[Frame]
    wanted: list[tuple[int, Fraction, Frame]]
    """(index of the kept frame before, t, the true frame)."""
    rate: Fraction
    """Of the kept frames."""


@dataclass
class Outcome:
    """What one method did on one clip."""

    psnr: float
    ssim: float
    seconds_per_frame: float
    shimmer: float | None = None
    """None where less than a twentieth of the picture stands still."""
    skipped: float | None = None
    """Share of the dense MACs that was not spent."""
    by_t: dict[str, float] | None = None
    """PSNR of each instant, where there are several."""


def picture(planes: tuple[NDArray[Any], ...], like: Frame) -> Picture:
    """8-bit RGB [H, W, 3]."""
    rgb = planes_to_rgb(planes, like.layout, like.colour, CPU)[0]
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def tasks(folder: Path, protocol: str, names: list[str]) -> Iterator[Task]:
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".mp4", ".mkv", ".webm", ".mov") or (names and path.stem not in names):
            continue
        with FrameReader(path, threads=1) as reader:
            rate = reader.info.rate
            if protocol == "half":
                frames = list(islice(reader, 41))
                frames = frames[: len(frames) - (len(frames) + 1) % 2]
                kept = frames[::2]
                wanted = [(i, Fraction(1, 2), frame) for i, frame in enumerate(frames[1::2])]
                yield Task(path.stem, kept, wanted, rate / 2)
            elif protocol == "instants":
                frames = list(islice(reader, 41))
                for span, numbers in ((4, (1, 2, 3)), (10, (1, 4, 5, 9))):
                    kept = frames[::span]
                    wanted = [
                        (index, Fraction(number, span), frames[index * span + number])
                        for index in range(len(kept) - 1)
                        for number in numbers
                    ]
                    if wanted:
                        yield Task(f"{path.stem}, span {span}", kept, wanted, rate / span)
            elif rate >= 50:
                # Of 60 fps keep 0, 5, 10, ... (12 fps), restore to 30: instants 2.5 apart; whole ones have a truth.
                frames = list(islice(reader, 101))
                kept = frames[::5]
                wanted = []
                for number, frame in enumerate(frames[: 5 * (len(kept) - 1)]):
                    if number % 5:
                        wanted.append((number // 5, Fraction(number % 5, 5), frame))
                yield Task(path.stem, kept, wanted, rate / 5)


def run_blend(task: Task) -> list[Picture]:
    made = []
    for index, t, like in task.wanted:
        first, second = (picture(frame.planes, like).astype(np.float32) for frame in task.kept[index : index + 2])
        made.append(np.rint(first + float(t) * (second - first)).astype(np.uint8))
    return made


def run_minterpolate(task: Task) -> list[Picture]:
    """libavfilter's minterpolate with its best settings, scene detection off."""
    factor = 2 if task.wanted[0][1] == Fraction(1, 2) else 5
    like = task.kept[0]
    height, width = like.planes[0].shape
    base = 1 / task.rate
    graph = minterpolate_graph(width, height, like.layout.name, base, task.rate * factor, "scd=none")
    out: dict[Fraction, Picture] = {}

    def drain() -> None:
        for frame in pulled(graph):
            planes = tuple(_plane(plane) for plane in frame.planes)
            assert frame.pts is not None
            assert frame.time_base is not None
            at = frame.pts * frame.time_base * task.rate
            shift = max(0, like.layout.bits - 8)
            out[at] = picture(tuple(plane.astype(np.uint16) << shift if shift else plane for plane in planes), like)

    # Two copies of the ends: the filter starts and stops inside the clip.
    padded = [task.kept[0], *task.kept, task.kept[-1], task.kept[-1]]
    for number, kept in enumerate(padded):
        frame = av.VideoFrame(width, height, like.layout.name)
        for plane, values in zip(frame.planes, kept.planes, strict=True):
            target = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)  # type: ignore[call-overload]
            raw = values.view(np.uint8).reshape(plane.height, -1)
            target[:, : raw.shape[1]] = raw
        frame.pts, frame.time_base = number, base
        graph.push(frame)
        drain()
    graph.push(None)
    drain()
    made = []
    for index, t, _ in task.wanted:
        at = index + 1 + t
        nearest = min(out, key=lambda key: abs(key - at))
        made.append(out[nearest])
    return made


def _plane(plane: Any) -> NDArray[np.uint8]:
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].copy()


def run_dis(task: Task) -> list[Picture]:
    """DIS flow both ways, carried to the instant, warped and blended by the agreement of both ways."""
    import cv2

    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    made = []
    done, flows, pictures = -1, None, None
    for index, t, like in task.wanted:
        if index != done:
            pictures = [picture(frame.planes, like) for frame in task.kept[index : index + 2]]
            grey = [cv2.cvtColor(item, cv2.COLOR_RGB2GRAY) for item in pictures]
            flows = [solver.calc(grey[0], grey[1], None), solver.calc(grey[1], grey[0], None)]
            done = index
        assert flows is not None
        assert pictures is not None
        height, width = flows[0].shape[:2]
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        when = float(t)

        def fetch(source: NDArray[Any], flow: NDArray[Any], x: Any = x, y: Any = y) -> NDArray[np.float32]:
            taken = cv2.remap(
                source, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            return np.asarray(taken, np.float32)

        to0, to1 = when * flows[1], (1 - when) * flows[0]
        # The flow at the instant is read where the other frame's flow says that it came from.
        to0, to1 = fetch(to0, to1), fetch(to1, to0)
        first, second = fetch(pictures[0], to0), fetch(pictures[1], to1)
        made.append(np.rint((1 - when) * first + when * second).clip(0, 255).astype(np.uint8))
    return made


def run_network(engine: Interpolator, task: Task) -> tuple[list[Picture], float]:
    engine.reset()
    around = [None, *task.kept, None]
    requests = [Request(*around[i + 1 : i + 3], float(t), around[i], around[i + 3]) for i, t, _ in task.wanted]
    made = engine.interpolate(requests)
    dense, spent = sum(item.dense_macs for item in made), sum(item.performed_macs for item in made)
    pictures = [picture(item.planes, truth) for item, (_, _, truth) in zip(made, task.wanted, strict=True)]
    return pictures, 1 - spent / dense


def luma(frame: Picture) -> NDArray[np.float32]:
    return frame.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])


class Background:
    """Where a clip stands still: the kept frames, smoothed over 5x5 pixels, stay within 4 of 255."""

    def __init__(self, task: Task) -> None:
        smooth = [
            torch.nn.functional.avg_pool2d(torch.from_numpy(luma(picture(frame.planes, frame)))[None], 5, 1, 2)[0]
            for frame in task.kept
        ]
        seen = torch.stack(smooth)
        self.still = ((seen.amax(0) - seen.amin(0)) < 4).numpy()
        self.true = self._variance([picture(truth.planes, truth) for _, _, truth in task.wanted])

    def shimmer(self, made: list[Picture]) -> float | None:
        if self.still.mean() < 0.05 or self.true == 0:
            return None
        return self._variance(made) / self.true

    def _variance(self, frames: list[Picture]) -> float:
        values = np.stack([luma(frame)[self.still] for frame in frames])
        return float(values.var(axis=0).mean()) if self.still.any() else 0.0


def by_instant(results: dict[str, dict[str, Outcome]]) -> dict[str, dict[str, dict[str, float]]]:
    """Means over clips by span, instant and method."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for clip, row in results.items():
        span = clip.rsplit(", ", 1)[1]
        for method, outcome in row.items():
            for t, value in (outcome.by_t or {}).items():
                found.setdefault(span, {}).setdefault(t, {}).setdefault(method, []).append(value)
    return {
        span: {t: {method: float(np.mean(values)) for method, values in row.items()} for t, row in rows.items()}
        for span, rows in found.items()
    }


def summary(outcomes: list[Outcome]) -> dict[str, float]:
    """Means over clips, of those that have the figure."""
    found = {}
    for what in ("psnr", "ssim", "shimmer", "skipped"):
        values = [getattr(outcome, what) for outcome in outcomes if getattr(outcome, what) is not None]
        if values:
            found[what] = float(np.mean(values))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--protocol", choices=("half", "60", "instants"), default="half")
    parser.add_argument("--methods", default="blend,minterpolate,dis,dense,pruned")
    parser.add_argument("--clips", default="", help="stems of clips, separated by commas; all when left out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help="draw PSNR over work for the methods keep=SHARE, as SVG")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    engines = {
        name: Interpolator(
            EngineOptions(
                arguments.weights,
                precision=arguments.precision,
                keep=name.partition("=")[2] or "auto",
                pruning=name != "dense",
            )
        )
        for name in methods
        if name in ("dense", "pruned") or name.startswith("keep=")
    }
    classics: dict[str, Callable[[Task], list[Picture]]] = {
        "blend": run_blend,
        "minterpolate": run_minterpolate,
        "dis": run_dis,
    }
    results: dict[str, dict[str, Outcome]] = {}
    for task in tasks(arguments.folder, arguments.protocol, [name for name in arguments.clips.split(",") if name]):
        row = results[task.clip] = {}
        background = Background(task)
        for method in methods:
            begun = time.perf_counter()
            skipped = None
            if method in engines:
                made, skipped = run_network(engines[method], task)
            else:
                made = classics[method](task)
            seconds = (time.perf_counter() - begun) / len(task.wanted)
            values = [psnr(one, picture(t.planes, t)) for one, (_, _, t) in zip(made, task.wanted, strict=True)]
            by_t: dict[str, list[float]] = {}
            for value, (_, t, _) in zip(values, task.wanted, strict=True):
                by_t.setdefault(f"{float(t):g}", []).append(value)
            instants = {t: float(np.mean(some)) for t, some in by_t.items()} if len(by_t) > 1 else None
            alike = [ssim(one, picture(t.planes, t)) for one, (_, _, t) in zip(made, task.wanted, strict=True)]
            row[method] = Outcome(
                float(np.mean(values)), float(np.mean(alike)), seconds, background.shimmer(made), skipped, instants
            )
        print(task.clip, {name: round(outcome.psnr, 2) for name, outcome in row.items()}, file=sys.stderr, flush=True)
    table = Table(title=f"PSNR in dB of restored frames, protocol {arguments.protocol}")
    table.add_column("clip")
    for method in methods:
        table.add_column(method, justify="right")
    if "pruned" in methods:
        table.add_column("skipped", justify="right")
    for clip, row in results.items():
        cells = [f"{row[method].psnr:.2f}" for method in methods]
        if "pruned" in methods:
            cells.append(f"{100 * (row['pruned'].skipped or 0):.0f} %")
        table.add_row(clip, *cells)
    means = {method: summary([row[method] for row in results.values()]) for method in methods}
    cells = [f"{means[method]['psnr']:.2f}" for method in methods]
    if "pruned" in methods:
        cells.append(f"{100 * means['pruned']['skipped']:.0f} %")
    table.add_section()
    table.add_row("mean", *cells)
    for what in ("ssim", "shimmer", "skipped"):
        table.add_row(what, *(f"{means[method][what]:.4f}" if what in means[method] else "-" for method in methods))
    Console(width=130).print(table)
    spans = by_instant(results) if arguments.protocol == "instants" else {}
    for span, rows in spans.items():
        table = Table("t", *methods, title=f"PSNR in dB by instant, {span}")
        for t, values in rows.items():
            table.add_row(t, *(f"{values[method]:.2f}" for method in methods))
        Console(width=110).print(table)
    if arguments.figure:
        arguments.figure.write_text(keep_curve(means))
    if arguments.json:
        record = {
            "protocol": arguments.protocol,
            "mean": means,
            **({"instants": spans} if spans else {}),
            "clips": {clip: {name: vars(one) for name, one in row.items()} for clip, row in results.items()},
        }
        if engines:
            engine = next(iter(engines.values()))
            record["model"] = {
                "name": engine.model_name,
                "precision": engine.precision,
            }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
