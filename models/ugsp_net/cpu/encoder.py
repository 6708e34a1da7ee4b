"""The encoder, for processors: a few rows at a time from a level's input to its features.

What the first of a level's two convolutions makes is read by the second one from the cache and goes nowhere else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ugsp_net.blocks import LEAKY_SLOPE, Encoder
from ugsp_net.cpu.vectors import allocating, compiled, fetch, load, store
from ugsp_net.cpu.winograd import (
    COLUMNS,
    LANES,
    ROWS,
    STEP,
    accumulate,
    all_same,
    back,
    begin,
    leaky,
    multiply,
    padded,
    put,
    transform,
)
from ugsp_net.sparse.winograd import TILE, Winograd

SIDE = TILE + 2
"""Of what a tile reads."""
AHEAD = 2048
"""Numbers for which memory is asked before they are read: the encoder took a ninth longer without that."""


def encode(encoder: Encoder, frame: Tensor, scale: float, shift: float) -> list[Tensor]:
    """What the encoder makes of ``scale * frame + shift``. frame: [B, 3, H, W] fp32, sides multiples of 16."""
    features: list[Tensor] = []
    (height, width), source = frame.shape[-2:], frame.flatten(2).contiguous()  # [B, 3, H * W]
    for channels, *how in encoder.kept(_laid):
        height, width = height // 2, width // 2
        made = frame.new_empty((len(frame), height * width, channels))
        for one, out in zip(source.numpy(), made.numpy(), strict=True):
            _level(one, np.float32(scale), np.float32(shift), *how, np.float32(LEAKY_SLOPE), out, width)
        features.append(made.view(len(frame), height, width, -1).permute(0, 3, 1, 2))
        source, scale, shift = made.flatten(1)[:, None], 1.0, 0.0
    return features


def _laid(encoder: Encoder) -> list[tuple[Any, ...]]:
    """Of each level the channels, and both kernels and biases as ``_level`` takes them."""
    return [
        (
            second.out_channels,
            *padded(_taps(first.weight), first.bias),
            *padded(Winograd(second.weight).kernel, second.bias),
        )
        for first, second in encoder.convolutions
    ]


def _taps(weight: Tensor) -> Tensor:
    """[K, C, 3, 3] -> [9, C, K]."""
    return weight.permute(2, 3, 1, 0).flatten(0, 1)


@compiled
def _fill(source: Any, scale: float, shift: float, y: int, width: int, inputs: int, lines: Any, line: int) -> None:
    """Row y of the source, of so many positions, one position from the begin of a line."""
    if len(source) == 3:
        for channel in range(3):
            for x in range(width):
                lines[line, 3 * x + 3 + channel] = scale * source[channel, y * width + x] + shift
    else:
        start, whole = y * width * inputs, width * inputs // LANES * LANES
        for index in range(0, whole, LANES):
            fetch(source, start + index + AHEAD)
            store(load(source, 0, start + index), lines, line, inputs + index)
        for index in range(whole, width * inputs):
            lines[line, inputs + index] = source[0, start + index]


@compiled
def _clear(values: Any, start: int, stop: int) -> None:
    """Make rows zeros."""
    for row in range(start, stop):
        for column in range(values.shape[1]):
            values[row, column] = np.float32(0)


@allocating
def _level(
    source: Any,
    scale: float,
    shift: float,
    kernel: Any,
    bias: Any,
    second_kernel: Any,
    second_bias: Any,
    slope: float,
    out: Any,
    columns: int,
) -> None:
    """source: [3, H * W], of which scale and shift make what is convolved, or [1, H * W * C]; out: [H / 2 * columns,
    K]."""
    rows, outputs = out.shape[0] // columns, out.shape[1]
    inputs, tiles = kernel.shape[0] // 9, -(-columns // TILE)
    leak = all_same(slope)
    # Products make up to ``ROWS - 1`` positions too many, and the last tile reads some beyond the border.
    room = -(-max(columns, TILE * tiles) // ROWS) * ROWS + 2
    lines = np.zeros((3, 2 * (room + 1) * inputs), np.float32)
    made = np.zeros((SIDE * room, kernel.shape[1]), np.float32)
    values = np.zeros((36 * STEP, outputs), np.float32)
    products = np.empty((36 * STEP, second_kernel.shape[1]), np.float32)
    half, read = np.empty((36, LANES), np.float32), np.empty(36, np.intp)
    edge = np.empty((TILE * TILE, outputs), np.float32)
    for top in range(0, rows, TILE):
        for row in range(top - 1 if top == 0 else top + 1, top + TILE + 1):
            place = row % SIDE * room
            if not 0 <= row < rows:
                _clear(made, place, place + room)
                continue
            for y in range(2 * row - 1 if row == 0 else 2 * row, 2 * row + 2):
                if y < 0:
                    _clear(lines, 2, 3)
                else:
                    _fill(source, scale, shift, y, 2 * columns, inputs, lines, y % 3)
            for column in range(0, kernel.shape[1], COLUMNS):
                for x in range(0, columns, ROWS):
                    sums = begin(bias, 0, 0, column)
                    for tap in range(3):
                        line, first = (2 * row - 1 + tap) % 3, 3 * tap * inputs
                        sums = accumulate(
                            sums, lines, line, 2 * x * inputs, 2 * inputs, 3 * inputs, kernel, first, column
                        )
                    put(leaky(sums, leak), made, place + 1 + x, column)
            _clear(made, place + 1 + columns, place + room)
        for start in range(0, tiles, STEP):
            count = min(STEP, tiles - start)
            for tile in range(count):
                for y in range(SIDE):
                    place = (top - 1 + y) % SIDE * room + TILE * (start + tile)
                    for x in range(SIDE):
                        read[SIDE * y + x] = place + x
                transform(made, read, half, values, tile)
            multiply(values, second_kernel, products, count)
            for tile in range(count):
                left = TILE * (start + tile)
                if top + TILE <= rows and left + TILE <= columns:
                    back(products, tile, second_bias, slope, half, out, top * columns + left, columns)
                else:
                    back(products, tile, second_bias, slope, half, edge, 0, TILE)
                    for y in range(min(TILE, rows - top)):
                        for x in range(min(TILE, columns - left)):
                            for output in range(outputs):
                                out[(top + y) * columns + left + x, output] = edge[TILE * y + x, output]
