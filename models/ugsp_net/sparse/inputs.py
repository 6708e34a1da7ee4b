"""A level's inputs at chosen positions: what ``UGSP`` joins for the whole level, made where it is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SparseInputs:
    """Inputs of a level without matching, in the order in which ``UGSP`` joins them."""

    left: Tensor
    """[B, C, H, W]: features of the first frame, not warped."""
    right: Tensor
    """[B, C, H, W]: of the second."""
    above: Tensor
    """[B, C', H / 2, W / 2]: the feature from the level above."""
    flow: Tensor
    """[B, 4, H, W] fp32, in positions of this level."""
    t: Tensor | None
    """[B] fp32, in a network of any instant."""
    dtype: torch.dtype
    """Of the activations."""

    def rows(self, positions: Tensor) -> Tensor:
        """[U] flat positions over [B, H, W] -> [U, 2 C + C' + 4 (+ 1)]."""
        height, width = self.flow.shape[-2:]
        area = height * width
        picture, place = positions // area, positions % area
        y, x = (place // width).float(), (place % width).float()
        flow = _rows(self.flow).index_select(0, positions)  # [U, 4]
        parts = [
            _bilinear(self.left, picture, x + flow[:, 0], y + flow[:, 1]),
            _bilinear(self.right, picture, x + flow[:, 2], y + flow[:, 3]),
            # As F.interpolate enlarges: pixel centres, not pixel corners, lie on each other.
            _bilinear(self.above, picture, x / 2 - 0.25, y / 2 - 0.25),
            flow,
        ]
        if self.t is not None:
            parts.append(self.t[picture, None])
        return torch.cat([part.to(self.dtype) for part in parts], dim=1)


def _rows(values: Tensor) -> Tensor:
    """[B, C, H, W] -> [B * H * W, C] fp32."""
    return values.permute(0, 2, 3, 1).reshape(-1, values.shape[1]).float()


def _bilinear(source: Tensor, picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read source [B, C, H, W] at [U] places, border values repeated; [U, C] fp32. As ``backward_warp``.

    The four neighbours are summed with their weights by an embedding bag, in one pass and without copies of them.
    """
    height, width = source.shape[-2:]
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    x0, y0 = x.floor(), y.floor()
    right, down = x - x0, y - y0
    across = (x0 < width - 1).long()
    below = (y0 < height - 1).long() * width
    corner = (picture * height + y0.long()) * width + x0.long()
    places = torch.stack((corner, corner + across, corner + below, corner + below + across), dim=1)
    left, up = 1 - right, 1 - down
    weights = torch.stack((left * up, right * up, left * down, right * down), dim=1)
    return F.embedding_bag(places, _rows(source), per_sample_weights=weights, mode="sum")
