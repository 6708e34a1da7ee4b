"""The refinement of the paper's variant UGSP-refine: RIFE's context encoder and U-Net, which correct the blended frame.

It runs everywhere, whatever the masks say: it is never pruned.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ugsp_net.blocks import Activation, Conv, Convolutions, Encoder, Enlarge
from ugsp_net.config import CONTEXT_CHANNELS, NetConfig
from ugsp_net.warp import backward_warp


class Refinement(nn.Module):
    """Context of both frames, and a U-Net from the frames, what was fetched from them and the flow to an RGB residual.

    The way down has twice the context's channels and sees both frames' warped context after each step; the way up has
    as many channels as the context and meets the way down again.
    """

    PICTURES = 12
    """Channels of both frames and of both warped ones; blend weight (1) and flow (4) come in beside them."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.context = Encoder(dataclasses.replace(config, encoder_channels=CONTEXT_CHANNELS))
        self.down = nn.ModuleList()
        inputs = self.PICTURES + 5
        for channels in CONTEXT_CHANNELS:
            width = 2 * channels
            self.down.append(
                Convolutions(
                    Conv(inputs, width, stride=2),
                    Activation(config.activation, width),
                    Conv(width, width),
                    Activation(config.activation, width),
                )
            )
            inputs = width + 2 * channels
        self.up = nn.ModuleList(
            nn.Sequential(Enlarge(4 * channels, channels), Activation(config.activation, channels))
            for channels in reversed(CONTEXT_CHANNELS)
        )
        self.last = Conv(CONTEXT_CHANNELS[0], 3)

    def encode(self, frame: Tensor) -> tuple[Tensor, ...]:
        """One frame's context: [B, 3, H, W], normalised -> [B, C_l, H / s, W / s] at strides 2, 4, 8, 16."""
        return tuple(self.context(frame))

    def forward(
        self, pictures: Tensor, blend: Tensor, flow: Tensor, first: tuple[Tensor, ...], second: tuple[Tensor, ...]
    ) -> Tensor:
        """The residual in (-1, 1), [B, 3, H, W] fp32, to be added to the blended frame.

        pictures: [B, 12, H, W], the two frames and the two warped ones, normalised, in the type of the activations;
        blend: [B, 1, H, W] fp32; flow: [B, 4, H, W] fp32, in pixels; first, second: the frames' contexts.
        """
        x = _join(pictures, blend, flow)
        steps = []
        for down, left, right in zip(self.down, first, second, strict=True):
            x = down(x)
            steps.append(x)
            flow = F.avg_pool2d(flow, 2) / 2
            x = _join(x, backward_warp(left, flow[:, :2]), backward_warp(right, flow[:, 2:]))
        for index, up in enumerate(self.up):
            if index:
                x = _join(x, steps[-1 - index])
            x = up(x)
        return torch.tanh(self.last(x).float())


def _join(first: Tensor, *others: Tensor) -> Tensor:
    """Concatenate channels in the type of the first."""
    joined = torch.cat((first, *(other.to(first.dtype) for other in others)), dim=1)
    return joined.contiguous(memory_format=torch.channels_last)
