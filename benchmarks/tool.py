"""The whole tool against FFmpeg's minterpolate: decode, make frames, encode, on the same clips and the same cores.

    python benchmarks/tool.py [CLIP ...] [--fps 60] [--cores 2] [--turns 1] [--json FILE]

A CLIP is a file, or SCENE:SIZE:SECONDS: one of ``scenes.py``'s, drawn at that size for that long at 24 frames a second.
Without one, a talking head at several sizes and lengths. Each tool is a process of its own, with libx264 at the same
CRF and preset; seconds are from the process's start to its end, and its start-up (for ugsp: importing torch, loading
the weights) is given beside them and included. New frames are those that are no source frame. Median over the turns.
ugsp runs as it is by default and, as "search alone", with --keep 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from drawing import write_clip
from rich.console import Console
from rich.table import Table
from scenes import SCENES

from ugsp_cli.engine import EngineOptions, Interpolator
from ugsp_cli.media import probe
from ugsp_cli.timing import document

CLIPS = ("talking-head:1280x720:8", "talking-head:448x256:1", "talking-head:448x256:16", "talking-head:1920x1080:2")
ENCODER = ("--codec", "libx264", "--crf", "18", "--preset", "medium")


@dataclass
class Outcome:
    """One tool on one clip."""

    made: int
    """New frames."""
    seconds: float
    """From the start of the process to its end."""
    start_up: float
    """Seconds of these before the first frame was read and after the last was written."""

    @property
    def rate(self) -> float:
        """New frames per second."""
        return self.made / self.seconds


def clip_at(text: str, folder: Path) -> Path:
    """The file that a CLIP means."""
    name, *rest = text.split(":")
    if name not in SCENES or len(rest) != 2:
        return Path(text)
    width, height = map(int, rest[0].split("x"))
    path = folder / f"{name}-{rest[0]}-{rest[1]}.mp4"
    return path if path.exists() else write_clip(SCENES[name](width, height), path, float(rest[1]))


def timed(command: list[str]) -> tuple[float, str]:
    """Seconds, and what was printed."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - begun, done.stdout


def run_ugsp(clip: Path, target: Path, arguments: argparse.Namespace, keep: str = "auto") -> Outcome:
    command = ["-m", "ugsp_cli", "interpolate", str(clip), "-o", str(target), "--fps", str(arguments.fps)]
    command += ["--overwrite", "--quiet", "--stats", "-", *ENCODER]
    command += ["--device", arguments.device, "--precision", arguments.precision, "--keep", keep]
    if arguments.weights:
        command += ["--weights", arguments.weights]
    seconds, printed = timed(command)
    stats = json.loads(printed)
    return Outcome(stats["frames"]["interpolated"], seconds, seconds - stats["seconds"]["total"])


def run_minterpolate(clip: Path, target: Path, arguments: argparse.Namespace) -> Outcome:
    script = str(Path(__file__).with_name("minterpolate.py"))
    seconds, printed = timed([script, str(clip), str(target), "--fps", str(arguments.fps), *ENCODER])
    result = json.loads(printed)
    return Outcome(result["made"], seconds, seconds - result["seconds"])


TOOLS = {"ugsp": run_ugsp, "search alone": partial(run_ugsp, keep="0"), "minterpolate": run_minterpolate}


def measure(clip: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Outcome]:
    """All tools, turn by turn."""
    turns = [
        {name: tool(clip, folder / f"{name}.mp4", arguments) for name, tool in TOOLS.items()}
        for _ in range(arguments.turns)
    ]
    return {
        name: Outcome(
            turns[0][name].made,
            median(turn[name].seconds for turn in turns),
            median(turn[name].start_up for turn in turns),
        )
        for name in TOOLS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", default=CLIPS, help="files, or SCENE:SIZE:SECONDS")
    parser.add_argument("--fps", type=Fraction, default=Fraction(60))
    parser.add_argument("--cores", type=int, default=2, help="for each tool, where the system can be told (Linux)")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        # The processes that are started inherit it, and torch takes as many threads as it has cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    engine = Interpolator(EngineOptions(arguments.weights, arguments.device, arguments.precision))
    machine = document(engine, [])["machine"]
    machine["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    console = Console(width=120)
    console.print(f"{machine['name']}, {machine['cores']} cores, torch {machine['torch']}, {machine['precision']}")
    table = Table(title=f"decode, make, encode to {arguments.fps} frames a second; median of {arguments.turns}")
    names = ("clip", "size", "source s", "tool", "made", "seconds", "start-up", "then s/frame")
    for title in (*names, "new frames/s", "ratio"):
        table.add_column(title, justify="left" if title in ("clip", "tool") else "right")
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for text in arguments.clips:
            clip = clip_at(text, Path(folder))
            info = probe(clip)
            outcomes = measure(clip, Path(folder), arguments)
            ratios = {tool: one.rate / outcomes["minterpolate"].rate for tool, one in outcomes.items()}
            size, length = f"{info.width}x{info.height}", float(info.duration or 0)
            name = text.split(":")[0] if text != str(clip) else clip.stem
            for tool, one in outcomes.items():
                later = (one.seconds - one.start_up) / one.made
                figures = (f"{one.seconds:.1f}", f"{one.start_up:.1f}", f"{later:.3f}", f"{one.rate:.2f}")
                table.add_row(name, size, f"{length:g}", tool, str(one.made), *figures, f"{ratios[tool]:.2f}")
            tools = {
                tool: vars(one) | {"new_frames_per_second": one.rate, "ratio": ratios[tool]}
                for tool, one in outcomes.items()
            }
            records.append({"clip": name, "size": size, "source_seconds": length, "tools": tools})
    console.print(table)
    if arguments.json:
        record = {"machine": machine, "fps": str(arguments.fps), "turns": arguments.turns, "clips": records}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
