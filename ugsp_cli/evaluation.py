"""The network measured on samples whose middle frame is known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from ugsp_cli.console import Display
from ugsp_cli.engine import Interpolator, Made, Request
from ugsp_cli.layouts import Clip, Sample, Triplet
from ugsp_cli.pictures import as_frame, from_planes
from ugsp_cli.worst import WorstCases
from ugsp_net.metrics import interpolation_error, psnr, ssim

__all__ = ["Score", "Summary", "by_split", "document", "evaluate", "print_scores", "summarise"]

SCHEMA = 1
"""Version of the JSON layout."""

_GIGA = 1e9


@dataclass(frozen=True)
class Score:
    """One made frame, measured."""

    split: str
    """As in ``Sample``."""
    name: str
    """As in ``Sample``."""
    t: Fraction
    """As in ``Sample``."""
    psnr: float
    """dB."""
    ssim: float
    """At most 1."""
    ie: float
    """Mean absolute difference, 0 to 255."""
    dense_macs: int
    """Of the whole network without pruning, with the encoding of both pictures."""
    performed_macs: int
    """What was done of it."""
    active: tuple[float, ...]
    """Mask of each prunable level, coarse to fine: share of its blocks."""
    level_dense_macs: tuple[int, ...]
    """The prunable work alone, in the same order."""
    level_performed_macs: tuple[int, ...]
    """What was done of it."""
    seconds: float
    """Wall clock of the network, pictures in and picture out."""


@dataclass(frozen=True)
class Summary:
    """Means over samples; their fields' units are those of ``Score``."""

    samples: int
    """How many."""
    psnr: float
    ssim: float
    ie: float
    dense_macs: float
    performed_macs: float
    active: tuple[float, ...]
    level_dense_macs: tuple[float, ...]
    level_performed_macs: tuple[float, ...]
    seconds: float

    def to_json(self, strides: Sequence[int]) -> dict[str, Any]:
        """The same with the names that the statistics use. strides: image pixels per position of each level."""
        return {
            "samples": self.samples,
            "psnr": self.psnr,
            "ssim": self.ssim,
            "ie": self.ie,
            "dense_gmacs": self.dense_macs / _GIGA,
            "performed_gmacs": self.performed_macs / _GIGA,
            "skipped_fraction": 1 - self.performed_macs / self.dense_macs,
            "levels": [
                {
                    "stride": stride,
                    "active_fraction": active,
                    "dense_gmacs": dense / _GIGA,
                    "performed_gmacs": performed / _GIGA,
                }
                for stride, active, dense, performed in zip(
                    strides, self.active, self.level_dense_macs, self.level_performed_macs, strict=True
                )
            ],
            "seconds_per_frame": self.seconds,
        }


def evaluate(
    items: Sequence[Triplet] | Sequence[Clip], engine: Interpolator, display: Display, worst: WorstCases | None = None
) -> list[Score]:
    """Make and measure the middle frame of every sample. Raises InputError, DecodeError.

    Every sample stands for itself, as in papers: both its pictures are encoded for it, even if another sample has them.
    """
    scores: list[Score] = []
    display.begin("evaluate", sum(item.count for item in items))
    try:
        for batch in _batches(items, engine):
            engine.reset()
            requests = [_request(sample, 4 * index) for index, sample in enumerate(batch)]
            if not scores:  # what is compiled, and made of weights, is not to count
                engine.interpolate(requests[:1])
                engine.reset()
            begin = time.perf_counter()
            made = engine.interpolate(requests, masks=worst is not None)
            seconds = (time.perf_counter() - begin) / len(batch)
            for sample, one in zip(batch, made, strict=True):
                scores.append(_score(sample, one, seconds))
                if worst is not None:
                    assert one.masks is not None
                    worst.offer(scores[-1].psnr, sample, from_planes(one.planes), one.masks)
                display.advance()
    finally:
        display.end()
    return scores


def _request(sample: Sample, first: int) -> Request:
    """first: number of the frame before."""
    before, left, right, after = (
        None if picture is None else as_frame(picture, first + step)
        for step, picture in enumerate((sample.before, sample.left, sample.right, sample.after))
    )
    assert left is not None
    assert right is not None
    return Request(left, right, float(sample.t), before, after)


def summarise(scores: Sequence[Score]) -> Summary:
    """Means over samples. Raises StatisticsError without any."""

    def levels(values: Iterator[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(fmean(level) for level in zip(*values, strict=True))

    return Summary(
        samples=len(scores),
        psnr=fmean(score.psnr for score in scores),
        ssim=fmean(score.ssim for score in scores),
        ie=fmean(score.ie for score in scores),
        dense_macs=fmean(score.dense_macs for score in scores),
        performed_macs=fmean(score.performed_macs for score in scores),
        active=levels(score.active for score in scores),
        level_dense_macs=levels(score.level_dense_macs for score in scores),
        level_performed_macs=levels(score.level_performed_macs for score in scores),
        seconds=fmean(score.seconds for score in scores),
    )


def by_split(scores: Sequence[Score]) -> dict[str, Summary]:
    """A summary of each split, in their order; empty where there is only one nameless split."""
    splits: dict[str, list[Score]] = {}
    for score in scores:
        splits.setdefault(score.split, []).append(score)
    return {} if set(splits) == {""} else {name: summarise(part) for name, part in splits.items()}


def document(layout: str, folder: Path, scores: Sequence[Score], engine: Interpolator) -> dict[str, Any]:
    """What `--json` writes."""
    return {
        "schema": SCHEMA,
        "layout": layout,
        "folder": str(folder),
        "model": {
            "name": engine.model_name,
            "weights_sha256": engine.weights_sha256,
            "parameters": engine.parameters,
        },
        "device": engine.device,
        "precision": engine.precision,
        "backend": engine.backend,
        "mean": summarise(scores).to_json(engine.strides),
        "splits": {name: summary.to_json(engine.strides) for name, summary in by_split(scores).items()},
        "samples": [
            {
                "split": score.split,
                "name": score.name,
                "t": float(score.t),
                "psnr": score.psnr,
                "ssim": score.ssim,
                "ie": score.ie,
                "dense_gmacs": score.dense_macs / _GIGA,
                "performed_gmacs": score.performed_macs / _GIGA,
                "active_fractions": list(score.active),
            }
            for score in scores
        ],
    }


def print_scores(console: Console, scores: Sequence[Score], strides: Sequence[int]) -> None:
    """The table of a run."""
    active = [f"active 1/{stride}" for stride in strides]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("split")
    for heading in ("samples", "PSNR dB", "SSIM", "IE", "GMACs dense", "done", *active, "s/frame"):
        table.add_column(heading, justify="right")
    for name, summary in [*by_split(scores).items(), ("all", summarise(scores))]:
        table.add_row(
            name,
            str(summary.samples),
            f"{summary.psnr:.2f}",
            f"{summary.ssim:.4f}",
            f"{summary.ie:.2f}",
            f"{summary.dense_macs / _GIGA:.2f}",
            f"{summary.performed_macs / _GIGA:.2f}",
            *(f"{share:.1%}" for share in summary.active),
            f"{summary.seconds:.3f}",
        )
    console.print(table)
    console.print("Means over samples, 8-bit RGB. GMACs per made frame, with the encoding of both given frames.")


def _batches(items: Sequence[Triplet] | Sequence[Clip], engine: Interpolator) -> Iterator[list[Sample]]:
    """Successive samples of one size, as many as the engine makes at once."""
    batch: list[Sample] = []
    for sample in (sample for item in items for sample in item.samples()):
        if batch and (len(batch) >= engine.batch_size or sample.left.shape != batch[0].left.shape):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def _score(sample: Sample, made: Made, seconds: float) -> Score:
    picture = from_planes(made.planes)
    return Score(
        split=sample.split,
        name=sample.name,
        t=sample.t,
        psnr=psnr(picture, sample.truth),
        ssim=ssim(picture, sample.truth),
        ie=interpolation_error(picture, sample.truth),
        dense_macs=made.dense_macs,
        performed_macs=made.performed_macs,
        active=made.active,
        level_dense_macs=made.level_dense_macs,
        level_performed_macs=made.level_performed_macs,
        seconds=seconds,
    )
