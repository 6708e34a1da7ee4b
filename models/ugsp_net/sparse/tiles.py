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

from ugsp_net.blocks import Activation, Conv, Level
from ugsp_net.masks import block_side
from ugsp_net.sparse.reference import run_reference

SMALLEST_SIDE = 4
"""Positions along a tile's side, at least: tiles of 2 ran at a quarter of the dense convolution's rate, of 4 at two
thirds (96 channels, bf16, two cores). Smaller blocks are computed in tiles of several."""
BATCH = 256
"""Tiles convolved at once: fewer waste calls, more leave the cache."""
ROUND = 16
"""The last batch is filled up to a multiple of this, because oneDNN prepares a convolution anew for every size it
meets, which costs more than the convolution itself."""


PAYS_BELOW = {2: 0.4, 4: 0.6, 8: 0.65}
"""Share of a level's positions in tiles, by the side of a block in positions, up to which tiles are faster than the
dense level: where the two took equal time at 1280x720 in bf16 on two cores with AVX512-BF16 and masks of connected
regions (levels of 96, 64 and 48 channels; at a share of 0.2 tiles took 0.4, 0.35 and 0.34 of the dense level's time, at
1 they took 2.4, 1.6 and 1.5). Other sides take the nearest value."""


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


def pays(mask: Tensor, height: int, width: int) -> bool:
    """Whether tiles are faster than computing the whole level and masking it."""
    side = min(max(block_side(mask, height, width), min(PAYS_BELOW)), max(PAYS_BELOW))
    return float(tiled_share(mask, height, width).mean()) < PAYS_BELOW[side]


def computed_share(mask: Tensor, height: int, width: int) -> Tensor:
    """Share of a level's positions that ``run_tiles`` computes, per picture, [B]."""
    return tiled_share(mask, height, width) if pays(mask, height, width) else mask.new_ones(mask.shape[0])


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
        active = torch.cat((active, active[-1:].expand(-count % ROUND, 3)))
        self.zero = active.shape[0] * side * side
        """The row of zeros in a compact buffer."""

        # A map of the level with a border of one position, and whatever the last tiles reach outside.
        full_height, full_width = tiles.shape[2] * side + 2, tiles.shape[3] * side + 2
        corner = (active[:, 0] * full_height + active[:, 1] * side) * full_width + active[:, 2] * side
        span = torch.arange(side + 2, device=device)
        places = corner[:, None, None] + span[:, None] * full_width + span  # [N, S + 2, S + 2], into the map
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
        self.source = source.clamp(min=0)
        """[N * (S + 2)^2]: rows of the dense input; some outside the picture, see ``outside``."""
        self.outside = (source < 0).nonzero()[:, 0]
        """Entries of ``source`` that must read as zero."""
        chosen = wanted[inner[: order.shape[0]]]
        self.kept = order[chosen]
        """[A]: rows of a compact buffer that are active."""
        self.target = dense[inner[: order.shape[0]]][chosen]
        """[A]: rows of the level's output that they belong to."""


def run_tiles(level: Level, x: Tensor, mask: Tensor) -> Tensor:
    """See ``run_level``. Not differentiable. A level too dense for tiles to pay is computed whole."""
    batch, inputs, height, width = x.shape
    if not pays(mask, height, width):
        return run_reference(level, x, mask)
    index = TileIndex(mask, height, width)
    bias = level.bias().to(x.dtype).flatten()
    whole = bias.repeat(batch * height * width, 1)  # [B * H * W, outputs]
    if index.count:
        gathered = x.permute(0, 2, 3, 1).reshape(-1, inputs).index_select(0, index.source)
        gathered[index.outside] = 0
        projected = bias.repeat(index.zero, 1)
        for layer, (conv, activation) in enumerate(level.layers):
            compact = x.new_empty(index.zero + 1, level.width)
            compact[-1] = 0
            _convolve(conv, activation, gathered, compact, index.side)
            projected.addmm_(compact[:-1], level.projection(layer, x.dtype).flatten(1).T)
            if layer < len(level.layers) - 1:
                gathered = compact.index_select(0, index.halo)
        whole[index.target] = projected[index.kept]
    return whole.view(batch, height, width, level.outputs).permute(0, 3, 1, 2)


def _convolve(conv: Conv, activation: Activation, gathered: Tensor, compact: Tensor, side: int) -> None:
    """Tiles with their halo, [N * (S + 2)^2, C], to activations in the first N * S * S rows of ``compact``."""
    halo = side + 2
    tiles = gathered.view(-1, halo, halo, gathered.shape[1]).permute(0, 3, 1, 2)  # [N, C, S + 2, S + 2]
    start = 0
    for part in tiles.split(BATCH):
        out = conv(part, padding=0).permute(0, 2, 3, 1)  # [n, S, S, width]
        rows = out.reshape(-1, out.shape[3])
        activation.write(rows, compact[start : start + rows.shape[0]])
        start += rows.shape[0]
