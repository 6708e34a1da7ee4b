"""``rendering.put_rendered``, for processors: every pixel is made at once, and only where something moves."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ugsp_net.cpu.vectors import compiled, inlined, load4, plain, same4, store

PLANES = 5
"""Of what is enlarged: flow to both frames, and the logarithm of how many times more of the first is to be seen."""


def put_rendered(
    picture: Tensor,
    frame0: Tensor,
    frame1: Tensor,
    flow: Tensor,
    out: Tensor,
    t: Tensor,
    pace: Tensor,
    prior: Tensor | None,
    still: Tensor | None,
    corner: tuple[int, int],
    moving: Tensor | None,
) -> None:
    """What ``rendering.put_rendered`` does."""
    size = out.shape[2], out.shape[3]
    moving = out.new_ones((len(out), 1, 1, 1)) if moving is None else moving
    block = size[0] // moving.shape[2], size[1] // moving.shape[3]
    pixels = np.empty((2, *frame0.shape[-2:], 4), np.float32)
    for index in range(len(picture)):
        when, made, there = float(t[index]), picture[index].numpy(), plain(moving[index, 0])
        for one, frame in enumerate((frame0, frame1)):
            _interleave(frame[index].numpy(), pixels[one])
        likelier = np.float32(np.log((1 - when) / when))
        before = _NOTHING if prior is None else plain(prior[index, 0])
        how = plain(flow[index]), plain(out[index]), likelier, plain(pace[index, :, 0, 0]), before
        _render(made, *pixels.reshape(2, 1, -1), *how, corner, there, block)
        if still is not None:
            _put_still(made, *pixels, plain(still[index, 0]), np.float32(when), corner, size, there, block)


_NOTHING = np.empty((0, 0), np.float32)


@compiled
def _interleave(planes: Any, pixels: Any) -> None:
    """[3, H, W] -> [H, W, 4], of which the last is nothing."""
    for y in range(planes.shape[1]):
        for x in range(planes.shape[2]):
            pixels[y, x, 0] = planes[0, y, x]
            pixels[y, x, 1] = planes[1, y, x]
            pixels[y, x, 2] = planes[2, y, x]
            pixels[y, x, 3] = np.float32(0)


@inlined
def _exp(x: float) -> Any:
    """e to the power of x, -87 to 87, within 2e-7 of it: Numba's own is a call for each number."""
    times = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    rest = x - times * np.float32(0.693359375) + times * np.float32(2.12194440e-4)
    power = np.float32(1.9875691500e-4)
    power = power * rest + np.float32(1.3981999507e-3)
    power = power * rest + np.float32(8.3334519073e-3)
    power = power * rest + np.float32(4.1665795894e-2)
    power = power * rest + np.float32(1.6666665459e-1)
    power = power * rest + np.float32(5.0000001201e-1)
    power = power * rest * rest + rest + np.float32(1)
    return power * np.int32((np.int32(times) + np.int32(127)) << np.int32(23)).view(np.float32)


@inlined
def _within(position: Any, most: Any) -> Any:
    """The nearest from 0 to most; 0 of what is no number, so that nothing outside is read."""
    position = position if position > 0 else np.float32(0)
    return position if position < most else most


@compiled
def _render(
    picture: Any,
    frame0: Any,
    frame1: Any,
    flow: Any,
    out: Any,
    likelier: float,
    pace: Any,
    prior: Any,
    corner: Any,
    moving: Any,
    block: Any,
) -> None:
    """frame0, frame1: [1, 4 H W]; block: rows and columns of pixels to one of moving."""
    first_row, first_column = corner
    height, width = picture.shape[1:]
    rows, columns = out.shape[1:]
    near, far, one = np.float32(0.75), np.float32(0.25), np.float32(1)
    lines = np.zeros((PLANES, columns // 2 + 2), np.float32)
    told = np.empty((PLANES, columns), np.float32)
    corners = np.empty((2, columns), np.int32)
    shares = np.empty((2, 4, columns), np.float32)
    pixels = np.empty((columns, 4), np.float32)
    first = np.empty(columns, np.float32)
    places = first_column + np.arange(columns).astype(np.float32)
    left, last, line_below = first_column // 2 - 1, width // 2 - 1, 4 * width
    for y in range(rows):
        # A row of what is half the size, with a position more on both sides.
        i = (first_row + y) // 2
        beside = min(i + 1, height // 2 - 1) if y % 2 else max(i - 1, 0)
        for plane in range(4):
            line = lines[plane]
            for k in range(columns // 2 + 2):
                j = min(max(left + k, 0), last)
                line[k] = np.float32(2) * (near * flow[plane, i, j] + far * flow[plane, beside, j])
        if prior.size:
            for k in range(columns // 2 + 2):
                j = min(max(left + k, 0), last)
                lines[4, k] = near * prior[i, j] + far * prior[beside, j]
        for plane in range(PLANES):
            line, into = lines[plane], told[plane]
            share = pace[plane] if plane < 4 else one
            more = likelier if plane == 4 else np.float32(0)
            for k in range(columns // 2):
                into[2 * k] = near * line[k + 1] + far * line[k] + share * out[plane, y, 2 * k] + more
                into[2 * k + 1] = near * line[k + 1] + far * line[k + 2] + share * out[plane, y, 2 * k + 1] + more
        logit = told[4]
        for x in range(columns):
            first[x] = one / (one + _exp(-min(max(logit[x], np.float32(-80)), np.float32(80))))
        # Where each pixel is read, and what it takes of each of the four there.
        for frame in range(2):
            flow_x, flow_y, there = told[2 * frame], told[2 * frame + 1], corners[frame]
            here, right, under, diagonal = shares[frame]
            sign, more = (one, np.float32(0)) if frame == 0 else (-one, one)
            for x in range(columns):
                share = more + sign * first[x]
                at_x = _within(places[x] + flow_x[x], np.float32(width - 1))
                at_y = _within(np.float32(first_row + y) + flow_y[x], np.float32(height - 1))
                column, row = np.int32(at_x), np.int32(at_y)
                column, row = min(column, np.int32(width - 2)), min(row, np.int32(height - 2))
                there[x] = np.int32(4) * (row * np.int32(width) + column)
                at_x -= np.float32(column)
                at_y -= np.float32(row)
                below = share * at_y
                above = share - below
                right[x], diagonal[x] = above * at_x, below * at_x
                here[x], under[x] = above - right[x], below - diagonal[x]
        for start in range(0, columns, block[1]):
            if moving[y // block[0], start // block[1]] == 0:
                continue
            stop = min(start + block[1], columns)
            for x in range(start, stop):
                place = corners[0, x]
                made = load4(frame0, 0, place) * same4(shares[0, 0, x])
                made += load4(frame0, 0, place + 4) * same4(shares[0, 1, x])
                made += load4(frame0, 0, place + line_below) * same4(shares[0, 2, x])
                made += load4(frame0, 0, place + line_below + 4) * same4(shares[0, 3, x])
                place = corners[1, x]
                late = load4(frame1, 0, place) * same4(shares[1, 0, x])
                late += load4(frame1, 0, place + 4) * same4(shares[1, 1, x])
                late += load4(frame1, 0, place + line_below) * same4(shares[1, 2, x])
                late += load4(frame1, 0, place + line_below + 4) * same4(shares[1, 3, x])
                store(made + late, pixels, x, 0)
            # Sliced, so that every index is known not to be negative.
            some = pixels[start:stop]
            for channel in range(3):
                into = picture[channel, first_row + y, first_column + start : first_column + stop]
                residual = out[5 + channel, y, start:stop]
                for x in range(stop - start):
                    into[x] = some[x, channel] + residual[x]


@compiled
def _put_still(
    picture: Any, frame0: Any, frame1: Any, still: Any, when: float, corner: Any, size: Any, moving: Any, block: Any
) -> None:
    """Blend what stands still where it is, in a rectangle of the picture."""
    near, far = np.float32(0.75), np.float32(0.25)
    for y in range(corner[0], corner[0] + size[0]):
        i = y // 2
        beside = min(i + 1, still.shape[0] - 1) if y % 2 else max(i - 1, 0)
        for j in range(corner[1] // 2, (corner[1] + size[1]) // 2):
            before, after = max(j - 1, 0), min(j + 1, still.shape[1] - 1)
            around = still[i, before] + still[i, j] + still[i, after]
            around += still[beside, before] + still[beside, j] + still[beside, after]
            if around > 0 and moving[(y - corner[0]) // block[0], (2 * j - corner[1]) // block[1]] != 0:
                here = near * still[i, j] + far * still[beside, j]
                for odd in range(2):
                    other = after if odd else before
                    share = near * here + far * (near * still[i, other] + far * still[beside, other])
                    x = 2 * j + odd
                    for channel in range(3):
                        early, late = frame0[y, x, channel], frame1[y, x, channel]
                        made = picture[channel, y, x]
                        picture[channel, y, x] = made + share * (early + when * (late - early) - made)
