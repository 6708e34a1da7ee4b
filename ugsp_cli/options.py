"""The options that commands share: groups of click options, each handed to the command as one validated object.

Only click and light standard modules are imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ugsp_cli.encoders import EncodeOptions
    from ugsp_cli.engine import EngineOptions, Interpolator
    from ugsp_cli.pipeline import RateWish

__all__ = [
    "DocumentType",
    "EncodeChoice",
    "FiniteRange",
    "NetworkChoice",
    "RateChoice",
    "SceneChoice",
    "Talk",
    "encode_options",
    "network_options",
    "rate_options",
    "scene_options",
    "stats_option",
    "talk_options",
]

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

DEFAULT_SCENE_THRESHOLD = 10.0
"""Equals `pipeline.SCENE_THRESHOLD`, which cannot be imported here at no cost; a test compares the two."""


class RateType(click.ParamType):
    """A frame rate, read exactly."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Fraction:
        """Text to Fraction."""
        from ugsp_cli.timeline import parse_rate

        if isinstance(value, Fraction):
            return value
        try:
            return parse_rate(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class AutoOr(click.ParamType):
    """The word `auto`, or a number of another type."""

    def __init__(self, other: click.ParamType, name: str) -> None:
        self.other = other
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text to `auto` or a number."""
        return "auto" if str(value).lower() == "auto" else self.other.convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """A number in a range; none that is infinite, or not a number, which no comparison shuts out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text to a number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number to count with", param, ctx)
        return number


class DocumentType(click.Path):
    """A file to write to; `-`, also by its name as a device, is stdout."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, allow_dash=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text to a path."""
        return super().convert("-" if str(value) in ("/dev/stdout", "/dev/fd/1") else value, param, ctx)


class KeyValue(click.ParamType):
    """`name=value`."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Text to a pair."""
        if isinstance(value, tuple):
            return value
        key, equals, setting = str(value).partition("=")
        if not key or not equals:
            self.fail(f"'{value}' is not of the form NAME=VALUE, for example tune=film", param, ctx)
        return key, setting


@dataclass(frozen=True)
class RateChoice:
    """The wanted rate: exactly one field is set."""

    fps: Fraction | None = None
    multiplier: int | None = None
    slow_motion: int | None = None

    def wish(self) -> RateWish:
        """The same for the pipeline."""
        from ugsp_cli.pipeline import RateWish

        return RateWish(fps=self.fps, multiplier=self.multiplier, slow_motion=self.slow_motion)


@dataclass(frozen=True)
class NetworkChoice:
    """Which network, where and how."""

    weights: str | None
    device: str
    precision: str
    pruning: bool
    keep: str | float
    flow_scale: str
    batch_size: str | int
    backend: str

    def engine_options(self) -> EngineOptions:
        """The same for the engine."""
        from ugsp_cli.engine import EngineOptions

        return EngineOptions(
            weights=self.weights,
            device=self.device,
            precision=self.precision,
            pruning=self.pruning,
            keep=self.keep,
            flow_scale=self.flow_scale,
            batch_size=self.batch_size,
            backend=self.backend,
        )

    def load(self) -> Interpolator:
        """Load the network. Raises UgspError."""
        from ugsp_cli import engine
        from ugsp_cli.console import print_note
        from ugsp_net import cpu, gpu

        for kind, where in ((cpu, "processor"), (gpu, "graphics card")):
            told = f"compiling for this {where}, which takes up to a minute; later runs find it done."
            kind.before_compiling[:] = [functools.partial(print_note, told)]
        return engine.load_interpolator(self.engine_options())

    def picture_settings(self) -> dict[str, Any]:
        """What of this changes the output's pixels on purpose, apart from the weights."""
        settings = {"precision": self.precision, "pruning": self.pruning, "keep": self.keep if self.pruning else None}
        # Left out where it is auto, so that records of earlier versions still match.
        return settings if self.flow_scale == "auto" else {**settings, "flow_scale": self.flow_scale}


@dataclass(frozen=True)
class EncodeChoice:
    """How the output is encoded."""

    codec: str | None = None
    crf: float | None = None
    preset: str | None = None
    pix_fmt: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    def encode_options(self) -> EncodeOptions:
        """The same for the writer."""
        from ugsp_cli.encoders import EncodeOptions

        return EncodeOptions(
            codec=self.codec, crf=self.crf, preset=self.preset, pix_fmt=self.pix_fmt, options=dict(self.options)
        )


@dataclass(frozen=True)
class SceneChoice:
    """What counts as a scene cut."""

    threshold: float | None = DEFAULT_SCENE_THRESHOLD
    """scdet score, 0 to 100; None looks for no cuts."""


@dataclass(frozen=True)
class Talk:
    """How much is said."""

    quiet: bool
    verbose: bool


def rate_options(slow_motion: bool = True) -> Decorator:
    """Hands the command `rate: RateChoice`. slow_motion: whether the command knows that way too."""
    names = ["--fps", "--multiplier"] + ["--slow-motion"] * slow_motion

    def collect(fps: Fraction | None, multiplier: int | None, slow_motion: int | None = None) -> RateChoice:
        if sum(wish is not None for wish in (fps, multiplier, slow_motion)) != 1:
            raise click.UsageError(f"Say how many frames you want: give one of {', '.join(names)}.")
        return RateChoice(fps, multiplier, slow_motion)

    options = [
        click.option(
            "--fps", type=RateType(), metavar="RATE", help="Frame rate of the output: 60, 59.94 or 60000/1001."
        ),
        click.option("--multiplier", type=click.IntRange(1), metavar="N", help="N times the frame rate of the input."),
    ]
    if slow_motion:
        help_text = "Slow down N times: N times the frames, shown at the input's rate. The sound is left out."
        options.append(click.option("--slow-motion", type=click.IntRange(1), metavar="N", help=help_text))
    return _group("rate", ["fps", "multiplier"] + ["slow_motion"] * slow_motion, collect, options)


def network_options() -> Decorator:
    """Hands the command `network: NetworkChoice`."""
    fraction = FiniteRange(0, 1)
    return _group(
        "network",
        ["weights", "device", "precision", "pruning", "keep", "flow_scale", "batch_size", "backend"],
        NetworkChoice,
        [
            click.option(
                "--weights", metavar="PATH|NAME", help="Trained weights: a file, or a name that ships with ugsp."
            ),
            click.option(
                "--device",
                default="auto",
                metavar="auto|cpu|cuda|cuda:N",
                help="Where the network runs. auto: the first CUDA card, else the processor.",
            ),
            click.option(
                "--precision",
                type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
                default="auto",
                help="Number format of the network. auto: the fastest that the device does well.",
            ),
            click.option(
                "--pruning/--no-pruning",
                default=True,
                help="Skip the work that the picture does not need (default), or compute everything.",
            ),
            click.option(
                "--keep",
                type=AutoOr(fraction, "share"),
                default="auto",
                metavar="auto|SHARE",
                help="Share of the prunable work to do, from 0 to 1: less is faster, more is finer. "
                "auto: as much as each picture needs. 0: the search for motion alone, without the network.",
            ),
            click.option(
                "--flow-scale",
                type=click.Choice(["auto", "1", "0.5", "0.25"]),
                default="auto",
                help="Size at which motion is looked for, as a share of the picture: smaller finds larger motion, "
                "faster. auto: 1 up to 1440 lines, 0.5 for 4K, 0.25 for 8K.",
            ),
            click.option(
                "--batch-size",
                type=AutoOr(click.IntRange(1), "number"),
                default="auto",
                metavar="auto|N",
                help="Frames that are computed at once; more need more memory.",
            ),
            click.option(
                "--backend",
                type=click.Choice(["auto", "reference", "tiles", "triton"]),
                default="auto",
                help="How skipping is done. auto: triton on an NVIDIA card, else tiles. reference computes everything "
                "and masks it.",
            ),
        ],
    )


def encode_options() -> Decorator:
    """Hands the command `encode: EncodeChoice`."""
    return _group(
        "encode",
        ["codec", "crf", "preset", "pix_fmt", "options"],
        EncodeChoice,
        [
            click.option(
                "--codec",
                metavar="NAME",
                help="Video encoder, for example libx264, libx265, libsvtav1, ffv1. Default: libx264 (libvpx-vp9 for "
                "webm). `ugsp doctor` lists those that work here.",
            ),
            click.option(
                "--crf",
                type=FiniteRange(0),
                metavar="X",
                help="Constant quality on the encoder's own scale: lower is better and larger. Default: what is hard "
                "to tell from the input, 18 for libx264. `--encoder-option b=8M` asks for a bit rate instead.",
            ),
            click.option("--preset", metavar="NAME", help="Speed of the encoder, for example fast or slow."),
            click.option(
                "--pix-fmt", metavar="NAME", help="Pixel format, for example yuv420p10le. Default: the input's."
            ),
            click.option(
                "--encoder-option",
                "options",
                type=KeyValue(),
                multiple=True,
                metavar="NAME=VALUE",
                help="Any other option of the encoder, for example tune=film. May be repeated.",
            ),
        ],
    )


def scene_options() -> Decorator:
    """Hands the command `scene: SceneChoice`."""

    def collect(scene_threshold: float, scene_detection: bool) -> SceneChoice:
        return SceneChoice(scene_threshold if scene_detection else None)

    return _group(
        "scene",
        ["scene_threshold", "scene_detection"],
        collect,
        [
            click.option(
                "--scene-threshold",
                type=FiniteRange(0, 100),
                default=DEFAULT_SCENE_THRESHOLD,
                show_default=True,
                metavar="X",
                help="How different two frames must be to count as a scene cut, 0 to 100. Across a cut the frame "
                "before it is held.",
            ),
            click.option(
                "--scene-detection/--no-scene-detection",
                default=True,
                help="Look for scene cuts (default), or interpolate across them too.",
            ),
        ],
    )


def stats_option() -> Decorator:
    """Hands the command `stats_file: Path | None`; `-` means stdout."""
    return click.option(
        "--stats",
        "stats_file",
        type=DocumentType(),
        metavar="FILE",
        help="Write what was computed and what was skipped as JSON; - writes to stdout instead of the tables.",
    )


def talk_options() -> Decorator:
    """Hands the command `talk: Talk`."""

    def collect(quiet: bool, verbose: bool) -> Talk:
        if quiet and verbose:
            raise click.UsageError("--quiet and --verbose contradict each other.")
        return Talk(quiet, verbose)

    return _group(
        "talk",
        ["quiet", "verbose"],
        collect,
        [
            click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
            click.option("-v", "--verbose", is_flag=True, help="Say more: which weights ran, where and how."),
        ],
    )


def _group(target: str, names: list[str], collect: Callable[..., Any], options: Sequence[Decorator]) -> Decorator:
    """A decorator that adds the options and hands the command `collect(**values)` as its parameter `target`."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(*args: Any, **values: Any) -> Any:
            values[target] = collect(**{name: values.pop(name) for name in names})
            return command(*args, **values)

        decorated: Command = wrapper
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate
