"""Active blocks only, on processors that multiply bf16: strips of positions, from the level's inputs to its output.

What lies between two layers lies as it does in the picture, so a product reads it there: nothing is numbered, gathered
or scattered, and positions that are not active are left out in cells of four lines by sixteen positions. See
``cpu.products``.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    outputs = laid.bias.shape[1]
    step = -(-outputs // products.PAIRS) * products.PAIRS
    last = F.pad(_slopes(activation, level.outputs), (0, outputs - level.outputs))[None]
    positions = len(mask) * height * width
    # Products read up to a vector of positions beyond the last one.
    out = laid.head.new_empty(positions + products.LANES, step)[:positions].view(len(mask), -1, step)
    if activation is None:
        out.copy_(F.pad(laid.bias, (0, step - outputs)))
    blocks = plain(mask[:, 0])
    how = as_array(laid.kernels), plain(laid.slopes), as_array(laid.weights), plain(laid.bias), plain(last)
    for picture in range(len(mask)):
        if not blocks[picture].any():
            continue
        given = inputs.lines(mask[picture, 0], picture)
        arrays = as_array(given.flatten()), level.head.in_channels, as_array(laid.head), *how, blocks[picture], side
        products.run(unit, *arrays, as_array(out[picture].flatten()))
    return out


@dataclass(frozen=True)
class _Laid:
    """A level's weights as ``cpu.products.run`` takes them."""

    head: Tensor
    kernels: Tensor
    slopes: Tensor
    weights: Tensor
    bias: Tensor


def _laid(level: Level) -> _Laid:
    from ugsp_net.cpu import products

    layers = level.layers
    head, *kernels = (products.convolution(conv.weight) for conv, _ in layers)
    slopes = [F.pad(_slopes(made, level.width), (0, -level.width % products.LANES)) for _, made in layers]
    bias = F.pad(level.bias().flatten(), (0, -level.outputs % products.LANES))[None]
    more = torch.stack(kernels) if kernels else head.new_empty(0, 1)
    return _Laid(head, more, torch.stack(slopes), products.projection(len(layers), level.project.weight), bias)


def _slopes(activation: Activation | None, channels: int) -> Tensor:
    """Of a leaky ReLU that is the same, [channels] fp32."""
    if activation is not None and activation.slope is not None:
        return activation.slope.float()
    return torch.full((channels,), 1.0 if activation is None else LEAKY_SLOPE)
