"""``rendering.put_rendered``, for CUDA devices: one kernel makes every pixel from what is at half the size and both
frames, and reads nothing where nothing moves. Importing this module imports triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ugsp_net import gpu
from ugsp_net.masks import block_side
from ugsp_net.sparse.squares import SquaresOutput
from ugsp_net.sparse.tiles import ConstantOutput

if TYPE_CHECKING:
    from ugsp_net.sparse import LastOutput

ROWS, COLUMNS = 4, 64
"""Pixels of a program, powers of two."""


def put_rendered(
    picture: Tensor,
    frame0: Tensor,
    frame1: Tensor,
    flow: Tensor,
    out: LastOutput,
    t: Tensor,
    pace: Tensor,
    prior: Tensor | None,
    still: Tensor | None,
    moving: Tensor | None,
) -> None:
    """What ``rendering.put_rendered`` does, without waiting for the device. Pictures and frames may be any views."""
    batch, _, rows, columns = flow.shape
    values, bands, reached = _last_output(out, 2 * rows, 2 * columns)
    reached_side = 1 if reached is None else block_side(reached, rows, columns)
    moving_side = 1 if moving is None else block_side(moving, 2 * rows, 2 * columns)
    # Two planes of what the search found, in place: only pictures are far apart.
    small = [one if one is None or one[0].is_contiguous() else one.contiguous() for one in (prior, still)]
    with gpu.on(flow.device):
        _put_pixels[(-(-2 * columns // COLUMNS), -(-2 * rows // ROWS), batch)](
            picture,
            frame0,
            frame1,
            flow.contiguous(),
            values,
            bands,
            reached,
            t.contiguous(),
            -torch.logit(t),
            pace.expand(batch, 4, 1, 1).contiguous(),
            *small,
            None if moving is None else moving.contiguous(),
            2 * rows,
            2 * columns,
            *(0 if one is None else one.stride(0) for one in small),
            *picture.stride(),
            *frame0.stride(),
            *frame1.stride(),
            REACHED_SIDE=reached_side,
            MOVING_SIDE=moving_side,
            SQUARES=isinstance(out, SquaresOutput),
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=4,
        )


def _last_output(out: LastOutput, height: int, width: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What was computed, squares or [B, 8, H, W]; bands for what was not; and the blocks that tell which is where. What
    does not apply is None."""
    if isinstance(out, ConstantOutput):
        return None, out.lines(0)[1].contiguous(), None
    if isinstance(out, SquaresOutput):
        if out.reached is None:
            return out.squares.contiguous(), None, None
        return out.squares.contiguous(), out.bands.contiguous(), out.reached.contiguous()
    return out.part(slice(0, height), slice(0, width)).contiguous(), None, None


@triton.jit(
    do_not_specialize=[
        "height",
        "width",
        "prior_step",
        "still_step",
        "picture_step",
        "plane_step",
        "row_step",
        "picture_step0",
        "plane_step0",
        "row_step0",
        "picture_step1",
        "plane_step1",
        "row_step1",
    ]
)
def _put_pixels(
    picture: tl.tensor,  # [B, 3, H, W] fp32, any strides: out
    frame0: tl.tensor,  # [B, 3, H, W] fp32, any strides
    frame1: tl.tensor,
    flow: tl.tensor,  # [B, 4, rows, columns] fp32, to both frames
    values: tl.tensor,  # [B, rows, columns, 32] if SQUARES, else [B, 8, H, W], any float type; None: bands everywhere
    bands: tl.tensor,  # [8, 8, W] fp32; None: values everywhere
    reached: tl.tensor,  # [B, rows, columns] / REACHED_SIDE: values, not bands, where it is not 0; None: one of them
    t: tl.tensor,  # [B] fp32
    likelier: tl.tensor,  # [B] fp32: the logarithm of how much nearer the first frame is
    pace: tl.tensor,  # [B, 4] fp32
    prior: tl.tensor,  # [B, rows, columns] fp32, pictures anywhere, or None
    still: tl.tensor,  # the same
    moving: tl.tensor,  # [B, H, W] / MOVING_SIDE: pixels are made where it is not 0; None: everywhere
    height: tl.tensor,
    width: tl.tensor,
    prior_step: tl.tensor,  # between pictures
    still_step: tl.tensor,
    picture_step: tl.tensor,
    plane_step: tl.tensor,
    row_step: tl.tensor,
    column_step: tl.tensor,
    picture_step0: tl.tensor,  # of frame0
    plane_step0: tl.tensor,
    row_step0: tl.tensor,
    column_step0: tl.tensor,
    picture_step1: tl.tensor,  # of frame1
    plane_step1: tl.tensor,
    row_step1: tl.tensor,
    column_step1: tl.tensor,
    REACHED_SIDE: tl.constexpr,  # positions
    MOVING_SIDE: tl.constexpr,  # pixels
    SQUARES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Make a rectangle of pixels: half as many rows and columns of positions, those at stride 2."""
    # Not the other way round: of numbers known to be even compilers make pairs, which are rearranged to be stored.
    rows = height // 2
    columns = width // 2
    positions = rows * columns
    number = tl.program_id(2).to(tl.int64)  # what lies between pictures may take 64 bits
    pixel = tl.arange(0, ROWS * COLUMNS)
    y = tl.program_id(1) * ROWS + pixel // COLUMNS
    x = tl.program_id(0) * COLUMNS + pixel % COLUMNS
    wanted = (y < height) & (x < width)
    # Beyond the last row and column theirs is read: where something may not be read, zeros take its place, one by one.
    y = tl.minimum(y, height - 1)
    x = tl.minimum(x, width - 1)
    row = y // 2
    column = x // 2
    picture += number * picture_step
    frame0 += number * picture_step0
    frame1 += number * picture_step1
    if moving is not None:
        across = width // MOVING_SIDE
        moving += number * (height // MOVING_SIDE) * across
        block = (y // MOVING_SIDE) * across + x // MOVING_SIDE
        moves = tl.load(moving + block, mask=wanted, other=0.0) != 0
        rest = wanted & (moves == 0)
        if tl.max(rest.to(tl.int32), axis=0) > 0:
            _blend(
                picture + y * row_step + x * column_step,
                frame0 + y * row_step0 + x * column_step0,
                frame1 + y * row_step1 + x * column_step1,
                plane_step,
                plane_step0,
                plane_step1,
                tl.load(t + number),
                rest,
            )
        wanted = wanted & moves
    if tl.max(wanted.to(tl.int32), axis=0) == 0:
        return

    # Where the last level's eight outputs are.
    computed = wanted
    constant = wanted
    if reached is not None:
        across = columns // REACHED_SIDE
        reached += number * (rows // REACHED_SIDE) * across
        block = (row // REACHED_SIDE) * across + column // REACHED_SIDE
        near = tl.load(reached + block, mask=wanted, other=0.0)
        computed = wanted & (near != 0)
        constant = wanted & (near == 0)
    if values is not None:
        values += number * 32 * positions
    if SQUARES:
        value_step = 4
        value = (row * columns + column) * 32 + (y % 2) * 2 + x % 2
    else:
        value_step = height * width
        value = y * width + x
    band = tl.where(y == 0, 0, tl.where(y == height - 1, 7, 2 + y % 2)) * width + x
    band_step = 8 * width

    # Every pixel lies between two rows and two columns of positions, its own a quarter of a position away.
    other_row = tl.minimum(tl.maximum(row + 2 * (y % 2) - 1, 0), rows - 1)
    other_column = tl.minimum(tl.maximum(column + 2 * (x % 2) - 1, 0), columns - 1)
    here = row * columns + column
    beside = row * columns + other_column
    below = other_row * columns + column
    diagonal = other_row * columns + other_column
    flow += number * 4 * positions
    flow_x0 = 2 * _enlarged(flow, here, beside, below, diagonal)
    flow_y0 = 2 * _enlarged(flow + positions, here, beside, below, diagonal)
    flow_x1 = 2 * _enlarged(flow + 2 * positions, here, beside, below, diagonal)
    flow_y1 = 2 * _enlarged(flow + 3 * positions, here, beside, below, diagonal)
    pace += number * 4
    flow_x0 += tl.load(pace) * _last(0, values, value, value_step, bands, band, band_step, computed, constant)
    flow_y0 += tl.load(pace + 1) * _last(1, values, value, value_step, bands, band, band_step, computed, constant)
    flow_x1 += tl.load(pace + 2) * _last(2, values, value, value_step, bands, band, band_step, computed, constant)
    flow_y1 += tl.load(pace + 3) * _last(3, values, value, value_step, bands, band, band_step, computed, constant)
    logit = _last(4, values, value, value_step, bands, band, band_step, computed, constant)
    logit += tl.load(likelier + number)
    if prior is not None:
        logit += _enlarged(prior + number * prior_step, here, beside, below, diagonal)
    blend = 1 / (1 + tl.exp(-logit))

    left0, right_share0 = _between(x, flow_x0, width)
    top0, lower_share0 = _between(y, flow_y0, height)
    left1, right_share1 = _between(x, flow_x1, width)
    top1, lower_share1 = _between(y, flow_y1, height)
    place0 = top0 * row_step0 + left0 * column_step0
    place1 = top1 * row_step1 + left1 * column_step1
    if still is not None:
        share = _enlarged(still + number * still_step, here, beside, below, diagonal)
        stands = wanted & (share > 0)
        when = tl.load(t + number)
    for channel in tl.static_range(3):
        warped0 = _sampled(frame0, place0, column_step0, row_step0, right_share0, lower_share0)
        warped1 = _sampled(frame1, place1, column_step1, row_step1, right_share1, lower_share1)
        made = warped1 + blend * (warped0 - warped1)
        made += _last(5 + channel, values, value, value_step, bands, band, band_step, computed, constant)
        if still is not None:
            # Captions and signs are small: elsewhere nothing is read.
            early = tl.load(frame0 + y * row_step0 + x * column_step0, mask=stands)
            late = tl.load(frame1 + y * row_step1 + x * column_step1, mask=stands)
            made = tl.where(stands, made + share * (early + when * (late - early) - made), made)
        tl.store(picture + y * row_step + x * column_step, made, mask=wanted)
        picture += plane_step
        frame0 += plane_step0
        frame1 += plane_step1


@triton.jit
def _blend(
    picture: tl.tensor,  # [N]: where each pixel's first colour is, out
    early: tl.tensor,
    late: tl.tensor,
    plane_step: tl.tensor,
    plane_step0: tl.tensor,
    plane_step1: tl.tensor,
    when: tl.tensor,
    wanted: tl.tensor,
) -> None:
    """Pixels of both frames, blended as they are."""
    for _ in tl.static_range(3):
        before = tl.load(early, mask=wanted)
        after = tl.load(late, mask=wanted)
        tl.store(picture, before + when * (after - before), mask=wanted)
        picture += plane_step
        early += plane_step0
        late += plane_step1


@triton.jit
def _enlarged(
    plane: tl.tensor,  # [rows, columns]
    here: tl.tensor,  # [N]: where each pixel's own position is ...
    beside: tl.tensor,  # ... and the three next to the pixel; at the border they are its own
    below: tl.tensor,
    diagonal: tl.tensor,
) -> tl.tensor:
    """Bilinear enlargement of a plane to twice its size, at N pixels."""
    near = 0.75 * tl.load(plane + here)
    near += 0.25 * tl.load(plane + beside)
    far = 0.75 * tl.load(plane + below)
    far += 0.25 * tl.load(plane + diagonal)
    return 0.75 * near + 0.25 * far


@triton.jit
def _last(
    OUTPUT: tl.constexpr,
    values: tl.tensor,
    value: tl.tensor,  # [N]: where each pixel's first output is ...
    value_step: tl.tensor,  # ... and how far it is to the next
    bands: tl.tensor,
    band: tl.tensor,  # [N]
    band_step: tl.tensor,
    computed: tl.tensor,  # [N]: which pixels read values ...
    constant: tl.tensor,  # ... and which read bands
) -> tl.tensor:
    """One of the last level's outputs at N pixels, fp32. What is not computed is never read: it may be anything."""
    if bands is None:
        told = tl.load(values + value + OUTPUT * value_step, mask=computed).to(tl.float32)
    else:
        told = tl.load(bands + band + OUTPUT * band_step, mask=constant)
        if values is not None:
            made = tl.load(values + value + OUTPUT * value_step, mask=computed).to(tl.float32)
            told = tl.where(computed, made, told)
    return told


@triton.jit
def _between(start: tl.tensor, flow: tl.tensor, length: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Where flow leads along one side of a picture: the first of the two pixels it lies between, and the share of the
    second. Outside it is the border, and of what is no number the first pixel."""
    most = (length - 1).to(tl.float32)
    there = start.to(tl.float32) + flow
    there = tl.where(there > 0, there, 0.0)
    there = tl.where(there < most, there, most)
    first = tl.minimum(there.to(tl.int32), length - 2)
    return first, there - first.to(tl.float32)


@triton.jit
def _sampled(
    plane: tl.tensor,
    place: tl.tensor,  # [N]: of the upper left one of four pixels
    right: tl.tensor,  # to the next column
    down: tl.tensor,  # to the next row
    right_share: tl.tensor,  # [N]
    lower_share: tl.tensor,  # [N]
) -> tl.tensor:
    """A plane, read bilinearly between pixels."""
    upper = tl.load(plane + place)
    upper += right_share * (tl.load(plane + place + right) - upper)
    place += down
    lower = tl.load(plane + place)
    lower += right_share * (tl.load(plane + place + right) - lower)
    return upper + lower_share * (lower - upper)
