"""The encoder's first convolution, which reads frames as they are.

cuDNN has no fast one for three channels, and frames would have to be normalised and turned to channels last before it,
each a pass over them: together half of the encoder's time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ugsp_net import gpu
from ugsp_net.blocks import LEAKY_SLOPE, Conv
from ugsp_net.gpu.pictures import in_rows
from ugsp_net.sparse.triton_kernels import INTERPRETED
from ugsp_net.sparse.triton_level import precision

POSITIONS = 128
"""That a program makes."""


def first_features(conv: Conv, frame: Tensor, scale: float, offset: float, dtype: torch.dtype) -> Tensor:
    """A leaky ReLU of a 3x3 convolution of stride 2 with a bias, of ``frame * scale + offset`` in that type.

    frame: [B, 3, H, W] fp32, even sides. Returns [B, C, H / 2, W / 2], channels last.
    """
    frame = in_rows(frame)
    batch, colours, height, width = frame.shape
    channels, rows, columns = conv.out_channels, height // 2, width // 2
    assert conv.bias is not None
    weights = conv.kept(_taps).to(dtype)
    out = gpu.empty((batch, rows, columns, channels), frame, dtype)
    with gpu.on(frame.device):
        _first_features[(triton.cdiv(rows * columns, POSITIONS), batch)](
            frame,
            weights,
            conv.bias.to(dtype),
            out,
            height,
            width,
            *frame.stride()[:3],
            scale,
            offset,
            LEAKY_SLOPE,
            COLOURS=colours,
            CHANNELS=channels,
            LANES=max(16, gpu.power_of_two(channels)),
            DEPTH=max(16, gpu.power_of_two(9 * colours)),
            POSITIONS=POSITIONS,
            PRECISION=precision(dtype),
            UPCAST=INTERPRETED,
        )
    return out.permute(0, 3, 1, 2)


def _taps(weight: Tensor) -> Tensor:
    """[C, 3, 3, 3] -> [27, C]: colour, row and column first."""
    return weight.detach().flatten(1).T.contiguous()


@triton.jit
def _gathered(
    told: tl.tensor,
    KIND: tl.constexpr,
    TAPS: tl.constexpr,
    DEPTH: tl.constexpr,
    FIRST: tl.constexpr,
    STEP: tl.constexpr,
) -> tl.tensor:
    """Every STEP-th tap of every colour from the FIRST on, of that type: [positions, 2, ..., 2], DEPTH / STEP of each.
    told: the frame and its strides; where positions lie in it, and which there are; its size, scale and offset.

    Joined one by one, so that threads beside each other read what lies beside each other: of a tile of taps and
    positions some versions of Triton let them read taps.
    """
    frame, channel_stride, row_stride, y, x, exists, height, width, scale, offset = told
    if STEP == DEPTH:
        if FIRST < TAPS:
            row = y + (FIRST % 9 // 3 - 1)
            column = x + (FIRST % 3 - 1)
            inside = exists & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            plane = frame + (FIRST // 9) * channel_stride.to(tl.int64)
            value = tl.load(plane + (row * row_stride + column), mask=inside, other=0.0)
            # What is outside is nothing of the normalised frame. Products are of numbers of the activations' type.
            made = tl.where(inside, value * scale + offset, 0.0).to(KIND)
        else:
            made = tl.zeros_like(x).to(KIND)
    else:
        even = _gathered(told, KIND, TAPS, DEPTH, FIRST, 2 * STEP)
        odd = _gathered(told, KIND, TAPS, DEPTH, FIRST + STEP, 2 * STEP)
        made = tl.join(even, odd)
    return made


@triton.jit(
    do_not_specialize=["height", "width", "picture_stride", "channel_stride", "row_stride", "scale", "offset", "slope"]
)
def _first_features(
    frame: tl.tensor,  # [B, COLOURS, height, width] fp32, rows of one piece
    weights: tl.tensor,  # [9 * COLOURS, CHANNELS]
    bias: tl.tensor,  # [CHANNELS]
    out: tl.tensor,  # [B, height / 2, width / 2, CHANNELS], out
    height: tl.tensor,
    width: tl.tensor,
    picture_stride: tl.tensor,
    channel_stride: tl.tensor,
    row_stride: tl.tensor,
    scale: tl.tensor,
    offset: tl.tensor,
    slope: tl.tensor,
    COLOURS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LANES: tl.constexpr,
    DEPTH: tl.constexpr,
    POSITIONS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    picture = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    columns = width // 2
    count = (height // 2) * columns
    exists = place < count
    y = 2 * (place // columns)
    x = 2 * (place % columns)
    lane = tl.arange(0, LANES)
    kind: tl.constexpr = out.dtype.element_ty
    k = tl.arange(0, DEPTH)
    start = frame + picture * picture_stride
    told = start, channel_stride, row_stride, y, x, exists, height, width, scale, offset
    value = _gathered(told, kind, 9 * COLOURS, DEPTH, 0, 1)
    value = tl.reshape(value, [POSITIONS, DEPTH])
    known = (k < 9 * COLOURS)[:, None] & (lane < CHANNELS)[None, :]
    weight = tl.load(weights + k[:, None] * CHANNELS + lane[None, :], mask=known, other=0.0)
    if UPCAST:
        value = value.to(tl.float32)
        weight = weight.to(tl.float32)
    sums = tl.dot(value, weight, input_precision=PRECISION)
    sums += tl.load(bias + lane, mask=lane < CHANNELS, other=0.0).to(tl.float32)[None, :]
    sums = tl.where(sums >= 0, sums, sums * slope)
    to = out + (picture * count + place)[:, None] * CHANNELS + lane[None, :]
    tl.store(to, sums.to(kind), mask=exists[:, None] & (lane < CHANNELS)[None, :])
