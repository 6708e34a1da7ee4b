"""Between planes of luma and chroma and RGB, for processors: see ``ugsp_cli.colour``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ugsp_net.cpu.vectors import compiled, flat, inlined, plain


def to_rgb(
    y: Tensor,
    u: Tensor,
    v: Tensor,
    scales: tuple[float, ...],
    red: float,
    blue: float,
    shifts: tuple[int, int],
    beyond: tuple[int, int] = (0, 0),
) -> Tensor:
    """What ``ugsp_cli.colour._to_rgb`` returns."""
    out = torch.empty((1, 3, *(side + more for side, more in zip(y.shape, beyond, strict=True))))
    chroma = np.empty((3, u.shape[1]), np.float32)
    _to_rgb(plain(y), plain(u), plain(v), _singles(scales), *_singles((red, blue)), *shifts, chroma, out[0].numpy())
    return out


def to_planes(
    rgb: Tensor, scales: tuple[float, ...], red: float, blue: float, shifts: tuple[int, int], top: int
) -> list[Tensor]:
    """What ``ugsp_cli.colour._to_planes`` returns."""
    batch, _, height, width = rgb.shape
    dtype = torch.uint8 if top < 256 else torch.uint16
    down, across = shifts
    half = batch, -(-height // (1 + down)), -(-width // (1 + across))
    y, *chroma = torch.empty((batch, height, width), dtype=dtype), *(torch.empty(half, dtype=dtype) for _ in range(2))
    # A row or two of blue and of red less luma, and a column beyond an odd width.
    rows = np.empty((2, 1 + down, width + across), np.float32)
    for index in range(batch):
        planes = (plane[index].numpy() for plane in (y, *chroma))
        _to_planes(flat(rgb[index]), _singles(scales), *_singles((red, blue)), *shifts, np.float32(top), rows, *planes)
    return [y, *chroma]


def _singles(numbers: tuple[float, ...]) -> tuple[Any, ...]:
    return tuple(np.float32(number) for number in numbers)


@compiled
def _to_rgb(
    y: Any, u: Any, v: Any, scales: Any, red: float, blue: float, down: int, across: int, chroma: Any, out: Any
) -> None:
    """chroma: [3, w], what each colour has beyond luma in a row; out: [3, H or more, W or more]."""
    luma_zero, luma_reach, chroma_zero, chroma_reach = scales
    one, two = np.float32(1), np.float32(2)
    height, width = y.shape
    for row in range(height):
        if row % (1 + down) == 0:
            blues, reds = u[row // (1 + down)], v[row // (1 + down)]
            for x in range(blues.size):
                beyond_blue = two * (one - blue) * ((np.float32(blues[x]) - chroma_zero) / chroma_reach)
                beyond_red = two * (one - red) * ((np.float32(reds[x]) - chroma_zero) / chroma_reach)
                chroma[0, x], chroma[2, x] = beyond_red, beyond_blue
                chroma[1, x] = (red * beyond_red + blue * beyond_blue) / (red + blue - one)
        lumas = y[row]
        for colour in range(3):
            made, beyond = out[colour, row], chroma[colour]
            if across:
                for x in range(width // 2):
                    made[2 * x] = (np.float32(lumas[2 * x]) - luma_zero) / luma_reach + beyond[x]
                    made[2 * x + 1] = (np.float32(lumas[2 * x + 1]) - luma_zero) / luma_reach + beyond[x]
                if width % 2:
                    made[width - 1] = (np.float32(lumas[width - 1]) - luma_zero) / luma_reach + beyond[width // 2]
            else:
                for x in range(width):
                    made[x] = (np.float32(lumas[x]) - luma_zero) / luma_reach + beyond[x]
            for x in range(width, made.size):
                made[x] = made[width - 1]
    for colour in range(3):
        for row in range(height, out.shape[1]):
            last, made = out[colour, height - 1], out[colour, row]
            for x in range(made.size):
                made[x] = last[x]


@inlined
def _whole(value: Any, top: float) -> Any:
    """What ``colour._whole`` makes of one value."""
    steps, none = np.float32(256), np.float32(0)
    return np.int32(min(max(np.rint(np.rint(value * steps) * (np.float32(1) / steps)), none), top))


@compiled
def _to_planes(
    rgb: Any,
    scales: Any,
    red: float,
    blue: float,
    down: int,
    across: int,
    top: float,
    rows: Any,
    y: Any,
    u: Any,
    v: Any,
) -> None:
    """rgb: from ``flat``; rows: [2, 1 + down, W + across], for what blue and red have beyond luma."""
    luma_zero, luma_reach, chroma_zero, chroma_reach = scales
    numbers, plane_step, row_step = rgb[0][0], rgb[1], rgb[2]
    height, width = y.shape
    one = np.float32(1)
    blue_reach, red_reach = chroma_reach / (np.float32(2) * (one - blue)), chroma_reach / (np.float32(2) * (one - red))
    share = one / np.float32((1 + down) * (1 + across))
    for i in range(u.shape[0]):
        for line in range(1 + down):
            row = min((1 + down) * i + line, height - 1)
            begin = row * row_step
            r, g = numbers[begin : begin + width], numbers[begin + plane_step : begin + plane_step + width]
            b, made = numbers[begin + 2 * plane_step : begin + 2 * plane_step + width], y[row]
            blues, reds = rows[0, line], rows[1, line]
            for x in range(width):
                luma = red * r[x] + (one - red - blue) * g[x] + blue * b[x]
                blues[x], reds[x] = b[x] - luma, r[x] - luma
                made[x] = _whole(luma * luma_reach + luma_zero, top)
            if width % 2 and across:
                blues[width], reds[width] = blues[width - 1], reds[width - 1]
        for plane, reach, beyond in ((u, blue_reach, rows[0]), (v, red_reach, rows[1])):
            made, first, last = plane[i], beyond[0], beyond[down]
            for x in range(made.size):
                summed = first[(1 + across) * x] + first[(1 + across) * x + across]
                if down:
                    summed += last[(1 + across) * x] + last[(1 + across) * x + across]
                summed *= share if across else share * np.float32(0.5)
                made[x] = _whole(summed * reach + chroma_zero, top)
