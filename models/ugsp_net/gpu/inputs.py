"""A level's input where its mask needs it, for CUDA devices: what is read at a position is written beside each other at
once, and how well both frames match nearby is made of what was written. Importing this module imports triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ugsp_net import gpu
from ugsp_net.blocks import LEAKY_SLOPE, Activation, Conv, Convolutions
from ugsp_net.sparse.triton_kernels import INTERPRETED
from ugsp_net.sparse.triton_level import padded, precision

if TYPE_CHECKING:
    from ugsp_net.sparse import Matching, SparseInputs

BLOCK = 2048
"""Numbers of a map that a program reads at each corner."""
ACROSS = 16
"""Columns of positions of a program, that pruned blocks are skipped and neighbours are still in the cache."""
MATCHED_SIDE = 8
"""Of the squares of positions in which a program matches: they have most of what is around them in common."""


def rows(inputs: SparseInputs, mask: Tensor, side: int) -> Tensor:
    """What ``triton_level.run_rows_triton`` reads, [B * H * W, padded channels] of the activations' type: a level's
    inputs, then zeros, at active positions and those beside them. Anywhere else it may hold anything.

    mask: [B, 1, rows, columns], active where it is not 0; side: positions along a block's side.
    """
    left, right, above = (_channels_last(one) for one in (inputs.left, inputs.right, inputs.above))
    flow = _in_planes(inputs.flow)
    mask = mask.float().contiguous()
    batch, _, height, width = flow.shape
    channels, more = left.shape[1], above.shape[1]
    conv, slopes = (None, None) if inputs.matching is None else _reducer(inputs.matching)
    radius = 0 if inputs.matching is None else inputs.matching.radius
    told = 2 * channels + more + (0 if conv is None else conv.out_channels)
    pitch = padded(told + 4 + (inputs.t is not None))
    out = gpu.empty((batch * height * width, pitch), flow, inputs.dtype)
    down = max(1, BLOCK // gpu.power_of_two(max(channels, more)) // ACROSS)
    with gpu.on(flow.device):
        _join[(triton.cdiv(width, ACROSS) * triton.cdiv(height, down), batch)](
            mask,
            *_lying(left, right, inputs.places),
            above,
            flow,
            None if inputs.t is None else inputs.t.float().contiguous(),
            out,
            float(inputs.bound),
            height,
            width,
            *_strides(left),
            *_strides(right),
            *_strides(above),
            *flow.stride()[:2],
            CHANNELS=channels,
            MORE=more,
            TOLD=told,
            FLOW=True,
            PITCH=pitch,
            RADIUS=radius,
            SIDE=side,
            BLOCK_CHANNELS=gpu.power_of_two(channels),
            BLOCK_MORE=gpu.power_of_two(more),
            BLOCK_REST=gpu.power_of_two(pitch - told),
            DOWN=down,
            ACROSS=ACROSS,
            num_warps=2,
        )
        if conv is not None:
            squares = triton.cdiv(width, MATCHED_SIDE) * triton.cdiv(height, MATCHED_SIDE)
            _match[(squares, batch)](
                mask,
                out,
                conv.weight.flatten(1).contiguous(),
                conv.bias,
                slopes,
                height,
                width,
                LEAKY_SLOPE,
                CHANNELS=channels,
                FIRST=2 * channels + more,
                MATCHED=conv.out_channels,
                PITCH=pitch,
                RADIUS=radius,
                SIDE=side,
                PRECISION=precision(inputs.dtype),
                UPCAST=INTERPRETED,
                BLOCK_CHANNELS=gpu.power_of_two(channels),
                BLOCK_FOUND=max(16, gpu.power_of_two((2 * radius + 1) ** 2)),
                BLOCK_MATCHED=max(16, gpu.power_of_two(conv.out_channels)),
                DOWN=MATCHED_SIDE,
                ACROSS=MATCHED_SIDE,
                num_warps=4,
            )
    return out


def coarsest(
    left: Tensor,
    right: Tensor,
    flow: Tensor,
    t: Tensor | None,
    dtype: torch.dtype,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """What the coarsest level reads, [B, 2 C (+ 1), H, W] of a type: both frames' features [B, C, H, W] where their
    flow [B, 4, H, W] points to, and the instants [B]. Channels last, at a pitch that ``convolution`` reads in place.

    places: as in ``SparseInputs``.
    """
    left, right, flow = _channels_last(left), _channels_last(right), _in_planes(flow)
    batch, channels, height, width = left.shape
    told = 2 * channels
    inputs = told + (t is not None)
    pitch = padded(inputs)
    out = gpu.empty((batch, height, width, pitch), flow, dtype)
    down = max(1, BLOCK // gpu.power_of_two(channels) // ACROSS)
    with gpu.on(flow.device):
        _join[(triton.cdiv(width, ACROSS) * triton.cdiv(height, down), batch)](
            None,
            *_lying(left, right, places),
            flow,
            flow,
            None if t is None else t.float().contiguous(),
            out,
            0.0,
            height,
            width,
            *_strides(left),
            *_strides(right),
            0,
            0,
            0,
            *flow.stride()[:2],
            CHANNELS=channels,
            MORE=0,
            TOLD=told,
            FLOW=False,
            PITCH=pitch,
            RADIUS=0,
            SIDE=1,
            BLOCK_CHANNELS=gpu.power_of_two(channels),
            BLOCK_MORE=1,
            BLOCK_REST=gpu.power_of_two(max(1, pitch - told)),
            DOWN=down,
            ACROSS=ACROSS,
            num_warps=4,
        )
    return out[..., :inputs].permute(0, 3, 1, 2)


def _lying(
    left: Tensor, right: Tensor, places: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Both maps, and where each picture of them lies, if that is told; then they tell their type alone."""
    if places is None:
        return left, right, None, None
    nothing = places[0].new_empty(1, dtype=left.dtype)
    return nothing, nothing, *places


def _in_planes(flow: Tensor) -> Tensor:
    """Flow in fp32 whose rows lie one behind the other."""
    flow = flow.float()
    return flow if flow.stride(3) == 1 and flow.stride(2) == flow.shape[3] else flow.contiguous()


def _channels_last(source: Tensor) -> Tensor:
    """A map [B, C, H, W] whose channels lie one behind the other, whatever lies between positions."""
    return source if source.stride(1) == 1 else source.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _strides(source: Tensor) -> tuple[int, int, int]:
    """From picture to picture, row to row and column to column."""
    return source.stride(0), source.stride(2), source.stride(3)


def _reducer(how: Matching) -> tuple[Conv, Tensor | None]:
    """The 1x1 convolution that reduces a correlation, and the slopes of the PReLU after it; None: a leaky ReLU."""
    conv, activation = how.reduce if isinstance(how.reduce, Convolutions) else (None, None)
    if not isinstance(conv, Conv) or conv.bias is None or not isinstance(activation, Activation):
        raise TypeError("kernels reduce a correlation by a convolution and its activation")
    return conv, activation.slope


@triton.jit(do_not_specialize=["bound", "height", "width", "flow_picture", "flow_plane"])
def _join(
    mask: tl.tensor,  # [B, H / SIDE, W / SIDE] fp32, or None: everything is needed
    left: tl.tensor,  # [B, H, W, CHANNELS], any float type and strides, but channels are neighbours
    right: tl.tensor,  # the same
    left_places: tl.tensor,  # [B] int64: addresses of the pictures of ``left``, from 16 bytes on; None: as it tells
    right_places: tl.tensor,  # the same
    above: tl.tensor,  # [B, H / 2, W / 2, MORE], the same
    flow: tl.tensor,  # [B, 4, H, W] fp32, rows of one piece below each other
    t: tl.tensor,  # [B] fp32, or None
    target: tl.tensor,  # [B, H, W, PITCH], out
    bound: tl.tensor,  # fp32: longer flow is told as this
    height: tl.tensor,
    width: tl.tensor,
    left_picture: tl.tensor,  # strides: of those of 16 channels it is known that several are read at once
    left_row: tl.tensor,
    left_column: tl.tensor,
    right_picture: tl.tensor,
    right_row: tl.tensor,
    right_column: tl.tensor,
    above_picture: tl.tensor,
    above_row: tl.tensor,
    above_column: tl.tensor,
    flow_picture: tl.tensor,
    flow_plane: tl.tensor,
    CHANNELS: tl.constexpr,
    MORE: tl.constexpr,
    TOLD: tl.constexpr,  # channels before those of the flow: what is matched is among them
    FLOW: tl.constexpr,  # whether flow is told
    PITCH: tl.constexpr,
    RADIUS: tl.constexpr,  # positions around those that are needed at which the right map is needed too
    SIDE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_MORE: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
) -> None:
    """Write both warped maps, the enlarged one, the flow, the instant and zeros of DOWN x ACROSS positions, as far as
    they are needed; all but what is matched."""
    picture = tl.program_id(1).to(tl.int64)
    y, x, exists = _positions(height, width, DOWN, ACROSS)
    needed = exists
    if mask is not None:
        needed = exists & _active_within(1, mask, picture, y, x, height, width, SIDE)
    matched = needed
    if RADIUS > 0:
        matched = exists & _active_within(1 + RADIUS, mask, picture, y, x, height, width, SIDE)
    if tl.max(matched.to(tl.int32), axis=0) == 0:
        return
    at_x = x.to(tl.float32)
    at_y = y.to(tl.float32)
    start = target + ((picture * height + y) * width + x) * PITCH
    place = flow + picture * flow_picture + (y * width + x)
    left_x = tl.load(place, mask=needed, other=0.0)
    left_y = tl.load(place + flow_plane, mask=needed, other=0.0)
    right_x = tl.load(place + 2 * flow_plane, mask=matched, other=0.0)
    right_y = tl.load(place + 3 * flow_plane, mask=matched, other=0.0)

    if left_places is None:
        left += picture * left_picture
        right += picture * right_picture
    else:
        left = _lies_at(left_places + picture, left.dtype)
        right = _lies_at(right_places + picture, left.dtype)
    read = _between(
        left, at_x + left_x, at_y + left_y, needed, height, width, left_row, left_column, CHANNELS, BLOCK_CHANNELS
    )
    _write(start, read, needed, CHANNELS, BLOCK_CHANNELS)
    read = _between(
        right, at_x + right_x, at_y + right_y, matched, height, width, right_row, right_column, CHANNELS, BLOCK_CHANNELS
    )
    _write(start + CHANNELS, read, matched, CHANNELS, BLOCK_CHANNELS)
    if MORE > 0:
        # Pixel centres, not pixel corners, lie on each other.
        above += picture * above_picture
        above_x = 0.5 * at_x - 0.25
        above_y = 0.5 * at_y - 0.25
        read = _between(
            above, above_x, above_y, needed, height // 2, width // 2, above_row, above_column, MORE, BLOCK_MORE
        )
        _write(start + 2 * CHANNELS, read, needed, MORE, BLOCK_MORE)

    column = tl.arange(0, BLOCK_REST)[None, :]
    rest = tl.zeros([DOWN * ACROSS, BLOCK_REST], dtype=tl.float32)
    if FLOW:
        rest = tl.where(column == 0, _bounded(left_x, bound)[:, None], rest)
        rest = tl.where(column == 1, _bounded(left_y, bound)[:, None], rest)
        rest = tl.where(column == 2, _bounded(right_x, bound)[:, None], rest)
        rest = tl.where(column == 3, _bounded(right_y, bound)[:, None], rest)
    if t is not None:
        rest = tl.where(column == (4 if FLOW else 0), tl.load(t + picture), rest)
    _write(start + TOLD, rest, needed, PITCH - TOLD, BLOCK_REST)


@triton.jit
def _lies_at(place: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """What an address points to that is pointed to."""
    return tl.multiple_of(tl.multiple_of(tl.load(place), 16).to(KIND), 16)


@triton.jit(do_not_specialize=["height", "width", "leak"])
def _match(
    mask: tl.tensor,  # [B, H / SIDE, W / SIDE] fp32
    rows: tl.tensor,  # [B, H, W, PITCH]: the left map, the right one, and more; out: from FIRST on, what is matched
    weight: tl.tensor,  # [MATCHED, (2 RADIUS + 1)^2], any float type
    bias: tl.tensor,  # [MATCHED], any float type
    slopes: tl.tensor,  # the same, or None
    height: tl.tensor,
    width: tl.tensor,
    leak: tl.tensor,  # fp32: the slope without slopes
    CHANNELS: tl.constexpr,
    FIRST: tl.constexpr,
    MATCHED: tl.constexpr,
    PITCH: tl.constexpr,
    RADIUS: tl.constexpr,
    SIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,  # multiply in fp32: the interpreter cannot multiply bf16
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_FOUND: tl.constexpr,
    BLOCK_MATCHED: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
) -> None:
    """Correlate the left map of DOWN x ACROSS positions with the right one around each, and reduce what is found."""
    SPAN: tl.constexpr = 2 * RADIUS + 1
    picture = tl.program_id(1).to(tl.int64)
    y, x, exists = _positions(height, width, DOWN, ACROSS)
    needed = exists & _active_within(1, mask, picture, y, x, height, width, SIDE)
    if tl.max(needed.to(tl.int32), axis=0) == 0:
        return
    start = rows + ((picture * height + y) * width + x) * PITCH
    one = _unit_length(start, needed, CHANNELS, BLOCK_CHANNELS)
    # What is found at each displacement goes to its column, so that the reduction is one matrix product.
    displacement = tl.arange(0, BLOCK_FOUND)
    found = tl.zeros([DOWN * ACROSS, BLOCK_FOUND], dtype=tl.float32)
    for down in range(SPAN):
        there_y = y + (down - RADIUS)
        for across in tl.static_range(SPAN):
            there_x = x + (across - RADIUS)
            inside = needed & (there_y >= 0) & (there_y < height) & (there_x >= 0) & (there_x < width)
            there = start + ((down - RADIUS) * width + (across - RADIUS)) * PITCH + CHANNELS
            other = _unit_length(there, inside, CHANNELS, BLOCK_CHANNELS)
            similar = tl.sum(one * other, axis=1)
            found = tl.where((displacement == down * SPAN + across)[None, :], similar[:, None], found)
    channel = tl.arange(0, BLOCK_MATCHED)
    weights = tl.load(
        weight + channel[None, :] * (SPAN * SPAN) + displacement[:, None],
        mask=(channel < MATCHED)[None, :] & (displacement < SPAN * SPAN)[:, None],
        other=0.0,
    )
    found = found.to(rows.dtype.element_ty)
    weights = weights.to(rows.dtype.element_ty)
    if UPCAST:
        found = found.to(tl.float32)
        weights = weights.to(tl.float32)
    sums = tl.dot(found, weights, input_precision=PRECISION)
    added = tl.load(bias + channel, mask=channel < MATCHED, other=0.0).to(rows.dtype.element_ty)
    sums += added.to(tl.float32)[None, :]
    if slopes is None:
        sums = tl.where(sums >= 0, sums, sums * leak)
    else:
        slope = tl.load(slopes + channel, mask=channel < MATCHED, other=0.0).to(tl.float32)
        sums = tl.where(sums >= 0, sums, sums * slope[None, :])
    _write(start + FIRST, sums, needed, MATCHED, BLOCK_MATCHED)


@triton.jit
def _positions(
    height: tl.tensor, width: tl.tensor, DOWN: tl.constexpr, ACROSS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Row and column of each of a program's DOWN * ACROSS positions, and which of them there are."""
    inside = tl.arange(0, DOWN * ACROSS)
    along = tl.cdiv(width, ACROSS)
    y = (tl.program_id(0) // along) * DOWN + inside // ACROSS
    x = (tl.program_id(0) % along) * ACROSS + inside % ACROSS
    return y, x, (y < height) & (x < width)


@triton.jit
def _active_within(
    REACH: tl.constexpr,
    mask: tl.tensor,
    picture: tl.tensor,
    y: tl.tensor,  # [N]
    x: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    SIDE: tl.constexpr,
) -> tl.tensor:
    """Whether a block is active that reaches to within REACH rows and columns, [N] bool."""
    # No block between the first and the last sample is narrower than a step. What is outside the picture counts as its
    # border, which is no farther away.
    samples: tl.constexpr = (2 * REACH + SIDE - 1) // SIDE + 1
    active = tl.zeros_like(y)
    for row in tl.static_range(samples):
        down = tl.minimum(y + (row * SIDE - REACH), y + REACH)
        down = tl.minimum(tl.maximum(down, 0), height - 1) // SIDE
        for column in tl.static_range(samples):
            right = tl.minimum(x + (column * SIDE - REACH), x + REACH)
            right = tl.minimum(tl.maximum(right, 0), width - 1) // SIDE
            entry = (picture * (height // SIDE) + down) * (width // SIDE) + right
            active |= (tl.load(mask + entry) != 0).to(tl.int32)
    return active != 0


@triton.jit
def _between(
    source: tl.tensor,  # of a picture
    x: tl.tensor,  # [N] fp32, in positions of the map
    y: tl.tensor,
    wanted: tl.tensor,  # [N]
    height: tl.tensor,
    width: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """A map between its positions, border values repeated, [N, BLOCK] fp32; what is no number reads the first one."""
    left, x = _corner(x, width)
    top, y = _corner(y, height)
    channel = tl.arange(0, BLOCK)
    there = wanted[:, None] & (channel < CHANNELS)[None, :]
    place = source + (top.to(tl.int64) * row_stride + left.to(tl.int64) * column_stride)[:, None] + channel[None, :]
    # In a map of one row or column there is nothing beyond the corner, and nothing of it is wanted.
    right = tl.minimum(width - 1, 1) * column_stride
    below = tl.minimum(height - 1, 1) * row_stride
    diagonal = x * y
    read = (1 - x - y + diagonal)[:, None] * tl.load(place, mask=there, other=0.0).to(tl.float32)
    read += (x - diagonal)[:, None] * tl.load(place + right, mask=there, other=0.0).to(tl.float32)
    place += below
    read += (y - diagonal)[:, None] * tl.load(place, mask=there, other=0.0).to(tl.float32)
    read += diagonal[:, None] * tl.load(place + right, mask=there, other=0.0).to(tl.float32)
    return read


@triton.jit
def _corner(at: tl.tensor, length: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The first of the two positions between which a place lies, as int32, and how far beyond it, from 0 to 1."""
    most = (length - 1).to(tl.float32)
    at = tl.where(at > 0.0, at, 0.0)
    at = tl.where(at < most, at, most)
    first = tl.minimum(at.to(tl.int32), tl.maximum(length - 2, 0))
    return first, at - first.to(tl.float32)


@triton.jit
def _unit_length(
    start: tl.tensor,  # [N] pointers
    wanted: tl.tensor,  # [N]
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Numbers from each pointer on, scaled to length 1 and rounded to their type, [N, BLOCK] fp32; zeros where they are
    not wanted."""
    channel = tl.arange(0, BLOCK)
    there = wanted[:, None] & (channel < CHANNELS)[None, :]
    read = tl.load(start[:, None] + channel[None, :], mask=there, other=0.0)
    long = read.to(tl.float32)
    scaled = long * tl.rsqrt(tl.sum(long * long, axis=1) + 1e-6)[:, None]
    return scaled.to(read.dtype).to(tl.float32)


@triton.jit
def _bounded(value: tl.tensor, bound: tl.tensor) -> tl.tensor:
    """As ``Tensor.clamp``: what is no number stays so."""
    value = tl.where(value > bound, bound, value)
    return tl.where(value < -bound, -bound, value)


@triton.jit
def _write(
    start: tl.tensor,  # [N] pointers
    values: tl.tensor,  # [N, BLOCK]
    wanted: tl.tensor,  # [N]
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Store the first of each row's values."""
    channel = tl.arange(0, BLOCK)
    tl.store(
        start[:, None] + channel[None, :],
        values.to(start.dtype.element_ty),
        mask=wanted[:, None] & (channel < CHANNELS)[None, :],
    )
