"""The patches of one size of ``search``, for processors: the same ones and the same tries, but a patch at a time.

In torch a try reads and writes everything several times over. Here what a patch needs stays in registers, and trying a
flow takes some 25 ns, a tenth of that. ``search`` in torch is what this is tested against and what other devices run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ugsp_net import search
from ugsp_net.cpu.vectors import (
    allocating,
    compiled,
    every_second,
    flat,
    inlined,
    lane,
    largest,
    load,
    load4,
    plain,
    same,
    same4,
    store,
    total,
    totals,
)

PATCH, CELL, SPACING, MARGIN = 8, 4, 2, 2
"""As in ``search``; compiled code knows no other file's constants."""
assert (PATCH, CELL, SPACING, MARGIN) == (search.PATCH, search.CELL, search.SPACING, search._MARGIN)
SHARES = tuple(np.float32(255 / 4 * share) for share in search._LUMA)
"""Of red, green and blue in an image, from sums of 2x2 pixels."""
OUTSIDE = 9.0
"""Positions that a patch may begin outside a frame: farther out, all of it shows the border too."""
BORDER = 12
"""Positions around a frame in which its border is repeated."""


def search_size(pictures: Tensor, flow: Tensor | None, coarser: Tensor | None, level: int) -> tuple[Tensor, Tensor]:
    """What ``search._search_both`` returns."""
    batch, _, height, width = pictures.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    every, samples = search._every(level), len(search._sampled(level))
    most = max(search.LOST_LEAST, int(search.LOST_SHARE * rows * columns))
    best = np.zeros((batch, rows, columns, 2), np.float32)
    averaged = pictures.new_empty((batch, 2, -(-height // SPACING), -(-width // SPACING)))
    _search(
        plain(pictures[:, 0]),
        _NONE if flow is None else plain(flow),
        _NONE if coarser is None else plain(coarser.permute(0, 2, 3, 1)),
        every,
        _share(every),
        np.float32(search.NOISE / 4**level * samples),
        np.float32(search.DAMPING * samples / PATCH**2),
        search.REACH,
        level == 0,
        np.array(search._distances(level)),
        (most if level == 1 else 0, search.FAR, np.float32(search.LOST * samples), np.float32(search.FOUND)),
        best,
        averaged.numpy(),
    )
    return averaged, torch.from_numpy(best).permute(0, 3, 1, 2)


_NONE = np.empty((0, 0, 0, 0), np.float32)


def looked_at(frame0: Tensor, frame1: Tensor) -> tuple[Tensor, Tensor]:
    """What ``search.looked_at`` returns."""
    return _look([*frame0, *frame1])


def look(frame: Tensor) -> tuple[Tensor, Tensor]:
    """What ``search.look`` returns."""
    return _look([*frame])


def _look(frames: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """frames: [3, H, W] each."""
    height, width = frames[0].shape[-2:]
    image = frames[0].new_empty((len(frames), 1, height // 2, width // 2))
    points = frames[0].new_empty((len(frames), 3, height // search.POINT, width // search.POINT))
    for index, frame in enumerate(frames):
        _look_at(*flat(frame), *SHARES, search.POINT, image[index, 0].numpy(), points[index].numpy())
    return image, points


def smaller(image: Tensor) -> Tensor:
    """What ``search._smaller`` returns."""
    batch, _, height, width = image.shape
    out = image.new_empty((batch, 1, -(-height // 2), -(-width // 2)))
    _halve(plain(image[:, 0]), out[:, 0].numpy())
    return out


def miscoloured(pictures: Tensor, others: Tensor, grid: tuple[int, int], flow: Tensor) -> tuple[Tensor, Tensor]:
    """What ``search._miscoloured`` returns."""
    rows = search.COLOUR_SAMPLED
    padded = [_with_borders(one) for one in (pictures, others)]
    out = flow.new_empty((2, len(flow), *grid))
    shares = [np.float32(one) for one in search._LUMA]
    for first, second, moved, made in zip(
        *padded, plain(flow).reshape(-1, *grid, 2), out.transpose(0, 1).numpy(), strict=True
    ):
        _miscoloured(first, second, rows, _share(rows), *shares, moved, made)
    coloured, bright = out.flatten(2)
    return coloured, bright


def look_for_colours(
    pictures: Tensor, others: Tensor, grid: tuple[int, int], chosen: Tensor, flow: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``search._look_for_colours`` returns."""
    rows = search.COLOUR_SAMPLED
    padded = [_with_borders(one) for one in (pictures, others)]
    found, costs = flow.clone(), flow.new_empty((2, *chosen.shape))
    reaches = np.array([reach for reach, _ in search.COLOUR_STEPS])
    steps = np.array([step for _, step in search.COLOUR_STEPS], np.float32)
    every = zip(*padded, plain(chosen), found.numpy(), costs.transpose(0, 1).numpy(), strict=True)
    for first, second, numbers, moved, cost in every:
        _look_for_colours(
            first, second, rows, _share(rows) / np.float32(3), grid[1], numbers, reaches, steps, moved, cost
        )
    cost, least = costs
    return found, cost, least


def _share(every: int) -> Any:
    """What the mean takes of each position of one in so many rows of a patch."""
    return np.float32(1 / len(search._one_in(every)))


def _with_borders(frames: Tensor) -> Any:
    """Frames [B, C, h, w] with what is at their borders repeated outside, [B, C, h + 2 BORDER, w + 2 BORDER]."""
    batch, channels, height, width = frames.shape
    out = np.empty((batch, channels, height + 2 * BORDER, width + 2 * BORDER), np.float32)
    for picture, made in zip(plain(frames), out, strict=True):
        for plane, into in zip(picture, made, strict=True):
            _surround(plane, into)
    return out


@inlined
def _begins(position: Any, size: int) -> Any:
    """Where a patch begins to be read in a frame with borders, of a size with them, and how much of the next position
    it takes."""
    inside = np.float32(size - 2 * BORDER)
    # Of what is no number this makes one too: whatever the flow is, nothing outside is read.
    position = min(position, inside) if position > -OUTSIDE else np.float32(-OUTSIDE)
    whole = np.floor(position)
    return int(whole) + BORDER, np.float32(position - whole)


@inlined
def _shares(top: int, left: int, across: float, down: float, second: Any) -> Any:
    """Where the patch at (top, left) is read in the second frame by a flow, and the shares of the four neighbours."""
    row, below = _begins(np.float32(top) + down, second.shape[0])
    column, right = _begins(np.float32(left) + across, second.shape[1])
    both = right * below
    here, beside = same(np.float32(1) - right - below + both), same(right - both)
    return row, column, (here, beside, same(below - both), same(both))


@inlined
def _sums(first: Any, second: Any, every: int, top: int, left: int, across: float, down: float) -> Any:
    """What differs where the patch at (top, left) moves by a flow, summed, and squared and summed, in eight lanes
    each."""
    place = _shares(top, left, across, down, second)
    # To count the lines at run time takes a division, half as long as what is done to them.
    if every == 3:
        return _sums_of(first, second, 1, 3, top, left, *place)
    if every == 2:
        return _sums_of(first, second, 1, 2, top, left, *place)
    return _sums_of(first, second, every // 2, every, top, left, *place)


@inlined
def _sums_of(
    first: Any, second: Any, line: int, every: int, top: int, left: int, row: int, column: int, shares: Any
) -> Any:
    """Of one in so many lines, from one on."""
    summed = squares = same(np.float32(0))
    while line < PATCH:
        found = _read(second, row + line, column, *shares) - load(first, top + BORDER + line, left + BORDER)
        summed += found
        squares += found * found
        line += every
    return summed, squares


@inlined
def _cost(first: Any, second: Any, every: int, share: float, top: int, left: int, across: float, down: float) -> Any:
    """Squared difference less that of the means where the patch at (top, left) moves by a flow. share: 1 / samples."""
    summed, squares = _sums(first, second, every, top, left, across, down)
    mean = total(summed)
    return max(total(squares) - mean * mean * share, np.float32(0))


@inlined
def _step(
    first: Any, second: Any, every: int, slope_x: Any, slope_y: Any, inverse: Any, i: int, j: int, flow: Any
) -> Any:
    """Where a Gauss-Newton step leads from the flow of the patch in row i and column j: across and down. inverse: from
    ``_invert``."""
    top, left = CELL * i - MARGIN, CELL * j - MARGIN
    across, down = flow[i, j, 0], flow[i, j, 1]
    place = _shares(top, left, across, down, second)
    if every == 3:
        summed, sum_x, sum_y = _slope_sums(first, second, slope_x, slope_y, 1, 3, top, left, *place)
    elif every == 2:
        summed, sum_x, sum_y = _slope_sums(first, second, slope_x, slope_y, 1, 2, top, left, *place)
    else:
        summed, sum_x, sum_y = _slope_sums(first, second, slope_x, slope_y, every // 2, every, top, left, *place)
    differs = total(summed)
    x, y = total(sum_x) - inverse[i, j, 3] * differs, total(sum_y) - inverse[i, j, 4] * differs
    across -= inverse[i, j, 0] * x + inverse[i, j, 1] * y
    return across, down - (inverse[i, j, 1] * x + inverse[i, j, 2] * y)


@inlined
def _slope_sums(
    first: Any,
    second: Any,
    slope_x: Any,
    slope_y: Any,
    line: int,
    every: int,
    top: int,
    left: int,
    row: int,
    column: int,
    shares: Any,
) -> Any:
    """What differs, and its products with the slopes, summed over one in so many lines, from one on."""
    summed = sum_x = sum_y = same(np.float32(0))
    while line < PATCH:
        found = _read(second, row + line, column, *shares) - load(first, top + BORDER + line, left + BORDER)
        summed += found
        sum_x += found * load(slope_x, top + BORDER + line, left + BORDER)
        sum_y += found * load(slope_y, top + BORDER + line, left + BORDER)
        line += every
    return summed, sum_x, sum_y


@compiled
def _surround(frame: Any, out: Any) -> None:
    height, width = frame.shape
    for i in range(height + 2 * BORDER):
        y = min(max(i - BORDER, 0), height - 1)
        for j in range(BORDER):
            out[i, j], out[i, BORDER + width + j] = frame[y, 0], frame[y, width - 1]
        for j in range(width):
            out[i, BORDER + j] = frame[y, j]


@compiled
def _slope(frame: Any, across: Any, down: Any) -> None:
    height, width = frame.shape
    half, none = np.float32(0.5), np.float32(0)
    for i in range(height + 2 * BORDER):
        y = i - BORDER
        if not 0 <= y < height:
            for j in range(width + 2 * BORDER):
                across[i, j] = down[i, j] = none
            continue
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        for j in range(BORDER):
            across[i, j] = down[i, j] = none
            across[i, BORDER + width + j] = down[i, BORDER + width + j] = none
        for j in range(width):
            down[i, BORDER + j] = half * (frame[below, j] - frame[above, j])
        for j in range(1, width - 1):
            across[i, BORDER + j] = half * (frame[y, j + 1] - frame[y, j - 1])
        across[i, BORDER] = half * (frame[y, min(1, width - 1)] - frame[y, 0])
        across[i, BORDER + width - 1] = half * (frame[y, width - 1] - frame[y, max(width - 2, 0)])


@compiled
def _begin(first: Any, second: Any, every: int, share: float, fits: float, flow: Any, cost: Any, looks: Any) -> Any:
    """What the patches cost where they begin, and which of them look further: those that cost more than what fits."""
    some = False
    for i in range(flow.shape[0]):
        for j in range(flow.shape[1]):
            top, left = CELL * i - MARGIN, CELL * j - MARGIN
            cost[i, j] = _cost(first, second, every, share, top, left, flow[i, j, 0], flow[i, j, 1])
            looks[i, j] = cost[i, j] > fits
            some |= looks[i, j]
    return some


@compiled
def _invert(slope_x: Any, slope_y: Any, every: int, share: float, damping: float, looks: Any, inverse: Any) -> None:
    """Of every patch that looks: the inverse Hessian (xx, xy, yy), and the means of its slopes across and down."""
    for i in range(looks.shape[0]):
        for j in range(looks.shape[1]):
            if not looks[i, j]:
                continue
            row, column = CELL * i - MARGIN + BORDER, CELL * j - MARGIN + BORDER
            sum_x = sum_y = sum_xx = sum_xy = sum_yy = same(np.float32(0))
            line = every // 2
            while line < PATCH:
                x, y = load(slope_x, row + line, column), load(slope_y, row + line, column)
                sum_x += x
                sum_y += y
                sum_xx += x * x
                sum_xy += x * y
                sum_yy += y * y
                line += every
            mean_x, mean_y = total(sum_x) * share, total(sum_y) * share
            xx = total(sum_xx) - total(sum_x) * mean_x + damping
            yy = total(sum_yy) - total(sum_y) * mean_y + damping
            xy = total(sum_xy) - total(sum_x) * mean_y
            scale = np.float32(1) / (xx * yy - xy * xy)
            inverse[i, j, 0], inverse[i, j, 1], inverse[i, j, 2] = yy * scale, -xy * scale, xx * scale
            inverse[i, j, 3], inverse[i, j, 4] = mean_x, mean_y


@inlined
def _try(
    first: Any, second: Any, every: int, share: float, i: int, j: int, across: float, down: float, flow: Any, cost: Any
) -> None:
    """Take this flow for the patch in row i and column j where it fits better."""
    tried = _cost(first, second, every, share, CELL * i - MARGIN, CELL * j - MARGIN, across, down)
    # Written in either case: a processor cannot foresee which fit, and would throw away what it did meanwhile.
    better = tried < cost[i, j]
    cost[i, j] = tried if better else cost[i, j]
    flow[i, j, 0] = across if better else flow[i, j, 0]
    flow[i, j, 1] = down if better else flow[i, j, 1]


@inlined
def _try_four(
    first: Any, second: Any, every: int, share: float, i: int, j: int, across: Any, down: Any, flow: Any, cost: Any
) -> None:
    """Take the best of four flows for the patch in row i and column j where it fits better. Nothing waits for what one
    of them costs to try the next: a processor cannot foresee which fit."""
    top, left = CELL * i - MARGIN, CELL * j - MARGIN
    a, b = _sums(first, second, every, top, left, across[0], down[0])
    c, d = _sums(first, second, every, top, left, across[1], down[1])
    e, f = _sums(first, second, every, top, left, across[2], down[2])
    g, h = _sums(first, second, every, top, left, across[3], down[3])
    summed = totals((a, b, c, d, e, f, g, h))
    least, best_x, best_y = cost[i, j], flow[i, j, 0], flow[i, j, 1]
    for index in range(4):
        mean = lane(summed, 2 * index)
        tried = max(lane(summed, 2 * index + 1) - mean * mean * share, np.float32(0))
        better = tried < least
        least = tried if better else least
        best_x = across[index] if better else best_x
        best_y = down[index] if better else best_y
    cost[i, j], flow[i, j, 0], flow[i, j, 1] = least, best_x, best_y


@compiled
def _try_row(
    first: Any, second: Any, every: int, share: float, i: int, tried: Any, looks: Any, flow: Any, cost: Any
) -> None:
    """Take for each patch of row i the flow that is tried, [columns, 2], where it fits better. Four patches at a time:
    what each costs is summed at once."""
    columns = len(tried)
    j = 0
    while j < columns:
        if j + 4 <= columns and looks[i, j] & looks[i, j + 1] & looks[i, j + 2] & looks[i, j + 3]:
            top, left = CELL * i - MARGIN, CELL * j - MARGIN
            a, b = _sums(first, second, every, top, left, tried[j, 0], tried[j, 1])
            c, d = _sums(first, second, every, top, left + CELL, tried[j + 1, 0], tried[j + 1, 1])
            e, f = _sums(first, second, every, top, left + 2 * CELL, tried[j + 2, 0], tried[j + 2, 1])
            g, h = _sums(first, second, every, top, left + 3 * CELL, tried[j + 3, 0], tried[j + 3, 1])
            summed = totals((a, b, c, d, e, f, g, h))
            for index in range(4):
                mean = lane(summed, 2 * index)
                costs = max(lane(summed, 2 * index + 1) - mean * mean * share, np.float32(0))
                # Written in either case: see ``_try``.
                better, at = costs < cost[i, j + index], j + index
                cost[i, at] = costs if better else cost[i, at]
                flow[i, at, 0] = tried[at, 0] if better else flow[i, at, 0]
                flow[i, at, 1] = tried[at, 1] if better else flow[i, at, 1]
            j += 4
        else:
            if looks[i, j]:
                _try(first, second, every, share, i, j, tried[j, 0], tried[j, 1], flow, cost)
            j += 1


@compiled
def _from_smaller(flow: Any, out: Any) -> None:
    """Where patches begin, [rows, columns, 2]: twice the flow of the next smaller size, [2, h, w], at their places."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j, 0], out[i, j, 1] = np.float32(2) * flow[0, i, j], np.float32(2) * flow[1, i, j]


@compiled
def _try_smaller(
    first: Any, second: Any, every: int, share: float, smaller: Any, tried: Any, looks: Any, flow: Any, cost: Any
) -> None:
    """smaller: [rows / 2, columns / 2, 2]; tried: room for a row, as in ``_try_row``."""
    for i in range(looks.shape[0]):
        for j in range(looks.shape[1]):
            tried[j, 0], tried[j, 1] = (
                np.float32(2) * smaller[i // 2, j // 2, 0],
                np.float32(2) * smaller[i // 2, j // 2, 1],
            )
        _try_row(first, second, every, share, i, tried, looks, flow, cost)


@compiled
def _try_everywhere(
    first: Any, second: Any, every: int, share: float, reach: int, looks: Any, flow: Any, cost: Any
) -> None:
    for i in range(looks.shape[0]):
        for j in range(looks.shape[1]):
            if looks[i, j]:
                for across in range(-reach, reach + 1):
                    for down in range(-reach, reach + 1):
                        _try(first, second, every, share, i, j, np.float32(across), np.float32(down), flow, cost)


@inlined
def _nearest(position: Any, count: int) -> Any:
    """The nearest of so many patches in a row."""
    return int(min(np.rint(position), np.float32(count - 1))) if position > 0 else 0


@compiled
def _try_back(
    first: Any, second: Any, every: int, share: float, way: Any, tried: Any, looks: Any, flow: Any, cost: Any
) -> None:
    """tried: room for a row, as in ``_try_row``."""
    rows, columns = looks.shape
    for i in range(rows):
        for j in range(columns):
            row = _nearest(np.float32(i) + flow[i, j, 1] / np.float32(CELL), rows)
            column = _nearest(np.float32(j) + flow[i, j, 0] / np.float32(CELL), columns)
            tried[j, 0], tried[j, 1] = -way[row, column, 0], -way[row, column, 1]
        _try_row(first, second, every, share, i, tried, looks, flow, cost)


@compiled
def _try_around(
    first: Any,
    second: Any,
    every: int,
    share: float,
    slope_x: Any,
    slope_y: Any,
    inverse: Any,
    side: int,
    before: Any,
    tried: Any,
    looks: Any,
    flow: Any,
    cost: Any,
) -> None:
    """before: the flow of all patches as it was; flow: as it becomes; tried: room for a row, as in ``_try_row``."""
    rows, columns = looks.shape
    for i in range(rows):
        for j in range(columns):
            if looks[i, j]:
                above, below = max(i - side, 0), min(i + side, rows - 1)
                left, right = max(j - side, 0), min(j + side, columns - 1)
                _try_four(
                    first,
                    second,
                    every,
                    share,
                    i,
                    j,
                    (before[above, j, 0], before[below, j, 0], before[i, left, 0], before[i, right, 0]),
                    (before[above, j, 1], before[below, j, 1], before[i, left, 1], before[i, right, 1]),
                    flow,
                    cost,
                )
        # Each by itself, since what one patch waits for the next one does not: a quarter of the time less.
        for j in range(columns):
            if looks[i, j]:
                tried[j, 0], tried[j, 1] = _step(first, second, every, slope_x, slope_y, inverse, i, j, flow)
        _try_row(first, second, every, share, i, tried, looks, flow, cost)


@compiled
def _look_far(
    first: Any,
    second: Any,
    every: int,
    share: float,
    lost: int,
    numbers: Any,
    reach: int,
    found: float,
    flow: Any,
    cost: Any,
) -> None:
    """lost, numbers: how many patches do, and which; found: the part of what differs that may be left."""
    columns = flow.shape[1]
    for number in numbers[:lost]:
        i, j = number // columns, number % columns
        top, left = CELL * i - MARGIN, CELL * j - MARGIN
        from_x, from_y, least = flow[i, j, 0], flow[i, j, 1], cost[i, j] * found
        for x in range(-reach, reach + 1):
            for y in range(-reach, reach + 1):
                across, down = from_x + np.float32(x), from_y + np.float32(y)
                tried = _cost(first, second, every, share, top, left, across, down)
                if tried < least:
                    least = cost[i, j] = tried
                    flow[i, j, 0], flow[i, j, 1] = across, down


@inlined
def _differs(first: Any, second: Any, top: int, left: int, line: int, row: int, column: int, shares: Any) -> Any:
    """Of every second position of a line of the patch at (top, left): what differs where it is read at (row, column)
    and beside that."""
    found = _read(second, row + line, column, *shares) - load(first, top + BORDER + line, left + BORDER)
    return every_second(found)


@inlined
def _add_weights(differs: Any, fit: Any, across: float, down: float, summed: Any, row: int, column: int) -> None:
    """What four positions beside each other add to ``summed``, which is laid out as [3 * rows, columns]."""
    one = same4(np.float32(1))
    weight = one / (largest(largest(differs, same4(np.float32(0)) - differs), one) * fit)
    rows = summed.shape[0] // 3
    store(load4(summed, row, column) + weight, summed, row, column)
    row += rows
    store(load4(summed, row, column) + weight * same4(across), summed, row, column)
    row += rows
    store(load4(summed, row, column) + weight * same4(down), summed, row, column)


@compiled
def _average(first: Any, second: Any, flow: Any, summed: Any) -> None:
    """Sums of the weights of the flows of all patches, and of the flows times these: [3 * rows, columns], one in
    ``SPACING`` positions."""
    share = np.float32(SPACING**2 / PATCH**2)
    for i in range(flow.shape[0]):
        for j in range(flow.shape[1]):
            top, left = CELL * i - MARGIN, CELL * j - MARGIN
            across, down = flow[i, j, 0], flow[i, j, 1]
            place = _shares(top, left, across, down, second)
            a = _differs(first, second, top, left, 0, *place)
            b = _differs(first, second, top, left, 2, *place)
            c = _differs(first, second, top, left, 4, *place)
            d = _differs(first, second, top, left, 6, *place)
            mean = total(a + b + c + d)
            squares = total(a * a + b * b + c * c + d * d)
            fit = same4(max(squares - mean * mean * share, np.float32(0)) * share + np.float32(4))
            row, column = CELL // SPACING * i, CELL // SPACING * j
            _add_weights(a, fit, across, down, summed, row, column)
            _add_weights(b, fit, across, down, summed, row + 1, column)
            _add_weights(c, fit, across, down, summed, row + 2, column)
            _add_weights(d, fit, across, down, summed, row + 3, column)


@compiled
def _divide(summed: Any, mean: Any) -> None:
    """What ``_average`` summed, by its weights, where the frame is: [2, h, w]."""
    rows = summed.shape[0] // 3
    for i in range(mean.shape[1]):
        for j in range(mean.shape[2]):
            y, x = i + MARGIN // SPACING, j + MARGIN // SPACING
            share = np.float32(1) / summed[y, x]
            mean[0, i, j], mean[1, i, j] = share * summed[rows + y, x], share * summed[2 * rows + y, x]


@compiled
def _lost(cost: Any, looks: Any, least: float, most: int, numbers: Any) -> int:
    """How many patches look and cost more than the least, at most so many, and which: those that cost most. numbers:
    [rows * columns], out."""
    low = high = least
    for i in range(cost.shape[0]):
        for j in range(cost.shape[1]):
            high = max(high, cost[i, j] if looks[i, j] else least)
    # More than these cost more than the lower limit, and no more of them than the higher one.
    if _costlier(cost, looks, low) <= most:
        high = low
    for _ in range(24 if high > low else 0):
        middle = (low + high) / 2
        if _costlier(cost, looks, middle) > most:
            low = middle
        else:
            high = middle
    count = 0
    for limit, up_to in ((high, np.inf), (low, high)):
        for i in range(cost.shape[0]):
            for j in range(cost.shape[1]):
                if looks[i, j] and limit < cost[i, j] <= up_to and count < most:
                    numbers[count] = i * cost.shape[1] + j
                    count += 1
    return count


@inlined
def _costlier(cost: Any, looks: Any, limit: float) -> int:
    count = 0
    for i in range(cost.shape[0]):
        for j in range(cost.shape[1]):
            count += 1 if looks[i, j] and cost[i, j] > limit else 0
    return count


@compiled
def _copy(flow: Any, out: Any) -> None:
    """[rows, columns, 2]. What NumPy copies by brings its error messages along, which take seconds to compile."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j, 0], out[i, j, 1] = flow[i, j, 0], flow[i, j, 1]


@compiled
def _clear(values: Any) -> None:
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            values[i, j] = np.float32(0)


@allocating
def _search(
    pictures: Any,
    flow: Any,
    coarser: Any,
    every: int,
    share: float,
    fits: float,
    damping: float,
    reach: int,
    back: bool,
    distances: Any,
    far: Any,
    best: Any,
    mean: Any,
) -> None:
    """All patches of all frames of one size, the second half of which is where the first half is looked for, and the
    other way round: in one call, since Python takes longer to call this than a small size takes.

    pictures: [B, h, w] of 0 to 255; flow: [B, 2, h / 2, w / 2] of the next smaller size, and coarser:
    [B, rows / 2, columns / 2, 2] of its patches, both of no frames at the smallest; every, share: of rows and samples;
    fits: the cost up to which a patch looks no further; damping: of slopes; reach: at the smallest size; back: whether
    ways back are tried; distances: of the rounds; far: before the last of them, how many patches at most look how far,
    what they cost at least and the part that may be left; best: [B, rows, columns, 2] zeros, out; mean: [B, 2, h /
    SPACING, w / SPACING], out."""
    count, height, width = pictures.shape
    rows, columns = best.shape[1], best.shape[2]
    sides = height + 2 * BORDER, width + 2 * BORDER
    bordered = np.empty((count, sides[0], sides[1]), np.float32)
    across, down = np.empty(bordered.shape, np.float32), np.empty(bordered.shape, np.float32)
    cost, looks = np.empty((count, rows, columns), np.float32), np.empty((count, rows, columns), np.bool_)
    inverse, ways = np.empty((count, rows, columns, 5), np.float32), np.empty(best.shape, np.float32)
    before, tried = np.empty((rows, columns, 2), np.float32), np.empty((columns, 2), np.float32)
    numbers, some = np.empty(rows * columns, np.intp), np.empty(count, np.bool_)
    summed = np.empty((3 * (rows + 1) * CELL // SPACING, (columns + 1) * CELL // SPACING), np.float32)
    for one in range(count):
        _surround(pictures[one], bordered[one])
    for one in range(count):
        other = bordered[(one + count // 2) % count]
        if len(flow):
            _from_smaller(flow[one], best[one])
        some[one] = _begin(bordered[one], other, every, share, fits, best[one], cost[one], looks[one])
        if not some[one]:
            continue
        _slope(pictures[one], across[one], down[one])
        _invert(across[one], down[one], every, share, damping, looks[one], inverse[one])
        if len(coarser):
            _try_smaller(bordered[one], other, every, share, coarser[one], tried, looks[one], best[one], cost[one])
        else:
            _try_everywhere(bordered[one], other, every, share, reach, looks[one], best[one], cost[one])
    for one in range(count):
        _copy(best[one], ways[one])
    for one in range(count):
        partner = (one + count // 2) % count
        first, second = bordered[one], bordered[partner]
        if some[one] and back:
            _try_back(first, second, every, share, ways[partner], tried, looks[one], best[one], cost[one])
        for turn in range(len(distances) if some[one] else 0):
            if far[0] > 0 and turn == len(distances) - 1:
                lost = _lost(cost[one], looks[one], far[2], far[0], numbers)
                _look_far(first, second, every, share, lost, numbers, far[1], far[3], best[one], cost[one])
            side = min(distances[turn], max(1, min(rows, columns) - 1))
            _copy(best[one], before)
            slopes = across[one], down[one], inverse[one]
            _try_around(first, second, every, share, *slopes, side, before, tried, looks[one], best[one], cost[one])
        _clear(summed)
        _average(first, second, best[one], summed)
        _divide(summed, mean[one])


@inlined
def see_rows(
    numbers: Any,
    plane: int,
    row: int,
    i: int,
    red: float,
    green: float,
    blue: float,
    side: int,
    summed: Any,
    image: Any,
    points: Any,
) -> None:
    """Row i of the image, and of the points those of whose rows this is the last one. numbers: of a frame, [N], as
    ``plane`` and ``row`` tell; red, green, blue: what two times two pixels' sums are multiplied by; summed: room for a
    row; image, points, side: as for ``_look_at``."""
    quarter, inner, width = np.float32(255 / 4), side // 2 - 1, image.shape[1]
    # Rows first, since neighbours in a row are in one vector.
    for channel, share in enumerate((red, green, blue)):
        begin = channel * plane + 2 * i * row
        upper, lower = numbers[begin : begin + 2 * width], numbers[begin + row : begin + row + 2 * width]
        if channel == 0:
            for x in range(2 * width):
                summed[x] = share * (upper[x] + lower[x])
        else:
            for x in range(2 * width):
                summed[x] += share * (upper[x] + lower[x])
    into = image[i]
    for j in range(width):
        into[j] = summed[2 * j] + summed[2 * j + 1]
    # The points of these rows as soon as both of theirs are in the cache.
    line = (2 * i + 2) // side - 1
    if (2 * i + 2) % side == 0 and line < points.shape[1]:
        for channel in range(points.shape[0]):
            begin = channel * plane + (side * line + inner) * row
            upper, lower = numbers[begin : begin + 2 * width], numbers[begin + row : begin + row + 2 * width]
            there = points[channel, line]
            for j in range(len(there)):
                x = side * j + inner
                there[j] = quarter * (upper[x] + upper[x + 1] + lower[x] + lower[x + 1])


@allocating
def _look_at(
    frame: Any, plane: int, row: int, red: float, green: float, blue: float, side: int, image: Any, points: Any
) -> None:
    """frame, plane, row: from ``flat``; image: [H / 2, W / 2]; points: [3, H / side, W / side]."""
    summed = np.empty(2 * image.shape[1], np.float32)
    for i in range(image.shape[0]):
        see_rows(frame[0], plane, row, i, red, green, blue, side, summed, image, points)


@compiled
def _halve(images: Any, out: Any) -> None:
    """images: [B, h, w]; out: [B, h / 2, w / 2], rounded up: the border is repeated."""
    share = np.float32(0.25)
    height, width = images.shape[1:]
    for index in range(out.shape[0]):
        for i in range(out.shape[1]):
            upper, lower, into = images[index, 2 * i], images[index, min(2 * i + 1, height - 1)], out[index, i]
            for j in range(width // 2):
                into[j] = share * (upper[2 * j] + upper[2 * j + 1] + lower[2 * j] + lower[2 * j + 1])
            if width % 2:
                into[width // 2] = share * (upper[width - 1] + upper[width - 1] + lower[width - 1] + lower[width - 1])


@inlined
def _read(frame: Any, row: int, column: int, here: Any, beside: Any, under: Any, diagonal: Any) -> Any:
    """Eight neighbours in a row, between the positions of a frame."""
    upper = load(frame, row, column) * here + load(frame, row, column + 1) * beside
    return upper + load(frame, row + 1, column) * under + load(frame, row + 1, column + 1) * diagonal


@compiled
def _miscoloured(
    first: Any, second: Any, every: int, share: float, red: float, green: float, blue: float, flow: Any, out: Any
) -> None:
    """first, second: [3, h, w] with their borders; out: [2, rows, columns]."""
    shares = same(red), same(green), same(blue)
    for i in range(flow.shape[0]):
        for j in range(flow.shape[1]):
            top, left = CELL * i - MARGIN, CELL * j - MARGIN
            row, column, weights = _shares(top, left, flow[i, j, 0], flow[i, j, 1], second[0])
            coloured = dark = same(np.float32(0))
            line = every // 2
            while line < PATCH:
                place = top + BORDER + line, left + BORDER
                r = _read(second[0], row + line, column, *weights) - load(first[0], *place)
                g = _read(second[1], row + line, column, *weights) - load(first[1], *place)
                b = _read(second[2], row + line, column, *weights) - load(first[2], *place)
                bright = r * shares[0] + g * shares[1] + b * shares[2]
                r, g, b = r - bright, g - bright, b - bright
                coloured += r * r + g * g + b * b
                dark += bright * bright
                line += every
            out[0, i, j], out[1, i, j] = total(coloured) * share / np.float32(3), total(dark) * share


@inlined
def _cost_in_colour(
    first: Any, second: Any, every: int, share: float, top: int, left: int, across: float, down: float
) -> Any:
    """As ``_cost``, of frames of three colours; share: one by three times the samples."""
    row, column, shares = _shares(top, left, across, down, second[0])
    summed = squares = same(np.float32(0))
    for colour in range(3):
        line = every // 2
        while line < PATCH:
            found = _read(second[colour], row + line, column, *shares)
            found -= load(first[colour], top + BORDER + line, left + BORDER)
            summed += found
            squares += found * found
            line += every
    mean = total(summed)
    return max(total(squares) - mean * mean * share, np.float32(0))


@compiled
def _look_for_colours(
    first: Any,
    second: Any,
    every: int,
    share: float,
    columns: int,
    chosen: Any,
    reaches: Any,
    steps: Any,
    flow: Any,
    cost: Any,
) -> None:
    """chosen: [K]; flow: [K, 2], which becomes the best; cost: [2, K], by the flow as it was and as it is."""
    for index, number in enumerate(chosen):
        top, left = CELL * (number // columns) - MARGIN, CELL * (number % columns) - MARGIN
        best_x, best_y = flow[index]
        least = cost[0, index] = _cost_in_colour(first, second, every, share, top, left, best_x, best_y)
        for turn in range(len(reaches)):
            reach, step = reaches[turn], steps[turn]
            from_x, from_y = best_x, best_y
            for x in range(-reach, reach + 1):
                for y in range(-reach, reach + 1):
                    across, down = from_x + step * np.float32(x), from_y + step * np.float32(y)
                    tried = _cost_in_colour(first, second, every, share, top, left, across, down)
                    if tried < least:
                        least, best_x, best_y = tried, across, down
        cost[1, index], flow[index, 0], flow[index, 1] = least, best_x, best_y
