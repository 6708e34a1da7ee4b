"""Levels in bf16 for processors that multiply it: by their matrix unit (AMX) where they have one, else by their vectors
(AVX512-BF16).

A level is made from top to bottom, four lines of positions at a time, by all of its layers: each is a *strip* behind
the one whose output it reads, so that what lies between them need not leave the cache. Strips are made in cells of four
lines by sixteen positions, where any of these is active. What a kernel's row reads of a line lies there as it is to be
multiplied, one position after the other, so nothing is gathered.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model
from torch import Tensor
from torch.nn import functional as F

from ugsp_net.cpu.vectors import allocating, as_array, compiled, inlined, largest, load16, same16
from ugsp_net.precision import has_matrix_unit

LANES = 16
"""Numbers in a vector; positions beside each other, and outputs, that are made at once."""
PAIRS = 32
"""Numbers of a row that are multiplied at once; channels of a position are filled up to a multiple with zeros."""
BLOCK = LANES * PAIRS
"""Numbers in a block of a kernel."""
LINES = 4
"""Lines of a strip."""
ROOM = 2 * LANES + 3
"""Positions of a line beside those of the level: one before, the others after them. No power of two: lines that lie so
far apart would meet in the same few places of the cache."""


@cache
def unit() -> Any:
    """How the matrix unit's registers are laid out, as it is told, [64] bytes; None where there is none."""
    if not has_matrix_unit():
        return None
    layout = np.zeros(64, np.uint8)
    layout[0] = 1
    layout[16:32:2] = 4 * LANES  # bytes of a row of each of eight registers
    layout[48:56] = LANES  # their rows
    return layout


_BYTE, _SHORTS = ir.IntType(8), ir.VectorType(ir.IntType(16), LANES)
_FLOATS, _PAIRS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)


def element(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    """Where an element is of an array whose elements lie one behind the other."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [place])


def _call(builder: Any, name: str, arguments: list[Any]) -> None:
    of = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, of, f"llvm.x86.{name}"), arguments)


def _told(name: str, *registers: int) -> Any:
    """An instruction of the matrix unit, of registers by number."""

    @intrinsic
    def tell(_context: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
            _call(builder, name, [ir.Constant(_BYTE, register) for register in registers])
            return context.get_dummy_value()

        return types.void(), generate

    return tell


def _moved(name: str, register: int) -> Any:
    """Reading or writing a register: rows that begin so many bytes apart in an array, the first at an element."""

    @intrinsic
    def move(_context: Any, values: Any, _first: Any, _step: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = element(context, builder, signature.args[0], arguments[0], arguments[1])
            number = ir.Constant(_BYTE, register)
            _call(builder, name, [number, builder.bitcast(place, _BYTE.as_pointer()), arguments[2]])
            return context.get_dummy_value()

        return types.void(values, types.intp, types.intp), generate

    return move


@intrinsic
def configure(_context: Any, layout: Any) -> Any:
    """Tell the matrix unit, before it is used by a thread, what ``unit`` returns."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        begin = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        _call(builder, "ldtilecfg", [builder.bitcast(begin, _BYTE.as_pointer())])
        return context.get_dummy_value()

    return types.void(layout), generate


release = _told("tilerelease")
# Registers: four for sums, two for rows of the left factor, one for a block of the right one.
_zero0, _zero1, _zero2, _zero3 = (_told("tilezero", register) for register in range(4))
_put0, _put1, _put2, _put3 = (_moved("tilestored64", register) for register in range(4))
_left0, _left1, _right = (_moved("tileloadd64", register) for register in (4, 5, 6))
_add0, _add1, _add2, _add3 = (_told("tdpbf16ps", register, 4 + register % 2, 6) for register in range(4))


class _Halves(types.Type):
    """Sixteen bf16 numbers."""


_HALVES = _Halves(name="bfloat16x16")


@register_model(_Halves)
class _HalvesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Halves) -> None:
        super().__init__(manager, kind, _SHORTS)


# LLVM's names for what follows have changed with its types for bf16; the instructions have not.
binding.initialize_native_asmparser()


@intrinsic
def halved(_context: Any, vector: Any) -> Any:
    """Sixteen fp32 numbers rounded to bf16."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.asm(ir.FunctionType(_SHORTS, [_FLOATS]), "vcvtneps2bf16 $1, $0", "=v,v", arguments, False)

    return _HALVES(vector), generate


@intrinsic
def put_halves(_context: Any, halves: Any, target: Any, _place: Any) -> Any:
    """Write them to where an element of an int16 array is, and after it. Nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = element(context, builder, signature.args[1], arguments[1], arguments[2])
        builder.store(arguments[0], builder.bitcast(place, _SHORTS.as_pointer())).align = 2
        return context.get_dummy_value()

    return types.void(halves, target, types.intp), generate


@intrinsic
def copy(_context: Any, target: Any, _place: Any, source: Any, _from: Any) -> Any:
    """Sixteen numbers of an int16 array, from an element on, to another one. Nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        into, out_of = (
            builder.bitcast(element(context, builder, signature.args[index], *arguments[index : index + 2]), kind)
            for index, kind in ((0, _SHORTS.as_pointer()), (2, _SHORTS.as_pointer()))
        )
        found = builder.load(out_of)
        found.align = 2
        builder.store(found, into).align = 2
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), generate


@intrinsic
def _add_product(_context: Any, sums: Any, values: Any, _place: Any, kernel: Any, _from: Any) -> Any:
    """To sixteen sums two products each: of a pair of bf16 numbers with sixteen pairs. Their places in int16 arrays."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = element(context, builder, signature.args[1], arguments[1], arguments[2])
        several = element(context, builder, signature.args[3], arguments[3], arguments[4])
        pair = builder.load(builder.bitcast(one, ir.IntType(32).as_pointer()))
        pairs = builder.load(builder.bitcast(several, _PAIRS.as_pointer()))
        pair.align, pairs.align = 2, 2
        number = ir.IntType(32)
        first = builder.insert_element(ir.Constant(_PAIRS, ir.Undefined), pair, ir.Constant(number, 0))
        same = builder.shuffle_vector(first, first, ir.Constant(_PAIRS, [0] * LANES))
        of = ir.FunctionType(_FLOATS, [_FLOATS, _PAIRS, _PAIRS])
        return builder.asm(of, "vdpbf16ps $3, $2, $0", "=v,0,v,v", [arguments[0], same, pairs], False)

    return sums(sums, values, types.intp, kernel, types.intp), generate


@intrinsic
def _put_sums(_context: Any, sums: Any, target: Any, _place: Any) -> Any:
    """Write sixteen fp32 numbers to where an element of an array is, and after it. Nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = element(context, builder, signature.args[1], arguments[1], arguments[2])
        builder.store(arguments[0], builder.bitcast(place, _FLOATS.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(sums, target, types.intp), generate


@compiled
def multiply(
    unit: Any,
    values: Any,
    begins: Any,
    first: int,
    apart: int,
    shift: int,
    count: int,
    step: int,
    kernel: Any,
    taps: int,
    channels: int,
    sums: Any,
    width: int,
) -> None:
    """Four lines of sixteen positions times a kernel.

    values: int16, of which a position begins ``step`` numbers after the one before it; begins: where lines of it begin,
    of which the kernel's first line meets four, from the ``first`` one on, its second line four that are ``apart``
    after these, and so on, ``count`` lines in all; shift: from there to the first position; kernel: from ``in_blocks``,
    of so many columns of channels, and ``width`` outputs; sums: [4 * 16 * width] fp32, filled.
    """
    right, block, chunks = 0, LANES * width, taps * (-(-channels // PAIRS))
    if unit is None:
        half = LANES // 2
        for line in range(LINES):
            for column in range(0, width, 2 * LANES):
                right, place, tap = column * count * chunks * PAIRS, line * block + column, first + line
                how = apart, count, step, kernel, right, taps, channels, sums
                if column + LANES < width:  # eight positions at a time, which share what is read of the kernel
                    more = count * chunks * BLOCK
                    _multiply_line(values, begins, tap, shift, *how, place, width, 0, more, LANES)
                    place += half * width
                    _multiply_line(values, begins, tap, shift + half * step, *how, place, width, 0, more, LANES)
                else:
                    _multiply_line(values, begins, tap, shift, *how, place, width, half, 0, half * width)
        return
    rows = 2 * step
    for column in range(0, width, LANES):
        _zero0()
        _zero1()
        _zero2()
        _zero3()
        for number in range(count):
            line = first + number * apart
            one, two, three, four = begins[line], begins[line + 1], begins[line + 2], begins[line + 3]
            one, two, three, four = one + shift, two + shift, three + shift, four + shift
            for _ in range(chunks):
                # In this order what is read is there when it is needed: half the time of all that is read first.
                _right(kernel, right, 4 * LANES)
                _left0(values, one, rows)
                _add0()
                _left1(values, two, rows)
                _add1()
                _left0(values, three, rows)
                _add2()
                _left1(values, four, rows)
                _add3()
                one, two, three, four = one + PAIRS, two + PAIRS, three + PAIRS, four + PAIRS
                right += BLOCK
        _put0(sums, column, 4 * width)
        _put1(sums, column + block, 4 * width)
        _put2(sums, column + 2 * block, 4 * width)
        _put3(sums, column + 3 * block, 4 * width)


@inlined
def _multiply_line(
    values: Any,
    begins: Any,
    first: int,
    shift: int,
    apart: int,
    count: int,
    step: int,
    kernel: Any,
    right: int,
    taps: int,
    channels: int,
    sums: Any,
    place: int,
    width: int,
    further: int,
    beside: int,
    after: int,
) -> None:
    """Sixteen times sixteen sums of a line by vectors: eight positions, and either as many ``further`` on, or these
    once more with what of the kernel is ``beside``; the second eight go to ``after`` the first ones."""
    zero = same16(np.float32(0))
    a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
    i, j, k, l, m, n, o, p = zero, zero, zero, zero, zero, zero, zero, zero  # noqa: E741
    size = -(-channels // PAIRS) * PAIRS
    for number in range(count):
        for tap in range(taps):
            at, begin = begins[first + number * apart] + shift + tap * size, right
            for _ in range(0, channels, 2):
                a = _add_product(a, values, at, kernel, begin)
                b = _add_product(b, values, at + step, kernel, begin)
                c = _add_product(c, values, at + 2 * step, kernel, begin)
                d = _add_product(d, values, at + 3 * step, kernel, begin)
                e = _add_product(e, values, at + 4 * step, kernel, begin)
                f = _add_product(f, values, at + 5 * step, kernel, begin)
                g = _add_product(g, values, at + 6 * step, kernel, begin)
                h = _add_product(h, values, at + 7 * step, kernel, begin)
                other, more = at + further * step, begin + beside
                i = _add_product(i, values, other, kernel, more)
                j = _add_product(j, values, other + step, kernel, more)
                k = _add_product(k, values, other + 2 * step, kernel, more)
                l = _add_product(l, values, other + 3 * step, kernel, more)  # noqa: E741
                m = _add_product(m, values, other + 4 * step, kernel, more)
                n = _add_product(n, values, other + 5 * step, kernel, more)
                o = _add_product(o, values, other + 6 * step, kernel, more)
                p = _add_product(p, values, other + 7 * step, kernel, more)
                at += 2
                begin += PAIRS
            right += size * LANES
    for one, another in ((a, i), (b, j), (c, k), (d, l), (e, m), (f, n), (g, o), (h, p)):
        _put_sums(one, sums, place)
        _put_sums(another, sums, place + after)
        place += width


@inlined
def _leaky(value: Any, slope: Any) -> Any:
    zero = same16(np.float32(0))
    return largest(value, zero) - slope * largest(zero - value, zero)


@allocating
def room(numbers: int) -> Any:
    """Room for so many numbers of two bytes, which begins with a line of the cache."""
    made = np.empty(numbers + 2 * PAIRS, np.int16)
    return made[-made.ctypes.data % (2 * PAIRS) // 2 :]


@compiled
def _find(blocks: Any, side: int, height: int, wanted: Any, anything: Any, active: Any) -> None:
    """Which of the columns of blocks hold an active position in each strip, and which strips do; and which positions
    are active."""
    for strip in range(wanted.shape[0]):
        anything[strip] = 0
        top, bottom = LINES * strip // side, (min(LINES * (strip + 1), height) - 1) // side
        for column in range(wanted.shape[1]):
            wanted[strip, column] = 0
            for row in range(top, bottom + 1):
                if blocks[row, column] > 0:
                    wanted[strip, column] = anything[strip] = 1
    for y in range(height):
        for column in range(blocks.shape[1]):
            there = np.uint8(blocks[y // side, column] > 0)
            for x in range(column * side, (column + 1) * side):
                active[y, x] = there


@inlined
def _clear(values: Any, place: int, count: int) -> None:
    """Zeros, so many times ``PAIRS``."""
    nothing = halved(same16(np.float32(0)))
    for number in range(place, place + count * PAIRS, LANES):
        put_halves(nothing, values, number)


@compiled
def _clear_border(values: Any, lines: int, width: int, height: int, step: int) -> None:
    """Zeros at the border of ``room_for``."""
    pitch, chunks = (width + ROOM) * step, step // PAIRS
    for line in range(lines):
        if line == 0 or line == height + 1:
            _clear(values, line * pitch, (width + ROOM) * chunks)
        else:
            _clear(values, line * pitch, chunks)
            _clear(values, line * pitch + (width + 1) * step, chunks)


@compiled
def _clear_beside(wanted: Any, strip: int, side: int, step: int, pitch: int, values: Any, place: int) -> None:
    """Zeros at what is not active and read by what is, in a strip. place: of its first line."""
    strips, columns = wanted.shape
    chunks = step // PAIRS
    # Outside the picture there is one position more on each side.
    for column in range(-1, columns + 1):
        if 0 <= column < columns and wanted[strip, column]:
            continue
        start, length = (0, 1) if column < 0 else (column * side + 1, side if column < columns else 1)
        if column > 0 and wanted[strip, column - 1]:
            for line in range(LINES):
                _clear(values, place + line * pitch + start * step, chunks)
        if column < columns - 1 and wanted[strip, column + 1]:
            for line in range(LINES):
                _clear(values, place + line * pitch + (start + length - 1) * step, chunks)
        for other, line in ((strip - 1, 0), (strip + 1, LINES - 1)):
            near = 0
            for beside in range(max(column - 1, 0), min(column + 2, columns)):
                near |= wanted[other, beside] if 0 <= other < strips else 0
            if near:
                _clear(values, place + line * pitch + start * step, length * chunks)


@compiled
def _begin(anything: Any, strip: int, height: int, ring: int, held: int, pitch: int, zeros: int, begins: Any) -> None:
    """Where lines of a layer begin in its ring of so many strips: those of a strip, one before and one after them."""
    for index in range(LINES + 2):
        y = LINES * strip - 1 + index
        begins[index] = zeros
        if 0 <= y < height and anything[y // LINES]:
            begins[index] = ring + (y // LINES % held * LINES + y % LINES) * pitch


@compiled
def _next(wanted: Any, strip: int, side: int, x: int) -> int:
    """The first position from x on in whose column of blocks something is wanted; beyond the last one if there is
    none."""
    column = x // side
    while column < wanted.shape[1] and wanted[strip, column] == 0:
        column += 1
    return max(x, column * side)


@allocating
def run(
    unit: Any,
    inputs: Any,
    channels: int,
    head: Any,
    kernels: Any,
    slopes: Any,
    weights: Any,
    bias: Any,
    last: Any,
    blocks: Any,
    side: int,
    out: Any,
) -> None:
    """What ``sparse.strips.run`` does, of one picture.

    inputs: [(4 * strips + 2) * (W + ROOM) * step] int16, with a border of one position, whose channels are filled up;
    head, kernels [L - 1, N], weights: from ``in_blocks``; slopes: [L, width], of leaky ReLUs; bias, last: [1, P], what
    is added to the projection and the slope of what becomes of it; blocks: the mask; side: of its blocks, positions;
    out: [H * W * step] int16, filled where the mask is 1.
    """
    height, columns = blocks.shape[0] * side, blocks.shape[1] * side
    layers, width, outputs = slopes.shape[0], slopes.shape[1], bias.shape[1]
    strips, held = -(-height // LINES), max(3, layers)
    inputs_step = -(-channels // PAIRS) * PAIRS
    step, out_step = -(-width // PAIRS) * PAIRS, -(-outputs // PAIRS) * PAIRS
    pitch, inputs_pitch = (columns + ROOM) * step, (columns + ROOM) * inputs_step
    ring = held * LINES * pitch
    zeros = layers * ring
    values, sums = room(zeros + pitch), np.empty((1, LINES * LANES * max(width, outputs)), np.float32)
    wanted, anything = np.empty((strips, blocks.shape[1]), np.uint8), np.empty(strips, np.uint8)
    active = np.empty((height, columns), np.uint8)
    _find(blocks, side, height, wanted, anything, active)
    _clear(values, zeros, pitch // PAIRS)
    begins, made = np.empty(max(LINES + 2, LINES * layers), np.intp), np.empty(LINES + 2, np.intp)
    if unit is not None:
        configure(unit)
    for turn in range(strips + layers - 1):
        for layer in range(layers):
            strip = turn - layer
            if not 0 <= strip < strips or anything[strip] == 0:
                continue
            if layer == 0:
                for index in range(LINES + 2):
                    begins[index] = (LINES * strip + index) * inputs_pitch
            else:
                _begin(anything, strip, height, (layer - 1) * ring, held, pitch, zeros, begins)
            _begin(anything, strip, height, layer * ring, held, pitch, zeros, made)
            _clear_beside(wanted, strip, side, step, pitch, values, made[1])
            x = _next(wanted, strip, side, 0)
            while x < columns:
                if layer == 0:
                    shift = x * inputs_step
                    multiply(unit, inputs, begins, 0, 1, shift, 3, inputs_step, head, 3, channels, sums, width)
                else:
                    kernel = kernels[layer - 1]
                    multiply(unit, values, begins, 0, 1, x * step, 3, step, kernel, 3, width, sums, width)
                for line in range(min(LINES, height - LINES * strip)):
                    y = LINES * strip + line
                    for index in range(min(LANES, columns - x)):
                        at, place = (line * LANES + index) * width, made[line + 1] + (x + index + 1) * step
                        # What is no number may have been made of what is not active: that is not to be multiplied.
                        there = width if active[y, x + index] else 0
                        for column in range(0, there, LANES):
                            value = _leaky(load16(sums, 0, at + column), load16(slopes, layer, column))
                            put_halves(halved(value), values, place + column)
                        for column in range(there, step, LANES):
                            put_halves(halved(same16(np.float32(0))), values, place + column)
                x = _next(wanted, strip, side, x + LANES)
        strip = turn - layers + 1
        if strip < 0 or anything[strip] == 0:
            continue
        for layer in range(layers):
            _begin(anything, strip, height, layer * ring, held, pitch, zeros, made)
            for line in range(LINES):
                begins[layer * LINES + line] = made[line + 1]
        x = _next(wanted, strip, side, 0)
        while x < columns:
            shift = (x + 1) * step
            multiply(unit, values, begins, 0, LINES, shift, layers, step, weights, 1, width, sums, outputs)
            for line in range(min(LINES, height - LINES * strip)):
                y = LINES * strip + line
                for index in range(min(LANES, columns - x)):
                    if active[y, x + index]:
                        at, place = (line * LANES + index) * outputs, (y * columns + x + index) * out_step
                        for column in range(0, outputs, LANES):
                            value = load16(sums, 0, at + column) + load16(bias, 0, column)
                            put_halves(halved(_leaky(value, load16(last, 0, column))), out, place + column)
                        for column in range(outputs, out_step, LANES):
                            put_halves(halved(same16(np.float32(0))), out, place + column)
            x = _next(wanted, strip, side, x + LANES)
    if unit is not None:
        release()


def room_for(height: int, width: int, channels: int) -> Tensor:
    """Lines of positions as ``run`` takes its inputs, the border filled with zeros, [lines, W + ROOM, C] bf16."""
    lines = -(-height // LINES) * LINES + 2
    made = torch.empty(lines, width + ROOM, -(-channels // PAIRS) * PAIRS, dtype=torch.bfloat16)
    _clear_border(as_array(made.flatten()), lines, width, height, made.shape[2])
    return made


def in_blocks(kernel: Tensor) -> Tensor:
    """A kernel [lines, outputs, columns, channels] as ``multiply`` takes it: [outputs / 16, lines, columns * channels /
    32, 16, 16, 2] bf16, flat, with zeros up to 16 outputs and 32 channels."""
    lines, outputs, _, channels = kernel.shape
    whole = F.pad(kernel, (0, -channels % PAIRS, 0, 0, 0, -outputs % LANES)).to(torch.bfloat16).flatten(2)
    blocks = whole.view(lines, -1, LANES, whole.shape[2] // PAIRS, LANES, 2).permute(1, 0, 3, 4, 2, 5)
    return blocks.contiguous().flatten()


def convolution(weight: Tensor) -> Tensor:
    """``in_blocks`` of [K, C, 3, 3]."""
    return in_blocks(weight.permute(2, 0, 3, 1))


def projection(layers: int, weight: Tensor) -> Tensor:
    """``in_blocks`` of [P, layers * K, 1, 1], a line for each layer's part."""
    return in_blocks(weight.flatten(1).unflatten(1, (layers, -1)).transpose(0, 1)[:, :, None])


def enlargement(weight: Tensor) -> Tensor:
    """``in_blocks`` of a 4x4 transposed convolution [C, O, 4, 4]: of a position come [row, output, column]."""
    return in_blocks(weight.permute(2, 1, 3, 0).flatten(0, 2)[None, :, None])
