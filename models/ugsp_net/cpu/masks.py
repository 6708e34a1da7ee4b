"""What ``masks`` looks at pixel by pixel, for processors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net import masks
from ugsp_net.blocks import Conv
from ugsp_net.cpu.vectors import (
    allocating,
    as_array,
    by_eight,
    compiled,
    flat,
    inlined,
    largest,
    load,
    number,
    plain,
    same,
    store,
    total,
)
from ugsp_net.search import _LUMA

LANES = 8
REACH = 2
"""``masks.EDGE_REACH``; compiled code knows no other file's constants."""
assert REACH == masks.EDGE_REACH
_SHARES = tuple(np.float32(share) for share in _LUMA)


def change(frame0: Tensor, frame1: Tensor) -> Tensor:
    """What ``masks.change`` returns, in bf16: it is read five times, and that two cores wait for memory."""
    out = frame0.new_empty((len(frame0), 2, *frame0.shape[-2:]), dtype=torch.bfloat16)
    for one, other, made in zip(frame0.float(), frame1.float(), out, strict=True):
        _change(*flat(one), *flat(other), *_SHARES, *(as_array(plane) for plane in made))
    return out


def block_logits(feature: Tensor, gate: Conv, side: int, parent: Tensor) -> Tensor:
    """What ``masks.block_logits`` returns, 0 where the parent is 0."""
    same_type = gate.weight.dtype == feature.dtype
    taps = gate.kept(_taps) if same_type else _taps(gate.weight.to(feature.dtype))
    bias = gate.bias
    assert bias is not None
    feature = by_eight(feature)
    out = torch.zeros_like(parent)
    for index, made in enumerate(out.numpy()):
        read = as_array(feature[index].permute(1, 2, 0))
        _block_logits(read, taps, np.float32(bias.item()), side, plain(parent[index, 0]), made[0])
    return out


def _taps(weight: Tensor) -> Any:
    """[1, C, 3, 3] -> [9, C] fp32, C filled up with zeros to a multiple of 8."""
    taps = weight[0].float().permute(1, 2, 0).flatten(0, 1)
    return plain(F.pad(taps, (0, -weight.shape[1] % LANES)))


def over_blocks(values: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What ``pooling.over_blocks`` returns."""
    batch, channels, height, width = values.shape
    shape = batch, channels, height // side, width // side
    mean, most = (values.new_empty(shape, dtype=torch.float32) for _ in range(2))
    for plane, *made in zip(values.flatten(0, 1), mean.flatten(0, 1), most.flatten(0, 1), strict=True):
        _over_blocks(*flat(plane[None])[::2], side, *(one.numpy() for one in made))
    return mean, most


def share_below(changed: Tensor, limit: float, side: int, others: Sequence[Tensor] = ()) -> Tensor:
    """What ``masks._share_below`` returns."""
    batch, _, height, width = changed.shape
    out = changed.new_empty((batch, 1, height // side, width // side), dtype=torch.float32)
    for *values, made in zip(*_three([changed, *others]), out.numpy(), strict=True):
        _share_below(*(flat(one)[::2] for one in values), np.float32(limit), side, made[0])
    return out


def rooted_edges(
    frame0: Tensor, frame1: Tensor, changed: Tensor, others: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """What ``masks._rooted_edges`` returns."""
    batch, _, height, width = frame0.shape
    edges, same = (frame0.new_empty((batch, 1, height // 2, width // 2)) for _ in range(2))
    limits = np.float32(masks.SAME), *(np.float32(share) for share in masks.SAME_SHARES), np.float32(masks.EDGE)
    changes = _three([changed, *others])
    for index in range(batch):
        seen = (flat(some[index]) for some in (frame0, frame1, *changes))
        _rooted_edges(*seen, *_SHARES, *limits, edges[index, 0].numpy(), same[index, 0].numpy())
    return edges, same


def standing(edges: Tensor, same: Tensor) -> Tensor:
    """What ``masks._standing`` returns."""
    out = torch.empty_like(same)
    every = zip(plain(edges[:, 0]), plain(same[:, 0]), out[:, 0].numpy(), strict=True)
    for edge, alike, made in every:
        _standing(edge, alike, np.float32(masks.EDGES), masks.WITHIN // 2, made)
    return out


def moving_blocks(agree: Tensor, flow: Tensor, stride: int, side: int) -> Tensor:
    """What ``masks.moving_blocks`` returns."""
    if agree.shape[-2:] != flow.shape[-2:]:
        return (~masks.still_blocks(agree, stride * flow, side)).float()
    out = torch.empty(agree.shape)
    for alike, moved, made in zip(plain(agree[:, 0]), plain(flow.float()), out[:, 0].numpy(), strict=True):
        _moving_blocks(alike, moved, np.float32(masks.STILL_FLOW / stride), -(-masks.AROUND // side), made)
    return out


def mean_around(values: Tensor, side: int) -> Tensor:
    """What ``pooling.mean_around`` returns."""
    out = values.new_empty(values.shape, dtype=torch.float32)
    for plane, made in zip(values.float().flatten(0, 1), out.flatten(0, 1), strict=True):
        _mean_around(plain(plane), side // 2, made.numpy())
    return out


def _three(some: list[Tensor]) -> list[Tensor]:
    """Three with the same largest values, one of them again where there are fewer: to write down the largest takes ten
    times as long as to read them."""
    some = some + some[:1] * (3 - len(some))
    return [*some[:2], reduce(torch.maximum, some[3:], some[2])]


@compiled
def _block_logits(feature: Any, taps: Any, bias: float, side: int, parent: Any, out: Any) -> None:
    """feature: [H, W, C], C a multiple of 8, the channels one behind the other; taps: [9, C]; out: filled where parent
    is not 0."""
    height, width, channels = feature.shape
    for down in range(out.shape[0]):
        for across in range(out.shape[1]):
            if parent[down, across] == 0:
                continue
            # Three sums: one would wait for itself.
            left = middle = right = same(np.float32(0))
            for y in range(side * down, side * (down + 1)):
                for tap in range(3):
                    if not 0 <= y + tap - 1 < height:
                        continue
                    row = feature[y + tap - 1]
                    for x in range(side * across, side * (across + 1)):
                        for first in range(0, channels, LANES):
                            middle += load(row, x, first) * load(taps, 3 * tap + 1, first)
                            if x > 0:
                                left += load(row, x - 1, first) * load(taps, 3 * tap, first)
                            if x < width - 1:
                                right += load(row, x + 1, first) * load(taps, 3 * tap + 2, first)
            out[down, across] = total(left + middle + right) / np.float32(side * side) + bias


@compiled
def _change(
    frame0: Any,
    plane0: int,
    row0: int,
    frame1: Any,
    plane1: int,
    row1: int,
    red: float,
    green: float,
    blue: float,
    most: Any,
    bright: Any,
) -> None:
    """frame0, frame1 and where their planes and rows are: from ``flat``; most, bright: [H, W] int16, W of 8 or more."""
    shares, width = (same(red), same(green), same(blue)), most.shape[1]
    for y in range(most.shape[0]):
        here, there = y * row0, y * row1
        for first in range(0, width, LANES):
            x = min(first, width - LANES)  # the last eight overlap those before them where they would be fewer
            r = load(frame0, 0, here + x) - load(frame1, 0, there + x)
            g = load(frame0, 0, here + plane0 + x) - load(frame1, 0, there + plane1 + x)
            b = load(frame0, 0, here + 2 * plane0 + x) - load(frame1, 0, there + 2 * plane1 + x)
            store(largest(largest(_size(r), _size(g)), _size(b)), most, y, x)
            store(_size(shares[0] * r + shares[1] * g + shares[2] * b), bright, y, x)


@inlined
def _size(vector: Any) -> Any:
    """How far from 0."""
    return largest(vector, same(np.float32(0)) - vector)


@allocating
def _over_blocks(values: Any, row: int, side: int, mean: Any, most: Any) -> None:
    """values, row: of a plane, from ``flat``; mean, most: [H / side, W / side]."""
    share = np.float32(1 / side**2)
    columns = side * mean.shape[1]
    summed, greatest = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for i in range(mean.shape[0]):
        for y in range(side * i, side * (i + 1)):
            if y == side * i:
                for x in range(columns):
                    summed[x] = greatest[x] = number(values, 0, y * row + x)
            else:
                for x in range(columns):
                    summed[x] += number(values, 0, y * row + x)
                for x in range(columns):
                    greatest[x] = max(greatest[x], number(values, 0, y * row + x))
        for j in range(mean.shape[1]):
            added, found = np.float32(0), greatest[side * j]
            for x in range(side * j, side * (j + 1)):
                added += summed[x]
                found = max(found, greatest[x])
            mean[i, j], most[i, j] = added * share, found


@compiled
def _share_below(one: Any, two: Any, three: Any, limit: float, side: int, out: Any) -> None:
    """one, two, three: planes and how many numbers their rows are apart, from ``flat``; out: [H / side, W / side]."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            count = np.float32(0)
            for y in range(side * i, side * (i + 1)):
                first, second, third = y * one[1] + side * j, y * two[1] + side * j, y * three[1] + side * j
                for x in range(side):
                    found = max(number(one[0], 0, first + x), number(two[0], 0, second + x))
                    found = max(found, number(three[0], 0, third + x))
                    count += np.float32(1) if found < limit else np.float32(0)
            out[i, j] = count / np.float32(side**2)


@allocating
def _moving_blocks(agree: Any, flow: Any, least: float, blocks: int, out: Any) -> None:
    """agree, out: [rows, columns]; flow: [4, rows, columns]; least: what counts as moving; blocks: around one that
    agrees for it to stand still whatever its flow."""
    rows, columns = agree.shape
    largest_of_row, differs_in_row = np.empty((rows, columns), np.float32), np.empty((rows, columns), np.bool_)
    for i in range(rows):
        for j in range(columns):
            found = np.float32(0)
            for x in range(max(j - 1, 0), min(j + 2, columns)):
                for plane in range(4):
                    found = max(found, abs(flow[plane, i, x]))
            largest_of_row[i, j] = found
            differs = False
            for x in range(max(j - blocks, 0), min(j + blocks + 1, columns)):
                differs |= not agree[i, x]
            differs_in_row[i, j] = differs
    for i in range(rows):
        for j in range(columns):
            slow, alike = True, True
            for y in range(max(i - 1, 0), min(i + 2, rows)):
                slow &= largest_of_row[y, j] < least
            for y in range(max(i - blocks, 0), min(i + blocks + 1, rows)):
                alike &= not differs_in_row[y, j]
            out[i, j] = np.float32(0) if agree[i, j] and (slow or alike) else np.float32(1)


@allocating
def _mean_around(values: Any, reach: int, out: Any) -> None:
    """values, out: [H, W]."""
    height, width = values.shape
    column = np.empty(width, np.float32)
    for i in range(height):
        first, last = max(i - reach, 0), min(i + reach, height - 1)
        for j in range(width):
            column[j] = values[first, j]
        for y in range(first + 1, last + 1):
            for j in range(width):
                column[j] += values[y, j]
        for j in range(width):
            column[j] /= np.float32(last - first + 1)
        for j in range(width):
            left, right = max(j - reach, 0), min(j + reach, width - 1)
            added = np.float32(0)
            for x in range(left, right + 1):
                added += column[x]
            out[i, j] = added / np.float32(right - left + 1)


@inlined
def _begins(planes: Any, channel: int, y: int) -> int:
    """Where a row of a plane begins in what ``flat`` made."""
    return int(channel * planes[1] + y * planes[2])


@inlined
def _add_shades(frame: Any, y: int, red: float, green: float, blue: float, colour: Any, luma: Any) -> None:
    """Green and brightness of a row into where this one is kept of both, [2 * REACH + 1, W] each."""
    into, bright = colour[y % (2 * REACH + 1)], luma[y % (2 * REACH + 1)]
    numbers, width = frame[0][0], into.size
    begins = _begins(frame, 0, y), _begins(frame, 1, y), _begins(frame, 2, y)
    r, g = numbers[begins[0] : begins[0] + width], numbers[begins[1] : begins[1] + width]
    b = numbers[begins[2] : begins[2] + width]
    for x in range(into.size):
        into[x] = g[x]
    for x in range(into.size):
        bright[x] = red * r[x] + green * g[x] + blue * b[x]


@inlined
def _add_contrast(shade: Any, y: int, height: int, other: Any, contrast: Any) -> None:
    """Into contrast [W]: how much of an edge each pixel of a row is part of, where another frame shows it so too.
    shade, other: [2 * REACH + 1, W], from ``_add_shades``."""
    width = contrast.size
    above, below = max(y - REACH, 0), min(y + REACH, height - 1)
    if below - above < 2 * REACH:  # nothing is told of the rows at the border
        above = below = y
    # Rows first, so that every index is known not to be negative.
    ring = 2 * REACH + 1
    up, down, beside = shade[above % ring], shade[below % ring], shade[y % ring]
    other_up, other_down, other_beside = other[above % ring], other[below % ring], other[y % ring]
    for x in range(width):
        contrast[x] = min(abs(down[x] - up[x]), abs(other_down[x] - other_up[x]))
    for x in range(width - 2 * REACH):
        inner = x + REACH
        one = max(abs(beside[x + 2 * REACH] - beside[x]), abs(down[inner] - up[inner]))
        two = max(abs(other_beside[x + 2 * REACH] - other_beside[x]), abs(other_down[inner] - other_up[inner]))
        contrast[inner] = min(one, two)


@inlined
def _add_largest(one: Any, two: Any, three: Any, channel: int, y: int, out: Any) -> None:
    """The largest of a row of three, into out [W]."""
    first, second, third = _begins(one, channel, y), _begins(two, channel, y), _begins(three, channel, y)
    for x in range(out.size):
        found = max(number(one[0], 0, first + x), number(two[0], 0, second + x))
        out[x] = max(found, number(three[0], 0, third + x))


@allocating
def _rooted_edges(
    frame0: Any,
    frame1: Any,
    one: Any,
    two: Any,
    three: Any,
    red: float,
    green: float,
    blue: float,
    least: float,
    share_colour: float,
    share_luma: float,
    edge: float,
    edges: Any,
    same: Any,
) -> None:
    """frame0, frame1 and what changed: from ``flat``; edges, same: [H / 2, W / 2]."""
    height, width = 2 * edges.shape[0], 2 * edges.shape[1]
    ring = 2 * REACH + 1
    colour0, luma0 = np.empty((ring, width), np.float32), np.empty((ring, width), np.float32)
    colour1, luma1 = np.empty((ring, width), np.float32), np.empty((ring, width), np.float32)
    coloured, bright = np.empty(width, np.float32), np.empty(width, np.float32)
    colours, lumas = np.empty(width, np.float32), np.empty(width, np.float32)
    full, none = np.float32(1), np.float32(0)
    rooted, alike = np.empty((2, width), np.float32), np.empty((2, width), np.float32)
    for y in range(min(REACH, height)):
        _add_shades(frame0, y, red, green, blue, colour0, luma0)
        _add_shades(frame1, y, red, green, blue, colour1, luma1)
    for i in range(edges.shape[0]):
        for row in range(2):
            y = 2 * i + row
            if y + REACH < height:
                _add_shades(frame0, y + REACH, red, green, blue, colour0, luma0)
                _add_shades(frame1, y + REACH, red, green, blue, colour1, luma1)
            _add_contrast(colour0, y, height, colour1, coloured)
            _add_contrast(luma0, y, height, luma1, bright)
            _add_largest(one, two, three, 0, y, colours)
            _add_largest(one, two, three, 1, y, lumas)
            roots, alikes = rooted[row], alike[row]
            # Few arrays to a loop: the compiler has to make sure that those written are none of those read.
            for x in range(width):
                found = full if colours[x] < max(coloured[x] * share_colour, least) else none
                alikes[x] = found
                coloured[x] = found if coloured[x] > edge else none
            for x in range(width):
                found = full if lumas[x] < max(bright[x] * share_luma, least) else none
                roots[x] = max(found if bright[x] > edge else none, coloured[x])
        for j in range(edges.shape[1]):
            count = rooted[0, 2 * j] + rooted[0, 2 * j + 1] + rooted[1, 2 * j] + rooted[1, 2 * j + 1]
            edges[i, j] = count * np.float32(0.25)
            count = alike[0, 2 * j] + alike[0, 2 * j + 1] + alike[1, 2 * j] + alike[1, 2 * j + 1]
            same[i, j] = full if count == np.float32(4) else none


@allocating
def _standing(edges: Any, same: Any, least: float, side: int, out: Any) -> None:
    """edges, same, out: [h, w]; least: share of edges; side: of blocks, so many of which make up each side."""
    height, width = edges.shape
    one, none = np.float32(1), np.float32(0)
    down, across = np.empty(width + 2, np.float32), np.empty(width + 2, np.float32)
    rooted = np.zeros((height + 2, width + 2), np.float32)
    blocks = np.zeros((height // side + 2, width // side + 2), np.uint8)
    down[0] = down[width + 1] = none
    for i in range(height):
        above, here, below = edges[max(i - 1, 0)], edges[i], edges[min(i + 1, height - 1)]
        upper, lower = one if i > 0 else none, one if i < height - 1 else none
        count = upper + one + lower
        for j in range(width):
            down[j + 1] = (upper * above[j] + here[j] + lower * below[j]) / count
        into = rooted[i + 1]
        for j in range(width):
            across[j] = down[j] + down[j + 1] + down[j + 2]
        for j in range(width):
            into[j + 1] = one if across[j] / np.float32(3) > least else none
        for j in (0, width - 1):
            into[j + 1] = one if across[j] / np.float32(min(width, 2)) > least else none
        for j in range(width):
            if into[j + 1] > 0:
                blocks[i // side + 1, j // side + 1] = 1
    for i in range(height):
        above, here, below = rooted[i], rooted[i + 1], rooted[i + 2]
        for j in range(width + 2):
            down[j] = max(max(above[j], here[j]), below[j])
        into = out[i]
        for j in range(width):
            into[j] = max(max(down[j], down[j + 1]), down[j + 2])
        row = i // side
        for block in range(width // side):
            near = False
            for other in range(row, row + 3):
                near |= (blocks[other, block] | blocks[other, block + 1] | blocks[other, block + 2]) > 0
            if near:
                for j in range(side * block, side * (block + 1)):
                    into[j] = max(into[j], same[i, j])
