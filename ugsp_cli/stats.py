"""What a run did and what it skipped: per output frame, per level, per file.

Two different things are counted, and both are reported even where they differ. The *active fraction* is the mask: the
share of a level's positions that the network decided to compute. The *performed* work is what the backend really did:
a level that is computed whole, because less would not pay, counts whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugsp_cli.errors import UgspError

if TYPE_CHECKING:
    from ugsp_cli.engine import Made
    from ugsp_cli.timeline import Slot, SlotKind

__all__ = [
    "SCHEMA",
    "FrameCounts",
    "FrameRecord",
    "JobStats",
    "LevelStats",
    "ModelIdentity",
    "StageSeconds",
    "StatsRecorder",
    "write_json",
]

SCHEMA = 1
"""Version of the JSON layout; it grows when a name changes its meaning or goes away, not when one is added."""

_GIGA = 1e9


@dataclass(frozen=True)
class ModelIdentity:
    """Which network made the frames."""

    name: str
    """Name of the configuration, as stored with the weights."""
    weights_sha256: str
    """Checksum of the weights file, hexadecimal."""
    parameters: int
    """Number of learned values."""


@dataclass(frozen=True)
class FrameCounts:
    """How many frames came in and what became of the output instants."""

    source: int = 0
    """Source frames read."""
    interpolated: int = 0
    """Output frames made by the network."""
    copied: int = 0
    """Output frames that are a source frame, because their instants coincide."""
    held: int = 0
    """Output frames that repeat a source frame: across a cut, between duplicates, after the last frame."""
    scene_cuts: int = 0
    """Source frames that begin a new scene."""
    duplicates: int = 0
    """Source frames that show the same picture as the one before."""

    @property
    def output(self) -> int:
        """Output frames of all kinds."""
        return self.interpolated + self.copied + self.held


@dataclass(frozen=True)
class LevelStats:
    """One prunable level of the network, over all interpolated frames."""

    stride: int
    """Image pixels per position, in each direction."""
    active_fraction: float
    """Mean share of positions that the masks kept, in [0, 1]."""
    dense_macs: int
    """Multiply-accumulate operations without pruning."""
    performed_macs: int
    """Multiply-accumulate operations that were done."""


@dataclass(frozen=True)
class StageSeconds:
    """Wall-clock seconds. The stages overlap, so they need not sum to the total."""

    total: float = 0.0
    """From the first frame read to the last one written."""
    decode: float = 0.0
    """Time in which the decoder was busy."""
    network: float = 0.0
    """Time in which the network was busy."""
    encode: float = 0.0
    """Time in which the encoder was busy."""


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One interpolated frame. Slim, because a long film has hundreds of thousands."""

    pts_seconds: float
    """Its instant in the output, seconds."""
    source: int
    """Index of the source frame on its left."""
    t: float
    """Position between that frame and the next, in (0, 1)."""
    active_fraction: float
    """Mask over all prunable levels, each weighted with its dense work, in [0, 1]."""
    level_active: tuple[float, ...]
    """Mask of each prunable level, coarse to fine, in [0, 1]."""


@dataclass(frozen=True)
class JobStats:
    """Everything that one file's run has to tell."""

    input: str
    """Path of the source."""
    output: str | None
    """Path of the result; None where nothing was written."""
    model: ModelIdentity
    device: str
    """Where the network ran: `cpu`, `cuda:0`."""
    precision: str
    """Number format of its convolutions: `fp32`, `bf16`, `fp16`."""
    backend: str
    """How pruned convolutions were computed."""
    frames: FrameCounts
    dense_macs: int
    """Work of the whole network without pruning, encoder included."""
    performed_macs: int
    """Work that was done."""
    levels: tuple[LevelStats, ...]
    """The prunable levels, coarse to fine."""
    seconds: StageSeconds
    per_frame: tuple[FrameRecord, ...] = field(repr=False)
    """One record per interpolated frame, in output order."""
    notes: tuple[str, ...] = ()
    """What the user should know about this output: streams left out, frames dropped. Not part of the JSON."""

    @property
    def skipped_fraction(self) -> float:
        """Share of the dense work that was not done, in [0, 1]; 0 where there was no work."""
        return 1.0 - self.performed_macs / self.dense_macs if self.dense_macs else 0.0

    def to_json(self) -> dict[str, Any]:
        """The record as `--stats` writes it."""
        return {
            "schema": SCHEMA,
            "input": self.input,
            "output": self.output,
            "model": {
                "name": self.model.name,
                "weights_sha256": self.model.weights_sha256,
                "parameters": self.model.parameters,
            },
            "device": self.device,
            "precision": self.precision,
            "backend": self.backend,
            "frames": {
                "source": self.frames.source,
                "output": self.frames.output,
                "interpolated": self.frames.interpolated,
                "copied": self.frames.copied,
                "held": self.frames.held,
                "scene_cuts": self.frames.scene_cuts,
                "duplicates": self.frames.duplicates,
            },
            "compute": {
                "dense_gmacs": self.dense_macs / _GIGA,
                "performed_gmacs": self.performed_macs / _GIGA,
                "skipped_fraction": self.skipped_fraction,
                "levels": [
                    {
                        "stride": level.stride,
                        "active_fraction": level.active_fraction,
                        "dense_gmacs": level.dense_macs / _GIGA,
                        "performed_gmacs": level.performed_macs / _GIGA,
                    }
                    for level in self.levels
                ],
            },
            "seconds": {
                "total": self.seconds.total,
                "decode": self.seconds.decode,
                "network": self.seconds.network,
                "encode": self.seconds.encode,
            },
            "per_frame": [
                {
                    "pts_seconds": record.pts_seconds,
                    "source": record.source,
                    "t": record.t,
                    "active_fraction": record.active_fraction,
                }
                for record in self.per_frame
            ],
        }


class StatsRecorder:
    """Collects a run's counts while it goes on. Used from one thread."""

    def __init__(self, strides: Sequence[int]) -> None:
        """strides: image pixels per position of each prunable level, coarse to fine."""
        self._strides = tuple(strides)
        self._source = self._scene_cuts = self._duplicates = 0
        self._slots: dict[SlotKind, int] = {"interpolated": 0, "copied": 0, "held": 0}
        self._dense = self._performed = 0
        self._level_active = [0.0] * len(self._strides)
        self._level_dense = [0] * len(self._strides)
        self._level_performed = [0] * len(self._strides)
        self._records: list[FrameRecord] = []

    def add_source(self, *, cut: bool, duplicate: bool) -> None:
        """Count a source frame."""
        self._source += 1
        self._scene_cuts += cut
        self._duplicates += duplicate

    def add_output(self, kind: SlotKind) -> None:
        """Count an output frame."""
        self._slots[kind] += 1

    def add_made(self, slot: Slot, made: Made) -> None:
        """Count the work behind one interpolated frame."""
        self._dense += made.dense_macs
        self._performed += made.performed_macs
        for level, active in enumerate(made.active):
            self._level_active[level] += active
            self._level_dense[level] += made.level_dense_macs[level]
            self._level_performed[level] += made.level_performed_macs[level]
        self._records.append(
            FrameRecord(
                pts_seconds=float(slot.time),
                source=slot.source,
                t=float(slot.t),
                active_fraction=_weighted_mean(made.active, made.level_dense_macs),
                level_active=tuple(made.active),
            )
        )

    def counts(self) -> FrameCounts:
        """The frames counted so far."""
        return FrameCounts(
            source=self._source,
            interpolated=self._slots["interpolated"],
            copied=self._slots["copied"],
            held=self._slots["held"],
            scene_cuts=self._scene_cuts,
            duplicates=self._duplicates,
        )

    def result(
        self,
        *,
        input: str,
        output: str | None,
        model: ModelIdentity,
        device: str,
        precision: str,
        backend: str,
        seconds: StageSeconds,
        notes: Sequence[str] = (),
    ) -> JobStats:
        """Close the books."""
        made = len(self._records)
        return JobStats(
            input=input,
            output=output,
            model=model,
            device=device,
            precision=precision,
            backend=backend,
            frames=self.counts(),
            dense_macs=self._dense,
            performed_macs=self._performed,
            levels=tuple(
                LevelStats(stride, active / made if made else 0.0, dense, performed)
                for stride, active, dense, performed in zip(
                    self._strides, self._level_active, self._level_dense, self._level_performed, strict=True
                )
            ),
            seconds=seconds,
            per_frame=tuple(self._records),
            notes=tuple(notes),
        )


def write_json(document: dict[str, Any], path: Path) -> None:
    """Write a statistics document, whole or not at all; into a pipe, a device or what a process holds open (/dev/fd/3)
    as it is. Raises UgspError."""
    text = json.dumps(document, indent=1) + "\n"
    try:
        held_open = str(path.absolute()).startswith(("/dev/fd/", "/dev/std", "/proc/"))
        if held_open or (path.exists() and not path.is_file()):
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
            return
        path = path.resolve()  # a link stays one
        temporary = path.with_name(f".{path.name[:50]}.part")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UgspError(
            f"{path} cannot be written: {error.strerror}", "Check its folder and the free space."
        ) from error


def _weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    total = sum(weights)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / total if total else 0.0
