"""Optical flow between two frames by dense inverse search (Kroeger et al., ECCV 2016): nothing in it is learnt.

Patches of 8x8 positions, one for every 4x4, look for themselves in the other frame: coarse to fine, each from where the
coarser ones and its neighbours ended, by Gauss-Newton steps whose gradients and Hessian come from the patch itself and
are made once. The flow of a position is the mean over the patches that cover it, weighted by how well each fits there.
The finest size is half the picture's. Where motion is plain this finds it to a fraction of a pixel, which a
network learns only from very many samples; where it is not, the network's levels mend it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

STRIDE = 2
"""Image pixels between positions of the finest flow."""
PATCH = 8
"""Side of a patch, positions."""
CELL = PATCH // 2
"""Positions between patches: every position lies in four of them."""
SMALLEST = 6
"""The picture is halved as long as its shorter side keeps so many positions."""
ROUNDS = (1, 2, 4)
"""At each size, the finest first and the last for all others: neighbours' flows are tried, then steps are taken. The
smaller a size, the less a round costs and the more it changes."""
STEPS = 1
"""Gauss-Newton steps of a round."""
DAMPING = 64.0
"""Added to the squared slopes of a patch, of 0 to 255: a patch without slopes stays where its neighbours are."""
NOISE = 2.0
"""Mean squared difference, of 0 to 255, up to which a patch of the finest size is where it belongs and looks no
further; a quarter of that at each smaller size, as noise is averaged."""
REACH = 2
"""At the smallest size every displacement within so many positions is tried: a sixth of its height or more."""
_MARGIN = (PATCH - CELL) // 2
_LUMA = (0.299, 0.587, 0.114)
_SHIFTS = ((0, 1), (2, 1), (1, 0), (1, 2))


@torch.no_grad()
def inverse_search(frame0: Tensor, frame1: Tensor) -> Tensor:
    """Flow 0 -> 1 and 1 -> 0, (x, y) each, in positions of ``STRIDE`` pixels: [B, 4, H / 2, W / 2] fp32.

    frame0, frame1: [B, 3, H, W], RGB in [0, 1], sides multiples of 2. Not differentiable.
    """
    with torch.autocast(frame0.device.type, enabled=False):
        sizes = [torch.cat([F.avg_pool2d(_luma(frame.float()), STRIDE) for frame in (frame0, frame1)])]
        while min(sizes[-1].shape[-2:]) >= 2 * SMALLEST:
            height, width = sizes[-1].shape[-2:]
            sizes.append(F.avg_pool2d(F.pad(sizes[-1], (0, width % 2, 0, height % 2), mode="replicate"), 2))
        flow: Tensor | None = None
        for level, image in reversed(list(enumerate(sizes))):
            if flow is not None:
                height, width = image.shape[-2:]
                flow = 2 * F.interpolate(flow, scale_factor=2.0, mode="bilinear", align_corners=False)
                flow = flow[..., :height, :width]
            flow = _search(image, torch.cat(image.chunk(2)[::-1]), flow, _rounds(level), NOISE / 4**level)
        assert flow is not None
        return torch.cat(flow.chunk(2), dim=1)


def search_macs(width: int, height: int) -> int:
    """Multiply-accumulates of ``inverse_search`` for pictures of that size in which everything moves.

    For each position of a patch that is compared: four to read the other frame between its pixels and two for the sums;
    two more for a step.
    """
    width, height = width // STRIDE, height // STRIDE
    total = level = 0
    while True:
        rounds = _rounds(level)
        compared = 2 + (rounds + 1) * len(_SHIFTS) + 2 * rounds * STEPS
        each = 6 * compared + 2 * rounds * STEPS
        total += 2 * each * PATCH**2 * (-(-width // CELL)) * (-(-height // CELL))
        if min(width, height) < 2 * SMALLEST:
            return total + 12 * (2 * REACH + 1) ** 2 * PATCH**2 * (-(-width // CELL)) * (-(-height // CELL))
        width, height, level = -(-width // 2), -(-height // 2), level + 1


def _luma(frame: Tensor) -> Tensor:
    """[B, 3, H, W] of 0 to 1 -> [B, 1, H, W] of 0 to 255."""
    red, green, blue = (255 * share for share in _LUMA)
    grey = red * frame[:, :1]
    return grey.add_(frame[:, 1:2], alpha=green).add_(frame[:, 2:], alpha=blue)


def _rounds(level: int) -> int:
    """At a size; 0: the finest."""
    return ROUNDS[min(level, len(ROUNDS) - 1)]


@dataclass(frozen=True)
class _Patches:
    """All patches of one frame at one size, and where they are looked for. N patches, S = PATCH^2 positions each."""

    template: Tensor
    """[B, S, N], the values of the frame that they are cut from."""
    across: Tensor
    """[B, S, N], their gradients, less each patch's mean: a change of brightness is no motion."""
    down: Tensor
    inverse: tuple[Tensor, Tensor, Tensor]
    """The inverse Hessian's xx, xy and yy, [B, N]."""
    places: Tensor
    """[1 or B, S, N, 2]: their positions as ``grid_sample`` counts."""
    unit: Tensor
    """[2]: one position as ``grid_sample`` counts."""
    other: Tensor
    """[B, 1, h, w]: the frame in which they are looked for."""

    def residual(self, flow: Tensor) -> Tensor:
        """What differs where each patch is moved by its flow [B, N, 2]: [B, S, N]."""
        grid = self.places + (flow * self.unit)[:, None]
        found = F.grid_sample(self.other, grid, mode="bilinear", padding_mode="border", align_corners=True)[:, 0]
        return found.sub_(self.template)

    def step(self, flow: Tensor) -> Tensor:
        """The flow after one Gauss-Newton step from another, both [B, N, 2]."""
        residual = self.residual(flow)
        x, y = (self.across * residual).sum(1), (self.down * residual).sum(1)
        xx, xy, yy = self.inverse
        return flow - torch.stack((xx * x + xy * y, xy * x + yy * y), dim=-1)

    def take(self, chosen: Tensor) -> _Patches:
        """Those of each frame whose numbers are in ``chosen``, [B, K]."""
        batch, count = chosen.shape
        if count == self.template.shape[-1]:
            return self
        columns = chosen[:, None].expand(-1, PATCH**2, -1)
        places = self.places.expand(batch, -1, -1, -1).gather(2, columns[..., None].expand(-1, -1, -1, 2))
        xx, xy, yy = self.inverse
        return _Patches(
            self.template.gather(2, columns),
            self.across.gather(2, columns),
            self.down.gather(2, columns),
            (xx.gather(1, chosen), xy.gather(1, chosen), yy.gather(1, chosen)),
            places,
            self.unit,
            self.other,
        )


class _State:
    """The best flow of every patch so far, while some of them look for better ones."""

    def __init__(self, patches: _Patches, chosen: Tensor, best: Tensor, cost: Tensor, fits: float) -> None:
        """patches: those that look; chosen: their numbers, [B, K]; best, cost: of all patches, [B, N, 2] and [B, N];
        fits: the cost up to which one looks no further."""
        self._patches = patches
        self._all = best
        self._chosen = None if chosen.shape == cost.shape else chosen[..., None].expand(-1, -1, 2)
        self._flow = self._of_chosen(best)
        self._cost = cost if self._chosen is None else cost.gather(1, chosen)
        self._looks = self._cost > fits

    @property
    def best(self) -> Tensor:
        """Of all patches, [B, N, 2]."""
        return self._flow if self._chosen is None else self._all.scatter(1, self._chosen, self._flow)

    def _of_chosen(self, flow: Tensor) -> Tensor:
        return flow if self._chosen is None else flow.gather(1, self._chosen)

    def try_flows(self, tried: Tensor) -> None:
        """Take these flows, [B, K, 2], where they fit better."""
        costs = _cost(self._patches.residual(tried))
        better = self._looks & (costs < self._cost)
        self._flow = torch.where(better[..., None], tried, self._flow)
        self._cost = torch.where(better, costs, self._cost)

    def try_neighbours(self, rows: int, columns: int) -> None:
        """Try the flows that the patches above, below, left and right have now."""
        grid = self.best.view(-1, rows, columns, 2)
        around = F.pad(grid.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)
        for row, column in _SHIFTS:
            shifted = around[:, row : row + rows, column : column + columns].reshape(len(grid), -1, 2)
            self.try_flows(self._of_chosen(shifted))

    def step(self) -> None:
        """``STEPS`` Gauss-Newton steps."""
        flow = self._flow
        for _ in range(STEPS):
            flow = self._patches.step(flow)
            self.try_flows(flow)


def _cost(residual: Tensor) -> Tensor:
    """Squared difference less that of the means, [B, S, N] -> [B, N]; never below that of equal patches."""
    return (residual.square().sum(1) - residual.sum(1).square() / residual.shape[1]).clamp_(min=0)


def _displacements(device: torch.device) -> Tensor:
    """All of at most ``REACH`` positions, [(2 REACH + 1)^2, 2] (x, y) fp32."""
    steps = torch.arange(-REACH, REACH + 1, device=device, dtype=torch.float32)
    return torch.cartesian_prod(steps, steps)


def _search(first: Tensor, second: Tensor, flow: Tensor | None, rounds: int, noise: float) -> Tensor:
    """Flow first -> second at one size, both [B, 1, h, w] of 0 to 255, from a first guess [B, 2, h, w]."""
    fits = PATCH**2 * noise
    batch, _, height, width = first.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    below, right = rows * CELL - height, columns * CELL - width
    patches = _cut(first, second, rows, columns)
    if flow is None:
        best = first.new_zeros((batch, rows * columns, 2))
    else:
        filled = F.pad(flow, (0, right, 0, below), mode="replicate")
        best = F.avg_pool2d(filled, CELL).flatten(2).transpose(1, 2).contiguous()
    cost = _cost(patches.residual(best))
    most = int((cost > fits).sum(1).max())
    if most:
        # As many of each frame: those that fit worst, so that one batch holds them all.
        chosen = cost.topk(most, dim=1).indices.sort(dim=1).values
        state = _State(patches.take(chosen), chosen, best, cost, fits)
        if flow is None:
            for tried in _displacements(first.device):
                state.try_flows(tried.expand(batch, most, 2))
        for _ in range(rounds):
            state.try_neighbours(rows, columns)
            state.step()
        state.try_neighbours(rows, columns)
        best = state.best
    misfit = patches.residual(best)
    weight = 1 / ((_cost(misfit) / PATCH**2 + 4.0)[:, None] * misfit.abs_().clamp_(min=1.0))
    # Every cell is covered by four quarters of patches; where they overlap, their sum: F.fold at a third of its time.
    weight = weight.view(batch, 1, 2, CELL, 2, CELL, rows, columns)
    moved = best.view(batch, rows, columns, 2).permute(0, 3, 1, 2)[:, :, None, None]  # [B, 2, 1, 1, rows, columns]
    summed = weight.new_zeros((batch, 3, CELL, CELL, rows + 1, columns + 1))
    for down, across in product((0, 1), repeat=2):
        quarter = weight[:, :, down, :, across]
        there = summed[..., down : down + rows, across : across + columns]
        there[:, :1] += quarter
        there[:, 1:].addcmul_(quarter, moved)
    flow = (summed[:, 1:] / summed[:, :1]).permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)
    return flow[..., _MARGIN : _MARGIN + height, _MARGIN : _MARGIN + width]


def _cut(first: Tensor, second: Tensor, rows: int, columns: int) -> _Patches:
    height, width = first.shape[-2:]
    around = (_MARGIN, _MARGIN + columns * CELL - width, _MARGIN, _MARGIN + rows * CELL - height)
    across, down = F.pad(first, (1, 1, 0, 0), mode="replicate"), F.pad(first, (0, 0, 1, 1), mode="replicate")
    across, down = (across[..., 2:] - across[..., :-2]) / 2, (down[..., 2:, :] - down[..., :-2, :]) / 2
    # Outside the frame nothing is known of where it slopes.
    template, across, down = (
        F.unfold(values, PATCH, stride=CELL)
        for values in (F.pad(first, around, mode="replicate"), F.pad(across, around), F.pad(down, around))
    )
    across, down = across - across.mean(1, keepdim=True), down - down.mean(1, keepdim=True)
    xx, yy = across.square().sum(1) + DAMPING, down.square().sum(1) + DAMPING
    xy = (across * down).sum(1)
    determinant = xx * yy - xy * xy
    inside = torch.arange(PATCH, device=first.device, dtype=torch.float32) - _MARGIN
    unit = first.new_tensor((2 / max(width - 1, 1), 2 / max(height - 1, 1)))
    x = CELL * torch.arange(columns, device=first.device) + inside[:, None]  # [PATCH, columns]
    y = CELL * torch.arange(rows, device=first.device) + inside[:, None]  # [PATCH, rows]
    shape = (PATCH, PATCH, rows, columns)
    places = torch.stack((x[None, :, None, :].expand(shape), y[:, None, :, None].expand(shape)), dim=-1)
    return _Patches(
        template,
        across,
        down,
        (yy / determinant, -xy / determinant, xx / determinant),
        (places.reshape(1, PATCH**2, rows * columns, 2) * unit - 1),
        unit,
        second,
    )
