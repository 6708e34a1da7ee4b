"""Training batches: crops of real clips and synthetic motion, made ahead in worker processes.

Batch number i of a seed is always the same batch, so a resumed run continues exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ugsp_net.training import synthetic
from ugsp_net.training.clips import ClipBank, Shot
from ugsp_net.training.teacher import FlowTeacher


@dataclass(frozen=True)
class BatchPlan:
    """What the batches of a run are made of."""

    size: int = 128
    """Side of the crops in pixels."""
    batch: int = 16
    """Samples per batch."""
    synthetic_first: float = 0.3
    """Share of synthetic samples in the first batch; it falls linearly ..."""
    synthetic_last: float = 0.15
    """... to this share in the last."""
    longest_span: int = 8
    """Source frames between the outer frames of a sample, at most."""
    largest_shift: float = 0.3125
    """Largest shift of a synthetic layer between the outer frames, as a share of the crop's side."""
    context: int = 96
    """Pixels around a crop, on both sides together, in which the search for its flow sees too: in a whole picture what
    moves out of a crop is still there to be found."""
    scaled_share: float = 0.7
    """Share of real samples that are a cut of another size, brought to the crop's: other motions and other sharpness
    from the same clips."""
    scales: tuple[float, float] = (0.4, 1.2)
    """Least and largest side of such a cut, as a share of the crop's. More are smaller, since pictures of more lines
    than the clips have are softer and move by more pixels."""
    still_share: float = 0.1
    """Share of real crops taken whether they move or not."""
    middle_only: bool = False
    """Only the instant 0.5, for networks that know no other."""
    teacher: bool = True
    """Flow labels for real crops by an optical flow that sees the true frame (needs OpenCV)."""

    @property
    def window(self) -> int:
        """Side of a crop with its context, in pixels."""
        return self.size + self.context


@dataclass(frozen=True)
class Batch:
    """Samples of one step. B samples, windows of S pixels: crops with their context."""

    frames: Tensor
    """[B, 3, 3, S, S] uint8 RGB: the frames at 0, t and 1."""
    around: Tensor
    """[B, 2, 3, S, S] uint8 RGB: the frames before and after those."""
    intervals: Tensor
    """[B, 2] fp32: time to them, where that from 0 to 1 is 1; 0: there is no such frame, whatever ``around`` holds."""
    t: Tensor
    """[B] fp32 in (0, 1)."""
    flow: Tensor
    """[B, 4, S, S] fp16: t -> 0 and t -> 1 (x, y), pixels; exact for synthetic samples, the teacher's for real ones."""
    trust: Tensor
    """[B, 1, S, S] fp16 in [0, 1]: how far the flow is believed."""
    real: Tensor
    """[B] bool: from a clip."""
    corner: Tensor
    """[B, 2] int64: first row and column of the crop in its window, even."""

    def crops(self, values: Tensor, size: int, stride: int = 1) -> Tensor:
        """The crops of so many pixels from [B, ..., S / stride, S / stride]."""
        side = size // stride
        corners = (self.corner // stride).tolist()
        pairs = zip(values, corners, strict=True)
        return torch.stack([window[..., y : y + side, x : x + side] for window, (y, x) in pairs])


class Batches(Dataset[Batch]):
    """Batches by number."""

    def __init__(self, bank: ClipBank, plan: BatchPlan, seed: int, steps: int) -> None:
        self.bank = bank
        self.plan = plan
        self.seed = seed
        self.steps = steps
        self._shots = bank.large()
        # The square root keeps long clips from crowding out the short ones.
        weights = np.sqrt([float(shot.frames) for shot in self._shots])
        self._weights: NDArray[np.float64] = weights / weights.sum()
        self._teacher: FlowTeacher | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng((self.seed, index))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        plan = self.plan
        progress = min(1.0, index / max(1, self.steps))
        share = plan.synthetic_first + (plan.synthetic_last - plan.synthetic_first) * progress
        made = int(rng.binomial(plan.batch, share))
        parts = [self._real(rng) for _ in range(plan.batch - made)]
        if made:
            parts.append(self._synthetic(rng, generator, made))
        return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in Batch.__dataclass_fields__))

    def _pick(self, rng: np.random.Generator) -> Shot:
        return self._shots[int(rng.choice(len(self._shots), p=self._weights))]

    def _real(self, rng: np.random.Generator) -> Batch:
        """One augmented crop of a real clip."""
        plan = self.plan
        anything = rng.random() < plan.still_share
        for attempt in range(6):
            shot = self._pick(rng)
            frames = self.bank.frames(shot)
            span = min(int(rng.integers(2, plan.longest_span + 1)), shot.frames - 1)
            # Where a clip has many frames a second, neighbours hardly move: long spans teach more.
            if shot.rate > 40 and rng.random() < 0.5:
                span = min(2 * span, shot.frames - 1)
            if plan.middle_only:
                span -= span % 2
            start = int(rng.integers(0, shot.frames - span))
            middle = int(rng.integers(1, span)) if rng.random() < 0.6 and not plan.middle_only else span // 2
            least, most = plan.scales if rng.random() < plan.scaled_share else (1.0, 1.0)
            scale = float(np.exp(rng.uniform(np.log(least), np.log(most))))
            side = min(round(plan.window * scale), shot.height, shot.width)
            y = int(rng.integers(0, shot.height - side + 1))
            x = int(rng.integers(0, shot.width - side + 1))
            # As far away as the outer frames are from each other, or half as far at least.
            before, after = max(0, start - span), min(shot.frames - 1, start + 2 * span)
            times = before, start, start + middle, start + span, after
            crop = frames[list(times), y : y + side, x : x + side]
            change = np.abs(crop[1, ::4, ::4].astype(np.int16) - crop[3, ::4, ::4]).mean()
            if anything or 3.0 < change < 60.0 or attempt == 5:
                break
        clip = torch.from_numpy(np.ascontiguousarray(crop)).permute(0, 3, 1, 2)  # [5, 3, side, side]
        if side != plan.window:
            resized = F.interpolate(
                clip.float(), (plan.window, plan.window), mode="bilinear", antialias=side > plan.window
            )
            clip = resized.round().clamp(0, 255).to(torch.uint8)
        t = middle / span
        intervals = [gap / span if 2 * gap >= span else 0.0 for gap in (start - before, after - start - span)]
        if rng.random() < 0.5:
            clip, t, intervals = clip.flip(0), 1 - t, intervals[::-1]
        if rng.random() < 0.5:
            clip = clip.flip(3)
        if rng.random() < 0.5:
            clip = clip.flip(2)
        if rng.random() < 0.2:
            clip = clip.transpose(2, 3)
        if rng.random() < 0.3:
            clip = clip[:, torch.from_numpy(rng.permutation(3))]
        clip = clip.contiguous()
        if plan.teacher:
            if self._teacher is None:
                self._teacher = FlowTeacher()
            flow, trust = self._teacher.label(clip[1:4].numpy())
            labels = torch.from_numpy(flow).half()[None], torch.from_numpy(trust).half()[None, None]
        else:
            blank = torch.zeros(1, 5, plan.window, plan.window).half()
            labels = blank[:, :4], blank[:, 4:]
        when = torch.tensor([t], dtype=torch.float32)
        around, known = clip[None, [0, 4]], torch.tensor([intervals])
        return Batch(clip[None, 1:4], around, known, when, *labels, torch.tensor([True]), corners(rng, plan, 1))

    def _synthetic(self, rng: np.random.Generator, generator: torch.Generator, count: int) -> Batch:
        """Layers with textures from clips."""
        plan = self.plan
        full = plan.window + synthetic.MARGIN
        textures = torch.empty(count, synthetic.LAYERS, 3, full, full)
        for texture in textures.flatten(0, 1):
            shot = self._pick(rng)
            frame = self.bank.frames(shot)[int(rng.integers(shot.frames))]
            side = min(int(full * rng.uniform(0.5, 1.5)), shot.height, shot.width)
            y = int(rng.integers(0, shot.height - side + 1))
            x = int(rng.integers(0, shot.width - side + 1))
            cut = torch.from_numpy(frame[y : y + side, x : x + side].copy()).permute(2, 0, 1)[None]
            cut = F.interpolate(cut, (full, full), mode="bilinear", antialias=side > full)[0]
            if rng.random() < 0.3:
                cut = cut[torch.from_numpy(rng.permutation(3))]
            texture.copy_(cut)
        frames, t, flow = synthetic.random_scene(
            textures.div_(255), plan.window, plan.largest_shift * plan.size, generator, plan.middle_only
        )
        trust = torch.ones(count, 1, plan.window, plan.window).half()
        real = torch.zeros(count, dtype=torch.bool)
        none = torch.zeros(count, 2)
        return Batch(frames, frames[:, [0, 2]], none, t, flow, trust, real, corners(rng, plan, count))


def corners(rng: np.random.Generator, plan: BatchPlan, count: int) -> Tensor:
    """``Batch.corner`` of so many samples, anywhere in their windows."""
    return torch.from_numpy(2 * rng.integers(0, plan.context // 2 + 1, (count, 2)))
