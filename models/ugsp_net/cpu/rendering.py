"""``rendering.put_rendered``, for processors: every pixel is made at once, and blended where nothing moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ugsp_net.cpu import products
from ugsp_net.cpu.products import LANES, LINES, configure, multiply, release
from ugsp_net.cpu.vectors import (
    allocating,
    as_array,
    compiled,
    exp,
    fetch,
    flat,
    inlined,
    load,
    load4,
    load_pairs,
    plain,
    store,
)
from ugsp_net.cpu.winograd import COLUMNS, ROWS, accumulate, begin, put
from ugsp_net.masks import block_side

if TYPE_CHECKING:
    from ugsp_net.sparse import LastOutput

PLANES = 5
"""Of what is enlarged: flow to both frames, and the logarithm of how many times more of the first is to be seen."""
OUTPUTS = 8
"""Of the last level: these, and what is added to red, green and blue."""
TAPS = 16
"""Pixels of each position of the last level that it makes a part of."""
AHEAD = 48
"""Pixels for which memory is asked before they are read: where these are is the flow's choice, which no processor
foresees. The last step took a third longer without that, and with 24 or 96."""
NEAR = 32
"""Pixels that do not move between two runs of such that do, up to which these are made as one."""
BORDER = 4
"""Numbers before and after those of a run."""


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
    """What ``rendering.put_rendered`` does."""
    height, width = frame0.shape[-2:]
    everywhere = moving is None
    moving = flow.new_ones((len(flow), 1, height // 8, width // 8)) if moving is None else moving
    side = block_side(moving, height, width)
    for index in range(len(picture)):
        when, made, there = float(t[index]), flat(picture[index]), plain(moving[index, 0])
        frames = flat(frame0[index]), flat(frame1[index])
        likelier = np.float32(np.log((1 - when) / when))
        before = _NOTHING if prior is None else plain(prior[index, 0])
        added = [as_array(values.contiguous()) for values in out.lines(index)]
        # The matrix unit is for what is bf16.
        unit = products.unit() if added[3].ndim == 1 else None
        how = plain(flow[index]), *added, likelier, plain(pace[index, :, 0, 0]), before
        _render(unit, made, *frames, *how, there, side)
        if not everywhere:
            _blend(made, *frames, np.float32(when), there, side)
        if still is not None:
            _put_still(made, *frames, plain(still[index, 0]), np.float32(when), there, side)


_NOTHING = np.empty((0, 0), np.float32)


@inlined
def _blended(frame0: Any, frame1: Any, channel: int, at: Any, shares: Any, x: int) -> Any:
    """Eight pixels of a run from the x-th on, of what both frames show where they are read, of one colour."""
    return _shared(frame0, 0, channel, at, shares, x) + _shared(frame1, 1, channel, at, shares, x)


@inlined
def _shared(planes: Any, frame: int, channel: int, at: Any, shares: Any, x: int) -> Any:
    """What they take of one frame."""
    numbers, plane, row = planes
    left, right = load_pairs(numbers, channel * plane, at, frame, x)
    made = left * load(shares[frame], 0, x) + right * load(shares[frame], 1, x)
    left, right = load_pairs(numbers, channel * plane + row, at, frame, x)
    return made + left * load(shares[frame], 2, x) + right * load(shares[frame], 3, x)


@inlined
def _within(position: Any, most: Any) -> Any:
    """The nearest from 0 to most; 0 of what is no number, so that nothing outside is read."""
    position = position if position > 0 else np.float32(0)
    return position if position < most else most


@compiled
def _spread(numbers: Any, table: Any, kernel: Any, constant: Any, some: Any, columns: Any, out: Any) -> int:
    """What the positions of a row put out that were computed, less what all others do, to [N, outputs], and their
    columns. Returns N."""
    count, inputs = 0, table.shape[1]
    for column in range(len(columns)):
        number = numbers[column + 1]
        if number < len(table):
            columns[count] = column
            for index in range(inputs):
                some[0, count * inputs + index] = table[number, index]
            count += 1
    for column in range(0, kernel.shape[1], COLUMNS):
        for row in range(0, count, ROWS):
            sums = begin(constant, 0, 0, column)
            put(accumulate(sums, some, 0, row * inputs, inputs, inputs, kernel, 0, column), out, row, column)
    return count


@compiled
def _spread_line(
    unit: Any,
    there: Any,
    table: Any,
    row: int,
    step: int,
    kernel: Any,
    columns: Any,
    places: Any,
    begins: Any,
    out: Any,
) -> int:
    """What the positions of a row put out that were computed, to out [N, outputs], their columns and where in out they
    are; from what lies as it does in the level. there: [columns], which were computed; begins: room for ``LINES``
    numbers. Returns how many."""
    count, lines, width = 0, 0, len(there)
    for first in range(0, width, LANES):
        some = 0
        for column in range(first, min(first + LANES, width)):
            if there[column]:
                columns[count + some], places[count + some] = column, lines * LANES + column - first
                some += 1
        if some == 0:
            continue
        count += some
        begins[lines % LINES] = (row * width + first) * step
        lines += 1
        if lines % LINES == 0:
            into = out[(lines - LINES) * LANES :]
            multiply(unit, table, begins, 0, 0, 0, 1, step, kernel, 1, step, into, out.shape[1])
    more = lines % LINES
    if more > 0:
        for index in range(more, LINES):
            begins[index] = begins[0]
        multiply(unit, table, begins, 0, 0, 0, 1, step, kernel, 1, step, out[(lines - more) * LANES :], out.shape[1])
    return count


@allocating
def _render(
    unit: Any,
    picture: Any,
    frame0: Any,
    frame1: Any,
    flow: Any,
    whole: Any,
    bands: Any,
    numbers: Any,
    table: Any,
    kernel: Any,
    constant: Any,
    likelier: float,
    pace: Any,
    prior: Any,
    moving: Any,
    side: int,
) -> None:
    """picture, frame0, frame1: from ``flat``; whole to constant: from ``LastOutput.lines``; side: pixels to one of
    moving, a multiple of 8."""
    rows, columns = flow.shape[1:]
    height, width = 2 * rows, 2 * columns
    near, far, one = np.float32(0.75), np.float32(0.25), np.float32(1)
    lines = np.zeros((PLANES, columns + 2), np.float32)
    added = np.empty((OUTPUTS, width + 2 * BORDER), np.float32)
    # What positions of three of the last level's rows put out, which ones they are, where that is, and which row it is.
    if table.ndim == 1:
        several, wide = LINES * LANES, 0
    else:
        several, wide = ROWS, table.shape[1]
    spread = np.empty((3, -(-columns // several) * several, TAPS * OUTPUTS), np.float32)
    read_by, there, known = np.empty((3, columns), np.intp), np.zeros(3, np.intp), np.zeros(3, np.intp)
    places = np.empty((3, columns), np.intp)
    some, begins = np.zeros((1, spread.shape[1] * wide), np.float32), np.empty(LINES, np.intp)
    begun = np.zeros(2, np.intp)
    told = np.empty((PLANES, width), np.float32)
    at = np.empty((2, width), np.int32)
    shares = np.empty((2, 4, width), np.float32)
    into_picture, plane_step, row_step = picture
    step = table.size // max(rows * columns, 1)
    if unit is not None:
        configure(unit)
    first = np.empty(width, np.float32)
    runs = np.empty((moving.shape[1], 2), np.intp)
    count = 0
    for y in range(height):
        if y % side == 0:
            # What moves, in pieces: to begin one takes as long as what lies between two that are near each other.
            count = 0
            for block in range(moving.shape[1]):
                if moving[y // side, block] == 0:
                    continue
                if count == 0 or side * block - runs[count - 1, 1] > NEAR:
                    runs[count, 0] = side * block
                    count += 1
                runs[count - 1, 1] = side * (block + 1)
        if count == 0:
            continue
        i, odd = y // 2, y % 2
        beside = min(i + 1, rows - 1) if odd else max(i - 1, 0)
        band = 0 if y == 0 else (bands.shape[1] - 1 if y == height - 1 else 2 + odd)
        near_rows = i, i + 1 if odd else i - 1
        begun[0] = begun[1] = 0
        for row in near_rows:
            slot = row % 3
            if numbers.size and 0 <= row < rows and known[slot] != row + 1:
                known[slot] = row + 1
                if table.ndim == 1:
                    how = kernel, read_by[slot], places[slot], begins, spread[slot]
                    there[slot] = _spread_line(unit, numbers[row], table, row, step, *how)
                else:
                    there[slot] = _spread(numbers[row + 1], table, kernel, constant, some, read_by[slot], spread[slot])
        for run in range(count):
            # All of a run's arrays begin with it: where indices might be negative, nothing is vectorized.
            start, stop = runs[run]
            length, half = stop - start, (stop - start) // 2
            for output in range(OUTPUTS):
                given = whole[output, y, start:stop] if whole.size else bands[output, band, start:stop]
                into = added[output]
                for x in range(length):
                    into[x + BORDER] = given[x]
            for which in range(2 if numbers.size else 0):
                row, slot = near_rows[which], near_rows[which] % 3
                tap = 4 * OUTPUTS * (y + 1 - 2 * row)
                if not 0 <= row < rows:
                    continue
                # Four pixels of each position, of which the first is one before its own two.
                while begun[which] < there[slot] and 2 * read_by[slot, begun[which]] + 2 < start:
                    begun[which] += 1
                for index in range(begun[which], there[slot]):
                    x = 2 * read_by[slot, index] - 1 - start
                    if x >= length:
                        break
                    line = places[slot, index] if table.ndim == 1 else index
                    for output in range(OUTPUTS):
                        into_four = load4(added, output, x + BORDER) + load4(spread[slot], line, tap + 4 * output)
                        if table.ndim == 1:
                            into_four += load4(constant, 0, tap + 4 * output)
                        store(into_four, added, output, x + BORDER)
            # A row of what is half the size, with a position more on both sides.
            before, after = int(start > 0), int(stop < width)
            low, high = start // 2 - before, stop // 2 + after
            for plane in range(PLANES if prior.size else 4):
                source, twice = (prior, one) if plane == 4 else (flow[plane], np.float32(2))
                here, other, line = source[i, low:high], source[beside, low:high], lines[plane]
                for j in range(high - low):
                    line[j + 1 - before] = twice * (near * here[j] + far * other[j])
                if before == 0:
                    line[0] = line[1]
                if after == 0:
                    line[half + 1] = line[half]
            for plane in range(PLANES):
                line, into, more = lines[plane], told[plane], added[plane]
                share = pace[plane] if plane < 4 else one
                always = likelier if plane == 4 else np.float32(0)
                for k in range(half):
                    into[2 * k] = near * line[k + 1] + far * line[k] + share * more[2 * k + BORDER] + always
                    into[2 * k + 1] = near * line[k + 1] + far * line[k + 2] + share * more[2 * k + 1 + BORDER] + always
            logit = told[4]
            for x in range(length):
                first[x] = one / (one + exp(-min(max(logit[x], np.float32(-80)), np.float32(80))))
            # Where each pixel is read, and what it takes of each of the four there.
            for frame in range(2):
                flow_x, flow_y = told[2 * frame], told[2 * frame + 1]
                place, row_length = at[frame], np.int32(frame0[2] if frame == 0 else frame1[2])
                corner, right, under, diagonal = shares[frame]
                sign, rest = (one, np.float32(0)) if frame == 0 else (-one, one)
                for x in range(length):
                    share = rest + sign * first[x]
                    at_x = _within(np.float32(start + x) + flow_x[x], np.float32(width - 1))
                    at_y = _within(np.float32(y) + flow_y[x], np.float32(height - 1))
                    left, top = np.int32(at_x), np.int32(at_y)
                    left, top = min(left, np.int32(width - 2)), min(top, np.int32(height - 2))
                    place[x] = top * row_length + left
                    at_x -= np.float32(left)
                    at_y -= np.float32(top)
                    below = share * at_y
                    above = share - below
                    right[x], diagonal[x] = above * at_x, below * at_x
                    corner[x], under[x] = above - right[x], below - diagonal[x]
            for x in range(0, length, 8):
                if moving[y // side, (start + x) // side] == 0:
                    continue
                target = y * row_step + start + x
                ahead = min(x + AHEAD, length - 1)
                for channel in range(3):
                    fetch(frame0[0], channel * frame0[1] + frame0[2] + at[0, ahead])
                    fetch(frame1[0], channel * frame1[1] + frame1[2] + at[1, ahead])
                    made = _blended(frame0, frame1, channel, at, shares, x) + load(added, PLANES + channel, x + BORDER)
                    store(made, into_picture, 0, target + channel * plane_step)
    if unit is not None:
        release()


@compiled
def _blend(picture: Any, frame0: Any, frame1: Any, when: float, moving: Any, side: int) -> None:
    """Blend the frames as they are where nothing moves, as ``torch.lerp`` does it."""
    share = when if when < np.float32(0.5) else when - np.float32(1)
    rows, columns = moving.shape
    for y in range(side * rows):
        block = 0
        while block < columns:
            first = block
            while block < columns and moving[y // side, block] == 0:
                block += 1
            length = side * (block - first)
            for channel in range(3 if length else 0):
                begin = channel * picture[1] + y * picture[2] + side * first
                into = picture[0][0, begin : begin + length]
                begin = channel * frame0[1] + y * frame0[2] + side * first
                one = frame0[0][0, begin : begin + length]
                begin = channel * frame1[1] + y * frame1[2] + side * first
                other = frame1[0][0, begin : begin + length]
                if share < 0:
                    for x in range(length):
                        into[x] = other[x] + share * (other[x] - one[x])
                else:
                    for x in range(length):
                        into[x] = one[x] + share * (other[x] - one[x])
            block += 1


@compiled
def _put_still(picture: Any, frame0: Any, frame1: Any, still: Any, when: float, moving: Any, side: int) -> None:
    """Blend what stands still where it is."""
    near, far = np.float32(0.75), np.float32(0.25)
    rows, columns = still.shape
    for y in range(2 * rows):
        i = y // 2
        beside = min(i + 1, rows - 1) if y % 2 else max(i - 1, 0)
        # Of most rows nothing does.
        here, other = still[i], still[beside]
        some = np.float32(0)
        for j in range(columns):
            some += here[j] + other[j]
        for j in range(columns if some > 0 else 0):
            before, after = max(j - 1, 0), min(j + 1, columns - 1)
            around = here[before] + here[j] + here[after] + other[before] + other[j] + other[after]
            if around > 0 and moving[y // side, 2 * j // side] != 0:
                for odd in range(2):
                    next_to = after if odd else before
                    share = near * (near * here[j] + far * other[j])
                    share += far * (near * here[next_to] + far * other[next_to])
                    x = 2 * j + odd
                    for channel in range(3):
                        early = frame0[0][0, channel * frame0[1] + y * frame0[2] + x]
                        late = frame1[0][0, channel * frame1[1] + y * frame1[2] + x]
                        at = channel * picture[1] + y * picture[2] + x
                        made = picture[0][0, at]
                        picture[0][0, at] = made + share * (early + when * (late - early) - made)
