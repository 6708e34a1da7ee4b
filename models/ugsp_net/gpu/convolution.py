"""Convolutions with a bias and a leaky ReLU, for CUDA devices: what makes few channels of few ones is a kernel, since
cuDNN's are made for many; after cuDNN's one pass adds the bias and activates."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ugsp_net import gpu
from ugsp_net.blocks import Conv
from ugsp_net.sparse.triton_kernels import INTERPRETED
from ugsp_net.sparse.triton_level import pack_taps, padded, precision

MOST_READ, MOST_MADE = 72, 64
"""Channels, filled up to a multiple of eight, that a kernel reads, and those that it makes."""
AHEAD = 64
"""Numbers of three positions up to which rows are read ahead, which takes as much shared memory again for each."""
DOWN, FEW_DOWN, ACROSS = 16, 4, 64
"""Rows of positions of a program, of which it makes one after the other, and columns; few rows where there are few
positions. A row of the source is read once for all three rows of the target to which it adds."""
BLOCK = 2048
"""Values that a program adds a bias to."""


def convolve_and_activate(conv: Conv, x: Tensor, slope: float) -> Tensor:
    """A leaky ReLU of a convolution with a bias. x: [B, inputs, H, W], as is what is returned, channels last."""
    weight, bias = conv.weight.to(x.dtype), conv.bias
    assert bias is not None
    few = weight.shape[0] <= MOST_MADE and padded(weight.shape[1]) <= MOST_READ
    if (
        few
        and conv.kernel_size == (3, 3)
        and x.element_size() == 2
        and _pays(gpu.index_of(x.device), *weight.shape[:2])
    ):
        return convolve(conv, x, slope)
    return add_and_activate(F.conv2d(x, weight, None, conv.stride, conv.padding), bias.to(x.dtype), slope)


def convolve(conv: Conv, x: Tensor, slope: float) -> Tensor:
    """The same by a kernel: of 3x3 taps. Channels last and at a pitch of ``padded(inputs)``, x is read in place; what
    stands behind its channels must be finite then."""
    source = _pitched(x.permute(0, 2, 3, 1))
    batch, height, width, inputs = source.shape
    stride = conv.stride[0]
    rows, columns = -(-height // stride), -(-width // stride)
    matrix = conv.kept(pack_taps).to(x.dtype)
    assert conv.bias is not None
    target = gpu.empty((batch, rows, columns, conv.out_channels), source)
    with gpu.on(x.device):
        across = triton.cdiv(columns, ACROSS)
        down = DOWN if gpu.fill(across * triton.cdiv(rows, DOWN) * batch, x.device) else FEW_DOWN
        depth = gpu.power_of_two(3 * inputs)
        _convolve[(across, triton.cdiv(rows, down), batch)](
            source,
            matrix,
            conv.bias,
            target,
            height,
            width,
            rows,
            columns,
            slope,
            STRIDE=stride,
            INPUTS=inputs,
            OUTPUTS=conv.out_channels,
            COLUMNS=matrix.shape[1],
            DEPTH=depth,
            LANES=gpu.power_of_two(matrix.shape[1]),
            DOWN=down,
            ACROSS=ACROSS,
            PRECISION=precision(x.dtype),
            UPCAST=INTERPRETED,
            num_warps=4,
            num_stages=3 if depth <= AHEAD else 1,
        )
    return target.permute(0, 3, 1, 2)


@functools.cache
def _pays(index: int, outputs: int, inputs: int) -> bool:
    """Cards before Ampere lack the registers: 2 KB of each thread would lie in memory. Others may lack the shared
    memory for what a program multiplies by and one row of what it reads."""
    depth, lanes = gpu.power_of_two(3 * padded(inputs)), gpu.power_of_two(max(16, outputs))
    if 2 * depth * (3 * lanes + ACROSS) > gpu.shared_memory(index):
        return False
    return index < 0 or torch.version.hip is not None or torch.cuda.get_device_capability(index) >= (8, 0)


def _pitched(rows: Tensor) -> Tensor:
    """[B, H, W, C] of one piece, its channels filled up to a multiple of eight."""
    batch, height, width, channels = rows.shape
    pitch = padded(channels)
    whole = batch, height, width, pitch
    strides = height * width * pitch, width * pitch, pitch, 1
    if rows.stride() == strides:
        return rows.as_strided(whole, strides)
    return F.pad(rows, (0, pitch - channels)).contiguous()


def add_and_activate(made: Tensor, bias: Tensor, slope: float) -> Tensor:
    """A leaky ReLU of ``made + bias``, in place. made: [B, C, H, W], channels last or copied; bias: [C]."""
    rows = made.permute(0, 2, 3, 1).contiguous()
    with gpu.on(made.device):
        _add_and_activate[(triton.cdiv(rows.numel(), BLOCK),)](
            rows, bias.contiguous(), slope, rows.numel(), CHANNELS=rows.shape[-1], BLOCK=BLOCK
        )
    return rows.permute(0, 3, 1, 2)


@triton.jit(do_not_specialize=["slope"])
def _add_and_activate(
    rows: tl.tensor,  # [entries], channels fastest, changed
    bias: tl.tensor,  # [CHANNELS]
    slope: tl.tensor,
    entries: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = entry < entries
    value = tl.load(rows + entry, mask=there, other=0.0).to(tl.float32)
    value += tl.load(bias + entry % CHANNELS).to(tl.float32)
    value = tl.where(value >= 0, value, value * slope)
    tl.store(rows + entry, value.to(rows.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "slope"])
def _convolve(
    source: tl.tensor,  # [B, height, width, INPUTS]
    weights: tl.tensor,  # [9 * INPUTS or more, COLUMNS]
    bias: tl.tensor,  # [OUTPUTS]
    target: tl.tensor,  # [B, rows, columns, OUTPUTS], out
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    slope: tl.tensor,  # what the activation takes sums below zero times
    STRIDE: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    LANES: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """DOWN rows of ACROSS positions of one picture. What a row of the source adds to the rows of the target below and
    above is summed as it is read, so that it is read for three positions beside each other and not for nine."""
    picture = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * DOWN
    place = tl.program_id(0) * ACROSS + tl.arange(0, ACROSS)
    lane = tl.arange(0, LANES)
    told = source + picture * height * width * INPUTS, height, width, place * STRIDE
    upper = _taps(weights, 0, INPUTS, COLUMNS, DEPTH, LANES)
    middle = _taps(weights, 1, INPUTS, COLUMNS, DEPTH, LANES)
    lower = _taps(weights, 2, INPUTS, COLUMNS, DEPTH, LANES)
    added = tl.load(bias + lane, mask=lane < OUTPUTS, other=0.0).to(tl.float32)
    target += picture * rows * columns * OUTPUTS
    target += (place * OUTPUTS)[:, None] + lane[None, :]
    wanted = (place < columns)[:, None] & (lane < OUTPUTS)[None, :]
    nothing = tl.zeros([ACROSS, LANES], dtype=tl.float32)
    if STRIDE == 1:
        begun = nothing
        half = nothing
        for turn in range(DOWN + 2):
            row = first + turn - 2  # that is done with the row of the source
            read = _row(told, row + 1, INPUTS, DEPTH)
            sums = _added(read, lower, half, PRECISION, UPCAST)
            half = _added(read, middle, begun, PRECISION, UPCAST)
            begun = _added(read, upper, nothing, PRECISION, UPCAST)
            sums += added[None, :]
            sums = tl.where(sums >= 0, sums, sums * slope)
            exists = wanted & (nothing + row >= first) & (nothing + row < rows)
            tl.store(target + row * columns * OUTPUTS, sums.to(target.dtype.element_ty), mask=exists)
    else:
        begun = _added(_row(told, 2 * first - 1, INPUTS, DEPTH), upper, nothing, PRECISION, UPCAST)
        for turn in range(DOWN):
            row = first + turn
            sums = _added(_row(told, 2 * row, INPUTS, DEPTH), middle, begun, PRECISION, UPCAST)
            read = _row(told, 2 * row + 1, INPUTS, DEPTH)
            sums = _added(read, lower, sums, PRECISION, UPCAST)
            begun = _added(read, upper, nothing, PRECISION, UPCAST)
            sums += added[None, :]
            sums = tl.where(sums >= 0, sums, sums * slope)
            exists = wanted & (nothing + row < rows)
            tl.store(target + row * columns * OUTPUTS, sums.to(target.dtype.element_ty), mask=exists)


@triton.jit
def _taps(
    weights: tl.tensor,
    row: tl.constexpr,
    INPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    LANES: tl.constexpr,
) -> tl.tensor:
    """The three taps of a row, [DEPTH, LANES]."""
    depth = tl.arange(0, DEPTH)
    lane = tl.arange(0, LANES)
    return tl.load(
        weights + (3 * row * INPUTS + depth)[:, None] * COLUMNS + lane[None, :],
        mask=(depth < 3 * INPUTS)[:, None] & (lane < COLUMNS)[None, :],
        other=0.0,
    )


@triton.jit
def _row(told: tl.tensor, y: tl.tensor, INPUTS: tl.constexpr, DEPTH: tl.constexpr) -> tl.tensor:
    """Three positions each of a row of a picture, which lie one behind the other, [ACROSS, DEPTH]; zeros outside.

    told: where the picture begins, its size, the columns in the middle of the three [ACROSS].
    """
    start, height, width, x = told
    depth = tl.arange(0, DEPTH)
    column = x[:, None] + (depth // INPUTS - 1)[None, :]
    last = tl.where((y >= 0) & (y < height), width, 0)
    return tl.load(
        start + ((y * width + x - 1) * INPUTS)[:, None] + depth[None, :],
        mask=(column >= 0) & (column < last) & (depth < 3 * INPUTS)[None, :],
        other=0.0,
    )


@triton.jit
def _added(
    read: tl.tensor, taps: tl.tensor, sums: tl.tensor, PRECISION: tl.constexpr, UPCAST: tl.constexpr
) -> tl.tensor:
    """Sums [ACROSS, LANES] and what positions [ACROSS, DEPTH] add to them by taps [DEPTH, LANES]."""
    if UPCAST:
        read = read.to(tl.float32)
        taps = taps.to(tl.float32)
    return tl.dot(read, taps, sums, input_precision=PRECISION)
