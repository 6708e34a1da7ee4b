"""Active blocks only, in plain torch: gather what a 3x3 kernel reads around each of their positions, and multiply.

Layers hand each other *compact* buffers that hold active positions and nothing else, plus one row of zeros that stands
for every position that is pruned or outside the picture. What is around a position is gathered from there through an
index made once per mask, so nothing is scattered until the level is done. A gather of rows copies whole cache lines,
and the product of a thousand gathered positions runs at the dense convolution's rate, whatever shape the mask has.
Where products take long, tiles of positions are made together, by ``Winograd``, with a quarter of the multiplications.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net import cpu
from ugsp_net.blocks import LEAKY_SLOPE, Activation, Conv, Level, Synthesis, linear
from ugsp_net.compiled import compiled_by
from ugsp_net.masks import block_side, enlarge
from ugsp_net.matching import TILE
from ugsp_net.pooling import largest_around
from ugsp_net.sparse import strips, winograd
from ugsp_net.sparse.inputs import DenseInputs, SparseInputs, filled_up

BATCH, BATCH_FP32 = 2048, 512
"""Positions gathered and multiplied at once on a processor: fewer waste calls, more leave the cache. In fp32 the last
level took about a tenth less time with 512 than with 2048 (AVX2, 512 KiB of cache for a core)."""
GROUP = 4
"""Batches whose projection is one product: that takes a third less than a product for each."""
LAUNCH = 1 << 16
"""The same on other devices, where a call costs a launch: at most 140 MB of bf16 are gathered at once."""
ROUND = 128
"""The last batch is filled up to a multiple of this, because oneDNN prepares a product anew for every size it meets,
which costs more than the product itself."""

PAYS_BELOW = 0.7
"""Share of a level that is active up to which active blocks alone are faster than the dense level: where the two took
equal time on one core, inputs, correlation and enlargement included on both sides, with masks of connected regions. At
strides 8, 4 and 2, shares of 0.2, 0.4, 0.6 and 0.8 took these parts of the dense level's time:

1280x720, bf16 (AVX512-BF16): 0.45, 0.69, 0.96, 1.19; 0.30, 0.56, 0.80, 1.03; 0.32, 0.61, 0.89, 1.17;
1920x1080, bf16: 0.39, 0.66, 0.91, 1.18; 0.28, 0.53, 0.76, 1.00; 0.32, 0.60, 0.89, 1.17;
1280x720, fp32: 0.36, 0.61, 0.87, 1.09; 0.28, 0.55, 0.81, 1.05; 0.26, 0.51, 0.76, 0.98;
1280x720, fp32 with AVX2, strides 4 and 2 by ``Winograd``: 0.46, 0.82, 1.12, 1.58; 0.21, 0.43, 0.68, 0.84; 0.27, 0.54,
0.80, 1.04 (without it 0.45, 0.74, 1.09, 1.39; 0.29, 0.62, 0.90, 1.20; 0.34, 0.67, 1.09, 1.44). With its transforms
compiled ``Winograd`` is faster at any share: see ``pays``."""


def matched_share(mask: Tensor, height: int, width: int) -> Tensor:
    """Share of a level's positions whose correlation is computed and reduced for a mask, [B]: of squares in torch."""
    if _compiled(mask):
        return reached_share(mask, height, width)
    squares = F.max_pool2d(_reached(mask, height, width), TILE, ceil_mode=True)
    return enlarge(squares, TILE)[..., :height, :width].flatten(1).mean(1)


def reached_share(mask: Tensor, height: int, width: int) -> Tensor:
    """Share of a level's positions that are active or beside it, [B]: see ``_reached_share``."""
    return _reached_share(mask, block_side(mask, height, width))


@compiled_by("cpu.positions.reached_share")
def _reached_share(mask: Tensor, side: int) -> Tensor:
    """[B, 1, rows, columns] -> [B] fp32: counted by blocks of side x side positions, of which each that is not active
    has a row or column beside each active neighbour, and corners."""
    if side == 1:
        return largest_around(mask, 3).flatten(1).mean(1)
    beyond = F.pad(mask, (1, 1, 1, 1))
    rows, columns = mask.shape[-2:]

    def moved(down: int, across: int) -> Tensor:
        return beyond[..., 1 + down : 1 + down + rows, 1 + across : 1 + across + columns]

    corners = sum(
        torch.maximum(torch.maximum(moved(down, 0), moved(0, across)), moved(down, across))
        for down in (-1, 1)
        for across in (-1, 1)
    )
    between = (side - 2) * (moved(-1, 0) + moved(1, 0) + moved(0, -1) + moved(0, 1))
    return torch.lerp((between + corners) / side**2, torch.ones_like(mask), mask).flatten(1).mean(1)


def enlarged_share(mask: Tensor, height: int, width: int, dtype: torch.dtype, whole: bool) -> Tensor:
    """Work of the enlargement of what ``run_last_tiles`` made for a mask, as a share of the whole level's transposed
    convolution, [B]. Compiled code enlarges what is active, while it renders; torch also what is one position around,
    with the nine taps of 3x3 for the four that each pixel has. whole: whether all of it is asked for (``part``)."""
    if _compiled(mask) and not whole:
        return mask.flatten(1).mean(1)
    if strips.pays(dtype, mask.device):
        return mask.new_ones(len(mask))
    return reached_share(mask, height, width) * 9 / 4


def _compiled(mask: Tensor) -> bool:
    """Whether compiled code reads what a level is made of, and what the last one puts out."""
    return mask.device.type == "cpu" and cpu.available() and not torch.is_grad_enabled()


def pays(mask: Tensor, height: int, dtype: torch.dtype) -> bool:
    """Whether active blocks alone are faster than the whole level, of so many rows of positions, then masked. dtype: of
    its activations."""
    if strips.pays(dtype, mask.device):
        return True
    side = height // mask.shape[-2]
    if _tile(side, dtype, mask.device) > 1 and cpu.available():
        return True
    return float(mask.mean()) < PAYS_BELOW


def _tile(side: int, dtype: torch.dtype, device: torch.device) -> int:
    """Side of the squares of positions that are made together in blocks of side x side: those of ``Winograd``, or one
    by one. Compiled code makes squares that hold several blocks where any of these is active."""
    if not winograd.pays(dtype, device):
        return 1
    whole = side % winograd.TILE == 0
    several = winograd.TILE % side == 0 and cpu.available() and not torch.is_grad_enabled()
    return winograd.TILE if whole or several else 1


def _reached(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask of blocks -> what is active or beside it, 1 or 0, of a level's positions, [B, 1, height, width]."""
    return largest_around(enlarge(mask, block_side(mask, height, width)), 3)


class ActivePositions:
    """The positions that a mask leaves of a level, and where what is around them is read. A positions, in T tiles."""

    def __init__(self, mask: Tensor, height: int, width: int, dtype: torch.dtype) -> None:
        """mask: [B, 1, rows, columns], the grid of blocks over a level of height x width positions; dtype: of the
        activations."""
        side = block_side(mask, height, width)
        self.tile = _tile(side, dtype, mask.device)
        self._partial = self.tile > side
        multiple = ROUND if self.tile == 1 else 1
        self.needed, self.active, self.source, self.around, self.numbers = place(
            mask, height, width, self.tile, multiple
        )
        self.count = self.zero = len(self.active)
        """Positions that are made, and the row of zeros in a compact buffer of them."""
        self.at_once = _at_once(dtype, mask.device) if self.tile == 1 else winograd.BATCH
        """Tiles that are made at once."""

    def put(self, values: Tensor, whole: Tensor) -> None:
        """Write what was made of the active positions, [A, C], to where they are in the level, [B * H * W, C]."""
        if self._partial:
            made = (self.active >= 0).nonzero()[:, 0]
            values, active = values.index_select(0, made), self.active.index_select(0, made)
        else:
            active = self.active
        whole.index_copy_(0, active, values)

    def read_by(self) -> Tensor:
        """What reads the level's output around each of ``needed``, [U, 9] int32: rows of a compact buffer with a row of
        the bias after that of zeros."""
        numbers = self.numbers.clone()
        inner = numbers[:, 1:-1, 1:-1]
        inner[inner == self.zero] = self.zero + 1
        return _around(self.needed, numbers, 1)


@compiled_by("cpu.positions.place")
def place(
    mask: Tensor, height: int, width: int, tile: int, multiple: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Where a level of height x width positions is made and read for a mask [B, 1, rows, columns].

    It is made in T tiles of tile x tile positions; their number is filled up to a multiple with the last one, which is
    made again. Compiled code takes tiles that are larger than blocks too, of which any block is active. Returns

    - the rows of the level's dense input that are read, in order: the active positions and those beside them, [U];
    - the rows of the level that are made, tile by tile, -1 for those that are not active, [A];
    - which rows of a table of the first, with a row of zeros after them, a tile reads, [T, (tile + 2)^2] int32;
    - which rows of a buffer of the second, with a row of zeros after them, it reads, [T, (tile + 2)^2] int32;
    - the row of such a buffer of every position of the level and of those of a border of one, A where there is none,
      [B, height + 2, width + 2] int32.
    """
    wanted = enlarge(mask, block_side(mask, height, width))
    corners = wanted[..., ::tile, ::tile].flatten().nonzero()[:, 0]  # of a picture of tiles
    made = len(corners) * tile**2
    if made:
        corners = filled_up(corners, multiple)
    across = width // tile
    row = corners // across
    corners = row * (tile * width) + (corners - row * across) * tile
    inside = torch.arange(tile, device=mask.device)
    active = (corners[:, None] + (inside[:, None] * width + inside).flatten()).flatten()
    needed = largest_around(wanted, 3).flatten().nonzero()[:, 0]
    numbers = _numbers(needed, len(needed), mask.shape[0], height, width)
    source = _around(corners, numbers, tile)
    numbers = _numbers(active[:made], len(active), mask.shape[0], height, width)
    return needed, active, source, _around(corners, numbers, tile), numbers


def _bordered(positions: Tensor, height: int, width: int) -> Tensor:
    """From rows of a level to places in it with a border of one position."""
    row = positions // width
    places = (positions + (width + 3)).add_(row, alpha=2)
    return places.add_(row.floor_divide_(height), alpha=2 * (width + 2))


def _numbers(positions: Tensor, others: int, pictures: int, height: int, width: int) -> Tensor:
    """A level with its border, [B, H + 2, W + 2] int32: which of these positions is there, or the number of all
    others."""
    numbers = positions.new_full((pictures, height + 2, width + 2), others, dtype=torch.int32)
    here = torch.arange(len(positions), dtype=torch.int32, device=positions.device)
    numbers.view(-1).scatter_(0, _bordered(positions, height, width), here)
    return numbers


def _around(corners: Tensor, numbers: Tensor, tile: int) -> Tensor:
    """What is in and around tiles with their corners at these rows of a level [N], row by row, in numbers as
    ``_numbers`` returns them: [N, (tile + 2)^2] int32."""
    _, height, width = numbers.shape
    offsets = [down * width + across for down, across in product(range(-1, tile + 1), repeat=2)]
    places = _bordered(corners, height - 2, width - 2)[:, None] + torch.tensor(offsets, device=corners.device)
    return numbers.flatten().index_select(0, places.flatten()).view(-1, len(offsets))


def run_tiles(level: Level, inputs: SparseInputs | DenseInputs, mask: Tensor, height: int, width: int) -> Tensor:
    """A level of height x width positions from its inputs to its output: see ``run_level``. Not differentiable."""
    pictures = mask.shape[0]
    if strips.pays(inputs.dtype, mask.device):
        lines = strips.run(level, inputs, mask, height, width, None)[..., : level.outputs]
        return lines.view(pictures, height, width, level.outputs).permute(0, 3, 1, 2)
    positions = ActivePositions(mask, height, width, inputs.dtype)
    whole = level.bias().to(inputs.dtype).flatten().repeat(pictures * height * width, 1)  # [B * H * W, outputs]
    if positions.count:
        values = _run_layers(level, inputs, positions)
        positions.put(values[: positions.zero], whole)
    return whole.view(pictures, height, width, level.outputs).permute(0, 3, 1, 2)


def run_last_tiles(
    level: Level, synthesis: Synthesis, inputs: SparseInputs | DenseInputs, mask: Tensor, height: int, width: int
) -> LastOutput:
    """The last level from its inputs to full resolution: see ``run_level``, ``Synthesis``. Not differentiable.

    mask: [B, 1, rows, columns] over the level's height x width positions. What no active position is near costs neither
    warping nor convolutions: there the output is the bias, enlarged.
    """
    constant = ConstantOutput(level, synthesis, mask.shape[0], height, width)
    if strips.pays(inputs.dtype, mask.device):
        if not mask.any():
            return constant
        lines = strips.run(level, inputs, mask, height, width, synthesis.activation)
        bias = synthesis.activation(level.bias().to(inputs.dtype))
        return _StripsOutput(constant, lines.view(len(mask), height, width, -1), mask, bias, synthesis)
    positions = ActivePositions(mask, height, width, inputs.dtype)
    if not positions.count:
        return constant
    table = _run_layers(level, inputs, positions, synthesis.activation)
    return _SparseOutput(constant, positions, table, synthesis)


class LastOutput(Protocol):
    """What the last level puts out at full resolution, made where it is read."""

    def part(self, rows: slice, columns: slice) -> Tensor:
        """A rectangle of it with even sides and an even corner, [B, 8, rows, columns] fp32."""

    def lines(self, picture: int) -> tuple[Tensor, ...]:
        """One picture's for what reads it row by row, without making all of it. What does not apply is empty.

        Either all of it, [8, H, W] fp32; or what it is where nothing was computed, [8, 8, W] fp32: the first row, two
        that repeat from the third on, and the last. There, what was computed is told by the number of each position of
        the level, [H / 2 + 2, W / 2 + 2] int32 with a border, which is a row of a table [A, C] fp32 or none of it; by
        what is made of such a row, [C, 128] (row, output, column), for the four by four pixels of which the middle four
        are the position's; and by what is added to that, so that it is what differs from nothing computed, [1, 128].

        Or what was computed lies as it does in the level: numbers are 1 there and 0 elsewhere, [H / 2, W / 2] uint8;
        the table is flat, bf16, and what is made of it as ``cpu.products.in_blocks`` makes it.
        """


@dataclass(frozen=True)
class DenseOutput:
    """An output that is there already."""

    whole: Tensor
    """[B, 8, H, W] fp32."""

    def part(self, rows: slice, columns: slice) -> Tensor:
        """As ``LastOutput.part``; a view."""
        return self.whole[:, :, rows, columns]

    def lines(self, picture: int) -> tuple[Tensor, ...]:
        """As ``LastOutput.lines``."""
        nothing = self.whole.new_empty(0, 0)
        return self.whole[picture], nothing[None], nothing.int(), nothing, nothing, nothing


class ConstantOutput:
    """What the last level's bias alone is enlarged to: it repeats every two pixels, but for the border of one pixel,
    where the enlargement reaches outside."""

    def __init__(self, level: Level, synthesis: Synthesis, pictures: int, height: int, width: int) -> None:
        """Of a level of height x width positions."""
        small = synthesis.of_bias(level)
        self.bands = small[:, :, 2:4].repeat(1, 1, width)
        self.bands[:, :, 0], self.bands[:, :, -1] = small[:, :, 0], small[:, :, 7]
        """[8, 8, 2 * width] fp32: rows that differ are the first, two that repeat, and the last."""
        self.pictures, self.height, self.width = pictures, height, width

    def part(self, rows: slice, columns: slice) -> Tensor:
        """As ``LastOutput.part``."""
        bands = self.bands[:, :, columns]
        outputs, _, width = bands.shape
        length = rows.stop - rows.start
        part = bands.new_empty((self.pictures, outputs, length // 2, 2, width))
        part.copy_(bands[:, None, 2:4])
        out = part.view(self.pictures, outputs, length, width)
        if rows.start == 0:
            out[:, :, 0] = bands[:, 0]
        if rows.stop == 2 * self.height:
            out[:, :, -1] = bands[:, -1]
        return out

    def lines(self, picture: int) -> tuple[Tensor, ...]:
        """As ``LastOutput.lines``."""
        bands = self.bands.float()
        nothing = bands.new_empty(0, 0)
        return nothing[None], bands, nothing.int(), nothing, nothing, nothing


class _SparseOutput:
    """What the last level puts out where a few of its positions are active."""

    def __init__(
        self, constant: ConstantOutput, positions: ActivePositions, table: Tensor, synthesis: Synthesis
    ) -> None:
        """table: what ``_run_layers`` returns, activated."""
        self._constant = constant
        self._positions = positions
        self._table = table
        self._enlarge = synthesis.enlarge

    def part(self, rows: slice, columns: slice) -> Tensor:
        """As ``LastOutput.part``."""
        constant, needed = self._constant, self._positions.needed
        out = constant.part(rows, columns)
        pictures, outputs, length, width = out.shape
        all_around, (kernel, bias) = self._positions.read_by(), self._enlarge.as_3x3(self._table.dtype)
        all_rows = needed // constant.width
        all_columns = needed - all_rows * constant.width
        # Where each row of each picture begins among what is needed, and where the last one ends.
        begins = torch.arange(constant.pictures * constant.height + 1, device=needed.device) * constant.width
        starts = torch.searchsorted(needed, begins).tolist()
        all_rows = all_rows % constant.height if constant.pictures > 1 else all_rows
        pairs = out.view(torch.int64)  # two pixels of a row are written at once
        planes = torch.arange(outputs, device=out.device)[:, None] * (length * width // 2)
        within = (planes + torch.tensor([0, width // 2], device=out.device)).flatten()  # [16]
        first_row, first_column = rows.start // 2, columns.start // 2
        for picture in range(pictures):
            above = picture * constant.height
            start, stop = (starts[above + edge // 2] for edge in (rows.start, rows.stop))
            for some in _batches(start, stop, _at_once(self._table.dtype, out.device)):
                around, row, column = all_around[some], all_rows[some] - first_row, all_columns[some] - first_column
                if width < 2 * constant.width:
                    inside = ((column >= 0) & (column < width // 2)).nonzero()[:, 0]
                    if not len(inside):
                        continue
                    around, row, column = (values.index_select(0, inside) for values in (around, row, column))
                made = linear(_gathered(self._table, filled_up(around, ROUND)), kernel)
                made = made[: len(around)].float().add_(bias)
                place = row.mul_(width).add_(column)
                pairs[picture].view(-1).scatter_(
                    0, (place[:, None] + within).flatten(), made.view(torch.int64).flatten()
                )
        return out

    def lines(self, picture: int) -> tuple[Tensor, ...]:
        """As ``LastOutput.lines``."""
        whole, bands, *_ = self._constant.lines(picture)
        kernel = self._enlarge.weight.float().permute(0, 2, 1, 3).flatten(1)  # [C, 4 * 8 * 4]
        table, numbers = self._table[: self._positions.count].float(), self._positions.numbers[picture]
        # The last row of the table is what is read where nothing was computed.
        return whole, bands, numbers, table, kernel, -self._table[-1:].float() @ kernel


def _taps(weight: Tensor) -> Tensor:
    """What a 4x4 transposed convolution [C, O, 4, 4] in bf16 makes of a position (row, output, column)."""
    return weight.bfloat16().float().permute(0, 2, 1, 3).flatten(1)


class _StripsOutput:
    """What the last level puts out where strips made it."""

    def __init__(
        self, constant: ConstantOutput, lines: Tensor, mask: Tensor, bias: Tensor, synthesis: Synthesis
    ) -> None:
        """lines: what ``strips.run`` returns, activated, [B, H / 2, W / 2, C]; bias: what it would be elsewhere,
        [1, C', 1, 1]."""
        self._constant, self._lines, self._mask, self._bias = constant, lines, mask, bias
        self._enlarge = synthesis.enlarge

    def part(self, rows: slice, columns: slice) -> Tensor:
        """As ``LastOutput.part``."""
        # The enlargement reads one position more on each side, where there is one.
        spans, cuts = [], []
        for span, length in zip((rows, columns), self._lines.shape[1:3], strict=True):
            first, last = max(span.start // 2 - 1, 0), min(span.stop // 2 + 1, length)
            spans.append(slice(first, last))
            cuts.append(slice(span.start - 2 * first, span.stop - 2 * first))
        there = enlarge(self._mask, block_side(self._mask, *self._lines.shape[1:3])) > 0
        read = self._lines[:, spans[0], spans[1], : self._enlarge.in_channels].permute(0, 3, 1, 2)
        read = torch.where(there[:, :, spans[0], spans[1]], read, self._bias)
        made: Tensor = self._enlarge(read)[:, :, cuts[0], cuts[1]]
        return made.contiguous().float()

    def lines(self, picture: int) -> tuple[Tensor, ...]:
        """As ``LastOutput.lines``."""
        from ugsp_net.cpu.products import enlargement

        whole, bands, *_ = self._constant.lines(picture)
        there = enlarge(self._mask[picture : picture + 1], block_side(self._mask, *self._lines.shape[1:3]))[0, 0] > 0
        kernel = self._enlarge.kept(_taps)  # [C, 4 * 8 * 4]
        table, less = self._lines[picture].flatten(), -self._bias[:, :, 0, 0].float() @ kernel
        return whole, bands, there.to(torch.uint8), table, self._enlarge.kept(enlargement), less


def _run_layers(
    level: Level, inputs: SparseInputs | DenseInputs, positions: ActivePositions, activation: Activation | None = None
) -> Tensor:
    """The level's output in a compact buffer, then a row of zeros and one of the bias, [A + 2, outputs]; with an
    activation, what that makes of all this."""
    leaky = activation is None or activation.slope is None
    kept = ((conv.kept(winograd.Winograd), made) for conv, made in level.layers)
    in_twos = positions.tile > 1 and leaky and all(conv.projects(made) for conv, made in kept)
    run = _run_in_twos if in_twos else _run_in_turn
    # The inputs are held by what reads them alone, which lets go of them after the first layer.
    return run(level, inputs.rows(positions.needed), positions, activation)


def _projections(level: Level, dtype: torch.dtype, columns: int) -> tuple[Tensor, list[Tensor]]:
    """The projection's bias [P] and each layer's part of it, [K, P], with so many columns of zeros."""
    bias = F.pad(level.bias().to(dtype).flatten(), (0, columns))
    return bias, [
        F.pad(level.projection(layer, dtype).flatten(1).T, (0, columns)) for layer in range(len(level.layers))
    ]


def _run_in_turn(level: Level, rows: Tensor, positions: ActivePositions, activation: Activation | None) -> Tensor:
    """``_run_layers``, one layer after the other. rows: those that are needed, and one of zeros, [U + 1, inputs]."""
    in_tiles = positions.tile > 1
    bias, weights = _projections(level, rows.dtype, 0)
    projected = bias.repeat(positions.zero + 2, 1)
    projected[positions.zero] = 0
    numbers = positions.source
    several = GROUP * positions.at_once
    for (conv, made_of_it), weight in zip(level.layers, weights, strict=True):
        compact = rows.new_empty(positions.zero + 1, level.width)
        compact[-1] = 0
        make = _by_tiles(conv, made_of_it) if in_tiles else _one_by_one(conv, made_of_it, rows.dtype)
        # All that is done to batches is done while they are in the cache.
        for group in _batches(0, len(numbers), several):
            batches = list(_batches(group.start, group.stop, positions.at_once))
            for some in batches:
                make(rows, numbers[some], compact[_of_tiles(some, positions.tile)])
            # The last group has more sizes than oneDNN should have to prepare products for.
            for some in [group] if group.stop - group.start == several else batches:
                made = _of_tiles(some, positions.tile)
                projected[made].addmm_(compact[made], weight)
        rows, numbers = compact, positions.around
    return projected if activation is None else activation(projected)


def _run_in_twos(level: Level, rows: Tensor, positions: ActivePositions, activation: Activation | None) -> Tensor:
    """The same by compiled code: two layers at a time, the first one alone where their number is odd. So what lies
    between two need not leave the cache: the last level's layers took a sixth less time, and more than two at once no
    less."""
    bias, weights = _projections(level, rows.dtype, -level.outputs % winograd.COLUMNS)
    slope = 1.0 if activation is None else LEAKY_SLOPE
    projected = rows.new_empty(positions.zero + 2, len(bias))
    projected[positions.zero], projected[positions.zero + 1] = 0, torch.where(bias < 0, slope * bias, bias)
    convs = [conv.kept(winograd.Winograd) for conv, _ in level.layers]
    made, begun = projected[: positions.zero], bias[None]
    numbers, start = positions.source, 0
    while start < len(convs):
        stop = start + 2 - (len(convs) - start) % 2
        last = stop == len(convs)
        # Of the last two layers nobody reads the second.
        compact = rows.new_empty(0 if last and stop - start == 2 else positions.zero + 1, level.width)
        some, how = slice(start, stop), (begun if start == 0 else begun[:0], slope if last else 1.0)
        winograd.project(convs[some], rows, numbers, positions.around, compact[:-1], made, weights[some], *how)
        compact[-1:] = 0
        rows, numbers, start = compact, positions.around, stop
    return projected[:, : level.outputs]


def _one_by_one(conv: Conv, activation: Activation, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], None]:
    """What convolves positions: from rows [R, inputs] and which of them each of N positions reads, [N, 9], to
    [N, width], which it fills."""
    kernel = conv.weight.to(dtype).permute(0, 2, 3, 1).flatten(1)  # [width, 9 * inputs]

    def make(rows: Tensor, around: Tensor, out: Tensor) -> None:
        out.copy_(linear(_gathered(rows, around), kernel, activation))

    return make


def _by_tiles(conv: Conv, activation: Activation) -> Callable[[Tensor, Tensor, Tensor], None]:
    """The same for tiles; what it fills is [16 N, width], as ``Winograd`` does."""
    convolve = conv.kept(winograd.Winograd)
    return lambda rows, around, out: convolve(rows, around, activation, out)


def _of_tiles(tiles: slice, side: int) -> slice:
    """The positions of these tiles."""
    return slice(tiles.start * side**2, tiles.stop * side**2)


def _batches(start: int, stop: int, most: int) -> Iterator[slice]:
    """What lies between, in parts of at most so many."""
    return (slice(first, min(first + most, stop)) for first in range(start, stop, most))


def _at_once(dtype: torch.dtype, device: torch.device) -> int:
    """Positions that are gathered at once."""
    if device.type != "cpu":
        return LAUNCH
    return BATCH_FP32 if dtype == torch.float32 else BATCH


def _gathered(rows: Tensor, around: Tensor) -> Tensor:
    """Rows [R, C] by their numbers [N, 9], beside each other: [N, 9 * C]."""
    return rows.index_select(0, around.flatten()).view(len(around), -1)
