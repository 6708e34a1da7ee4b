"""``paths.trace`` and ``paths.carry``, for CUDA devices: every position by a thread.

A program takes a tile of positions of one picture, which lie next to each other both ways: what they read around
themselves is then in the multiprocessor's own cache. Nothing is read outside of the maps, wherever flow leads:
positions are limited as fp32, by comparisons that what is no number fails, before they become indices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ugsp_net import gpu, paths

ROWS, COLUMNS = 8, 32
"""Of a tile: powers of two. A warp reads 128 bytes in a row."""
TALL, TALL_WARPS = 32, 8
"""Rows of a tile of which sums over nine rows are made, little of which is read for two; with four warps it would take
more registers than there are."""
CHANNELS = 21
"""Of what ``trace`` returns; the kernels know their order."""
REACH = paths.AROUND // 2
assert (paths.FINER, sum(paths._SIDES)) == (2, CHANNELS)


def trace(
    flow: Tensor,
    before: Tensor | None = None,
    after: Tensor | None = None,
    intervals: Tensor | None = None,
    still: Tensor | None = None,
) -> Tensor:
    """What ``paths.trace`` returns."""
    batch, _, height, width = flow.shape
    flow = flow.contiguous()
    sides = [flow if beyond is None else beyond.contiguous() for beyond in (before, after)]
    which = {"BEFORE": before is not None, "AFTER": after is not None}
    with gpu.on(flow.device):
        intervals = flow.new_ones((batch, 2)) if intervals is None else intervals.contiguous()
        grid = _grid(batch, height, width)
        shares = gpu.empty((batch, 4, height, width), flow)
        parts = gpu.empty((batch, 4, grid[0] * grid[1]), flow)
        _agree[grid](
            flow,
            *sides,
            shares,
            parts,
            height,
            width,
            **which,
            NOISE=paths.NOISE,
            SHARE=paths.SHARE,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
        )
        totals, least = parts.sum(2), paths.LEAST_SHARE * height * width
        known = shares
        if before is not None or after is not None:
            known = gpu.empty((batch, 6, height, width), flow)
            _know[_grid(batch, height, width, TALL)](
                flow,
                *sides,
                shares,
                totals,
                intervals,
                known,
                height,
                width,
                least,
                **which,
                REACH=REACH,
                ROWS=TALL,
                COLUMNS=COLUMNS,
                num_warps=TALL_WARPS,
            )
        out = gpu.empty((batch, CHANNELS, height, width), flow)
        _tell[grid](
            flow,
            *sides,
            shares,
            totals,
            intervals,
            known,
            flow if still is None else still.contiguous(),
            out,
            height,
            width,
            least,
            **which,
            STILL=still is not None,
            REACH=REACH,
            BEHIND=paths.BEHIND,
            LEAST=paths.LEAST,
            ENOUGH=paths.ENOUGH,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
        )
    return out


def carry(known: Tensor, t: Tensor, into: Tensor | None = None) -> Tensor:
    """What ``paths.carry`` returns, to the order of its sums, which is another each time. known: from ``trace``."""
    batch, _, height, width = known.shape
    known, t = known.contiguous(), t.expand(batch).contiguous()
    tile = {"ROWS": ROWS, "COLUMNS": COLUMNS}
    with gpu.on(known.device):
        grid, frames = _grid(batch, height, width), _grid(2 * batch, height, width)
        ways = known.new_zeros((batch, 3, height, width), dtype=torch.float32)
        _spread_ways[frames](known, t, ways, height, width, **tile)
        landed = known.new_zeros((batch, 7, height, width), dtype=torch.float32)
        _spread[frames](known, t, ways, landed, height, width, LEAST=paths.LEAST, APART=paths.APART, **tile)
        small = gpu.empty((batch, 5, height, width), known)
        _settle[grid](
            known,
            t,
            landed,
            small,
            height,
            width,
            GUESS=paths.GUESS,
            DOUBT=paths.DOUBT,
            CERTAIN=paths.CERTAIN,
            **tile,
        )
        shape = batch, 6, 2 * height, 2 * width
        out = gpu.empty(shape, known) if into is None or into.shape != shape else into
        _enlarge[_grid(batch, 2 * height, 2 * width)](known, small, out, height, width, **tile)
    return out


def _grid(pictures: int, height: int, width: int, rows: int = ROWS) -> tuple[int, int, int]:
    """Programs across, down and for each picture."""
    return -(-width // COLUMNS), -(-height // rows), pictures


@triton.jit
def _positions(
    height: tl.tensor, width: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Row and column of a tile's positions, and which of them exist: [ROWS * COLUMNS] each."""
    place = tl.arange(0, ROWS * COLUMNS)
    y = tl.program_id(1) * ROWS + place // COLUMNS
    x = tl.program_id(0) * COLUMNS + place % COLUMNS
    return y, x, (y < height) & (x < width)


@triton.jit
def _between(position: tl.tensor, size: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Two neighbours between which a position lies, inside a map of that size, and how much of the second to take."""
    last = size - 1
    end = last.to(tl.float32)
    inside = tl.where(position > 0.0, position, 0.0)
    inside = tl.where(inside < end, inside, end)
    first = inside.to(tl.int32)
    return first, tl.minimum(first + 1, last), inside - first.to(tl.float32)


@triton.jit
def _mix(
    upper_left: tl.tensor,
    upper_right: tl.tensor,
    lower_left: tl.tensor,
    lower_right: tl.tensor,
    down: tl.tensor,
    across: tl.tensor,
) -> tl.tensor:
    """Bilinear mean of four neighbours."""
    upper = upper_left + across * (upper_right - upper_left)
    lower = lower_left + across * (lower_right - lower_left)
    return upper + down * (lower - upper)


@triton.jit
def _read(
    values: tl.tensor,  # [2, h, w] fp32
    y: tl.tensor,  # fp32, any
    x: tl.tensor,  # fp32, any
    exists: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """Both channels of a map at positions, outside of it at its border."""
    top, below, down = _between(y, height)
    left, right, across = _between(x, width)
    second = values + height * width
    upper = top * width
    lower = below * width
    return _mix(
        tl.load(values + (upper + left), mask=exists, other=0.0),
        tl.load(values + (upper + right), mask=exists, other=0.0),
        tl.load(values + (lower + left), mask=exists, other=0.0),
        tl.load(values + (lower + right), mask=exists, other=0.0),
        down,
        across,
    ), _mix(
        tl.load(second + (upper + left), mask=exists, other=0.0),
        tl.load(second + (upper + right), mask=exists, other=0.0),
        tl.load(second + (lower + left), mask=exists, other=0.0),
        tl.load(second + (lower + right), mask=exists, other=0.0),
        down,
        across,
    )


@triton.jit
def _agreement(
    there: tl.tensor,  # [2, h, w] fp32
    back: tl.tensor,  # [2, h, w] fp32
    share: tl.tensor,  # [h, w] fp32, out
    part: tl.tensor,  # [1] fp32, out: sum of them in this tile
    y: tl.tensor,
    x: tl.tensor,
    exists: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    NOISE: tl.constexpr,
    SHARE: tl.constexpr,
) -> None:
    """``paths._agreement``."""
    place = y * width + x
    way_x = tl.load(there + place, mask=exists, other=0.0)
    way_y = tl.load(there + height * width + place, mask=exists, other=0.0)
    back_x, back_y = _read(back, y.to(tl.float32) + way_y, x.to(tl.float32) + way_x, exists, height, width)
    off_x = way_x + back_x
    off_y = way_y + back_y
    scale = (way_x * way_x + way_y * way_y) * SHARE + NOISE
    agreement = tl.exp(-(off_x * off_x + off_y * off_y) / scale)
    tl.store(share + place, agreement, mask=exists)
    # Parts are added up by torch: atomic sums would differ from time to time, and here decide about a cut.
    tl.store(part, tl.sum(tl.where(exists, agreement, 0.0), axis=0))


@triton.jit(do_not_specialize=["height", "width"])
def _agree(
    flow: tl.tensor,  # [B, 4, h, w] fp32
    before: tl.tensor,  # [B, 4, h, w] fp32, read when BEFORE
    after: tl.tensor,  # [B, 4, h, w] fp32, read when AFTER
    shares: tl.tensor,  # [B, 4, h, w] fp32, out
    parts: tl.tensor,  # [B, 4, tiles] fp32, out: their sums, by tiles
    height: tl.tensor,
    width: tl.tensor,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    NOISE: tl.constexpr,
    SHARE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """How far flow is believed: from the first frame to the second, and back; to the frame before; to that after."""
    y, x, exists = _positions(height, width, ROWS, COLUMNS)
    picture = tl.program_id(2).to(tl.int64)
    area = height * width
    one = flow + picture * 4 * area
    other = one + 2 * area
    share = shares + picture * 4 * area
    tiles = tl.num_programs(0) * tl.num_programs(1)
    part = parts + picture * 4 * tiles + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    _agreement(one, other, share, part, y, x, exists, height, width, NOISE, SHARE)
    _agreement(other, one, share + area, part + tiles, y, x, exists, height, width, NOISE, SHARE)
    if BEFORE:
        toward = before + picture * 4 * area
        away = toward + 2 * area
        _agreement(away, toward, share + 2 * area, part + 2 * tiles, y, x, exists, height, width, NOISE, SHARE)
    if AFTER:
        away = after + picture * 4 * area
        toward = away + 2 * area
        _agreement(away, toward, share + 3 * area, part + 3 * tiles, y, x, exists, height, width, NOISE, SHARE)


@triton.jit
def _beyond(
    totals: tl.tensor,  # [B, 4] fp32
    intervals: tl.tensor,  # [B, 2] fp32
    least: tl.tensor,
    picture: tl.tensor,
    SIDE: tl.constexpr,  # 0: the first frame, and that before; 1: the second, and that after
) -> tuple[tl.tensor, tl.tensor]:
    """Whether the frame beyond tells anything, 1 or 0 (there is none, or a cut before it); how far away it is in time,
    never 0."""
    time = tl.load(intervals + picture * 2 + SIDE).to(tl.float32)
    there_is = time > 0.0
    # As paths._is_cut: a sum that is no number shows no cut.
    tells = tl.where(tl.load(totals + picture * 4 + 2 + SIDE) < least, 0.0, 1.0)
    return tl.where(there_is, tells, 0.0), tl.where(there_is, time, 1.0)


@triton.jit
def _rows_known(
    flow: tl.tensor,  # [4, h, w] fp32, of one picture as all here
    beyond: tl.tensor,  # [4, h, w] fp32
    shares: tl.tensor,  # [4, h, w] fp32
    tells: tl.tensor,
    time: tl.tensor,
    known: tl.tensor,  # [6, h, w] fp32, out
    y: tl.tensor,
    x: tl.tensor,
    exists: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    SIDE: tl.constexpr,
    REACH: tl.constexpr,
) -> None:
    """One frame's part of ``_know``."""
    area = height * width
    own = flow + 2 * SIDE * area
    away = beyond + (2 - 2 * SIDE) * area
    seen = shares + SIDE * area
    tracked = shares + (2 + SIDE) * area
    bends = 2.0 / (1.0 + time) * tells
    bend_x = tl.zeros_like(x).to(tl.float32)
    bend_y = tl.zeros_like(x).to(tl.float32)
    summed = tl.zeros_like(x).to(tl.float32)
    for step in range(2 * REACH + 1):
        row = y + (step - REACH)
        inside = exists & (row >= 0) & (row < height)
        place = row * width + x
        share = tl.load(seen + place, mask=inside, other=0.0) * tl.load(tracked + place, mask=inside, other=0.0)
        own_x = tl.load(own + place, mask=inside, other=0.0)
        own_y = tl.load(own + area + place, mask=inside, other=0.0)
        away_x = tl.load(away + place, mask=inside, other=0.0)
        away_y = tl.load(away + area + place, mask=inside, other=0.0)
        bend_x += share * (own_x + away_x / time)
        bend_y += share * (own_y + away_y / time)
        summed += share
    rows = (tl.minimum(y + REACH, height - 1) - tl.maximum(y - REACH, 0) + 1).to(tl.float32)
    target = known + 3 * SIDE * area + y * width + x
    tl.store(target, bend_x * bends / rows, mask=exists)
    tl.store(target + area, bend_y * bends / rows, mask=exists)
    tl.store(target + 2 * area, summed * tells / rows, mask=exists)


@triton.jit(do_not_specialize=["height", "width"])
def _know(
    flow: tl.tensor,  # [B, 4, h, w] fp32
    before: tl.tensor,  # [B, 4, h, w] fp32, read when BEFORE
    after: tl.tensor,  # [B, 4, h, w] fp32, read when AFTER
    shares: tl.tensor,  # [B, 4, h, w] fp32, from _agree
    totals: tl.tensor,  # [B, 4] fp32, sums of the shares
    intervals: tl.tensor,  # [B, 2]
    known: tl.tensor,  # [B, 6, h, w] fp32, out
    height: tl.tensor,
    width: tl.tensor,
    least: tl.tensor,  # sum of shares below which there is a cut
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    REACH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """What is known of both frames' accelerations, and how far (x, y, share), in the mean of the rows around: the first
    half of ``pooling.mean_around``."""
    y, x, exists = _positions(height, width, ROWS, COLUMNS)
    picture = tl.program_id(2).to(tl.int64)
    start = picture * 4 * height * width
    target = known + picture * 6 * height * width
    if BEFORE:
        tells, time = _beyond(totals, intervals, least, picture, 0)
        _rows_known(
            flow + start,
            before + start,
            shares + start,
            tells,
            time,
            target,
            y,
            x,
            exists,
            height,
            width,
            0,
            REACH,
        )
    if AFTER:
        tells, time = _beyond(totals, intervals, least, picture, 1)
        _rows_known(
            flow + start,
            after + start,
            shares + start,
            tells,
            time,
            target,
            y,
            x,
            exists,
            height,
            width,
            1,
            REACH,
        )


@triton.jit
def _tell_side(
    flow: tl.tensor,  # [4, h, w] fp32, of one picture as all here
    beyond: tl.tensor,  # [4, h, w] fp32, read when BEYOND
    shares: tl.tensor,  # [4, h, w] fp32
    tells: tl.tensor,
    time: tl.tensor,
    known: tl.tensor,  # [6, h, w] fp32, read when BEYOND
    out: tl.tensor,  # [21, h, w] fp32, out
    y: tl.tensor,
    x: tl.tensor,
    exists: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    SIDE: tl.constexpr,
    BEYOND: tl.constexpr,
    REACH: tl.constexpr,
    BEHIND: tl.constexpr,
    LEAST: tl.constexpr,
    ENOUGH: tl.constexpr,
) -> None:
    """``paths._side``, and the flow before it."""
    area = height * width
    place = y * width + x
    own_x = tl.load(flow + 2 * SIDE * area + place, mask=exists, other=0.0)
    own_y = tl.load(flow + (2 * SIDE + 1) * area + place, mask=exists, other=0.0)
    seen = tl.load(shares + SIDE * area + place, mask=exists, other=0.0)
    to_x = x.to(tl.float32) + own_x
    to_y = y.to(tl.float32) + own_y
    across = tl.maximum(-to_x, to_x - (width - 1).to(tl.float32))
    outside = tl.maximum(across, tl.maximum(-to_y, to_y - (height - 1).to(tl.float32)))
    hidden = tl.minimum(tl.maximum(outside, 0.0), 1.0)
    weight = seen + LEAST
    onward_x = own_x
    onward_y = own_y
    bend_x = tl.zeros_like(own_x)
    bend_y = tl.zeros_like(own_x)
    if BEYOND:
        away = beyond + (2 - 2 * SIDE) * area + place
        # How far both together are from standing still, or from going on evenly.
        turn_x = own_x + tl.load(away, mask=exists, other=0.0) / time
        turn_y = own_y + tl.load(away + area, mask=exists, other=0.0) / time
        tracked = tl.load(shares + (2 + SIDE) * area + place, mask=exists, other=0.0) * tells
        around_x = tl.zeros_like(own_x)
        around_y = tl.zeros_like(own_x)
        around = tl.zeros_like(own_x)
        for step in tl.static_range(2 * REACH + 1):
            column = x + (step - REACH)
            inside = exists & (column >= 0) & (column < width)
            there = known + 3 * SIDE * area + y * width + column
            around_x += tl.load(there, mask=inside, other=0.0)
            around_y += tl.load(there + area, mask=inside, other=0.0)
            around += tl.load(there + 2 * area, mask=inside, other=0.0)
        columns = (tl.minimum(x + REACH, width - 1) - tl.maximum(x - REACH, 0) + 1).to(tl.float32)
        # What is not known itself bends like what is known around it.
        share = seen * tracked
        lent = (1.0 - share) / tl.maximum(around / columns, 1 / ENOUGH) / columns
        bends = share * 2.0 / (1.0 + time)
        bend_x = bends * turn_x + lent * around_x
        bend_y = bends * turn_y + lent * around_y
        lost = (1.0 - seen) * tracked
        onward_x = own_x - lost * turn_x
        onward_y = own_y - lost * turn_y
        weight += tracked * BEHIND
        hidden = tl.maximum(hidden, lost)
    target = out + place
    tl.store(target + 2 * SIDE * area, own_x, mask=exists)
    tl.store(target + (2 * SIDE + 1) * area, own_y, mask=exists)
    tl.store(target + (4 + 2 * SIDE) * area, onward_x, mask=exists)
    tl.store(target + (5 + 2 * SIDE) * area, onward_y, mask=exists)
    tl.store(target + (8 + 2 * SIDE) * area, bend_x, mask=exists)
    tl.store(target + (9 + 2 * SIDE) * area, bend_y, mask=exists)
    tl.store(target + (12 + SIDE) * area, weight, mask=exists)
    tl.store(target + (14 + SIDE) * area, hidden, mask=exists)


@triton.jit(do_not_specialize=["height", "width"])
def _tell(
    flow: tl.tensor,  # [B, 4, h, w] fp32
    before: tl.tensor,  # [B, 4, h, w] fp32, read when BEFORE
    after: tl.tensor,  # [B, 4, h, w] fp32, read when AFTER
    shares: tl.tensor,  # [B, 4, h, w] fp32, from _agree
    totals: tl.tensor,  # [B, 4] fp32, sums of the shares
    intervals: tl.tensor,  # [B, 2]
    known: tl.tensor,  # [B, 6, h, w] fp32, from _know
    still: tl.tensor,  # [B, 1, 2 h, 2 w], read when STILL
    out: tl.tensor,  # [B, 21, h, w] fp32, out
    height: tl.tensor,
    width: tl.tensor,
    least: tl.tensor,  # sum of shares below which there is a cut
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    STILL: tl.constexpr,
    REACH: tl.constexpr,
    BEHIND: tl.constexpr,
    LEAST: tl.constexpr,
    ENOUGH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """All that ``trace`` returns."""
    y, x, exists = _positions(height, width, ROWS, COLUMNS)
    picture = tl.program_id(2).to(tl.int64)
    area = height * width
    start = picture * 4 * area
    told = out + picture * 21 * area
    tells, time = _beyond(totals, intervals, least, picture, 0)
    _tell_side(
        flow + start,
        before + start,
        shares + start,
        tells,
        time,
        known + picture * 6 * area,
        told,
        y,
        x,
        exists,
        height,
        width,
        0,
        BEFORE,
        REACH,
        BEHIND,
        LEAST,
        ENOUGH,
    )
    tells, time = _beyond(totals, intervals, least, picture, 1)
    _tell_side(
        flow + start,
        after + start,
        shares + start,
        tells,
        time,
        known + picture * 6 * area,
        told,
        y,
        x,
        exists,
        height,
        width,
        1,
        AFTER,
        REACH,
        BEHIND,
        LEAST,
        ENOUGH,
    )
    target = told + 16 * area + y * width + x
    first = tl.load(totals + picture * 4) < least
    second = tl.load(totals + picture * 4 + 1) < least
    cut = tl.where(first | second, 1.0, 0.0)
    tl.store(target, tl.zeros_like(x).to(tl.float32) + cut, mask=exists)
    corner = still + start + 4 * y * width + 2 * x
    for part in tl.static_range(4):
        stands = tl.zeros_like(x).to(tl.float32)
        if STILL:
            from_corner = (part // 2) * 2 * width + part % 2
            stands = tl.load(corner + from_corner, mask=exists, other=0.0).to(tl.float32)
        tl.store(target + (1 + part) * area, stands, mask=exists)


@triton.jit
def _landing(
    told: tl.tensor,  # [21, h, w] fp32, of one picture
    when: tl.tensor,
    frame: tl.tensor,  # 0 or 1
    y: tl.tensor,
    x: tl.tensor,
    exists: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Row and column at which a point of the first or second frame lands; its way from the first frame to the second
    and the curve's part of where it lands (x, y); its weight."""
    area = height * width
    point = told + y * width + x
    far = tl.where(frame == 0, when, 1.0 - when)
    curve = when * (1.0 - when) / 2.0
    way_x = tl.load(point + (4 + 2 * frame) * area, mask=exists, other=0.0)
    way_y = tl.load(point + (5 + 2 * frame) * area, mask=exists, other=0.0)
    bend_x = tl.load(point + (8 + 2 * frame) * area, mask=exists, other=0.0) * curve
    bend_y = tl.load(point + (9 + 2 * frame) * area, mask=exists, other=0.0) * curve
    # The cubic through four frames leans on the nearer two.
    weight = tl.load(point + (12 + frame) * area, mask=exists, other=0.0) * (2.0 - far)
    to_x = x.to(tl.float32) + (far * way_x - bend_x)
    to_y = y.to(tl.float32) + (far * way_y - bend_y)
    # What is farther out lands nowhere.
    to_x = tl.where(to_x > -2.0, to_x, -2.0)
    to_y = tl.where(to_y > -2.0, to_y, -2.0)
    end_x = (width + 1).to(tl.float32)
    end_y = (height + 1).to(tl.float32)
    to_x = tl.where(to_x < end_x, to_x, end_x)
    to_y = tl.where(to_y < end_y, to_y, end_y)
    sign = tl.where(frame == 0, 1.0, -1.0)
    return to_y, to_x, sign * way_x, sign * way_y, bend_x, bend_y, weight


@triton.jit
def _corner(
    y: tl.tensor,  # fp32, from _landing
    x: tl.tensor,  # fp32, from _landing
    weight: tl.tensor,
    exists: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    BELOW: tl.constexpr,  # 0 or 1
    RIGHT: tl.constexpr,  # 0 or 1
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One of the four positions over which a point is spread: its place in a map, its share of the weight, and whether
    it lies in the picture and gets anything."""
    top = tl.floor(y)
    left = tl.floor(x)
    down = y - top
    across = x - left
    share = weight * (down if BELOW == 1 else 1.0 - down) * (across if RIGHT == 1 else 1.0 - across)
    row = top.to(tl.int32) + BELOW
    column = left.to(tl.int32) + RIGHT
    inside = exists & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    # Of what stands still three corners get nothing, and an addition less is what saves time here.
    return row * width + column, share, inside & (share != 0.0)


@triton.jit(do_not_specialize=["height", "width"])
def _spread_ways(
    told: tl.tensor,  # [B, 21, h, w] fp32, from trace
    t: tl.tensor,  # [B]
    ways: tl.tensor,  # [B, 3, h, w] fp32, zeros, out
    height: tl.tensor,
    width: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Every point's way from the first frame to the second (x, y) where it lands, times its weight; sum of weights."""
    y, x, exists = _positions(height, width, ROWS, COLUMNS)
    frame = tl.program_id(2) % 2
    picture = (tl.program_id(2) // 2).to(tl.int64)
    area = height * width
    when = tl.load(t + picture).to(tl.float32)
    points = told + picture * 21 * area
    to_y, to_x, way_x, way_y, _, _, weight = _landing(points, when, frame, y, x, exists, height, width)
    target = ways + picture * 3 * area
    for corner in tl.static_range(4):
        place, share, inside = _corner(to_y, to_x, weight, exists, height, width, corner // 2, corner % 2)
        # Nobody waits for these sums but the next kernel: no order is needed among them.
        tl.atomic_add(target + place, share * way_x, mask=inside, sem="relaxed")
        tl.atomic_add(target + area + place, share * way_y, mask=inside, sem="relaxed")
        tl.atomic_add(target + 2 * area + place, share, mask=inside, sem="relaxed")


@triton.jit
def _mean(
    ways: tl.tensor,  # [3, h, w] fp32
    place: tl.tensor,
    exists: tl.tensor,
    area: tl.tensor,
    LEAST: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The mean way (x, y) of what landed at places of a map."""
    weight = tl.maximum(tl.load(ways + 2 * area + place, mask=exists, other=1.0), LEAST * LEAST)
    way_x = tl.load(ways + place, mask=exists, other=0.0)
    way_y = tl.load(ways + area + place, mask=exists, other=0.0)
    return way_x / weight, way_y / weight


@triton.jit(do_not_specialize=["height", "width"])
def _spread(
    told: tl.tensor,  # [B, 21, h, w] fp32, from trace
    t: tl.tensor,  # [B]
    ways: tl.tensor,  # [B, 3, h, w] fp32, from _spread_ways
    landed: tl.tensor,  # [B, 7, h, w] fp32, zeros, out
    height: tl.tensor,
    width: tl.tensor,
    LEAST: tl.constexpr,
    APART: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Of every point where it lands, times its weight: flow to the first and to the second frame (x, y), how sure it is
    that the first and that the second hides it; and the sum of the weights. Those whose way is far from the mean of
    what lands there count less."""
    y, x, exists = _positions(height, width, ROWS, COLUMNS)
    frame = tl.program_id(2) % 2
    picture = (tl.program_id(2) // 2).to(tl.int64)
    area = height * width
    when = tl.load(t + picture).to(tl.float32)
    points = told + picture * 21 * area
    to_y, to_x, way_x, way_y, bend_x, bend_y, weight = _landing(points, when, frame, y, x, exists, height, width)
    top, below, down = _between(to_y, height)
    left, right, across = _between(to_x, width)
    means = ways + picture * 3 * area
    x00, y00 = _mean(means, top * width + left, exists, area, LEAST)
    x01, y01 = _mean(means, top * width + right, exists, area, LEAST)
    x10, y10 = _mean(means, below * width + left, exists, area, LEAST)
    x11, y11 = _mean(means, below * width + right, exists, area, LEAST)
    off_x = _mix(x00, x01, x10, x11, down, across) - way_x
    off_y = _mix(y00, y01, y10, y11, down, across) - way_y
    # All the way from the first frame to the second tells motions apart; its parts differ by their shares of that.
    apart = (off_x * off_x + off_y * off_y) * (when * when + (1.0 - when) * (1.0 - when))
    weight = weight / (1.0 + apart / APART)
    hides = tl.load(points + (14 + frame) * area + y * width + x, mask=exists, other=0.0)
    first_x = bend_x - when * way_x
    first_y = bend_y - when * way_y
    second_x = bend_x + (1.0 - when) * way_x
    second_y = bend_y + (1.0 - when) * way_y
    target = landed + picture * 7 * area
    for corner in tl.static_range(4):
        place, share, inside = _corner(to_y, to_x, weight, exists, height, width, corner // 2, corner % 2)
        tl.atomic_add(target + place, share * first_x, mask=inside, sem="relaxed")
        tl.atomic_add(target + area + place, share * first_y, mask=inside, sem="relaxed")
        tl.atomic_add(target + 2 * area + place, share * second_x, mask=inside, sem="relaxed")
        tl.atomic_add(target + 3 * area + place, share * second_y, mask=inside, sem="relaxed")
        tl.atomic_add(target + (4 + frame) * area + place, share * hides, mask=inside & (hides != 0.0), sem="relaxed")
        tl.atomic_add(target + 6 * area + place, share, mask=inside, sem="relaxed")


@triton.jit(do_not_specialize=["height", "width"])
def _settle(
    told: tl.tensor,  # [B, 21, h, w] fp32, from trace
    t: tl.tensor,  # [B]
    landed: tl.tensor,  # [B, 7, h, w] fp32, from _spread
    small: tl.tensor,  # [B, 5, h, w] fp32, out
    height: tl.tensor,
    width: tl.tensor,
    GUESS: tl.constexpr,
    DOUBT: tl.constexpr,
    CERTAIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Flow t -> 0 and t -> 1 (x, y), in positions of the finer map, and the logarithm of the frames' shares."""
    y, x, exists = _positions(height, width, ROWS, COLUMNS)
    picture = tl.program_id(2).to(tl.int64)
    area = height * width
    place = y * width + x
    when = tl.load(t + picture).to(tl.float32)
    rest = 1.0 - when
    first = told + picture * 21 * area
    second = first + 2 * area
    # Without any paths: the other frame's flow, read where this one's leads.
    row = y.to(tl.float32)
    column = x.to(tl.float32)
    lead_x = tl.load(first + place, mask=exists, other=0.0)
    lead_y = tl.load(first + area + place, mask=exists, other=0.0)
    to0_x, to0_y = _read(second, row + rest * lead_y, column + rest * lead_x, exists, height, width)
    lead_x = tl.load(second + place, mask=exists, other=0.0)
    lead_y = tl.load(second + area + place, mask=exists, other=0.0)
    to1_x, to1_y = _read(first, row + when * lead_y, column + when * lead_x, exists, height, width)
    here = landed + picture * 7 * area + place
    known = tl.load(here + 6 * area, mask=exists, other=0.0) + GUESS
    cut = tl.load(first + 16 * area + place, mask=exists, other=0.0) > 0.0
    scale = tl.where(cut, 0.0, 2.0 / known)
    first_hides = tl.minimum(tl.load(here + 4 * area, mask=exists, other=0.0) / known, 1.0)
    second_hides = tl.minimum(tl.load(here + 5 * area, mask=exists, other=0.0) / known, 1.0)
    prior = tl.log(((1 + DOUBT) - second_hides) / ((1 + DOUBT) - first_hides))
    target = small + picture * 5 * area + place
    flow = tl.load(here, mask=exists, other=0.0) + to0_x * when * GUESS
    tl.store(target, flow * scale, mask=exists)
    flow = tl.load(here + area, mask=exists, other=0.0) + to0_y * when * GUESS
    tl.store(target + area, flow * scale, mask=exists)
    flow = tl.load(here + 2 * area, mask=exists, other=0.0) + to1_x * rest * GUESS
    tl.store(target + 2 * area, flow * scale, mask=exists)
    flow = tl.load(here + 3 * area, mask=exists, other=0.0) + to1_y * rest * GUESS
    tl.store(target + 3 * area, flow * scale, mask=exists)
    nearer = tl.where(when <= 0.5, CERTAIN, -CERTAIN)
    tl.store(target + 4 * area, tl.where(cut, nearer, prior), mask=exists)


@triton.jit(do_not_specialize=["height", "width"])
def _enlarge(
    told: tl.tensor,  # [B, 21, h, w] fp32, from trace
    small: tl.tensor,  # [B, 5, h, w] fp32, from _settle
    out: tl.tensor,  # [B, 6, 2 h, 2 w] fp32, out
    height: tl.tensor,  # of the small map
    width: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """The small map at twice the size, bilinearly, and behind it what stands still."""
    y, x, exists = _positions(2 * height, 2 * width, ROWS, COLUMNS)
    picture = tl.program_id(2).to(tl.int64)
    area = height * width
    row = y // 2
    column = x // 2
    # A position lies a quarter of the way from the nearest towards the one beside it, at the border itself.
    beside = tl.minimum(tl.maximum(row + (y % 2) * 2 - 1, 0), height - 1)
    along = tl.minimum(tl.maximum(column + (x % 2) * 2 - 1, 0), width - 1)
    source = small + picture * 5 * area
    target = out + picture * 24 * area + y * (2 * width) + x
    for channel in tl.static_range(5):
        made = _mix(
            tl.load(source + (row * width + column), mask=exists, other=0.0),
            tl.load(source + (row * width + along), mask=exists, other=0.0),
            tl.load(source + (beside * width + column), mask=exists, other=0.0),
            tl.load(source + (beside * width + along), mask=exists, other=0.0),
            0.25,
            0.25,
        )
        tl.store(target + channel * 4 * area, made, mask=exists)
        source += area
    still = told + picture * 21 * area + (17 + (y % 2) * 2 + x % 2) * area + row * width + column
    tl.store(target + 20 * area, tl.load(still, mask=exists, other=0.0), mask=exists)
