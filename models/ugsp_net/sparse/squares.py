"""What the last level puts out where kernels make it: squares of pixels, and bands where nothing was computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ugsp_net.masks import block_side, enlarge


@dataclass(frozen=True)
class SquaresOutput:
    """A ``LastOutput`` in squares of 2x2 pixels, one for each position of the level; outputs as in ``Synthesis``."""

    squares: Tensor
    """[B, H / 2, W / 2, 32] (output, row, column), of the activations' type; anything where ``reached`` is 0."""
    reached: Tensor | None
    """[B, 1, rows, columns] fp32, a grid of blocks: 1 where squares are computed. None: everywhere."""
    bands: Tensor
    """[8, 8, W] fp32 (output, band, column): what it is elsewhere. Band 0 is the picture's first row and band 7 its
    last; the rows between are bands 2 (even) and 3 (odd). The others are not used."""

    def whole(self) -> Tensor:
        """All of it, [B, 8, H, W] fp32."""
        batch, height, width, _ = self.squares.shape
        apart: Tensor = self.squares.float().unflatten(3, (8, 2, 2))
        made = apart.permute(0, 3, 1, 4, 2, 5).reshape(batch, 8, 2 * height, 2 * width)
        if self.reached is None:
            return made
        rows = torch.arange(2 * height, device=made.device) % 2 + 2
        rows[0], rows[-1] = 0, 7
        constant = self.bands[:, rows].expand(batch, -1, -1, -1)
        side = 2 * block_side(self.reached, height, width)
        return torch.where(enlarge(self.reached, side) != 0, made, constant)

    def part(self, rows: slice, columns: slice) -> Tensor:
        """As ``LastOutput.part``."""
        return self.whole()[:, :, rows, columns]

    def lines(self, picture: int) -> tuple[Tensor, ...]:
        """As ``LastOutput.lines``."""
        nothing = self.bands.new_empty(0, 0)
        return self.whole()[picture], nothing[None], nothing.int(), nothing, nothing, nothing
