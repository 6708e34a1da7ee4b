"""``SparseInputs.rows``, for processors: what a position reads is read, matched and written to its place at once."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ugsp_net.blocks import LEAKY_SLOPE, Activation, Conv, Convolutions
from ugsp_net.cpu.vectors import (
    allocating,
    as_array,
    by_eight,
    compiled,
    inlined,
    largest,
    load,
    plain,
    same,
    store,
    total,
)

if TYPE_CHECKING:
    from ugsp_net.sparse.inputs import Matching, SparseInputs

LANES = 8
GROUP = 5
"""Positions beside each other with which one is compared at once."""


def compiles(inputs: SparseInputs) -> bool:
    """Whether ``rows`` takes these: all channels by eight, and a correlation reduced as the network does it."""
    if inputs.dtype not in (torch.float32, torch.bfloat16):
        return False
    maps = inputs.left, inputs.right, inputs.above
    if any(one.dtype != inputs.dtype or one.shape[1] % LANES or one.stride(1) != 1 for one in maps):
        return False
    return inputs.matching is None or _reducer(inputs.matching) is not None


def _reducer(how: Matching) -> Conv | None:
    """The convolution that a leaky ReLU follows, if that is all that reduces a correlation."""
    conv, activation, *more = how.reduce if isinstance(how.reduce, Convolutions) else (None, None)
    if more or not isinstance(conv, Conv) or not isinstance(activation, Activation) or activation.slope is not None:
        return None
    return conv if conv.out_channels % LANES == 0 else None


def rows(inputs: SparseInputs, positions: Tensor) -> Tensor:
    """What ``SparseInputs.rows`` returns."""
    batch, _, height, width = inputs.flow.shape
    out = inputs.left.new_empty(len(positions) + 1, inputs.channels)
    out[-1] = 0
    starts = torch.searchsorted(positions, torch.arange(batch + 1) * height * width).tolist()
    for index, (start, stop) in enumerate(pairwise(starts)):
        _fill(inputs, index, plain(positions[start:stop] - index * height * width), out[start:stop], 0)
    return out


def put_lines(inputs: SparseInputs, picture: int, places: Any, out: Tensor) -> None:
    """``rows`` of places of a picture, in order, where they are in lines of it, [H + 2 or more, W + 2 or more, C] with
    a border of one position, C at least that of the inputs: zeros follow."""
    _fill(inputs, picture, places, out.flatten(0, 1), out.shape[1])


def coarsest(left: Tensor, right: Tensor, flow: Tensor, t: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What ``network._coarsest_inputs`` returns."""
    known = torch.float32, torch.bfloat16
    sources = [by_eight(one if one.dtype in known else one.float()) for one in (left, right)]
    batch, channels, height, width = left.shape
    out = sources[0].new_empty((batch, height, width, 2 * channels + (t is not None)))
    for index, made in enumerate(out.flatten(1, 2)):
        both = [_flat(one[index]) for one in sources]
        when = np.float32(0) if t is None else np.float32(t[index])
        _read_both(*both, plain(flow[index].flatten(1)), channels, when, as_array(made))
    return out.to(dtype).permute(0, 3, 1, 2)


@allocating
def _read_both(left: Any, right: Any, flow: Any, channels: int, when: float, out: Any) -> None:
    """left, right: from ``_flat``; flow: [4, H * W]; out: [H * W, 2 C (+ 1)]."""
    width = left[2]
    room = np.empty((2, channels + LANES), np.float32)
    for place in range(len(out)):
        x, y = np.float32(place % width), np.float32(place // width)
        _read(left, x + flow[0, place], y + flow[1, place], channels, room, 0, 0)
        _read(right, x + flow[2, place], y + flow[3, place], channels, room, 1, 0)
        for side in range(2):
            for channel in range(channels):
                store(room[side, channel], out, place, side * channels + channel)
        if out.shape[1] > 2 * channels:
            store(when, out, place, 2 * channels)


def _fill(inputs: SparseInputs, index: int, places: Any, out: Tensor, pitch: int) -> None:
    """Rows of places of a picture, one after the other, or where they are in lines of so many positions."""
    width, channels, above = inputs.flow.shape[-1], inputs.left.shape[1], inputs.above.shape[1]
    reducer = None if inputs.matching is None else _reducer(inputs.matching)
    kernel = bias = np.zeros((0, LANES), np.float32)
    radius = 0
    if inputs.matching is not None and reducer is not None:
        assert reducer.bias is not None
        radius = inputs.matching.radius
        kernel, bias = plain(reducer.weight.float().flatten(1).T), plain(reducer.bias.float()[None])
    matched = kernel.shape[1] if radius else 0
    timed = inputs.t is not None
    flow = plain(inputs.flow[index].flatten(1))
    sources = [_flat(one[index]) for one in (inputs.left, inputs.right, inputs.above)]
    when = np.float32(inputs.t[index]) if inputs.t is not None else np.float32(0)
    sizes, made = (width, channels, above, matched, timed, pitch), as_array(out)
    _rows(made, places, *sources, flow, np.float32(inputs.bound), when, sizes)
    if matched:
        how = radius, channels, channels, 2 * channels + above, pitch
        _correlate(made, places, sources[1], flow, kernel, bias, np.float32(LEAKY_SLOPE), how)


def _flat(source: Tensor) -> tuple[Any, int, int, int, int]:
    """A map [C, H, W] whose channels lie one behind the other, as one line of numbers [1, N], its height and width, and
    how many numbers its rows and its positions are apart."""
    channels, height, width = source.shape
    down, across = source.stride(1), source.stride(2)
    length = (height - 1) * down + (width - 1) * across + channels
    return as_array(source.as_strided((1, length), (length, 1))), height, width, down, across


@compiled
def _read(source: Any, x: Any, y: Any, channels: int, out: Any, row: int, column: int) -> None:
    """A map between its positions, border values repeated, to a row of ``out`` from a column on."""
    numbers, height, width, down, across = source
    zero = np.float32(0)
    # What is no number is read at 0, so that nothing outside is.
    x = min(x if x > zero else zero, np.float32(width - 1))
    y = min(y if y > zero else zero, np.float32(height - 1))
    left, top = max(min(int(x), width - 2), 0), max(min(int(y), height - 2), 0)
    x, y = x - np.float32(left), y - np.float32(top)
    place = top * down + left * across
    right, below = across * min(1, width - 1), down * min(1, height - 1)
    diagonal = x * y
    one, two = same(np.float32(1) - x - y + diagonal), same(x - diagonal)
    three, four = same(y - diagonal), same(diagonal)
    for channel in range(0, channels, LANES):
        at = place + channel
        made = one * load(numbers, 0, at) + two * load(numbers, 0, at + right)
        made += three * load(numbers, 0, at + below) + four * load(numbers, 0, at + below + right)
        store(made, out, row, column + channel)


@compiled
def _rows(
    out: Any, places: Any, left: Any, right: Any, above: Any, flow: Any, bound: float, when: float, sizes: Any
) -> None:
    """All but the right features of a level that matches, and how they match. places: [U] of a picture, in order; left,
    right, above: from ``_flat``; flow: [4, H * W]."""
    width, channels, more, matched, timed, pitch = sizes
    half, quarter = np.float32(0.5), np.float32(0.25)
    told = 2 * channels + more + matched
    for number in range(len(places)):
        place = places[number]
        y, x = place // width, place % width
        row = _row(number, y, x, pitch)
        at_y, at_x = np.float32(y), np.float32(x)
        _read(left, at_x + flow[0, place], at_y + flow[1, place], channels, out, row, 0)
        if matched == 0:
            _read(right, at_x + flow[2, place], at_y + flow[3, place], channels, out, row, channels)
        _read(above, half * at_x - quarter, half * at_y - quarter, more, out, row, 2 * channels)
        for column in range(told, out.shape[1] if pitch else told, LANES):
            store(same(np.float32(0)), out, row, column)
        for plane in range(4):
            store(min(max(flow[plane, place], -bound), bound), out, row, told + plane)
        if timed:
            store(when, out, row, told + 4)


@inlined
def _row(number: int, y: int, x: int, pitch: int) -> int:
    """Of what is filled: the number itself, or a position's in lines of so many with a border of one."""
    return (y + 1) * pitch + x + 1 if pitch else number


@allocating
def _correlate(out: Any, places: Any, right: Any, flow: Any, kernel: Any, bias: Any, slope: float, how: Any) -> None:
    """The right features, and how well what lies around them matches the left ones, which are there. kernel: [D, M];
    bias: [1, M]; how: the radius, the number of channels, and the columns of right features and of matches."""
    height, width = right[1:3]
    radius, channels, told, matched, pitch = how
    leak, least, side, one = same(slope), np.float32(1e-6), 2 * radius + 1, np.float32(1)
    wanted = np.zeros((height, width), np.int32)  # the number of each place, from 1 on
    for number in range(len(places)):
        wanted[places[number] // width, places[number] % width] = number + 1
    # Of each of so many rows, one after the other, what is read of right features, and one by its length; what lies
    # outside matches nothing.
    room = width + 2 * radius
    window, scales = np.zeros((side * room + GROUP, channels), np.float32), np.zeros(side * room + GROUP, np.float32)
    holds, near = np.full(side, -side, np.intp), np.zeros(room, np.int32)
    found = np.empty(side * side + GROUP, np.float32)
    for y in range(height):
        some = np.int32(0)
        for x in range(width):
            some |= wanted[y, x]
        if some == 0:
            continue
        for row in range(y - radius, y + radius + 1):
            slot = (row + side) % side
            if holds[slot] == row:
                continue
            holds[slot] = row
            _read_row(right, flow, wanted, row, near, window, scales, slot * room, channels, radius, least)
        for x in range(width):
            number = wanted[y, x] - 1
            if number < 0:
                continue
            here, number = y % side * room + x + radius, _row(number, y, x, pitch)
            for channel in range(0, channels, LANES):
                store(load(window, here, channel), out, number, told + channel)
            scale = one / np.sqrt(_product(out, number, out, number, channels) + least)
            for down in range(side):
                line = (y + down - radius + side) % side * room + x
                for first in range(0, side, GROUP):
                    five = _products(out, number, window, line + first, channels)
                    for index in range(GROUP):
                        found[down * side + first + index] = scale * scales[line + first + index] * five[index]
            for channel in range(0, kernel.shape[1], LANES):
                # Two sums: one would wait for itself.
                even, odd = load(bias, 0, channel), same(np.float32(0))
                for index in range(0, side * side - 1, 2):
                    even += same(found[index]) * load(kernel, index, channel)
                    odd += same(found[index + 1]) * load(kernel, index + 1, channel)
                even += odd + same(found[side * side - 1]) * load(kernel, side * side - 1, channel)
                store(largest(even, leak * even), out, number, matched + channel)


@compiled
def _read_row(
    right: Any,
    flow: Any,
    wanted: Any,
    row: int,
    near: Any,
    window: Any,
    scales: Any,
    first: int,
    channels: int,
    radius: int,
    least: float,
) -> None:
    """What of a row is near wanted places into the window, from its row ``first`` on, with a border of ``radius``."""
    height, width = wanted.shape
    for x in range(width + 2 * radius):
        near[x] = 0
        scales[first + x] = np.float32(0)
    if not 0 <= row < height:
        for x in range(width + 2 * radius):
            for channel in range(channels):
                window[first + x, channel] = np.float32(0)
        return
    for y in range(max(row - radius, 0), min(row + radius + 1, height)):
        for across in range(2 * radius + 1):
            for x in range(width):
                near[x + across] |= wanted[y, x]
    for x in range(width):
        if near[x + radius] == 0:
            continue
        place, at = row * width + x, first + x + radius
        _read(right, np.float32(x) + flow[2, place], np.float32(row) + flow[3, place], channels, window, at, 0)
        scales[at] = np.float32(1) / np.sqrt(_product(window, at, window, at, channels) + least)


@inlined
def _product(one: Any, row: int, other: Any, other_row: int, channels: int) -> Any:
    """Of the first channels of two rows."""
    summed = same(np.float32(0))
    for channel in range(0, channels, LANES):
        summed += load(one, row, channel) * load(other, other_row, channel)
    return total(summed)


@inlined
def _products(one: Any, row: int, other: Any, other_row: int, channels: int) -> Any:
    """Of a row and of five beside each other."""
    a = b = c = d = e = same(np.float32(0))
    for channel in range(0, channels, LANES):
        values = load(one, row, channel)
        a += values * load(other, other_row, channel)
        b += values * load(other, other_row + 1, channel)
        c += values * load(other, other_row + 2, channel)
        d += values * load(other, other_row + 3, channel)
        e += values * load(other, other_row + 4, channel)
    return total(a), total(b), total(c), total(d), total(e)
