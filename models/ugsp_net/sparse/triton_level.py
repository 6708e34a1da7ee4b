"""Active blocks only, on a CUDA device: one Triton kernel per layer over a list of blocks that stays on the device.

Layers hand each other dense channels-last buffers of which only active positions are ever written or read, so nothing
is cleared in between. Every layer has its own buffer, and the 1x1 projection of all of them is one matrix product at
the end: its sum stays in registers. Adding to a buffer of sums layer by layer would read and write 8 bytes a channel
for each layer, several times what the buffers themselves cost.

The host never learns how many blocks are active. Grids have a fixed number of programs, which read the list's length.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ugsp_net import gpu
from ugsp_net.blocks import LEAKY_SLOPE, Level

PITCH = 8
"""Channels of every buffer are filled up to a multiple of this: 16 bytes of bf16, the widest asynchronous copy."""
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


TUNED: dict[tuple[str, int, int], Choice] = {}
"""(``conv`` or ``project``, channels read per term, columns of the packed weights) -> what was measured to be fastest
for two-byte types (``benchmarks/kernels.py --tune``)."""


def padded(channels: int) -> int:
    """The channels that a buffer of so many has; see ``run_level_triton`` for what it may hold behind them."""
    return -(-channels // PITCH) * PITCH


def run_level_triton(level: Level, x: Tensor, mask: Tensor) -> Tensor:
    """See ``run_level``. Not differentiable, and never waits for the device.

    x may have ``padded(inputs)`` channels instead of the level's inputs: what stands in the others must be finite, and
    is not used. Channels last and with that many channels it is read in place, else what is needed of it is copied.
    """
    from ugsp_net.sparse import triton_kernels as kernels

    batch, channels, height, width = x.shape
    rows, columns = mask.shape[-2:]
    side = width // columns
    if rows * side != height or columns * side != width:
        raise ValueError(f"a mask of {columns}x{rows} blocks does not cover a level of {width}x{height} positions")
    packed = _packed(level, x.dtype, x.device)
    if channels not in (packed.inputs, padded(packed.inputs)):
        raise ValueError(f"the level takes {packed.inputs} channels, not {channels}")
    positions = batch * height * width
    with gpu.on(x.device):
        mask = mask.to(torch.float32).contiguous()
        blocks = BlockList(mask, side, kernels)
        source = _rows(x, packed, mask, side, kernels)
        pitch = padded(level.width)
        layers = gpu.empty((len(packed.layers), positions, pitch), x)
        for layer, (weights, slopes) in enumerate(packed.layers):
            product("conv", source, weights, slopes, layers[layer], blocks, width, positions, kernels, head=layer == 0)
            source = layers[layer]
        out = gpu.empty((positions, level.outputs), x)
        product("project", layers, packed.projection, packed.bias, out, blocks, width, positions, kernels)
        fill = 4096 // gpu.power_of_two(level.outputs)
        kernels.fill_pruned[(_ceil(positions, fill),)](
            mask,
            packed.bias,
            out,
            positions,
            width,
            columns,
            COLUMNS=level.outputs,
            SIDE=side,
            BLOCK_M=fill,
            BLOCK_N=gpu.power_of_two(level.outputs),
        )
    return out.view(batch, height, width, level.outputs).permute(0, 3, 1, 2)


class BlockList:
    """The active blocks of a mask, one after the other, on the device; the host does not know how many there are."""

    def __init__(self, mask: Tensor, side: int, kernels: Any) -> None:
        """mask: [B, 1, rows, columns] fp32, contiguous; side: positions along a block's side."""
        self.side = side
        self.most = mask.numel()
        """Blocks in the grid."""
        self.first = torch.empty(self.most, dtype=torch.int32, device=mask.device)
        """[most]: first position of each listed block, in pictures below each other."""
        self.near = torch.empty_like(self.first)
        """[most]: which of its neighbours are active, and in the picture."""
        self.count = torch.empty(1, dtype=torch.int32, device=mask.device)
        order = (mask != 0).flatten().cumsum(0, dtype=torch.int32)
        rows, columns = mask.shape[-2:]
        kernels.list_blocks[(_ceil(self.most, 128),)](
            mask, order, self.first, self.near, self.count, self.most, rows, columns, SIDE=side, BLOCK=128
        )


def product(
    kind: str,
    source: Tensor,
    weights: Tensor,
    vector: Tensor,
    target: Tensor,
    blocks: BlockList,
    width: int,
    positions: int,
    kernels: Any,
    *,
    head: bool = False,
    choice: Choice | None = None,
) -> None:
    """One layer's ``conv``, or the ``project``-ion of all layers, into ``target``, [positions, channels], at the active
    positions. source: [positions, pitch], for a projection [layers, positions, pitch]."""
    project = kind == "project"
    terms = source.shape[0] if project else 9
    pitch, columns = source.shape[-1], weights.shape[1]
    most = blocks.most * blocks.side**2
    if choice is None:
        choice = choose(kind, pitch, columns, source.dtype, most, source.device)
    tiles = _ceil(most, choice.block_m) * _ceil(columns, choice.block_n)
    kernels.active_product[(min(tiles, choice.waves * _multiprocessors(gpu.index_of(source.device))),)](
        source,
        weights,
        vector,
        target,
        blocks.first,
        blocks.near,
        blocks.count,
        width,
        positions,
        SIDE=blocks.side,
        TERMS=terms,
        PITCH=pitch,
        COLUMNS=columns,
        STORED=target.shape[1],
        OUT_PITCH=target.shape[1],
        PROJECT=project,
        HEAD=head,
        PRECISION="tf32" if source.dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else "ieee",
        UPCAST=kernels.INTERPRETED,
        BLOCK_M=choice.block_m,
        BLOCK_N=choice.block_n,
        BLOCK_K=choice.block_k,
        num_warps=choice.warps,
        num_stages=choice.stages,
    )


def choose(kind: str, pitch: int, columns: int, dtype: torch.dtype, rows: int, device: torch.device) -> Choice:
    """How to cut a product of at most so many rows: as measured, else by rule; smaller where the card is small."""
    size = dtype.itemsize
    choice = TUNED.get((kind, pitch, columns)) if size == 2 else None
    if choice is None:
        block_n = min(128, max(16, gpu.power_of_two(columns)))
        choice = Choice(128, block_n, 64 if size == 2 else 32, 8 if block_n == 128 else 4, 3)
    if rows < 2 * choice.block_m * _multiprocessors(gpu.index_of(device)) and choice.block_m > 64:
        choice = replace(choice, block_m=64, warps=4)
    room = _shared_memory(gpu.index_of(device))
    while choice.shared_memory(size) > room and choice.stages > 2:
        choice = replace(choice, stages=choice.stages - 1)
    while choice.shared_memory(size) > room and choice.block_k > 16:
        choice = replace(choice, block_k=choice.block_k // 2)
    return choice


@dataclass(frozen=True)
class Packed:
    """A level's weights as the kernels read them."""

    inputs: int
    """Channels that the level takes."""
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Of each layer: weights [9 * channels, width], both padded with zeros, (tap, channel) with the channel fastest;
    and the activation's slopes, [width] fp32, padded."""
    projection: Tensor
    """[layers * width, outputs], padded."""
    bias: Tensor
    """[outputs] fp32, padded."""


@dataclass(frozen=True)
class _Stamp:
    """What a level's parameters were when they were packed."""

    parameters: tuple[Tensor, ...]
    """Kept, so that their addresses are not given to others."""
    versions: tuple[int, ...]


_cache: WeakKeyDictionary[Level, dict[tuple[torch.dtype, torch.device], tuple[_Stamp, Packed]]] = WeakKeyDictionary()


def _packed(level: Level, dtype: torch.dtype, device: torch.device) -> Packed:
    """The level's packed weights, packed anew only when a parameter has changed."""
    entries = _cache.setdefault(level, {})
    parameters = [parameter.detach() for parameter in level.parameters()]
    versions = tuple(0 if parameter.is_inference() else parameter._version for parameter in parameters)
    known = entries.get((dtype, device))
    if known is not None:
        stamp, packed = known
        same = zip(parameters, stamp.parameters, strict=True)
        if versions == stamp.versions and all(one.data_ptr() == other.data_ptr() for one, other in same):
            return packed
    packed = pack(level, dtype)
    entries.clear()
    entries[dtype, device] = _Stamp(tuple(parameters), versions), packed
    return packed


@torch.no_grad()
def pack(level: Level, dtype: torch.dtype) -> Packed:
    """Lay out a level's weights for the kernels. Raises ValueError for convolutions with a bias."""
    layers = []
    for conv, activation in level.layers:
        if conv.bias is not None:
            raise ValueError("the triton backend runs pruned levels, whose convolutions have no bias")
        outputs, inputs = conv.weight.shape[:2]
        taps = conv.weight.to(dtype).permute(2, 3, 1, 0).reshape(9, inputs, outputs)
        slopes = conv.weight.new_full((outputs,), LEAKY_SLOPE) if activation.slope is None else activation.slope
        layers.append((_pad_weights(taps), _pad_vector(slopes)))
    width, count = level.width, len(layers)
    projection = level.project.weight.to(dtype).reshape(level.outputs, count, width).permute(1, 2, 0)
    bias = level.bias().to(dtype).flatten()
    return Packed(level.head.in_channels, tuple(layers), _pad_weights(projection), _pad_vector(bias))


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


def _rows(x: Tensor, packed: Packed, mask: Tensor, side: int, kernels: Any) -> Tensor:
    """The level's input as [positions, padded channels]: x itself where it is that already."""
    batch, channels, height, width = x.shape
    pitch = padded(packed.inputs)
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
        CHANNELS=packed.inputs,
        PITCH=pitch,
        SIDE=side,
        BLOCK_M=down,
        BLOCK_N=across,
    )
    return target


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit)


@functools.cache
def _multiprocessors(index: int) -> int:
    """Few when interpreted, so that programs take more than one tile there too."""
    return 1 if index < 0 else torch.cuda.get_device_properties(index).multi_processor_count


@functools.cache
def _shared_memory(index: int) -> int:
    """Bytes that one program may have."""
    if index < 0:
        return 1 << 20
    properties = torch.cuda.get_device_properties(index)
    return getattr(properties, "shared_memory_per_block_optin", 64 << 10) - (4 << 10)
