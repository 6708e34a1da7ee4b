"""The one entry to pruned execution, and the choice of the way it is done."""

from __future__ import annotations

import torch
from torch import Tensor

from ugsp_net import gpu
from ugsp_net.blocks import Level
from ugsp_net.sparse.inputs import DenseInputs
from ugsp_net.sparse.reference import run_reference
from ugsp_net.sparse.tiles import enlarged_share, matched_share, pays, run_tiles
from ugsp_net.sparse.triton_level import run_level_triton

BACKENDS = ("reference", "tiles", "triton")
"""``reference``: every position, then times the mask (the truth, and differentiable). ``tiles``: active blocks only, in
plain torch. ``triton``: active blocks only, in kernels for CUDA devices."""


def why_not(backend: str, device: torch.device | str) -> str | None:
    """Why a backend cannot run on a device, in words for the user; None where it can."""
    return gpu.why_not(torch.device(device)) if backend == "triton" else None


def run_level(level: Level, x: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """The level's output, [B, outputs, H, W]: its bias where the mask is 0.

    x: [B, inputs, H, W]; mask: [B, 1, rows, columns] fp32, each entry a block of H / rows x W / columns positions, or
    None to compute everything. The type is that of x, or fp32 while gradients are recorded. Raises ValueError for an
    unknown backend, and for one that cannot run on x's device.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    reason = why_not(backend, x.device)
    if reason is not None:
        raise ValueError(f"the {backend} backend cannot run: {reason}")
    if mask is not None and backend == "triton":
        return run_level_triton(level, x, mask)
    height, width = x.shape[-2:]
    if mask is not None and backend == "tiles" and pays(mask, height, x.dtype):
        return run_tiles(level, DenseInputs(x), mask, height, width)
    return run_reference(level, x, mask)


def performed_share(mask: Tensor, level: int, height: int, width: int, backend: str, dtype: torch.dtype) -> Tensor:
    """Shares of a level's positions that a backend computes for a mask, per picture, [B, 2]: what statistics count.

    The first is that of ``Cost.prunable``, the second that of ``Cost.beside``. level: index into ``STRIDES``; height x
    width: its positions; dtype: of its activations.
    """
    share, ones = mask.flatten(1).mean(1), mask.new_ones(mask.shape[0])
    if backend == "triton":
        return torch.stack((share, ones), dim=1)
    if backend == "tiles" and pays(mask, height, dtype):
        beside = enlarged_share if level == 0 else matched_share
        return torch.stack((share, beside(mask, height, width)), dim=1)
    return torch.stack((ones, ones), dim=1)
