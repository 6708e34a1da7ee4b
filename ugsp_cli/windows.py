"""The network on frames as a whole, or in windows that overlap where memory does not hold what the whole needs.

A window is a cell of the picture and a margin around it: the network sees both, what it makes of the cell is kept.
The search for the first flow sees the whole picture; every window is encoded by itself, so nothing larger than a window
is ever in memory but the frames and that flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ugsp_net.config import STRIDES
from ugsp_net.cost import PRUNED, network_cost
from ugsp_net.masks import Gate
from ugsp_net.network import UGSP, Encoding
from ugsp_net.search import STRIDE
from ugsp_net.sparse import performed_share

__all__ = ["MARGIN", "Seen", "Window", "see_in_windows", "see_part", "split"]

MARGIN = 256
"""Pixels around a cell that the network sees too: what its convolutions reach, and motion of so many pixels. Largest
difference from the whole, of 255, on five real pairs cut in two: 7.6 with a margin of 64, 1.3 with 128, 0.05 with 192,
0.01 with 256 and more."""

LEAST_CELL = 384
"""Pixels; a side of a cell is not halved below. Cells of this size cost up to nine times the work."""


@dataclass(frozen=True)
class Window:
    """One cell of a picture with its margin. All in pixels, multiples of the alignment or the picture's edge."""

    rows: tuple[int, int]
    """First that the network sees, and the one after the last."""
    columns: tuple[int, int]
    cell_rows: tuple[int, int]
    """The same of the cell."""
    cell_columns: tuple[int, int]

    @staticmethod
    def alone(rows: tuple[int, int], columns: tuple[int, int]) -> Window:
        """Without a margin."""
        return Window(rows, columns, rows, columns)

    def covers(self, other: Window) -> bool:
        """Whether the network sees in this one all that it sees in another one."""
        return self.joined(other) == Window.alone(self.rows, self.columns)

    def joined(self, other: Window) -> Window:
        """The smallest without a margin in which the network sees what it sees in both."""
        rows, columns = (
            (min(one[0], two[0]), max(one[1], two[1]))
            for one, two in ((self.rows, other.rows), (self.columns, other.columns))
        )
        return Window.alone(rows, columns)

    @property
    def pixels(self) -> int:
        """How many the network sees."""
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])

    def seen(self, whole: Tensor, stride: int = 1) -> Tensor:
        """What the network sees of [B, C, H, W], or of the same at a stride."""
        rows, columns = (slice(first // stride, last // stride) for first, last in (self.rows, self.columns))
        return whole[..., rows, columns]

    def keep(self, made: Tensor, whole: Tensor, stride: int = 1) -> None:
        """Copy the cell from what was made of this window into the whole picture, both [B, C, ...] at the stride."""
        top, bottom = (row // stride for row in self.cell_rows)
        left, right = (column // stride for column in self.cell_columns)
        above, before = self.rows[0] // stride, self.columns[0] // stride
        whole[..., top:bottom, left:right] = made[..., top - above : bottom - above, left - before : right - before]


@dataclass(frozen=True)
class Seen:
    """What the network makes of a batch of pairs, and what that cost."""

    frame: Tensor
    """[B, 3, H, W] fp32."""
    motion: tuple[Tensor, Tensor] | None
    """Flow [B, 4, H, W] and blend [B, 1, H, W] as in `Interpolation`; None where they were not asked for."""
    masks: tuple[Tensor, ...]
    """As ``Interpolation.masks``; empty where nothing is pruned."""
    level_macs: list[tuple[int, ...]]
    """For each frame, what was done of the prunable work at strides 8, 4, 2; margins count."""
    other_macs: list[int]
    """For each frame, all other work, without the search, and without encoding unless windows did it."""


def split(rows: int, columns: int, halvings: int, alignment: int) -> list[Window]:
    """Cover a picture with windows whose cells come from halving the longer side so many times, or as far as it goes.

    rows, columns: of the picture as the network sees it; alignment: of the network. One window
    is the whole picture.
    """
    down = across = 1
    for _ in range(halvings):
        longer = max(rows / down, columns / across)
        if longer < 2 * LEAST_CELL:
            break
        if columns / across == longer:
            across *= 2
        else:
            down *= 2
    return [
        Window(
            _with_margin(vertical, rows, alignment), _with_margin(horizontal, columns, alignment), vertical, horizontal
        )
        for vertical in _cells(rows, down, alignment)
        for horizontal in _cells(columns, across, alignment)
    ]


def _cells(length: int, count: int, alignment: int) -> list[tuple[int, int]]:
    edges = [alignment * round(length / alignment * index / count) for index in range(count)]
    return list(pairwise([*edges, length]))


def _with_margin(cell: tuple[int, int], length: int, alignment: int) -> tuple[int, int]:
    margin = -(-MARGIN // alignment) * alignment
    return max(0, cell[0] - margin), min(length, cell[1] + margin)


def see(
    net: UGSP,
    frames: tuple[Tensor, Tensor],
    encodings: tuple[Sequence[Encoding], Sequence[Encoding]] | None,
    found: Tensor | None,
    t: Tensor,
    gate: Gate | None,
    backend: str,
    agree: Tensor,
    with_motion: bool,
    picture: Tensor | None = None,
) -> Seen:
    """Run the network on whole pairs. frames: both [B, 3, H, W]; encodings: of them, in parts, or None where no level
    is needed (``UGSP.needs_levels``); found: as ``UGSP.find`` returns it; t: [B]; agree: as in ``Compared``; picture:
    as in ``UGSP.interpolate``."""
    if encodings is None:
        assert found is not None
        out = net.without_levels(*frames, found, t, agree, with_motion, picture)
        motion = (out.flow, out.blend) if with_motion else None
        nothing = (0,) * len(PRUNED)
        return Seen(out.frame, motion, out.masks, [nothing] * len(t), [0] * len(t))
    out = net.make(*frames, *encodings, found, t, gate, backend, agree, with_motion, picture)
    motion = (out.flow, out.blend) if with_motion else None
    rows, columns = frames[0].shape[-2:]
    cost = network_cost(net.config, columns, rows)
    shares = torch.ones(len(t), 2, len(PRUNED))
    if out.masks:
        parts = [
            performed_share(
                mask, level, rows // STRIDES[level], columns // STRIDES[level], backend, net.dtype, with_motion
            )
            for mask, level in zip(out.masks, PRUNED, strict=True)
        ]
        shares = torch.stack(parts, dim=2).cpu()
    done, other = [], []
    for share, beside in shares.tolist():
        levels = tuple(round(part * macs) for part, macs in zip(share, cost.prunable, strict=True))
        done.append(levels)
        other.append(cost.performed(share, beside) - sum(levels))
    return Seen(out.frame, motion, out.masks, done, other)


def see_part(
    net: UGSP,
    window: Window,
    frames: tuple[Tensor, Tensor],
    encodings: tuple[Sequence[Encoding], Sequence[Encoding]] | None,
    found: Tensor | None,
    t: Tensor,
    gate: Gate | None,
    backend: str,
    agree: Tensor,
    with_motion: bool,
) -> Seen:
    """As ``see``, where nothing moves outside a window: there the frames are blended as they are. frames, agree: of
    the whole picture; encodings, found: of the window."""
    if window.covers(Window.alone(*((0, length) for length in frames[0].shape[-2:]))):
        return see(net, frames, encodings, found, t, gate, backend, agree, with_motion)
    whole = _blended(net, frames, t, gate, with_motion, window)
    inside, picture = (window.seen(frames[0]), window.seen(frames[1])), window.seen(whole.frame)
    agree = window.seen(agree, net.agreement_side)
    part = see(net, inside, encodings, found, t, gate, backend, agree, with_motion, picture)
    _put(net, window, part, whole, picture)
    return replace(whole, level_macs=part.level_macs, other_macs=part.other_macs)


def _blended(
    net: UGSP, frames: tuple[Tensor, Tensor], t: Tensor, gate: Gate | None, with_motion: bool, window: Window
) -> Seen:
    """What is made of pairs without the network, outside a window, to which ``_put`` adds that."""
    when = t.view(-1, 1, 1, 1)
    frame = torch.empty_like(frames[0])
    (top, bottom), (left, right), (height, width) = window.rows, window.columns, frame.shape[-2:]
    whole, beside = slice(0, width), slice(top, bottom)
    for down, across in (
        (slice(0, top), whole),
        (slice(bottom, height), whole),
        (beside, slice(0, left)),
        (beside, slice(right, width)),
    ):
        outside = frame[..., down, across]
        if outside.numel():
            torch.lerp(frames[0][..., down, across], frames[1][..., down, across], when, out=outside)
    nothing = torch.zeros_like(frame[:, :1])
    motion = (nothing.repeat(1, 4, 1, 1), nothing + (1 - when)) if with_motion else None
    rows, columns = frame.shape[-2:]
    strides = [] if gate is None else [net.config.grid_stride(level) for level in PRUNED]
    masks = tuple(frame.new_zeros(len(t), 1, rows // stride, columns // stride) for stride in strides)
    return Seen(frame, motion, masks, [(0,) * len(PRUNED)] * len(t), [0] * len(t))


def _put(net: UGSP, window: Window, part: Seen, whole: Seen, picture: Tensor | None = None) -> None:
    """Copy the cell of what was made of a window into what is made of the whole picture. picture: the window's part of
    that, where the frame may have been made."""
    if part.frame is not picture:
        window.keep(part.frame, whole.frame)
    for made, picture in zip(part.motion or (), whole.motion or (), strict=True):
        window.keep(made, picture)
    for made, mask, level in zip(part.masks, whole.masks, PRUNED, strict=bool(whole.masks)):
        window.keep(made, mask, net.config.grid_stride(level))


def see_in_windows(
    net: UGSP,
    frames: tuple[Tensor, Tensor],
    found: Tensor | None,
    t: Tensor,
    gate: Gate | None,
    backend: str,
    agree: Tensor,
    windows: Sequence[Window],
    with_motion: bool,
) -> Seen:
    """Run the network on one pair, window by window, and put the cells together. frames: both [1, 3, H, W]; t: [1];
    agree: of the whole picture."""
    everything = Window.alone(*((0, length) for length in frames[0].shape[-2:]))
    whole = _blended(net, frames, t, gate, with_motion, everything)
    levels, other = [0] * len(PRUNED), 0
    encoded = net.needs_levels(gate)
    for window in windows:
        pair = window.seen(frames[0]), window.seen(frames[1])
        encodings = ([net.encode(pair[0])], [net.encode(pair[1])]) if encoded else None
        inside = None if found is None else window.seen(found, STRIDE)
        agreeing = window.seen(agree, net.agreement_side)
        part = see(net, pair, encodings, inside, t, gate, backend, agreeing, with_motion)
        _put(net, window, part, whole)
        cost = network_cost(net.config, pair[0].shape[-1], pair[0].shape[-2])
        other += part.other_macs[0] + 2 * cost.encode * encoded
        levels = [total + done for total, done in zip(levels, part.level_macs[0], strict=True)]
    return replace(whole, level_macs=[tuple(levels)], other_macs=[other])
