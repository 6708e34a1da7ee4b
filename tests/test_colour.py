"""Planes to RGB and back: exact at every depth, layout, matrix and range; the matrices against libswscale."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from ugsp_cli.colour import planes_to_rgb, rgb_to_planes
from ugsp_cli.media import ColourTags, PixelLayout

LAYOUTS = [
    PixelLayout("yuv420p", 8, 1, 1, 3),
    PixelLayout("yuv422p", 8, 1, 0, 3),
    PixelLayout("yuv444p", 8, 0, 0, 3),
    PixelLayout("yuv420p10le", 10, 1, 1, 3),
    PixelLayout("yuv444p12le", 12, 0, 0, 3),
    PixelLayout("gray", 8, 0, 0, 1),
]
CPU = torch.device("cpu")


def random_planes(layout: PixelLayout, width: int, height: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    dtype = np.uint8 if layout.bits == 8 else np.uint16
    sizes = [layout.plane_size(plane, width, height) for plane in range(layout.planes)]
    return tuple(rng.integers(0, 2**layout.bits, size).astype(dtype) for size in sizes)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("matrix", [1, 2, 5, 6, 7, 9])
@pytest.mark.parametrize("value_range", [0, 1, 2])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (37, 23)])
def test_round_trip_is_exact(layout: PixelLayout, matrix: int, value_range: int, width: int, height: int) -> None:
    """Even for values outside the nominal range: nothing is clipped on the way."""
    colour = ColourTags(matrix, 2, 2, value_range)
    planes = random_planes(layout, width, height)
    (back,) = rgb_to_planes(planes_to_rgb(planes, layout, colour, CPU), layout, colour)
    for before, after in zip(planes, back, strict=True):
        assert after.dtype == before.dtype
        # Where an odd size leaves half a chroma sample, the picture's edge stands for all of it.
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("matrix", "name"), [(1, "ITU709"), (6, "ITU601")])
def test_rgb_agrees_with_libswscale(matrix: int, name: str) -> None:
    layout = PixelLayout("yuv444p", 8, 0, 0, 3)
    rng = np.random.default_rng(1)
    planes = tuple(
        rng.integers(low, high, (16, 16)).astype(np.uint8) for low, high in ((60, 180), (110, 146), (110, 146))
    )
    frame = av.VideoFrame.from_ndarray(np.stack(planes), format="yuv444p")
    expected = frame.to_ndarray(format="rgb24", src_colorspace=name, src_color_range=1, dst_color_range=2)
    rgb = planes_to_rgb(planes, layout, ColourTags(matrix, 2, 2, 1), CPU)[0] * 255
    difference = np.abs(rgb.permute(1, 2, 0).numpy() - expected)
    assert difference.max() <= 2.0  # libswscale works in integers


def test_black_and_white() -> None:
    layout = PixelLayout("yuv420p", 8, 1, 1, 3)
    for value_range, black, white in ((1, 16, 235), (2, 0, 255)):
        colour = ColourTags(1, 1, 1, value_range)
        for luma, expected in ((black, 0.0), (white, 1.0)):
            chroma = np.full((2, 2), 128, np.uint8)
            rgb = planes_to_rgb((np.full((4, 4), luma, np.uint8), chroma, chroma), layout, colour, CPU)
            torch.testing.assert_close(rgb, torch.full_like(rgb, expected), atol=1e-6, rtol=0)


def test_what_is_not_said_is_bt709_from_720_lines() -> None:
    layout = PixelLayout("yuv444p", 8, 0, 0, 3)

    def red(matrix: int, height: int) -> float:
        planes = tuple(np.full((height, 4), value, np.uint8) for value in (100, 128, 200))
        return float(planes_to_rgb(planes, layout, ColourTags(matrix, 2, 2, 1), CPU)[0, 0, 0, 0])

    assert red(2, 720) == red(1, 720)
    assert red(2, 480) == red(6, 480)
    assert red(1, 720) != red(6, 720)
