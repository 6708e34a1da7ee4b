"""Between planes of luma and chroma and RGB, for processors: see ``ugsp_cli.colour``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ugsp_net import search
from ugsp_net.cpu.search import SHARES, see_rows
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
    *,
    looked: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """What ``ugsp_cli.colour._to_rgb`` returns. looked: what becomes what a search sees of it, where that is wanted."""
    image, points = looked or (torch.empty((1, 1, 0, 0)), torch.empty((1, 3, 0, 0)))
    out = torch.empty((1, 3, *(side + more for side, more in zip(y.shape, beyond, strict=True))))
    rows = np.empty((3, u.shape[1]), np.float32), np.empty(out.shape[3], np.float32)
    how = _singles(scales), *_singles((red, blue)), *shifts, SHARES, search.POINT, *rows
    _to_rgb(plain(y), plain(u), plain(v), *how, out[0].numpy(), image[0, 0].numpy(), points[0].numpy(), *flat(out[0]))
    return out


def to_rgb_and_look(y: Tensor, *how: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What ``ugsp_cli.colour._to_rgb_and_look`` returns: rows are looked at while they are in the cache. y, how: as for
    ``to_rgb``."""
    height, width = (side + more for side, more in zip(y.shape, how[-1], strict=True))
    image = torch.empty((1, 1, height // 2, width // 2))
    points = torch.empty((1, 3, height // search.POINT, width // search.POINT))
    return to_rgb(y, *how, looked=(image, points)), image, points


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
    y: Any,
    u: Any,
    v: Any,
    scales: Any,
    red: float,
    blue: float,
    down: int,
    across: int,
    shares: Any,
    side: int,
    chroma: Any,
    summed: Any,
    out: Any,
    image: Any,
    points: Any,
    numbers: Any,
    plane_step: int,
    row_step: int,
) -> None:
    """chroma: [3, w], what each colour has beyond luma in a row; summed: [W]; out: [3, H or more, W or more], and the
    same from ``flat``; shares, side, image, points: as for ``see_rows``, where there are any."""
    luma_zero, luma_reach, chroma_zero, chroma_reach = scales
    one, two = np.float32(1), np.float32(2)
    height, width = y.shape
    for row in range(out.shape[1]):
        if row >= height:
            for colour in range(3):
                last, made = out[colour, height - 1], out[colour, row]
                for x in range(made.size):
                    made[x] = last[x]
        else:
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
        if row % 2 == 1 and row // 2 < image.shape[0]:
            see_rows(numbers[0], plane_step, row_step, row // 2, *shares, side, summed, image, points)


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
