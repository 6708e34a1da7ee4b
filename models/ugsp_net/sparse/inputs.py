"""A level's inputs at chosen positions: what ``UGSP`` joins for the whole level, made where it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net import cpu, matching
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
    channels: int
    """Matched ones."""


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
    places: tuple[Tensor, Tensor] | None = None
    """For kernels: where each frame's features lie, [B] int64 addresses each, channels last and laid out as ``left``
    and ``right`` are, which then have no memory; see ``Encoding.places``."""

    def rows(self, positions: Tensor) -> Tensor:
        """[U] flat positions over [B, H, W], each once -> [U + 1, 2 C + C' (+ matched) + 4 (+ 1)]: theirs, and a row
        of zeros."""
        if self._compiled():
            from ugsp_net.cpu import inputs as compiled

            return compiled.rows(self, positions)
        height, width = self.flow.shape[-2:]
        flows = self.flow.transpose(0, 1).flatten(1)  # [4, B * H * W]: single values are read in a tenth of the time
        flow = flows.index_select(1, positions)  # [4, U]
        picture, here = _places(positions, height, width)
        parts = [_read(self.left, picture, here + flow[:2])]
        if self.matching is None:
            parts += [_read(self.right, picture, here + flow[2:]), self._enlarged(picture, here)]
        else:
            squares = _Squares(positions, self.flow, self.matching.radius)
            pictures, places = _places(squares.around, height, width)
            around = _read(self.right, pictures, places.add_(flows[2:].index_select(1, squares.around)))
            matched = squares.match(parts[0], around, self.matching, self.dtype)
            parts += [around.index_select(0, squares.here), self._enlarged(picture, here), matched]
        return self._joined(parts, flow, picture)

    @property
    def channels(self) -> int:
        """Of a position."""
        matched = 0 if self.matching is None else self.matching.channels
        return 2 * self.left.shape[1] + self.above.shape[1] + matched + 4 + (self.t is not None)

    def lines(self, mask: Tensor, picture: int) -> Tensor:
        """What is read of a picture where a mask of blocks [rows, columns] is 1, as ``cpu.products.run`` takes it:
        [lines, W + ROOM, C] with a border of one position, C filled up with zeros."""
        from ugsp_net.cpu import inputs as compiled
        from ugsp_net.cpu.positions import near
        from ugsp_net.cpu.products import room_for

        height, width = self.flow.shape[-2:]
        out = room_for(height, width, self.channels)
        places = near(mask, height, width)
        if self._compiled():
            compiled.put_lines(self, picture, places, out)
        else:
            positions = torch.from_numpy(places)
            _put(self.rows(positions + picture * height * width)[:-1], positions, out, width)
        return out

    def _compiled(self) -> bool:
        """Whether compiled code makes rows."""
        if self.flow.device.type != "cpu" or not cpu.available():
            return False
        from ugsp_net.cpu import inputs as compiled

        return compiled.compiles(self)

    def whole(self) -> Tensor:
        """All of them: [B, 2 C + C' (+ matched) + 4 (+ 1), H, W], channels last."""
        batch, _, height, width = self.flow.shape
        everywhere = torch.arange(batch * height * width)
        if self._compiled():
            return self.rows(everywhere)[:-1].view(batch, height, width, -1).permute(0, 3, 1, 2)
        flow = self.flow.transpose(0, 1).flatten(1)
        picture, here = _places(everywhere, height, width)
        warped = [_read(self.left, picture, here + flow[:2]), _read(self.right, picture, here + flow[2:])]
        parts = [*warped, self._enlarged(picture, here)]
        if self.matching is not None:
            one, other = (
                matching.unit_length(read).to(self.dtype).view(batch, height, width, -1).permute(0, 3, 1, 2)
                for read in warped
            )
            found = matching.squares_correlation(one, other, self.matching.radius)
            reduced = _reduced(found.flatten(0, 2), self.matching).unflatten(0, found.shape[:3])
            placed = reduced.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)[:, :height, :width]
            parts.append(placed.flatten(0, 2))
        return self._joined(parts, flow, picture)[:-1].view(batch, height, width, -1).permute(0, 3, 1, 2)

    def _enlarged(self, picture: Tensor, here: Tensor) -> Tensor:
        """What the level above says at places [2, U] of pictures [U], [U, C']; as ``F.interpolate`` enlarges: pixel
        centres, not pixel corners, lie on each other."""
        return _read(self.above, picture, here / 2 - 0.25)

    def _joined(self, parts: list[Tensor], flow: Tensor, picture: Tensor) -> Tensor:
        """What was read at U positions, their flow [4, U] and the instants of their pictures [U], beside each other,
        then a row of zeros."""
        parts = [*parts, flow.clamp(-self.bound, self.bound).T]
        if self.t is not None:
            parts.append(self.t[picture, None])
        joined = flow.new_empty((len(picture) + 1, sum(part.shape[1] for part in parts)), dtype=self.dtype)
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

    def lines(self, mask: Tensor, picture: int) -> Tensor:
        """As ``SparseInputs.lines``."""
        from ugsp_net.cpu.positions import near
        from ugsp_net.cpu.products import room_for

        channels, height, width = self.x.shape[1:]
        out = room_for(height, width, channels)
        positions = torch.from_numpy(near(mask, height, width))
        _put(self.x[picture].permute(1, 2, 0).reshape(-1, channels).index_select(0, positions), positions, out, width)
        return out


def _put(rows: Tensor, positions: Tensor, lines: Tensor, width: int) -> None:
    """Write rows [U, C] of positions of a picture to where they are in its lines, with zeros behind them."""
    row = positions.div(width, rounding_mode="floor")
    places = (row + 1) * lines.shape[1] + positions - row * width + 1
    lines.view(-1, lines.shape[2]).index_copy_(0, places, F.pad(rows, (0, lines.shape[2] - rows.shape[1])))


class _Squares:
    """The squares of T x T positions that hold a chosen position, which is what a correlation is computed in."""

    def __init__(self, positions: Tensor, flow: Tensor, radius: int) -> None:
        """positions: [U] over [B, H, W], each once; flow: any map of that size."""
        batch, _, height, width = flow.shape
        rows, columns = -(-height // TILE), -(-width // TILE)
        size = batch * height * width
        row = positions // width
        picture = row // height
        y, x = row - picture * height, positions - row * width
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
        reduced = _reduced(matching.correlate_squares(one, other, how.radius), how)
        return reduced.flatten(0, 2).index_select(0, self._read)


def _reduced(found: Tensor, how: Matching) -> Tensor:
    """What is made of squares' correlations [N, side, side, T, T]: [N, T, T, matched]."""
    channels_last = found.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)
    return how.reduce(channels_last).permute(0, 2, 3, 1)


def distinct(places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number places in [0, size), any shape, where -1 is nowhere: each once, in order, [U], and the number of each
    place, [size + 1]. What is not among them, -1 too, has the number U: the row after the last."""
    read = torch.zeros(size + 1, dtype=torch.bool, device=places.device)
    read[places.flatten()] = True
    read[-1] = False
    chosen = read.nonzero()[:, 0]
    return chosen, torch.where(read, read.cumsum(0) - 1, chosen.shape[0])


def filled_up(items: Tensor, multiple: int) -> Tensor:
    """Items [N, ...], N > 0, the last one repeated until their number is a multiple."""
    missing = -len(items) % multiple
    return torch.cat((items, items[-1:].expand(missing, *items.shape[1:]))) if missing else items


def _gathered(rows: Tensor, numbers: Tensor) -> Tensor:
    """Rows [U, C] by their numbers [N, P], where U is a row of zeros; [N, P, C]."""
    table = torch.cat((rows, rows.new_zeros(1, rows.shape[1])))
    return table.index_select(0, numbers.flatten()).view(*numbers.shape, -1)


def _places(positions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Flat positions [U] -> picture [U], and where in it [2, U] fp32 (x, y)."""
    row = positions // width
    picture = row // height
    place = positions.new_empty((2, len(positions)), dtype=torch.float32)
    torch.sub(positions, row * width, out=place[0])
    torch.sub(row, picture * height, out=place[1])
    return picture, place


def _read(source: Tensor, picture: Tensor, place: Tensor) -> Tensor:
    """A map [B, C, H, W] between its positions, border values repeated, as ``backward_warp`` does: [U, C], of its type.

    picture: [U]; place: [2, U] fp32 (x, y), overwritten. The four neighbours of a place are summed with their weights
    (in bf16 rounded to it) by an embedding bag: in one pass and without copies of them.
    """
    height, width = source.shape[-2:]
    most = place.new_tensor((width - 1, height - 1))[:, None]
    place = torch.minimum(place.clamp_(min=0), most, out=place)
    # At the far border all of the weight is beyond the corner, so that there always is something beyond it.
    corner = torch.minimum(place.floor(), (most - 1).clamp_(min=0))
    x, y = place.sub_(corner)
    column, row = corner.to(torch.int32)
    first = row.add_(picture, alpha=height).mul_(width).add_(column)
    right, below = min(1, width - 1), width * min(1, height - 1)
    places = first[:, None] + first.new_tensor((0, right, below, below + right))  # [U, 4]
    rows = source.permute(0, 2, 3, 1).reshape(-1, source.shape[1])
    near, far = (1 - y) * x, y * x
    weights = rows.new_empty(places.shape)
    for index, weight in enumerate(((1 - y) - near, near, y - far, far)):
        weights[:, index] = weight
    return F.embedding_bag(places, rows, per_sample_weights=weights, mode="sum")
