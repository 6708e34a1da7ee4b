"""Clips decoded once into one memory-mapped bank of uint8 RGB frames, split where the scene changes.

A clip is a video or a folder of pictures.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".ts"}
"""Names that count as videos."""
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
"""Names that count as pictures; three in a folder are a clip."""
PICTURE_RATE = 25.0
"""Frames per second of folders of pictures, which do not say."""
CUT_SCORE = 10.0
"""Score of libavfilter's scdet (0..100) from which a span is split."""
CUT_CONTEXT = 8
"""Pictures that a folder must hold for cuts to be looked for: the score is relative to what came before."""
STILL = 0.15
"""Mean absolute difference, in 8-bit steps, under which a frame repeats the one before it."""

# Vimeo90K names the sequences of both its splits; all of them lie in one folder.
_TRAIN_LISTS = ("tri_trainlist.txt", "sep_trainlist.txt")
_TEST_LISTS = ("tri_testlist.txt", "sep_testlist.txt")
# Triplets of UCF101 whose names do not sort by time, or beside which other pictures lie: their names, in order.
_TRIPLETS = (("frame_00", "frame_01_gt", "frame_02"), ("frame1", "framet", "frame2"))


@dataclass(frozen=True)
class Shot:
    """Frames that follow each other without a cut."""

    clip: str
    """File name of the video, or path of the folder of pictures below the one that was opened."""
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

    def large(self) -> list[Shot]:
        """The shots of at least 64 pixels a side. Raises ValueError where there is none."""
        shots = [shot for shot in self.shots if min(shot.height, shot.width) >= 64]
        if not shots:
            raise ValueError("no clip has pictures of 64x64 pixels")
        return shots

    def frames(self, shot: Shot) -> NDArray[np.uint8]:
        """A view [frames, height, width, 3] of one shot, RGB."""
        if self._bytes is None:
            self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        size = shot.frames * shot.height * shot.width * 3
        return self._bytes[shot.offset : shot.offset + size].reshape(shot.frames, shot.height, shot.width, 3)


def open_bank(folder: Path, cache: Path, max_lines: int = 360, limit: int | None = None) -> ClipBank:
    """Decode every clip under ``folder`` into a file in ``cache``, or open what an earlier run left there.

    Clips are videos and folders of at least three pictures, in natural order of their names. Where a list of Vimeo90K's
    training split lies, only the sequences that it names are used. Frames of more than ``max_lines`` lines are reduced
    to that many; limit: so many clips, the first ones.

    Raises FileNotFoundError when there is no clip or a listed one is missing; ValueError when a folder is a test split,
    a picture cannot be decoded, or the pictures of a folder differ in size.
    """
    clips = _find(folder)[:limit]
    if not clips:
        videos, pictures = (", ".join(sorted(suffixes)) for suffixes in (SUFFIXES, PICTURE_SUFFIXES))
        raise FileNotFoundError(
            f"no clips in {folder}: give a folder of videos ({videos}) or of folders of pictures ({pictures})"
        )
    listing = "\n".join(line for clip in clips for line in clip.listing())
    key = hashlib.sha256(f"{listing}\n{max_lines} {CUT_SCORE} {STILL}".encode()).hexdigest()[:16]
    data, index = cache / f"clips-{key}.rgb", cache / f"clips-{key}.json"
    if not _is_whole(data, index):
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = data.with_suffix(f".{os.getpid()}.partial")
        try:
            with unfinished.open("wb") as out:
                shots = [shot for clip in clips for shot in _write(clip, max_lines, out)]
            if not shots:
                raise FileNotFoundError(f"no clips in {folder} have three frames in a row that differ")
            unfinished.rename(data)
        finally:
            unfinished.unlink(missing_ok=True)
        index.write_text(json.dumps([vars(shot) for shot in shots]))
    return ClipBank(data, [Shot(**entry) for entry in json.loads(index.read_text())])


def _is_whole(data: Path, index: Path) -> bool:
    """Whether an earlier run left all that its index tells of."""
    if not (index.exists() and data.exists()):
        return False
    shots = [Shot(**entry) for entry in json.loads(index.read_text())]
    return data.stat().st_size == sum(3 * shot.frames * shot.height * shot.width for shot in shots)


@dataclass(frozen=True)
class _Clip:
    """Where frames come from."""

    name: str
    """As in ``Shot``."""
    paths: list[Path]
    """One video, or at least three pictures in order."""

    def listing(self) -> list[str]:
        """What tells this clip from another of its name."""
        names = [self.name] if len(self.paths) == 1 else [f"{self.name}/{path.name}" for path in self.paths]
        stats = [path.stat() for path in self.paths]
        return [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in zip(names, stats, strict=True)]

    def frames(self, max_lines: int) -> Iterator[tuple[NDArray[np.uint8], bool, float]]:
        """Reduced pictures, whether a scene begins with them, and frames per second."""
        return _video(self.paths[0], max_lines) if len(self.paths) == 1 else _sequence(self.paths, max_lines)


def _find(folder: Path) -> list[_Clip]:
    """All videos, by path, then all folders of pictures, in natural order."""
    videos: list[Path] = []
    sequences: dict[Path, list[Path]] = {}
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [here / name for name in files if not name.startswith(".")]
        videos += [path for path in paths if path.suffix.lower() in SUFFIXES]
        lists = [here / name for name in _TRAIN_LISTS if name in files]
        tests = [name for name in _TEST_LISTS if name in files]
        if lists:
            folders.clear()
            sequences |= _listed(here / "sequences", lists)
        elif tests:
            raise ValueError(f"{here} is a test split, not to be trained on: it holds {tests[0]} and no training list")
        elif len(pictures := _in_order(paths)) >= 3:
            sequences[here] = pictures
    named = {path.relative_to(folder).as_posix() if path != folder else folder.name: path for path in sequences}
    return [
        *(_Clip(path.name, [path]) for path in sorted(videos)),
        *(_Clip(name, sequences[named[name]]) for name in sorted(named, key=_natural)),
    ]


def _listed(folder: Path, lists: list[Path]) -> dict[Path, list[Path]]:
    """The sequences in a folder that lists name, and their pictures."""
    names = dict.fromkeys(word for path in lists for word in path.read_text(encoding="utf-8").split())
    sequences = {name: _in_order((folder / name).glob("*")) for name in names}
    missing = [name for name, pictures in sequences.items() if len(pictures) < 3]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileNotFoundError(f"{lists[0]} names what is not in {folder}: {', '.join(missing[:3])}{more}")
    return {folder / name: pictures for name, pictures in sequences.items()}


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """The pictures among files of one folder, by time."""
    pictures = [path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")]
    by_stem = {path.stem: path for path in pictures}
    for names in _TRIPLETS:
        if all(name in by_stem for name in names):
            return [by_stem[name] for name in names]
    return sorted(pictures, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[str | int]:
    """frame2 before frame10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _write(clip: _Clip, max_lines: int, out: BinaryIO) -> list[Shot]:
    """Write the shots of one clip of at least three frames, repeated frames left out."""
    shots: list[Shot] = []
    last: NDArray[np.uint8] | None = None

    def drop_short() -> None:
        if shots and shots[-1].frames < 3:
            out.seek(shots.pop().offset)
            out.truncate()

    for picture, cut, rate in clip.frames(max_lines):
        if last is None or cut or picture.shape != last.shape:
            drop_short()
            height, width = picture.shape[:2]
            shots.append(Shot(clip.name, out.tell(), 0, height, width, rate))
        elif np.abs(picture[::4, ::4].astype(np.int16) - last[::4, ::4]).mean() < STILL:
            continue
        out.write(picture.tobytes())
        shots[-1] = replace(shots[-1], frames=shots[-1].frames + 1)
        last = picture
    drop_short()
    return shots


def _video(path: Path, max_lines: int) -> Iterator[tuple[NDArray[np.uint8], bool, float]]:
    """As ``_Clip.frames``."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video: take it away")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or PICTURE_RATE)
        look = _scene_finder(template=stream)
        for decoded in container.decode(stream):
            frame, cut = look(decoded)
            yield _reduced(frame, max_lines), cut, rate


def _sequence(paths: list[Path], max_lines: int) -> Iterator[tuple[NDArray[np.uint8], bool, float]]:
    """As ``_Clip.frames``."""
    look: Callable[[av.VideoFrame], tuple[av.VideoFrame, bool]] | None = None
    for number, picture in enumerate(_pictures(paths, max_lines)):
        cut = False
        if len(paths) >= CUT_CONTEXT:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            if look is None:
                look = _scene_finder(width=frame.width, height=frame.height, format="rgb24", time_base=frame.time_base)
            _, cut = look(frame)
        yield picture, cut, PICTURE_RATE


def _pictures(paths: list[Path], max_lines: int) -> Iterator[NDArray[np.uint8]]:
    """Reduced pictures of one size, decoded by two threads; few wait in memory."""
    first: tuple[int, int] | None = None
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(paths), 8):
            some = paths[start : start + 8]
            for path, (picture, size) in zip(some, pool.map(partial(_read, max_lines=max_lines), some), strict=True):
                first = first or size
                if size != first:
                    raise ValueError(
                        f"{path} is {size[0]}x{size[1]}, but {paths[0].name} is {first[0]}x{first[1]}: "
                        "the pictures of a folder must have one size"
                    )
                yield picture


def _read(path: Path, max_lines: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A reduced picture, and its width and height before that."""
    try:
        # Opened here, because FFmpeg takes % in a name for a pattern of names.
        with path.open("rb") as file, av.open(file, "r") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            frame = next(container.decode(stream))
            return _reduced(frame, max_lines), (frame.width, frame.height)
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise ValueError(f"{path} cannot be decoded as a picture") from error


def _reduced(frame: av.VideoFrame, max_lines: int) -> NDArray[np.uint8]:
    """[height, width, 3] RGB of at most so many lines."""
    scale = min(1.0, max_lines / frame.height)
    width, height = (2 * round(side * scale / 2) for side in (frame.width, frame.height))
    picture = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    return picture.astype(np.uint8, copy=False)


def _scene_finder(**source: Any) -> Callable[[av.VideoFrame], tuple[av.VideoFrame, bool]]:
    """A function that is shown the frames of a clip in turn, and says with which ones a scene begins.

    source: what the filter's input is told of the frames.
    """
    graph = av.filter.Graph()
    detect, sink = graph.add("scdet", f"threshold={CUT_SCORE}"), graph.add("buffersink")
    graph.add_buffer(**source).link_to(detect)
    detect.link_to(sink)
    graph.configure()

    def look(decoded: av.VideoFrame) -> tuple[av.VideoFrame, bool]:
        graph.push(decoded)
        frame = graph.pull()
        assert isinstance(frame, av.VideoFrame)
        return frame, float(frame.metadata.get("lavfi.scd.score", 0)) >= CUT_SCORE

    return look
