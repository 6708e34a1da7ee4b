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
            LANES=gpu.power_of_two(channels),
            POSITIONS=POSITIONS,
        )
    return out.permute(0, 3, 1, 2)


def _taps(weight: Tensor) -> Tensor:
    """[C, 3, 3, 3] -> [3, 3, 3, C]: colour, row and column first."""
    return weight.detach().permute(1, 2, 3, 0).contiguous()


@triton.jit(
    do_not_specialize=["height", "width", "picture_stride", "channel_stride", "row_stride", "scale", "offset", "slope"]
)
def _first_features(
    frame: tl.tensor,  # [B, COLOURS, height, width] fp32, rows of one piece
    weights: tl.tensor,  # [COLOURS, 3, 3, CHANNELS]
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
    POSITIONS: tl.constexpr,
) -> None:
    picture = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    columns = width // 2
    count = (height // 2) * columns
    exists = place < count
    y = 2 * (place // columns)
    x = 2 * (place % columns)
    lane = tl.arange(0, LANES)
    kind = out.dtype.element_ty
    sums = tl.zeros([POSITIONS, LANES], dtype=tl.float32)
    for colour in tl.static_range(COLOURS):
        plane = frame + picture * picture_stride + colour * channel_stride
        for tap in tl.static_range(9):
            row = y + (tap // 3 - 1)
            column = x + (tap % 3 - 1)
            inside = exists & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            value = tl.load(plane + row * row_stride + column, mask=inside, other=0.0)
            # What is outside is nothing of the normalised frame. Products are of numbers of the activations' type.
            value = tl.where(inside, value * scale + offset, 0.0).to(kind).to(tl.float32)
            weight = tl.load(weights + (colour * 9 + tap) * CHANNELS + lane, mask=lane < CHANNELS, other=0.0)
            sums += value[:, None] * weight.to(tl.float32)[None, :]
    sums += tl.load(bias + lane, mask=lane < CHANNELS, other=0.0).to(tl.float32)[None, :]
    sums = tl.where(sums >= 0, sums, sums * slope)
    to = out + (picture * count + place)[:, None] * CHANNELS + lane[None, :]
    tl.store(to, sums.to(kind), mask=exists[:, None] & (lane < CHANNELS)[None, :])
