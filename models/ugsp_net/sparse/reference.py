"""Dense convolutions, then times the mask: what every other way must equal, and the way that is trained."""

from __future__ import annotations

from torch import Tensor

from ugsp_net.blocks import Level
from ugsp_net.masks import block_side, enlarge
from ugsp_net.sparse.projection import Projection


def run_reference(level: Level, x: Tensor, mask: Tensor | None) -> Tensor:
    """See ``run_level``."""
    if mask is not None:
        mask = enlarge(mask, block_side(mask, *x.shape[-2:])).to(x.dtype)  # [B, 1, H, W]
    projection = Projection(level)
    for conv, activation in level.layers:
        x = conv(x, activation)
        if mask is not None:
            x = x * mask
        projection.add(x)
    return projection.result()
