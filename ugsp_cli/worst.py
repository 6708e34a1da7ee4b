"""The samples that the network did worst on, as pictures to look at."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ugsp_cli.layouts import Sample
from ugsp_cli.pictures import encode_png
from ugsp_net.metrics import Picture

__all__ = ["WorstCases", "sheet", "tinted"]

GAP = 4
"""Pixels between the pictures of a sheet."""

AMPLIFICATION = 4
"""Of the difference: small ones cannot be seen."""


@dataclass(order=True)
class _Case:
    """A bad one. Ordered so that the best of them comes first."""

    badness: float
    """Minus its PSNR."""
    number: int
    """Makes the order total."""
    psnr: float = field(compare=False)
    name: str = field(compare=False)
    png: bytes = field(compare=False, repr=False)


class WorstCases:
    """Keeps the samples with the lowest PSNR, as PNG files in memory: pictures themselves would need too much."""

    def __init__(self, count: int) -> None:
        """count: how many to keep."""
        self._count = count
        self._heap: list[_Case] = []
        self._seen = 0

    def offer(self, psnr: float, sample: Sample, made: Picture, masks: np.ndarray) -> None:
        """Keep a sample if it is bad enough. masks: as in ``Made``."""
        self._seen += 1
        if len(self._heap) == self._count and -psnr <= self._heap[0].badness:
            return
        name = "_".join(f"{sample.split}/{sample.name}".strip("/").split("/"))
        heapq.heappush(self._heap, _Case(-psnr, self._seen, psnr, name, encode_png(sheet(sample, made, masks))))
        if len(self._heap) > self._count:
            heapq.heappop(self._heap)

    def write(self, folder: Path) -> list[Path]:
        """One file each into a folder, the worst first. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for rank, case in enumerate(sorted(self._heap, reverse=True), 1):
            name = case.name[-50:]  # a clip's may be as long as the system allows
            paths.append(folder / f"{rank:02d}_{case.psnr:.2f}dB_{name}.png")
            paths[-1].write_bytes(case.png)
        return paths


def sheet(sample: Sample, made: Picture, masks: np.ndarray) -> Picture:
    """Six pictures in one: left, truth, right; what was made, its difference (4 times as strong), and the masks.

    masks: as in ``Made``.
    """
    difference = np.abs(made.astype(np.int16) - sample.truth) * AMPLIFICATION
    height, width = made.shape[:2]
    canvas = np.full((2 * height + GAP, 3 * width + 2 * GAP, 3), 128, np.uint8)
    for number, panel in enumerate((sample.left, sample.truth, sample.right, made, difference, tinted(made, masks))):
        row, column = divmod(number, 3)
        top, left = row * (height + GAP), column * (width + GAP)
        canvas[top : top + height, left : left + width] = panel.clip(0, 255).astype(np.uint8)
    return canvas


def tinted(made: Picture, masks: np.ndarray) -> Picture:
    """A picture in grey with what was computed for it in colour: red at stride 8 only, yellow also at 4, white at all
    levels, grey at none.

    masks: as in ``Made``.
    """
    colours = made.mean(axis=2, keepdims=True) / 2 + 127 * masks.transpose(1, 2, 0)
    return np.asarray(colours.astype(np.uint8))
