"""A short measurement during a run, on clips that are not trained on: middle frames restored, dense and pruned."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ugsp_net.cost import network_cost
from ugsp_net.masks import hard_gate
from ugsp_net.metrics import psnr, ssim
from ugsp_net.network import UGSP
from ugsp_net.precision import autocast
from ugsp_net.training.clips import ClipBank, Shot


@dataclass(frozen=True)
class Example:
    """Where the outer frames and the true middle one lie in a bank."""

    shot: Shot
    first: int
    span: int
    """Frames from one outer frame to the other, even."""


SPAN = 4
"""Source frames between outer frames where a shot is long enough: of two, noise leaves little to tell weights by."""


class Validation:
    """A fixed choice of triplets from a bank, as many from each clip as can be, spread over its shots."""

    def __init__(self, bank: ClipBank, count: int = 24) -> None:
        """Raises ValueError where the bank has no shot of at least 64 pixels a side."""
        self.bank = bank
        by_clip: dict[str, list[Example]] = {}
        for shot in bank.shots:
            if min(shot.height, shot.width) >= 64:
                span = SPAN if shot.frames > SPAN else 2
                spots = sorted({(shot.frames - 1 - span) * part // 4 for part in (2, 1, 3)}, key=lambda spot: spot % 7)
                by_clip.setdefault(shot.clip, []).extend(Example(shot, spot, span) for spot in spots)
        turns = zip_longest(*by_clip.values())
        self.examples = [example for turn in turns for example in turn if example is not None][:count]
        if not self.examples:
            raise ValueError("no clip to validate on has shots of at least 64 pixels a side")

    @torch.no_grad()
    def measure(self, net: UGSP) -> dict[str, float]:
        """Means over the triplets: PSNR (dB) and SSIM of the unpruned and the pruned network, and the share of the
        dense MACs that pruning skips."""
        device = next(net.parameters()).device
        t = torch.tensor([0.5], device=device)
        found: dict[str, list[float]] = {}
        for example in self.examples:
            shown = self._shown(example.shot, net.config.alignment)
            first, last = example.first, example.first + example.span
            pair = _tensor(shown[first], device), _tensor(shown[last], device)
            # As far before and after as they are apart, where the shot has such frames.
            before, after = (
                _tensor(shown[number], device) if 0 <= number < len(shown) else None
                for number in (first - example.span, last + example.span)
            )
            truth = shown[first + example.span // 2].copy()
            height, width = truth.shape[:2]
            cost = network_cost(net.config, width, height)
            with autocast(device, "auto"):
                full, pruned = (net(*pair, t, gate, before, after) for gate in (None, hard_gate()))
            active = [float(mask.mean()) for mask in pruned.masks]
            values = {"skipped": (cost.dense - cost.performed(active)) / cost.triplet}
            for name, made in (("", full), ("_pruned", pruned)):
                picture = _picture(made.frame)
                values[f"psnr{name}"] = psnr(picture, truth)
                values[f"ssim{name}"] = ssim(picture, truth)
            for name, value in values.items():
                found.setdefault(name, []).append(value)
        return {name: fmean(values) for name, values in sorted(found.items())}

    def _shown(self, shot: Shot, alignment: int) -> NDArray[np.uint8]:
        """A view [frames, H, W, 3] of the middle of a shot's pictures, at the network's alignment."""
        height, width = (side - side % alignment for side in (shot.height, shot.width))
        y, x = (shot.height - height) // 2, (shot.width - width) // 2
        return self.bank.frames(shot)[:, y : y + height, x : x + width]


def hold_out(bank: ClipBank, one_in: int = 20) -> tuple[ClipBank, ClipBank | None]:
    """The bank to train on, and every so-manieth of its clips to validate on; None where there are too few clips."""
    clips = sorted({shot.clip for shot in bank.shots})
    chosen = set(clips[one_in // 2 :: one_in])
    if len(clips) < one_in or not chosen:
        return bank, None
    parts = [[shot for shot in bank.shots if (shot.clip in chosen) == wanted] for wanted in (False, True)]
    return ClipBank(bank.path, parts[0]), ClipBank(bank.path, parts[1])


def _tensor(frame: NDArray[np.uint8], device: torch.device) -> Tensor:
    """[H, W, 3] 8-bit -> [1, 3, H, W] in [0, 1]."""
    # A copy: torch does not take what is mapped for reading only.
    return torch.from_numpy(frame.copy()).to(device).permute(2, 0, 1)[None].float() / 255


def _picture(frame: Tensor) -> NDArray[np.uint8]:
    """[1, 3, H, W] about [0, 1] -> [H, W, 3] 8-bit."""
    return (frame[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
