"""Means and largest values over squares, in sums of slices.

On a processor torch's pooling takes eight to thirty times as long for maps of few channels, whose layout it does not
vectorise: 1280x720 halved 1.5 ms against 0.2, the largest of 3x3 at 640x360 4.3 ms against 0.15 (one core).
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net.compiled import compiled_by


def halve(values: Tensor, down: bool = True, across: bool = True) -> Tensor:
    """Mean over 2x2 positions, or over two of them: [..., H, W] -> [..., H / 2, W / 2], or one of the sides; even."""
    if down:
        values = (values[..., 0::2, :] + values[..., 1::2, :]) / 2
    return (values[..., 0::2] + values[..., 1::2]) / 2 if across else values


@compiled_by("cpu.masks.over_blocks", "gpu.masks.over_blocks")
def over_blocks(values: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Mean and largest of blocks of side x side positions, [B, C, H, W] -> [B, C, H / side, W / side] fp32 each."""
    batch, channels, height, width = values.shape
    rows = values.float().reshape(batch, channels, height // side, side, width)
    shape = batch, channels, height // side, width // side, side
    return rows.mean(3).view(shape).mean(4), rows.amax(3).view(shape).amax(4)


@compiled_by("cpu.masks.mean_around")
def mean_around(values: Tensor, side: int) -> Tensor:
    """Mean over the square of side x side positions, odd, around each, as far as it lies in [B, C, H, W]."""
    for dim in (2, 3):
        total = reduce(torch.add, _shifted(values, dim, side))
        length, reach = values.shape[dim], side // 2
        place = torch.arange(length, device=values.device)
        count = (place + reach).clamp(max=length - 1) - (place - reach).clamp(min=0) + 1
        values = total / (count if dim == 3 else count[:, None])
    return values


def largest_around(values: Tensor, side: int) -> Tensor:
    """The largest of the square of side x side positions, odd, around each of [B, C, H, W], none below 0."""
    for dim in (2, 3):
        values = reduce(torch.maximum, _shifted(values, dim, side))
    return values


def _shifted(values: Tensor, dim: int, side: int) -> list[Tensor]:
    """[B, C, H, W] moved along its rows (2) or columns (3) by each of up to side // 2 positions, zeros beyond."""
    reach, length = side // 2, values.shape[dim]
    padded = F.pad(values, (0, 0, reach, reach) if dim == 2 else (reach, reach))
    return [padded.narrow(dim, start, length) for start in range(side)]
