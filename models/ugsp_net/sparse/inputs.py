"""A level's inputs at chosen positions: what ``UGSP`` joins for the whole level, made where it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net import matching
from ugsp_net.matching import TILE

ROUND = 16
"""Batches are filled up to a multiple of this, because oneDNN prepares a convolution anew for every size it meets,
which costs more than the convolution itself."""


@dataclass(frozen=True)
class Matching:
    """How well both frames' features match near a position."""

    radius: int
    """Largest displacement, in positions of the level."""
    reduce: Callable[[Tensor], Tensor]
    """[N, (2 radius + 1)^2, T, T] -> [N, matched, T, T], both in the type of the activations."""


@dataclass(frozen=True)
class SparseInputs:
    """Inputs of a level, in the order in which ``UGSP`` joins them."""

    left: Tensor
    """[B, C, H, W]: features of the first frame, not warped."""
    right: Tensor
    """[B, C, H, W]: of the second."""
    above: Tensor
    """[B, C', H / 2, W / 2]: the feature from the level above."""
    flow: Tensor
    """[B, 4, H, W] fp32, in positions of this level."""
    bound: float
    """Longer flow is told as this, in positions."""
    t: Tensor | None
    """[B] fp32, in a network of any instant."""
    matching: Matching | None
    """None in a level without."""
    dtype: torch.dtype
    """Of the activations."""

    def rows(self, positions: Tensor) -> Tensor:
        """[U] flat positions over [B, H, W], each once -> [U + 1, 2 C + C' (+ matched) + 4 (+ 1)]: theirs, and a row
        of zeros."""
        height, width = self.flow.shape[-2:]
        flows = self.flow.transpose(0, 1).flatten(1)  # [4, B * H * W]: single values are read in a tenth of the time
        places = picture, y, x = _places(positions, height, width)
        flow = flows.index_select(1, positions)  # [4, U]
        left = _warped(self.left, flow[:2], places)
        # As F.interpolate enlarges: pixel centres, not pixel corners, lie on each other.
        above = _bilinear(self.above, picture, x / 2 - 0.25, y / 2 - 0.25)
        if self.matching is None:
            parts = [left, _warped(self.right, flow[2:], places), above]
        else:
            squares = _Squares(positions, self.flow, self.matching.radius)
            flow_around = flows[2:].index_select(1, squares.around)
            around = _warped(self.right, flow_around, _places(squares.around, height, width))
            matched = squares.match(left, around, self.matching, self.dtype)
            parts = [left, around.index_select(0, squares.here), above, matched]
        parts.append(flow.clamp(-self.bound, self.bound).T)
        if self.t is not None:
            parts.append(self.t[picture, None])
        joined = flow.new_empty((positions.shape[0] + 1, sum(part.shape[1] for part in parts)), dtype=self.dtype)
        joined[-1] = 0
        for part, target in zip(parts, joined[:-1].split([part.shape[1] for part in parts], dim=1), strict=True):
            target.copy_(part)
        return joined


@dataclass(frozen=True)
class DenseInputs:
    """Inputs that are there already."""

    x: Tensor
    """[B, inputs, H, W]."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self.x.dtype

    def rows(self, positions: Tensor) -> Tensor:
        """As ``SparseInputs.rows``."""
        rows = self.x.permute(0, 2, 3, 1).reshape(-1, self.x.shape[1]).index_select(0, positions)
        return torch.cat((rows, rows.new_zeros(1, rows.shape[1])))


class _Squares:
    """The squares of T x T positions that hold a chosen position, which is what a correlation is computed in."""

    def __init__(self, positions: Tensor, flow: Tensor, radius: int) -> None:
        """positions: [U] over [B, H, W], each once; flow: any map of that size."""
        batch, _, height, width = flow.shape
        rows, columns = -(-height // TILE), -(-width // TILE)
        size = batch * height * width
        picture, y, x = _places(positions, height, width)
        square = (picture * rows + y // TILE) * columns + x // TILE  # [U]
        chosen, number = distinct(square, batch * rows * columns)
        chosen = filled_up(chosen, ROUND)  # [N]
        corner = chosen // (rows * columns), chosen // columns % rows * TILE, chosen % columns * TILE

        def window(reach: int) -> Tensor:
            """Places over [B, H, W] of the squares, ``reach`` larger on each side, [N, (T + 2 reach)^2]; -1 outside."""
            span = torch.arange(-reach, TILE + reach, device=flow.device)
            down, across = corner[1][:, None] + span, corner[2][:, None] + span  # [N, T + 2 reach]
            inside = ((down >= 0) & (down < height))[:, :, None] & ((across >= 0) & (across < width))[:, None]
            places = (corner[0][:, None] * height + down)[:, :, None] * width + across[:, None]
            return torch.where(inside, places, -1).flatten(1)

        windows = window(radius)
        self.around, numbers = distinct(windows, size)
        """[V]: the positions that any window reads, in order; every chosen one is among them."""
        self.here = numbers[positions]
        """[U]: rows of ``around``."""
        self._windows = numbers[windows]
        self._inner = distinct(positions, size)[1][window(0)]
        self._read = (number[square] * TILE + y % TILE) * TILE + x % TILE

    def match(self, left: Tensor, around: Tensor, how: Matching, dtype: torch.dtype) -> Tensor:
        """left: [U, C] at the chosen positions; around: [V, C] of the other frame -> [U, matched]."""
        one = _gathered(matching.unit_length(left).to(dtype), self._inner)  # [N, T * T, C]
        other = _gathered(matching.unit_length(around).to(dtype), self._windows)
        found = matching.correlate_squares(one, other, how.radius)  # [N, side, side, T, T]
        found = found.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)  # channels last
        reduced = how.reduce(found).permute(0, 2, 3, 1).flatten(0, 2)  # [N * T * T, matched]
        return reduced.index_select(0, self._read)


def distinct(places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number places in [0, size), any shape, where -1 is nowhere: each once, in order, [U], and the number of each
    place, [size + 1]. What is not among them, -1 too, has the number U: the row after the last."""
    read = torch.zeros(size + 1, dtype=torch.bool, device=places.device)
    read[places.flatten()] = True
    read[-1] = False
    chosen = read.nonzero()[:, 0]
    return chosen, torch.where(read, read.cumsum(0) - 1, chosen.shape[0])


def filled_up(items: Tensor, multiple: int) -> Tensor:
    """Items [N], N > 0, the last one repeated until their number is a multiple."""
    return torch.cat((items, items[-1:].expand(-len(items) % multiple)))


def _gathered(rows: Tensor, numbers: Tensor) -> Tensor:
    """Rows [U, C] by their numbers [N, P], where U is a row of zeros; [N, P, C]."""
    table = torch.cat((rows, rows.new_zeros(1, rows.shape[1])))
    return table.index_select(0, numbers.flatten()).view(*numbers.shape, -1)


def _rows(values: Tensor) -> Tensor:
    """[B, C, H, W] -> [B * H * W, C] fp32."""
    return values.permute(0, 2, 3, 1).reshape(-1, values.shape[1]).float()


def _places(positions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Picture, row and column of flat positions."""
    row = positions // width
    picture = row // height
    return picture, row - picture * height, positions - row * width


def _warped(source: Tensor, flow: Tensor, places: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """``backward_warp`` at U places; source: [B, C, H, W]; flow: [2, U] there. Returns [U, C] fp32."""
    picture, y, x = places
    return _bilinear(source, picture, x + flow[0], y + flow[1])


def _bilinear(source: Tensor, picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read source [B, C, H, W] at [U] places, border values repeated; [U, C] fp32. As ``backward_warp``.

    The four neighbours are summed with their weights by an embedding bag, in one pass and without copies of them.
    """
    height, width = source.shape[-2:]
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    x0, y0 = x.floor(), y.floor()
    right, down = x - x0, y - y0
    across = (x0 < width - 1).long()
    below = (y0 < height - 1).long() * width
    corner = (picture * height + y0.long()) * width + x0.long()
    places = torch.stack((corner, corner + across, corner + below, corner + below + across), dim=1)
    left, up = 1 - right, 1 - down
    weights = torch.stack((left * up, right * up, left * down, right * down), dim=1)
    return F.embedding_bag(places, _rows(source), per_sample_weights=weights, mode="sum")
