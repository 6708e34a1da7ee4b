"""The encoder, for processors: a few rows at a time from a level's input to its features.

What the first of a level's two convolutions makes is read by the second one from the cache and goes nowhere else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ugsp_net.blocks import LEAKY_SLOPE, Conv, Encoder
from ugsp_net.cpu.vectors import compiled, inlined, load, plain, same
from ugsp_net.cpu.winograd import (
    COLUMNS,
    LANES,
    ROWS,
    STEP,
    accumulate,
    back,
    leaky,
    multiply,
    padded,
    put,
    transform,
)
from ugsp_net.sparse.winograd import TILE, Winograd

SIDE = TILE + 2
"""Of what a tile reads."""


def encode(encoder: Encoder, frame: Tensor, scale: float, shift: float) -> list[Tensor]:
    """What the encoder makes of ``scale * frame + shift``. frame: [B, 3, H, W] fp32, sides multiples of 16."""
    features: list[Tensor] = []
    source, planes = frame.contiguous(), True
    for level in encoder.levels:
        first, second = (conv for conv in level.children() if isinstance(conv, Conv))
        assert first.bias is not None
        assert second.bias is not None
        height, width = (source.shape[-2:] if planes else source.shape[1:3])
        made = frame.new_empty((len(frame), height // 2, width // 2, second.out_channels))
        how = (*padded(first.kept(_taps), first.bias), *padded(second.kept(Winograd).kernel, second.bias))
        for one, out in zip(source.numpy(), made.numpy(), strict=True):
            _level(one, planes, np.float32(scale), np.float32(shift), *how, np.float32(LEAKY_SLOPE), out)
        features.append(made.permute(0, 3, 1, 2))
        source, planes, scale, shift = made, False, 1.0, 0.0
    return features


def _taps(weight: Tensor) -> Tensor:
    """[K, C, 3, 3] -> [9, C, K]."""
    return weight.permute(2, 3, 1, 0).flatten(0, 1)


@inlined
def _fill(source: Any, planes: bool, scale: float, shift: float, y: int, line: Any) -> None:
    """A row of the source, one position from the line's begin."""
    if planes:
        for channel in range(3):
            row = source[channel, y]
            for x in range(len(row)):
                line[3 * x + 3 + channel] = scale * row[x] + shift
    else:
        row = source[y].reshape(-1)
        first = source.shape[2]
        for x in range(len(row)):
            line[first + x] = row[x]


@compiled
def _level(
    source: Any,
    planes: bool,
    scale: float,
    shift: float,
    kernel: Any,
    bias: Any,
    second_kernel: Any,
    second_bias: Any,
    slope: float,
    out: Any,
) -> None:
    """source: [3, H, W], of which scale and shift make what is convolved, or [H, W, C]; out: [H / 2, W / 2, K]."""
    rows, columns, outputs = out.shape
    inputs, tiles = kernel.shape[0] // 9, -(-columns // TILE)
    leak, biases, second_biases = same(slope), bias.reshape(1, -1), second_bias.reshape(1, -1)
    # Products make up to five positions too many, and the last tile reads some beyond the border.
    room = -(-max(columns, TILE * tiles) // ROWS) * ROWS + 2
    lines = np.zeros((3, 2 * (room + 1) * inputs), np.float32)
    made = np.zeros((SIDE * room, kernel.shape[1]), np.float32)
    values = np.zeros((36 * STEP, outputs), np.float32)
    products = np.empty((36 * STEP, second_kernel.shape[1]), np.float32)
    half, read = np.empty((36, LANES), np.float32), np.empty(36, np.intp)
    edge, target = np.empty((TILE * TILE, outputs), np.float32), out.reshape(-1, outputs)
    for top in range(0, rows, TILE):
        for row in range(top - 1 if top == 0 else top + 1, top + TILE + 1):
            place = row % SIDE * room
            if not 0 <= row < rows:
                made[place : place + room] = 0
                continue
            for y in range(2 * row - 1 if row == 0 else 2 * row, 2 * row + 2):
                if y < 0:
                    lines[y % 3] = 0
                else:
                    _fill(source, planes, scale, shift, y, lines[y % 3])
            for column in range(0, kernel.shape[1], COLUMNS):
                low, high = load(biases, 0, column), load(biases, 0, column + LANES)
                for x in range(0, columns, ROWS):
                    sums = low, high, low, high, low, high, low, high, low, high, low, high
                    for tap in range(3):
                        line, first = (2 * row - 1 + tap) % 3, 3 * tap * inputs
                        sums = accumulate(sums, lines, line, 2 * x * inputs, 2 * inputs, 3 * inputs, kernel, first, column)
                    put(leaky(sums, leak), made, place + 1 + x, column)
            made[place + 1 + columns : place + room] = 0
        for begin in range(0, tiles, STEP):
            count = min(STEP, tiles - begin)
            for tile in range(count):
                for y in range(SIDE):
                    place = (top - 1 + y) % SIDE * room + TILE * (begin + tile)
                    for x in range(SIDE):
                        read[SIDE * y + x] = place + x
                transform(made, read, half, values, tile)
            multiply(values, second_kernel, products, count)
            for tile in range(count):
                left = TILE * (begin + tile)
                if top + TILE <= rows and left + TILE <= columns:
                    back(products, tile, second_biases, leak, half, target, top * columns + left, columns)
                else:
                    back(products, tile, second_biases, leak, half, edge, 0, TILE)
                    for y in range(min(TILE, rows - top)):
                        for x in range(min(TILE, columns - left)):
                            out[top + y, left + x] = edge[TILE * y + x]
