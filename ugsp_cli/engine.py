"""The network at work on decoded frames: device, precision, batches, padding, and a cache of encoded frames.

The only place of the tool that knows both the video's planes and the network's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import chain, groupby, pairwise, takewhile
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_cli.colour import planes_to_rgb, planes_to_rgb_and_look, rgb_to_planes
from ugsp_cli.crew import Crew, Result
from ugsp_cli.decode import Frame
from ugsp_cli.errors import UgspError, UsageError
from ugsp_cli.portions import Portions
from ugsp_cli.windows import Window, see_in_windows, see_part
from ugsp_net import checkpoint, cpu
from ugsp_net.allocator import keep_freed_memory, release_freed_memory
from ugsp_net.config import STRIDES
from ugsp_net.cost import PRUNED, Cost, network_cost
from ugsp_net.gpu import graphs
from ugsp_net.masks import Gate, enlarge, hard_gate, keep_gate, still_pixels, unsettled
from ugsp_net.network import UGSP, Compared, Encoding, channels_last
from ugsp_net.paths import carry, is_cut, trace
from ugsp_net.precision import TYPES, has_matrix_unit
from ugsp_net.search import POINT
from ugsp_net.sparse import BACKENDS, why_not
from ugsp_net.warp import blend_enlarged

__all__ = ["EngineOptions", "Interpolator", "Made", "Request", "load_interpolator", "load_weights", "resolve_device"]

Item = TypeVar("Item")

MOST_WORKERS = 8
"""Frames that a processor makes at once, if it has so many cores: each takes memory of its own, and all of them one
interpreter, for a tenth of a frame of 1280x720 (figures in ARCHITECTURE.md)."""

STEP = 64
"""Pixels: sides of the part of the picture that the network sees are multiples of it."""

LONGEST_GAP = 2.5
"""A frame before or after a pair tells how it moves if it is at most so many times as far away as the pair's frames are
from each other, and at least that part of it: a pause says nothing."""


@dataclass(frozen=True)
class EngineOptions:
    """How the network is to run; each field is a command-line option."""

    weights: str | None = None
    """A .safetensors file, or the name of weights that ship; None: the default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16: the type of activations. Flow, sampling grids and the blend are always fp32."""
    pruning: bool = True
    """Whether blocks are skipped."""
    keep: str | float = "auto"
    """auto: what the masks say; a number in [0, 1]: that share of every level's blocks, in each frame or window."""
    flow_scale: float | str = "auto"
    """Size at which the network sees the frames, as a share of their own: 1, 0.5 or 0.25; they are put together at full
    size. auto: 1 up to 2560x1440 pixels, 0.5 up to 4096x2304, else 0.25."""
    batch_size: int | str = "auto"
    """Frames made at once."""
    backend: str = "auto"
    """How pruned levels run: auto (triton on CUDA devices, else tiles), reference, tiles or triton."""


@dataclass(frozen=True)
class Request:
    """A frame that is wanted."""

    left: Frame
    right: Frame
    t: float
    """Between left (0) and right (1), both excluded."""
    before: Frame | None = None
    """The frame before left, where it is of the same scene: it tells whether motion bends, and what left shows last."""
    after: Frame | None = None
    """The same after right."""


@dataclass(frozen=True)
class Made:
    """A frame that was made, and what it cost."""

    planes: tuple[np.ndarray, ...]
    """As in ``Frame``, in the layout and colour of the left frame."""
    active: tuple[float, ...]
    """Share of the picture's blocks that the masks left, at strides 8, 4, 2; all 1 without pruning, all 0 at a cut."""
    dense_macs: int
    """What the dense network would have spent, with the encoding of the source frames that this frame needed first."""
    performed_macs: int
    """What the backend spent; where frames are made in windows, their margins count."""
    level_dense_macs: tuple[int, ...]
    """The prunable work alone, at strides 8, 4, 2."""
    level_performed_macs: tuple[int, ...]
    """The prunable work that was done."""
    masks: np.ndarray | None = None
    """[3, H, W] bool: the pixels in blocks that the masks left at strides 8, 4, 2; only where it was asked for."""


@dataclass
class _Source:
    """One source frame on the device."""

    small: Tensor
    """[1, 3, H, W] fp32, padded, at the size that the network sees."""
    rgb: Tensor | None = None
    """The same at full size; None until it is needed."""
    looked: tuple[Tensor, Tensor] | None = None
    """What a search sees of it, where that was looked at when it was converted."""
    encoding: Encoding | None = None
    """None until it is needed; where no level is; and where the network sees windows, which encode by themselves."""
    encoded: Window | None = None
    """The part of it that is encoded."""
    owed: bool = True
    """Whether its encoding is still to be charged to the dense network."""

    def encoding_of(self, window: Window) -> Encoding:
        """Of a window that ``encoded`` covers."""
        assert self.encoding is not None
        assert self.encoded is not None
        if window == self.encoded:
            return self.encoding
        (top, _), (left, _) = self.encoded.rows, self.encoded.columns
        rows, columns = (
            slice(window.rows[0] - top, window.rows[1] - top),
            slice(window.columns[0] - left, window.columns[1] - left),
        )
        return self.encoding.part(rows, columns)


@dataclass
class _Pair:
    """Two source frames of which one follows the other."""

    still: bool
    """Whether nothing moves between them."""
    compared: Compared
    """At the size that the network sees."""
    seen: Window
    """What the network sees of the two: outside nothing moves, and they are blended."""
    flow: Tensor | None = None
    """From ``UGSP.match``; None until it is needed, and in a network without a search."""
    owed: bool = True
    """Whether the search is still to be charged to the dense network."""


@dataclass
class _Ready:
    """A frame that is wanted, with all that it is made of."""

    request: Request
    pair: tuple[_Source, _Source]
    agree: Tensor
    """As in ``Compared``."""
    seen: Window
    """As in ``_Pair``; one for all that are made in one launch."""
    due: int
    """MACs that the dense network owes beside the frame itself."""
    spent: int
    """MACs that were spent to make this ready."""
    neighbours: list[tuple[Frame, Frame]]
    """The pair itself, and those before and after it that tell something."""
    paths: Tensor | None = None
    """From ``trace``; None in a network without a search."""
    cut: bool = False
    """Whether they say that there is a cut between the two frames."""


_Around = tuple[Request, list[tuple[Frame, Frame, _Pair]]]
"""A frame that is wanted, with its pair and then those that follow and go before it and tell something."""


class Interpolator:
    """A loaded network that makes frames. Not thread-safe: one thread calls it."""

    def __init__(self, options: EngineOptions) -> None:
        weights = load_weights(options.weights)
        device = torch.device(resolve_device(options.device))
        precision = _resolve_precision(options.precision, device)
        backend = _resolve_backend(options.backend, device)
        keep_freed_memory()
        self.model_name = weights.net.config.name
        self.weights_sha256 = weights.sha256
        self.parameters = sum(parameter.numel() for parameter in weights.net.parameters())
        self.device = str(device)
        self.precision = precision
        self._backend = backend
        self.backend = backend if options.pruning else "dense"
        self.strides = tuple(STRIDES[index] for index in PRUNED)
        self._device = device
        self._net = channels_last(weights.net.to(device, TYPES[precision]))
        self._net.frozen = True
        self._gate = _gate(options)
        # With a share to keep, blocks of the whole picture are ranked; a refinement is made everywhere.
        self._sees_parts = self._gate is not None and weights.net.refinement is None
        self._sees_parts &= options.keep == "auto" or float(options.keep) == 0
        self._crew = Crew(MOST_WORKERS, shares=not cpu.available()) if device.type == "cpu" else None
        batch = None if options.batch_size == "auto" else int(options.batch_size)
        scale = None if options.flow_scale == "auto" else float(options.flow_scale)
        workers = self._crew.count if self._crew else None
        self._portions = Portions(device, precision, self._net.config, batch, scale, workers)
        self.batch_size = batch or 1
        self.notes = self._portions.notes
        """What the user should know of the frames since ``reset``."""
        self._sources: dict[int, _Source] = {}
        self._pairs: dict[tuple[int, int], _Pair] = {}
        self._paths: dict[tuple[int, ...], tuple[Tensor, bool]] = {}
        self._cost: Cost | None = None
        self._found: Tensor | None = None
        """What ``carry`` returned last on a card: in the same place again a graph reads it without a copy."""

    @property
    def network(self) -> UGSP:
        """The network itself, on its device and in its precision."""
        return self._net

    def batch_at(self, width: int, height: int) -> int:
        """Frames made at once in pictures of that size."""
        return self._portions.settle(height, width).batch

    def factor_at(self, width: int, height: int) -> int:
        """How many times smaller than they are the network sees pictures of that size."""
        return self._portions.factor(height, width)

    def reset(self) -> None:
        """Forget all frames: before another file, whose indices start again."""
        self._let_go()
        self._portions.reset()

    @torch.inference_mode()
    def interpolate(self, requests: Sequence[Request], masks: bool = False) -> list[Made]:
        """Make frames, in the order asked for. All frames have one size. masks: whether to hand out the masks too.

        Each source frame is encoded once and each pair is searched once, as long as their requests are near each other.
        With pruning, pairs in which nothing moves are blended, and nothing is computed.
        Where memory runs out, fewer frames are made at once, then in windows, then the network sees smaller ones;
        ``notes`` tells. Raises UgspError where that does not help.
        """
        made: list[Made] = []
        while len(made) < len(requests):
            height, width = requests[0].left.planes[0].shape
            self.batch_size = self.batch_at(width, height)
            wanted = requests[len(made) : len(made) + self.batch_size]
            try:
                self._compare(wanted)
                moving = list(takewhile(lambda request: not self._is_still(request), wanted))
                made.extend(self._batch(moving, masks) if moving else [self._blended(wanted[0], masks)])
                self._forget(wanted, len(moving) or 1)
                fitted = True
            except (RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is a RuntimeError
                if not _is_out_of_memory(error):
                    raise
                fitted = False
            if not fitted:  # outside the handler, whose traceback holds on to the tensors that did not fit
                self._shrink(height, width)
        return made

    def _shrink(self, height: int, width: int) -> None:
        """Make do with less memory than ran out. Raises UgspError where there is nothing left to give up."""
        self._let_go()
        if not self._portions.shrink(height, width):
            raise UgspError(
                f"there is not enough memory on {self.device} for frames of {width}x{height}",
                "Use a smaller --flow-scale, another --device, or close other programs.",
            )

    def _let_go(self) -> None:
        """Forget all frames and hand back their memory."""
        self._sources.clear()
        self._pairs.clear()
        self._paths.clear()
        self._cost = self._found = None
        release_freed_memory()
        if self._device.type == "cuda":
            graphs.forget()
            torch.cuda.empty_cache()

    def _batch(self, requests: Sequence[Request], masks: bool) -> list[Made]:
        ready = self._prepared(requests)
        # Those before the first pair have told what they know.
        for index in [index for index in self._sources if index < requests[0].left.index]:
            del self._sources[index]
        between = [one for one in ready if not one.cut]
        made = chain.from_iterable(self.each([partial(self._make, some, masks) for some in self._shared(between)]))
        return [self._nearer(one, masks) if one.cut else next(made) for one in ready]

    def each(self, jobs: Sequence[Callable[[], Result]], several: bool = True) -> list[Result]:
        """What the jobs return, in order: on a processor they are done beside each other. several: whether there is
        memory for that."""
        return self._crew.each(jobs) if self._crew is not None and several else [job() for job in jobs]

    def _shared(self, items: Sequence[Item], several: bool = True) -> list[Sequence[Item]]:
        """Items as jobs take them: a card all of them in one launch, a processor one beside the other. several: as in
        ``each``."""
        return [items] if items and self._crew is None and several else [[item] for item in items]

    def _prepared(self, requests: Sequence[Request]) -> list[_Ready]:
        """Encode, search and trace what frames are made of, as far as that is still to be done."""
        whole = len(self._portions.windows(*requests[0].left.planes[0].shape)) == 1
        encoded = whole and self._net.needs_levels(self._gate)
        encode: dict[int, tuple[_Source, Window]] = {}
        search: dict[tuple[int, int], tuple[_Pair, _Source, _Source]] = {}
        ready = []
        for request in requests:
            neighbours = self._neighbours(request)
            pair = self._source(request.left), self._source(request.right)
            known = self._pair(request.left, request.right)
            cost, spent = self._sized_cost(pair[0]), 0
            for left, right in neighbours if self._net.config.search else ():
                key, other = (left.index, right.index), self._pair(left, right)
                if other.flow is None and key not in search:
                    search[key] = other, self._source(left, False), self._source(right, False)
                    spent += cost.match
            how = known.compared.agree, known.seen, self._due(request, neighbours), spent, neighbours
            ready.append(_Ready(request, pair, *how))
        if self._crew is None:
            together = reduce(Window.joined, (one.seen for one in ready))
            for one in ready:
                one.seen = together
        for one in ready if encoded else ():
            for frame, source in zip((one.request.left, one.request.right), one.pair, strict=True):
                if source.encoded is None or not source.encoded.covers(one.seen):
                    before = encode[frame.index][1] if frame.index in encode else source.encoded
                    window = one.seen if before is None else before.joined(one.seen)
                    encode[frame.index] = source, window
        several = len(requests) > 1
        # Searches first, since they take longest.
        jobs: list[Callable[[], None]] = [
            partial(self._search, some) for some in self._shared([*search.values()], several)
        ]
        jobs += [partial(self._encode, some) for some in self._shared([*encode.values()], several)]
        for one in ready:
            for frame in (one.request.left, one.request.right):
                if frame.index in encode:
                    _, window = encode.pop(frame.index)
                    one.spent += self._window_cost(window).encode
        self.each(jobs, several)
        if self._net.config.search:
            self._trace(ready)
        return ready

    @torch.inference_mode()
    def _encode(self, some: Sequence[tuple[_Source, Window]]) -> None:
        for window in dict.fromkeys(window for _, window in some):
            sources = [source for source, its in some if its == window]
            encodings = self._net.encode(_joined([window.seen(source.small) for source in sources]))
            for source, encoding in zip(sources, encodings.chunk(len(sources)), strict=True):
                source.encoding, source.encoded = encoding, window

    @torch.inference_mode()
    def _search(self, some: Sequence[tuple[_Pair, _Source, _Source]]) -> None:
        left, right = _joined([one.small for _, one, _ in some]), _joined([one.small for _, _, one in some])
        # Frames that were looked at come pair by pair.
        looked = [one.looked for one in some[0][1:] if one.looked is not None]
        flow = self._net.match(left, right, Compared.join([pair.compared for pair, _, _ in some]), looked)
        for index, (pair, _, _) in enumerate(some):
            pair.flow = None if flow is None else flow[index : index + 1]
            pair.compared = replace(pair.compared, looked=())  # has served

    @torch.inference_mode()
    def _make(self, ready: Sequence[_Ready], masks: bool) -> list[Made]:
        """Make frames in one batch. Changes nothing here: several threads do it at once."""
        net = self._net
        height, width = ready[0].request.left.planes[0].shape
        windows = self._portions.windows(height, width)
        pairs = [one.pair for one in ready]
        cost = self._sized_cost(pairs[0][0])
        frames = _joined([pair[0].small for pair in pairs]), _joined([pair[1].small for pair in pairs])
        agree = _joined([one.agree for one in ready])
        t = torch.tensor([one.request.t for one in ready], device=self._device, dtype=torch.float32)
        backend = self._backend
        factor = self._portions.factor(height, width)
        if len(windows) == 1:
            window = ready[0].seen
            found = None
            if net.config.search:
                paths = _joined([window.seen(one.paths, POINT) for one in ready if one.paths is not None])
                found = carry(paths, t, self._found)
                if self._crew is None:  # where frames are made beside each other, each has its own
                    self._found = found
            encodings = None
            if net.needs_levels(self._gate):
                encodings = (
                    [pair[0].encoding_of(window) for pair in pairs],
                    [pair[1].encoding_of(window) for pair in pairs],
                )
            seen = see_part(net, window, frames, encodings, found, t, self._gate, backend, agree, factor > 1)
        else:
            found = carry(_joined([one.paths for one in ready]), t) if net.config.search else None
            seen = see_in_windows(net, frames, found, t, self._gate, backend, agree, windows, factor > 1)
        active = torch.ones(len(ready), len(PRUNED))
        if seen.masks:
            active = torch.stack([mask.flatten(1).mean(1) for mask in seen.masks], dim=1).cpu()
        result = seen.frame
        if factor > 1:
            assert seen.motion is not None
            large = _joined([pair[0].rgb for pair in pairs]), _joined([pair[1].rgb for pair in pairs])
            result = blend_enlarged(*large, *seen.motion, factor)
        planes: list[tuple[np.ndarray, ...]] = []
        for (layout, colour), some in groupby(
            (one.request.left for one in ready), lambda left: (left.layout, left.colour)
        ):
            there = slice(len(planes), len(planes) + len(list(some)))
            planes.extend(rgb_to_planes(result[there, :, :height, :width], layout, colour))
        made = []
        for index, one in enumerate(ready):
            done = seen.level_macs[index]
            made.append(
                Made(
                    planes=planes[index],
                    active=tuple(active[index].tolist()),
                    dense_macs=cost.dense + one.due,
                    performed_macs=sum(done) + seen.other_macs[index] + one.spent,
                    level_dense_macs=cost.prunable,
                    level_performed_macs=done,
                    masks=self._pixel_masks([mask[index] for mask in seen.masks], height, width) if masks else None,
                )
            )
        return made

    def _pixel_masks(self, masks: list[Tensor], height: int, width: int) -> np.ndarray:
        """One frame's masks [1, rows, columns], coarse to fine, as ``Made`` has them."""
        if not masks:
            return np.ones((len(PRUNED), height, width), np.bool_)
        factor = self._portions.factor(height, width)
        sides = [factor * self._net.config.grid_stride(level) for level in PRUNED]
        whole = [enlarge(mask[None], side)[0, 0] for mask, side in zip(masks, sides, strict=True)]
        return torch.stack([mask[:height, :width] for mask in whole]).bool().cpu().numpy()

    def _source(self, frame: Frame, whole: bool = True) -> _Source:
        """A frame on the device, from the cache or for it. whole: with its picture at full size, which only the frames
        of a pair need, not those before and after it."""
        source = self._sources.get(frame.index)
        if source is None:
            source = self._sources[frame.index] = self._converted(frame, whole)
        elif whole and source.rgb is None:
            source.rgb = self._converted(frame, whole).rgb
        return source

    @torch.inference_mode()
    def _converted(self, frame: Frame, whole: bool) -> _Source:
        """A frame on the device; whole: as in ``_source``."""
        height, width = frame.planes[0].shape
        factor = self._portions.factor(height, width)
        alignment = factor * self._net.config.alignment
        beyond = -height % alignment, -width % alignment
        how = frame.planes, frame.layout, frame.colour, self._device, beyond
        # A card looks at both frames of a pair when it compares them.
        if factor == 1 and self._crew is not None and self._net.config.search:
            rgb, *looked = planes_to_rgb_and_look(*how)
            return _Source(rgb, rgb, (looked[0], looked[1]))
        rgb = planes_to_rgb(*how)
        small = rgb if factor == 1 else F.avg_pool2d(rgb, factor)
        return _Source(small, rgb if whole or factor == 1 else None)

    def _compare(self, requests: Sequence[Request]) -> None:
        """Put into the cache, several at once, the frames of which others are made, and all pairs of those that tell
        something of them."""
        pairs: dict[tuple[int, int], tuple[Frame, Frame]] = {}
        whole: dict[int, Frame] = {}
        for request in requests:
            whole |= {frame.index: frame for frame in (request.left, request.right)}
            for left, right in pairwise((request.before, request.left, request.right, request.after)):
                if left is not None and right is not None and (left.index, right.index) not in self._pairs:
                    pairs[left.index, right.index] = left, right
        frames = {frame.index: frame for pair in pairs.values() for frame in pair} | whole
        missing = [index for index in sorted(frames) if index not in self._sources]
        convert = [partial(self._converted, frames[index], index in whole) for index in missing]
        several = len(requests) > 1  # one alone: perhaps for want of memory
        self._sources.update(zip(missing, self.each(convert, several), strict=True))
        shares = self._shared([self._small(*pair) for pair in pairs.values()], several)
        compared = self.each([partial(self._compared, some) for some in shares], several)
        self._pairs.update(zip(pairs, chain.from_iterable(compared), strict=True))

    def _window_cost(self, window: Window) -> Cost:
        rows, columns = (stop - start for start, stop in (window.rows, window.columns))
        return network_cost(self._net.config, columns, rows)

    def _sized_cost(self, source: _Source) -> Cost:
        if self._cost is None:
            self._cost = network_cost(self._net.config, source.small.shape[-1], source.small.shape[-2])
        return self._cost

    def _pair(self, left: Frame, right: Frame) -> _Pair:
        """Two frames together, from the cache or for it."""
        key = left.index, right.index
        if key not in self._pairs:
            self._pairs[key] = self._compared([self._small(left, right)])[0]
        return self._pairs[key]

    @torch.inference_mode()
    def _compared(self, some: Sequence[tuple[Tensor, Tensor]]) -> list[_Pair]:
        """What is known of frames that follow each other, [1, 3, H, W] each, as the network sees them."""
        lefts, rights = zip(*some, strict=True)
        compared = self._net.compare(_joined(lefts), _joined(rights))
        agree = compared.agree.cpu()  # looked at here, and small
        return [
            _Pair(bool(here.all()), one, self._seen(here, self._net.agreement_side))
            for one, here in zip(compared.split(), agree.split(1), strict=True)
        ]

    def _seen(self, agree: Tensor, side: int) -> Window:
        """What the network sees of two frames, from their ``agreement`` in blocks of so many pixels."""
        whole = tuple(side * count for count in agree.shape[-2:])
        box = unsettled(agree, side) if self._sees_parts else None
        spans = [(0, length) for length in whole]
        if box is not None:
            # In steps, so that a frame's part in the pair before and in the one after it is often the same.
            spans = [
                (span.start // STEP * STEP, min(length, -(-span.stop // STEP) * STEP))
                for span, length in zip(box, whole, strict=True)
            ]
        return Window.alone(*spans)

    def _small(self, left: Frame, right: Frame) -> tuple[Tensor, Tensor]:
        """Two frames as the network sees them."""
        return self._source(left, False).small, self._source(right, False).small

    def _neighbours(self, request: Request) -> list[tuple[Frame, Frame]]:
        """The pair itself, and those with the frames before and after it that tell something: a repeated one does not
        say when it was taken."""
        gap = request.right.time - request.left.time
        pairs = [(request.left, request.right)]
        if gap <= 0 or not self._net.config.search:
            return pairs
        for left, right in ((request.before, request.left), (request.right, request.after)):
            if left is not None and right is not None:
                apart = right.time - left.time
                if gap / LONGEST_GAP <= apart <= gap * LONGEST_GAP and not self._pair(left, right).still:
                    pairs.append((left, right))
        return pairs

    def _trace(self, ready: Sequence[_Ready]) -> None:
        """Give them the paths of their pairs' points, and whether these say that there is a cut, from the cache or for
        it; the flow of the pairs and of their neighbours has been searched."""
        wanted: dict[tuple[int, ...], _Around] = {}
        keys = []
        for one in ready:
            keys.append(tuple(frame.index for pair in one.neighbours for frame in pair))
            if keys[-1] not in self._paths:
                wanted[keys[-1]] = one.request, [(*pair, self._pair(*pair)) for pair in one.neighbours]
        traced = self.each([partial(self._traced, some) for some in self._shared([*wanted.values()], len(ready) > 1)])
        self._paths.update(zip(wanted, chain.from_iterable(traced), strict=True))
        for one, key in zip(ready, keys, strict=True):
            one.paths, one.cut = self._paths[key]

    @torch.inference_mode()
    def _traced(self, some: Sequence[_Around]) -> list[tuple[Tensor, bool]]:
        """The paths of pairs' points, and whether they say that there is a cut between the two."""
        flows: list[Tensor | None] = []
        changes: list[list[Tensor]] = []
        beside: tuple[list[Tensor | None], list[Tensor | None]] = ([], [])
        intervals: list[list[float]] = []
        for request, pairs in some:
            gap = request.right.time - request.left.time
            known = pairs[0][2]
            intervals.append([0.0, 0.0])
            for found in beside:
                found.append(None)
            for one, other, neighbour in pairs[1:]:
                side = 0 if other is request.left else 1
                beside[side][-1] = neighbour.flow
                intervals[-1][side] = float((other.time - one.time) / gap)
            flows.append(known.flow)
            changes.append([pair.compared.changed for _, _, pair in pairs])
        flow, times = _joined(flows), torch.tensor(intervals, device=self._device)
        still = None
        if any(map(any, intervals)):
            left = _joined([self._sources[request.left.index].small for request, _ in some])
            right = _joined([self._sources[request.right.index].small for request, _ in some])
            several = len(some) > 1
            still = still_pixels(
                left, right, *([_joined([reduce(torch.maximum, own) for own in changes])] if several else changes[0])
            )
            if several:
                still *= (times > 0).any(1).view(-1, 1, 1, 1)
        # Of a pair that is not there any flow will do: the interval says so.
        before, after = (
            None if side.count(None) == len(side) else _joined([flow[:1] if one is None else one for one in side])
            for side in beside
        )
        paths = trace(flow, before, after, times, still)
        return [(paths[index : index + 1], cut) for index, cut in enumerate(is_cut(paths).tolist())]

    def _due(self, request: Request, neighbours: Sequence[tuple[Frame, Frame]]) -> int:
        """What the dense network would spend on a pair besides the frames that are made, when it meets it first."""
        cost = self._sized_cost(self._source(request.left))
        due = 0
        for source in (self._source(request.left), self._source(request.right)):
            due += cost.encode * source.owed
            source.owed = False
        for left, right in neighbours:
            known = self._pair(left, right)
            due += cost.match * known.owed
            known.owed = False
        return due

    def _is_still(self, request: Request) -> bool:
        """Whether nothing moves between two frames, in which case nothing is to be computed."""
        for frame in (request.left, request.right):
            self._source(frame)  # whole, so that it is converted once
        return self._gate is not None and self._pair(request.left, request.right).still

    def _blended(self, request: Request, masks: bool) -> Made:
        """The frame at an instant between two frames in which nothing moves."""
        height, width = request.left.planes[0].shape
        left, right = self._source(request.left), self._source(request.right)
        due = self._due(request, [(request.left, request.right)])
        assert left.rgb is not None
        assert right.rgb is not None
        frame = torch.lerp(left.rgb, right.rgb, request.t)[..., :height, :width]
        (planes,) = rgb_to_planes(frame, request.left.layout, request.left.colour)
        return self._without_network(left, planes, due, 0, masks)

    def _nearer(self, ready: _Ready, masks: bool) -> Made:
        """Between two frames of different scenes: the one that is nearer in time, as it is."""
        request, height, width = ready.request, *ready.request.left.planes[0].shape
        nearer = request.left if request.t <= 0.5 else request.right
        if (nearer.layout, nearer.colour) == (request.left.layout, request.left.colour):
            planes = nearer.planes
        else:
            rgb = ready.pair[1].rgb
            assert rgb is not None
            (planes,) = rgb_to_planes(rgb[..., :height, :width], request.left.layout, request.left.colour)
        return self._without_network(ready.pair[0], planes, ready.due, ready.spent, masks)

    def _without_network(
        self, source: _Source, planes: tuple[np.ndarray, ...], due: int, spent: int, masks: bool
    ) -> Made:
        """A frame for which no level was computed. due, spent: as in ``_Ready``."""
        cost, (height, width) = self._sized_cost(source), planes[0].shape
        return Made(
            planes=planes,
            active=(0.0,) * len(PRUNED),
            dense_macs=cost.dense + due,
            performed_macs=spent,
            level_dense_macs=cost.prunable,
            level_performed_macs=(0,) * len(PRUNED),
            masks=np.zeros((len(PRUNED), height, width), np.bool_) if masks else None,
        )

    def _forget(self, requests: Sequence[Request], done: int) -> None:
        """Keep what the requests that are not done yet need, and those that follow the last one: they come in order."""
        first = requests[done - 1].left.index
        rows = [(one.before, one.left, one.right, one.after) for one in requests]
        kept = {frame.index for row in rows for frame in row if frame is not None}
        self._sources = {index: one for index, one in self._sources.items() if index >= first and index in kept}
        self._pairs = {key: one for key, one in self._pairs.items() if key[1] >= first and kept.issuperset(key)}
        self._paths = {key: one for key, one in self._paths.items() if key[0] >= first and kept.issuperset(key)}


def load_interpolator(options: EngineOptions) -> Interpolator:
    """Load the weights and place the network. Raises UsageError: no such weights, no CUDA, an impossible precision."""
    return Interpolator(options)


def resolve_device(text: str) -> str:
    """auto, cpu, cuda or cuda:N -> the device that is meant. Raises UsageError when it is not there."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise UsageError(f"no device called {text!r}", "Use auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"no device called {text!r}", "Use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"{text} is not there: {torch.cuda.device_count()} CUDA devices", "Use --device cpu.")
    return str(device)


def _resolve_precision(text: str, device: torch.device) -> str:
    if text == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        # Vectors multiply bf16 at twice fp32's rate at most (AVX512-BF16), tiles by Winograd at more: with the matrix
        # unit turned off, frames in fp32 took 55 to 65 % of the time (04-coffee, camel, kite-surf; pruned or not).
        return "bf16" if has_matrix_unit() else "fp32"
    if text not in TYPES:
        raise UsageError(f"no precision called {text!r}", f"Use auto, {', '.join(TYPES)}.")
    if text == "fp16" and device.type == "cpu":
        raise UsageError("fp16 does not run on the CPU", "Use --precision bf16 or fp32.")
    return text


def _resolve_backend(text: str, device: torch.device) -> str:
    if text == "auto":
        return "triton" if device.type == "cuda" and why_not("triton", device) is None else "tiles"
    if text not in BACKENDS:
        raise UsageError(f"no backend called {text!r}", f"Use auto or one of {', '.join(BACKENDS)}.")
    reason = why_not(text, device)
    if reason is not None:
        raise UsageError(f"the {text} backend cannot run on {device}: {reason}", "Use the backend auto.")
    return text


def load_weights(weights: str | None) -> checkpoint.Weights:
    """Weights by path or by the name of weights that ship. Raises UsageError."""
    try:
        return checkpoint.load(weights)
    except checkpoint.WeightsError as error:
        raise UsageError(str(error), "Leave --weights out to use the weights that ship.") from error


def _gate(options: EngineOptions) -> Gate | None:
    if not options.pruning:
        return None
    if options.keep == "auto":
        return hard_gate()
    try:
        return keep_gate(float(options.keep))
    except ValueError as error:
        raise UsageError(f"--keep {options.keep}: {error}", "Use auto or a number from 0 to 1.") from error


def _is_out_of_memory(error: BaseException) -> bool:
    """torch has a type for it on CUDA; on the processor its allocator and oneDNN raise plain RuntimeErrors."""
    text = str(error)
    if "DefaultCPUAllocator" in text or "not enough memory" in text or text == "could not create a primitive":
        return True
    return isinstance(error, torch.OutOfMemoryError | MemoryError)


def _joined(tensors: Sequence[Tensor | None]) -> Tensor:
    """One batch of those that there are; a copy is saved where there is one, which of an 8K frame takes 400 MB."""
    present = [tensor for tensor in tensors if tensor is not None]
    return present[0] if len(present) == 1 else torch.cat(present)
