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
TILE = 8, 16
"""Rows and columns of positions of a program, which finds most of what is around them in the multiprocessor's cache."""
BLOCK = 2048
"""Values that a program adds a bias to."""


def convolve_and_activate(conv: Conv, x: Tensor, slope: float) -> Tensor:
    """A leaky ReLU of a convolution with a bias. x: [B, inputs, H, W], as is what is returned, channels last."""
    weight, bias = conv.weight.to(x.dtype), conv.bias
    assert bias is not None
    few = weight.shape[0] <= MOST_MADE and padded(weight.shape[1]) <= MOST_READ
    if few and conv.kernel_size == (3, 3) and x.element_size() == 2 and _pays(gpu.index_of(x.device)):
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
    down, across = TILE
    with gpu.on(x.device):
        _convolve[(triton.cdiv(columns, across) * triton.cdiv(rows, down), batch)](
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
            DEPTH=max(16, gpu.power_of_two(inputs)),
            LANES=gpu.power_of_two(matrix.shape[1]),
            DOWN=down,
            ACROSS=across,
            PRECISION=precision(x.dtype),
            UPCAST=INTERPRETED,
            num_warps=4 if inputs <= 64 else 8,
        )
    return target.permute(0, 3, 1, 2)


@functools.cache
def _pays(index: int) -> bool:
    """Cards before Ampere lack the registers: 2 KB of each thread would lie in memory."""
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
    """A tile of DOWN x ACROSS positions of one picture. Few channels are a step for each tap: steps that cross from tap
    to tap, as in ``active_product``, take twice the instructions."""
    picture = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(columns, ACROSS)
    inside = tl.arange(0, DOWN * ACROSS)
    row = (tl.program_id(0) // tiles) * DOWN + inside // ACROSS
    place = (tl.program_id(0) % tiles) * ACROSS + inside % ACROSS
    exists = (row < rows) & (place < columns)
    channel = tl.arange(0, DEPTH)
    lane = tl.arange(0, LANES)
    start = source + picture * height * width * INPUTS
    sums = tl.zeros([DOWN * ACROSS, LANES], dtype=tl.float32)
    for tap in tl.static_range(9):
        y = row * STRIDE + (tap // 3 - 1)
        x = place * STRIDE + (tap % 3 - 1)
        there = exists & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        left = tl.load(
            start + ((y * width + x) * INPUTS)[:, None] + channel[None, :],
            mask=there[:, None] & (channel < INPUTS)[None, :],
            other=0.0,
        )
        right = tl.load(
            weights + (tap * INPUTS + channel)[:, None] * COLUMNS + lane[None, :],
            mask=(channel < INPUTS)[:, None] & (lane < COLUMNS)[None, :],
            other=0.0,
        )
        if UPCAST:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
    sums += tl.load(bias + lane, mask=lane < OUTPUTS, other=0.0).to(tl.float32)[None, :]
    sums = tl.where(sums >= 0, sums, sums * slope)
    tl.store(
        target + picture * rows * columns * OUTPUTS + ((row * columns + place) * OUTPUTS)[:, None] + lane[None, :],
        sums.to(target.dtype.element_ty),
        mask=exists[:, None] & (lane < OUTPUTS)[None, :],
    )
