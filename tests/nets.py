"""Small networks with fixed random weights, for tests that need any network."""

from __future__ import annotations

import torch
from torch import Tensor

from ugsp_net.config import NetConfig
from ugsp_net.network import UGSP, channels_last

SMALL = NetConfig(
    name="small",
    encoder_channels=(8, 8, 12, 16),
    widths=(8, 12, 12, 16),
    depths=(2, 2, 2, 2),
    matching_radius=(0, 1, 2, 2),
    matching_channels=(0, 4, 4, 8),
)


def small_net(config: NetConfig = SMALL, seed: int = 0) -> UGSP:
    """An untrained network whose every bias and output is alive, so that nothing is compared at zero."""
    torch.manual_seed(seed)
    net = UGSP(config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.05)
    return channels_last(net.eval().requires_grad_(False))


def smooth_frames(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """[count, 3, height, width] in [0, 1]: smooth random pictures."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    return torch.nn.functional.interpolate(noise, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
