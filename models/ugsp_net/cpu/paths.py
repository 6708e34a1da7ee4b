"""``paths.trace`` and ``paths.carry``, for processors: point by point."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ugsp_net import paths
from ugsp_net.cpu.vectors import (
    allocating,
    compiled,
    exp,
    inlined,
    load,
    load4,
    load_pairs,
    pack,
    pack4,
    plain,
    same,
    same4,
    store,
)

LANES, FINER, AROUND = 8, 2, 9
"""As in ``paths``; compiled code knows no other file's constants."""
assert (FINER, AROUND) == (paths.FINER, paths.AROUND)


def trace(
    flow: Tensor,
    before: Tensor | None = None,
    after: Tensor | None = None,
    intervals: Tensor | None = None,
    still: Tensor | None = None,
) -> Tensor:
    """What ``paths.trace`` returns."""
    batch, _, height, width = flow.shape
    out = flow.new_empty((batch, sum(paths._SIDES), height, width))
    for index in range(batch):
        made, own = out[index].numpy(), plain(flow[index])
        guesses, onward, bend, weight, hidden, cut, _ = np.split(made, (4, 8, 12, 14, 16, 17))
        guesses[:] = own
        seen = np.empty((2, height, width), np.float32)
        ways = own[:2], own[2:]
        shares = [_agreement(ways[one], _line(ways[1 - one]), *_NOISE, seen[one]) for one in (0, 1)]
        cut[:] = min(shares) < paths.LEAST_SHARE
        for one, beyond in enumerate((before, after)):
            time = 1.0 if intervals is None else float(intervals[index, one])
            away, tracked = ways[one], np.zeros_like(seen[one])
            if beyond is not None and time > 0:
                # Of the frame before, its flow to this one comes first; of the frame after, this one's flow to it.
                toward, away = np.split(plain(beyond[index]), 2)[:: 1 - 2 * one]
                if _agreement(away, _line(toward), *_NOISE, tracked) < paths.LEAST_SHARE:
                    tracked[:] = 0
            told = onward[2 * one : 2 * one + 2], bend[2 * one : 2 * one + 2], weight[one], hidden[one]
            _side(ways[one], seen[one], away, tracked, np.float32(time or 1.0), *_WEIGHTS, *told)
        if still is None:
            made[-(FINER**2) :] = 0
        else:
            _apart(plain(still[index, 0]), made[-(FINER**2) :])
    return out


def carry(known: Tensor, t: Tensor, into: Tensor | None = None) -> Tensor:
    """What ``paths.carry`` returns. known: from ``trace``."""
    batch, _, height, width = known.shape
    out = known.new_empty((batch, 6, FINER * height, FINER * width))
    for index in range(batch):
        told, when = plain(known[index]), np.float32(t[index])
        mean = np.zeros((height, 4 * width), np.float32)
        _spread_ways(told, when, mean)
        _mean(mean, np.float32(paths.LEAST**2))
        landed = np.zeros((height, 8 * width), np.float32)
        _spread(told, when, np.float32(1 / paths.APART), mean, landed)
        small = np.empty((5, height, width), np.float32)
        _settle(told, when, np.float32(paths.GUESS), np.float32(paths.DOUBT), np.float32(paths.CERTAIN), landed, small)
        made = out[index].numpy()
        _enlarge(small, made)
        _together(told[-(FINER**2) :], made[5])
    return out


def _line(values: Any) -> Any:
    """All numbers of an array one behind the other."""
    return values.reshape(1, -1)


_NOISE = np.float32(paths.NOISE), np.float32(paths.SHARE)
_WEIGHTS = np.float32(paths.BEHIND), np.float32(paths.LEAST), np.float32(1 / paths.ENOUGH)


@inlined
def _between(position: Any, size: int) -> Any:
    """Two neighbours between which a position lies, inside a map of that size, and how much of the second to take."""
    position = min(position, np.float32(size - 1)) if position > 0 else np.float32(0)
    first = int(position)
    return first, min(first + 1, size - 1), position - np.float32(first)


@inlined
def _read_both(values: Any, plane: int, y: float, x: float) -> Any:
    """A plane of maps [C, h, w] and the one after it at a position, outside of them at their border."""
    top, below, down = _between(y, values.shape[1])
    left, right, across = _between(x, values.shape[2])
    upper = values[plane, top, left] + across * (values[plane, top, right] - values[plane, top, left])
    lower = values[plane, below, left] + across * (values[plane, below, right] - values[plane, below, left])
    first = upper + down * (lower - upper)
    plane += 1
    upper = values[plane, top, left] + across * (values[plane, top, right] - values[plane, top, left])
    lower = values[plane, below, left] + across * (values[plane, below, right] - values[plane, below, left])
    return first, upper + down * (lower - upper)


@allocating
def _agreement(there: Any, back: Any, noise: float, share: float, out: Any) -> Any:
    """``paths._agreement`` into out [h, w], and the mean of it. back: [1, 2 * h * w]; h and w are at least 2."""
    height, width = out.shape
    # Eight points are read at once; what is beyond the last one of a row is read at 0 and told to nobody.
    room = -(-width // LANES) * LANES
    places, shares, read = (
        np.zeros((1, room), np.int32),
        np.zeros((4, room), np.float32),
        np.empty((2, room), np.float32),
    )
    one, most_x, most_y = np.float32(1), np.float32(width - 1), np.float32(height - 1)
    summed = 0.0
    for i in range(height):
        for j in range(width):
            x, y = np.float32(j) + there[0, i, j], np.float32(i) + there[1, i, j]
            x = min(x if x > 0 else np.float32(0), most_x)
            y = min(y if y > 0 else np.float32(0), most_y)
            left, top = min(np.int32(x), np.int32(width - 2)), min(np.int32(y), np.int32(height - 2))
            places[0, j] = top * np.int32(width) + left
            x, y = x - np.float32(left), y - np.float32(top)
            shares[0, j], shares[1, j] = (one - y) * (one - x), (one - y) * x
            shares[2, j], shares[3, j] = y * (one - x), y * x
        for j in range(0, width, LANES):
            for axis in range(2):
                left, right = load_pairs(back, axis * height * width, places, 0, j)
                made = left * load(shares, 0, j) + right * load(shares, 1, j)
                left, right = load_pairs(back, axis * height * width + width, places, 0, j)
                store(made + left * load(shares, 2, j) + right * load(shares, 3, j), read, axis, j)
        for j in range(width):
            x, y = there[0, i, j], there[1, i, j]
            back_x, back_y = x + read[0, j], y + read[1, j]
            distance = (back_x * back_x + back_y * back_y) / (noise + share * (x * x + y * y))
            out[i, j] = exp(-min(distance, np.float32(80)))
        for j in range(width):
            summed += out[i, j]
    return summed / out.size


@allocating
def _side(
    own: Any,
    seen: Any,
    away: Any,
    tracked: Any,
    time: float,
    behind: float,
    least: float,
    enough: float,
    onward: Any,
    bend: Any,
    weight: Any,
    hidden: Any,
) -> None:
    """``paths._side`` into the last four. away: flow to the frame beyond; tracked: how far it is believed."""
    height, width = seen.shape
    one = np.float32(1)
    known = np.empty((3, height, width), np.float32)
    bends = np.float32(2) / (one + time)
    for i in range(height):
        for j in range(width):
            share = seen[i, j] * tracked[i, j]
            known[2, i, j] = share
            for axis in range(2):
                known[axis, i, j] = share * bends * (own[axis, i, j] + away[axis, i, j] / time)
    around = _summed_around(known)
    reach = AROUND // 2
    for i in range(height):
        rows = min(i + reach, height - 1) - max(i - reach, 0) + 1
        for j in range(width):
            columns = min(j + reach, width - 1) - max(j - reach, 0) + 1
            share = one / np.float32(rows * columns)
            lent = (one - known[2, i, j]) / max(around[2, i, j] * share, enough) * share
            lost = (one - seen[i, j]) * tracked[i, j]
            for axis in range(2):
                onward[axis, i, j] = own[axis, i, j] - lost * (own[axis, i, j] + away[axis, i, j] / time)
                bend[axis, i, j] = known[axis, i, j] + lent * around[axis, i, j]
            x, y = np.float32(j) + own[0, i, j], np.float32(i) + own[1, i, j]
            beyond = max(max(-x, x - np.float32(width - 1)), max(-y, y - np.float32(height - 1)))
            weight[i, j] = seen[i, j] + behind * tracked[i, j] + least
            hidden[i, j] = max(lost, min(max(beyond, np.float32(0)), one))


@allocating
def _summed_around(values: Any) -> Any:
    """Sums over the square of ``AROUND`` positions around each, as far as it lies in [C, h, w]."""
    channels, height, width = values.shape
    reach = AROUND // 2
    out = np.zeros_like(values)
    row = np.zeros(width + 2 * reach, np.float32)
    for channel in range(channels):
        for i in range(height):
            row[:] = np.float32(0)
            for k in range(max(i - reach, 0), min(i + reach, height - 1) + 1):
                for j in range(width):
                    row[reach + j] += values[channel, k, j]
            made = out[channel, i]
            for k in range(AROUND):
                for j in range(width):
                    made[j] += row[k + j]
    return out


@inlined
def _lands(told: Any, when: float, frame: int, i: int, j: int) -> Any:
    """Row and column at which a point of the first (0) or second (1) frame lands, and the curve's part of its way."""
    far = when if frame == 0 else np.float32(1) - when
    curve = when * (np.float32(1) - when) / np.float32(2)
    bend_x, bend_y = curve * told[8 + 2 * frame, i, j], curve * told[9 + 2 * frame, i, j]
    x = np.float32(j) + (far * told[4 + 2 * frame, i, j] - bend_x)
    y = np.float32(i) + (far * told[5 + 2 * frame, i, j] - bend_y)
    # What is farther out lands nowhere.
    height, width = told.shape[1:]
    x = min(x, np.float32(width + 1)) if x > -2 else np.float32(-2)
    y = min(y, np.float32(height + 1)) if y > -2 else np.float32(-2)
    return y, x, bend_x, bend_y


@inlined
def _corner(y: float, x: float) -> Any:
    """The first of the four positions between which a place lies, and how far it is from there."""
    top, left = int(np.floor(y)), int(np.floor(x))
    return top, left, y - np.float32(top), x - np.float32(left)


@compiled
def _spread_ways(told: Any, when: float, landed: Any) -> None:
    """The way from the first frame to the second of every point, spread where it lands with its weight: (x, y, weight,
    nothing) of each in [h, 4 w]."""
    height, width = told.shape[1:]
    one, none = np.float32(1), np.float32(0)
    for frame in range(2):
        sign, nearer = (one, np.float32(2) - when) if frame == 0 else (-one, one + when)
        for i in range(height):
            for j in range(width):
                y, x, _, _ = _lands(told, when, frame, i, j)
                top, left, down, across = _corner(y, x)
                weight = nearer * told[12 + frame, i, j]
                way_x, way_y = sign * told[4 + 2 * frame, i, j], sign * told[5 + 2 * frame, i, j]
                way = pack4(weight * way_x, weight * way_y, weight, none)
                for below in range(2):
                    row = top + below
                    if 0 <= row < height:
                        vertical = down if below else one - down
                        for right in range(2):
                            column = left + right
                            if 0 <= column < width:
                                share = vertical * (across if right else one - across)
                                store(load4(landed, row, 4 * column) + same4(share) * way, landed, row, 4 * column)


@compiled
def _mean(landed: Any, least: float) -> None:
    """Of what was spread, by the weight of which there is at least so much; in place."""
    for i in range(landed.shape[0]):
        for j in range(0, landed.shape[1], 4):
            share = np.float32(1) / max(landed[i, j + 2], least)
            landed[i, j] *= share
            landed[i, j + 1] *= share


@inlined
def _read_mean(mean: Any, y: float, x: float) -> Any:
    """What ``_mean`` made of [h, 4 w] at a position, x and y, outside of it at its border."""
    top, below, down = _between(y, mean.shape[0])
    left, right, across = _between(x, mean.shape[1] // 4)
    left, right = 4 * left, 4 * right
    upper = mean[top, left] + across * (mean[top, right] - mean[top, left])
    lower = mean[below, left] + across * (mean[below, right] - mean[below, left])
    first = upper + down * (lower - upper)
    left, right = left + 1, right + 1
    upper = mean[top, left] + across * (mean[top, right] - mean[top, left])
    lower = mean[below, left] + across * (mean[below, right] - mean[below, left])
    return first, upper + down * (lower - upper)


@compiled
def _spread(told: Any, when: float, apart: float, mean: Any, landed: Any) -> None:
    """Of every point where it lands: flow to the first and to the second frame, how sure it is that the first and that
    the second hides it, and its weight, less where its way is far from the mean [h, 4 w] there: seven numbers of eight
    of each in [h, 8 w]."""
    height, width = told.shape[1:]
    one, none = np.float32(1), np.float32(0)
    far = when * when + (one - when) * (one - when)
    for frame in range(2):
        sign, nearer = (one, np.float32(2) - when) if frame == 0 else (-one, one + when)
        for i in range(height):
            for j in range(width):
                y, x, bend_x, bend_y = _lands(told, when, frame, i, j)
                way_x, way_y = sign * told[4 + 2 * frame, i, j], sign * told[5 + 2 * frame, i, j]
                off_x, off_y = _read_mean(mean, y, x)
                off_x, off_y = off_x - way_x, off_y - way_y
                weight = nearer * told[12 + frame, i, j]
                weight /= one + (off_x * off_x + off_y * off_y) * far * apart
                hides = weight * told[14 + frame, i, j]
                first_x, first_y = bend_x - when * way_x, bend_y - when * way_y
                values = pack(
                    weight * first_x,
                    weight * first_y,
                    weight * (first_x + way_x),
                    weight * (first_y + way_y),
                    hides if frame == 0 else none,
                    hides if frame == 1 else none,
                    weight,
                    none,
                )
                top, left, down, across = _corner(y, x)
                for below in range(2):
                    row = top + below
                    if 0 <= row < height:
                        vertical = down if below else one - down
                        for right in range(2):
                            column = left + right
                            if 0 <= column < width:
                                share = vertical * (across if right else one - across)
                                store(load(landed, row, 8 * column) + same(share) * values, landed, row, 8 * column)


@compiled
def _settle(told: Any, when: float, guess: float, doubt: float, certain: float, landed: Any, out: Any) -> None:
    """Flow t -> 0 and t -> 1, in positions of the finer map, and the prior: [5, h, w]."""
    one = np.float32(1)
    rest = one - when
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            place = 8 * j
            if told[16, i, j] > 0:
                for axis in range(4):
                    out[axis, i, j] = np.float32(0)
                out[4, i, j] = certain if when <= np.float32(0.5) else -certain
                continue
            known = landed[i, place + 6] + guess
            scale = np.float32(FINER) / known
            # Without any paths: the other frame's flow, read where this one's leads.
            y, x = np.float32(i) + rest * told[1, i, j], np.float32(j) + rest * told[0, i, j]
            back_x, back_y = _read_both(told, 2, y, x)
            out[0, i, j] = scale * (landed[i, place] + guess * when * back_x)
            out[1, i, j] = scale * (landed[i, place + 1] + guess * when * back_y)
            y, x = np.float32(i) + when * told[3, i, j], np.float32(j) + when * told[2, i, j]
            way_x, way_y = _read_both(told, 0, y, x)
            out[2, i, j] = scale * (landed[i, place + 2] + guess * rest * way_x)
            out[3, i, j] = scale * (landed[i, place + 3] + guess * rest * way_y)
            first, second = min(landed[i, place + 4] / known, one), min(landed[i, place + 5] / known, one)
            out[4, i, j] = np.log((one + doubt - second) / (one + doubt - first))


@compiled
def _apart(whole: Any, parts: Any) -> None:
    """Positions of [2 h, 2 w] by their place in every 2x2 of them, [4, h, w]."""
    for i in range(parts.shape[1]):
        for down in range(FINER):
            row, left, right = whole[FINER * i + down], parts[FINER * down, i], parts[FINER * down + 1, i]
            for j in range(left.size):
                left[j], right[j] = row[FINER * j], row[FINER * j + 1]


@compiled
def _together(parts: Any, whole: Any) -> None:
    """``_apart`` undone."""
    for i in range(parts.shape[1]):
        for down in range(FINER):
            row, left, right = whole[FINER * i + down], parts[FINER * down, i], parts[FINER * down + 1, i]
            for j in range(left.size):
                row[FINER * j], row[FINER * j + 1] = left[j], right[j]


@allocating
def _enlarge(small: Any, out: Any) -> None:
    """Bilinear enlargement to twice the size, [C, h, w] -> the first C of [.., 2 h, 2 w]."""
    channels, height, width = small.shape
    row = np.empty(width, np.float32)
    near, far = np.float32(0.75), np.float32(0.25)
    for channel in range(channels):
        for y in range(2 * height):
            i = y // 2
            beside = min(i + 1, height - 1) if y % 2 else max(i - 1, 0)
            for j in range(width):
                row[j] = near * small[channel, i, j] + far * small[channel, beside, j]
            made = out[channel, y]
            made[0], made[2 * width - 1] = row[0], row[width - 1]
            for j in range(width - 1):
                made[2 * j + 1] = near * row[j] + far * row[j + 1]
                made[2 * j + 2] = far * row[j] + near * row[j + 1]
