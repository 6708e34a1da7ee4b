"""Clips decoded once into one memory-mapped bank of uint8 RGB frames, split where the scene changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".ts"}
CUT_SCORE = 10.0
"""Score of libavfilter's scdet (0..100) from which a span is split."""
STILL = 0.15
"""Mean absolute difference, in 8-bit steps, under which a frame repeats the one before it."""


@dataclass(frozen=True)
class Shot:
    """Frames that follow each other without a cut."""

    clip: str
    """File name of the clip."""
    offset: int
    """Position of the first frame's first byte in the bank."""
    frames: int
    height: int
    width: int
    rate: float
    """Frames per second of the clip."""


class ClipBank:
    """All shots of a folder of clips. Opened once in each process; the pages are shared by the system."""

    def __init__(self, path: Path, shots: list[Shot]) -> None:
        self.path = path
        self.shots = shots
        self._bytes: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "shots": self.shots, "_bytes": None}

    def frames(self, shot: Shot) -> NDArray[np.uint8]:
        """A view [frames, height, width, 3] of one shot, RGB."""
        if self._bytes is None:
            self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        size = shot.frames * shot.height * shot.width * 3
        return self._bytes[shot.offset : shot.offset + size].reshape(shot.frames, shot.height, shot.width, 3)


def open_bank(folder: Path, cache: Path, max_lines: int = 360, limit: int | None = None) -> ClipBank:
    """Decode every clip under ``folder`` into a file in ``cache``, or open what an earlier run left there.

    Pictures of more than ``max_lines`` lines are reduced to that many. Raises FileNotFoundError when there is no clip.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)[:limit]
    if not paths:
        raise FileNotFoundError(f"no clips in {folder}: give a folder of videos ({', '.join(sorted(SUFFIXES))})")
    listing = "\n".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths)
    key = hashlib.sha256(f"{listing}\n{max_lines} {CUT_SCORE} {STILL}".encode()).hexdigest()[:16]
    data, index = cache / f"clips-{key}.rgb", cache / f"clips-{key}.json"
    if not index.exists():
        cache.mkdir(parents=True, exist_ok=True)
        shots: list[Shot] = []
        partial = data.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as out:
            for path in paths:
                for shot in _shots(path, max_lines):
                    frames, rate = shot
                    height, width = frames[0].shape[:2]
                    shots.append(Shot(path.name, out.tell(), len(frames), height, width, rate))
                    for frame in frames:
                        out.write(frame.tobytes())
        partial.rename(data)
        index.write_text(json.dumps([vars(shot) for shot in shots]))
    return ClipBank(data, [Shot(**entry) for entry in json.loads(index.read_text())])


def _shots(path: Path, max_lines: int) -> Iterator[tuple[list[NDArray[np.uint8]], float]]:
    """The shots of one clip of at least three frames, repeated frames left out, and the clip's rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or 25)
        graph = av.filter.Graph()
        source = graph.add_buffer(template=stream)
        detect = graph.add("scdet", f"threshold={CUT_SCORE}")
        sink = graph.add("buffersink")
        source.link_to(detect)
        detect.link_to(sink)
        graph.configure()
        shot: list[NDArray[np.uint8]] = []
        for decoded in container.decode(stream):
            graph.push(decoded)
            frame = graph.pull()
            assert isinstance(frame, av.VideoFrame)
            scale = min(1.0, max_lines / frame.height)
            width, height = (2 * round(side * scale / 2) for side in (frame.width, frame.height))
            converted = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
            picture = converted.astype(np.uint8, copy=False)
            if shot:
                score = float(frame.metadata.get("lavfi.scd.score", 0))
                still = np.abs(picture[::4, ::4].astype(np.int16) - shot[-1][::4, ::4]).mean() < STILL
                if score >= CUT_SCORE or picture.shape != shot[-1].shape:
                    if len(shot) >= 3:
                        yield shot, rate
                    shot = []
                elif still:
                    continue
            shot.append(picture)
        if len(shot) >= 3:
            yield shot, rate
