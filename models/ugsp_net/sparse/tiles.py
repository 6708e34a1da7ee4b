"""Active blocks only, in plain torch: gather tiles with a halo of one and convolve them as a batch.

Layers hand each other *compact* buffers that hold active positions and nothing else, plus one row of zeros that stands
for every position that is pruned or outside the picture. A tile's halo is gathered from there through an index made
once per mask, so nothing is scattered until the level is done. A gather of rows copies whole cache lines, and a batch
of small tiles runs at nearly the dense convolution's rate, where single gathered pixels do not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net.blocks import Level, Synthesis
from ugsp_net.masks import block_side, enlarge
from ugsp_net.matching import TILE
from ugsp_net.sparse.inputs import DenseInputs, SparseInputs, distinct, filled_up

SMALLEST_SIDE = 4
"""Positions along a tile's side, at least: tiles of 2 ran at a quarter of the dense convolution's rate, of 4 at two
thirds (96 channels, bf16, two cores). Smaller blocks are computed in tiles of several."""
BATCH = 256
"""Tiles convolved at once: fewer waste calls, more leave the cache."""

PAYS_BELOW = {
    torch.bfloat16: {2: 0.75, 4: 0.75, 8: 0.65},
    torch.float32: {2: 0.85, 4: 0.85, 8: 0.75},
}
"""Share of a level's positions in tiles, by the type of the activations and the side of a block in positions, up to
which tiles are faster than the dense level: about where the two took equal time at 1280x720 on two cores with masks of
connected regions (levels of 96, 64 and 48 channels). Other sides take the nearest value, other types those of bf16.

Inputs are included on both sides. bf16 (AVX512-BF16): at shares of 0.25, 0.2 and 0.2 tiles took 0.37, 0.30 and 0.34 of
the dense level's time, at 0.68, 0.6 and 0.6 they took 0.87, 0.82 and 0.86, at 1 they took 1.25, 1.25 and 1.6; much the
same at 1920x1080. fp32 (AVX2): at shares of 0.25, 0.2 and 0.2 they took 0.33, 0.25 and 0.32, at 0.81, 0.75 and 0.75
they took 0.94, 0.89 and 1.01."""


def tile_mask(mask: Tensor, side: int) -> Tensor:
    """Which tiles are computed for a mask of blocks of ``side`` positions: those that hold an active block.

    mask: [B, 1, rows, columns] -> the same on the grid of tiles, whose last row and column may reach outside.
    """
    group = max(1, SMALLEST_SIDE // side)
    return mask if group == 1 else F.max_pool2d(mask, group, ceil_mode=True)


def tiled_share(mask: Tensor, height: int, width: int) -> Tensor:
    """Positions in the tiles of a mask, as a share of the level's, per picture, [B]; it exceeds the mask's own share
    where a tile holds pruned blocks too, and 1 where all tiles are computed and the last ones reach outside."""
    block = block_side(mask, height, width)
    side = max(block, SMALLEST_SIDE)
    return tile_mask(mask, block).flatten(1).sum(1) * (side * side / (height * width))


def matched_share(mask: Tensor, height: int, width: int) -> Tensor:
    """Share of a level's positions whose correlation is computed and reduced for the tiles of a mask, [B]."""
    block = block_side(mask, height, width)
    tiles = enlarge(tile_mask(mask, block), max(block, SMALLEST_SIDE))[..., :height, :width]
    read = F.max_pool2d(tiles, 3, 1, 1)  # with the head's halo
    squares = F.max_pool2d(read, TILE, ceil_mode=True)
    return enlarge(squares, TILE)[..., :height, :width].flatten(1).mean(1)


def enlarged_share(mask: Tensor, height: int, width: int) -> Tensor:
    """Share of the last level's positions that ``run_last_tiles`` enlarges for a mask, [B]."""
    block = block_side(mask, height, width)
    around = F.max_pool2d(tile_mask(mask, block), 3, 1, 1)
    return enlarge(around, max(block, SMALLEST_SIDE))[..., :height, :width].flatten(1).mean(1)


def pays(mask: Tensor, height: int, width: int, dtype: torch.dtype) -> bool:
    """Whether tiles are faster than computing the whole level and masking it; dtype: of the activations."""
    below = PAYS_BELOW.get(dtype, PAYS_BELOW[torch.bfloat16])
    side = min(max(block_side(mask, height, width), min(below)), max(below))
    return float(tiled_share(mask, height, width).mean()) < below[side]


class TileIndex:
    """Where the tiles of one mask are read and written. N tiles of S x S positions, A active positions."""

    def __init__(self, mask: Tensor, height: int, width: int) -> None:
        """mask: [B, 1, rows, columns], the grid of blocks over a level of height x width positions."""
        pictures = mask.shape[0]
        block = block_side(mask, height, width)
        device = mask.device
        tiles = tile_mask(mask, block)
        self.side = side = max(block, SMALLEST_SIDE)
        active = tiles[:, 0].nonzero()  # [N, 3]: picture, tile row, tile column
        self.count = count = active.shape[0]
        if count == 0:
            return
        # Filled up with the last tile, which is computed again and not read.
        active = filled_up(active)
        self.zero = active.shape[0] * side * side
        """The row of zeros in a compact buffer."""

        # A map of the level with a border of one position, and whatever the last tiles reach outside.
        full_height, full_width = tiles.shape[2] * side + 2, tiles.shape[3] * side + 2
        places = self._places(active, full_height, full_width)  # [N, S + 2, S + 2], into the map
        inner = places[:, 1:-1, 1:-1].flatten()  # [N * S * S]

        # From places to rows of the level's dense input, and whether the block there is active.
        wanted = torch.zeros(pictures, full_height, full_width, dtype=torch.bool, device=device)
        enlarged = mask[:, 0].bool().repeat_interleave(block, 1).repeat_interleave(block, 2)
        wanted[:, 1 : height + 1, 1 : width + 1] = enlarged
        dense = torch.full((pictures, full_height, full_width), -1, device=device)
        numbers = torch.arange(pictures * height * width, device=device).view(pictures, height, width)
        dense[:, 1 : height + 1, 1 : width + 1] = numbers
        wanted, dense = wanted.flatten(), dense.flatten()

        compact = torch.full_like(dense, self.zero)
        order = torch.arange(count * side * side, device=device)
        compact[inner[: order.shape[0]]] = order
        compact = torch.where(wanted, compact, self.zero)
        self.halo = compact[places].flatten()
        """[N * (S + 2)^2]: rows of a compact buffer."""
        source = dense[places].flatten()
        # Halos overlap: what several tiles read is numbered once.
        self.needed, number = distinct(source, numbers.numel())
        """[U]: rows of the dense input that any tile reads, in order."""
        self.source = number[source]
        """[N * (S + 2)^2]: rows of a table that holds ``needed``, then a row of zeros for what is outside."""
        chosen = wanted[inner[: order.shape[0]]]
        self.kept = order[chosen]
        """[A]: rows of a compact buffer that are active."""
        self.target = dense[inner[: order.shape[0]]][chosen]
        """[A]: rows of the level's output that they belong to."""

        # The level's output may be read by a convolution too: around every tile that is computed.
        around = F.max_pool2d(tiles, 3, 1, 1)
        self.around = filled_up(around[:, 0].nonzero())
        """[M, 3]: picture, row and column of the tiles that hold an active position or touch such a tile."""
        row = torch.where(wanted, compact, torch.where(dense < 0, self.zero, self.zero + 1))
        self.output = row[self._places(self.around, full_height, full_width)].flatten()
        """[M * (S + 2)^2]: rows of a table of the level's output: a compact buffer, zeros, then the bias."""

    def _places(self, tiles: Tensor, full_height: int, full_width: int) -> Tensor:
        """Where tiles [N, 3] and their halo lie in the bordered map, [N, S + 2, S + 2]."""
        corner = (tiles[:, 0] * full_height + tiles[:, 1] * self.side) * full_width + tiles[:, 2] * self.side
        span = torch.arange(self.side + 2, device=tiles.device)
        return corner[:, None, None] + span[:, None] * full_width + span


def run_tiles(level: Level, inputs: SparseInputs | DenseInputs, mask: Tensor, height: int, width: int) -> Tensor:
    """A level of height x width positions from its inputs to its output: see ``run_level``. Not differentiable."""
    index = TileIndex(mask, height, width)
    pictures = mask.shape[0]
    whole = level.bias().to(inputs.dtype).flatten().repeat(pictures * height * width, 1)  # [B * H * W, outputs]
    if index.count:
        values = _run_layers(level, inputs.rows(index.needed), index)
        whole.index_copy_(0, index.target, values.index_select(0, index.kept))
    return whole.view(pictures, height, width, level.outputs).permute(0, 3, 1, 2)


def run_last_tiles(
    level: Level, synthesis: Synthesis, inputs: SparseInputs, mask: Tensor, height: int, width: int
) -> Tensor:
    """The last level from its inputs to full resolution, [B, 8, 2 * H, 2 * W] fp32: see ``run_level``, ``Synthesis``.

    mask: [B, 1, rows, columns] over the level's height x width positions. What no active position is near costs neither
    warping nor convolutions: there the output is the bias, enlarged. Not differentiable.
    """
    index = TileIndex(mask, height, width)
    pictures, side = mask.shape[0], index.side
    rows, columns = -(-height // side), -(-width // side)
    out = _constant(level, synthesis, pictures, rows * side, columns * side, height, width)
    if index.count:
        values = _run_layers(level, inputs.rows(index.needed), index)
        table = synthesis.activation(values)
        halo = side + 2
        gathered = table.index_select(0, index.output).view(-1, halo, halo, level.outputs).permute(0, 3, 1, 2)
        # Padding of 1, as the whole enlargement has, and 2 more that cut off what the halo of one position makes.
        made = torch.cat([synthesis.enlarged(part, padding=3) for part in gathered.split(BATCH)])  # [M, 8, 2 S, 2 S]
        picture, row, column = index.around.unbind(1)
        tiled = out.view(pictures, -1, rows, 2 * side, columns, 2 * side)
        tiled[picture, :, row, :, column, :] = made
    return out.narrow(2, 0, 2 * height).narrow(3, 0, 2 * width)


def _constant(
    level: Level, synthesis: Synthesis, pictures: int, padded_height: int, padded_width: int, height: int, width: int
) -> Tensor:
    """What the bias alone is enlarged to, [pictures, 8, 2 * padded_height, 2 * padded_width]: it repeats every two
    pixels, but for the border of one pixel of the picture of height x width positions, where the enlargement reaches
    outside."""
    bias = level.bias().to(synthesis.enlarge.weight.dtype)
    small: Tensor = synthesis(bias.repeat(1, 1, 4, 4))  # [1, 8, 8, 8]

    def numbers(padded: int, inside: int) -> Tensor:
        chosen = torch.arange(2 * padded, device=bias.device) % 2 + 2
        chosen[0], chosen[2 * inside - 1] = 0, 7
        return chosen

    # Columns of a small map first: whole rows are then copied, in a quarter of the time that single values took.
    row = small.index_select(3, numbers(padded_width, width)).expand(pictures, -1, -1, -1)
    return row.index_select(2, numbers(padded_height, height))


def _run_layers(level: Level, rows: Tensor, index: TileIndex) -> Tensor:
    """The level's output in a compact buffer, then a row of zeros and one of the bias, [N * S * S + 2, outputs].

    rows: those that the index needs, and one of zeros, [U + 1, inputs].
    """
    projected = level.bias().to(rows.dtype).flatten().repeat(index.zero + 2, 1)
    projected[index.zero] = 0
    halo, area = index.side + 2, index.side * index.side
    numbers = index.source
    for layer, (conv, activation) in enumerate(level.layers):
        compact = rows.new_empty(index.zero + 1, level.width)
        compact[-1] = 0
        weight = level.projection(layer, rows.dtype).flatten(1).T
        # All that is done to a batch is done while it is in the cache.
        for first in range(0, index.zero // area, BATCH):
            part = numbers[first * halo * halo : (first + BATCH) * halo * halo]
            tiles = rows.index_select(0, part).view(-1, halo, halo, rows.shape[1]).permute(0, 3, 1, 2)
            made = conv(tiles, padding=0).permute(0, 2, 3, 1).reshape(-1, level.width)  # [n * S * S, width]
            span = slice(first * area, first * area + made.shape[0])
            activation.write(made, compact[span])
            projected[span].addmm_(compact[span], weight)
        rows, numbers = compact, index.halo
    return projected
