"""Where the points of two frames are at an instant between them, and which of them hide others there.

A point that both frames show moves along a curve when the frames before and after show it too: its velocity and its
acceleration are known there (Xu et al., NeurIPS 2019, "Quadratic video interpolation"; here from both sides, which is
the cubic through four frames). A point that one frame shows and the other hides goes on as it came. All points are
carried to the instant, and what both frames show covers what one of them hides. Nothing in it is learnt.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net.compiled import compiled_by
from ugsp_net.pooling import mean_around
from ugsp_net.search import POINT, STRIDE
from ugsp_net.warp import backward_warp, upsample

FINER = POINT // STRIDE
"""Positions to one point of the flow that was searched, along each side."""
NOISE = 1.0
"""Squared distance, in points, by which the way there and back may differ at rest ..."""
SHARE = 0.02
"""... and what joins it for each squared point of the way: large motion is not measured as well."""
BEHIND = 0.1
"""Weight of a point that the other frame hides, where points that both show have 1."""
LEAST = 1e-3
"""Weight of points of which nothing is believed."""
GUESS = 0.03
"""Weight of the flow without any paths, for places where no point arrives."""
APART = 4.0
"""Squared distance, in points, of a point's flow from the mean of what lands with it at which it counts half."""
AROUND = 9
"""Points, odd: side of the square that lends its acceleration to a point in it of which nothing is known."""
ENOUGH = 4.0
"""A point is lent all of it where one in so many around it is known, and less where fewer are."""
LEAST_SHARE = 0.15
"""Points that lead to another frame and back, as a share of all: fewer, of either frame, mean that there is a cut
between the two. In 388 pairs of 101 clips, up to four frames apart, 0.16 do at least, but for one that holds a cut; of
103 pairs that were put together from two clips, 0.03 in the median, and less than this in 99."""
CERTAIN = 8.0
"""Logarithm on the blend where there is a cut: all of the nearer frame."""
DOUBT = 0.05
"""Least share of a frame in what the other one is thought to hide."""
_SIDES = (2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, FINER * FINER)


@torch.no_grad()
@compiled_by("cpu.paths.trace", "gpu.paths.trace")
def trace(
    flow: Tensor,
    before: Tensor | None = None,
    after: Tensor | None = None,
    intervals: Tensor | None = None,
    still: Tensor | None = None,
) -> Tensor:
    """What is known of the paths of both frames' points, for every instant between the frames.

    flow: of the pair by ``inverse_search``, [B, 4, h, w]; before, after: of the frame before with the first one, and of
    the second one with the frame after; None: there is no such frame. intervals: [B, 2] fp32, the time between those,
    where that between the pair is 1 (None: 1); 0: there is no such frame. still: [B, 1, 2 h, 2 w], what of the pair
    ``masks.still_pixels`` found to stand still before what moves.

    Returns [B, 21, h, w] fp32, in turn for the first and the second frame: flow to the other one (x, y), in
    points; the same where a point that is hidden goes on as it came; acceleration (x, y), in points; weight; how sure
    it is that the other frame does not show the point: something hides it there, or it is outside. Then 1 everywhere
    where there is a cut between the two, else 0, and last what stands still, of the four positions of a point.
    """
    first, second = flow.chunk(2, dim=1)
    there, back = _agreement(first, second), _agreement(second, first)
    sides = [_side(first, there, None, None), _side(second, back, None, None)]
    if before is not None:
        toward, away = before.chunk(2, dim=1)
        sides[0] = _side(first, there, (away, toward), None if intervals is None else intervals[:, 0])
    if after is not None:
        away, toward = after.chunk(2, dim=1)
        sides[1] = _side(second, back, (away, toward), None if intervals is None else intervals[:, 1])
    cut = torch.maximum(_is_cut(there), _is_cut(back)).expand_as(there)
    if still is None:
        still = flow.new_zeros((len(flow), 1, FINER * flow.shape[-2], FINER * flow.shape[-1]))
    told = [values for both in zip(*sides, strict=True) for values in both]
    return torch.cat([first, second, *told, cut, F.pixel_unshuffle(still, FINER)], dim=1)


def _side(
    own: Tensor, seen: Tensor, outside: tuple[Tensor, Tensor] | None, interval: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One frame's part of ``trace`` after its flow. own: flow to the other frame; seen: how far it is believed;
    outside: flow to the frame beyond and back from there; interval: time between them, [B]."""
    leaves = _outside(own)
    if outside is None:
        return own, torch.zeros_like(own), seen + LEAST, leaves
    away, toward = outside
    tracked = _agreement(away, toward)
    tracked = tracked * (1 - _is_cut(tracked))
    time: Tensor | float = 1.0
    if interval is not None:
        there_is = (interval > 0).view(-1, 1, 1, 1)
        time = torch.where(there_is, interval.view(-1, 1, 1, 1), 1.0)
        tracked = tracked * there_is
    away = away / time
    hidden, known = (1 - seen) * tracked, seen * tracked
    bend = known * 2 / (1 + time) * (own + away)
    # What is not known itself bends like what is known around it: cameras turn the whole picture.
    around = mean_around(torch.cat((bend, known), dim=1), AROUND)
    filled = around[:, :2] / around[:, 2:].clamp(min=1 / ENOUGH)
    weight = seen + BEHIND * tracked + LEAST
    return torch.lerp(own, -away, hidden), bend + (1 - known) * filled, weight, torch.maximum(hidden, leaves)


def is_cut(paths: Tensor) -> Tensor:
    """Whether there is a cut between the two frames, [B] bool; paths: from ``trace``."""
    channels: tuple[Tensor, ...] = paths.split(_SIDES, dim=1)
    return channels[-2][:, 0, 0, 0] > 0


@torch.no_grad()
@compiled_by("cpu.paths.carry", "gpu.paths.carry")
def carry(paths: Tensor, t: Tensor, into: Tensor | None = None) -> Tensor:
    """The flow at an instant, and which frame shows what lies there.

    paths: from ``trace``, [B, 21, h, w]; t: [B] fp32 in (0, 1). Returns [B, 6, 2 h, 2 w] fp32: flow t -> 0 and t -> 1
    (x, y), in positions of stride 2; the logarithm of how many times more of the first frame than of the second is to
    be seen; what stands still, 1 or 0. Across a cut nothing moves, and the nearer frame is to be seen. into: what was
    returned once and is no longer needed: a card writes to it if it has that shape.
    """
    when = t.view(-1, 1, 1, 1)
    guess0, guess1, first, second, bend0, bend1, weight0, weight1, *rest = paths.split(_SIDES, dim=1)
    hidden0, hidden1, cut, still = rest
    curve = when * (1 - when) / 2
    bend0, bend1, none = curve * bend0, curve * bend1, torch.zeros_like(hidden0)
    to1, to0 = (1 - when) * first, when * second
    landing = _Landing(torch.stack((when * first - bend0, (1 - when) * second - bend1), dim=2))
    told = torch.stack(
        (
            torch.cat((bend0 - when * first, bend0 + to1, hidden0, none), dim=1),
            torch.cat((bend1 + to0, bend1 - (1 - when) * second, none, hidden1), dim=1),
        ),
        dim=2,
    )
    # The cubic through four frames leans on the nearer two.
    weight = torch.stack(((2 - when) * weight0, (1 + when) * weight1), dim=2)
    # Where points of two motions land together, the mean is neither: those far from it count less, then once more. All
    # the way from the first frame to the second tells motions apart; its parts differ by their shares of that.
    way = told[:, 2:4] - told[:, :2]
    landed = landing.spread(way, weight)
    mean = landed[:, :2] / landed[:, 2:].clamp(min=LEAST**2)
    apart = (landing.read(mean) - way).square_().sum(1, keepdim=True).mul_((when**2 + (1 - when) ** 2)[..., None])
    landed = landing.spread(told, weight / (1 + apart / APART))
    to0, to1 = when * guess1, (1 - when) * guess0
    guess = torch.cat((backward_warp(to0, to1), backward_warp(to1, to0)), dim=1)
    flow = FINER * torch.add(landed[:, :4], guess, alpha=GUESS)
    known = landed[:, 6:] + GUESS
    hidden = (landed[:, 4:6] / known).clamp_(max=1)
    prior = torch.log((1 + DOUBT - hidden[:, 1:]) / (1 + DOUBT - hidden[:, :1]))
    flow = flow / known * (1 - cut)
    prior = torch.where(cut > 0, torch.where(when <= 0.5, CERTAIN, -CERTAIN), prior)
    return torch.cat((upsample(torch.cat((flow, prior), dim=1), FINER), F.pixel_shuffle(still, FINER)), dim=1)


def _agreement(there: Tensor, back: Tensor) -> Tensor:
    """How well the way there [B, 2, h, w] fits the way back from where it leads: [B, 1, h, w], 0 to 1."""
    distance = (there + backward_warp(back, there)).square().sum(1, keepdim=True)
    return torch.exp(-distance / (NOISE + SHARE * there.square().sum(1, keepdim=True)))


def _outside(flow: Tensor) -> Tensor:
    """How far out of the picture flow [B, 2, h, w] leads, in points, at most 1: [B, 1, h, w]."""
    height, width = flow.shape[-2:]
    x = torch.arange(width, device=flow.device, dtype=torch.float32) + flow[:, :1]
    y = torch.arange(height, device=flow.device, dtype=torch.float32)[:, None] + flow[:, 1:]
    across, down = torch.maximum(-x, x - (width - 1)), torch.maximum(-y, y - (height - 1))
    return torch.maximum(across, down).clamp_(0, 1)


def _is_cut(agreement: Tensor) -> Tensor:
    """Whether so few points of a frame lead to another one and back that there is a cut: [B, 1, 1, 1], 0 or 1."""
    return (agreement.mean((1, 2, 3), keepdim=True) < LEAST_SHARE).float()


class _Landing:
    """Where points land: each is spread over the four positions around. P sets of points."""

    def __init__(self, flow: Tensor) -> None:
        """flow: [B, 2, P, h, w], where each point goes."""
        self._flow = flow
        height, width = flow.shape[-2:]
        x = torch.arange(width, device=flow.device, dtype=torch.float32) + flow[:, 0]
        y = torch.arange(height, device=flow.device, dtype=torch.float32)[:, None] + flow[:, 1]
        left, top = x.floor(), y.floor()
        right, below = (x - left)[:, None], (y - top)[:, None]
        # A border of two positions takes what lands outside.
        column, row = left.long().add_(2).clamp_(0, width + 2), top.long().add_(2).clamp_(0, height + 2)
        place = row.mul_(width + 4).add_(column).flatten(1)[:, None]
        self._shares = [
            (place + (down + across), vertical * horizontal)
            for down, vertical in ((0, 1 - below), (width + 4, below))
            for across, horizontal in ((0, 1 - right), (1, right))
        ]

    def spread(self, values: Tensor, weight: Tensor) -> Tensor:
        """Values [B, C, P, h, w] where they land, times their weights [B, 1, P, h, w], and the sum of the weights after
        them: [B, C + 1, h, w]."""
        weighted = torch.cat((values * weight, weight), dim=1)
        batch, channels, _, height, width = weighted.shape
        landed = weighted.new_zeros((batch, channels, (height + 4) * (width + 4)))
        for place, share in self._shares:
            landed.scatter_add_(2, place.expand(-1, channels, -1), (weighted * share).flatten(2))
        return landed.view(batch, channels, height + 4, width + 4)[..., 2:-2, 2:-2]

    def read(self, values: Tensor) -> Tensor:
        """What of a map [B, C, h, w] lies where each point lands, [B, C, P, h, w]."""
        return torch.stack([backward_warp(values, flow) for flow in self._flow.unbind(2)], dim=2)
