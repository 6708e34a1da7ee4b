"""What becomes of flow from level to level, for CUDA devices."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ugsp_net import gpu

BLOCK = 512
"""Positions of a plane that a program makes."""
CELLS = 128
"""Squares of 8x8 positions that a program makes means of, a thread's each."""


def smaller_flows(flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What ``network._smaller_flows`` returns."""
    batch, channels, height, width = flow.shape
    sizes = [(height >> step, width >> step) for step in (1, 2, 3)]
    made = [gpu.empty((batch, channels, *size), flow) for size in sizes]
    cells = sizes[2][0] * sizes[2][1]
    with gpu.on(flow.device):
        _halve_thrice[(triton.cdiv(cells, CELLS), batch * channels)](
            flow, *made, cells, sizes[2][1], channels, *flow.stride(), BLOCK=CELLS
        )
    return made[0], made[1], made[2]


def enlarged(begun: Tensor, flow: Tensor, found: Tensor) -> Tensor:
    """What ``network._enlarged`` returns."""
    batch, channels, height, width = begun.shape
    out = gpu.empty((batch, channels, height, width), begun)
    with gpu.on(begun.device):
        _enlarge[(triton.cdiv(height * width, BLOCK), batch)](
            begun,
            flow,
            found,
            out,
            height * width,
            width,
            *begun.stride(),
            *flow.stride(),
            *found.stride(),
            CHANNELS=channels,
            BLOCK=BLOCK,
        )
    return out


def bent(flow: Tensor, added: Tensor, pace: Tensor) -> Tensor:
    """What ``network._bent`` returns."""
    batch, channels, height, width = flow.shape
    out = gpu.empty((batch, channels, height, width), flow)
    with gpu.on(flow.device):
        _bend[(triton.cdiv(height * width, BLOCK), batch)](
            flow,
            added,
            pace.expand(batch, channels, 1, 1).contiguous(),
            out,
            height * width,
            width,
            *flow.stride(),
            *added.stride(),
            CHANNELS=channels,
            BLOCK=BLOCK,
            num_warps=8,
        )
    return out


@triton.jit(
    do_not_specialize=[
        "cells",
        "columns",
        "channels",
        "picture_stride",
        "channel_stride",
        "row_stride",
        "column_stride",
    ]
)
def _halve_thrice(
    flow: tl.tensor,  # [B, C, 8 rows, 8 columns] fp32
    once: tl.tensor,  # [B, C, 4 rows, 4 columns] fp32, out
    twice: tl.tensor,  # [B, C, 2 rows, 2 columns] fp32, out
    thrice: tl.tensor,  # [B, C, rows, columns] fp32, out
    cells: tl.tensor,  # rows * columns
    columns: tl.tensor,
    channels: tl.tensor,
    picture_stride: tl.tensor,
    channel_stride: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Means of 2x2 positions, in positions of twice the size, three times: a thread for each 8x8."""
    plane = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = cell < cells
    row = cell // columns
    column = cell % columns
    source = flow + (plane // channels) * picture_stride + (plane % channels) * channel_stride
    source += 8 * row * row_stride + 8 * column * column_stride
    once += plane * 16 * cells + 4 * row * (4 * columns) + 4 * column
    twice += plane * 4 * cells + 2 * row * (2 * columns) + 2 * column
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for quarter in tl.static_range(4):
        part = tl.zeros([BLOCK], dtype=tl.float32)
        for inner in tl.static_range(4):
            down = 2 * (quarter // 2) + inner // 2
            across = 2 * (quarter % 2) + inner % 2
            corner = source + 2 * down * row_stride + 2 * across * column_stride
            made = tl.load(corner, mask=exists, other=0.0)
            made += tl.load(corner + column_stride, mask=exists, other=0.0)
            made += tl.load(corner + row_stride, mask=exists, other=0.0)
            made += tl.load(corner + row_stride + column_stride, mask=exists, other=0.0)
            made *= 0.125
            tl.store(once + down * (4 * columns) + across, made, mask=exists)
            part += made
        part *= 0.125
        tl.store(twice + (quarter // 2) * (2 * columns) + quarter % 2, part, mask=exists)
        total += part
    tl.store(thrice + plane * cells + cell, total * 0.125, mask=exists)


@triton.jit
def _differs(
    flow: tl.tensor,
    found: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    found_row_stride: tl.tensor,
    found_column_stride: tl.tensor,
    exists: tl.tensor,
) -> tl.tensor:
    value = tl.load(flow + y * row_stride + x * column_stride, mask=exists, other=0.0)
    return value - tl.load(found + y * found_row_stride + x * found_column_stride, mask=exists, other=0.0)


@triton.jit(
    do_not_specialize=[
        "positions",
        "width",
        "begun_picture",
        "begun_channel",
        "begun_row",
        "begun_column",
        "flow_picture",
        "flow_channel",
        "flow_row",
        "flow_column",
        "found_picture",
        "found_channel",
        "found_row",
        "found_column",
    ]
)
def _enlarge(
    begun: tl.tensor,  # [B, CHANNELS, H, W] fp32, any strides, as those below
    flow: tl.tensor,  # [B, CHANNELS, H / 2, W / 2] fp32
    found: tl.tensor,  # the same
    out: tl.tensor,  # [B, CHANNELS, H, W] fp32, out
    positions: tl.tensor,  # H * W
    width: tl.tensor,
    begun_picture: tl.tensor,
    begun_channel: tl.tensor,
    begun_row: tl.tensor,
    begun_column: tl.tensor,
    flow_picture: tl.tensor,
    flow_channel: tl.tensor,
    flow_row: tl.tensor,
    flow_column: tl.tensor,
    found_picture: tl.tensor,
    found_channel: tl.tensor,
    found_row: tl.tensor,
    found_column: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """What was added to the flow that was found, enlarged bilinearly, in positions of the larger one."""
    picture = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = position < positions
    y = position // width
    x = position % width
    begun += picture * begun_picture
    flow += picture * flow_picture
    found += picture * found_picture
    out += picture * CHANNELS * positions
    # Every position lies between two rows and two columns, its own a quarter of a position away.
    row = y // 2
    column = x // 2
    other_row = tl.minimum(tl.maximum(row + 2 * (y % 2) - 1, 0), positions // width // 2 - 1)
    other_column = tl.minimum(tl.maximum(column + 2 * (x % 2) - 1, 0), width // 2 - 1)
    for _ in tl.static_range(CHANNELS):
        near = 0.75 * _differs(flow, found, row, column, flow_row, flow_column, found_row, found_column, exists)
        near += 0.25 * _differs(flow, found, row, other_column, flow_row, flow_column, found_row, found_column, exists)
        far = 0.75 * _differs(flow, found, other_row, column, flow_row, flow_column, found_row, found_column, exists)
        far += 0.25 * _differs(
            flow, found, other_row, other_column, flow_row, flow_column, found_row, found_column, exists
        )
        made = tl.load(begun + y * begun_row + x * begun_column, mask=exists, other=0.0)
        tl.store(out + position, made + 2.0 * (0.75 * near + 0.25 * far), mask=exists)
        begun += begun_channel
        flow += flow_channel
        found += found_channel
        out += positions


@triton.jit(
    do_not_specialize=[
        "positions",
        "width",
        "flow_picture",
        "flow_channel",
        "flow_row",
        "flow_column",
        "added_picture",
        "added_channel",
        "added_row",
        "added_column",
    ]
)
def _bend(
    flow: tl.tensor,  # [B, CHANNELS, H, W] fp32, any strides
    added: tl.tensor,  # [B, CHANNELS, H, W], any float type and strides
    pace: tl.tensor,  # [B, CHANNELS] fp32
    out: tl.tensor,  # [B, CHANNELS, H, W] fp32, out
    positions: tl.tensor,  # H * W
    width: tl.tensor,
    flow_picture: tl.tensor,
    flow_channel: tl.tensor,
    flow_row: tl.tensor,
    flow_column: tl.tensor,
    added_picture: tl.tensor,
    added_channel: tl.tensor,
    added_row: tl.tensor,
    added_column: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """What a level adds to the flow, times its pace. All channels at once: they may lie beside each other."""
    picture = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = position < positions
    y = position // width
    x = position % width
    flow += picture * flow_picture
    added += picture * added_picture
    out += picture * CHANNELS * positions
    for channel in tl.static_range(CHANNELS):
        more = tl.load(added + y * added_row + x * added_column, mask=exists, other=0.0).to(tl.float32)
        made = tl.load(flow + y * flow_row + x * flow_column, mask=exists, other=0.0)
        made += more * tl.load(pace + picture * CHANNELS + channel)
        tl.store(out + position, made, mask=exists)
        flow += flow_channel
        added += added_channel
        out += positions
