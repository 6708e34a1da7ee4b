"""The patches of ``search`` on CUDA devices: the same ones and the same tries, in a kernel for each round.

In torch a try reads and writes everything several times over. Here a round reads flows and writes flows: what is
compared stays in registers, and frames are read through the cache, each position of a patch's row once. Between rounds
there are two states, since a patch looks at what those around it had found before the round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ugsp_net import gpu, search

PATCHES, FEW_PATCHES = 64, 32
"""Patches of a program in a round, a thread's each; fewer where there are few, which then take less time."""
PAD = search.PATCH + 2
"""Border values around a padded picture: a patch that lies as far outside, or farther, sees nothing else."""
APART = search.CELL
"""Columns of a padded picture lie in its rows in so many groups, of one in so many each: patches beside each other are
so far apart, so that threads read what lies beside each other where the patches move alike."""
assert (APART, search.PATCH, search.SPACING) == (4, 8, 2), "columns of a patch are told as those of two cells"
PADDED = 1024
"""Values of a padded picture that a program writes."""
CELLS = 256
"""Patches of a program that averages the flow in their cells."""
LINE = 1024
"""Blocks of a row or a column that are looked at at once."""
POINTS = 256
"""Points of the averaged flow that a program makes."""
TRIES = 128
"""Flows that a program tries at once for a patch that looks far."""
CHOICES = 8192
"""Values that a program reads at once that chooses the largest of a row."""


def search_size(pictures: Tensor, flow: Tensor | None, coarser: Tensor | None, level: int) -> tuple[Tensor, Tensor]:
    """What ``search._search_both`` returns."""
    frames = Padded(pictures, search._every(level))
    padded = frames.told
    rounds, sizes = frames.rounds()
    batch, count = pictures.shape[0], frames.rows * frames.columns
    states = [gpu.empty((batch, 3, count), pictures) for _ in range(2)]
    with gpu.on(pictures.device):
        fits = frames.samples * search.NOISE / 4**level
        given = [pictures.new_empty(1, 2, 1, 1) if one is None else _rows_at_once(one) for one in (flow, coarser)]
        _begin[rounds](
            *padded,
            *given,
            states[0],
            *(stride for one in given for stride in one.stride()[:3]),
            fits,
            REACH=search.REACH if coarser is None else 0,
            BEGUN=flow is not None,
            **sizes,
        )
        if level == 0:  # at smaller sizes, directions that agree early do not find out that they are wrong
            _try_back[rounds](*padded, *states, **sizes)
            states.reverse()
        distances = search._distances(level)
        for turn, distance in enumerate(distances):
            if level == 1 and turn == len(distances) - 1:
                _look_far(frames, states[0])
            side = min(distance, max(1, min(frames.rows, frames.columns) - 1))
            damping = search.DAMPING * frames.samples / search.PATCH**2
            _try_around[rounds](*padded, *states, side, damping, **sizes)
            states.reverse()
        best = states[0]
        averaged = _averaged(frames, best)
    return averaged, best[:, :2].unflatten(2, (frames.rows, frames.columns))


def see_colours(pictures: Tensor, flow: Tensor) -> Tensor:
    """What ``search._see_colours`` returns."""
    frames, moved = Padded(pictures, search.COLOUR_SAMPLED), of_cells(flow)
    differs = lost_colours(frames, moved)
    chosen = largest(differs, search._most_of(differs.shape[1]), 0.0)
    return where_better(pictures, flow, chosen, *look_for_colours(frames, chosen, moved))


def lost_colours(frames: Padded, moved: Tensor) -> Tensor:
    """What ``search._lost_colours`` returns."""
    out = gpu.empty(moved.shape[:2], moved)
    grid, sizes = frames.rounds()
    told = *search._LUMA, search.COLOURED, search.PLAIN
    with gpu.on(moved.device):
        _see_colours[grid](*frames.told, moved.contiguous(), out, *told, **sizes)
    return out


def largest(values: Tensor, most: int, above: float) -> Tensor:
    """The numbers of the ``most`` largest values of each row [B, N] fp32 that are larger than ``above``, which is 0 or
    more: [B, most] int32 in any order, then -1 if there are fewer. Of equal ones the first."""
    batch, count = values.shape
    values = values if values.stride(1) == 1 else values.contiguous()
    out = gpu.empty((batch, most), values, torch.int32)
    with gpu.on(values.device):
        _largest[(batch,)](
            values,
            out,
            values.stride(0),
            count,
            most,
            int(np.float32(above).view(np.int32)),
            ONCE=count <= CHOICES,
            BLOCK=min(CHOICES, gpu.power_of_two(count)),
            num_warps=16,
        )
    return out


def look_for_colours(frames: Padded, chosen: Tensor, moved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What ``search._look_for_colours`` returns, for the chosen ones of cells that have moved, [B, N, 2]; anything for
    those whose number is -1."""
    batch, count = chosen.shape
    moved = moved.contiguous()
    found = gpu.empty((batch, count, 2), moved)
    cost, least = gpu.empty((2, batch, count), moved)
    with gpu.on(moved.device):
        for turn, (reach, step) in enumerate(search.COLOUR_STEPS):
            _look_around[(count, batch)](
                *frames.told,
                chosen,
                moved,
                found,
                cost,
                least,
                step,
                FIRST=turn == 0,
                **_around(frames, reach),
            )
    return found, cost, least


def of_cells(flow: Tensor) -> Tensor:
    """What ``search._of_cells`` returns."""
    flow = flow.contiguous()
    batch, _, height, width = flow.shape
    rows, columns = -(-height // search.CELL), -(-width // search.CELL)
    out = gpu.empty((batch, rows * columns, 2), flow)
    with gpu.on(flow.device):
        _of_cells[(triton.cdiv(rows * columns, CELLS), batch)](
            flow, out, height, width, rows, columns, CELL=search.CELL, BLOCK=CELLS
        )
    return out


def where_better(pictures: Tensor, flow: Tensor, chosen: Tensor, found: Tensor, cost: Tensor, least: Tensor) -> Tensor:
    """What ``search._where_better`` returns, where the chosen ones, but those that are -1, cost little enough."""
    flow = flow.contiguous()
    batch, channels, height, width = pictures.shape
    out = flow.clone()
    with gpu.on(flow.device):
        _put_better[(chosen.shape[1], batch)](
            pictures.contiguous(),
            flow,
            chosen,
            found,
            cost,
            least,
            out,
            height,
            width,
            -(-width // search.CELL),
            search.SEEN,
            CHANNELS=channels,
            CELL=search.CELL,
            num_warps=1,
        )
    return out


def within(flow: Tensor, agree: Tensor, beside: int) -> Tensor:
    """What ``search._within`` returns."""
    flow, agree = flow.contiguous(), agree.contiguous()
    batch, channels, height, width = flow.shape
    rows, columns = agree.shape[-2:]
    lines = gpu.empty((rows + columns,), flow, torch.int32)
    out = gpu.empty((batch, channels, height, width), flow)
    with gpu.on(flow.device):
        _differing_lines[(rows + columns,)](agree, lines, batch, rows, columns, BLOCK=LINE)
        _put_within[(triton.cdiv(height * width, POINTS), batch * channels)](
            flow,
            lines,
            out,
            height * width,
            width,
            rows,
            columns,
            beside,
            FACTOR=width // columns,
            ROWS=gpu.power_of_two(rows),
            COLUMNS=gpu.power_of_two(columns),
            BLOCK=POINTS,
            num_warps=1,
        )
    return out


def _look_far(frames: Padded, state: Tensor) -> None:
    """Let the patches that are lost try all flows within ``search.FAR`` positions of theirs; changes the state."""
    cost = state[:, 2]
    chosen = largest(cost, search._most_of(cost.shape[1]), search.LOST * frames.samples)
    _look_farther[chosen.shape[::-1]](*frames.told, chosen, state, search.FOUND, **_around(frames, search.FAR))


def _averaged(frames: Padded, state: Tensor) -> Tensor:
    """What ``search._averaged`` returns."""
    batch, _, height, width = frames.shape
    spacing, side = search.SPACING, search.PATCH // search.SPACING
    weights = gpu.empty((batch, side * side, frames.rows * frames.columns), state)
    out = gpu.empty((batch, 2, -(-height // spacing), -(-width // spacing)), state)
    grid, sizes = frames.rounds()
    _weigh[grid](*frames.told, state, weights, **sizes)
    points = out.shape[2] * out.shape[3]
    _average[(triton.cdiv(points, POINTS), batch)](
        state, weights, out, out.shape[2], out.shape[3], frames.rows, frames.columns, SIDE=side, BLOCK=POINTS
    )
    return out


class Padded:
    """A batch of frames whose patches are looked for in others, as kernels take them."""

    def __init__(self, pictures: Tensor, every: int) -> None:
        """pictures: [B, C, h, w] fp32, the first half of which are the frames of which the second half are the others;
        every: patches look with one in so many of their rows."""
        self.shape = batch, channels, height, width = pictures.shape
        count = len(range(every // 2, search.PATCH, every))
        self.samples = count * search.PATCH
        self.rows, self.columns = -(-height // search.CELL), -(-width // search.CELL)
        pictures = pictures.contiguous()
        shape = batch, channels, height + 2 * PAD, APART * triton.cdiv(width + 2 * PAD, APART)
        padded, pairs = gpu.empty(shape, pictures), gpu.empty(shape, pictures, torch.int64)
        pixels = padded[0, 0].numel()
        with gpu.on(pictures.device):
            _pad[(triton.cdiv(pixels, PADDED), batch * channels)](
                pictures, padded, pairs, height, width, PAD=PAD, APART=APART, BLOCK=PADDED
            )
        self.told = padded, pairs, height, width, self.rows, self.columns
        """What kernels are told: with their borders repeated, [B, C, h + 2 PAD, APART, (w + 2 PAD) / APART], by
        themselves and in pairs, each value with that below it, which are read at once."""
        # Rows are told at run time: one kernel serves all sizes.
        self.sizes = {"count": count, "every": every, "PATCH": search.PATCH, "CELL": search.CELL}
        self.sizes |= {"PAD": PAD, "APART": APART}

    def rounds(self) -> tuple[tuple[int, int], dict[str, Any]]:
        """Programs of a round, and what they are told besides."""
        count, batch = self.rows * self.columns, self.shape[0]
        patches = PATCHES if gpu.fill(triton.cdiv(count, PATCHES) * batch, self.told[0].device) else FEW_PATCHES
        told = self.sizes | {"PATCHES": patches, "num_warps": max(1, patches // 32)}
        return (triton.cdiv(count, patches), batch), told


def _around(frames: Padded, reach: int) -> dict[str, Any]:
    """What kernels are told that take one patch each and try all displacements."""
    lanes = max(32, min(TRIES, gpu.power_of_two((2 * reach + 1) ** 2)))
    told = {"CHANNELS": frames.shape[1], "REACH": reach, "LANES": lanes, "num_warps": max(1, lanes // 64)}
    return frames.sizes | told


def _rows_at_once(values: Tensor) -> Tensor:
    """A map whose columns lie beside each other."""
    return values if values.stride(3) == 1 else values.contiguous()


FARTHEST = tl.constexpr(float(1 << 20))
"""Positions: flow that is longer, or no number, is read as that."""


@triton.jit
def _inside(value: tl.tensor, most: tl.tensor) -> tl.tensor:
    """A coordinate that may be anything, no number too, taken to 0 to ``most``."""
    value = tl.where(value > 0.0, value, 0.0)
    return tl.minimum(value, most.to(tl.float32))


@triton.jit
def _read(picture: tl.tensor, y: tl.tensor, x: tl.tensor, height: tl.tensor, width: tl.tensor) -> tl.tensor:
    """A plane between its positions, border values repeated."""
    y = _inside(y, height - 1)
    x = _inside(x, width - 1)
    top = y.to(tl.int32)
    left = x.to(tl.int32)
    down = y - top.to(tl.float32)
    right = x - left.to(tl.float32)
    below = tl.minimum(top + 1, height - 1)
    beside = tl.minimum(left + 1, width - 1)
    upper = picture + top * width
    lower = picture + below * width
    a = tl.load(upper + left)
    b = tl.load(upper + beside)
    c = tl.load(lower + left)
    d = tl.load(lower + beside)
    above = a + right * (b - a)
    under = c + right * (d - c)
    return above + down * (under - above)


@triton.jit
def _better(
    tried: tl.tensor, tried_x: tl.tensor, tried_y: tl.tensor, cost: tl.tensor, across: tl.tensor, down: tl.tensor
) -> tuple[tl.tensor, ...]:
    """The flow (x, y) and the cost of patches, or those that were tried where they cost less."""
    better = tried < cost
    return tl.where(better, tried_x, across), tl.where(better, tried_y, down), tl.where(better, tried, cost)


@triton.jit
def _both(
    pictures: tl.tensor, height: tl.tensor, width: tl.tensor, CHANNELS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The picture of a program, and that in which it is looked for."""
    size = (CHANNELS * height * width).to(tl.int64)
    return pictures + tl.program_id(1) * size, pictures + _other() * size


@triton.jit
def _state_of(state: tl.tensor, count: tl.tensor) -> tl.tensor:
    """The part of a state [B, 3, count] that belongs to the picture of a program."""
    return state + tl.program_id(1).to(tl.int64) * (3 * count)


@triton.jit
def _keep(
    state: tl.tensor,
    patch: tl.tensor,
    exists: tl.tensor,
    across: tl.tensor,
    down: tl.tensor,
    cost: tl.tensor,
    count: tl.tensor,
) -> None:
    """Write the flow and the cost of patches."""
    tl.store(state + patch, across, mask=exists)
    tl.store(state + count + patch, down, mask=exists)
    tl.store(state + 2 * count + patch, cost, mask=exists)


@triton.jit(do_not_specialize=["height", "width"])
def _pad(
    pictures: tl.tensor,  # [B, h, w] fp32
    out: tl.tensor,  # [B, h + 2 PAD, APART, (w + 2 PAD) / APART, rounded up] fp32, out
    pairs: tl.tensor,  # the same, int64, out: the bits of each value, and above them those of the value below it
    height: tl.tensor,
    width: tl.tensor,
    PAD: tl.constexpr,
    APART: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A picture with its border repeated."""
    picture = tl.program_id(1).to(tl.int64)
    group = tl.cdiv(width + 2 * PAD, APART)
    pitch = APART * group
    pixels = pitch * (height + 2 * PAD)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = pixel < pixels
    row = pixel // pitch - PAD
    column = pixel % group * APART + pixel % pitch // group - PAD
    source = pictures + picture * (height * width) + _edge(column, width)
    value = tl.load(source + _edge(row, height) * width, mask=exists, other=0.0)
    below = tl.load(source + _edge(row + 1, height) * width, mask=exists, other=0.0)
    place = picture * pixels + pixel
    tl.store(out + place, value, mask=exists)
    pair = (below.to(tl.int32, bitcast=True).to(tl.int64) << 32) | value.to(tl.uint32, bitcast=True).to(tl.int64)
    tl.store(pairs + place, pair, mask=exists)


@triton.jit
def _other() -> tl.tensor:
    """The number of the picture in which that of a program is looked for."""
    pictures = tl.num_programs(1)
    return (tl.program_id(1) + pictures // 2) % pictures


@triton.jit
def _edge(position: tl.tensor, count: tl.tensor) -> tl.tensor:
    """A position (int32), or the nearest of so many."""
    return tl.minimum(tl.maximum(position, 0), count - 1)


@triton.jit
def _pictures(
    padded: tl.tensor,
    pairs: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    PAD: tl.constexpr,
    APART: tl.constexpr,
    CHANNELS: tl.constexpr = 1,
) -> tuple[tl.tensor, ...]:
    """Where the first rows of a program's pictures begin, those of the second one in pairs; positions from one group of
    columns to the next, of which there are APART in a row."""
    group = tl.cdiv(width + 2 * PAD, APART)
    size = (CHANNELS * (height + 2 * PAD)) * (APART * group).to(tl.int64)
    begin = PAD * APART * group
    return padded + begin + tl.program_id(1) * size, pairs + begin + _other() * size, group


@triton.jit
def _column(x: tl.tensor, group: tl.tensor, PAD: tl.constexpr, APART: tl.constexpr) -> tl.tensor:
    """Where a column, int32, no farther outside than the border, is in a row."""
    place = (x + PAD).to(tl.uint32)  # to divide what has a sign takes four more instructions
    return (place % APART).to(tl.int32) * group + (place // APART).to(tl.int32)


@triton.jit
def _columns(x: tl.tensor, group: tl.tensor, PAD: tl.constexpr, APART: tl.constexpr) -> tuple[tl.tensor, ...]:
    """Where a column and those behind it are, up to that from where on they lie one position farther each."""
    return (
        _column(x, group, PAD, APART),
        _column(x + 1, group, PAD, APART),
        _column(x + 2, group, PAD, APART),
        _column(x + 3, group, PAD, APART),
    )


@triton.jit
def _patches(
    rows: tl.tensor, columns: tl.tensor, PATCHES: tl.constexpr, PATCH: tl.constexpr, CELL: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """The patches of a program in a round, those beyond the last one being the last one again; whether there are such;
    where they begin, down and across, int32: [PATCHES] each."""
    patch = tl.program_id(0) * PATCHES + tl.arange(0, PATCHES)
    exists = patch < rows * columns
    patch = tl.minimum(patch, rows * columns - 1)
    margin: tl.constexpr = (PATCH - CELL) // 2
    return patch, exists, (patch // columns) * CELL - margin, (patch % columns) * CELL - margin


@triton.jit
def _led(begin: tl.tensor, flow: tl.tensor, count: tl.tensor, PATCH: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Where patches begin, int32, that are moved by a flow along one side, and how much of the next position they see;
    such that see nothing but the border, no farther away than that."""
    flow = tl.where(flow > -FARTHEST, flow, -FARTHEST)
    flow = tl.minimum(flow, FARTHEST)
    whole = tl.floor(flow)
    return tl.minimum(tl.maximum(begin + whole.to(tl.int32), -PATCH - 1), count), flow - whole


@triton.jit
def _between(place: tl.tensor, lower: tl.tensor) -> tl.tensor:
    """A plane at positions whose pairs are pointed to, or between them and those below."""
    pair = tl.load(place)
    above = pair.to(tl.int32).to(tl.float32, bitcast=True)
    below = (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return above + lower * (below - above)


@triton.jit
def _pointed(picture: tl.tensor, row: tl.tensor, columns: tl.tensor) -> tuple[tl.tensor, ...]:
    """Columns of rows that begin at positions (int32) of a picture.

    Told anew for each row: what does not change between rows would be kept, in twice the registers.
    """
    return (
        picture + (row + columns[0]),
        picture + (row + columns[1]),
        picture + (row + columns[2]),
        picture + (row + columns[3]),
    )


@triton.jit
def _row_of(picture: tl.tensor, row: tl.tensor, columns: tl.tensor) -> tuple[tl.tensor, ...]:
    """The values of a row of patches; PATCH of them."""
    at = _pointed(picture, row, columns)
    return (
        tl.load(at[0]),
        tl.load(at[1]),
        tl.load(at[2]),
        tl.load(at[3]),
        tl.load(at[0] + 1),
        tl.load(at[1] + 1),
        tl.load(at[2] + 1),
        tl.load(at[3] + 1),
    )


@triton.jit
def _begun(
    told: tl.tensor, across: tl.tensor, down: tl.tensor, PATCH: tl.constexpr, PAD: tl.constexpr, APART: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """Where patches that move by a flow begin: the position of the row, int32, ``_columns``, and how much of the next
    column and row they see.

    told, here and below: from ``_pictures``; where the patches begin, int32; the pictures' size; with how many rows
    patches look, one in how many.
    """
    _, _, group, top, left, height, width, _, _ = told
    x, right = _led(left, across, width, PATCH)
    y, lower = _led(top, down, height, PATCH)
    return y * (APART * group), _columns(x, group, PAD, APART), right, lower


@triton.jit
def _row_misfit(
    own: tl.tensor, second: tl.tensor, row: tl.tensor, begun: tl.tensor, PATCH: tl.constexpr, APART: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """What differs in a row of patches, from ``_row_of``, and of where they are looked for: its sum, and that of its
    squares. row: positions from where they begin, from ``_begun``.

    All samples of a row lie equally far between the same positions, each of which is read once.
    """
    first_row, columns, right, lower = begun
    there = _pointed(second, first_row + row, columns)
    left = _between(there[0], lower)
    total = tl.zeros_like(left)
    squares = tl.zeros_like(left)
    for column in tl.static_range(PATCH):
        beside = _between(there[(column + 1) % APART] + (column + 1) // APART, lower)
        residual = left + right * (beside - left) - own[column]
        total += residual
        squares += residual * residual
        left = beside
    return total, squares


@triton.jit
def _row_differs(
    first: tl.tensor,
    own: tl.tensor,
    own_at: tl.tensor,
    second: tl.tensor,
    row: tl.tensor,
    begun: tl.tensor,
    APART: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """What differs at each position of a row of patches; own: where it begins. What is not used is not computed."""
    first_row, columns, right, lower = begun
    here = _row_of(first, own, own_at)
    there = _pointed(second, first_row + row, columns)
    seen = (
        _between(there[0], lower),
        _between(there[1], lower),
        _between(there[2], lower),
        _between(there[3], lower),
        _between(there[0] + 1, lower),
        _between(there[1] + 1, lower),
        _between(there[2] + 1, lower),
        _between(there[3] + 1, lower),
        _between(there[0] + 2, lower),
    )
    return (
        seen[0] + right * (seen[1] - seen[0]) - here[0],
        seen[1] + right * (seen[2] - seen[1]) - here[1],
        seen[2] + right * (seen[3] - seen[2]) - here[2],
        seen[3] + right * (seen[4] - seen[3]) - here[3],
        seen[4] + right * (seen[5] - seen[4]) - here[4],
        seen[5] + right * (seen[6] - seen[5]) - here[5],
        seen[6] + right * (seen[7] - seen[6]) - here[6],
        seen[7] + right * (seen[8] - seen[7]) - here[7],
    )


@triton.jit
def _cost_of(total: tl.tensor, squares: tl.tensor, samples: tl.tensor) -> tl.tensor:
    """Squared difference less that of the means, from sums over samples."""
    return tl.maximum(squares - total * total * (1.0 / samples), 0.0)


@triton.jit
def _cost(
    told: tl.tensor, across: tl.tensor, down: tl.tensor, PATCH: tl.constexpr, PAD: tl.constexpr, APART: tl.constexpr
) -> tl.tensor:
    """What patches cost that move by a flow: [PATCHES]."""
    first, second, group, top, left, _, _, count, every = told
    pitch = APART * group
    own_at = _columns(left, group, PAD, APART)
    begun = _begun(told, across, down, PATCH, PAD, APART)
    row = every // 2 * pitch
    total = tl.zeros_like(across)
    squares = tl.zeros_like(across)
    for _ in range(count):
        own = _row_of(first, top * pitch + row, own_at)
        added, more = _row_misfit(own, second, row, begun, PATCH, APART)
        total += added
        squares += more
        row += every * pitch
    return _cost_of(total, squares, count * PATCH)


@triton.jit
def _best_of_four(
    told: tl.tensor,
    tried_x: tl.tensor,
    tried_y: tl.tensor,
    best: tl.tensor,
    PATCH: tl.constexpr,
    PAD: tl.constexpr,
    APART: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """As ``_better``, of four flows for each patch, the first of those that cost least; each row of the patches is read
    once for all of them."""
    first, second, group, top, left, _, _, count, every = told
    pitch = APART * group
    own_at = _columns(left, group, PAD, APART)
    begun0 = _begun(told, tried_x[0], tried_y[0], PATCH, PAD, APART)
    begun1 = _begun(told, tried_x[1], tried_y[1], PATCH, PAD, APART)
    begun2 = _begun(told, tried_x[2], tried_y[2], PATCH, PAD, APART)
    begun3 = _begun(told, tried_x[3], tried_y[3], PATCH, PAD, APART)
    row = every // 2 * pitch
    total0 = tl.zeros_like(tried_x[0])
    total1 = total0
    total2 = total0
    total3 = total0
    squares0 = total0
    squares1 = total0
    squares2 = total0
    squares3 = total0
    for _ in range(count):
        own = _row_of(first, top * pitch + row, own_at)
        added, more = _row_misfit(own, second, row, begun0, PATCH, APART)
        total0 += added
        squares0 += more
        added, more = _row_misfit(own, second, row, begun1, PATCH, APART)
        total1 += added
        squares1 += more
        added, more = _row_misfit(own, second, row, begun2, PATCH, APART)
        total2 += added
        squares2 += more
        added, more = _row_misfit(own, second, row, begun3, PATCH, APART)
        total3 += added
        squares3 += more
        row += every * pitch
    across, down, cost = best
    samples = count * PATCH
    tried = _cost_of(total0, squares0, samples)
    across, down, cost = _better(tried, tried_x[0], tried_y[0], cost, across, down)
    tried = _cost_of(total1, squares1, samples)
    across, down, cost = _better(tried, tried_x[1], tried_y[1], cost, across, down)
    tried = _cost_of(total2, squares2, samples)
    across, down, cost = _better(tried, tried_x[2], tried_y[2], cost, across, down)
    tried = _cost_of(total3, squares3, samples)
    across, down, cost = _better(tried, tried_x[3], tried_y[3], cost, across, down)
    return across, down, cost


@triton.jit
def _step(
    told: tl.tensor,
    across: tl.tensor,
    down: tl.tensor,
    damping: tl.tensor,
    PATCH: tl.constexpr,
    PAD: tl.constexpr,
    APART: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The flow (x, y) after a Gauss-Newton step, [PATCHES] each."""
    first, second, group, top, left, height, width, count, every = told
    pitch = APART * group
    own_at = _columns(left, group, PAD, APART)
    before_at = _column(left - 1, group, PAD, APART)
    first_row, columns, right, lower = _begun(told, across, down, PATCH, PAD, APART)
    total = tl.zeros_like(right)
    sum_x = total
    sum_y = total
    xx = total
    yy = total
    xy = total
    along_x = total
    along_y = total
    for number in range(count):
        inner = number * every + every // 2
        row = top + inner
        known = (row >= 0) & (row < height)
        own = _pointed(first, row * pitch, own_at)
        above = _pointed(first, (row - 1) * pitch, own_at)
        below = _pointed(first, (row + 1) * pitch, own_at)
        there = _pointed(second, first_row + inner * pitch, columns)
        found = _between(there[0], lower)
        before = tl.load(first + (row * pitch + before_at))
        here = tl.load(own[0])
        for column in tl.static_range(PATCH):
            beside = _between(there[(column + 1) % APART] + (column + 1) // APART, lower)
            after = tl.load(own[(column + 1) % APART] + (column + 1) // APART)
            residual = found + right * (beside - found) - here
            # Outside the frame nothing is known of where it slopes.
            inside = known & (left >= -column) & (left < width - column)
            slope_x = tl.where(inside, 0.5 * (after - before), 0.0)
            slope_y = tl.load(below[column % APART] + column // APART)
            slope_y -= tl.load(above[column % APART] + column // APART)
            slope_y = tl.where(inside, 0.5 * slope_y, 0.0)
            total += residual
            sum_x += slope_x
            sum_y += slope_y
            xx += slope_x * slope_x
            yy += slope_y * slope_y
            xy += slope_x * slope_y
            along_x += slope_x * residual
            along_y += slope_y * residual
            found = beside
            before = here
            here = after
    samples = count * PATCH
    # Slopes less each patch's mean: a change of brightness is no motion.
    mean_x = sum_x * (1.0 / samples)
    mean_y = sum_y * (1.0 / samples)
    a = xx - samples * mean_x * mean_x + damping
    b = yy - samples * mean_y * mean_y + damping
    c = xy - samples * mean_x * mean_y
    to_x = along_x - mean_x * total
    to_y = along_y - mean_y * total
    scale = 1.0 / (a * b - c * c)
    return across - (b * to_x - c * to_y) * scale, down - (a * to_y - c * to_x) * scale


@triton.jit(
    do_not_specialize=[
        "height",
        "width",
        "rows",
        "columns",
        "flow_batch",
        "flow_plane",
        "flow_row",
        "coarser_batch",
        "coarser_plane",
        "coarser_row",
        "fits",
        "count",
        "every",
    ]
)
def _begin(
    padded: tl.tensor,  # [B, h + 2 PAD, APART, ...] fp32, from ``_pad``
    pairs: tl.tensor,  # the same, int64
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,  # of patches
    columns: tl.tensor,
    flow: tl.tensor,  # [B, 2, rows or more, columns or more] fp32: where patches begin, in positions of twice the size
    coarser: tl.tensor,  # [B, 2, rows / 2, columns / 2] fp32: of the patches of the next smaller size
    state: tl.tensor,  # [B, 3, rows * columns] fp32, out: flow (x, y); cost, -inf where a patch fits
    flow_batch: tl.tensor,
    flow_plane: tl.tensor,
    flow_row: tl.tensor,
    coarser_batch: tl.tensor,
    coarser_plane: tl.tensor,
    coarser_row: tl.tensor,
    fits: tl.tensor,
    count: tl.tensor,  # of the rows with which patches look ...
    every: tl.tensor,  # ... one in so many of theirs
    REACH: tl.constexpr,  # at the smallest size every displacement within so many positions is tried, else 0
    BEGUN: tl.constexpr,  # whether there is a flow to begin with
    PATCH: tl.constexpr,
    CELL: tl.constexpr,
    PATCHES: tl.constexpr,
    PAD: tl.constexpr,
    APART: tl.constexpr,
) -> None:
    """Where patches begin, and what they try first."""
    patch, exists, top, left = _patches(rows, columns, PATCHES, PATCH, CELL)
    picture = tl.program_id(1).to(tl.int64)
    first, second, group = _pictures(padded, pairs, height, width, PAD, APART)
    told = first, second, group, top, left, height, width, count, every
    across = tl.zeros([PATCHES], dtype=tl.float32)
    down = tl.zeros([PATCHES], dtype=tl.float32)
    row = patch // columns
    column = patch % columns
    if BEGUN:
        place = flow + picture * flow_batch + row * flow_row + column
        across = 2.0 * tl.load(place)
        down = 2.0 * tl.load(place + flow_plane)
    cost = _cost(told, across, down, PATCH, PAD, APART)
    cost = tl.where(cost > fits, cost, -float("inf"))
    if tl.max(cost, axis=0) > -float("inf"):
        if REACH > 0:
            side: tl.constexpr = 2 * REACH + 1
            nothing = tl.zeros_like(across)
            for number in range(side * side):
                tried_x = nothing + (number // side - REACH)
                tried_y = nothing + (number % side - REACH)
                tried = _cost(told, tried_x, tried_y, PATCH, PAD, APART)
                across, down, cost = _better(tried, tried_x, tried_y, cost, across, down)
        else:
            place = coarser + picture * coarser_batch + (row // 2) * coarser_row + column // 2
            tried_x = 2.0 * tl.load(place)
            tried_y = 2.0 * tl.load(place + coarser_plane)
            tried = _cost(told, tried_x, tried_y, PATCH, PAD, APART)
            across, down, cost = _better(tried, tried_x, tried_y, cost, across, down)
    _keep(_state_of(state, rows * columns), patch, exists, across, down, cost, rows * columns)


@triton.jit
def _nearest(position: tl.tensor, count: tl.tensor) -> tl.tensor:
    """The nearest of so many patches in a row, of two as near the even one; int32."""
    position = _inside(position, count - 1)
    # What is added makes whole numbers of fp32, to which the processor rounds as it should.
    return ((position + 12582912.0) - 12582912.0).to(tl.int32)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "count", "every"])
def _try_back(
    padded: tl.tensor,
    pairs: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    before: tl.tensor,  # [B, 3, rows * columns] fp32, as ``_begin`` writes it
    after: tl.tensor,  # the same, out
    count: tl.tensor,
    every: tl.tensor,
    PATCH: tl.constexpr,
    CELL: tl.constexpr,
    PATCHES: tl.constexpr,
    PAD: tl.constexpr,
    APART: tl.constexpr,
) -> None:
    """Try the way back from the patch of the other frame that is nearest to where each patch leads."""
    patch, exists, top, left = _patches(rows, columns, PATCHES, PATCH, CELL)
    patches = rows * columns
    own = _state_of(before, patches)
    other = before + _other().to(tl.int64) * (3 * patches)
    across = tl.load(own + patch)
    down = tl.load(own + patches + patch)
    cost = tl.load(own + 2 * patches + patch)
    if tl.max(cost, axis=0) > -float("inf"):
        first, second, group = _pictures(padded, pairs, height, width, PAD, APART)
        told = first, second, group, top, left, height, width, count, every
        row = _nearest((patch // columns).to(tl.float32) + down * (1.0 / CELL), rows)
        column = _nearest((patch % columns).to(tl.float32) + across * (1.0 / CELL), columns)
        tried_x = -tl.load(other + row * columns + column)
        tried_y = -tl.load(other + patches + row * columns + column)
        tried = _cost(told, tried_x, tried_y, PATCH, PAD, APART)
        across, down, cost = _better(tried, tried_x, tried_y, cost, across, down)
    _keep(_state_of(after, patches), patch, exists, across, down, cost, patches)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "side", "damping", "count", "every"])
def _try_around(
    padded: tl.tensor,
    pairs: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    before: tl.tensor,  # [B, 3, rows * columns] fp32, as ``_begin`` writes it
    after: tl.tensor,  # the same, out
    side: tl.tensor,  # patches to those whose flow is tried
    damping: tl.tensor,
    count: tl.tensor,
    every: tl.tensor,
    PATCH: tl.constexpr,
    CELL: tl.constexpr,
    PATCHES: tl.constexpr,
    PAD: tl.constexpr,
    APART: tl.constexpr,
) -> None:
    """Try the flows of the patches so far above, below, left and right, then take a Gauss-Newton step."""
    patch, exists, top, left = _patches(rows, columns, PATCHES, PATCH, CELL)
    patches = rows * columns
    before = _state_of(before, patches)
    across = tl.load(before + patch)
    down = tl.load(before + patches + patch)
    cost = tl.load(before + 2 * patches + patch)
    if tl.max(cost, axis=0) > -float("inf"):
        first, second, group = _pictures(padded, pairs, height, width, PAD, APART)
        told = first, second, group, top, left, height, width, count, every
        row = patch // columns
        column = patch % columns
        above = _edge(row - side, rows) * columns + column
        below = _edge(row + side, rows) * columns + column
        before_it = row * columns + _edge(column - side, columns)
        behind_it = row * columns + _edge(column + side, columns)
        tried_x = (
            tl.load(before + above),
            tl.load(before + below),
            tl.load(before + before_it),
            tl.load(before + behind_it),
        )
        before += patches
        tried_y = (
            tl.load(before + above),
            tl.load(before + below),
            tl.load(before + before_it),
            tl.load(before + behind_it),
        )
        across, down, cost = _best_of_four(told, tried_x, tried_y, (across, down, cost), PATCH, PAD, APART)
        stepped_x, stepped_y = _step(told, across, down, damping, PATCH, PAD, APART)
        cost_there = _cost(told, stepped_x, stepped_y, PATCH, PAD, APART)
        across, down, cost = _better(cost_there, stepped_x, stepped_y, cost, across, down)
    _keep(_state_of(after, patches), patch, exists, across, down, cost, patches)


@triton.jit
def _least_around(
    told: tl.tensor,
    plane: tl.tensor,
    across: tl.tensor,
    down: tl.tensor,
    step: tl.tensor,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    REACH: tl.constexpr,
    LANES: tl.constexpr,
    PAD: tl.constexpr,
    APART: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """The best flow for one patch of those within REACH steps of (across, down), and its cost. LANES are tried at once,
    those beside each other by neighbouring threads, which read what lies beside each other.

    told: as in ``_begun``, of one patch; plane: positions from one channel to the next.
    """
    first, second, group, top, left, _, _, count, every = told
    side: tl.constexpr = 2 * REACH + 1
    pitch = APART * group
    own_at = _columns(left, group, PAD, APART)
    least = tl.full([LANES], float("inf"), dtype=tl.float32)
    best = tl.zeros([LANES], dtype=tl.int32)
    for turn in range((side * side + LANES - 1) // LANES):
        lane = turn * LANES + tl.arange(0, LANES)
        column = lane % side
        row = lane // side
        tried_x = across + step * (column - REACH).to(tl.float32)
        begun = _begun(told, tried_x, down + step * (row - REACH).to(tl.float32), PATCH, PAD, APART)
        line = every // 2 * pitch
        total = tl.zeros([LANES], dtype=tl.float32)
        squares = tl.zeros([LANES], dtype=tl.float32)
        for _ in range(count):
            for channel in tl.static_range(CHANNELS):
                own = _row_of(first + channel * plane, top * pitch + line, own_at)
                added, more = _row_misfit(own, second + channel * plane, line, begun, PATCH, APART)
                total += added
                squares += more
            line += every * pitch
        cost = tl.where(row < side, _cost_of(total, squares, count * (PATCH * CHANNELS)), float("inf"))
        # Of those that cost the same the one farthest to the left, then above.
        number = column * side + row
        better = (cost < least) | ((cost == least) & (number < best))
        least = tl.where(better, cost, least)
        best = tl.where(better, number, best)
    cost = tl.min(least, axis=0)
    number = tl.min(tl.where(least == cost, best, side * side - 1), axis=0)
    best_x = across + step * (number // side - REACH).to(tl.float32)
    best_y = down + step * (number % side - REACH).to(tl.float32)
    return cost, best_x, best_y


@triton.jit
def _told_of(
    padded: tl.tensor,
    pairs: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    columns: tl.tensor,
    number: tl.tensor,
    count: tl.tensor,
    every: tl.tensor,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    CELL: tl.constexpr,
    PAD: tl.constexpr,
    APART: tl.constexpr,
) -> tl.tensor:
    """What ``_least_around`` is told of a patch, and the positions from one channel to the next."""
    first, second, group = _pictures(padded, pairs, height, width, PAD, APART, CHANNELS)
    margin: tl.constexpr = (PATCH - CELL) // 2
    top = (number // columns) * CELL - margin
    left = (number % columns) * CELL - margin
    return (first, second, group, top, left, height, width, count, every), APART * group * (height + 2 * PAD)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "found", "count", "every"])
def _look_farther(
    padded: tl.tensor,  # [B, h + 2 PAD, APART, ...] fp32, from ``_pad``
    pairs: tl.tensor,  # the same, int64
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    chosen: tl.tensor,  # [B, K] int32, numbers of patches that are lost, then -1
    state: tl.tensor,  # [B, 3, rows * columns] fp32, changed
    found: tl.tensor,  # the part of their cost that may be left
    count: tl.tensor,  # as in ``_begin``
    every: tl.tensor,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    CELL: tl.constexpr,
    PAD: tl.constexpr,
    APART: tl.constexpr,
    REACH: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """One patch that is lost."""
    patches = rows * columns
    number = tl.load(chosen + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0))
    if number >= 0:
        state = _state_of(state, patches) + number
        cost = tl.load(state + 2 * patches)
        across = tl.load(state)
        down = tl.load(state + patches)
        told, plane = _told_of(
            padded, pairs, height, width, columns, number, count, every, CHANNELS, PATCH, CELL, PAD, APART
        )
        least, best_x, best_y = _least_around(told, plane, across, down, 1.0, CHANNELS, PATCH, REACH, LANES, PAD, APART)
        if least < found * cost:
            tl.store(state, best_x)
            tl.store(state + patches, best_y)
            tl.store(state + 2 * patches, least)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "step", "count", "every"])
def _look_around(
    padded: tl.tensor,  # [B, CHANNELS, h + 2 PAD, APART, ...] fp32, from ``_pad``
    pairs: tl.tensor,  # the same, int64
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    chosen: tl.tensor,  # [B, K] int32, numbers of patches, then -1
    moved: tl.tensor,  # [B, rows * columns, 2] fp32, the flow of all of them, from which they look around
    flow: tl.tensor,  # [B, K, 2] fp32, changed, out where FIRST
    cost: tl.tensor,  # [B, K] fp32, out where FIRST: by the flow as it was
    least: tl.tensor,  # [B, K] fp32, changed, out where FIRST
    step: tl.tensor,
    count: tl.tensor,  # as in ``_begin``
    every: tl.tensor,
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    CELL: tl.constexpr,
    PAD: tl.constexpr,
    APART: tl.constexpr,
    REACH: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """One patch that looks for its colours."""
    place = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    number = tl.load(chosen + place)
    if number < 0:
        return
    own = moved + (tl.program_id(1).to(tl.int64) * (rows * columns) + number) * 2
    begun = own if FIRST else flow + 2 * place
    across = tl.load(begun)
    down = tl.load(begun + 1)
    told, plane = _told_of(
        padded, pairs, height, width, columns, number, count, every, CHANNELS, PATCH, CELL, PAD, APART
    )
    if FIRST:
        before, _, _ = _least_around(told, plane, across, down, 0.0, CHANNELS, PATCH, 0, 32, PAD, APART)
        tl.store(cost + place, before)
    else:
        before = tl.load(least + place)
    tried, best_x, best_y = _least_around(told, plane, across, down, step, CHANNELS, PATCH, REACH, LANES, PAD, APART)
    better = tried < before
    tl.store(flow + 2 * place, tl.where(better, best_x, across))
    tl.store(flow + 2 * place + 1, tl.where(better, best_y, down))
    tl.store(least + place, tl.where(better, tried, before))


@triton.jit(
    do_not_specialize=[
        "height",
        "width",
        "rows",
        "columns",
        "red",
        "green",
        "blue",
        "least",
        "plain",
        "count",
        "every",
    ]
)
def _see_colours(
    padded: tl.tensor,  # [B, 3, h + 2 PAD, APART, ...] fp32, from ``_pad``
    pairs: tl.tensor,  # the same, int64
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    flow: tl.tensor,  # [B, rows * columns, 2] fp32
    out: tl.tensor,  # [B, rows * columns] fp32, out
    red: tl.tensor,  # weights of the colours in brightness
    green: tl.tensor,
    blue: tl.tensor,
    least: tl.tensor,  # difference of the colours from which a patch looks for them
    plain: tl.tensor,  # the same, as a part of that of brightness
    count: tl.tensor,  # as in ``_begin``
    every: tl.tensor,
    PATCH: tl.constexpr,
    CELL: tl.constexpr,
    PATCHES: tl.constexpr,
    PAD: tl.constexpr,
    APART: tl.constexpr,
) -> None:
    """What differs in the colours less brightness, in the mean of the squares, where it is so much that a patch looks
    for them, else 0."""
    patch, exists, top, left = _patches(rows, columns, PATCHES, PATCH, CELL)
    first, second, group = _pictures(padded, pairs, height, width, PAD, APART, 3)
    place = tl.program_id(1).to(tl.int64) * (rows * columns) + patch
    across = tl.load(flow + 2 * place)
    down = tl.load(flow + 2 * place + 1)
    told = first, second, group, top, left, height, width, count, every
    begun = _begun(told, across, down, PATCH, PAD, APART)
    own_at = _columns(left, group, PAD, APART)
    pitch = APART * group
    plane = pitch * (height + 2 * PAD)
    coloured = tl.zeros_like(across)
    bright = tl.zeros_like(across)
    row = every // 2 * pitch
    for _ in range(count):
        own = top * pitch + row
        reds = _row_differs(first, own, own_at, second, row, begun, APART)
        greens = _row_differs(first + plane, own, own_at, second + plane, row, begun, APART)
        blues = _row_differs(first + 2 * plane, own, own_at, second + 2 * plane, row, begun, APART)
        for column in tl.static_range(PATCH):
            dark = red * reds[column] + green * greens[column] + blue * blues[column]
            r = reds[column] - dark
            g = greens[column] - dark
            b = blues[column] - dark
            coloured += r * r + g * g + b * b
            bright += dark * dark
        row += every * pitch
    coloured *= 1.0 / (3 * PATCH * count)
    bright *= 1.0 / (PATCH * count)
    tl.store(out + place, tl.where((coloured > least) & (coloured > plain * bright), coloured, 0.0), mask=exists)


@triton.jit(do_not_specialize=["picture_stride", "count", "most", "limit"])
def _largest(
    values: tl.tensor,  # [B, count] fp32
    out: tl.tensor,  # [B, most] int32, out: numbers of the largest, then -1
    picture_stride: tl.tensor,
    count: tl.tensor,
    most: tl.tensor,
    limit: tl.tensor,  # bits of 0 or more: only values that are larger
    ONCE: tl.constexpr,  # whether all are read at once, and stay in registers
    BLOCK: tl.constexpr,
) -> None:
    """One row. Numbers of fp32 that are not negative are in the order of their bits: of those of the smallest that is
    chosen one is found after the other, by counting how many values are not smaller."""
    values += tl.program_id(0).to(tl.int64) * picture_stride
    out += tl.program_id(0).to(tl.int64) * most
    begun = _bits(values, 0, count, BLOCK)
    found = _reach(begun, values, count, limit + 1, ONCE, BLOCK)
    ties = 0
    if found > most:
        limit = tl.zeros([], dtype=tl.int32)
        for turn in range(31):
            tried = limit | (1 << (30 - turn))
            limit = tl.where(_reach(begun, values, count, tried, ONCE, BLOCK) >= most, tried, limit)
        found = _reach(begun, values, count, limit + 1, ONCE, BLOCK)
        ties = most - found
    place = 0
    equal = 0
    for start in range(0, count, BLOCK):
        bits = begun if ONCE else _bits(values, start, count, BLOCK)
        as_large = (bits == limit).to(tl.int32)
        takes = (bits > limit) | ((bits == limit) & (equal + tl.cumsum(as_large, axis=0) <= ties))
        taken = takes.to(tl.int32)
        number = start + tl.arange(0, BLOCK)
        tl.store(out + (place + tl.cumsum(taken, axis=0) - 1), number, mask=takes)
        place += tl.sum(taken, axis=0)
        equal += tl.sum(as_large, axis=0)
    for start in range(0, most, BLOCK):
        rest = start + tl.arange(0, BLOCK)
        tl.store(out + rest, tl.full([BLOCK], -1, dtype=tl.int32), mask=(rest >= found + ties) & (rest < most))


@triton.jit
def _reach(
    begun: tl.tensor, values: tl.tensor, count: tl.tensor, least: tl.tensor, ONCE: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """How many values are at least as large. begun: the bits of the first BLOCK."""
    number = tl.sum((begun >= least).to(tl.int32), axis=0)
    if not ONCE:
        for start in range(BLOCK, count, BLOCK):
            number += tl.sum((_bits(values, start, count, BLOCK) >= least).to(tl.int32), axis=0)
    return number


@triton.jit
def _bits(values: tl.tensor, start: tl.tensor, count: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Of some of so many values, negative where there are none; [BLOCK] int32."""
    number = start + tl.arange(0, BLOCK)
    return tl.load(values + number, mask=number < count, other=-1.0).to(tl.int32, bitcast=True)


@triton.jit(do_not_specialize=["batch", "rows", "columns"])
def _differing_lines(
    agree: tl.tensor,  # [B, rows, columns] bool
    lines: tl.tensor,  # [rows + columns] int32, out: whether any block of a row, or of a column, does not agree
    batch: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One row or column, in all pictures."""
    line = tl.program_id(0)
    length = tl.where(line < rows, columns, rows)
    found = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, batch * length, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        along = entry % length
        row = tl.where(line < rows, line, along)
        column = tl.where(line < rows, along, line - rows)
        place = ((entry // length) * rows + row) * columns + column
        same = tl.load(agree + place, mask=entry < batch * length, other=1)
        found |= (same == 0).to(tl.int32)
    tl.store(lines + line, tl.max(found, axis=0))


@triton.jit(do_not_specialize=["points", "width", "rows", "columns", "beside"])
def _put_within(
    flow: tl.tensor,  # [B, C, h, w] fp32
    lines: tl.tensor,  # [rows + columns] int32, from ``_differing_lines``
    out: tl.tensor,  # the same as flow, out
    points: tl.tensor,  # h * w
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    beside: tl.tensor,
    FACTOR: tl.constexpr,  # points along a block's side
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Flow in the rectangle that holds all lines that differ, and nothing outside of it."""
    row = tl.arange(0, ROWS)
    differs = tl.load(lines + row, mask=row < rows, other=0) != 0
    top = tl.min(tl.where(differs, row, 2 * ROWS), axis=0) - beside
    last = tl.max(tl.where(differs, row, -1), axis=0)
    bottom = tl.where(last < 0, -1, last + beside)  # where nothing differs nothing is inside
    column = tl.arange(0, COLUMNS)
    differs = tl.load(lines + rows + column, mask=column < columns, other=0) != 0
    left = tl.min(tl.where(differs, column, 2 * COLUMNS), axis=0) - beside
    right = tl.max(tl.where(differs, column, -1), axis=0) + beside
    plane = tl.program_id(1).to(tl.int64) * points
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = point // width // FACTOR
    x = point % width // FACTOR
    inside = (point < points) & (y >= top) & (y <= bottom) & (x >= left) & (x <= right)
    value = tl.load(flow + plane + point, mask=inside, other=0.0)
    tl.store(out + plane + point, value, mask=point < points)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns"])
def _of_cells(
    flow: tl.tensor,  # [B, 2, h, w] fp32
    out: tl.tensor,  # [B, rows * columns, 2] fp32, out
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,  # of cells
    columns: tl.tensor,
    CELL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The mean flow in cells, beyond the last row and column that of the border."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = cell < rows * columns
    source = flow + tl.program_id(1).to(tl.int64) * (2 * height * width)
    across = tl.zeros([BLOCK], dtype=tl.float32)
    down = tl.zeros([BLOCK], dtype=tl.float32)
    for point in tl.static_range(CELL * CELL):
        y = _edge((cell // columns) * CELL + point // CELL, height)
        place = source + (y * width + _edge((cell % columns) * CELL + point % CELL, width))
        across += tl.load(place, mask=exists, other=0.0)
        down += tl.load(place + height * width, mask=exists, other=0.0)
    target = out + (tl.program_id(1).to(tl.int64) * (rows * columns) + cell) * 2
    tl.store(target, across * (1.0 / (CELL * CELL)), mask=exists)
    tl.store(target + 1, down * (1.0 / (CELL * CELL)), mask=exists)


@triton.jit(do_not_specialize=["height", "width", "columns", "seen"])
def _put_better(
    pictures: tl.tensor,  # [B, CHANNELS, h, w] fp32
    flow: tl.tensor,  # [B, 2, h, w] fp32
    chosen: tl.tensor,  # [B, K] int32, numbers of patches, then -1
    found: tl.tensor,  # [B, K, 2] fp32
    cost: tl.tensor,  # [B, K] fp32, by the flow as it was
    least: tl.tensor,  # [B, K] fp32, by what was found
    out: tl.tensor,  # [B, 2, h, w] fp32, changed
    height: tl.tensor,
    width: tl.tensor,
    columns: tl.tensor,  # of cells
    seen: tl.tensor,  # the part of the cost that may be left
    CHANNELS: tl.constexpr,
    CELL: tl.constexpr,
) -> None:
    """What was found for one patch, at the points of its cell that fit better by it, with the eight beside each."""
    place = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    number = tl.load(chosen + place)
    if number < 0:
        return
    if tl.load(least + place) < seen * tl.load(cost + place):
        found_x = tl.load(found + 2 * place)
        found_y = tl.load(found + 2 * place + 1)
        size = height * width
        picture = tl.program_id(1).to(tl.int64)
        pictures, others = _both(pictures, height, width, CHANNELS)
        flow += picture * (2 * size)
        point = tl.arange(0, CELL * CELL)
        own_y = (number // columns) * CELL + point // CELL
        own_x = (number % columns) * CELL + point % CELL
        gained = tl.zeros([CELL * CELL], dtype=tl.float32)
        for beside in range(9):
            y = own_y + beside // 3 - 1
            x = own_x + beside % 3 - 1
            here = _edge(y, height) * width + _edge(x, width)
            row = y.to(tl.float32)
            column = x.to(tl.float32)
            before_x = column + tl.load(flow + here)
            before_y = row + tl.load(flow + size + here)
            for channel in tl.static_range(CHANNELS):
                value = tl.load(pictures + channel * size + here)
                plane = others + channel * size
                before = _read(plane, before_y, before_x, height, width) - value
                after = _read(plane, row + found_y, column + found_x, height, width) - value
                gained += before * before - after * after
        takes = (gained > 0) & (own_y < height) & (own_x < width)
        target = out + picture * (2 * size) + own_y * width + own_x
        nothing = tl.zeros([CELL * CELL], dtype=tl.float32)
        tl.store(target, nothing + found_x, mask=takes)
        tl.store(target + size, nothing + found_y, mask=takes)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "count", "every"])
def _weigh(
    padded: tl.tensor,
    pairs: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    state: tl.tensor,  # [B, 3, rows * columns] fp32
    weights: tl.tensor,  # [B, 16, rows * columns] fp32, out
    count: tl.tensor,
    every: tl.tensor,
    PATCH: tl.constexpr,
    CELL: tl.constexpr,
    PATCHES: tl.constexpr,
    PAD: tl.constexpr,
    APART: tl.constexpr,
) -> None:
    """How well each patch fits at its points, every second position down and across, which is what its flow weighs
    there."""
    patch, exists, top, left = _patches(rows, columns, PATCHES, PATCH, CELL)
    patches = rows * columns
    state = _state_of(state, patches)
    first, second, group = _pictures(padded, pairs, height, width, PAD, APART)
    across = tl.load(state + patch)
    down = tl.load(state + patches + patch)
    told = first, second, group, top, left, height, width, count, every
    begun = _begun(told, across, down, PATCH, PAD, APART)
    own_at = _columns(left, group, PAD, APART)
    pitch = APART * group
    own = top * pitch
    differs = (
        _row_differs(first, own, own_at, second, 0, begun, APART),
        _row_differs(first, own + 2 * pitch, own_at, second, 2 * pitch, begun, APART),
        _row_differs(first, own + 4 * pitch, own_at, second, 4 * pitch, begun, APART),
        _row_differs(first, own + 6 * pitch, own_at, second, 6 * pitch, begun, APART),
    )
    total = tl.zeros_like(across)
    squares = tl.zeros_like(across)
    for point in tl.static_range(16):
        residual = differs[point // 4][point % 4 * 2]
        total += residual
        squares += residual * residual
    fit = _cost_of(total, squares, 16) * (1.0 / 16) + 4.0
    target = weights + tl.program_id(1).to(tl.int64) * (16 * patches) + patch
    for point in tl.static_range(16):
        weight = 1.0 / (tl.maximum(tl.abs(differs[point // 4][point % 4 * 2]), 1.0) * fit)
        tl.store(target + point * patches, weight, mask=exists)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns"])
def _average(
    state: tl.tensor,  # [B, 3, rows * columns] fp32
    weights: tl.tensor,  # [B, SIDE * SIDE, rows * columns] fp32, from ``_weigh``
    out: tl.tensor,  # [B, 2, height, width] fp32, out
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    SIDE: tl.constexpr,  # points of a patch, down and across; the next patch is half of that away
    BLOCK: tl.constexpr,
) -> None:
    """The mean of the flows of the four patches that cover a point."""
    step: tl.constexpr = SIDE // 2
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = point < height * width
    # Patches begin a quarter of their side outside the frame.
    y = point // width + SIDE // 4
    x = point % width + SIDE // 4
    count = rows * columns
    state = _state_of(state, count)
    weights += tl.program_id(1).to(tl.int64) * (SIDE * SIDE * count)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    across = tl.zeros([BLOCK], dtype=tl.float32)
    down = tl.zeros([BLOCK], dtype=tl.float32)
    for corner in tl.static_range(4):
        row = y // step - corner // 2
        column = x // step - corner % 2
        inner = (y - row * step) * SIDE + (x - column * step)
        covers = exists & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        patch = row * columns + column
        weight = tl.load(weights + inner * count + patch, mask=covers, other=0.0)
        total += weight
        across += weight * tl.load(state + patch, mask=covers, other=0.0)
        down += weight * tl.load(state + count + patch, mask=covers, other=0.0)
    place = out + tl.program_id(1).to(tl.int64) * (2 * height * width) + point
    tl.store(place, across / total, mask=exists)
    tl.store(place + height * width, down / total, mask=exists)
