"""How the scenes are drawn: textures, shapes with soft edges, and the way from a picture to a frame or a clip.

Lengths are in units of 1/720 of the picture's height unless they are said to be pixels; colours are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import ceil
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ugsp_cli.colour import rgb_to_planes
from ugsp_cli.decode import Frame
from ugsp_cli.pixels import ColourTags, PixelLayout

Plane = NDArray[np.float32]
"""[H, W], or [H, W, 3] where it holds colours."""
Painter = Callable[[float], Plane]
"""Seconds from the scene's beginning -> RGB [H, W, 3]."""

RATE = 24
LAYOUT, COLOUR = PixelLayout("yuv420p", 8, 1, 1, 3), ColourTags(1, 1, 1, 1)


def coordinates(width: int, height: int) -> tuple[float, Plane, Plane]:
    """Pixels per unit, and the units at each pixel's middle."""
    unit = height / 720
    rows, columns = np.mgrid[:height, :width].astype(np.float32) + 0.5
    return unit, (columns - width / 2) / unit, rows / unit


def noise(rng: np.random.Generator, height: int, width: int, cell: float | tuple[float, float], octaves: int) -> Plane:
    """Fractal noise in [0, 1]: random values every ``cell`` pixels (down, across), then at half the distance and half
    the strength, and so on. Nothing is finer than two pixels, so that it can move by parts of one."""
    down, across = cell if isinstance(cell, tuple) else (cell, cell)
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        steps = [max(2.0, step / 2**octave) for step in (down, across)]
        rows, columns = (ceil(size / step) + 2 for size, step in zip((height, width), steps, strict=True))
        grid = torch.from_numpy(rng.random((1, 1, rows, columns), np.float32))
        size = (round(rows * steps[0]), round(columns * steps[1]))
        total += F.interpolate(grid, size, mode="bicubic")[0, 0, :height, :width].numpy() / 2**octave
    low, high = np.quantile(total, (0.01, 0.99)).astype(np.float32)
    return np.clip((total - low) / (high - low), 0, 1)


def window(layer: Plane, offset: float, width: int) -> Plane:
    """``width`` columns of [H, W', C] from a broken column on, by Catmull-Rom's cubic."""
    whole = int(offset)
    f = offset - whole
    weights = (
        f * (-0.5 + f * (1 - 0.5 * f)),
        1 + f * f * (1.5 * f - 2.5),
        f * (0.5 + f * (2 - 1.5 * f)),
        f * f * (f - 1) / 2,
    )
    return sum(np.float32(weight) * layer[:, whole + tap : whole + tap + width] for tap, weight in enumerate(weights))


def lookup(texture: Plane, x: Plane, y: Plane, unit: float) -> Plane:
    """A texture of the picture's size where moved coordinates (in units) point."""
    height, width = texture.shape
    grid = torch.from_numpy(np.stack((2 * x * unit / width, 2 * y * unit / height - 1), -1).astype(np.float32))[None]
    return F.grid_sample(
        torch.from_numpy(texture)[None, None], grid, "bicubic", padding_mode="reflection", align_corners=False
    )[0, 0].numpy()


def ellipse(x: Plane, y: Plane, middle_x: float, middle_y: float, radius_x: float, radius_y: float) -> Plane:
    """About the distance to an ellipse, negative inside."""
    return (np.hypot((x - middle_x) / radius_x, (y - middle_y) / radius_y) - 1) * min(radius_x, radius_y)


def draw(picture: Plane, colour: object, distance: Plane, strength: float = 1.0) -> None:
    """Put a colour where the distance (in pixels) is negative, with an edge that is one pixel soft."""
    cover = np.clip(0.5 - distance, 0, 1)[..., None] * np.float32(strength)
    picture += cover * (np.asarray(colour, np.float32) - picture)


def skin(
    x: Plane, y: Plane, middle_x: float, middle_y: float, radius_x: float, radius_y: float, grain: Plane, unit: float
) -> Plane:
    """Skin on an ellipsoid lit from the left above."""
    across, down = (x - middle_x) / radius_x, (y - middle_y) / radius_y
    out = np.sqrt(np.clip(1 - across**2 - down**2, 0, 1))
    light = 0.52 + 0.50 * np.clip(-0.45 * across - 0.35 * down + 0.82 * out, 0, 1)
    return (light * (0.93 + 0.10 * lookup(grain, x, y, unit)))[..., None] * np.float32([0.93, 0.71, 0.58])


def frame_at(paint: Painter, index: int, time: Fraction) -> Frame:
    """The scene at an instant in seconds, as the decoder would deliver it."""
    rgb = torch.from_numpy(np.ascontiguousarray(paint(float(time)).transpose(2, 0, 1)))[None].clamp(0, 1)
    return Frame(index, time, rgb_to_planes(rgb, LAYOUT, COLOUR)[0], LAYOUT, COLOUR, 0.0, False)


def write_clip(paint: Painter, path: Path, seconds: float) -> Path:
    """The scene as H.264, nearly without loss. Returns the path."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "10", "preset": "veryfast"})
        assert isinstance(video, av.VideoStream)
        video.height, video.width = paint(0.0).shape[:2]
        video.pix_fmt = LAYOUT.name
        for index in range(round(seconds * RATE)):
            planes = frame_at(paint, index, Fraction(index, RATE)).planes
            packed = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, video.width)
            container.mux(video.encode(av.VideoFrame.from_ndarray(packed, format=LAYOUT.name)))
        container.mux(video.encode(None))
    return path
