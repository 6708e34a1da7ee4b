"""Pruning masks: which blocks of a level are computed.

A mask lives on a grid of blocks, [B, 1, rows, columns], 1 = compute. A gate turns the logits that the level above
predicts, and the parent mask, into a mask; masks are nested, so a block pruned once is pruned at every finer level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net.blocks import Conv
from ugsp_net.compiled import compiled_by
from ugsp_net.pooling import halve, largest_around, mean_around, over_blocks
from ugsp_net.search import luma

Gate = Callable[[Tensor, Tensor | None], Tensor]
"""(logits [B, 1, rows, columns] fp32, parent mask on the same grid or None) -> mask on that grid, fp32."""


def to_grid(logits: Tensor, stride: int, grid_stride: int) -> Tensor:
    """Bring logits at one stride to the grid of the masks: averaged over blocks, or bilinearly enlarged."""
    if grid_stride > stride:
        return F.avg_pool2d(logits, grid_stride // stride)
    if grid_stride < stride:
        return F.interpolate(logits, scale_factor=stride / grid_stride, mode="bilinear", align_corners=False)
    return logits


def block_side(mask: Tensor, height: int, width: int) -> int:
    """Positions along a side of the blocks with which a mask covers a level. Raises ValueError where it does not."""
    rows, columns = mask.shape[-2:]
    side = width // columns
    if side == 0 or rows * side != height or columns * side != width:
        raise ValueError(f"a mask of {columns}x{rows} blocks does not cover a level of {width}x{height} positions")
    return side


@compiled_by("cpu.masks.block_logits", "gpu.masks.block_logits")
def block_logits(feature: Tensor, gate: Conv, side: int, parent: Tensor) -> Tensor:
    """What a 3x3 convolution to one channel makes of a feature [B, C, H, W], averaged over blocks of a side, where the
    parent mask is 1; elsewhere it may be anything. parent: fp32, as is what is returned, [B, 1, H / side, W / side]."""
    return to_grid(gate(feature).float(), 1, side) * parent


AGREE_MEAN, AGREE_MOST = 2.5 / 255, 8 / 255
"""Blocks of two frames agree where the largest difference of the three colours is less than this in the mean, and at no
pixel more: what the noise of a still camera's clip leaves after coding, which shifts whole blocks by a code value (1.2
of 255 in luma, 2.1 in blue). With 1, 1.7, 2.5 and 3.5 in the mean, on three frames of each development clip, 14, 20, 26
and 29 % of the blocks agree; PSNR is 32.24, 32.24, 32.24 and 32.25."""
STILL_FLOW = 4.0
"""Pixels of flow at the instant below which nothing can have come and gone within a block whose frames agree."""
AROUND = 64
"""Pixels around a block in which all must agree where the flow is larger: it is wrong there."""

SAME = 10 / 255
"""Change up to which a pixel shows the same in two frames ..."""
SAME_SHARES = 0.3, 0.2
"""... or this share of the contrast around it, where that is more, in colour or in brightness: coding blurs and rings
at edges."""
EDGE = 24 / 255
"""Difference of two pixels beside a pixel, ``EDGE_REACH`` away from it each, that makes it part of an edge."""
EDGE_REACH = 2
EDGES = 0.4
"""Least share of such pixels in the 6x6 around: single ones come about where noise meets noise."""
WITHIN = 16
"""Pixels from there, at most twice as many, to which what shows the same belongs too: the inside of a large letter."""
OVERLAID = 0.75
"""Largest share of pixels that show the same in the 80x80 around: where more do, the background stands still, and what
passes before it in between, in none of the frames, must not be lost."""


@compiled_by("cpu.masks.change", "gpu.masks.change")
def change(frame0: Tensor, frame1: Tensor) -> Tensor:
    """What differs between two frames, [B, 3, H, W] -> [B, 2, H, W]: the largest of the three colours, and brightness,
    which what moves beside a pixel does not bleed into when colours are coded at half size. fp32 or bf16."""
    difference = frame0 - frame1
    brightness = luma(difference).abs_()
    return torch.cat((difference.abs_().amax(1, keepdim=True), brightness), dim=1)


@compiled_by("gpu.masks.agreement")
def agreement(changed: Tensor, side: int) -> Tensor:
    """Blocks of side x side pixels in which two frames agree, from their ``change``: [B, 1, rows, columns] bool."""
    mean, most = over_blocks(changed[:, :1], side)
    return (mean < AGREE_MEAN) & (most < AGREE_MOST)


def still_blocks(agree: Tensor, flow: Tensor, side: int) -> Tensor:
    """Blocks in which nothing moves: both frames agree, and nothing comes from elsewhere, as the flow says or because
    all around agrees too.

    That a block agrees is not enough, since something small and fast may be there at the instant and in neither frame.

    agree: from ``agreement``, for blocks of ``side`` pixels; flow: [B, 4, h, w] in pixels at the instant, of any
    level. Returns [B, 1, rows, columns] bool, on the grid of ``agree``.
    """
    reach = F.max_pool2d(flow.abs().amax(1, keepdim=True), 3, 1, 1)
    slow = F.adaptive_max_pool2d(reach, agree.shape[-2:]) < STILL_FLOW
    blocks = -(-AROUND // side)
    around = F.max_pool2d((~agree).float(), 2 * blocks + 1, 1, blocks) == 0
    return agree & (slow | around)


@compiled_by("cpu.masks.moving_blocks", "gpu.masks.moving_blocks")
def moving_blocks(agree: Tensor, flow: Tensor, stride: int, side: int) -> Tensor:
    """1 for all other blocks than ``still_blocks``, else 0, fp32; stride: pixels of a position of the flow."""
    return (~still_blocks(agree, stride * flow, side)).float()


def unsettled(agree: Tensor, side: int) -> tuple[slice, slice] | None:
    """Rows and columns, in pixels, of the rectangle outside which ``still_blocks`` finds nothing that moves, whatever
    the flow is; None where all is still. agree, side: as there."""
    box = bounds(~agree)
    if box is None:
        return None
    rows, columns = (
        slice(side * max(0, span.start - -(-AROUND // side)), side * min(count, span.stop + -(-AROUND // side)))
        for span, count in zip(box, agree.shape[-2:], strict=True)
    )
    return rows, columns


def still_pixels(frame0: Tensor, frame1: Tensor, *changes: Tensor) -> Tensor:
    """Where text and signs stand still before what moves, which flow found in patches tears apart.

    Edges that are at one place in three or four frames stand still; flat parts of what moves may show the same too.

    frame0, frame1: [B, 3, H, W] in [0, 1], sides multiples of 16; changes: [B, 2, H, W] each, ``change`` between them
    and from them to the frames before and after. Returns [B, 1, H / 2, W / 2] fp32, 0 or 1.
    """
    batch, _, height, width = frame0.shape
    first, *others = (one[:, :1] for one in changes)
    overlaid = mean_around(_share_below(first, SAME, 16, others), 5) < OVERLAID
    still = frame0.new_zeros((batch, 1, height // 2, width // 2))
    box = bounds(overlaid)
    if box is None:
        return still
    # Two blocks more on each side, as far as what follows reaches.
    rows, columns = (slice(16 * max(0, span.start - 2), 16 * (span.stop + 2)) for span in box)
    frame0, frame1, first, *others = (whole[..., rows, columns] for whole in (frame0, frame1, *changes))
    found = _standing(*_rooted_edges(frame0, frame1, first, others))
    still[..., rows.start // 2 : rows.stop // 2, columns.start // 2 : columns.stop // 2] = found
    return still * enlarge(overlaid.float(), 8)


@compiled_by("cpu.masks.share_below", "gpu.masks.share_below")
def _share_below(changed: Tensor, limit: float, side: int, others: Sequence[Tensor] = ()) -> Tensor:
    """Share of pixels that changed less, in any of several, in every block of side x side, [B, 1, H, W] ->
    [B, 1, H / side, W / side]."""
    return over_blocks((reduce(torch.maximum, others, changed).float() < limit).float(), side)[0]


@compiled_by("cpu.masks.rooted_edges", "gpu.masks.rooted_edges")
def _rooted_edges(
    frame0: Tensor, frame1: Tensor, changed: Tensor, others: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """Of every 2x2 pixels, the share that are part of an edge which is in both frames, and whether all show the same,
    1 or 0: [B, 1, H / 2, W / 2] each. changed, others: as ``changes`` for ``still_pixels``, as is the rest."""
    changed = reduce(torch.maximum, others, changed).float()
    contrast = torch.minimum(_contrast(frame0), _contrast(frame1))
    same = changed < (contrast * contrast.new_tensor(SAME_SHARES).view(1, 2, 1, 1)).clamp_(min=SAME)
    edge = same & (contrast > EDGE)
    return halve((edge[:, :1] | edge[:, 1:]).float()), (halve(same[:, :1].float()) == 1).float()


@compiled_by("cpu.masks.standing")
def _standing(edges: Tensor, same: Tensor) -> Tensor:
    """What is near enough such edges, and what shows the same around them, 1 or 0; all [B, 1, H / 2, W / 2]."""
    rooted = (mean_around(edges, 3) > EDGES).float()
    near = enlarge(F.max_pool2d(F.max_pool2d(rooted, WITHIN // 2), 3, 1, 1), WITHIN // 2)
    return torch.maximum(largest_around(rooted, 3), near * same)


def _contrast(frame: Tensor) -> Tensor:
    """How much of an edge each pixel is part of, in green and in brightness: [B, 3, H, W] -> [B, 2, H, W]."""
    shade, reach = torch.cat((frame[:, 1:2], luma(frame)), dim=1), EDGE_REACH
    contrast = torch.zeros_like(shade)
    contrast[..., reach:-reach] = (shade[..., 2 * reach :] - shade[..., : -2 * reach]).abs_()
    inner = contrast[..., reach:-reach, :]
    torch.maximum(inner, (shade[..., 2 * reach :, :] - shade[..., : -2 * reach, :]).abs_(), out=inner)
    return contrast


def enlarge(mask: Tensor, factor: int) -> Tensor:
    """Repeat every entry of a mask factor x factor times; [B, 1, H, W] -> [B, 1, factor * H, factor * W]."""
    if factor == 1:
        return mask
    return mask.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def bounds(mask: Tensor) -> tuple[slice, slice] | None:
    """Rows and columns of the smallest rectangle that holds all blocks of a mask in all pictures; None without any."""
    blocks: Any = mask.cpu().numpy().any((0, 1))  # a device is waited for here alone
    if not blocks.any():
        return None
    rows, columns = (blocks.any(dim).nonzero()[0] for dim in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def hard_gate(threshold: float = 0.0) -> Gate:
    """Inference: compute where the logit exceeds the threshold (0: where computing is the likelier class)."""

    def gate(logits: Tensor, parent: Tensor | None) -> Tensor:
        mask = (logits > threshold).float()
        return mask if parent is None else mask * parent

    return gate


def empty_gate(logits: Tensor, parent: Tensor | None) -> Tensor:
    """Compute nothing. A network with a search then needs no level at all: ``UGSP.needs_levels``."""
    return torch.zeros_like(logits)


def keep_gate(fraction: float) -> Gate:
    """Keep the given fraction of every level's blocks, those with the highest logits, in each picture."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction to keep must lie between 0 and 1, not {fraction}")
    if fraction == 0:
        return empty_gate

    def gate(logits: Tensor, parent: Tensor | None) -> Tensor:
        flat = logits.flatten(1)
        if parent is not None:
            flat = flat.masked_fill(parent.flatten(1) == 0, float("-inf"))
        count = round(fraction * flat.shape[1])
        mask = torch.zeros_like(flat).scatter_(1, flat.topk(count, dim=1).indices, 1.0)
        mask = mask.reshape(logits.shape)
        return mask if parent is None else mask * parent

    return gate


def gumbel_gate(temperature: float) -> Gate:
    """Training: a straight-through sample of the two-class Gumbel softmax (the difference of two Gumbels is logistic).

    The forward value is 0 or 1, as at inference; the gradient is that of the soft sample.
    """

    def gate(logits: Tensor, parent: Tensor | None) -> Tensor:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((logits + torch.logit(uniform)) / temperature)
        mask = (soft > 0.5).float() + (soft - soft.detach())
        return mask if parent is None else mask * parent

    return gate


def fixed_gate(masks: list[Tensor]) -> Gate:
    """Use given masks, coarse to fine and then from the beginning, whatever the logits say (benchmarks at a chosen
    density, tests)."""
    remaining = cycle(masks)

    def gate(logits: Tensor, parent: Tensor | None) -> Tensor:
        mask = next(remaining).to(logits.device, torch.float32)
        return mask if parent is None else mask * parent

    return gate
