"""Optical flow between two frames by dense inverse search (Kroeger et al., ECCV 2016): nothing in it is learnt.

Patches of 8x8 positions, one for every 4x4, look for themselves in the other frame: coarse to fine, each from where the
coarser ones and patches around it ended, by Gauss-Newton steps whose gradients and Hessian come from the patch itself
and are made once. The flow of a position is the mean over the patches that cover it, weighted by how well each fits
there. The finest size is half the picture's. Where motion is plain this finds it to a fraction of a pixel, which a
network learns only from very many samples; where it is not, the network's levels mend it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net.compiled import compiled_by
from ugsp_net.gpu.graphs import replayed
from ugsp_net.pooling import halve

STRIDE = 2
"""Image pixels between positions of the finest size."""
POINT = 2 * STRIDE
"""Image pixels between points of the flow: finer than patches can tell apart anyway."""
PATCH = 8
"""Side of a patch, positions."""
CELL = PATCH // 2
"""Positions between patches: every position lies in four of them."""
SPACING = POINT // STRIDE
"""Positions of each size between those for which flow is averaged: points at the finest, and cells of the next finer
size at the others."""
SMALLEST = 6
"""The picture is halved as long as its shorter side keeps so many positions."""
DISTANCES = ((2, 1), (2, 1, 1), (2, 1, 1), (2, 1, 2, 1))
"""The rounds at each size, the finest first and the last for all others: the flows of patches so far away are tried,
counted in patches, then a step is taken. The smaller a size, the less a round costs."""
SAMPLED = (2, 3, 1)
"""With one in so many of their rows patches look at each size, the finest first and the last for all others."""
DAMPING = 64.0
"""Added to the squared slopes of a patch, of 0 to 255: a patch without slopes stays where its neighbours are."""
NOISE = 2.0
"""Mean squared difference, of 0 to 255, up to which a patch of the finest size is where it belongs and looks no
further; a quarter of that at each smaller size, as noise is averaged."""
ALL = 0.9
"""Share of the patches up to which those that look are picked out; where more do, all are tried: that takes less."""
LOST = 100.0
"""Mean squared difference, of 0 to 255, from which a patch of the next to finest size is taken for lost before its last
round, and looks farther: small things that move fast are not there at smaller sizes."""
LOST_SHARE = 0.02
LOST_LEAST = 32
"""At most that share of the patches do, or so many where that is more: those that fit worst."""
FAR = 6
"""They try every flow within so many positions of theirs (24 pixels) ..."""
FOUND = 0.35
"""... and take the best if it leaves no more than this part of what differs: hidden patches find something like them
everywhere."""
COLOURED = 200.0
"""Mean squared difference of red, green and blue, of 0 to 255, less brightness, from which a patch looks for its
colours in the end ..."""
PLAIN = 0.5
"""... if it is so many times that of brightness, by which it was looked for."""
SEEN = 0.5
"""It takes what leaves no more than this part of what differs in all."""
COLOUR_SAMPLED = 4
"""Patches see their colours in one of so many rows, of points here."""
COLOUR_STEPS = ((FAR, 2.0), (1, 1.0), (1, 0.5), (1, 0.25))
"""Reaches, and points between what they try: 48 pixels, then around the best, closer each time."""
FEW = 1000
"""Patches up to which a processor tries several flows in one call: there the calls take longer than the work, and more
leave the cache."""
REACH = 2
"""At the smallest size every displacement within so many positions is tried: a sixth of its height or more."""
_MARGIN = (PATCH - CELL) // 2
_LUMA = (0.299, 0.587, 0.114)
_AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1))


@torch.no_grad()
def inverse_search(
    frame0: Tensor, frame1: Tensor, agree: Tensor | None = None, beside: int = 0, looked: Sequence[Tensor] = ()
) -> Tensor:
    """Flow 0 -> 1 and 1 -> 0, (x, y) each, in points of ``POINT`` pixels: [B, 4, H / 4, W / 4] fp32.

    frame0, frame1: [B, 3, H, W], RGB in [0, 1], sides multiples of 4; agree: [B, 1, rows, columns] bool, blocks that
    are the same in both: outside of the rectangle that holds all others, and so many blocks beside it, flow is 0;
    looked: from ``looked_at``, if that is known. Not differentiable.
    """
    with torch.autocast(frame0.device.type, enabled=False):
        image, points = looked or looked_at(frame0.float(), frame1.float())
        given = (image, points) if agree is None else (image, points, agree)
        (flow,) = replayed(partial(_search_sizes, beside), (_search_sizes, beside), *given)
        return flow.clone()


def _search_sizes(beside: int, image: Tensor, points: Tensor, agree: Tensor | None = None) -> tuple[Tensor]:
    """What ``inverse_search`` returns. image, points: from ``looked_at``."""
    sizes = [image]
    while min(sizes[-1].shape[-2:]) >= 2 * SMALLEST:
        sizes.append(_smaller(sizes[-1]))
    flow: Tensor | None = None
    coarser: Tensor | None = None
    for level, size in reversed(list(enumerate(sizes))):
        flow, coarser = _search_both(size, flow, coarser, level)
    assert flow is not None
    flow = torch.cat(_see_colours(points, flow * (STRIDE / POINT)).chunk(2), dim=1)
    return (flow if agree is None else _within(flow, agree, beside),)


@compiled_by("gpu.search.within")
def _within(flow: Tensor, agree: Tensor, beside: int) -> Tensor:
    """The flow [B, 4, h, w] where ``inverse_search`` says that there is any; agree, beside: as there."""
    inside, factor = _rectangle((~agree).float(), beside), flow.shape[-1] // agree.shape[-1]
    return flow * inside.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def _rectangle(mask: Tensor, beside: int) -> Tensor:
    """1 in the smallest rectangle that holds all blocks of a mask [B, 1, rows, columns] in all pictures and so many
    around them, else 0: what ``bounds`` tells, without waiting for the device. [1, 1, rows, columns]."""
    inside = None
    for dim in (3, 2):
        there = mask.amax((0, 1, dim))  # of rows, then of columns
        there = F.max_pool1d(there[None], 2 * beside + 1, 1, beside)[0]
        span = there.cummax(0).values * there.flip(0).cummax(0).values.flip(0)
        inside = span[:, None] if inside is None else inside * span
    assert inside is not None
    return inside[None, None]


def search_macs(width: int, height: int) -> int:
    """Multiply-accumulates of ``inverse_search`` for pictures of that size in which everything moves and fits badly.

    For each position of a patch that is compared: four to read the other frame between its pixels and two for the sums;
    two more for a step.
    """
    width, height = width // STRIDE, height // STRIDE
    total = level = 0
    while True:
        smallest = min(width, height) < 2 * SMALLEST
        rounds, positions = len(_distances(level)), len(_sampled(level))
        tried = 1 + rounds * (len(_AROUND) + 1) + ((2 * REACH + 1) ** 2 if smallest else 1)
        tried += level == 0  # there and back
        each = (6 * tried + 2 * rounds) * positions + 6 * (PATCH // SPACING) ** 2
        patches = (-(-width // CELL)) * (-(-height // CELL))
        total += 2 * each * patches
        if level == 1:
            lost = min(patches, max(LOST_LEAST, int(LOST_SHARE * patches)))
            total += 2 * 6 * ((2 * FAR + 1) ** 2 + 1) * positions * lost
            # All patches see their colours, then the lost ones look for them and compare at all of their positions.
            seen = PATCH**2 // COLOUR_SAMPLED * len(_LUMA)
            tried = 1 + (2 * FAR + 1) ** 2 + (len(COLOUR_STEPS) - 1) * 9
            total += 2 * 6 * (seen * patches + (seen * tried + (3 * len(_LUMA) + 2) * PATCH**2) * lost)
        if smallest:
            return total
        width, height, level = -(-width // 2), -(-height // 2), level + 1


def luma(frame: Tensor) -> Tensor:
    """Brightness, [B, 3, H, W] -> [B, 1, H, W], of the same range."""
    red, green, blue = _LUMA
    return (red * frame[:, :1]).add_(frame[:, 1:2], alpha=green).add_(frame[:, 2:], alpha=blue)


@compiled_by("cpu.search.looked_at", "gpu.pictures.looked_at")
def looked_at(frame0: Tensor, frame1: Tensor) -> tuple[Tensor, Tensor]:
    """What a search sees of the first frames and then of the second ones, [B, 3, H, W] each in [0, 1]: ``look``."""
    image, points = zip(look(frame0), look(frame1), strict=True)
    return torch.cat(image), torch.cat(points)


@compiled_by("cpu.search.look")
def look(frame: Tensor) -> tuple[Tensor, Tensor]:
    """What a search sees of a frame [B, 3, H, W] in [0, 1], sides multiples of 4: brightness at half the size,
    [B, 1, H / 2, W / 2], and a colour for each point, [B, 3, H / 4, W / 4], both of 0 to 255."""
    return _brightness(frame), 255 * _of_points(frame)


def _brightness(frame: Tensor) -> Tensor:
    """Of 0 to 255, at half the size: [B, 3, H, W] -> [B, 1, H / 2, W / 2]."""
    return 255 * halve(luma(frame))


@compiled_by("cpu.search.smaller", "gpu.pictures.smaller")
def _smaller(image: Tensor) -> Tensor:
    """At half the size, rounded up: [B, 1, h, w] -> [B, 1, h / 2, w / 2]."""
    height, width = image.shape[-2:]
    return halve(F.pad(image, (0, width % 2, 0, height % 2), mode="replicate"))


def _of_points(frame: Tensor) -> Tensor:
    """A value for each point: the mean of the four pixels in its middle, [B, C, H, W] -> [B, C, H / 4, W / 4]."""
    rows = frame[..., 1::POINT, :] + frame[..., 2::POINT, :]
    return (rows[..., 1::POINT] + rows[..., 2::POINT]) / 4


def _distances(level: int) -> tuple[int, ...]:
    """Of the rounds at a size; 0: the finest."""
    return DISTANCES[min(level, len(DISTANCES) - 1)]


def _every(level: int) -> int:
    """A patch looks at a size with one in so many of its rows."""
    return SAMPLED[min(level, len(SAMPLED) - 1)]


def _sampled(level: int) -> list[int]:
    """The positions of a patch with which it looks at a size."""
    return _one_in(_every(level))


def _one_in(every: int) -> list[int]:
    """The positions of one in so many rows of a patch: whole rows are what a processor reads at once."""
    return [PATCH * row + column for row in range(every // 2, PATCH, every) for column in range(PATCH)]


@dataclass(frozen=True)
class _Patches:
    """All patches of one frame at one size, and where they are looked for. N patches, S positions of each."""

    template: Tensor
    """[B, S, N], the values of the frame that they are cut from; of C channels one after the other, [B, C * S, N]."""
    places: Tensor
    """[1 or B, S, N, 2]: their positions as ``grid_sample`` counts."""
    unit: Tensor
    """[2]: one position as ``grid_sample`` counts."""
    other: Tensor
    """[B, C, h, w]: the frame in which they are looked for."""

    def residual(self, flow: Tensor) -> Tensor:
        """What differs where each patch is moved by its flow [B, N, 2] or by several [B, F, N, 2]: [B, C S, (F,) N]."""
        several = flow.ndim == 4
        places = self.places[:, :, None] if several else self.places
        grid = torch.add(places, (flow.contiguous() * self.unit)[:, None])
        found = _read(self.other, grid.flatten(2, -2))
        found = found.view(len(found), -1, *grid.shape[2:-1])
        return found.sub_(self.template[:, :, None] if several else self.template)

    def take(self, chosen: Tensor) -> _Patches:
        """Those of each frame whose numbers are in ``chosen``, [B, K]."""
        batch = len(chosen)
        template = self.template.gather(2, chosen[:, None].expand(-1, self.template.shape[1], -1))
        columns = chosen[:, None, :, None].expand(-1, self.places.shape[1], -1, 2)
        return _Patches(template, self.places.expand(batch, -1, -1, -1).gather(2, columns), self.unit, self.other)


@dataclass(frozen=True)
class _Slopes:
    """How the values of patches change where they are moved."""

    gradients: Tensor
    """[B, 2, S, N], across and down, less each patch's mean: a change of brightness is no motion."""
    inverse: Tensor
    """The inverse Hessian, [B, 2, 2, N]."""

    def step(self, residual: Tensor) -> Tensor:
        """The Gauss-Newton step [B, N, 2] from where the residual [B, S, N] is what it is."""
        slope = (self.gradients * residual[:, None]).sum(2)  # [B, 2, N]
        return (self.inverse * slope[:, None]).sum(2).transpose(1, 2)

    def take(self, chosen: Tensor) -> _Slopes:
        """Those of each frame whose numbers are in ``chosen``, [B, K]."""
        columns = chosen[:, None, None]
        return _Slopes(
            self.gradients.gather(3, columns.expand(-1, 2, self.gradients.shape[2], -1)),
            self.inverse.gather(3, columns.expand(-1, 2, 2, -1)),
        )


class _State:
    """The best flow of every patch so far, while some of them look for better ones."""

    def __init__(
        self, patches: _Patches, slopes: _Slopes, best: Tensor, residual: Tensor, cost: Tensor, fits: float
    ) -> None:
        """best, residual, cost: of all patches, [B, N, 2], [B, S, N] and [B, N]; fits: the cost up to which one looks
        no further."""
        looks = cost > fits
        most = _most(looks, cost.shape[1])
        # What fits is never improved on.
        cost = torch.where(looks, cost, -torch.inf)
        if most > ALL * cost.shape[1]:
            self._chosen = None
            self._patches, self._slopes = patches, slopes
            self._flow, self._residual, self._cost = best, residual, cost
            return
        # As many of each frame: those that fit worst, so that one batch holds them all.
        chosen = cost.topk(most, dim=1).indices.sort(dim=1).values
        self._patches, self._slopes = patches.take(chosen), slopes.take(chosen)
        self._all = best
        self._chosen = chosen[..., None].expand(-1, -1, 2)
        self._flow = self._of_chosen(best)
        self._residual = residual.gather(2, chosen[:, None].expand(-1, residual.shape[1], -1))
        self._cost = cost.gather(1, chosen)

    @property
    def best(self) -> Tensor:
        """Of all patches, [B, N, 2]."""
        return self._flow if self._chosen is None else self._all.scatter(1, self._chosen, self._flow)

    def _of_chosen(self, flow: Tensor) -> Tensor:
        """Of the patches that look, from that of all."""
        return flow if self._chosen is None else flow.gather(1, self._chosen)

    def try_all(self, tried: Tensor) -> None:
        """Try a flow for each of all patches, [B, N, 2]."""
        self.try_flows(self._of_chosen(tried))

    def try_flows(self, tried: Tensor) -> None:
        """Take these flows, [B, K, 2], where they fit better."""
        residual = self._patches.residual(tried)
        self._take(tried, residual, _cost(residual))

    def _take(self, tried: Tensor, residual: Tensor, cost: Tensor) -> None:
        """Take these flows where they cost less."""
        better = (cost < self._cost).float()  # to lerp with it takes an eighth of the time of torch.where
        self._flow = self._flow.lerp(tried, better[..., None])
        self._residual = self._residual.lerp_(residual, better[:, None])
        self._cost = torch.minimum(cost, self._cost)

    def try_several(self, tried: Tensor) -> None:
        """Try several flows for each of all patches, [B, F, N, 2]."""
        if self._chosen is not None:
            tried = tried.gather(2, self._chosen[:, None].expand(-1, tried.shape[1], -1, -1))
        if tried.shape[2] > _few(tried.device):
            for one in tried.unbind(1):
                self.try_flows(one)
            return
        self._take(*_best_of(self._patches, tried))

    def try_around(self, grid: tuple[int, int], distance: int) -> None:
        """Try the flows of the patches so far above, below, left and right. grid: rows and columns of patches."""
        rows, columns = grid
        flows = self.best.view(-1, rows, columns, 2).permute(0, 3, 1, 2)
        side = min(distance, max(1, min(grid) - 1))
        padded = F.pad(flows, (side,) * 4, mode="replicate").permute(0, 2, 3, 1)
        corners = [(side * (1 + down), side * (1 + across)) for down, across in _AROUND]
        shifted = [padded[:, row : row + rows, column : column + columns] for row, column in corners]
        self.try_several(torch.stack(shifted, dim=1).flatten(2, 3))

    def try_back(self, grid: tuple[int, int]) -> None:
        """Try the way back from the patch of the other frame that is nearest to where each patch leads now: what one
        direction has found serves the other. The first half of the batch are the frames of which the second half are
        the others. grid: rows and columns of patches."""
        rows, columns = grid
        flows = self.best.view(-1, rows, columns, 2)
        column = torch.arange(columns, device=flows.device) + flows[..., 0] / CELL
        row = torch.arange(rows, device=flows.device)[:, None] + flows[..., 1] / CELL
        nearest = row.round().clamp(0, rows - 1) * columns + column.round().clamp(0, columns - 1)
        other = torch.cat(flows.chunk(2)[::-1]).flatten(1, 2)
        self.try_all(-other.gather(1, nearest.long().flatten(1)[..., None].expand(-1, -1, 2)))

    def look_far(self) -> None:
        """Try all flows within ``FAR`` positions of theirs for the patches that are lost."""
        lost = self._cost > LOST * self._patches.template.shape[1]
        most = _most_lost(lost)
        if not most:
            return
        chosen = self._cost.topk(most, dim=1).indices
        places = chosen[..., None].expand(-1, -1, 2)
        patches, lost, cost = self._patches.take(chosen), lost.gather(1, chosen), self._cost.gather(1, chosen)
        begun = self._flow.gather(1, places)
        found, least = _best_around(patches, begun, cost, _displacements(FAR, lost.device))
        better = lost & (least < FOUND * cost)
        found = torch.where(better[..., None], found, begun)
        self._flow = self._flow.scatter(1, places, found)
        columns = chosen[:, None].expand(-1, self._residual.shape[1], -1)
        self._residual = self._residual.scatter(2, columns, patches.residual(found))
        self._cost = self._cost.scatter(1, chosen, torch.where(better, least, cost))

    def step(self) -> None:
        """A Gauss-Newton step."""
        self.try_flows(self._flow - self._slopes.step(self._residual))


def _cost(residual: Tensor) -> Tensor:
    """Squared difference less that of the means, [B, S, ...] -> [B, ...]; never below that of equal patches."""
    total = residual.sum(1)
    return torch.addcmul(residual.square().sum(1), total, total, value=-1 / residual.shape[1]).clamp_(min=0)


def _most(flags: Tensor, limit: int) -> int:
    """How many of the flags [B, N] are set in a row at most, and no more than ``limit``. Elsewhere than on a processor
    that number itself: doing what is in vain takes less than waiting for the device to tell."""
    return min(int(flags.sum(1).max()), limit) if flags.device.type == "cpu" else limit


def _most_lost(lost: Tensor) -> int:
    """How many patches of each frame look farther, where these [B, N] are lost."""
    return _most(lost, _most_of(lost.shape[1]))


def _most_of(count: int) -> int:
    """How many of so many patches look farther at most."""
    return min(count, max(LOST_LEAST, int(LOST_SHARE * count)))


def _few(device: torch.device) -> int:
    """Patches up to which several flows are tried in one call; elsewhere than on a processor a call is a launch."""
    return FEW if device.type == "cpu" else 1 << 20


def _displacements(reach: int, device: torch.device) -> Tensor:
    """All of at most so many positions, [(2 reach + 1)^2, 2] (x, y) fp32."""
    steps = torch.arange(-reach, reach + 1, device=device, dtype=torch.float32)
    return torch.cartesian_prod(steps, steps)


def _others(pictures: Tensor) -> Tensor:
    """Those in which each of a batch is looked for: the second half for the first one, and the other way round."""
    return torch.cat(pictures.chunk(2)[::-1])


@compiled_by("cpu.search.search_size", "gpu.search.search_size")
def _search_both(pictures: Tensor, flow: Tensor | None, coarser: Tensor | None, level: int) -> tuple[Tensor, Tensor]:
    """What ``_search`` returns of pictures and their others."""
    return _search(pictures, _others(pictures), flow, coarser, level)


def _search(
    first: Tensor, second: Tensor, flow: Tensor | None, coarser: Tensor | None, level: int
) -> tuple[Tensor, Tensor]:
    """Flow first -> second at one size, both [B, 1, h, w] of 0 to 255: at one in ``SPACING`` positions down and across,
    [B, 2, h / SPACING, w / SPACING], and of the patches by themselves, [B, 2, rows, columns].

    flow, coarser: the same of the next smaller size; None at the smallest. The latter has not been averaged away where
    motion changes.
    """
    batch, _, height, width = first.shape
    rows, columns = grid = -(-height // CELL), -(-width // CELL)
    patches, slopes = _cut(first, second, grid, _sampled(level))
    if flow is None:
        best = first.new_zeros((batch, rows * columns, 2))
    else:
        best = 2 * flow[..., :rows, :columns].flatten(2).transpose(1, 2).contiguous()
    residual = patches.residual(best)
    cost = _cost(residual)
    fits = patches.template.shape[1] * NOISE / 4**level
    if _most(cost > fits, 1):
        state = _State(patches, slopes, best, residual, cost, fits)
        if coarser is None:
            everywhere = _displacements(REACH, first.device)[None, :, None]
            state.try_several(everywhere.expand(batch, -1, rows * columns, -1))
        else:
            enlarged = 2 * coarser.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            state.try_all(enlarged[..., :rows, :columns].flatten(2).transpose(1, 2))
        if level == 0:  # at smaller sizes, directions that agree early do not find out that they are wrong
            state.try_back(grid)
        distances = _distances(level)
        for turn, distance in enumerate(distances):
            if level == 1 and turn == len(distances) - 1:
                state.look_far()
            state.try_around(grid, distance)
            state.step()
        best = state.best
    return _averaged(first, second, grid, best), best.view(batch, rows, columns, 2).permute(0, 3, 1, 2)


@compiled_by("gpu.search.see_colours")
def _see_colours(pictures: Tensor, flow: Tensor) -> Tensor:
    """The flow [B, 2, h, w], in points, mended where brightness could not tell.

    pictures: [B, 3, h, w] RGB of 0 to 255, one value a point. The first half of the batch are the frames of which the
    second half are the others.
    """
    _, _, height, width = flow.shape
    grid = -(-height // CELL), -(-width // CELL)
    others = _others(pictures)
    begun = _of_cells(flow)
    differs = _lost_colours(pictures, others, grid, begun)
    most = _most_lost(differs > 0)
    if not most:
        return flow
    differs, chosen = differs.topk(most, dim=1)  # [B, K]
    begun = begun.gather(1, chosen[..., None].expand(-1, -1, 2))
    found, cost, least = _look_for_colours(pictures, others, grid, chosen, begun)
    better = (differs > 0) & (least < SEEN * cost)
    return _where_better(pictures, others, flow, chosen, found, better)


def _lost_colours(pictures: Tensor, others: Tensor, grid: tuple[int, int], flow: Tensor) -> Tensor:
    """What differs in the colours of patches, if it is so much that they look for them, else 0; [B, N]."""
    coloured, bright = _miscoloured(pictures, others, grid, flow)
    return torch.where((coloured > COLOURED) & (coloured > PLAIN * bright), coloured, 0.0)


def _in_cells(flow: Tensor) -> Tensor:
    """A map [B, C, h, w], its border repeated as far as the last cell reaches."""
    return F.pad(flow, (0, -flow.shape[-1] % CELL, 0, -flow.shape[-2] % CELL), mode="replicate")


def _of_cells(flow: Tensor) -> Tensor:
    """The mean flow of each patch's cell, [B, 2, h, w] -> [B, N, 2]."""
    return halve(halve(_in_cells(flow))).flatten(2).transpose(1, 2)


@compiled_by("cpu.search.miscoloured")
def _miscoloured(pictures: Tensor, others: Tensor, grid: tuple[int, int], flow: Tensor) -> tuple[Tensor, Tensor]:
    """What differs where each patch is moved by its flow [B, N, 2], in the mean of the squares: of the colours less
    brightness, and of brightness, [B, N] each. pictures, others: [B, 3, h, w]; grid: rows and columns of patches."""
    patches = _all_patches(pictures, others, grid, _one_in(COLOUR_SAMPLED))
    differs = patches.residual(flow).view(len(flow), 3, -1, flow.shape[1])
    bright = luma(differs)
    return differs.sub_(bright).square_().mean((1, 2)), bright.square_().mean((1, 2))


@compiled_by("cpu.search.look_for_colours")
def _look_for_colours(
    pictures: Tensor, others: Tensor, grid: tuple[int, int], chosen: Tensor, flow: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The best flow by colours around that of some patches [B, K, 2], what they cost by their own [B, K], and what by
    the best. chosen: [B, K], their numbers; the others as for ``_miscoloured``."""
    patches = _all_patches(pictures, others, grid, _one_in(COLOUR_SAMPLED)).take(chosen)
    cost = _cost(patches.residual(flow))
    found, least = flow, cost
    for reach, step in COLOUR_STEPS:
        found, least = _best_around(patches, found, least, step * _displacements(reach, flow.device))
    return found, cost, least


def _where_better(
    pictures: Tensor, others: Tensor, flow: Tensor, chosen: Tensor, found: Tensor, better: Tensor
) -> Tensor:
    """The flow [B, 2, h, w] with what was found for some patches put into the cell in the middle of each: to the points
    that, with those beside them, fit better by it.

    pictures, others: [B, 3, h, w], the frames and those in which they are looked for; chosen: [B, K], the patches;
    found: [B, K, 2], their flow; better: [B, K] bool, whether it is to be put in at all.
    """
    batch, most = chosen.shape
    height, width = pictures.shape[-2:]
    columns = -(-width // CELL)
    unit = _unit(pictures)
    inside = torch.cartesian_prod(*2 * [torch.arange(PATCH, device=flow.device)]).flip(1)  # [64, 2] (x, y)
    corner = CELL * torch.stack((chosen % columns, chosen // columns), dim=-1)  # [B, K, 2]
    places = (corner[:, None] + inside[:, None] - _MARGIN) * unit - 1  # [B, 64, K, 2]
    template, before = _read(pictures, places), _read(flow, places).permute(0, 2, 3, 1)
    fits = []
    for way in (before, found[:, None]):
        misfit = (_read(others, places + way * unit) - template).square().sum(1)  # [B, 64, K]
        squares = misfit.transpose(1, 2).reshape(-1, 1, PATCH, PATCH)
        fits.append(F.avg_pool2d(squares, 3, stride=1)[..., 1:-1, 1:-1].reshape(batch, most, CELL**2))
    takes = better[..., None] & (fits[1] < fits[0])  # [B, K, 16]
    points = corner[:, :, None] + inside.view(PATCH, PATCH, 2)[:CELL, :CELL].reshape(-1, 2)  # [B, K, 16, 2]
    points = (points[..., 1] * columns * CELL + points[..., 0]).flatten(1)[:, None].expand(-1, 2, -1)
    filled = _in_cells(flow)
    values = filled.flatten(2)
    taken = found.transpose(1, 2).repeat_interleave(CELL**2, dim=2)
    taken = torch.where(takes.flatten(1)[:, None], taken, values.gather(2, points))
    return values.scatter(2, points, taken).view_as(filled)[..., :height, :width]


def _best_of(patches: _Patches, tried: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of several flows for each patch, [B, F, K, 2], the one that fits best: [B, K, 2], what differs by it, [B, S, K],
    and its cost, [B, K]."""
    residual = patches.residual(tried)
    cost, first = _cost(residual).min(1)
    best = tried.gather(1, first[:, None, :, None].expand(-1, -1, -1, 2))[:, 0]
    residual = residual.gather(2, first[:, None, None].expand(-1, residual.shape[1], -1, -1))[:, :, 0]
    return best, residual, cost


def _best_around(patches: _Patches, flow: Tensor, cost: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Each patch's flow [B, K, 2] and its cost [B, K], or those of the best that is so far from it, steps [F, 2]."""
    best, least = flow, cost
    for some in steps.split(max(1, _few(flow.device) // flow.shape[1])):
        found, _, costs = _best_of(patches, flow[:, None] + some[:, None])
        best = torch.where((costs < least)[..., None], found, best)
        least = torch.minimum(costs, least)
    return best, least


def _unit(values: Tensor) -> Tensor:
    """One position across and down a map [..., h, w] as ``grid_sample`` counts: [2]."""
    height, width = values.shape[-2:]
    # Filled there: what comes from the host cannot be captured in a graph.
    return torch.stack([values.new_full((), 2 / max(side - 1, 1)) for side in (width, height)])


def _read(source: Tensor, places: Tensor) -> Tensor:
    """A map [B, C, h, w] at places [B, S, K, 2], as ``grid_sample`` counts: [B, C, S, K]."""
    return F.grid_sample(source, places, mode="bilinear", padding_mode="border", align_corners=True)


def _averaged(first: Tensor, second: Tensor, grid: tuple[int, int], best: Tensor) -> Tensor:
    """The mean of the patches' flows [B, N, 2], weighted by how well each fits: [B, 2, h / SPACING, w / SPACING]."""
    (rows, columns), (height, width) = grid, (-(-side // SPACING) for side in first.shape[-2:])
    side, cell, margin = PATCH // SPACING, CELL // SPACING, _MARGIN // SPACING
    positions = [PATCH * row + column for row, column in product(range(0, PATCH, SPACING), repeat=2)]
    misfit = _all_patches(first, second, grid, positions).residual(best)
    fit = _cost(misfit).div_(side**2).add_(4.0)
    weight = misfit.abs_().clamp_(min=1.0).mul_(fit[:, None]).reciprocal_()
    # Every cell is covered by four quarters of patches; where they overlap, their sum: F.fold at a third of its time.
    weight = weight.view(-1, 1, 2, cell, 2, cell, rows, columns)
    moved = best.view(-1, rows, columns, 2).permute(0, 3, 1, 2)[:, :, None, None]
    summed = weight.new_zeros((len(weight), 3, cell, cell, rows + 1, columns + 1))
    for down, across in product((0, 1), repeat=2):
        quarter = weight[:, :, down, :, across]
        there = summed[..., down : down + rows, across : across + columns]
        there[:, :1] += quarter
        there[:, 1:].addcmul_(quarter, moved)
    flow = (summed[:, 1:] / summed[:, :1]).permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)
    return flow[..., margin : margin + height, margin : margin + width]


def _padding(values: Tensor, grid: tuple[int, int]) -> tuple[int, int, int, int]:
    """What to pad values [B, 1, h, w] by, so that patches cover it: left, right, above, below."""
    (rows, columns), (height, width) = grid, values.shape[-2:]
    return _MARGIN, _MARGIN + columns * CELL - width, _MARGIN, _MARGIN + rows * CELL - height


def _all_patches(first: Tensor, second: Tensor, grid: tuple[int, int], positions: list[int]) -> _Patches:
    """All patches of a frame [B, C, h, w], with these of their positions."""
    rows, columns = grid
    template = _at_positions(F.pad(first, _padding(first, grid), mode="replicate"), grid, positions).flatten(1, 2)
    unit = _unit(first)
    inside = torch.tensor([divmod(position, PATCH) for position in positions], device=first.device) - _MARGIN
    x = inside[:, 1:] + CELL * torch.arange(columns, device=first.device)  # [S, columns]
    y = inside[:, :1] + CELL * torch.arange(rows, device=first.device)  # [S, rows]
    places = first.new_empty(len(positions), rows, columns, 2)
    places[..., 0], places[..., 1] = (x * unit[0] - 1)[:, None, :], (y * unit[1] - 1)[:, :, None]
    return _Patches(template, places.flatten(1, 2)[None], unit, second)


def _cut(first: Tensor, second: Tensor, grid: tuple[int, int], positions: list[int]) -> tuple[_Patches, _Slopes]:
    """All patches of a frame, with the positions with which they look."""
    across, down = F.pad(first, (1, 1, 0, 0), mode="replicate"), F.pad(first, (0, 0, 1, 1), mode="replicate")
    # Outside the frame nothing is known of where it slopes.
    slopes = torch.cat((across[..., 2:] - across[..., :-2], down[..., 2:, :] - down[..., :-2, :]), dim=1)
    gradients = _at_positions(F.pad(slopes, _padding(first, grid)), grid, positions).div_(2)
    gradients -= gradients.mean(2, keepdim=True)
    squares = gradients.square().sum(2).add_(DAMPING * len(positions) / PATCH**2)
    xx, yy = squares.unbind(1)
    xy = (gradients[:, 0] * gradients[:, 1]).sum(1)
    inverse = torch.stack((yy, -xy, -xy, xx), dim=1) / (xx * yy - xy * xy)[:, None]
    return _all_patches(first, second, grid, positions), _Slopes(gradients, inverse.view(len(first), 2, 2, -1))


def _at_positions(values: Tensor, grid: tuple[int, int], positions: list[int]) -> Tensor:
    """The values [B, C, h, w], padded, at these positions of every patch: [B, C, S, N]. In each row that has any, they
    are equally far apart."""
    rows, columns = grid
    batch, channels = values.shape[:2]
    if len(positions) == PATCH**2:
        return F.unfold(values, PATCH, stride=CELL).view(batch, channels, PATCH**2, rows * columns)
    cut = values.new_empty((batch, channels, len(positions), rows, columns))
    windows = values.unfold(3, PATCH, CELL)  # [B, C, h, columns, PATCH]
    start = 0
    for row, inside in groupby(positions, lambda position: position // PATCH):
        across = [position % PATCH for position in inside]
        stop, step = start + len(across), across[1] - across[0]
        there = windows[:, :, row : row + CELL * rows : CELL, :columns, across[0] :: step]
        cut[:, :, start:stop] = there.permute(0, 1, 4, 2, 3)
        start = stop
    return cut.flatten(3)
