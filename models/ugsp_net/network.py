"""UGSP: frame interpolation whose convolutions are pruned where the motion is easy (paper, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ugsp_net import cpu, gpu, matching
from ugsp_net.blocks import Activation, Conv, Convolutions, Encoder, Level, Synthesis, by_kernels, freeze
from ugsp_net.compiled import compiled_by
from ugsp_net.config import STRIDES, NetConfig
from ugsp_net.gpu.graphs import forget, replayed
from ugsp_net.masks import (
    Gate,
    agreement,
    block_logits,
    block_side,
    bounds,
    change,
    empty_gate,
    enlarge,
    moving_blocks,
    still_pixels,
    to_grid,
)
from ugsp_net.paths import carry, trace
from ugsp_net.pooling import halve
from ugsp_net.refinement import Refinement
from ugsp_net.rendering import put_rendered, rendered
from ugsp_net.search import CELL, POINT, STRIDE, inverse_search
from ugsp_net.sparse import (
    ConstantOutput,
    DenseOutput,
    LastOutput,
    Matching,
    SparseInputs,
    pays,
    run_kernels,
    run_last_kernels,
    run_last_tiles,
    run_level,
    run_tiles,
    strips,
    winograd,
)
from ugsp_net.sparse.squares import SquaresOutput
from ugsp_net.warp import backward_warp, upsample

MEAN = 0.45
"""Subtracted from frames in [0, 1]. A constant, not the pair's mean, so that a frame's features serve every pair."""
SCALE = 4.0
"""Applied after it: frames reach the encoder with about unit variance."""

FLOW_BOUND = 4.0
"""Flow that was found enters a level as a number of at most so many positions. Longer flow is rare in training crops:
told as it is, it made levels bend a clean pan of 25 pixels to and fro (hdr10-av1 39.7 dB, bounded 40.1; the other clips
within 0.04)."""

BESIDE = 2
"""Blocks around the rectangle that holds all that changes in which flow is searched too."""


@dataclass(frozen=True)
class Encoding:
    """What one source frame costs once: its features serve both its pairs and every instant."""

    features: tuple[Tensor, ...]
    """[B, C_l, H / s, W / s] at strides 2, 4, 8, 16."""
    context: tuple[Tensor, ...] = ()
    """The same for the refinement; empty in a network without one."""
    places: tuple[Tensor, ...] = ()
    """[B] int64 for each of the features, which then have no memory (device ``meta``): addresses of each frame's,
    channels last and laid out alike. So a card reads features where they lie, and a graph those of any frames."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Encoding:
        """The function applied to every tensor."""
        return Encoding(tuple(map(function, self.features)), tuple(map(function, self.context)))

    def chunk(self, count: int) -> tuple[Encoding, ...]:
        """The batch in ``count`` parts, in order, as ``torch.chunk`` divides it."""

        def part(index: int) -> Encoding:
            return self.map(lambda tensor: tensor.chunk(count)[index])

        return tuple(part(index) for index in range(count))

    def part(self, rows: slice, columns: slice) -> Encoding:
        """Of a rectangle, in pixels, multiples of the last stride; views."""

        def cut(features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(
                of_all[
                    :, :, rows.start // stride : rows.stop // stride, columns.start // stride : columns.stop // stride
                ]
                for stride, of_all in zip(STRIDES, features, strict=False)
            )

        return Encoding(cut(self.features), cut(self.context))

    @staticmethod
    def join(encodings: Sequence[Encoding]) -> Encoding:
        """One batch of several encodings of one network; a copy is saved where there is one."""
        if len(encodings) == 1:
            return encodings[0]
        features = zip(*(encoding.features for encoding in encodings), strict=True)
        context = zip(*(encoding.context for encoding in encodings), strict=True)
        return Encoding(tuple(map(torch.cat, features)), tuple(map(torch.cat, context)))


@dataclass(frozen=True)
class Compared:
    """What two frames that follow each other show at a first look."""

    changed: Tensor
    """[B, 2, H, W] fp32 or bf16, from ``change``."""
    agree: Tensor
    """[B, 1, rows, columns] bool: blocks of the masks' grid at stride 8 in which they agree, from ``agreement``."""
    looked: tuple[Tensor, ...] = ()
    """What a search sees of both, [2, B, C, h, w] each, where it has been looked at."""

    def split(self) -> list[Compared]:
        """Of each pair; views."""
        parts = [one.split(1, dim=1) for one in self.looked]
        pairs = zip(self.changed.split(1), self.agree.split(1), strict=True)
        return [Compared(*pair, tuple(part[index] for part in parts)) for index, pair in enumerate(pairs)]

    @staticmethod
    def join(compared: Sequence[Compared]) -> Compared:
        """One batch of several; a copy is saved where there is one."""
        if len(compared) == 1:
            return compared[0]
        looked = zip(*(one.looked for one in compared), strict=True)
        return Compared(
            torch.cat([one.changed for one in compared]),
            torch.cat([one.agree for one in compared]),
            tuple(torch.cat(some, dim=1) for some in looked),
        )


@dataclass(frozen=True)
class Found:
    """What the search found, at the instant: where every level begins."""

    flows: tuple[Tensor, ...]
    """[B, 4, H / s, W / s] fp32 at strides 2, 4, 8, 16, in positions of each."""
    prior: Tensor
    """[B, 1, H / 2, W / 2] fp32: a first guess of the blend, as ``carry`` returns it."""
    still: Tensor
    """[B, 1, H / 2, W / 2] fp32: what stands still before it all, as ``carry`` returns it."""

    @classmethod
    def of(cls, found: Tensor) -> Found:
        """From what ``carry`` returns."""
        return cls((found[:, :4], *_smaller_flows(found[:, :4])), found[:, 4:5], found[:, 5:])

    def __getitem__(self, some: slice) -> Found:
        """Part of the batch."""
        return Found(tuple(flow[some] for flow in self.flows), self.prior[some], self.still[some])


@dataclass(frozen=True)
class LevelState:
    """What one level hands to the next finer one."""

    flow: Tensor
    """[B, 4, H / s, W / s] fp32: t -> 0 (x, y), t -> 1 (x, y), in positions of this level."""
    feature: Tensor
    """[B, C, H / s, W / s]."""
    found: Found | None = None
    """None in a network without a search. A level's flow is what was found and what the levels so far add."""
    bent: bool = True
    """Whether they add anything."""

    def __getitem__(self, some: slice) -> LevelState:
        """Part of the batch."""
        found = None if self.found is None else self.found[some]
        return LevelState(self.flow[some], self.feature[some], found, self.bent)

    def enlarged(self) -> Tensor:
        """The flow as the next finer level begins with it, in positions of that level: what the levels added is
        enlarged, what the search found is taken as it is there."""
        if self.found is None:
            return 2 * upsample(self.flow)
        sizes = [flow.shape[-1] for flow in self.found.flows]
        here = sizes.index(self.flow.shape[-1])
        begun = self.found.flows[here - 1]
        return _enlarged(begun, self.flow, self.found.flows[here]) if self.bent else begun


@compiled_by("cpu.flows.smaller_flows", "gpu.flows.smaller_flows")
def _smaller_flows(flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flow [B, 4, H / 2, W / 2] at stride 2 at the strides 4, 8 and 16, in positions of each."""
    once = halve(flow) / 2
    twice = halve(once) / 2
    return once, twice, halve(twice) / 2


@compiled_by("cpu.flows.enlarged", "gpu.flows.enlarged")
def _enlarged(begun: Tensor, flow: Tensor, found: Tensor) -> Tensor:
    """A level's flow, [B, 4, H, W]: what was found there, and what the levels above added to what was found at theirs,
    [B, 4, H / 2, W / 2] each."""
    return begun + 2 * upsample(flow - found)


@compiled_by("cpu.flows.bent", "gpu.flows.bent")
def _bent(flow: Tensor, added: Tensor, pace: Tensor) -> Tensor:
    """Flow [B, 4, H, W] fp32 and what a level adds, of any float type, at the pace [B or 1, 4, 1, 1]."""
    return flow + added.float() * pace


@dataclass(frozen=True)
class _Levels:
    """What the pruned levels make of a batch of pairs."""

    out: LastOutput
    flow: Tensor
    """The flow at stride 2, as the last level begins with it."""
    moving: Tensor | None
    """[B, 1, rows, columns]: blocks in which something may move, 1 or 0; None without a gate."""
    masks: tuple[Tensor, ...]
    """This and the rest as in ``Interpolation``."""
    logits: tuple[Tensor, ...]
    states: tuple[LevelState, ...]
    hidden: Tensor | None


@dataclass(frozen=True)
class Interpolation:
    """A frame made between two others, and how."""

    frame: Tensor
    """[B, 3, H, W] fp32, RGB, about [0, 1] (not clamped)."""
    flow: Tensor
    """[B, 4, H, W] fp32: t -> 0 (x, y), t -> 1 (x, y), in pixels. Of no rows where it was not asked for."""
    blend: Tensor
    """[B, 1, H, W] fp32 in (0, 1): the weight of the first frame. Of no rows where it was not asked for."""
    masks: tuple[Tensor, ...]
    """One per pruned level, coarse to fine (strides 8, 4, 2), [B, 1, rows, columns]; empty without a gate."""
    logits: tuple[Tensor, ...]
    """What the masks were made of, in the same order and shape; fp32. Only what nothing prunes has them all."""
    states: tuple[LevelState, ...]
    """Strides 16, 8, 4: for losses on intermediate flow and features."""
    hidden: Tensor | None
    """[B, width, H / 2, W / 2]: the last level's output before it is enlarged, for losses; None where tiles made it."""
    unrefined: Tensor
    """[B, 3, H, W] fp32: the frame before the refinement, as ``UGSP.shortcut`` makes it; else ``frame`` itself."""


class UGSP(nn.Module):
    """The network of one configuration. ``encode``, ``find``, ``coarse`` and ``interpolate`` are its steps."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self._frozen_dtype: torch.dtype | None = None
        channels = config.encoder_channels
        self.encoder = Encoder(config)
        self.levels = nn.ModuleList()
        self.gates = nn.ModuleList()
        self.reducers = nn.ModuleList()
        for index in range(len(STRIDES)):
            coarsest = index == len(STRIDES) - 1
            matched = config.matching_channels[index] if config.matching_radius[index] else 0
            inputs = 2 * channels[index] + matched
            if not coarsest:
                inputs += channels[index] + 4
            if config.any_instant:
                inputs += 1
            outputs = config.widths[0] if index == 0 else 4 + channels[index - 1]
            self.levels.append(
                Level(config, inputs, config.widths[index], config.depths[index], outputs, pruned=not coarsest)
            )
            if index > 0:
                self.gates.append(Conv(channels[index - 1], 1))
            if matched:
                count = (2 * config.matching_radius[index] + 1) ** 2
                reducer = Convolutions(Conv(count, matched, kernel=1), Activation(config.activation, matched))
                self.reducers.append(reducer)
            else:
                self.reducers.append(nn.Identity())
        self.synthesis = Synthesis(config, config.widths[0])
        self.refinement = Refinement(config) if config.refine else None
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation; what leaves a level starts small, so that training begins from the matched flow.

        What leaves the refinement starts at zero: training begins from the network without it.
        """
        he_initialise(self)
        if self.refinement is not None:
            nn.init.zeros_(self.refinement.last.weight)
        with torch.no_grad():
            for index in range(1, len(self.levels)):
                self._level(index).project.weight[:4] *= 0.1
            self.synthesis.enlarge.weight *= 0.1
            for gate in self.gates:
                assert isinstance(gate, Conv)
                gate.weight *= 0.1

    @property
    def frozen(self) -> bool:
        """Whether the weights stay what and where they are, so that kernels may be captured with them in CUDA graphs,
        and what is made of them need not be made again."""
        return self._frozen_dtype is not None

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._frozen_dtype = self.synthesis.enlarge.weight.dtype if frozen else None
        freeze(self, frozen)
        forget()  # graphs read what was made of the weights, which is gone

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations: autocast's where it is on, else the weights'."""
        if self._frozen_dtype is not None:
            return self._frozen_dtype
        device = self.synthesis.enlarge.weight.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.synthesis.enlarge.weight.dtype

    def encode(self, frame: Tensor) -> Encoding:
        """Features of frames [B, 3, H, W], RGB in [0, 1], both sides multiples of ``config.alignment``."""
        context = () if self.refinement is None else self.refinement.encode(self._normalised(frame))
        compiled = self._compiled_encoder(frame)
        if compiled is not None:
            return Encoding(tuple(compiled(self.encoder, frame.float(), SCALE, -MEAN * SCALE)), context)
        conv, activation = self.encoder.first
        if activation.slope is None and by_kernels(frame):
            from ugsp_net.gpu.encoder import first_features

            first = first_features(conv, frame.float(), SCALE, -MEAN * SCALE, self.dtype)
            return Encoding(tuple(self.encoder.after_first(first)), context)
        return Encoding(tuple(self.encoder(self._normalised(frame))), context)

    def _compiled_encoder(self, frame: Tensor) -> Callable[[Encoder, Tensor, float, float], list[Tensor]] | None:
        """What encodes in compiled code on a processor, if anything does."""
        if torch.is_grad_enabled() or not cpu.available() or self.config.activation != "leaky":
            return None
        channels = self.config.encoder_channels
        if strips.pays(self.dtype, frame.device) and not any(count % 16 for count in channels):
            from ugsp_net.cpu import encoder_bf16

            return encoder_bf16.encode
        if winograd.pays(self.dtype, frame.device) and min(channels) >= 8:
            from ugsp_net.cpu import encoder

            return encoder.encode
        return None

    @torch.no_grad()
    def compare(self, frame0: Tensor, frame1: Tensor) -> Compared:
        """Look at both frames of pairs, [B, 3, H, W] each: on a card for all that ``match`` needs of them, so that they
        are read once."""
        looked: tuple[Tensor, ...] = ()
        if self.config.search and frame0.dtype == torch.float32 and by_kernels(frame0):
            from ugsp_net.gpu.pictures import compared

            changed, *seen = compared(frame0, frame1)
            looked = tuple(one.unflatten(0, (2, -1)) for one in seen)
        else:
            changed = change(frame0, frame1)
        return Compared(changed, agreement(changed, self.agreement_side), looked)

    @property
    def agreement_side(self) -> int:
        """Pixels along the sides of the blocks in which frames are compared."""
        return self.config.grid_stride(STRIDES.index(8))

    @torch.no_grad()
    def match(
        self,
        frame0: Tensor,
        frame1: Tensor,
        compared: Compared | None = None,
        looked: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor | None:
        """The pair's flow by search, [B, 4, H / 4, W / 4] fp32 as ``inverse_search`` returns it; serves every instant,
        and the pairs before and after. compared: from ``compare``, if it is known; looked: what a search sees of either
        frame, from ``search.look``, where ``compared`` does not hold it and it is known.

        What moves is at one place in one frame and at another one in the other, and both change: outside the rectangle
        that holds all that changes nothing is searched. None in a network without a search.
        """
        if not self.config.search:
            return None
        if compared is None:
            compared = self.compare(frame0, frame1)
        side, agree = self.agreement_side, compared.agree
        batch, _, height, width = frame0.shape
        if by_kernels(frame0):  # to which patches that fit cost next to nothing; to ask where they are would be to wait
            return inverse_search(frame0, frame1, agree, BESIDE, [one.flatten(0, 1) for one in compared.looked])
        flow = frame0.new_zeros((batch, 4, height // POINT, width // POINT), dtype=torch.float32)
        box = bounds(~agree)
        if box is not None:
            starts = [side * max(0, span.start - BESIDE) for span in box]
            stops = [side * (span.stop + BESIDE) for span in box]
            rows, columns = (slice(start, stop) for start, stop in zip(starts, stops, strict=True))
            seen = [
                torch.cat([one[..., _at(rows, stride), _at(columns, stride)] for one in both])
                for both, stride in zip(zip(*looked, strict=True), (STRIDE, POINT), strict=False)
            ]
            found = inverse_search(frame0[..., rows, columns], frame1[..., rows, columns], looked=seen)
            top, left = (start // POINT for start in starts)
            flow[..., top : top + found.shape[-2], left : left + found.shape[-1]] = found
        return flow

    @torch.no_grad()
    def find(
        self,
        frame0: Tensor,
        frame1: Tensor,
        t: Tensor,
        before: Tensor | None = None,
        after: Tensor | None = None,
        intervals: Tensor | None = None,
    ) -> Tensor | None:
        """What ``coarse`` begins with, from the pair and the frames before and after it, where they are known:
        [B, 6, H / 2, W / 2] fp32 as ``carry`` returns it. ``match``, ``trace`` and ``carry`` are its steps.

        intervals: as for ``trace``. None in a network without a search.
        """
        compared = self.compare(frame0, frame1)
        flow, changed = self.match(frame0, frame1, compared), compared.changed
        if flow is None:
            return None
        flows: list[Tensor | None] = [None, None]
        there_are = torch.zeros_like(t, dtype=torch.bool)
        for index, (one, other) in enumerate(((before, frame0), (frame1, after))):
            if one is None or other is None:
                continue
            between = self.compare(one, other)
            flows[index] = self.match(one, other, between)
            there_is = torch.ones_like(there_are) if intervals is None else intervals[:, index] > 0
            changed = torch.maximum(changed, between.changed * there_is.view(-1, 1, 1, 1))
            there_are = there_are | there_is
        still = still_pixels(frame0, frame1, changed) * there_are.view(-1, 1, 1, 1)
        return carry(trace(flow, flows[0], flows[1], intervals, still), t)

    def coarse(self, first: Encoding, second: Encoding, found: Tensor | None, t: Tensor) -> LevelState:
        """The coarsest level, which is never pruned: bilateral flow and a feature at stride 16.

        found: from ``find``; t: [B] fp32.
        """
        index = len(STRIDES) - 1
        if found is None:
            left = first.features[index]
            flow = left.new_zeros((left.shape[0], 4, *left.shape[-2:]), dtype=torch.float32)
            guide = None
        else:
            guide = Found.of(found)
            flow = guide.flows[index]
        if by_kernels(flow) and not self.config.matching_radius[index]:
            from ugsp_net.gpu.inputs import coarsest

            when, places = t if self.config.any_instant else None, _places(index, first, second)
            inputs = coarsest(first.features[index], second.features[index], flow, when, self.dtype, places)
        elif self.config.matching_radius[index]:
            inputs = self._join(self._inputs(index, first, second, None, flow), None, t)
        else:
            when = t if self.config.any_instant else None
            inputs = _coarsest_inputs(first.features[index], second.features[index], flow, when, self.dtype)
        out = run_level(self._level(index), inputs, None, "reference")
        return self._refined(index, flow, out, t, guide, bent=False)

    def interpolate(
        self,
        frame0: Tensor,
        frame1: Tensor,
        first: Encoding,
        second: Encoding,
        coarse: LevelState,
        t: Tensor,
        gate: Gate | None = None,
        backend: str = "reference",
        agree: Tensor | None = None,
        motion: bool = True,
        picture: Tensor | None = None,
    ) -> Interpolation:
        """The frame at the instant t between two frames.

        frame0, frame1: [B, 3, H, W] in [0, 1]; first, second: their encodings; coarse: from ``coarse``; t: [B] fp32
        in (0, 1). Without a gate nothing is pruned: the dense network. With one, blocks in which
        nothing moves are pruned without asking it, and there both frames are blended where they are. agree: as in
        ``Compared``, if it is known; motion: whether flow and blend are wanted at full size; picture: [B, 3, H, W],
        perhaps part of a larger picture: where flow is not wanted and nothing refines it, it becomes the frame.
        """
        if gate is not None and agree is None:
            agree = self._agreement(frame0, frame1)
        made = self._levels(first, second, coarse, t, gate, backend, agree if gate is not None else None)
        how = t, coarse.found, made.moving, motion, picture
        unrefined, flow, blend, warped = self._render(frame0, frame1, made.flow, made.out, *how)
        frame = unrefined
        if self.refinement is not None:
            pictures = self._normalised(torch.cat((frame0, frame1, *warped), dim=1))
            frame = unrefined + self.refinement(pictures, blend, flow, first.context, second.context)
        return Interpolation(frame, flow, blend, made.masks, made.logits, made.states, made.hidden, unrefined)

    def make(
        self,
        frame0: Tensor,
        frame1: Tensor,
        first: Sequence[Encoding],
        second: Sequence[Encoding],
        found: Tensor | None,
        t: Tensor,
        gate: Gate | None = None,
        backend: str = "reference",
        agree: Tensor | None = None,
        motion: bool = True,
        picture: Tensor | None = None,
    ) -> Interpolation:
        """``coarse`` and ``interpolate``, whose arguments these are; but encodings are those of all frames in parts,
        and logits and states of levels may be left out.

        The kernels of a network whose weights stay as they are (``frozen``) are one CUDA graph, but for those that see
        frames at full size: they are a hundred small launches.
        """
        graphed = self.frozen and backend == "triton" and self.refinement is None and not torch.is_grad_enabled()
        graphed &= found is not None and gpu.available(t.device) and not self.config.matching_radius[-1]
        if not graphed:
            one, other = Encoding.join(first), Encoding.join(second)
            coarse = self.coarse(one, other, found, t)
            return self.interpolate(frame0, frame1, one, other, coarse, t, gate, backend, agree, motion, picture)
        assert found is not None
        layouts, addresses, kept = _lying(first, second, t.device)
        given = [addresses, found, t]
        if gate is not None:
            given.append(self._agreement(frame0, frame1) if agree is None else agree)
        levels = partial(self._levels_of, gate, layouts)
        flow, squares, reached, bands, *rest = replayed(levels, (self, gate, layouts), *given)
        del kept  # what was read has been told
        moving, masks = (rest[0], tuple(mask.clone() for mask in rest[1:])) if gate is not None else (None, ())
        guide = Found((), found[:, 4:5], found[:, 5:])
        out = SquaresOutput(squares, reached, bands)
        frame, flow, blend, _ = self._render(frame0, frame1, flow, out, t, guide, moving, motion, picture)
        return Interpolation(frame, flow, blend, masks, (), (), None, frame)

    def _levels_of(
        self, gate: Gate | None, layouts: tuple[_Layout, ...], addresses: Tensor, *given: Tensor
    ) -> tuple[Tensor, ...]:
        """What ``make`` captures: the flow, the last level's squares, and with a gate what moves and the masks."""
        found, t, *agree = given
        features = tuple(layout.meta(len(t)) for layout in layouts)
        first, second = (Encoding(features, places=tuple(places.unbind())) for places in addresses.unbind())
        coarse = self.coarse(first, second, found, t)
        made = self._levels(first, second, coarse, t, gate, "triton", agree[0] if agree else None)
        assert isinstance(made.out, SquaresOutput)
        moving = () if made.moving is None else (made.moving,)
        reached = made.out.reached
        assert reached is not None
        return made.flow, made.out.squares, reached, made.out.bands, *moving, *made.masks

    def _levels(
        self,
        first: Encoding,
        second: Encoding,
        coarse: LevelState,
        t: Tensor,
        gate: Gate | None,
        backend: str,
        agree: Tensor | None,
    ) -> _Levels:
        """The pruned levels. agree: from ``_agreement``, with a gate; the others as in ``interpolate``."""
        states = [coarse]
        masks: list[Tensor] = []
        moving = None if agree is None else self._moving(agree, coarse.flow)
        all_logits: list[Tensor] = []
        for index in range(len(STRIDES) - 2, -1, -1):
            above = states[-1]
            mask = None
            parent = masks[-1] if masks else moving
            grid = [
                STRIDES[index + 1] * length // self.config.grid_stride(index) for length in above.feature.shape[-2:]
            ]
            if parent is not None and list(parent.shape[-2:]) != grid:
                parent = parent.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            logits = self._logits(index, above.feature, parent)
            all_logits.append(logits)
            if gate is not None:
                mask = gate(logits, parent)
                masks.append(mask)
            flow = above.enlarged()
            level = self._level(index)
            height, width = flow.shape[-2:]
            in_tiles = backend == "tiles" and not torch.is_grad_enabled()
            in_kernels = backend == "triton" and not torch.is_grad_enabled() and gpu.available(flow.device)
            # Where tiles are faster whatever is active, the dense network is made of them too; kernels always are.
            computed = torch.ones_like(logits) if mask is None and (in_tiles or in_kernels) else mask
            hidden: Tensor | None = None
            made: LastOutput | None = None
            if computed is not None and in_kernels:
                sparse = self._sparse_inputs(index, first, second, above.feature, flow, t)
                if index == 0:
                    made = run_last_kernels(level, self.synthesis, sparse, computed)
                else:
                    out = run_kernels(level, sparse, computed)
            elif computed is not None and in_tiles and pays(computed, height, self.dtype):
                sparse = self._sparse_inputs(index, first, second, above.feature, flow, t)
                if index == 0:
                    made = run_last_tiles(level, self.synthesis, sparse, computed, height, width)
                else:
                    out = run_tiles(level, sparse, computed, height, width)
            else:
                inputs = self._whole_inputs(index, first, second, above.feature, flow, t)
                out = hidden = run_level(level, inputs, mask, backend)
            if index > 0:
                states.append(self._refined(index, flow, out, t, above.found, above.bent))
        if made is None:
            assert hidden is not None
            made = DenseOutput(self.synthesis(hidden.to(self.dtype, memory_format=torch.channels_last)))
        return _Levels(made, flow, moving, tuple(masks), tuple(all_logits), tuple(states), hidden)

    def needs_levels(self, gate: Gate | None) -> bool:
        """Whether anything that is learnt makes a frame with this gate; if not, ``without_levels`` is all of it."""
        return gate is not empty_gate or not self.config.search or self.refinement is not None

    def without_levels(
        self,
        frame0: Tensor,
        frame1: Tensor,
        found: Tensor,
        t: Tensor,
        agree: Tensor | None = None,
        motion: bool = True,
        picture: Tensor | None = None,
    ) -> Interpolation:
        """What ``interpolate`` makes where ``needs_levels`` says that nothing learnt is needed: frames warped and
        blended as the search says, without a convolution, encodings or ``coarse``, which does not change the flow.

        found: from ``find``; the rest as in ``interpolate``.
        """
        guide = Found.of(found)
        state = LevelState(guide.flows[-1], guide.flows[-1][:, :0], guide, bent=False)
        moving = self._moving(self._agreement(frame0, frame1) if agree is None else agree, state.flow)
        unrefined, flow, blend, _ = self._shortened(frame0, frame1, state, t, moving, motion, picture)
        sides = [self.config.grid_stride(index) for index in range(len(STRIDES) - 2, -1, -1)]
        height, width = frame0.shape[-2:]
        masks = tuple(flow.new_zeros(len(t), 1, height // side, width // side) for side in sides)
        return Interpolation(unrefined, flow, blend, masks, (), (), None, unrefined)

    def shortcut(self, frame0: Tensor, frame1: Tensor, state: LevelState, t: Tensor) -> Tensor:
        """The frame that is left when every level finer than ``state`` is pruned everywhere, [B, 3, H, W] fp32.

        It costs no convolution: pruned levels put out their biases. What it gets wrong is what those levels are for.
        A refinement, which no mask prunes, is left out: compare with ``Interpolation.unrefined``.
        """
        return self._shortened(frame0, frame1, state, t, None, motion=False)[0]

    def _shortened(
        self,
        frame0: Tensor,
        frame1: Tensor,
        state: LevelState,
        t: Tensor,
        moving: Tensor | None,
        motion: bool,
        picture: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """What ``_render`` makes of the biases of every level finer than ``state``."""
        height, width = frame0.shape[-2:]
        for index in range(STRIDES.index(width // state.flow.shape[-1]) - 1, 0, -1):
            flow, bends = state.enlarged(), self._bends(index)
            if bends:
                flow = flow + self._level(index).bias()[:, :4] * self.pace(t)
            state = LevelState(flow, state.feature, state.found, state.bent or bends)
        out = ConstantOutput(self._level(0), self.synthesis, len(t), height // 2, width // 2)
        return self._render(frame0, frame1, state.enlarged(), out, t, state.found, moving, motion, picture)

    def _agreement(self, frame0: Tensor, frame1: Tensor) -> Tensor:
        """``Compared.agree`` alone."""
        return agreement(change(frame0, frame1), self.agreement_side)

    def _moving(self, agree: Tensor, flow: Tensor) -> Tensor:
        """Blocks in which something may move, 1 or 0, on the grid of ``agree``, from ``_agreement``. flow: of the
        coarsest level."""
        return moving_blocks(agree, flow, STRIDES[-1], self.agreement_side)

    def _render(
        self,
        frame0: Tensor,
        frame1: Tensor,
        flow: Tensor,
        out: LastOutput,
        t: Tensor,
        found: Found | None,
        moving: Tensor | None,
        motion: bool,
        picture: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Frame, flow, blend weight and both warped frames from the flow at stride 2 and what the last level puts out.

        The frame is the blended one with the last level's RGB residual, to which a refinement adds its own. found: as
        in ``LevelState``; moving: [B, 1, rows, columns], 0 where the flow and the residual are to be none; motion,
        picture: as in ``interpolate``.
        """
        prior, still = (None, None) if found is None else (found.prior, found.still)
        how = t, self.pace(t), prior, still
        # On a card to ask would be to wait.
        everywhere = moving is None or (moving.device.type == "cpu" and bool(moving.all()))
        when = t.view(-1, 1, 1, 1)
        if not motion and self.refinement is None:
            if picture is None:
                picture = torch.empty_like(frame0)
            put_rendered(picture, frame0, frame1, flow, out, *how, None if everywhere else moving)
            nothing = flow[:, :, :0]
            return picture, nothing, nothing[:, :1], (frame0, frame1)
        height, width = frame0.shape[-2:]
        if moving is None or everywhere:
            return rendered(frame0, frame1, flow, out.part(slice(0, height), slice(0, width)), *how, (0, 0))
        # What is still is blended where it is, and nothing is made outside the rectangle that holds all that moves.
        one = torch.ones_like(frame0[:, :1])
        pictures = [torch.lerp(frame0, frame1, when), torch.zeros_like(one).repeat(1, 4, 1, 1), (1 - when) * one]
        pictures += [frame0.clone(), frame1.clone()]
        box = bounds(moving)
        if box is not None:
            side = block_side(moving, height, width)
            rows, columns = (slice(side * span.start, side * span.stop) for span in box)
            made = rendered(frame0, frame1, flow, out.part(rows, columns), *how, (rows.start, columns.start))
            inside = enlarge(moving[:, :, box[0], box[1]], side)
            for whole, inner in zip(pictures, (*made[:3], *made[3]), strict=True):
                whole[:, :, rows, columns].lerp_(inner, inside)  # of 0 and 1: half the time of torch.where
        frame, flow, blend, *warped = pictures
        return frame, flow, blend, (warped[0], warped[1])

    def pace(self, t: Tensor) -> Tensor:
        """How far each flow reaches at the instants t [B], as a share of its reach at t = 0.5; [B, 4, 1, 1]."""
        when = t.view(-1, 1, 1, 1)
        if not self.config.any_instant:
            return torch.ones_like(when)
        rest = 1 - when
        return 2 * torch.cat((when, when, rest, rest), dim=1)

    def forward(
        self,
        frame0: Tensor,
        frame1: Tensor,
        t: Tensor,
        gate: Gate | None = None,
        before: Tensor | None = None,
        after: Tensor | None = None,
    ) -> Interpolation:
        """All steps for one batch of pairs: see ``encode``, ``find``, ``coarse`` and ``interpolate``."""
        first, second = self.encode(torch.cat((frame0, frame1))).chunk(2)
        coarse = self.coarse(first, second, self.find(frame0, frame1, t, before, after), t)
        return self.interpolate(frame0, frame1, first, second, coarse, t, gate)

    def _normalised(self, pictures: Tensor) -> Tensor:
        """Pictures [B, C, H, W] in [0, 1] as convolutions take them, in the type of the activations."""
        pictures = pictures.float()
        normalised = torch.add(pictures.new_tensor(-MEAN * SCALE), pictures, alpha=SCALE)
        # Type first, then layout: both at once takes torch three times as long.
        return normalised.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _level(self, index: int) -> Level:
        level = self.levels[index]
        assert isinstance(level, Level)
        return level

    def _logits(self, index: int, feature: Tensor, parent: Tensor | None) -> Tensor:
        """Mask logits of a level, from the level above it, on the grid of the masks; fp32. Where the parent mask is 0
        they may be anything."""
        gate, stride, grid_stride = self.gates[index], STRIDES[index + 1], self.config.grid_stride(index)
        assert isinstance(gate, Conv)
        in_blocks = feature.device.type == "cpu" and self.dtype in (torch.float32, torch.bfloat16)
        in_blocks = (in_blocks and not torch.is_grad_enabled()) or by_kernels(feature)
        if parent is not None and grid_stride >= stride and in_blocks:
            return block_logits(feature.to(self.dtype), gate, grid_stride // stride, parent)
        return to_grid(gate(feature.to(self.dtype)).float(), stride, grid_stride)

    def _inputs(
        self, index: int, first: Encoding, second: Encoding, feature: Tensor | None, flow: Tensor
    ) -> list[Tensor]:
        """Both frames' features at the instant, how well they match nearby, and what the level above says, if any."""
        left = backward_warp(first.features[index], flow[:, :2])
        right = backward_warp(second.features[index], flow[:, 2:])
        inputs = [left, right] if feature is None else [left, right, upsample(feature)]
        radius = self.config.matching_radius[index]
        if radius:
            one, other = (matching.unit_length(warped).to(self.dtype) for warped in (left, right))
            inputs.append(self.reducers[index](matching.local_correlation(one, other, radius).to(self.dtype)))
        return inputs

    def _whole_inputs(
        self, index: int, first: Encoding, second: Encoding, feature: Tensor, flow: Tensor, t: Tensor
    ) -> Tensor:
        """What ``_inputs`` and ``_join`` make."""
        if torch.is_grad_enabled() or flow.device.type != "cpu":
            return self._join(self._inputs(index, first, second, feature, flow), flow, t)
        # A processor reads features in their own type, position by position, in two thirds of the time.
        return self._sparse_inputs(index, first, second, feature, flow, t).whole()

    def _sparse_inputs(
        self, index: int, first: Encoding, second: Encoding, feature: Tensor, flow: Tensor, t: Tensor
    ) -> SparseInputs:
        """What ``_inputs`` and ``_join`` make, for chosen positions."""
        radius = self.config.matching_radius[index]
        matched = Matching(radius, self.reducers[index], self.config.matching_channels[index]) if radius else None
        when = t if self.config.any_instant else None
        left, right = first.features[index], second.features[index]
        places = _places(index, first, second)
        return SparseInputs(left, right, feature, flow, self._flow_bound, when, matched, self.dtype, places)

    @property
    def _flow_bound(self) -> float:
        """In the paper's network, which learns to find it, flow has none."""
        return FLOW_BOUND if self.config.search else math.inf

    def _join(self, inputs: list[Tensor], flow: Tensor | None, t: Tensor) -> Tensor:
        """Concatenate a level's inputs in the type of the activations."""
        parts = list(inputs)
        if flow is not None:
            parts.append(flow.clamp(-self._flow_bound, self._flow_bound))
        return _joined(parts, t if self.config.any_instant else None, self.dtype)

    def _bends(self, index: int) -> bool:
        """Whether a level changes the flow: where a search found it, only those that are finer than what a patch of it
        covers."""
        return not self.config.search or STRIDES[index] < STRIDE * CELL

    def _refined(self, index: int, flow: Tensor, out: Tensor, t: Tensor, found: Found | None, bent: bool) -> LevelState:
        """What a level's output [B, 4 + C, H, W] makes of the flow that it was given; bent: as in ``LevelState``, of
        the level above."""
        bends = self._bends(index)
        if bends:
            flow = _bent(flow, out[:, :4], self.pace(t))
        return LevelState(flow, out[:, 4:], found, bent or bends)


@compiled_by("cpu.inputs.coarsest")
def _coarsest_inputs(left: Tensor, right: Tensor, flow: Tensor, t: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What the coarsest level reads where nothing is matched there: both frames' features [B, C, H, W] where their flow
    [B, 4, H, W] points to, and the instants [B]. [B, 2 C (+ 1), H, W], channels last."""
    return _joined([backward_warp(left, flow[:, :2]), backward_warp(right, flow[:, 2:])], t, dtype)


def _joined(parts: list[Tensor], t: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Parts [B, C, H, W] of any type, and the instants [B], beside each other in a type, channels last."""
    batch, _, height, width = parts[0].shape
    if t is not None:
        parts = [*parts, t.view(-1, 1, 1, 1).expand(-1, 1, height, width)]
    if torch.is_grad_enabled():
        joined = torch.cat([part.to(dtype) for part in parts], dim=1)
        return joined.contiguous(memory_format=torch.channels_last)
    # One pass a part: its type and its layout change as it is written to its place.
    channels = sum(part.shape[1] for part in parts)
    rows = parts[0].new_empty((batch, height, width, channels), dtype=dtype)
    start = 0
    for part in parts:
        end = start + part.shape[1]
        rows[..., start:end].copy_(part.permute(0, 2, 3, 1))
        start = end
    return rows.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Layout:
    """How the features of one frame lie in memory, channels last."""

    shape: tuple[int, ...]
    """C, H, W."""
    steps: tuple[int, ...]
    """Numbers from one channel, row and column to the next."""
    dtype: torch.dtype

    @staticmethod
    def of(feature: Tensor) -> _Layout:
        """feature: [B, C, H, W]."""
        return _Layout(tuple(feature.shape[1:]), feature.stride()[1:], feature.dtype)

    def meta(self, batch: int) -> Tensor:
        """So many frames' features without memory."""
        return torch.empty_strided((batch, *self.shape), (0, *self.steps), dtype=self.dtype, device="meta")


def _lying(
    first: Sequence[Encoding], second: Sequence[Encoding], device: torch.device
) -> tuple[tuple[_Layout, ...], Tensor, list[Sequence[Encoding]]]:
    """How the features of frames lie, their addresses, [2, levels, B] int64, and whose they are: those given, or copies
    where they do not lie alike, channels last and from 16 bytes on."""
    sides = [list(first), list(second)]
    layouts = {tuple(map(_Layout.of, one.features)) for side in sides for one in side}
    addresses = [_addresses(side) for side in sides]
    flat = [address for side in addresses for level in side for address in level]
    last = all(layout.steps[0] == 1 for several in layouts for layout in several)
    if len(layouts) > 1 or not last or any(address % 16 for address in flat):
        sides = [[Encoding.join(side).map(_copied)] for side in sides]
        layouts = {tuple(map(_Layout.of, sides[0][0].features))}
        addresses = [_addresses(side) for side in sides]
    told = torch.tensor(addresses, dtype=torch.int64)
    if device.type == "cuda":  # else the host would wait for all that the device was told to do
        told = told.pin_memory().to(device, non_blocking=True)
    return layouts.pop(), told, list(sides)


def _copied(feature: Tensor) -> Tensor:
    return feature.clone(memory_format=torch.channels_last)


def _addresses(encodings: Sequence[Encoding]) -> list[list[int]]:
    """Of the features of every frame, at each level."""
    levels = zip(*(encoding.features for encoding in encodings), strict=True)
    return [
        [one.data_ptr() + index * one.stride(0) * one.element_size() for one in several for index in range(len(one))]
        for several in levels
    ]


def _at(span: slice, stride: int) -> slice:
    """A span of pixels, in positions of a stride."""
    return slice(span.start // stride, span.stop // stride)


def _places(index: int, first: Encoding, second: Encoding) -> tuple[Tensor, Tensor] | None:
    """Where both frames' features lie, if their encodings tell."""
    return (first.places[index], second.places[index]) if first.places else None


def he_initialise(root: nn.Module) -> None:
    """He initialisation of every convolution within a module, biases zero; in place."""
    for module in root.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, a=0.1, nonlinearity="leaky_relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def channels_last(net: UGSP) -> UGSP:
    """Lay out the weights as the convolutions read them fastest; in place."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net
