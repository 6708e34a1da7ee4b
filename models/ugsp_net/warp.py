"""Sampling a map along a flow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

STRIP = 1 << 21
"""Pixels that ``blend_enlarged`` makes at a time."""


def backward_warp(source: Tensor, flow: Tensor, top: int = 0, left: int = 0) -> Tensor:
    """Read ``source`` where ``flow`` points to: ``out[x] = source[x + flow[x]]``.

    source: [B, C, H, W], any float type; flow: [B, 2, h, w] fp32, (x, y) in positions of this map, for its rows from
    ``top`` and its columns from ``left`` on. Bilinear; outside the picture the nearest border value. Returns
    [B, C, h, w] fp32: the grid is never rounded to less, because bf16 has no half positions past 256 and fp16 overflows
    on wide frames.
    """
    height, width = source.shape[-2:]
    across, down = 2 / max(width - 1, 1), 2 / max(height - 1, 1)
    x = torch.arange(left, left + flow.shape[-1], device=flow.device, dtype=torch.float32) * across - 1  # [w]
    y = torch.arange(top, top + flow.shape[-2], device=flow.device, dtype=torch.float32)[:, None] * down - 1  # [h, 1]
    flow = flow.float()
    if torch.is_grad_enabled():
        grid = torch.stack((torch.add(x, flow[:, 0], alpha=across), torch.add(y, flow[:, 1], alpha=down)), dim=-1)
    else:  # in one pass each
        grid = flow.new_empty((flow.shape[0], *flow.shape[-2:], 2))
        torch.add(x, flow[:, 0], alpha=across, out=grid[..., 0])
        torch.add(y, flow[:, 1], alpha=down, out=grid[..., 1])
    return F.grid_sample(source.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)


def blend_enlarged(frame0: Tensor, frame1: Tensor, flow: Tensor, blend: Tensor, factor: int) -> Tensor:
    """Warp and blend frames by flow and blend weights that were estimated at a smaller size.

    frame0, frame1: [B, 3, k H, k W] for the factor k; flow: [B, 4, H, W] in positions of the smaller size; blend:
    [B, 1, H, W]. Returns [B, 3, k H, k W] fp32. Made in strips of rows: at 7680x4320 the flow alone, enlarged at once,
    would take half a gigabyte.
    """
    out = torch.empty_like(frame0, dtype=torch.float32)
    rows = flow.shape[-2]
    step = max(1, STRIP // (factor * frame0.shape[-1]))
    both = torch.cat((factor * flow.float(), blend.float()), dim=1)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        # One more row above and below, so that a strip is enlarged as the whole would be.
        above, below = min(first, 1), min(rows - last, 1)
        strip = upsample(both[:, :, first - above : last + below], factor)
        strip = strip[:, :, factor * above : factor * (above + last - first)]
        top = factor * first
        warped0, warped1 = backward_warp(frame0, strip[:, :2], top), backward_warp(frame1, strip[:, 2:4], top)
        out[:, :, top : factor * last] = torch.lerp(warped1, warped0, strip[:, 4:])
    return out


def upsample(values: Tensor, factor: int = 2) -> Tensor:
    """Bilinear enlargement by a whole factor, [B, C, H, W] -> [B, C, factor * H, factor * W]; flow is not rescaled."""
    if factor == 2 and values.device.type == "cpu" and values.dtype == torch.float32 and not torch.is_grad_enabled():
        return _doubled(_doubled(values, 3), 2)  # a third of torch's time
    return F.interpolate(values, scale_factor=float(factor), mode="bilinear", align_corners=False)


def _doubled(values: Tensor, dim: int) -> Tensor:
    """Bilinear enlargement to twice the size along one side."""
    others = values.shape[dim] - 1
    out = values.new_empty((*values.shape[: dim + 1], 2, *values.shape[dim + 1 :]))
    early, late = out.unbind(dim + 1)
    here, beyond = values.narrow(dim, 0, others), values.narrow(dim, 1, others)
    torch.lerp(here, beyond, 0.75, out=early.narrow(dim, 1, others))
    torch.lerp(here, beyond, 0.25, out=late.narrow(dim, 0, others))
    early.select(dim, 0).copy_(values.select(dim, 0))
    late.select(dim, -1).copy_(values.select(dim, -1))
    return out.flatten(dim, dim + 1)
