"""The 1x1 projection of all of a level's layers, summed layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net.blocks import Level


class Projection:
    """Takes the layers' outputs one after the other; ``result`` is the projection of their concatenation.

    While gradients are recorded the sum is fp32 and out of place. At inference one matrix product per layer adds into
    one buffer of the activations' type, a third of the memory traffic: it was as slow as the 3x3 convolutions before.
    """

    def __init__(self, level: Level) -> None:
        self._level = level
        self._sum: Tensor | None = None
        self._layer = 0

    def add(self, x: Tensor) -> None:
        """The next layer's output, [B, width, H, W], channels last at inference."""
        weight = self._level.projection(self._layer, x.dtype)  # [outputs, width, 1, 1]
        if torch.is_grad_enabled():
            part = F.conv2d(x, weight).float()
            self._sum = self._level.bias() + part if self._sum is None else self._sum + part
        else:
            batch, width, height, columns = x.shape
            rows = x.permute(0, 2, 3, 1).reshape(-1, width)
            if self._sum is None:
                bias = self._level.bias().to(x.dtype).flatten()
                self._sum = bias.repeat(rows.shape[0], 1)  # a copy, for a single row too: it is added to in place
            self._sum.addmm_(rows, weight.flatten(1).T)
            self._shape = (batch, height, columns, self._level.outputs)
        self._layer += 1

    def result(self) -> Tensor:
        """[B, outputs, H, W]; fp32 while gradients are recorded, else the activations' type."""
        assert self._sum is not None
        if torch.is_grad_enabled():
            return self._sum
        return self._sum.view(self._shape).permute(0, 3, 1, 2)
