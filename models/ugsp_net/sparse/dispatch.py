"""The one entry to pruned execution, and the choice of the way it is done."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net import gpu
from ugsp_net.blocks import Level, Synthesis
from ugsp_net.masks import block_side
from ugsp_net.sparse.inputs import DenseInputs, SparseInputs
from ugsp_net.sparse.reference import run_reference
from ugsp_net.sparse.tiles import LastOutput, enlarged_share, matched_share, pays, reached_share, run_tiles
from ugsp_net.sparse.triton_level import run_last_triton, run_level_triton, run_rows_triton

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


def performed_share(
    mask: Tensor, level: int, height: int, width: int, backend: str, dtype: torch.dtype, motion: bool = False
) -> Tensor:
    """Shares of a level's positions that a backend computes for a mask, per picture, [B, 2]: what statistics count.

    The first is that of ``Cost.prunable``, the second that of ``Cost.beside``. level: index into ``STRIDES``; height x
    width: its positions; dtype: of its activations; motion: whether flow and blend are asked for, as in
    ``UGSP.interpolate``.
    """
    share, ones = mask.flatten(1).mean(1), mask.new_ones(mask.shape[0])
    if backend == "triton":
        if level == 0:  # the nine taps of 3x3 for the four that each pixel has
            return torch.stack((share, 9 / 4 * F.max_pool2d(mask, 3, 1, 1).flatten(1).mean(1)), dim=1)
        return torch.stack((share, reached_share(mask, height, width)), dim=1)
    if backend == "tiles" and pays(mask, height, dtype):
        if level == 0:
            return torch.stack((share, enlarged_share(mask, height, width, dtype, motion)), dim=1)
        return torch.stack((share, matched_share(mask, height, width)), dim=1)
    return torch.stack((ones, ones), dim=1)


def run_kernels(level: Level, inputs: SparseInputs, mask: Tensor) -> Tensor:
    """A level on a CUDA device, from its inputs to its output: see ``run_level``. Not differentiable."""
    height, width = inputs.flow.shape[-2:]
    return run_rows_triton(level, _rows(inputs, mask), mask, height, width)


def run_last_kernels(level: Level, synthesis: Synthesis, inputs: SparseInputs, mask: Tensor) -> LastOutput:
    """The last level on a CUDA device, from its inputs to full resolution: see ``run_last_tiles``."""
    height, width = inputs.flow.shape[-2:]
    return run_last_triton(level, synthesis, _rows(inputs, mask), mask, height, width)


def _rows(inputs: SparseInputs, mask: Tensor) -> Tensor:
    # Importing it imports triton, which not every machine has.
    from ugsp_net.gpu.inputs import rows

    return rows(inputs, mask, block_side(mask, *inputs.flow.shape[-2:]))
