"""A short moving clip with sound, made in code, so that the tool can be tried before a video is at hand.

It shows what the network is asked in practice: a textured background that drifts slowly, things that move fast in front
of it, and a part that does not move at all and should cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ugsp_cli.atomic import AtomicFile

__all__ = ["is_demo", "make_clip"]

TITLE = "ugsp demo"

WIDTH, HEIGHT = 320, 180
RATE = 24
SECONDS = 2
SOUND_RATE = 48_000
_SOUND_BLOCK = 1024  # samples per AAC frame


def make_clip(path: Path, seconds: int = SECONDS) -> Path:
    """Write the clip (24 frames per second, H.264 and AAC), in the place of an older one, and return its path."""
    file = AtomicFile(path, overwrite=True)
    try:
        _write(file, seconds)
        file.commit()
    except BaseException:
        file.discard()
        raise
    return path


def is_demo(path: Path) -> bool:
    """Whether a file is a demo's, or was made of one."""
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("title") == TITLE
    except (av.FFmpegError, OSError):
        return False


def _write(file: AtomicFile, seconds: int) -> None:
    with av.open(file, "w") as container:
        container.metadata["title"] = TITLE
        video = container.add_stream("libx264", rate=RATE, options={"crf": "16"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        for picture in _pictures(seconds * RATE):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        for sound in _sounds(seconds * SOUND_RATE):
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


def _pictures(count: int) -> Iterator[np.ndarray]:
    """RGB pictures, uint8 [H, W, 3]."""
    random = np.random.default_rng(7)
    # A soft texture wider than the picture, so that the background can drift.
    background = _smooth(random.random((HEIGHT, WIDTH + 2 * count, 3)), 4) * 110 + 70
    checker = (np.indices((44, 44)) // 11).sum(axis=0) % 2
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(count):
        picture = background[:, number : number + WIDTH].copy()
        phase = 2 * np.pi * number / RATE
        left, top = round(20 + 200 * (0.5 - 0.5 * np.cos(phase / 2))), round(95 + 25 * np.sin(phase))
        picture[top : top + 44, left : left + 44] = np.where(checker[..., None] == 1, [240, 235, 220], [40, 45, 90])
        x, y = 160 + 110 * np.cos(phase * 0.7), 70 + 40 * np.sin(phase * 1.4)
        edge = np.clip(19 - np.hypot(columns - x, rows - y), 0, 1)[..., None]  # one soft pixel around the disc
        picture = picture * (1 - edge) + np.array([235, 90, 50]) * edge
        # The still part: a bar as of a caption.
        picture[HEIGHT - 22 :] = 24
        picture[HEIGHT - 14 : HEIGHT - 8, 16 : WIDTH - 16 : 12] = 200
        yield picture.clip(0, 255).astype(np.uint8)


def _sounds(samples: int) -> Iterator[av.AudioFrame]:
    """A quiet tone that swells and fades."""
    for begin in range(0, samples, _SOUND_BLOCK):
        instants = np.arange(begin, min(begin + _SOUND_BLOCK, samples)) / SOUND_RATE
        wave = 0.2 * np.sin(2 * np.pi * 330 * instants) * np.sin(np.pi * instants) ** 2
        frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, begin, Fraction(1, SOUND_RATE)
        yield frame


def _smooth(texture: np.ndarray, radius: int) -> np.ndarray:
    """Box-blur rows and columns and stretch what is left to [0, 1]."""
    for axis in (0, 1):
        texture = np.mean([np.roll(texture, shift, axis) for shift in range(-radius, radius + 1)], axis=0)
    low, high = texture.min(), texture.max()
    return np.asarray((texture - low) / (high - low))
