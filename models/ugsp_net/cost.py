"""Multiply-accumulates: of the dense network, of what a backend really did, and what can never be pruned.

What the paper calls FLOPs are MACs of the convolutions; the correlations and the search of this network count as well.
Its paths do not: they take fewer than 10 for each pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ugsp_net.config import CONTEXT_CHANNELS, STRIDES, NetConfig
from ugsp_net.search import search_macs

PRUNED = (2, 1, 0)
"""Indices into STRIDES of the levels that can be pruned, coarse to fine."""


@dataclass(frozen=True)
class Cost:
    """MACs of one picture size. Pictures already have sides that are multiples of ``config.alignment``."""

    encode: int
    """Encoding one frame, with the refinement's context where there is one; once for every source frame."""
    match: int
    """The search for a pair's first flow; once for every pair."""
    coarse: int
    """The coarsest level; once for every made frame, never pruned."""
    heads: int
    """The mask heads; once for every made frame, never pruned."""
    beside: tuple[int, ...]
    """Per pruned level, coarse to fine: correlation and its reduction, at the last one the enlargement. Tiles do them
    where a level is computed and around; other backends everywhere."""
    prunable: tuple[int, ...]
    """Per pruned level, coarse to fine: the convolutions and projections that masks prune."""
    refine: int
    """The refinement's U-Net; once for every made frame, never pruned; 0 without one."""

    def performed(self, active: Sequence[float], beside: Sequence[float] | None = None) -> int:
        """MACs of one made frame (without encoding and matching) with these shares of the levels computed, and of what
        is beside them (None: all of it)."""
        levels = sum(round(share * macs) for share, macs in zip(active, self.prunable, strict=True))
        shares = [1.0] * len(self.beside) if beside is None else beside
        levels += sum(round(share * macs) for share, macs in zip(shares, self.beside, strict=True))
        return self.coarse + self.heads + levels + self.refine

    @property
    def dense(self) -> int:
        """MACs of one made frame (without encoding and matching), nothing pruned."""
        return self.performed([1.0] * len(self.prunable))

    @property
    def triplet(self) -> int:
        """MACs of one frame made from two that nothing is known of: the figure that papers give."""
        return 2 * self.encode + self.match + self.dense


def network_cost(config: NetConfig, width: int, height: int) -> Cost:
    """The MACs of a network at one picture size. Raises ValueError when the size is not aligned."""
    if width % config.alignment or height % config.alignment:
        raise ValueError(f"{width}x{height} is not a multiple of {config.alignment}")

    def positions(level: int) -> int:
        return (width // STRIDES[level]) * (height // STRIDES[level])

    def pyramid(widths: Sequence[int], inputs: int, beside: int = 0) -> int:
        """Two convolutions at each stride; ``beside``: what joins each output, in multiples of its channels."""
        macs = 0
        for level, channels in enumerate(widths):
            macs += 9 * channels * (inputs + channels) * positions(level)
            inputs = channels + beside * channels
        return macs

    encode = pyramid(config.encoder_channels, 3)
    refine = 0
    if config.refine:
        encode += pyramid(CONTEXT_CHANNELS, 3)
        refine = pyramid([2 * channels for channels in CONTEXT_CHANNELS], 17, beside=1)
        refine += sum(16 * 4 * channels**2 * positions(level) for level, channels in enumerate(CONTEXT_CHANNELS))
        refine += 9 * CONTEXT_CHANNELS[0] * 3 * width * height

    coarsest = len(STRIDES) - 1

    def correlation(level: int) -> int:
        """Of one position."""
        radius = config.matching_radius[level]
        return (2 * radius + 1) ** 2 * config.encoder_channels[level] if radius else 0

    def reduction(level: int) -> int:
        """Of one position's correlation to the channels that enter the head."""
        radius = config.matching_radius[level]
        return (2 * radius + 1) ** 2 * config.matching_channels[level] if radius else 0

    def convolutions(level: int) -> int:
        """Head, 3x3 convolutions and projection of one position."""
        channels, hidden, depth = config.encoder_channels[level], config.widths[level], config.depths[level]
        into = 2 * channels + int(config.any_instant)
        if config.matching_radius[level]:
            into += config.matching_channels[level]
        if level != coarsest:
            into += channels + 4
        out = hidden if level == 0 else 4 + config.encoder_channels[level - 1]
        return 9 * hidden * (into + depth * hidden) + hidden * (depth + 1) * out

    # A mask head reads the feature of the level above, at that level's stride.
    heads = sum(9 * config.encoder_channels[level] * positions(level + 1) for level in PRUNED)
    beside = [(correlation(level) + reduction(level)) * positions(level) for level in PRUNED]
    beside[-1] += 16 * config.widths[0] * 8 * positions(0)
    return Cost(
        encode=encode,
        match=search_macs(width, height) if config.search else 0,
        coarse=(correlation(coarsest) + reduction(coarsest) + convolutions(coarsest)) * positions(coarsest),
        heads=heads,
        beside=tuple(beside),
        prunable=tuple(convolutions(level) * positions(level) for level in PRUNED),
        refine=refine,
    )
