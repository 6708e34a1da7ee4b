"""Active blocks only, on a CUDA device: one Triton kernel per layer over a list of blocks that stays on the device.

Layers hand each other dense channels-last buffers of which only active positions are ever written or read, so nothing
is cleared in between. Every layer has its own buffer, and the 1x1 projection of all of them is one matrix product at
the end: its sum stays in registers. Adding to a buffer of sums layer by layer would read and write 8 bytes a channel
for each layer, several times what the buffers themselves cost.

The host never learns how many blocks are active. Grids have a fixed number of programs, which read the list's length.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ugsp_net import gpu
from ugsp_net.blocks import LEAKY_SLOPE, Activation, Level, Synthesis
from ugsp_net.masks import block_side
from ugsp_net.sparse.squares import SquaresOutput
from ugsp_net.sparse.tiles import ConstantOutput

Made = TypeVar("Made")

PITCH = 8
"""Channels of every buffer are filled up to a multiple of this: 16 bytes of bf16, the widest asynchronous copy."""
LISTED = 256
"""Blocks that a program looks at which lists them."""
MOST_STEP = 128
"""The largest ``block_k``; rows of packed weights are filled up to a multiple of it."""


@dataclass(frozen=True)
class Choice:
    """How one matrix product is cut up."""

    block_m: int
    """Positions of a tile."""
    block_n: int
    """Output channels of a tile."""
    block_k: int
    """(tap, channel) pairs of a step."""
    warps: int
    stages: int
    """Steps in flight. From 2 on they are copied asynchronously, past the multiprocessor's own cache, so that every tap
    reads a position from L2 again; with 1 each step is waited for, but its taps find the position in that cache."""
    waves: int = 4
    """Programs for each multiprocessor, at most: more balance better, fewer start less often."""

    def shared_memory(self, item_size: int) -> int:
        """Bytes that the steps in flight take."""
        return self.stages * self.block_k * (self.block_m + self.block_n) * item_size


TUNED: dict[tuple[str, int, int], Choice] = {
    ("conv", 104, 48): Choice(128, 64, 64, 8, 1, 4),
    ("conv", 48, 48): Choice(256, 64, 64, 8, 3, 2),
    ("project", 48, 48): Choice(256, 64, 64, 8, 3, 4),
    ("conv", 120, 64): Choice(256, 64, 64, 8, 3, 16),
    ("conv", 64, 64): Choice(128, 64, 64, 8, 3, 2),
    ("project", 64, 32): Choice(128, 32, 64, 4, 1, 16),
    ("conv", 56, 48): Choice(128, 64, 64, 8, 1, 4),
}
"""(``conv`` or ``project``, channels read per term, columns of the packed weights) -> what was measured to be fastest
for two-byte types (``benchmarks/kernels.py --tune``, on an H100 in bf16)."""


def padded(channels: int) -> int:
    """The channels that a buffer of so many has; see ``run_level_triton`` for what it may hold behind them."""
    return -(-channels // PITCH) * PITCH


def run_level_triton(level: Level, x: Tensor, mask: Tensor) -> Tensor:
    """See ``run_level``. Not differentiable, and never waits for the device.

    x may have ``padded(inputs)`` channels instead of the level's inputs: what stands in the others must be finite, and
    is not used. Channels last and with that many channels it is read in place, else what is needed of it is copied.
    """
    channels, height, width = x.shape[1:]
    side, inputs = block_side(mask, height, width), level.head.in_channels
    if channels not in (inputs, padded(inputs)):
        raise ValueError(f"the level takes {inputs} channels, not {channels}")
    with gpu.on(x.device):
        rows = _rows(x, inputs, mask.to(torch.float32).contiguous(), side)
    return run_rows_triton(level, rows, mask, height, width)


def run_rows_triton(level: Level, rows: Tensor, mask: Tensor, height: int, width: int) -> Tensor:
    """The same from the level's input as kernels read it. Returns [B, outputs, H, W], channels last.

    rows: [B * H * W, ``padded(inputs)``], contiguous and from 16 bytes on, where an active block or its halo reads;
    what stands behind the inputs must be finite there. mask: [B, 1, rows, columns], a grid of blocks over the level's
    height x width positions.
    """
    packed = _packed(level, rows.dtype, rows.device)
    with gpu.on(rows.device):
        mask = mask.to(torch.float32).contiguous()
        blocks = BlockList(mask, block_side(mask, height, width))
        layers = _run_layers(packed, rows, blocks, width)
        out = gpu.empty((rows.shape[0], level.outputs), rows)
        product("project", layers, packed.projection, out, blocks, width)
        _fill(mask, packed.projection.nothing, out, width, blocks.side)
    return out.view(mask.shape[0], height, width, level.outputs).permute(0, 3, 1, 2)


def run_last_triton(
    level: Level, synthesis: Synthesis, rows: Tensor, mask: Tensor, height: int, width: int
) -> SquaresOutput:
    """The last level to full resolution, from what ``run_rows_triton`` takes. Not differentiable, and never waits.

    Pixels are made where a block or one of the eight around it is active, by the enlargement as a 3x3 convolution of
    the projection, which is activated before it leaves the registers.
    """
    packed = _packed(level, rows.dtype, rows.device)
    last = _packed_last(level, synthesis, rows.dtype, rows.device)
    bands = _bands(level, synthesis, width, rows.device)
    with gpu.on(rows.device):
        mask = mask.to(torch.float32).contiguous()
        blocks = BlockList(mask, block_side(mask, height, width))
        layers = _run_layers(packed, rows, blocks, width)
        projected = gpu.empty((rows.shape[0], padded(level.outputs)), rows)
        product("project", layers, last.projection, projected, blocks, width)
        # What is made reads one position beside it: only blocks beside those are filled.
        reached, left = _around(mask)
        _fill(left, last.projection.nothing, projected, width, blocks.side)
        squares = gpu.empty((rows.shape[0], 4 * Synthesis.OUTPUTS), rows)
        product("conv", projected, last.enlarge, squares, BlockList(reached, blocks.side), width, head=True)
    return SquaresOutput(squares.view(mask.shape[0], height, width, -1), reached, bands)


class BlockList:
    """The active blocks of a mask, one after the other, on the device; the host does not know how many there are. What
    is made of a block does not depend on those before it: their order may differ from call to call."""

    def __init__(self, mask: Tensor, side: int) -> None:
        """mask: [B, 1, rows, columns] fp32, contiguous; side: positions along a block's side."""
        from ugsp_net.sparse import triton_kernels as kernels

        self.side = side
        self.most = mask.numel()
        """Blocks in the grid."""
        self.first = torch.empty(self.most, dtype=torch.int32, device=mask.device)
        """[most]: first position of each listed block, in pictures below each other."""
        self.near = torch.empty_like(self.first)
        """[most]: which of its neighbours are active, and in the picture."""
        self.count = torch.zeros(1, dtype=torch.int32, device=mask.device)
        rows, columns = mask.shape[-2:]
        kernels.list_blocks[(_ceil(self.most, LISTED),)](
            mask, self.first, self.near, self.count, self.most, rows, columns, SIDE=side, BLOCK=LISTED
        )


@dataclass(frozen=True)
class Weights:
    """What one matrix product multiplies by, and what it does to the sums."""

    matrix: Tensor
    """[terms * channels, outputs], both padded with zeros, (term, channel) with the channel fastest: 9 taps, or layers
    of a projection."""
    bias: Tensor
    """[outputs] fp32, padded with zeros."""
    slopes: Tensor
    """The same: what sums below zero are taken times; 1 where there is no activation."""
    nothing: Tensor
    """The same: what comes of zeros."""


def product(
    kind: str,
    source: Tensor,
    weights: Weights,
    target: Tensor,
    blocks: BlockList,
    width: int,
    *,
    head: bool = False,
    choice: Choice | None = None,
) -> None:
    """One layer's ``conv``, or the ``project``-ion of all layers, into ``target``, [positions, channels], at the active
    positions. source: [positions, pitch], for a projection [layers, positions, pitch]; width: of the level, in
    positions; head: pruned neighbours are read too."""
    from ugsp_net.sparse import triton_kernels as kernels

    project = kind == "project"
    terms = source.shape[0] if project else 9
    pitch, columns = source.shape[-1], weights.matrix.shape[1]
    most = blocks.most * blocks.side**2
    if choice is None:
        choice = choose(kind, pitch, columns, source.dtype, most, source.device)
    tiles = _ceil(most, choice.block_m) * _ceil(columns, choice.block_n)
    kernels.active_product[(min(tiles, choice.waves * gpu.multiprocessors(gpu.index_of(source.device))),)](
        source,
        weights.matrix,
        weights.bias,
        weights.slopes,
        target,
        blocks.first,
        blocks.near,
        blocks.count,
        width,
        target.shape[0],
        SIDE=blocks.side,
        TERMS=terms,
        PITCH=pitch,
        COLUMNS=columns,
        STORED=target.shape[1],
        OUT_PITCH=target.shape[1],
        PROJECT=project,
        HEAD=head,
        PRECISION=precision(source.dtype),
        UPCAST=kernels.INTERPRETED,
        BLOCK_M=choice.block_m,
        BLOCK_N=choice.block_n,
        BLOCK_K=choice.block_k,
        num_warps=choice.warps,
        num_stages=choice.stages,
    )


def precision(dtype: torch.dtype) -> str:
    """How kernels multiply numbers of a type: as cuDNN may."""
    return "tf32" if dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else "ieee"


def choose(kind: str, pitch: int, columns: int, dtype: torch.dtype, rows: int, device: torch.device) -> Choice:
    """How to cut a product of at most so many rows: as measured, else by rule; smaller where the card is small."""
    size = dtype.itemsize
    choice = TUNED.get((kind, pitch, columns)) if size == 2 else None
    if choice is None:
        block_n = min(128, max(16, gpu.power_of_two(columns)))
        choice = Choice(128, block_n, 64 if size == 2 else 32, 8 if block_n == 128 else 4, 3)
    if choice.block_m > 64 and not gpu.fill(rows // choice.block_m, device):
        choice = replace(choice, block_m=64, warps=4)
    room = gpu.shared_memory(gpu.index_of(device))
    while choice.shared_memory(size) > room and choice.stages > 2:
        choice = replace(choice, stages=choice.stages - 1)
    while choice.shared_memory(size) > room and choice.block_k > 16:
        choice = replace(choice, block_k=choice.block_k // 2)
    return choice


@dataclass(frozen=True)
class Packed:
    """A level's weights as the kernels read them."""

    width: int
    """Channels of a layer."""
    layers: tuple[Weights, ...]
    projection: Weights


@dataclass(frozen=True)
class PackedLast:
    """What the last level has besides, with its synthesis."""

    projection: Weights
    """With the synthesis' activation."""
    enlarge: Weights
    """As a 3x3 convolution, see ``Enlarge.as_3x3``."""


@dataclass(frozen=True)
class _Stamp:
    """What parameters were when something was made of them."""

    parameters: tuple[Tensor, ...]
    """Kept, so that their addresses are not given to others."""
    versions: tuple[int, ...]
    how: tuple[Hashable, ...]
    """What else it was made from."""

    def same(self, other: _Stamp) -> bool:
        """Whether the same would be made."""
        if (self.versions, self.how) != (other.versions, other.how):
            return False
        pairs = zip(self.parameters, other.parameters, strict=True)
        return all(one.data_ptr() == another.data_ptr() for one, another in pairs)


_cache: WeakKeyDictionary[Level, dict[str, tuple[_Stamp, Any]]] = WeakKeyDictionary()


def _kept(level: Level, synthesis: Synthesis | None, make: Callable[[], Made], *how: Hashable) -> Made:
    """What is made of a level's parameters, and a synthesis', in the way that ``how`` tells, from its name on: made
    anew only when one of them has changed. Of each name, one is kept."""
    modules: list[Level | Synthesis] = [level] if synthesis is None else [level, synthesis]
    parameters = tuple(parameter.detach() for module in modules for parameter in module.parameters())
    versions = tuple(0 if parameter.is_inference() else parameter._version for parameter in parameters)
    stamp = _Stamp(parameters, versions, how)
    entries = _cache.setdefault(level, {})
    name = str(how[0])
    if name not in entries or not stamp.same(entries[name][0]):
        entries[name] = stamp, make()
    made: Made = entries[name][1]
    return made


def _packed(level: Level, dtype: torch.dtype, device: torch.device) -> Packed:
    return _kept(level, None, lambda: pack(level, dtype), "level", dtype, device)


def _packed_last(level: Level, synthesis: Synthesis, dtype: torch.dtype, device: torch.device) -> PackedLast:
    return _kept(level, synthesis, lambda: pack_last(level, synthesis, dtype), "last", dtype, device)


@torch.no_grad()
def _bands(level: Level, synthesis: Synthesis, width: int, device: torch.device) -> Tensor:
    """See ``SquaresOutput.bands``; of a level of so many columns. Those of every width stay, so that none is made while
    a graph is captured, which may fail."""
    name = f"bands {width}"
    return _kept(level, synthesis, lambda: ConstantOutput(level, synthesis, 1, 1, width).bands, name, device)


@torch.no_grad()
def pack(level: Level, dtype: torch.dtype) -> Packed:
    """Lay out a level's weights for the kernels. Raises ValueError for convolutions with a bias."""
    layers = []
    for conv, activation in level.layers:
        if conv.bias is not None:
            raise ValueError("the triton backend runs pruned levels, whose convolutions have no bias")
        taps = _taps(conv.weight.to(dtype))
        layers.append(_weights(taps, taps.new_zeros(taps.shape[2]), activation))
    return Packed(level.width, tuple(layers), _projection(level, None, dtype))


@torch.no_grad()
def pack_taps(weight: Tensor) -> Tensor:
    """The same of one convolution's weight, [outputs, inputs, 3, 3]: ``Weights.matrix``."""
    return _pad_weights(_taps(weight))


@torch.no_grad()
def pack_last(level: Level, synthesis: Synthesis, dtype: torch.dtype) -> PackedLast:
    """The same for the last level's way to full resolution."""
    kernel, bias = synthesis.enlarge.as_3x3(dtype)  # [outputs, 9 * channels]
    taps = kernel.unflatten(1, (9, -1)).permute(1, 2, 0)
    return PackedLast(_projection(level, synthesis.activation, dtype), _weights(taps, bias, None))


def _taps(weight: Tensor) -> Tensor:
    """[outputs, inputs, 3, 3] -> [9, inputs, outputs]."""
    outputs, inputs = weight.shape[:2]
    return weight.permute(2, 3, 1, 0).reshape(9, inputs, outputs)


def _projection(level: Level, activation: Activation | None, dtype: torch.dtype) -> Weights:
    terms = level.project.weight.to(dtype).reshape(level.outputs, -1, level.width).permute(1, 2, 0)
    return _weights(terms, level.bias().to(dtype).flatten(), activation)


def _weights(terms: Tensor, bias: Tensor, activation: Activation | None) -> Weights:
    """terms: [terms, channels, outputs], of the activations' type; bias: [outputs]."""
    slopes: Tensor | None = None if activation is None else activation.slope
    if slopes is None:
        slopes = torch.full_like(bias, 1 if activation is None else LEAKY_SLOPE, dtype=torch.float32)
    bias, slopes = _pad_vector(bias), _pad_vector(slopes)
    return Weights(_pad_weights(terms), bias, slopes, torch.where(bias >= 0, bias, bias * slopes))


def _pad_weights(weights: Tensor) -> Tensor:
    """[terms, channels, outputs] -> [terms * channels, outputs], padded."""
    terms, channels, outputs = weights.shape
    pitch = padded(channels)
    result = weights.new_zeros(_ceil(terms * pitch, MOST_STEP) * MOST_STEP, _ceil(outputs, 16) * 16)
    result[: terms * pitch, :outputs].unflatten(0, (terms, pitch))[:, :channels] = weights
    return result


def _pad_vector(vector: Tensor) -> Tensor:
    result = vector.new_zeros(_ceil(vector.shape[0], 16) * 16, dtype=torch.float32)
    result[: vector.shape[0]] = vector
    return result


def _run_layers(packed: Packed, rows: Tensor, blocks: BlockList, width: int) -> Tensor:
    """All layers' outputs at the active positions, [layers, positions, padded channels]."""
    pitch = padded(packed.width)
    layers = gpu.empty((len(packed.layers), rows.shape[0], pitch), rows)
    for number, (weights, target) in enumerate(zip(packed.layers, layers, strict=True)):
        product("conv", rows, weights, target, blocks, width, head=number == 0)
        rows = target
    return layers


def _around(mask: Tensor) -> tuple[Tensor, Tensor]:
    """What ``reach_around`` makes of a mask [B, 1, rows, columns] fp32."""
    from ugsp_net.sparse import triton_kernels as kernels

    reached, left = gpu.empty(tuple(mask.shape), mask), gpu.empty(tuple(mask.shape), mask)
    kernels.reach_around[(_ceil(mask.numel(), LISTED),)](
        mask, reached, left, mask.numel(), *mask.shape[-2:], BLOCK=LISTED
    )
    return reached, left


def _fill(mask: Tensor, values: Tensor, target: Tensor, width: int, side: int) -> None:
    """Write the values, [channels or more] fp32, where a mask [B, 1, rows, columns] fp32 is 0 into [positions,
    channels]."""
    from ugsp_net.sparse import triton_kernels as kernels

    positions, channels = target.shape
    across = gpu.power_of_two(channels)
    down = max(16, 4096 // across)
    kernels.fill_pruned[(_ceil(positions, down),)](
        mask,
        values,
        target,
        positions,
        width,
        mask.shape[-1],
        COLUMNS=channels,
        SIDE=side,
        BLOCK_M=down,
        BLOCK_N=across,
        num_warps=1,
    )


def _rows(x: Tensor, inputs: int, mask: Tensor, side: int) -> Tensor:
    """The level's input as [positions, padded channels]: x itself where it is that already."""
    from ugsp_net.sparse import triton_kernels as kernels

    batch, channels, height, width = x.shape
    pitch = padded(inputs)
    rows = x.permute(0, 2, 3, 1)
    if channels == pitch and rows.is_contiguous() and rows.data_ptr() % 16 == 0:
        return rows.view(-1, pitch)
    target = gpu.empty((batch * height * width, pitch), x)
    across = gpu.power_of_two(pitch)
    down = max(16, 4096 // across)
    kernels.pad_rows[(_ceil(target.shape[0], down),)](
        mask,
        x,
        target,
        target.shape[0],
        height,
        width,
        x.stride(0),
        x.stride(2),
        x.stride(3),
        x.stride(1),
        CHANNELS=inputs,
        PITCH=pitch,
        SIDE=side,
        BLOCK_M=down,
        BLOCK_N=across,
    )
    return target


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit)
