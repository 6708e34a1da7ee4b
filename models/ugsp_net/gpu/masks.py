"""What ``masks`` looks at pixel by pixel, for CUDA devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ugsp_net import gpu, masks
from ugsp_net.blocks import Conv
from ugsp_net.gpu.pictures import BLOCK, in_rows, read_colours
from ugsp_net.search import _LUMA

BLOCK_VALUES = 2048
"""Values of a feature at one position each of several blocks that a program reads at once."""
MOVING = 128
"""Blocks, a thread's each, of a program that looks around them."""
TILE = 8, 32
"""Rows and columns of 2x2 pixels in which a program looks for edges: it reads the rows and columns beside them too."""


def change(frame0: Tensor, frame1: Tensor) -> Tensor:
    """What ``masks.change`` returns."""
    frame0, frame1 = in_rows(frame0), in_rows(frame1)
    batch, _, height, width = frame0.shape
    out = gpu.empty((batch, 2, height, width), frame0)
    pixels = height * width
    with gpu.on(frame0.device):
        _change[(triton.cdiv(pixels, BLOCK), batch)](
            frame0, frame1, out, pixels, width, *frame0.stride()[:3], *frame1.stride()[:3], *_LUMA, BLOCK=BLOCK
        )
    return out


def block_logits(feature: Tensor, gate: Conv, side: int, parent: Tensor) -> Tensor:
    """What ``masks.block_logits`` returns, 0 where the parent is 0; sums are not rounded to the feature's type."""
    rows = feature.permute(0, 2, 3, 1)
    if rows.stride(3) != 1:
        rows = rows.contiguous()
    batch, height, width, channels = rows.shape
    assert gate.bias is not None
    out = gpu.empty((batch, 1, height // side, width // side), parent)
    places, lanes = out[0].numel(), gpu.power_of_two(channels)
    some = max(1, BLOCK_VALUES // lanes)
    with gpu.on(feature.device):
        _block_logits[(triton.cdiv(places, some), batch)](
            rows,
            gate.kept(_folding(side)),
            gate.bias,
            parent.contiguous(),
            out,
            places,
            height,
            width,
            *rows.stride()[:3],
            SIDE=side,
            CHANNELS=channels,
            LANES=lanes,
            SOME=some,
            num_warps=8,
        )
    return out


@functools.cache
def _folding(side: int) -> Callable[[Tensor], Tensor]:
    return functools.partial(_folded, side)


@torch.no_grad()
def _folded(side: int, weight: Tensor) -> Tensor:
    """The weights by which a position counts in the mean over a block's side x side positions of a convolution
    [1, C, 3, 3], for those in the block and around it: [(side + 2)^2, C] fp32."""
    folded = torch.zeros(side + 2, side + 2, weight.shape[1], device=weight.device)
    for down in range(3):
        for across in range(3):
            folded[down : down + side, across : across + side] += weight[0, :, down, across].float()
    return folded.flatten(0, 1) / side**2


def moving_blocks(agree: Tensor, flow: Tensor, stride: int, side: int) -> Tensor:
    """What ``masks.moving_blocks`` returns."""
    if agree.shape[-2:] != flow.shape[-2:]:
        return (~masks.still_blocks(agree, stride * flow, side)).float()
    batch, channels, rows, columns = flow.shape
    out = gpu.empty((batch, 1, rows, columns), flow)
    with gpu.on(flow.device):
        _moving_blocks[(triton.cdiv(rows * columns, MOVING), batch)](
            agree.contiguous(),
            flow,
            out,
            rows,
            columns,
            masks.STILL_FLOW / stride,
            *flow.stride(),
            CHANNELS=channels,
            AROUND=-(-masks.AROUND // side),
            BLOCK=MOVING,
        )
    return out


def over_blocks(values: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What ``pooling.over_blocks`` returns."""
    batch, channels, height, width = values.shape
    made = [gpu.empty((batch, channels, height // side, width // side), values) for _ in range(2)]
    _look_over(values, side, made[0], made[1])
    return made[0], made[1]


def agreement(changed: Tensor, side: int) -> Tensor:
    """What ``masks.agreement`` returns."""
    batch, _, height, width = changed.shape
    agree = gpu.empty((batch, 1, height // side, width // side), changed, torch.int8)
    _look_over(changed[:, :1], side, agree, None)
    return agree.view(torch.bool)


def _look_over(values: Tensor, side: int, mean: Tensor, most: Tensor | None) -> None:
    values = in_rows(values)
    batch, channels, height, width = values.shape
    span = gpu.power_of_two(side)
    places, some = (height // side) * (width // side), max(1, BLOCK // span)
    with gpu.on(values.device):
        _over_blocks[(triton.cdiv(places, some), batch * channels)](
            values,
            mean,
            most,
            places,
            width // side,
            channels,
            *values.stride()[:3],
            1 / side**2,
            masks.AGREE_MEAN,
            masks.AGREE_MOST,
            SIDE=side,
            SPAN=span,
            SOME=some,
        )


def share_below(changed: Tensor, limit: float, side: int, others: Sequence[Tensor] = ()) -> Tensor:
    """What ``masks._share_below`` returns."""
    changed = in_rows(functools.reduce(torch.maximum, others, changed))
    batch, _, height, width = changed.shape
    out = gpu.empty((batch, 1, height // side, width // side), changed)
    span = gpu.power_of_two(side)
    places, some = (height // side) * (width // side), max(1, BLOCK // span)
    picture_stride, _, row_stride, _ = changed.stride()
    with gpu.on(changed.device):
        _share_below[(triton.cdiv(places, some), batch)](
            changed,
            out,
            places,
            width // side,
            picture_stride,
            row_stride,
            float(limit),
            1 / side**2,
            SIDE=side,
            SPAN=span,
            SOME=some,
        )
    return out


def rooted_edges(
    frame0: Tensor, frame1: Tensor, changed: Tensor, others: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """What ``masks._rooted_edges`` returns."""
    changed = in_rows(functools.reduce(torch.maximum, others, changed))
    frame0, frame1 = in_rows(frame0), in_rows(frame1)
    batch, _, height, width = frame0.shape
    edges, same = (gpu.empty((batch, 1, height // 2, width // 2), frame0) for _ in range(2))
    down, across = TILE
    tiles = triton.cdiv(height // 2, down) * triton.cdiv(width // 2, across)
    with gpu.on(frame0.device):
        _rooted_edges[(tiles, batch)](
            frame0,
            frame1,
            changed,
            edges,
            same,
            height,
            width,
            *frame0.stride()[:3],
            *frame1.stride()[:3],
            *changed.stride()[:3],
            *_LUMA,
            masks.SAME,
            *masks.SAME_SHARES,
            masks.EDGE,
            REACH=masks.EDGE_REACH,
            DOWN=down,
            ACROSS=across,
        )
    return edges, same


@triton.jit(
    do_not_specialize=[
        "pixels",
        "width",
        "picture_stride0",
        "channel_stride0",
        "row_stride0",
        "picture_stride1",
        "channel_stride1",
        "row_stride1",
    ]
)
def _change(
    frame0: tl.tensor,  # [B, 3, H, W], rows of one piece
    frame1: tl.tensor,  # the same
    out: tl.tensor,  # [B, 2, H, W], out
    pixels: tl.tensor,  # H * W
    width: tl.tensor,
    picture_stride0: tl.tensor,
    channel_stride0: tl.tensor,
    row_stride0: tl.tensor,
    picture_stride1: tl.tensor,
    channel_stride1: tl.tensor,
    row_stride1: tl.tensor,
    red: tl.tensor,  # its weight in brightness
    green: tl.tensor,
    blue: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """The largest difference of the colours, and that of brightness."""
    picture = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = pixel < pixels
    y = pixel // width
    x = pixel % width
    one_r, one_g, one_b = read_colours(
        frame0 + picture * picture_stride0 + (y * row_stride0 + x), channel_stride0, exists
    )
    other_r, other_g, other_b = read_colours(
        frame1 + picture * picture_stride1 + (y * row_stride1 + x), channel_stride1, exists
    )
    r = one_r - other_r
    g = one_g - other_g
    b = one_b - other_b
    # By row and column as above: told as ``pixel``, threads would take two at a time, but not of what they have read.
    made = out + picture * 2 * pixels + (y * width + x)
    tl.store(made, tl.maximum(tl.maximum(tl.abs(r), tl.abs(g)), tl.abs(b)), mask=exists)
    tl.store(made + pixels, tl.abs(red * r + green * g + blue * b), mask=exists)


@triton.jit(do_not_specialize=["places", "height", "width", "picture_stride", "row_stride"])
def _block_logits(
    rows: tl.tensor,  # [B, height, width, CHANNELS], any float type; channels lie one behind the other
    folded: tl.tensor,  # [(SIDE + 2)^2, CHANNELS] fp32
    bias: tl.tensor,  # [1], any float type
    parent: tl.tensor,  # [B, height / SIDE, width / SIDE] fp32
    out: tl.tensor,  # the same, out
    places: tl.tensor,  # blocks of a picture
    height: tl.tensor,
    width: tl.tensor,
    picture_stride: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    LANES: tl.constexpr,
    SOME: tl.constexpr,  # blocks of a program
) -> None:
    """One sum over a block's positions and those around it, which takes the place of a convolution at each and its
    mean."""
    picture = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * SOME + tl.arange(0, SOME)
    exists = place < places
    wanted = exists & (tl.load(parent + picture * places + place, mask=exists, other=0.0) != 0)
    lane = tl.arange(0, LANES)
    total = tl.zeros([SOME, LANES], dtype=tl.float32)
    if tl.max(wanted.to(tl.int32), axis=0) > 0:
        columns = width // SIDE
        top = (place // columns) * SIDE - 1
        left = (place % columns) * SIDE - 1
        rows += picture * picture_stride
        span: tl.constexpr = SIDE + 2
        for inside in range(span * span):
            y = top + inside // span
            x = left + inside % span
            there = wanted & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            value = tl.load(
                rows + (y * row_stride + x * column_stride)[:, None] + lane[None, :],
                mask=there[:, None] & (lane < CHANNELS)[None, :],
                other=0.0,
            )
            weight = tl.load(folded + inside * CHANNELS + lane, mask=lane < CHANNELS, other=0.0)
            total += value.to(tl.float32) * weight[None, :]
    logit = tl.sum(total, axis=1) + tl.load(bias).to(tl.float32)
    tl.store(out + picture * places + place, tl.where(wanted, logit, 0.0), mask=exists)


@triton.jit(
    do_not_specialize=["rows", "columns", "slow", "picture_stride", "channel_stride", "row_stride", "column_stride"]
)
def _moving_blocks(
    agree: tl.tensor,  # [B, rows, columns] bool
    flow: tl.tensor,  # [B, CHANNELS, rows, columns] fp32, any strides
    out: tl.tensor,  # [B, rows, columns] fp32, out
    rows: tl.tensor,
    columns: tl.tensor,
    slow: tl.tensor,  # flow below which nothing comes from elsewhere, in its positions
    picture_stride: tl.tensor,
    channel_stride: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    CHANNELS: tl.constexpr,
    AROUND: tl.constexpr,  # blocks in which all must agree where it is not slow
    BLOCK: tl.constexpr,
) -> None:
    picture = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = block < rows * columns
    row = block // columns
    column = block % columns
    agree += picture * rows * columns
    flow += picture * picture_stride
    fast = tl.zeros([BLOCK], dtype=tl.int32)
    for inside in range(9):
        y = row + inside // 3 - 1
        x = column + inside % 3 - 1
        there = exists & (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        for channel in tl.static_range(CHANNELS):
            place = flow + channel * channel_stride + y * row_stride + x * column_stride
            fast |= (tl.abs(tl.load(place, mask=there, other=0.0)) < slow).to(tl.int32) ^ 1  # also what is no number
    differs = tl.zeros([BLOCK], dtype=tl.int32)
    span: tl.constexpr = 2 * AROUND + 1
    for inside in range(span * span):
        y = row + inside // span - AROUND
        x = column + inside % span - AROUND
        there = exists & (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        differs |= (tl.load(agree + y * columns + x, mask=there, other=1) == 0).to(tl.int32)
    same = tl.load(agree + block, mask=exists, other=1) != 0
    moves = (same == 0) | ((fast != 0) & (differs != 0))
    tl.store(out + picture * rows * columns + block, moves.to(tl.float32), mask=exists)


@triton.jit(do_not_specialize=["places", "columns", "channels", "picture_stride", "channel_stride", "row_stride"])
def _over_blocks(
    values: tl.tensor,  # [B, C, SIDE rows, SIDE columns], rows of one piece
    mean: tl.tensor,  # [B, C, rows, columns], out
    most: tl.tensor,  # the same, or None: into ``mean``, int8, whether both are below their limits
    places: tl.tensor,  # rows * columns
    columns: tl.tensor,
    channels: tl.tensor,
    picture_stride: tl.tensor,
    channel_stride: tl.tensor,
    row_stride: tl.tensor,
    share: tl.tensor,  # of a position in its block
    limit_of_mean: tl.tensor,
    limit_of_most: tl.tensor,
    SIDE: tl.constexpr,
    SPAN: tl.constexpr,  # SIDE, or the power of two above it
    SOME: tl.constexpr,  # blocks of a program
) -> None:
    """Mean and largest of blocks, of one channel. Blocks lie beside each other, so that whole rows are read."""
    plane = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * SOME + tl.arange(0, SOME)
    exists = place < places
    inside = tl.arange(0, SPAN)
    there = exists[:, None] & (inside < SIDE)[None, :]
    corner = (place // columns) * SIDE * row_stride + (place % columns) * SIDE
    source = values + (plane // channels) * picture_stride + (plane % channels) * channel_stride
    row = source + (corner[:, None] + inside[None, :])
    total = tl.zeros([SOME, SPAN], dtype=tl.float32)
    largest = tl.full([SOME, SPAN], float("-inf"), dtype=tl.float32)
    for _ in tl.static_range(SIDE):
        value = tl.load(row, mask=there, other=0.0).to(tl.float32)
        total += value
        largest = tl.maximum(largest, tl.where(there, value, float("-inf")))
        row += row_stride
    made = plane * places + place
    averaged = tl.sum(total, axis=1) * share
    reached = tl.max(largest, axis=1)
    if most is None:
        below = (averaged < limit_of_mean) & (reached < limit_of_most)
        tl.store(mean + made, below.to(tl.int8), mask=exists)
    else:
        tl.store(mean + made, averaged, mask=exists)
        tl.store(most + made, reached, mask=exists)


@triton.jit(do_not_specialize=["places", "columns", "picture_stride", "row_stride"])
def _share_below(
    values: tl.tensor,  # [B, 1, SIDE rows, SIDE columns], rows of one piece
    out: tl.tensor,  # [B, rows, columns], out
    places: tl.tensor,  # rows * columns
    columns: tl.tensor,
    picture_stride: tl.tensor,
    row_stride: tl.tensor,
    limit: tl.tensor,
    share: tl.tensor,  # of a position in its block
    SIDE: tl.constexpr,
    SPAN: tl.constexpr,  # SIDE, or the power of two above it
    SOME: tl.constexpr,  # blocks of a program
) -> None:
    """The share of a block's values that are below the limit; as in ``_over_blocks``."""
    picture = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * SOME + tl.arange(0, SOME)
    exists = place < places
    inside = tl.arange(0, SPAN)
    there = exists[:, None] & (inside < SIDE)[None, :]
    corner = (place // columns) * SIDE * row_stride + (place % columns) * SIDE
    row = values + picture * picture_stride + (corner[:, None] + inside[None, :])
    count = tl.zeros([SOME, SPAN], dtype=tl.int32)
    for _ in tl.static_range(SIDE):
        value = tl.load(row, mask=there, other=0.0).to(tl.float32)
        count += (there & (value < limit)).to(tl.int32)
        row += row_stride
    below = tl.sum(count, axis=1).to(tl.float32) * share
    tl.store(out + picture * places + place, below, mask=exists)


@triton.jit
def _shades(
    pixel: tl.tensor, channel_stride: tl.tensor, there: tl.tensor, red: tl.tensor, green: tl.tensor, blue: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Green and brightness of pixels whose red is pointed to; as ``read_colours``."""
    r, g, b = read_colours(pixel, channel_stride, there)
    return g, red * r + green * g + blue * b


@triton.jit
def _contrasts(
    pixel: tl.tensor,  # to the red of each
    channel_stride: tl.tensor,
    row_stride: tl.tensor,
    between: tl.tensor,  # whether it has pixels on both sides
    among: tl.tensor,  # whether it has pixels above and below
    red: tl.tensor,
    green: tl.tensor,
    blue: tl.tensor,
    REACH: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """How much of an edge each pixel is part of, in green and in brightness; see ``masks._contrast``."""
    left_g, left = _shades(pixel - REACH, channel_stride, between, red, green, blue)
    right_g, right = _shades(pixel + REACH, channel_stride, between, red, green, blue)
    above_g, above = _shades(pixel - REACH * row_stride, channel_stride, among, red, green, blue)
    below_g, below = _shades(pixel + REACH * row_stride, channel_stride, among, red, green, blue)
    coloured = tl.maximum(tl.abs(right_g - left_g), tl.abs(below_g - above_g))
    return coloured, tl.maximum(tl.abs(right - left), tl.abs(below - above))


@triton.jit(
    do_not_specialize=[
        "height",
        "width",
        "picture_stride0",
        "channel_stride0",
        "row_stride0",
        "picture_stride1",
        "channel_stride1",
        "row_stride1",
        "picture_stride2",
        "channel_stride2",
        "row_stride2",
    ]
)
def _rooted_edges(
    frame0: tl.tensor,  # [B, 3, H, W], rows of one piece
    frame1: tl.tensor,  # the same
    changed: tl.tensor,  # [B, 2, H, W], rows of one piece
    edges: tl.tensor,  # [B, H / 2, W / 2], out
    same: tl.tensor,  # [B, H / 2, W / 2], out
    height: tl.tensor,
    width: tl.tensor,
    picture_stride0: tl.tensor,
    channel_stride0: tl.tensor,
    row_stride0: tl.tensor,
    picture_stride1: tl.tensor,
    channel_stride1: tl.tensor,
    row_stride1: tl.tensor,
    picture_stride2: tl.tensor,
    channel_stride2: tl.tensor,
    row_stride2: tl.tensor,
    red: tl.tensor,  # its weight in brightness
    green: tl.tensor,
    blue: tl.tensor,
    least: tl.tensor,  # ``SAME``
    share_colour: tl.tensor,
    share_luma: tl.tensor,
    edge: tl.tensor,
    REACH: tl.constexpr,
    DOWN: tl.constexpr,  # rows of 2x2 pixels of a program
    ACROSS: tl.constexpr,
) -> None:
    """The share of 2x2 pixels that are part of an edge of both frames, and whether all four show the same.

    Pixels above and below are ``REACH`` rows away, and a program reads rows of one tile of the picture, so that most of
    them are in the multiprocessor's cache. Upper and lower rows of the 2x2 are done in turn, both columns at once.
    """
    picture = tl.program_id(1).to(tl.int64)
    rows = height // 2
    columns = width // 2
    tiles = tl.cdiv(columns, ACROSS)
    inside = tl.arange(0, DOWN * ACROSS)
    row = (tl.program_id(0) // tiles) * DOWN + inside // ACROSS
    column = (tl.program_id(0) % tiles) * ACROSS + inside % ACROSS
    exists = (row < rows) & (column < columns)
    x = 2 * column[:, None] + tl.arange(0, 2)[None, :]
    there = tl.broadcast_to(exists[:, None], [DOWN * ACROSS, 2])
    between = there & (x >= REACH) & (x < width - REACH)
    frame0 += picture * picture_stride0
    frame1 += picture * picture_stride1
    changed += picture * picture_stride2
    rooted = tl.zeros([DOWN * ACROSS, 2], dtype=tl.int32)
    alike = tl.zeros([DOWN * ACROSS, 2], dtype=tl.int32)
    for line in tl.static_range(2):
        y = tl.broadcast_to((2 * row + line)[:, None], [DOWN * ACROSS, 2])
        among = there & (y >= REACH) & (y < height - REACH)
        coloured0, bright0 = _contrasts(
            frame0 + (y * row_stride0 + x), channel_stride0, row_stride0, between, among, red, green, blue, REACH
        )
        coloured1, bright1 = _contrasts(
            frame1 + (y * row_stride1 + x), channel_stride1, row_stride1, between, among, red, green, blue, REACH
        )
        coloured = tl.minimum(coloured0, coloured1)
        bright = tl.minimum(bright0, bright1)
        differs = changed + (y * row_stride2 + x)
        colours = tl.load(differs, mask=there, other=0.0).to(tl.float32)
        lumas = tl.load(differs + channel_stride2, mask=there, other=0.0).to(tl.float32)
        same_colours = colours < tl.maximum(coloured * share_colour, least)
        same_lumas = lumas < tl.maximum(bright * share_luma, least)
        rooted += ((same_colours & (coloured > edge)) | (same_lumas & (bright > edge))).to(tl.int32)
        alike += same_colours.to(tl.int32)
    made = (picture * rows + row) * columns + column
    tl.store(edges + made, tl.sum(rooted, axis=1).to(tl.float32) * 0.25, mask=exists)
    tl.store(same + made, (tl.sum(alike, axis=1) == 4).to(tl.float32), mask=exists)
