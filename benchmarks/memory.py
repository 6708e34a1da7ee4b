"""Measure memory: the engine beside its prediction, whole runs at 4K and 8K under a limit, and a run of ten minutes.

    python benchmarks/memory.py [model] [4k] [8k] [long] [--folder FOLDER] [--json FILE]

Each part runs in processes of its own on the processor, and replaces its own figures in the JSON file. Clips are drawn
once into the folder. 4k and 8k limit RLIMIT_DATA to 8 GiB: it counts every private page that may be written, whether it
was touched or not, so the resident memory cannot exceed it by more than the libraries' code. (RLIMIT_AS works as well;
it also counts what is mapped and never used, 0.6 GB of torch.)
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RESULTS = Path(__file__).parent / "results" / "memory.json"
LIMIT = 8 << 30
MIB = 1 << 20

MODEL = (
    # width, height, flow scale, precision, batch, halvings
    (640, 368, 1.0, "fp32", 1, 0),
    (640, 368, 1.0, "fp32", 4, 0),
    (640, 368, 1.0, "bf16", 1, 0),
    (1280, 720, 1.0, "bf16", 4, 0),
    (1920, 1080, 1.0, "bf16", 1, 0),
    (2560, 1440, 1.0, "bf16", 2, 0),
    (1280, 720, 1.0, "fp32", 1, 0),
    (1280, 720, 1.0, "fp32", 4, 0),
    (1280, 720, 1.0, "fp32", 1, 1),
    (3840, 2160, 0.25, "fp32", 1, 0),
    (7680, 4320, 0.25, "fp32", 1, 0),
)


def draw(path: Path, width: int, height: int, count: int, rate: int, shown: Callable[[int], int]) -> None:
    """A clip of a texture that pans by 29 pixels at 4K, less where the picture is smaller; shown: frame -> picture."""
    if path.exists():
        return
    step = max(2, round(29 * width / 3840))
    size = max(8, width // 120)
    rng = np.random.default_rng(0)
    small = rng.integers(30, 220, (height // size + 2, width // size + 2)).astype(np.uint8)
    texture = np.kron(small, np.ones((size, size), np.uint8))[:height]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(count):
            luma = np.roll(texture, step * shown(number), 1)[:, :width]
            grey = np.full((height // 2, width), 128, np.uint8)
            frame = av.VideoFrame.from_ndarray(np.concatenate((luma, grey)), format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def status(field: str, process: int | str = "self") -> int:
    """MiB of a line of /proc/PID/status; 0 where the process has none, for it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(field)), 0)


def one_prediction(width: int, height: int, scale: float, precision: str, batch: int, halvings: int) -> dict[str, Any]:
    """The engine's peak while it makes two batches, beside what is predicted. Every block is computed."""
    import torch

    from ugsp_cli.decode import Frame
    from ugsp_cli.engine import EngineOptions, Interpolator, Request
    from ugsp_cli.memory import peak_bytes
    from ugsp_cli.pixels import ColourTags, PixelLayout

    layout, colour = PixelLayout("yuv420p", 8, 1, 1, 3), ColourTags(1, 1, 1, 1)
    texture = np.random.default_rng(0).integers(40, 200, (height, width + 64)).astype(np.uint8)
    grey = np.full(layout.plane_size(1, width, height), 128, np.uint8)
    frames = []
    for index in range(2 * batch + 1):
        luma = np.ascontiguousarray(texture[:, 4 * index : 4 * index + width])
        frames.append(Frame(index, Fraction(index), (luma, grey, grey), layout, colour, 0.0, False))
    engine = Interpolator(
        EngineOptions(device="cpu", precision=precision, flow_scale=scale, keep=1.0, batch_size=batch)
    )
    for _ in range(halvings):
        engine._portions.shrink(height, width)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    around = [None, *frames, None]
    requests = [
        Request(left, right, 0.5, before, after)
        for before, left, right, after in zip(around, frames, frames[1:], around[3:], strict=False)
    ]
    for first in range(0, len(requests), batch):
        engine.interpolate(requests[first : first + batch])
    windows = engine._portions.windows(height, width)
    seen = max(window.pixels for window in windows)
    need = peak_bytes(width * height, seen, batch, precision, torch.device("cpu"), engine._portions._workers)
    return {
        "size": f"{width}x{height}",
        "flow_scale": scale,
        "precision": precision,
        "batch": batch,
        "windows": len(windows),
        "measured_mib": status("VmHWM") - before,
        "predicted_mib": need // MIB,
    }


def model() -> list[dict[str, Any]]:
    """Every line of MODEL in its own process."""
    rows = []
    for arguments in MODEL:
        command = [sys.executable, __file__, "--one", *map(str, arguments)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1], flush=True)
    return rows


def interpolate(source: Path, output: Path) -> list[str]:
    tool = [sys.executable, "-m", "ugsp_cli", "interpolate", str(source), "-o", str(output)]
    return [
        *tool,
        "--multiplier",
        "2",
        "--device",
        "cpu",
        "--no-scene-detection",
        "-y",
        "--stats",
        str(output.with_suffix(".json")),
    ]


def large(folder: Path, width: int, height: int) -> dict[str, Any]:
    """The whole tool under the limit on 26 frames: one is made; the others, which stand still, fill the encoder."""
    source, output = folder / f"{height}.mp4", folder / f"{height}.out.mp4"
    draw(source, width, height, 26, 24, lambda number: min(number, 1))
    begun = time.perf_counter()
    process = subprocess.Popen(
        interpolate(source, output),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
        stdout=subprocess.DEVNULL,
    )
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        raise SystemExit(f"{width}x{height} failed under the limit of {LIMIT // MIB} MiB")
    stats = json.loads(output.with_suffix(".json").read_text())
    row = {
        "size": f"{width}x{height}",
        "limit_mib": LIMIT // MIB,
        "peak_rss_mib": usage.ru_maxrss // 1024,
        "seconds": round(time.perf_counter() - begun, 1),
        "network_seconds": round(stats["seconds"]["network"], 1),
        "frames": stats["frames"],
        "precision": stats["precision"],
    }
    print(row, flush=True)
    return row


def long(folder: Path) -> dict[str, Any]:
    """The whole tool on ten minutes of 128x72 at 5 frames a second; the peak in each tenth of the run."""
    source, output = folder / "long.mp4", folder / "long.out.mp4"
    draw(source, 128, 72, 3000, 5, int)
    samples = []
    begun = time.perf_counter()
    process = subprocess.Popen(interpolate(source, output), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        samples.append((time.perf_counter() - begun, status("VmRSS", process.pid)))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit("the long clip failed")
    seconds = time.perf_counter() - begun
    tenths = [
        max(resident for when, resident in samples if index <= 10 * when / seconds < index + 1) for index in range(10)
    ]
    stats = json.loads(output.with_suffix(".json").read_text())
    row = {"seconds": round(seconds), "frames": stats["frames"], "peak_rss_mib_by_tenth": tenths}
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="model, 4k, 8k, long; all without any")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ugsp-memory")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        width, height, scale, precision, batch, halvings = arguments.one
        row = one_prediction(int(width), int(height), float(scale), precision, int(batch), int(halvings))
        print(json.dumps(row))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    parts: dict[str, Callable[[], Any]] = {
        "model": model,
        "4k": lambda: large(arguments.folder, 3840, 2160),
        "8k": lambda: large(arguments.folder, 7680, 4320),
        "long": lambda: long(arguments.folder),
    }
    for part in arguments.parts or parts:
        results[part] = parts[part]()
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
