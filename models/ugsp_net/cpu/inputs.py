"""``SparseInputs.rows``, for processors: what a position reads is read, matched and written to its place at once."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ugsp_net.blocks import LEAKY_SLOPE, Activation, Conv, Convolutions
from ugsp_net.cpu.vectors import allocating, as_array, compiled, inlined, largest, load, plain, same, store, total

if TYPE_CHECKING:
    from ugsp_net.sparse.inputs import Matching, SparseInputs

LANES = 8
SIDE = 8
"""Of the squares of positions whose surroundings are read together."""


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
    channels, above = inputs.left.shape[1], inputs.above.shape[1]
    reducer = None if inputs.matching is None else _reducer(inputs.matching)
    kernel = bias = np.zeros((0, LANES), np.float32)
    radius = 0
    if inputs.matching is not None and reducer is not None:
        assert reducer.bias is not None
        radius = inputs.matching.radius
        kernel, bias = plain(reducer.weight.float().flatten(1).T), plain(reducer.bias.float()[None])
    matched = kernel.shape[1] if radius else 0
    timed = inputs.t is not None
    out = inputs.left.new_empty(len(positions) + 1, 2 * channels + above + matched + 4 + timed)
    out[-1] = 0
    starts = torch.searchsorted(positions, torch.arange(batch + 1) * height * width).tolist()
    flows = plain(inputs.flow.flatten(2))
    for index, (start, stop) in enumerate(pairwise(starts)):
        places = plain(positions[start:stop] - index * height * width)
        sources = [_flat(one[index]) for one in (inputs.left, inputs.right, inputs.above)]
        when = np.float32(inputs.t[index]) if inputs.t is not None else np.float32(0)
        sizes = height, width, channels, above, radius, timed
        how = flows[index], np.float32(inputs.bound), when, kernel, bias, np.float32(LEAKY_SLOPE)
        _rows(as_array(out[start:stop]), places, *sources, *how, sizes)
    return out


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


@allocating
def _rows(
    out: Any,
    places: Any,
    left: Any,
    right: Any,
    above: Any,
    flow: Any,
    bound: float,
    when: float,
    kernel: Any,
    bias: Any,
    slope: float,
    sizes: Any,
) -> None:
    """places: [U] of a picture, in order; left, right, above: from ``_flat``; flow: [4, H * W]; kernel: [D, M], bias:
    [1, M]."""
    height, width, channels, more, radius, timed = sizes
    half, quarter, one = np.float32(0.5), np.float32(0.25), np.float32(1)
    matched = kernel.shape[1] if radius else 0
    told = 2 * channels + more + matched
    for number in range(len(places)):
        place = places[number]
        at_y, at_x = np.float32(place // width), np.float32(place % width)
        _read(left, at_x + flow[0, place], at_y + flow[1, place], channels, out, number, 0)
        if radius == 0:
            _read(right, at_x + flow[2, place], at_y + flow[3, place], channels, out, number, channels)
        _read(above, half * at_x - quarter, half * at_y - quarter, more, out, number, 2 * channels)
        for plane in range(4):
            store(min(max(flow[plane, place], -bound), bound), out, number, told + plane)
        if timed:
            store(when, out, number, told + 4)
    if radius == 0:
        return
    leak, least = same(slope), np.float32(1e-6)
    side, reach = 2 * radius + 1, SIDE + 2 * radius
    numbers = np.zeros(height * width, np.int32)  # from 1 on
    for number in range(len(places)):
        numbers[places[number]] = number + 1
    window, scales = np.empty((reach * reach, channels), np.float32), np.empty(reach * reach, np.float32)
    found = np.empty(side * side, np.float32)
    for top in range(0, height, SIDE):
        for first in range(0, width, SIDE):
            wanted = False
            for y in range(top, min(top + SIDE, height)):
                for x in range(first, min(first + SIDE, width)):
                    wanted |= numbers[y * width + x] > 0
            if not wanted:
                continue
            for y in range(top - radius, top + SIDE + radius):
                for x in range(first - radius, first + SIDE + radius):
                    at = (y - top + radius) * reach + x - first + radius
                    scales[at] = 0
                    for channel in range(channels):
                        window[at, channel] = 0
                    if 0 <= y < height and 0 <= x < width:
                        place = y * width + x
                        _read(
                            right,
                            np.float32(x) + flow[2, place],
                            np.float32(y) + flow[3, place],
                            channels,
                            window,
                            at,
                            0,
                        )
                        scales[at] = one / np.sqrt(_product(window, at, window, at, channels) + least)
            for y in range(top, min(top + SIDE, height)):
                for x in range(first, min(first + SIDE, width)):
                    number = numbers[y * width + x] - 1
                    if number < 0:
                        continue
                    corner = (y - top) * reach + x - first
                    here = corner + radius * (reach + 1)
                    for channel in range(0, channels, LANES):
                        store(load(window, here, channel), out, number, channels + channel)
                    scale = one / np.sqrt(_product(out, number, out, number, channels) + least)
                    for down in range(side):
                        for across in range(side):
                            at = corner + down * reach + across
                            found[down * side + across] = (
                                scale * scales[at] * _product(out, number, window, at, channels)
                            )
                    for channel in range(0, matched, LANES):
                        made = load(bias, 0, channel)
                        for index in range(side * side):
                            made += same(found[index]) * load(kernel, index, channel)
                        store(largest(made, leak * made), out, number, 2 * channels + more + channel)


@inlined
def _product(one: Any, row: int, other: Any, other_row: int, channels: int) -> Any:
    """Of the first channels of two rows."""
    summed = same(np.float32(0))
    for channel in range(0, channels, LANES):
        summed += load(one, row, channel) * load(other, other_row, channel)
    return total(summed)
