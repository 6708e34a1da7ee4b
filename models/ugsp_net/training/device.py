"""Training batches made on the training device itself, from a bank of clips that lies in its memory whole.

On a graphics card neither reading the bank nor worker processes keep up with the network. Batch number i of a seed is
always the same batch on one device.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ugsp_net.training import synthetic
from ugsp_net.training.clips import ClipBank
from ugsp_net.training.data import Batch, BatchPlan, corners

CANDIDATES = 6
"""Crops that are looked at for each real sample; the first that moves is taken."""
COARSE = 4
"""Pixels of a crop between those that are looked at."""


class DeviceBatches(Dataset[Batch]):
    """Batches by number, as ``Batches`` makes them, but without flow labels of real crops: nothing is trusted there.

    To be asked for a batch where it is used, not from worker processes.
    """

    def __init__(self, bank: ClipBank, plan: BatchPlan, seed: int, steps: int, device: torch.device) -> None:
        """Copies the bank to the device. Raises ValueError when no shot has pictures of 64 pixels."""
        self.plan = plan
        self.seed = seed
        self.steps = steps
        self.device = device
        shots = bank.large()
        self._frames, self._heights, self._widths = (
            np.array([getattr(shot, name) for shot in shots]) for name in ("frames", "height", "width")
        )
        self._rates = np.array([shot.rate for shot in shots])
        sizes = self._frames * self._heights * self._widths * 3
        ends = np.cumsum(sizes)
        self._offsets = ends - sizes
        # The square root keeps long clips from crowding out the short ones.
        weights = np.sqrt(self._frames)
        self._weights: NDArray[np.float64] = weights / weights.sum()
        self._flat = torch.empty(int(ends[-1]), dtype=torch.uint8, device=device)
        for shot, offset, size in zip(shots, self._offsets, sizes, strict=True):
            self._flat[offset : offset + size] = torch.from_numpy(np.array(bank.frames(shot))).flatten().to(device)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng((self.seed, index))
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        plan = self.plan
        progress = min(1.0, index / max(1, self.steps))
        share = plan.synthetic_first + (plan.synthetic_last - plan.synthetic_first) * progress
        made = int(rng.binomial(plan.batch, share))
        parts = []
        if made < plan.batch:
            parts.append(self._real(rng, plan.batch - made))
        if made:
            parts.append(self._synthetic(rng, generator, made))
        return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in Batch.__dataclass_fields__))

    def _real(self, rng: np.random.Generator, count: int) -> Batch:
        """Augmented crops of real clips."""
        plan, size = self.plan, self.plan.window
        many = count * CANDIDATES
        shots = rng.choice(len(self._weights), many, p=self._weights)
        last = self._frames[shots] - 1
        span = np.minimum(rng.integers(2, plan.longest_span + 1, many), last)
        # Where a clip has many frames a second, neighbours hardly move: long spans teach more.
        longer = (self._rates[shots] > 40) & (rng.random(many) < 0.5)
        span = np.where(longer, np.minimum(2 * span, last), span)
        if plan.middle_only:
            span -= span % 2
        start = rng.integers(0, last - span + 1)
        anywhere = (rng.random(many) < 0.6) & (not plan.middle_only)
        middle = np.where(anywhere, rng.integers(1, span), span // 2)
        # As far away as the outer frames are from each other, or half as far at least.
        before, after = np.maximum(0, start - span), np.minimum(last, start + 2 * span)
        numbers = np.stack((before, start, start + middle, start + span, after), axis=1)  # [many, 5]
        gaps = np.stack((start - before, after - start - span), axis=1)
        intervals = np.where(2 * gaps >= span[:, None], gaps / span[:, None], 0)
        t = middle / span
        back = rng.random(many) < 0.5
        numbers[back], intervals[back], t[back] = numbers[back, ::-1], intervals[back, ::-1], 1 - t[back]
        least, most = plan.scales
        scale = np.exp(rng.uniform(np.log(least), np.log(most), many))
        sides = np.round(size * np.where(rng.random(many) < plan.scaled_share, scale, 1.0)).astype(np.int64)
        flips = rng.random((2, many)) < 0.5
        matrices = self._cut(rng, shots, sides, size, flips, rng.random(many) < 0.2)
        channels = _channels(rng, many)
        anything = rng.random(count) < plan.still_share

        offsets = self._to(self._offsets[shots, None] + numbers * self._bytes(shots)[:, None])
        heights, widths = self._to(self._heights[shots]), self._to(self._widths[shots])
        placed = self._to(matrices)
        coarse = placed * torch.tensor([COARSE, COARSE, 1], device=self.device)
        outer = [
            gather(self._flat, offsets[:, frame], heights, widths, coarse, size // COARSE, smooth=False)
            for frame in (1, 3)
        ]
        change = (outer[0] - outer[1]).abs().mean((1, 2, 3)).view(count, CANDIDATES)
        good = ((change > 3) & (change < 60)) | self._to(anything)[:, None]
        good[:, -1] = True
        taken = good.int().argmax(1) + CANDIDATES * torch.arange(count, device=self.device)  # the first good one

        five = taken.repeat_interleave(5)
        clip = gather(self._flat, offsets[taken].flatten(), heights[five], widths[five], placed[five], size)
        frames = clip.round_().to(torch.uint8).view(count, 5, 3, size, size)
        order = self._to(channels)[taken, None, :, None, None]
        frames = frames.gather(2, order.expand_as(frames))
        return Batch(
            frames[:, 1:4],
            frames[:, [0, 4]],
            self._to(intervals).float()[taken],
            self._to(t).float()[taken],
            torch.zeros(count, 4, size, size, dtype=torch.float16, device=self.device),
            torch.zeros(count, 1, size, size, dtype=torch.float16, device=self.device),
            torch.ones(count, dtype=torch.bool, device=self.device),
            corners(rng, plan, count),
        )

    def _synthetic(self, rng: np.random.Generator, generator: torch.Generator, count: int) -> Batch:
        """Layers with textures from clips."""
        plan = self.plan
        many, full = count * synthetic.LAYERS, plan.window + synthetic.MARGIN
        shots = rng.choice(len(self._weights), many, p=self._weights)
        offsets = self._offsets[shots] + rng.integers(0, self._frames[shots]) * self._bytes(shots)
        sides = (full * rng.uniform(0.5, 1.5, many)).astype(np.int64)
        matrices = self._cut(rng, shots, sides, full, np.zeros((2, many), bool), np.zeros(many, bool))
        order = self._to(_channels(rng, many))[:, :, None, None].expand(-1, -1, full, full)
        heights, widths = self._to(self._heights[shots]), self._to(self._widths[shots])
        cuts = gather(self._flat, self._to(offsets), heights, widths, self._to(matrices), full).gather(1, order) / 255
        textures = cuts.view(count, synthetic.LAYERS, 3, full, full)
        largest = plan.largest_shift * plan.size
        frames, t, flow = synthetic.random_scene(textures, plan.window, largest, generator, plan.middle_only)
        trust = torch.ones(count, 1, plan.window, plan.window, dtype=torch.float16, device=self.device)
        real = torch.zeros(count, dtype=torch.bool, device=self.device)
        none = torch.zeros(count, 2, device=self.device)
        return Batch(frames, frames[:, [0, 2]], none, t, flow, trust, real, corners(rng, plan, count))

    def _cut(
        self,
        rng: np.random.Generator,
        shots: NDArray[np.int64],
        sides: NDArray[np.int64],
        size: int,
        flips: NDArray[np.bool_],
        transposed: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Matrices of squares of these sides, or of what the shots have of them, anywhere in the frames."""
        heights, widths = self._heights[shots], self._widths[shots]
        sides = np.minimum(sides, np.minimum(heights, widths))
        corners = np.stack((rng.integers(0, widths - sides + 1), rng.integers(0, heights - sides + 1)))
        return crop_matrices(corners, sides, size, flips, transposed)

    def _bytes(self, shots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Size of a frame of these shots."""
        frame: NDArray[np.int64] = self._heights[shots] * self._widths[shots] * 3
        return frame

    def _to(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def crop_matrices(
    corners: NDArray[np.int64],
    sides: NDArray[np.int64],
    size: int,
    flips: NDArray[np.bool_],
    transposed: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Matrices [N, 2, 3] from pixels (x, y, 1) of a crop to those of its source.

    corners: [2, N] first column and row of a square in the source; sides: [N] its side, which becomes ``size``;
    flips: [2, N] whether columns and rows are then reversed; transposed: [N] whether they are then exchanged.
    """
    scale = sides / size
    slope = np.where(flips, -scale, scale)
    matrices = np.zeros((len(sides), 2, 3), np.float32)
    matrices[:, [0, 1], [0, 1]] = slope.T
    # Centres lie at halves: the crop's first pixel is the middle of the first ``scale`` pixels of the square.
    matrices[:, :, 2] = (corners + scale / 2 - 0.5 + np.where(flips, scale * (size - 1), 0)).T
    matrices[transposed, :, :2] = matrices[transposed, :, 1::-1]
    return matrices


def gather(
    flat: Tensor,
    offsets: Tensor,
    heights: Tensor,
    widths: Tensor,
    matrices: Tensor,
    size: int,
    smooth: bool = True,
) -> Tensor:
    """Crops [N, 3, size, size] fp32, 0 to 255, of N pictures that lie in one row of bytes.

    flat: uint8, pictures [height, width, 3]; offsets: [N] of their first bytes, multiples of 3; heights, widths: [N];
    matrices: [N, 2, 3] from pixels (x, y, 1) of a crop to those of its picture, without turns but by right angles.
    Bilinear; border pixels are repeated outside. smooth: the mean of 2 x 2 samples where a crop shrinks its picture.
    """
    axis = torch.arange(size, device=flat.device)
    terms = matrices[..., None, None]  # [N, 2, 3, 1, 1]
    x, y = (terms[:, :, 0] * axis + terms[:, :, 1] * axis[:, None] + terms[:, :, 2]).unbind(1)  # [N, size, size]
    pixels, first = flat.view(-1, 3), (offsets // 3)[:, None, None]
    width, right, bottom = (values[:, None, None] for values in (widths, widths - 1, heights - 1))

    def bilinear(x: Tensor, y: Tensor) -> Tensor:
        x, y = x.clamp_min(0).minimum(right), y.clamp_min(0).minimum(bottom)
        x0, y0 = x.long(), y.long()
        x1, y1 = (x0 + 1).minimum(right), (y0 + 1).minimum(bottom)
        above, below = first + y0 * width, first + y1 * width
        part = (x - x0)[..., None]
        upper, lower = (torch.lerp(pixels[row + x0].float(), pixels[row + x1].float(), part) for row in (above, below))
        return torch.lerp(upper, lower, (y - y0)[..., None])

    if smooth:
        # Two samples so far from the middle and a bilinear kernel spread together as far as a triangle of ``scale``
        # pixels each way, which is the usual filter.
        scale = matrices[:, 0, :2].abs().sum(1)
        apart = ((scale**2 - 1).clamp_min(0) / 6).sqrt()[:, None, None]
        four = [(x + i * apart, y + j * apart) for i in (-1, 1) for j in (-1, 1)]
        made = bilinear(*four[0])
        for place in four[1:]:
            made += bilinear(*place)
        made /= 4
    else:
        made = bilinear(x, y)
    return made.permute(0, 3, 1, 2).contiguous()


def _channels(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Orders [N, 3] of the colours: the usual one for most."""
    usual = np.tile(np.arange(3), (count, 1))
    order: NDArray[np.int64] = np.where(rng.random((count, 1)) < 0.3, rng.permuted(usual, axis=1), usual)
    return order
