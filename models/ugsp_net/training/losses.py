"""Losses of the paper (section 3.4) and those that help a network that sees few samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net.warp import upsample


def log_squared(difference: Tensor, least: float = 1e-4) -> Tensor:
    """Mean over the batch of the logarithm of each picture's mean squared difference, [B, C, H, W]: a decibel counts as
    much in every picture, down to ``least`` (40 dB), where only noise is left."""
    return torch.log(difference.square().flatten(1).mean(1) + least).mean()


def laplacian(difference: Tensor, levels: int = 4) -> Tensor:
    """L1 over the Laplacian pyramid of a difference [B, C, H, W]; the pyramid is linear, so one of it is enough."""
    total = difference.new_zeros(())
    for _ in range(levels):
        smaller = F.avg_pool2d(difference, 2)
        total = total + (difference - upsample(smaller)).abs().mean()
        difference = smaller
    return total + difference.abs().mean()


def uncertainty_loss(error: Tensor, log_scale: Tensor) -> Tensor:
    """``exp(-U) |error| + 2 U`` (paper, eq. 4), mean over pixels; U is held within a range that keeps exp finite."""
    return (torch.exp(-log_scale) * error + 2 * log_scale).mean()


def flow_error(flow: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Robust mean end-point error, in pixels, of both flows [B, 4, h, w] at any stride against full-size flow.

    truth: [B, 4, H, W] in pixels; weight: [B, 1, H, W] in [0, 1].
    """
    stride = truth.shape[-1] // flow.shape[-1]
    if stride > 1:
        total = F.avg_pool2d(weight, stride)
        truth = F.avg_pool2d(truth * weight, stride) / (total + 1e-3)
        weight = total
    difference = (flow.float() * stride - truth).unflatten(1, (2, 2))
    distance = torch.sqrt(difference.square().sum(2) + 0.01)  # [B, 2, h, w]
    return (distance * weight).mean()


def census(first: Tensor, second: Tensor, radius: int = 1) -> Tensor:
    """Distance of soft census transforms of two feature maps [B, C, H, W] (paper, eq. 7: self-contrast)."""

    def transform(values: Tensor) -> Tensor:
        mean = values.float().mean(1, keepdim=True)
        side = 2 * radius + 1
        patches = F.unfold(mean, side, padding=radius).view(mean.shape[0], side * side, *mean.shape[-2:])
        difference = patches - mean
        return difference / torch.sqrt(0.81 + difference.square())

    distance = (transform(first) - transform(second)).square()
    return (distance / (0.1 + distance)).mean()


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """PSNR in dB of pictures in [0, 1], per picture: [B, ...] -> [B]."""
    error = (first - second).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-10))
