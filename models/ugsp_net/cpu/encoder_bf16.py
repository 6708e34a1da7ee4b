"""The encoder in bf16, for processors that multiply it: four lines at a time from a level's input to its features.

What the first of a level's two convolutions makes is read by the second one from the cache and goes nowhere else. See
``products``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor
from torch.nn import functional as F

from ugsp_net.blocks import LEAKY_SLOPE, Encoder
from ugsp_net.cpu.products import (
    LANES,
    LINES,
    PAIRS,
    ROOM,
    configure,
    copy,
    element,
    halved,
    in_blocks,
    multiply,
    put_halves,
    release,
    unit,
)
from ugsp_net.cpu.vectors import allocating, as_array, compiled, flat, largest, load16, plain, same16

COLOURS = 4
"""Numbers of a pixel as the first convolution reads it: red, green, blue and nothing."""
READ = 2 * LINES + 1
"""Lines that a convolution of stride 2 reads for those that it makes."""


def encode(encoder: Encoder, frame: Tensor, scale: float, shift: float) -> list[Tensor]:
    """What the encoder makes of ``scale * frame + shift``, with leaky ReLUs and channels by sixteen. frame:
    [B, 3, H, W] fp32, sides multiples of 16."""
    features: list[Tensor] = []
    (height, width), sources = frame.shape[-2:], [flat(picture) for picture in frame]
    for channels, *kernels in encoder.kept(_laid):
        height, width = height // 2, width // 2
        made = frame.new_empty((len(frame), height, width, channels), dtype=torch.bfloat16)
        outs = [as_array(one.flatten()) for one in made]
        for source, out in zip(sources, outs, strict=True):
            how = np.float32(scale), np.float32(shift), *kernels, np.float32(LEAKY_SLOPE)
            _level(unit(), *source, *how, out, height, width)
        features.append(made.permute(0, 3, 1, 2))
        sources = [(out, 0, 0) for out in outs]
    return features


def _laid(encoder: Encoder) -> list[tuple[Any, ...]]:
    """Of each level the channels, and both kernels and biases as ``_level`` takes them."""
    laid: list[tuple[Any, ...]] = []
    for first, second in encoder.convolutions:
        assert first.bias is not None
        assert second.bias is not None
        kernels = (_taps if laid else _first)(first.weight), _taps(second.weight)
        biases = (plain(bias.detach().float()[None]) for bias in (first.bias, second.bias))
        both = zip((as_array(kernel.detach()) for kernel in kernels), biases, strict=True)
        laid.append((second.out_channels, *(array for pair in both for array in pair)))
    return laid


def _first(weight: Tensor) -> Tensor:
    """``in_blocks`` of [K, 3, 3, 3], of pixels of ``COLOURS`` numbers."""
    return _in_lines(F.pad(weight, (0, 0, 0, 0, 0, COLOURS - weight.shape[1])))


def _taps(weight: Tensor) -> Tensor:
    """``in_blocks`` of [K, C, 3, 3] for positions that are not filled up."""
    return _in_lines(weight)


def _in_lines(weight: Tensor) -> Tensor:
    return in_blocks(weight.permute(2, 0, 3, 1).flatten(2)[:, :, None])


@intrinsic
def _put_pixels(_context: Any, red: Any, _green: Any, _blue: Any, target: Any, _place: Any) -> Any:
    """Sixteen pixels of ``COLOURS`` numbers to an int16 array, from an element on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.VectorType(ir.IntType(64), LANES)
        pixels = builder.zext(arguments[0], wide)
        for index in (1, 2):
            moved = ir.Constant(wide, [16 * index] * LANES)
            pixels = builder.or_(pixels, builder.shl(builder.zext(arguments[index], wide), moved))
        place = element(context, builder, signature.args[3], arguments[3], arguments[4])
        builder.store(pixels, builder.bitcast(place, wide.as_pointer())).align = 2
        return context.get_dummy_value()

    return types.void(red, red, red, target, types.intp), generate


@compiled
def _fill(
    source: Any,
    plane: int,
    pitch: int,
    scale: float,
    shift: float,
    y: int,
    width: int,
    inputs: int,
    lines: Any,
    place: int,
) -> None:
    """Row y of the source, of so many positions, to a place of lines and after it: up to ``LANES`` too many."""
    if source.ndim == 2:
        times, more = same16(scale), same16(shift)
        for first in range(0, width, LANES):
            # The last sixteen pixels overlap those before them where their number is no multiple.
            x = max(min(first, width - LANES), 0)
            at = y * pitch + x
            red, green = load16(source, 0, at) * times + more, load16(source, 0, at + plane) * times + more
            blue = load16(source, 0, at + 2 * plane) * times + more
            _put_pixels(halved(red), halved(green), halved(blue), lines, place + COLOURS * x)
    else:
        for number in range(0, width * inputs, LANES):
            copy(lines, place + number, source, y * width * inputs + number)


@allocating
def _level(
    unit: Any,
    source: Any,
    plane: int,
    row: int,
    scale: float,
    shift: float,
    head: Any,
    bias: Any,
    kernel: Any,
    second_bias: Any,
    slope: float,
    out: Any,
    rows: int,
    columns: int,
) -> None:
    """source: fp32 from ``flat``, of which scale and shift make what is convolved, and how many numbers its planes and
    rows are apart; or [H * W * C] bf16; out: [rows * columns * K]."""
    width, strips, leak = bias.shape[1], -(-rows // LINES), same16(slope)
    inputs = COLOURS if source.ndim == 2 else source.size // (4 * rows * columns)
    zero = np.int16(0)
    # Of what is read a border of one position, and room for what the last sixteen read beyond it.
    pitch, line = (columns + ROOM) * width, (2 * columns + 1 + 2 * ROOM) * inputs + PAIRS
    lines, held = np.full((READ + 1) * line, zero), 3
    ring = np.full((held * LINES + 1) * pitch + PAIRS, zero)
    zeros, sums = held * LINES * pitch, np.empty((1, LINES * LANES * width), np.float32)
    begins, made = np.empty(3 * LINES, np.intp), np.empty(LINES + 2, np.intp)
    if unit is not None:
        configure(unit)
    for turn in range(strips + 1):
        if turn < strips:
            for index in range(READ):
                y = 2 * LINES * turn - 1 + index
                if 0 <= y < 2 * rows:
                    _fill(source, plane, row, scale, shift, y, 2 * columns, inputs, lines, index * line + inputs)
            for tap in range(3):
                for index in range(LINES):
                    y = 2 * (LINES * turn + index) - 1 + tap
                    begins[tap * LINES + index] = (2 * index + tap if 0 <= y < 2 * rows else READ) * line
            for x in range(0, columns, LANES):
                place = 2 * x * inputs
                multiply(unit, lines, begins, 0, LINES, place, 3, 2 * inputs, head, 1, 3 * inputs, sums, width)
                for index in range(min(LINES, rows - LINES * turn)):
                    at = (turn % held * LINES + index) * pitch + (x + 1) * width
                    _activate(sums, index * LANES, min(LANES, columns - x), width, bias, leak, ring, at)
        strip = turn - 1
        if strip < 0:
            continue
        for index in range(LINES + 2):
            y = LINES * strip - 1 + index
            made[index] = (y // LINES % held * LINES + y % LINES) * pitch if 0 <= y < rows else zeros
        for x in range(0, columns, LANES):
            multiply(unit, ring, made, 0, 1, x * width, 3, width, kernel, 1, 3 * width, sums, width)
            for index in range(min(LINES, rows - LINES * strip)):
                at = ((LINES * strip + index) * columns + x) * width
                _activate(sums, index * LANES, min(LANES, columns - x), width, second_bias, leak, out, at)
    if unit is not None:
        release()


@compiled
def _activate(sums: Any, first: int, count: int, width: int, bias: Any, leak: Any, out: Any, place: int) -> None:
    """A leaky ReLU of so many rows of sums, from one on, to out."""
    for column in range(0, width, LANES):
        more = load16(bias, 0, column)
        for row in range(count):
            value = load16(sums, 0, (first + row) * width + column) + more
            put_halves(halved(largest(value, leak * value)), out, place + row * width + column)
