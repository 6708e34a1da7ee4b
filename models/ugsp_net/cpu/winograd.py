"""3x3 convolutions by ``sparse.winograd``'s transforms, for processors: a few tiles at a time, which stay in the
cache from what they read to what is made of them.

A product's six rows and sixteen columns are kept in registers, twelve rows where a register holds sixteen numbers: 38
GMAC/s on a core with AVX2, of 41 that dense convolutions reach there, where MKL's products of batches reach 17 to 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net.cpu.vectors import (
    allocating,
    compiled,
    inlined,
    largest,
    load,
    load16,
    load_same,
    load_same16,
    plain,
    same,
    same16,
    store,
)

WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether a register holds sixteen numbers."""
LANES, COLUMNS = 8, 16
"""Numbers in a vector of a transform; columns of a product that are made at once."""
ACROSS, NEXT = (1, 0) if WIDE else (2, 8)
"""Vectors across these columns, of the twelve that are made at once, and where the second begins."""
ROWS = 12 // ACROSS
"""Rows of a product that are made at once."""
part, same_at, all_same = (load16, load_same16, same16) if WIDE else (load, load_same, same)
STEP = 24 if WIDE else 18
"""Tiles that are made at once: what is made of them stays in a cache of 512 KiB. With 12 or 24 to 96 of them two layers
of three took a tenth longer (AVX2)."""


def padded(kernel: Tensor, bias: Tensor | None) -> tuple[Any, Any]:
    """What ``convolve`` takes: kernel [N, C, K] as [N * C, K'] and bias [1, K'], with zeros up to a multiple of 16."""
    missing = -kernel.shape[-1] % COLUMNS
    bias = kernel.new_zeros(kernel.shape[-1]) if bias is None else bias
    return plain(F.pad(kernel, (0, missing)).flatten(0, 1)), plain(F.pad(bias, (0, missing))[None])


def convolve(
    rows: Tensor,
    around: Tensor,
    kernel: tuple[Any, Any],
    slope: float,
    out: Tensor,
    projected: Tensor,
    weight: Tensor,
    bias: Tensor,
    last_slope: float,
) -> None:
    """Convolve N tiles, make a leaky ReLU of it, and add what a projection makes of that.

    rows: [R, C] fp32, C at least 8; around: [N, 36] int32, which of them a tile reads; kernel: [36, C, K] of
    ``Winograd``, K at least 8, and a bias, as ``padded`` returns them; out: [16 * N, K], filled, tile by tile;
    projected: [16 * N, P], added to, P a multiple of 16; weight: [K, P]; bias: [1, P], to which is added what was not
    written yet, or of no rows; last_slope: of the leaky ReLU that becomes of the sum, 1 for none. Without a projection
    P is 0.
    """
    how = out.numpy(), projected.numpy(), plain(weight), plain(bias), np.float32(last_slope)
    _convolve(plain(rows), plain(around), *kernel, np.float32(slope), *how)


def convolve_twice(
    rows: Tensor,
    source: Tensor,
    around: Tensor,
    kernels: Sequence[tuple[Any, Any]],
    slope: float,
    out: Tensor,
    projected: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor,
    last_slope: float,
) -> None:
    """``convolve`` rows, and what that makes once more: a few tiles at a time, of which the second convolution takes
    all that it can before the first goes on. What lies between the two stays in the cache.

    source: which rows a tile reads, as ``around`` of ``convolve``; around: which of what the first makes, tile by tile,
    any number from 16 * N on where there is nothing; out: what the second makes, [16 * N, K], or of no rows where
    nobody wants it; kernels, weights: of both; the rest as for ``convolve``.
    """
    (first, first_bias), (second, second_bias) = kernels
    how = out.numpy(), projected.numpy(), *(plain(weight) for weight in weights), plain(bias), np.float32(last_slope)
    tables = plain(rows), plain(source), plain(around)
    _convolve_twice(*tables, first, first_bias, second, second_bias, np.float32(slope), *how)


@inlined
def _forth(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """A row of six times ``winograd._INPUT``."""
    four, five, two = same(np.float32(4)), same(np.float32(5)), same(np.float32(2))
    outer, inner = e - c, two * (d - b)
    return (
        four * a - five * c + e,
        d + e - four * (b + c),
        e - d + four * (b - c),
        outer + inner,
        outer - inner,
        four * b - five * d + f,
    )


@inlined
def _home(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """A row of six times ``winograd._OUTPUT``."""
    two, four, eight = same(np.float32(2)), same(np.float32(4)), same(np.float32(8))
    near, far = b + c, d + e
    odd, beyond = b - c, d - e
    return a + near + far, odd + two * beyond, near + four * far, odd + eight * beyond + f


@inlined
def _six(values: Any, row: int, step: int, column: int) -> Any:
    """Eight numbers, from a column on, of each of six rows that are ``step`` apart."""
    return (
        load(values, row, column),
        load(values, row + step, column),
        load(values, row + 2 * step, column),
        load(values, row + 3 * step, column),
        load(values, row + 4 * step, column),
        load(values, row + 5 * step, column),
    )


@compiled
def transform(rows: Any, read: Any, half: Any, out: Any, place: int) -> None:
    """What a tile reads, brought where a convolution is a product. rows: [R, C]; read: [36], which of them; half:
    [36, 8], overwritten; out: [36 * STEP, C], of which every ``STEP``-th row from ``place`` on is filled."""
    channels = out.shape[1]
    for start in range(0, channels, LANES):
        # The last eight channels overlap those before them where their number is no multiple.
        first = min(start, channels - LANES)
        for x in range(6):
            made = _forth(
                load(rows, read[x], first),
                load(rows, read[6 + x], first),
                load(rows, read[12 + x], first),
                load(rows, read[18 + x], first),
                load(rows, read[24 + x], first),
                load(rows, read[30 + x], first),
            )
            store(made[0], half, x, 0)
            store(made[1], half, 6 + x, 0)
            store(made[2], half, 12 + x, 0)
            store(made[3], half, 18 + x, 0)
            store(made[4], half, 24 + x, 0)
            store(made[5], half, 30 + x, 0)
        for y in range(6):
            line, row = 6 * y, 6 * y * STEP + place
            made = _forth(*_six(half, line, 1, 0))
            store(made[0], out, row, first)
            store(made[1], out, row + STEP, first)
            store(made[2], out, row + 2 * STEP, first)
            store(made[3], out, row + 3 * STEP, first)
            store(made[4], out, row + 4 * STEP, first)
            store(made[5], out, row + 5 * STEP, first)


@compiled
def multiply(values: Any, kernel: Any, products: Any, count: int) -> None:
    """Products of each of 36 numbers. values: [36 * STEP, C]; kernel: [36 * C, K], K a multiple of 16; products:
    [36 * STEP, K], of which the first rows of each number are filled, ``count`` and up to ``ROWS - 1`` more."""
    inputs, outputs = values.shape[1], products.shape[1]
    for number in range(36):
        for column in range(0, outputs, COLUMNS):
            for row in range(number * STEP, number * STEP + count, ROWS):
                made = accumulate(nothing(), values, 0, row * inputs, inputs, inputs, kernel, number * inputs, column)
                put(made, products, row, column)


@inlined
def nothing() -> Any:
    """Twelve vectors of zeros for ``accumulate`` to begin with."""
    zero = all_same(np.float32(0))
    return zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero


@inlined
def begin(source: Any, row: int, step: int, column: int) -> Any:
    """Twelve vectors that ``accumulate`` begins with: sixteen columns of ``ROWS`` rows of a source [R, K] fp32, from
    (row, column) on, that are ``step`` rows apart, 0 for the same one each time."""
    return (
        part(source, row + 0 // ACROSS * step, column + 0 * NEXT),
        part(source, row + 1 // ACROSS * step, column + 1 * NEXT),
        part(source, row + 2 // ACROSS * step, column + 0 * NEXT),
        part(source, row + 3 // ACROSS * step, column + 1 * NEXT),
        part(source, row + 4 // ACROSS * step, column + 0 * NEXT),
        part(source, row + 5 // ACROSS * step, column + 1 * NEXT),
        part(source, row + 6 // ACROSS * step, column + 0 * NEXT),
        part(source, row + 7 // ACROSS * step, column + 1 * NEXT),
        part(source, row + 8 // ACROSS * step, column + 0 * NEXT),
        part(source, row + 9 // ACROSS * step, column + 1 * NEXT),
        part(source, row + 10 // ACROSS * step, column + 0 * NEXT),
        part(source, row + 11 // ACROSS * step, column + 1 * NEXT),
    )


@inlined
def accumulate(
    sums: Any, values: Any, line: int, place: int, step: int, length: int, kernel: Any, first: int, column: int
) -> Any:
    """``ROWS`` times sixteen columns, added to sums. Rows of ``length`` numbers begin every ``step`` numbers of a line
    of ``values``, the first at ``place``; what they meet are rows of the kernel, from ``first`` on."""
    a, b, c, d, e, f, g, h, i, j, k, l = sums  # noqa: E741
    for index in range(length):
        low, high = part(kernel, first + index, column), part(kernel, first + index, column + NEXT)
        at = place + index
        a += same_at(values, line, at + 0 // ACROSS * step) * low
        b += same_at(values, line, at + 1 // ACROSS * step) * high
        c += same_at(values, line, at + 2 // ACROSS * step) * low
        d += same_at(values, line, at + 3 // ACROSS * step) * high
        e += same_at(values, line, at + 4 // ACROSS * step) * low
        f += same_at(values, line, at + 5 // ACROSS * step) * high
        g += same_at(values, line, at + 6 // ACROSS * step) * low
        h += same_at(values, line, at + 7 // ACROSS * step) * high
        i += same_at(values, line, at + 8 // ACROSS * step) * low
        j += same_at(values, line, at + 9 // ACROSS * step) * high
        k += same_at(values, line, at + 10 // ACROSS * step) * low
        l += same_at(values, line, at + 11 // ACROSS * step) * high  # noqa: E741
    return a, b, c, d, e, f, g, h, i, j, k, l


@inlined
def put(sums: Any, out: Any, row: int, column: int) -> None:
    """Write what ``accumulate`` made, from (row, column) on."""
    store(sums[0], out, row + 0 // ACROSS, column + 0 * NEXT)
    store(sums[1], out, row + 1 // ACROSS, column + 1 * NEXT)
    store(sums[2], out, row + 2 // ACROSS, column + 0 * NEXT)
    store(sums[3], out, row + 3 // ACROSS, column + 1 * NEXT)
    store(sums[4], out, row + 4 // ACROSS, column + 0 * NEXT)
    store(sums[5], out, row + 5 // ACROSS, column + 1 * NEXT)
    store(sums[6], out, row + 6 // ACROSS, column + 0 * NEXT)
    store(sums[7], out, row + 7 // ACROSS, column + 1 * NEXT)
    store(sums[8], out, row + 8 // ACROSS, column + 0 * NEXT)
    store(sums[9], out, row + 9 // ACROSS, column + 1 * NEXT)
    store(sums[10], out, row + 10 // ACROSS, column + 0 * NEXT)
    store(sums[11], out, row + 11 // ACROSS, column + 1 * NEXT)


@compiled
def back(products: Any, place: int, bias: Any, slope: float, half: Any, out: Any, first_row: int, down: int) -> None:
    """From products to what the convolution makes of a tile, as ``transform`` has them. out: [R, K]; the tile's rows of
    four positions are ``down`` rows of it apart."""
    channels, leak = out.shape[1], same(slope)
    for start in range(0, channels, LANES):
        first = min(start, channels - LANES)
        always = load(bias, 0, first)
        for x in range(6):
            made = _home(*_six(products, x * STEP + place, 6 * STEP, first))
            store(made[0], half, x, 0)
            store(made[1], half, 6 + x, 0)
            store(made[2], half, 12 + x, 0)
            store(made[3], half, 18 + x, 0)
        for y in range(4):
            line, row = 6 * y, first_row + y * down
            made = _home(*_six(half, line, 1, 0))
            store(_leaky(made[0] + always, leak), out, row, first)
            store(_leaky(made[1] + always, leak), out, row + 1, first)
            store(_leaky(made[2] + always, leak), out, row + 2, first)
            store(_leaky(made[3] + always, leak), out, row + 3, first)


@inlined
def _leaky(value: Any, leak: Any) -> Any:
    return largest(value, leak * value)


@inlined
def leaky(sums: Any, leak: Any) -> Any:
    """A leaky ReLU of what ``accumulate`` made."""
    a, b, c, d, e, f, g, h, i, j, k, l = sums  # noqa: E741
    return (
        _leaky(a, leak),
        _leaky(b, leak),
        _leaky(c, leak),
        _leaky(d, leak),
        _leaky(e, leak),
        _leaky(f, leak),
        _leaky(g, leak),
        _leaky(h, leak),
        _leaky(i, leak),
        _leaky(j, leak),
        _leaky(k, leak),
        _leaky(l, leak),
    )


@allocating
def _convolve(
    rows: Any,
    around: Any,
    kernel: Any,
    bias: Any,
    slope: float,
    out: Any,
    projected: Any,
    weight: Any,
    begun: Any,
    last_slope: float,
) -> None:
    tiles, half = around.shape[0], np.empty((36, LANES), np.float32)
    values, products = _room(rows.shape[1]), _room(kernel.shape[1])
    for first in range(0, tiles, STEP):
        count = min(STEP, tiles - first)
        for tile in range(count):
            transform(rows, around[first + tile], half, values, tile)
        place = 16 * first
        how = kernel, bias, slope, count, products, half, out, place, projected, place, weight, begun, last_slope
        _finish(values, *how)


@allocating
def _room(channels: int) -> Any:
    """For what is made of so many channels of some tiles."""
    return np.zeros((36 * STEP, channels), np.float32)


@compiled
def _finish(
    values: Any,
    kernel: Any,
    bias: Any,
    slope: float,
    count: int,
    products: Any,
    half: Any,
    out: Any,
    place: int,
    projected: Any,
    start: int,
    weight: Any,
    begun: Any,
    last_slope: float,
) -> None:
    """From what was transformed of some tiles to what is made of them, in out from a row on, and to what is added to
    what was projected, from another one on."""
    multiply(values, kernel, products, count)
    for tile in range(count):
        back(products, tile, bias, slope, half, out, place + 16 * tile, 4)
    if projected.shape[1]:
        _project(out, place, 16 * count, weight, projected, start, begun, last_slope)


@allocating
def _convolve_twice(
    rows: Any,
    source: Any,
    around: Any,
    kernel: Any,
    bias: Any,
    second_kernel: Any,
    second_bias: Any,
    slope: float,
    out: Any,
    projected: Any,
    weight: Any,
    second_weight: Any,
    begun: Any,
    last_slope: float,
) -> None:
    no_slope, no_bias = np.float32(1), begun[:0]
    tiles, width = around.shape[0], second_kernel.shape[0] // 36
    oldest, newest = _reach(around)
    longest = 0
    for step in range(len(newest)):
        longest = max(longest, newest[step] - oldest[step] + 1)
    # Between the two: a ring, in which what is no longer read is written over, and a row of zeros.
    room = 16 * STEP * longest
    ring, read = np.zeros((room + 1, width), np.float32), np.empty(36, np.int32)
    last = np.empty((0 if len(out) else 16 * STEP, out.shape[1]), np.float32)
    half, products = np.empty((36, LANES), np.float32), _room(kernel.shape[1])
    values, second_values = _room(rows.shape[1]), _room(width)
    done = 0
    for step in range(len(newest)):
        first = STEP * step
        count = min(STEP, tiles - first)
        for tile in range(count):
            transform(rows, source[first + tile], half, values, tile)
        place = 16 * STEP * (step % longest)
        how = kernel, bias, slope, count, products, half, ring, place
        _finish(values, *how, projected, 16 * first, weight, begun, no_slope)
        while done < len(newest) and newest[done] <= step:
            first = STEP * done
            count = min(STEP, tiles - first)
            begin = 16 * (first - STEP * (done % longest))
            for tile in range(count):
                for place in range(36):
                    number = around[first + tile, place]
                    at = number - begin
                    at += room if at < 0 else (-room if at >= room else 0)
                    read[place] = at if number < 16 * tiles else room
                transform(ring, read, half, second_values, tile)
            made, place = (out, 16 * first) if len(out) else (last, 0)
            how = second_kernel, second_bias, slope, count, products, half, made, place
            _finish(second_values, *how, projected, 16 * first, second_weight, no_bias, last_slope)
            done += 1


@allocating
def _reach(around: Any) -> Any:
    """Of every so many tiles: the first and the last of such whose output they, or those after them (before them), read
    around themselves. around: [N, 36], of numbers from 16 * N on where there is nothing."""
    tiles = around.shape[0]
    steps = -(-tiles // STEP)
    oldest, newest = np.empty(steps, np.intp), np.empty(steps, np.intp)
    for step in range(steps):
        low = high = 16 * STEP * step
        for tile in range(STEP * step, min(STEP * (step + 1), tiles)):
            for place in range(36):
                number = around[tile, place]
                low, high = min(low, number), max(high, number if number < 16 * tiles else 0)
        oldest[step], newest[step] = low // (16 * STEP), high // (16 * STEP)
        if step:
            newest[step] = max(newest[step], newest[step - 1])
    for step in range(steps - 1, 0, -1):
        oldest[step - 1] = min(oldest[step - 1], oldest[step])
    return oldest, newest


@compiled
def _project(
    values: Any, place: int, count: int, weight: Any, projected: Any, start: int, begun: Any, last_slope: float
) -> None:
    """Add products with a weight [K, P] of so many rows of values [N, K] to rows of [N, P], P a multiple of 16, from a
    place on in the one, and a start in the other; or to begun [1, P], if it has a row. Of the sums a leaky ReLU."""
    inputs, leak = values.shape[1], all_same(last_slope)
    whole = count // ROWS * ROWS
    # A step of no rows: each row begins with the same.
    source, first, step = (begun, 0, 0) if len(begun) else (projected, start, 1)
    for index in range(0, whole, ROWS):
        row = first + step * index
        for column in range(0, projected.shape[1], COLUMNS):
            sums = begin(source, row, step, column)
            made = accumulate(sums, values, 0, (place + index) * inputs, inputs, inputs, weight, 0, column)
            put(leaky(made, leak), projected, start + index, column)
    for index in range(whole, count):
        for column in range(0, projected.shape[1], LANES):
            summed = load(source, first + step * index, column)
            for channel in range(inputs):
                summed += load_same(values, place + index, channel) * load(weight, channel, column)
            store(_leaky(summed, same(last_slope)), projected, start + index, column)
