"""The configuration of a network: everything that fixes its shapes and its cost, and nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

STRIDES = (2, 4, 8, 16)
"""Strides of the encoder's levels, fine to coarse, in image pixels."""

CONTEXT_CHANNELS = (10, 20, 40, 80)
"""Channels of the refinement's context encoder at the same strides (as the paper has them)."""

ACTIVATIONS = ("leaky", "prelu")

VARIANTS = ("plain", "distill", "refine")
"""Of the paper's network."""


@dataclass(frozen=True)
class NetConfig:
    """Shapes of one UGSP network. Tuples over levels run fine to coarse, as ``STRIDES`` does."""

    name: str = "ugsp"
    """Name shown to the user."""
    encoder_channels: tuple[int, int, int, int] = (16, 32, 32, 32)
    """Channels of the encoder's output at strides 2, 4, 8, 16."""
    widths: tuple[int, int, int, int] = (48, 64, 48, 32)
    """Hidden channels of the interpolation levels at strides 2, 4, 8, 16."""
    depths: tuple[int, int, int, int] = (4, 5, 2, 1)
    """3x3 convolutions after the head of each level."""
    matching_radius: tuple[int, int, int, int] = (0, 2, 0, 0)
    """Largest displacement, in positions of the level, of the correlation between both frames' features; 0: none."""
    matching_channels: tuple[int, int, int, int] = (0, 16, 0, 0)
    """Channels to which a level's correlation is reduced before it enters the head."""
    search: bool = True
    """Whether the first flow is looked for by dense inverse search; the paper's network begins with none."""
    activation: str = "leaky"
    """``leaky`` (slope 0.1: nothing to learn, cheap to differentiate) or ``prelu`` (as the paper)."""
    block: int = 16
    """Side of a pruning block in image pixels; a level whose stride is larger uses blocks of one position."""
    any_instant: bool = True
    """Whether the instant t is an input of every level (False: the paper's network, which knows t = 0.5 only)."""
    refine: bool = False
    """Whether RIFE's refinement corrects the frame (the paper's UGSP-refine), not the last level's residual alone."""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")
        if self.block < 2 or self.block & (self.block - 1):
            raise ValueError(f"block must be a power of two of at least 2 pixels, not {self.block}")
        for field in ("encoder_channels", "widths", "depths", "matching_radius", "matching_channels"):
            if len(getattr(self, field)) != len(STRIDES):
                raise ValueError(f"{field} needs one value for each of the strides {STRIDES}")
        if self.matching_radius[0]:
            raise ValueError("there is no matching at stride 2: it would cost more than the level itself")

    @property
    def alignment(self) -> int:
        """Both sides of a picture must be multiples of this many pixels."""
        return max(STRIDES[-1], self.block)

    def grid_stride(self, level: int) -> int:
        """Image pixels between neighbouring mask entries of a level (0: stride 2 ... 2: stride 8)."""
        return max(self.block, STRIDES[level])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a weights file's header."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetConfig:
        """Inverse of ``to_dict``; raises ValueError on a key that this version does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown configuration keys: {', '.join(unknown)}")
        fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in values.items()}
        return cls(**fields)

    @classmethod
    def paper(cls, variant: str = "plain") -> NetConfig:
        """The network of the paper (section 3, 6.8 M parameters, 31.76 GMACs at 448x256), or a variant of it.

        ``distill`` is the same network, trained with two more losses; ``refine`` has the refinement. Raises ValueError
        for another word.
        """
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}")
        return cls(
            name="ugsp-paper" if variant == "plain" else f"ugsp-paper-{variant}",
            encoder_channels=(32, 48, 72, 96),
            widths=(100, 148, 220, 192),
            depths=(4, 5, 5, 5),
            matching_radius=(0, 0, 0, 0),
            matching_channels=(0, 0, 0, 0),
            search=False,
            activation="prelu",
            block=2,
            any_instant=False,
            refine=variant == "refine",
        )
