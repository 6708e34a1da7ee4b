"""The kernels of the ``triton`` backend. Importing this module imports triton: ``triton_level`` does it when needed.

Everything works on a list of active blocks that never leaves the device. A row of every matrix product is one active
position: row r belongs to the listed block r // area and stands at r % area in it, so that one kernel serves blocks of
any side, and a tile of the product simply takes the next ``BLOCK_M`` rows, whatever blocks and pictures they belong to.

Sizes that decide memory access are compile-time constants. Channel pitches are multiples of 8, so that a row of bf16
begins on 16 bytes and is copied to shared memory asynchronously; an odd pitch would make every access two bytes wide.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["entries", "rows", "columns"])
def list_blocks(
    mask: tl.tensor,  # [entries] fp32, the grid of blocks of all pictures
    blocks: tl.tensor,  # [entries] int32, out: first position of each active block
    near: tl.tensor,  # [entries] int32, out: bits 0-8: neighbour is active; bits 9-17: neighbour is in the picture
    count: tl.tensor,  # [1] int32, 0 before, out: how many are active
    entries: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the active blocks one after the other, each with what it must know of its eight neighbours: a program's in
    their order, programs as they come."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = entry < entries
    column = entry % columns
    row = (entry // columns) % rows
    picture = entry // (columns * rows)
    bits = tl.zeros([BLOCK], dtype=tl.int32)
    for tap in tl.static_range(9):
        there_row = row + (tap // 3 - 1)
        there_column = column + (tap % 3 - 1)
        inside = exists & (there_row >= 0) & (there_row < rows) & (there_column >= 0) & (there_column < columns)
        there = entry + (tap // 3 - 1) * columns + (tap % 3 - 1)
        active = tl.load(mask + there, mask=inside, other=0.0) != 0
        bits |= (active.to(tl.int32) << tap) | (inside.to(tl.int32) << (tap + 9))
    number = (bits >> 4) & 1
    listed = number != 0
    before = tl.atomic_add(count, tl.sum(number, axis=0), sem="relaxed")
    place = before + tl.cumsum(number, axis=0) - 1
    first = (picture * rows + row) * SIDE * (columns * SIDE) + column * SIDE
    tl.store(blocks + place, first, mask=listed)
    tl.store(near + place, bits, mask=listed)


@triton.jit(do_not_specialize=["entries", "rows", "columns"])
def reach_around(
    mask: tl.tensor,  # [entries] fp32, the grid of blocks of all pictures
    reached: tl.tensor,  # the same, out: 1 where a block or one of the eight around it is active, else 0
    left: tl.tensor,  # the same, out: 0 where a block is not active, but one within two of it, else 1
    entries: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """What is made around active blocks, and what that reads of others."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = entry < entries
    column = entry % columns
    row = (entry // columns) % rows
    near = tl.zeros([BLOCK], dtype=tl.int32)
    far = tl.zeros([BLOCK], dtype=tl.int32)
    for tap in tl.static_range(25):
        down = row + (tap // 5 - 2)
        right = column + (tap % 5 - 2)
        inside = exists & (down >= 0) & (down < rows) & (right >= 0) & (right < columns)
        there = entry + (tap // 5 - 2) * columns + (tap % 5 - 2)
        active = (tl.load(mask + there, mask=inside, other=0.0) != 0).to(tl.int32)
        far |= active
        if (tap // 5 > 0) and (tap // 5 < 4) and (tap % 5 > 0) and (tap % 5 < 4):
            near |= active
    own = tl.load(mask + entry, mask=exists, other=0.0) != 0
    tl.store(reached + entry, near.to(tl.float32), mask=exists)
    tl.store(left + entry, (own | (far == 0)).to(tl.float32), mask=exists)


@triton.jit(do_not_specialize=["level_width", "positions"])
def active_product(
    source: tl.tensor,  # [positions, PITCH], or [TERMS, positions, PITCH] when PROJECT
    weights: tl.tensor,  # [at least TERMS * PITCH, a multiple of BLOCK_K; COLUMNS], zero where padded
    bias: tl.tensor,  # [COLUMNS] fp32
    slopes: tl.tensor,  # [COLUMNS] fp32: what the activation takes sums below zero times; 1 where there is none
    target: tl.tensor,  # [positions, OUT_PITCH]
    blocks: tl.tensor,  # [entries] int32, from list_blocks
    near: tl.tensor,  # [entries] int32, from list_blocks
    count: tl.tensor,  # [1] int32: how many blocks are listed
    level_width: tl.tensor,
    positions: tl.tensor,  # from one layer's buffer to the next; read when PROJECT
    SIDE: tl.constexpr,
    TERMS: tl.constexpr,  # 9 taps, or the number of layers when PROJECT
    PITCH: tl.constexpr,
    COLUMNS: tl.constexpr,
    STORED: tl.constexpr,  # columns that are stored
    OUT_PITCH: tl.constexpr,
    PROJECT: tl.constexpr,
    HEAD: tl.constexpr,  # pruned neighbours are read too: they are in the source
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,  # multiply in fp32: the interpreter cannot multiply bf16
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """A 3x3 convolution or the 1x1 projection of all layers, with its activation, at the active positions.

    The sum over (tap, channel) is one flat axis, so that a step of ``BLOCK_K`` crosses from tap to tap and 48 channels
    waste nothing. Nine bits a row say which taps exist; the others read as zero and are never touched in memory.
    """
    area: tl.constexpr = SIDE * SIDE
    depth: tl.constexpr = TERMS * PITCH
    across: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    total = tl.load(count) * area
    tiles = tl.cdiv(total, BLOCK_M) * across
    tile = tl.program_id(0)
    while tile < tiles:  # not a range: older interpreters cannot make one of what was loaded
        row = (tile // across) * BLOCK_M + tl.arange(0, BLOCK_M)
        exists = row < total
        block = row // area
        y = (row % area) // SIDE
        x = row % SIDE
        position = tl.load(blocks + block, mask=exists, other=0) + y * level_width + x
        taps = exists.to(tl.int32)
        if not PROJECT:
            bits = tl.load(near + block, mask=exists, other=0)
            if HEAD:
                bits = bits >> 9
            taps = tl.zeros([BLOCK_M], dtype=tl.int32)
            for tap in tl.static_range(9):
                down = y + (tap // 3 - 1)
                right = x + (tap % 3 - 1)
                which = 4 + 3 * ((down >= SIDE).to(tl.int32) - (down < 0).to(tl.int32))
                which += (right >= SIDE).to(tl.int32) - (right < 0).to(tl.int32)
                taps |= ((bits >> which) & 1) << tap
        start_of_row = source + position.to(tl.int64) * PITCH
        column = (tile % across) * BLOCK_N + tl.arange(0, BLOCK_N)
        sums = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for start in range(0, depth, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            term = k // PITCH
            channel = k % PITCH
            if PROJECT:
                offset = term.to(tl.int64) * positions * PITCH + channel
                wanted = exists[:, None] & (k < depth)[None, :]
            else:
                offset = ((term // 3 - 1) * level_width + (term % 3 - 1)) * PITCH + channel
                wanted = ((taps[:, None] >> term[None, :]) & 1) != 0
            left = tl.load(start_of_row[:, None] + offset[None, :], mask=wanted, other=0.0)
            right_side = tl.load(
                weights + k[:, None] * COLUMNS + column[None, :], mask=(column < COLUMNS)[None, :], other=0.0
            )
            if UPCAST:
                left = left.to(tl.float32)
                right_side = right_side.to(tl.float32)
            sums = tl.dot(left, right_side, sums, input_precision=PRECISION)
        sums += tl.load(bias + column, mask=column < COLUMNS, other=0.0)[None, :]
        slope = tl.load(slopes + column, mask=column < COLUMNS, other=0.0)
        sums = tl.where(sums >= 0, sums, sums * slope[None, :])
        tl.store(
            target + position.to(tl.int64)[:, None] * OUT_PITCH + column[None, :],
            sums.to(target.dtype.element_ty),
            mask=exists[:, None] & (column < STORED)[None, :],
        )
        tile += tl.num_programs(0)


@triton.jit(do_not_specialize=["positions", "level_width", "columns"])
def fill_pruned(
    mask: tl.tensor,  # [entries] fp32: 0 where to write
    values: tl.tensor,  # [COLUMNS or more] fp32
    target: tl.tensor,  # [positions, COLUMNS]
    positions: tl.tensor,
    level_width: tl.tensor,
    columns: tl.tensor,  # of the mask
    COLUMNS: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Write the same values where nothing is computed, and nothing elsewhere."""
    position = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = position < positions
    # Pictures lie below each other and are whole blocks high, so the row of blocks needs no picture.
    entry = (position // (level_width * SIDE)) * columns + (position % level_width) // SIDE
    pruned = exists & (tl.load(mask + entry, mask=exists, other=1.0) == 0)
    if tl.max(pruned.to(tl.int32), axis=0) > 0:
        column = tl.arange(0, BLOCK_N)
        value = tl.load(values + column, mask=column < COLUMNS, other=0.0).to(target.dtype.element_ty)
        tl.store(
            target + position.to(tl.int64)[:, None] * COLUMNS + column[None, :],
            tl.broadcast_to(value[None, :], [BLOCK_M, BLOCK_N]),
            mask=pruned[:, None] & (column < COLUMNS)[None, :],
        )


@triton.jit(do_not_specialize=["positions", "level_height", "level_width"])
def pad_rows(
    mask: tl.tensor,  # [entries] fp32
    source: tl.tensor,  # any strides
    target: tl.tensor,  # [positions, PITCH]
    positions: tl.tensor,
    level_height: tl.tensor,
    level_width: tl.tensor,
    picture_stride: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    channel_stride: tl.tensor,
    CHANNELS: tl.constexpr,
    PITCH: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Copy to a pitch that can be read fast, zeros behind the channels; only what an active block or its halo reads."""
    position = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = position < positions
    x = position % level_width
    y = (position // level_width) % level_height
    picture = position // (level_width * level_height)
    columns = level_width // SIDE
    rows = level_height // SIDE
    needed = tl.zeros([BLOCK_M], dtype=tl.int32)
    for tap in tl.static_range(9):
        down = y + (tap // 3 - 1)
        right = x + (tap % 3 - 1)
        inside = exists & (down >= 0) & (down < level_height) & (right >= 0) & (right < level_width)
        entry = (picture * rows + down // SIDE) * columns + right // SIDE
        needed |= (tl.load(mask + entry, mask=inside, other=0.0) != 0).to(tl.int32)
    wanted = (needed != 0)[:, None]
    start = picture.to(tl.int64) * picture_stride + y.to(tl.int64) * row_stride + x.to(tl.int64) * column_stride
    column = tl.arange(0, BLOCK_N)
    value = tl.load(
        source + start[:, None] + (column * channel_stride)[None, :],
        mask=wanted & (column < CHANNELS)[None, :],
        other=0.0,
    )
    tl.store(
        target + position.to(tl.int64)[:, None] * PITCH + column[None, :],
        value,
        mask=wanted & (column < PITCH)[None, :],
    )


INTERPRETED = not isinstance(active_product, triton.runtime.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when triton was imported: kernels then run on the CPU, one program at a time."""
