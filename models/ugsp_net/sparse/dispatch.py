"""The one entry to pruned execution, and the choice of the way it is done."""

from __future__ import annotations

from torch import Tensor

from ugsp_net.blocks import Level
from ugsp_net.sparse.reference import run_reference
from ugsp_net.sparse.tiles import computed_share, run_tiles

BACKENDS = ("reference", "tiles")
"""``reference``: every position, then times the mask (the truth, and differentiable). ``tiles``: active blocks only."""


def run_level(level: Level, x: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """The level's output, [B, outputs, H, W]: its bias where the mask is 0.

    x: [B, inputs, H, W]; mask: [B, 1, rows, columns] fp32, each entry a block of H / rows x W / columns positions, or
    None to compute everything. The type is that of x, or fp32 while gradients are recorded. Raises ValueError for an
    unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if mask is None or backend == "reference":
        return run_reference(level, x, mask)
    return run_tiles(level, x, mask)


def performed_share(mask: Tensor, height: int, width: int, backend: str) -> Tensor:
    """Share of a level's positions that a backend computes for a mask, per picture, [B]: what statistics count."""
    if backend == "tiles":
        return computed_share(mask, height, width)
    return mask.new_ones(mask.shape[0])
