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
from ugsp_net.cpu.vectors import allocating, as_array, compiled, inlined, load, plain, same, total
from ugsp_net.search import _LUMA

LANES = 8
REACH = 2
"""``masks.EDGE_REACH``; compiled code knows no other file's constants."""
assert REACH == masks.EDGE_REACH
_SHARES = tuple(np.float32(share) for share in _LUMA)


def change(frame0: Tensor, frame1: Tensor) -> Tensor:
    """What ``masks.change`` returns."""
    out = frame0.new_empty((len(frame0), 2, *frame0.shape[-2:]), dtype=torch.float32)
    for one, other, made in zip(plain(frame0.float()), plain(frame1.float()), out.numpy(), strict=True):
        _change(one, other, *_SHARES, made)
    return out


def block_logits(feature: Tensor, gate: Conv, side: int, parent: Tensor) -> Tensor:
    """What ``masks.block_logits`` returns, 0 where the parent is 0."""
    weight, bias = gate.weight.to(feature.dtype), gate.bias
    assert bias is not None
    if feature.stride(1) != 1 or feature.shape[1] % LANES:
        feature = F.pad(feature.permute(0, 2, 3, 1), (0, -feature.shape[1] % LANES)).contiguous().permute(0, 3, 1, 2)
    taps = F.pad(weight[0].float().permute(1, 2, 0).flatten(0, 1), (0, feature.shape[1] - weight.shape[1]))
    out = torch.zeros_like(parent)
    for index, made in enumerate(out.numpy()):
        read = as_array(feature[index].permute(1, 2, 0))
        _block_logits(read, plain(taps), np.float32(bias.item()), side, plain(parent[index, 0]), made[0])
    return out


def over_blocks(values: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What ``pooling.over_blocks`` returns."""
    batch, channels, height, width = values.shape
    mean, most = (values.new_empty((batch, channels, height // side, width // side)) for _ in range(2))
    for picture, means, largest in zip(plain(values), mean.numpy(), most.numpy(), strict=True):
        for channel in range(channels):
            _over_blocks(picture[channel], side, means[channel], largest[channel])
    return mean, most


def share_below(changed: Tensor, limit: float, side: int, others: Sequence[Tensor] = ()) -> Tensor:
    """What ``masks._share_below`` returns."""
    batch, _, height, width = changed.shape
    out = changed.new_empty((batch, 1, height // side, width // side))
    # Three at once, one of them again where there are fewer: to write down the largest takes ten times as long.
    some = [changed, *others]
    some += [changed] * (3 - len(some))
    three = *some[:2], reduce(torch.maximum, some[3:], some[2])
    for *values, made in zip(*map(plain, three), out.numpy(), strict=True):
        _share_below(*(one[0] for one in values), np.float32(limit), side, made[0])
    return out


def rooted_edges(frame0: Tensor, frame1: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """What ``masks._rooted_edges`` returns."""
    batch, _, height, width = frame0.shape
    edges, same = (frame0.new_empty((batch, 1, height // 2, width // 2)) for _ in range(2))
    limits = np.float32(masks.SAME), *(np.float32(share) for share in masks.SAME_SHARES), np.float32(masks.EDGE)
    shades = np.empty((2, height, width), np.float32)
    every = zip(plain(frame0), plain(frame1), plain(changed), edges.numpy(), same.numpy(), strict=True)
    for first, second, differs, edge, alike in every:
        for frame, shade in zip((first, second), shades, strict=True):
            _luma(frame, *_SHARES, shade)
        _rooted_edges(first[1], second[1], *shades, differs, *limits, edge[0], alike[0])
    return edges, same


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
def _change(frame0: Any, frame1: Any, red: float, green: float, blue: float, out: Any) -> None:
    """frame0, frame1: [3, H, W]; out: [2, H, W]."""
    for y in range(out.shape[1]):
        for x in range(out.shape[2]):
            r = frame0[0, y, x] - frame1[0, y, x]
            g = frame0[1, y, x] - frame1[1, y, x]
            b = frame0[2, y, x] - frame1[2, y, x]
            out[0, y, x] = max(max(abs(r), abs(g)), abs(b))
            out[1, y, x] = abs(red * r + green * g + blue * b)


@compiled
def _over_blocks(values: Any, side: int, mean: Any, most: Any) -> None:
    """values: [H, W]; mean, most: [H / side, W / side]."""
    share = np.float32(1 / side**2)
    for i in range(mean.shape[0]):
        for j in range(mean.shape[1]):
            summed, largest = np.float32(0), values[side * i, side * j]
            for y in range(side):
                row = values[side * i + y, side * j : side * (j + 1)]
                for x in range(side):
                    summed += row[x]
                    largest = max(largest, row[x])
            mean[i, j], most[i, j] = summed * share, largest


@compiled
def _share_below(one: Any, two: Any, three: Any, limit: float, side: int, out: Any) -> None:
    """one, two, three: [H, W]; out: [H / side, W / side]."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            count = np.float32(0)
            for y in range(side):
                first = one[side * i + y, side * j : side * (j + 1)]
                second = two[side * i + y, side * j : side * (j + 1)]
                third = three[side * i + y, side * j : side * (j + 1)]
                for x in range(side):
                    count += np.float32(1) if max(max(first[x], second[x]), third[x]) < limit else np.float32(0)
            out[i, j] = count / np.float32(side**2)


@compiled
def _luma(frame: Any, red: float, green: float, blue: float, out: Any) -> None:
    """frame: [3, H, W]; out: [H, W]."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[y, x] = red * frame[0, y, x] + green * frame[1, y, x] + blue * frame[2, y, x]


@inlined
def _add_contrast(shade: Any, y: int, other: Any, contrast: Any) -> None:
    """Into contrast [W]: how much of an edge each pixel of a row is part of, where another frame shows it so too."""
    height, width = shade.shape
    above, below = max(y - REACH, 0), min(y + REACH, height - 1)
    if below - above < 2 * REACH:  # nothing is told of the rows at the border
        above = below = y
    # Rows first, so that every index is known not to be negative.
    up, down, beside = shade[above], shade[below], shade[y]
    other_up, other_down, other_beside = other[above], other[below], other[y]
    for x in range(width):
        contrast[x] = min(abs(down[x] - up[x]), abs(other_down[x] - other_up[x]))
    for x in range(width - 2 * REACH):
        inner = x + REACH
        one = max(abs(beside[x + 2 * REACH] - beside[x]), abs(down[inner] - up[inner]))
        two = max(abs(other_beside[x + 2 * REACH] - other_beside[x]), abs(other_down[inner] - other_up[inner]))
        contrast[inner] = min(one, two)


@allocating
def _rooted_edges(
    green0: Any,
    green1: Any,
    luma0: Any,
    luma1: Any,
    changed: Any,
    least: float,
    share_colour: float,
    share_luma: float,
    edge: float,
    edges: Any,
    same: Any,
) -> None:
    """changed: [2, H, W]; edges, same: [H / 2, W / 2]."""
    width = green0.shape[1]
    coloured, bright = np.empty(width, np.float32), np.empty(width, np.float32)
    one, none = np.float32(1), np.float32(0)
    rooted, alike = np.empty((2, width), np.float32), np.empty((2, width), np.float32)
    for i in range(edges.shape[0]):
        for row in range(2):
            y = 2 * i + row
            _add_contrast(green0, y, green1, coloured)
            _add_contrast(luma0, y, luma1, bright)
            colours, lumas, roots, alikes = changed[0, y], changed[1, y], rooted[row], alike[row]
            # Few arrays to a loop: the compiler has to make sure that those written are none of those read.
            for x in range(width):
                found = one if colours[x] < max(coloured[x] * share_colour, least) else none
                alikes[x] = found
                coloured[x] = found if coloured[x] > edge else none
            for x in range(width):
                found = one if lumas[x] < max(bright[x] * share_luma, least) else none
                roots[x] = max(found if bright[x] > edge else none, coloured[x])
        for j in range(edges.shape[1]):
            count = rooted[0, 2 * j] + rooted[0, 2 * j + 1] + rooted[1, 2 * j] + rooted[1, 2 * j + 1]
            edges[i, j] = count * np.float32(0.25)
            count = alike[0, 2 * j] + alike[0, 2 * j + 1] + alike[1, 2 * j] + alike[1, 2 * j + 1]
            same[i, j] = one if count == np.float32(4) else none
