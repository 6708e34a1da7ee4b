"""Sampling a map along a flow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def backward_warp(source: Tensor, flow: Tensor) -> Tensor:
    """Read ``source`` where ``flow`` points to: ``out[x] = source[x + flow[x]]``.

    source: [B, C, H, W], any float type; flow: [B, 2, H, W] fp32, (x, y) in positions of this map. Bilinear; outside
    the picture the nearest border value. Returns [B, C, H, W] fp32: the grid is never rounded to less, because bf16
    has no half positions past 256 and fp16 overflows on wide frames.
    """
    height, width = flow.shape[-2:]
    x = torch.arange(width, device=flow.device, dtype=torch.float32)  # [W]
    y = torch.arange(height, device=flow.device, dtype=torch.float32)[:, None]  # [H, 1]
    flow = flow.float()
    grid = torch.stack(
        ((flow[:, 0] + x) * (2 / max(width - 1, 1)) - 1, (flow[:, 1] + y) * (2 / max(height - 1, 1)) - 1), dim=-1
    )  # [B, H, W, 2]
    return F.grid_sample(source.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)


def upsample(values: Tensor, factor: int = 2) -> Tensor:
    """Bilinear enlargement by a whole factor, [B, C, H, W] -> [B, C, factor * H, factor * W]; flow is not rescaled."""
    return F.interpolate(values, scale_factor=float(factor), mode="bilinear", align_corners=False)
