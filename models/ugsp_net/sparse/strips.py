"""Active blocks only, on processors that multiply bf16: strips of positions, from the level's inputs to its output.

What lies between two layers lies as it does in the picture, so a product reads it there: nothing is numbered, gathered
or scattered, and positions that are not active are left out in cells of four lines by sixteen positions. See
``cpu.products``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net import cpu
from ugsp_net.blocks import LEAKY_SLOPE, Activation, Level
from ugsp_net.masks import block_side
from ugsp_net.precision import has_fast_bf16
from ugsp_net.sparse.inputs import DenseInputs, SparseInputs


def pays(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether levels are made so, whatever their masks: in bf16, by a processor that multiplies it, in compiled code.

    On a core with AMX (1280x720, 20 % of the blocks, all three levels) what gathering took 87 ms takes 20.
    """
    if dtype != torch.bfloat16 or device.type != "cpu" or torch.is_grad_enabled():
        return False
    return has_fast_bf16() and cpu.available()


def run(
    level: Level,
    inputs: SparseInputs | DenseInputs,
    mask: Tensor,
    height: int,
    width: int,
    activation: Activation | None,
) -> Tensor:
    """What a level's projection puts out where the mask is 1: [B, H * W, P] bf16, with zeros from the level's outputs
    up to P. Elsewhere its bias; or, with an activation, which is applied to all of it, nothing in particular.

    mask: [B, 1, rows, columns] over height x width positions.
    """
    from ugsp_net.cpu import products
    from ugsp_net.cpu.vectors import as_array, plain

    side, unit, laid = block_side(mask, height, width), products.unit(), level.kept(_laid)
    step, last = len(laid.outside), laid.leaks
    if activation is None:
        last = laid.ones
    elif activation.slope is not None:
        last = plain(F.pad(activation.slope.float(), (0, -level.outputs % products.LANES))[None])
    positions = len(mask) * height * width
    # Products read up to a vector of positions beyond the last one.
    out = laid.outside.new_empty(positions + products.LANES, step)[:positions].view(len(mask), -1, step)
    if activation is None:
        out.copy_(laid.outside)
    blocks = plain(mask[:, 0])
    for picture in range(len(mask)):
        if blocks[picture].any():
            given = as_array(inputs.lines(mask[picture, 0], picture).flatten())
            made = as_array(out[picture].flatten())
            products.run(unit, given, level.head.in_channels, *laid.arrays, last, blocks[picture], side, made)
    return out


@dataclass(frozen=True)
class _Laid:
    """A level's weights as ``cpu.products.run`` takes them."""

    arrays: tuple[Any, ...]
    """``head``, ``kernels``, ``slopes``, ``weights`` and ``bias`` of ``cpu.products.run``."""
    ones: Any
    """``last`` where nothing is activated ..."""
    leaks: Any
    """... and for a leaky ReLU."""
    outside: Tensor
    """What the level puts out where nothing is computed, [P] bf16."""


def _laid(level: Level) -> _Laid:
    from ugsp_net.cpu import products
    from ugsp_net.cpu.vectors import as_array, plain

    layers = level.layers
    head, *kernels = (products.convolution(conv.weight) for conv, _ in layers)
    slopes = [F.pad(_slopes(made, level.width), (0, -level.width % products.LANES)) for _, made in layers]
    bias = F.pad(level.bias().flatten(), (0, -level.outputs % products.LANES))[None]
    more = torch.stack(kernels) if kernels else head.new_empty(0, 1)
    weights = products.projection(len(layers), level.project.weight)
    arrays = as_array(head), as_array(more), plain(torch.stack(slopes)), as_array(weights), plain(bias)
    ones = torch.ones_like(bias)
    outside = F.pad(bias[0], (0, -bias.shape[1] % products.PAIRS)).to(torch.bfloat16)
    return _Laid(arrays, plain(ones), plain(LEAKY_SLOPE * ones), outside)


def _slopes(activation: Activation, channels: int) -> Tensor:
    """Of a leaky ReLU that is the same, [channels] fp32."""
    return torch.full((channels,), LEAKY_SLOPE) if activation.slope is None else activation.slope.float()
