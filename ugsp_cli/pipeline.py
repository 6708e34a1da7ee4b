"""One file from end to end: the only place where video code and network meet.

    decode thread -> channel -> timeline and network, this thread -> channel -> encode thread

The channels are short, so the fastest stage waits for the slowest and memory does not depend on the length of the
video. Of the source only the pair around the present instant and the frames before and after it are held here; what
waits for the network holds its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ugsp_cli.atomic import check_target
from ugsp_cli.decode import Frame, FrameReader
from ugsp_cli.encode import FrameWriter, check_output
from ugsp_cli.encoders import EncodeOptions, card_encoder
from ugsp_cli.errors import OutputError, UsageError
from ugsp_cli.media import MediaInfo, probe
from ugsp_cli.naming import same_file
from ugsp_cli.stages import Channel, Stages, Stopwatch, one_interrupt
from ugsp_cli.stats import JobStats, ModelIdentity, StageSeconds, StatsRecorder
from ugsp_cli.timeline import Slot, Timeline, resolve_rate

if TYPE_CHECKING:
    import numpy as np

    from ugsp_cli.console import Display
    from ugsp_cli.engine import Made, Request

__all__ = ["SCENE_THRESHOLD", "Engine", "Job", "Limits", "RateWish", "check_job", "expected_frames", "run_job"]

SCENE_THRESHOLD = 10.0
"""scdet score, 0 to 100, from which a frame begins a new scene: the filter's own default."""


class Engine(Protocol):
    """What the pipeline asks of `ugsp_cli.engine.Interpolator`."""

    model_name: str
    weights_sha256: str
    parameters: int
    device: str
    precision: str
    backend: str
    strides: tuple[int, ...]
    batch_size: int
    notes: list[str]
    """What the user should know of the frames since ``reset``."""

    def interpolate(self, requests: Sequence[Request]) -> list[Made]:
        """The requested frames, in order."""

    def reset(self) -> None:
        """Forget the frames of the file before; indices start again."""


@dataclass(frozen=True)
class RateWish:
    """How the user asked for the output's rate: exactly one field is set."""

    fps: Fraction | None = None
    """Frames per second."""
    multiplier: int | None = None
    """Times the source's average rate."""
    slow_motion: int | None = None
    """Times the source's frames, shown at the source's rate."""

    def resolve(self, source_rate: Fraction) -> tuple[Fraction, int]:
        """Output frames per second, and the slow-down. Raises UsageError."""
        try:
            return resolve_rate(source_rate, fps=self.fps, multiplier=self.multiplier, slow_motion=self.slow_motion)
        except ValueError as error:
            raise UsageError(str(error), "Give one of --fps, --multiplier and --slow-motion.") from error


TURN = 1e-4
"""Seconds that a thread may keep others from running Python."""


@dataclass(frozen=True)
class Limits:
    """What a run may take."""

    waiting_frames: int = 64
    """Frames that may wait between two stages: more than come out of a batch, so that the next one need not wait."""
    waiting_bytes: int = 256 << 20
    """What they may take together; two frames may wait whatever they take."""


@dataclass(frozen=True)
class Job:
    """One file to convert."""

    input: Path
    output: Path | None
    """None: everything but encoding, for the statistics."""
    rate: RateWish
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    overwrite: bool = False
    """Whether an existing output may be replaced."""
    scene_threshold: float | None = SCENE_THRESHOLD
    """scdet score, 0 to 100, from which nothing is interpolated across; None looks for no scene cuts."""
    limits: Limits = field(default_factory=Limits)
    label: str = ""
    """How progress calls this file; empty takes the input's name."""


@contextmanager
def _short_turns() -> Iterator[None]:
    """Inside, threads take short turns at Python: one that calls torch thousands of times a second may wait up to 5 ms
    for its turn after each call. 20 s of 1920x1080 took 11.9 s instead of 14.1 on a card (H200), 16 s of 448x256 9.5
    instead of 10.0 on two cores."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@dataclass(frozen=True)
class _Output:
    """One output frame on its way to the encoder."""

    planes: tuple[np.ndarray, ...]
    time: Fraction


@dataclass(frozen=True)
class _Pending:
    """One output frame whose turn has not come: a frame before it in the output waits for the network."""

    slot: Slot
    left: Frame
    request: Request | None
    """None: `left` itself is shown."""

    def followed_by(self, frame: Frame) -> _Pending:
        """The same, now that the frame after its pair is known."""
        return self if self.request is None else replace(self, request=replace(self.request, after=frame))


def run_job(job: Job, engine: Engine, display: Display) -> JobStats:
    """Convert one file, or only measure it, and return what was done.

    Raises UgspError, KeyboardInterrupt (also for SIGTERM) or the error of the stage that failed first. Whatever is
    raised, every thread has ended by then and no temporary file is left.
    """
    with one_interrupt(), ExitStack() as stack:
        reader = stack.enter_context(FrameReader(job.input, scene_detection=job.scene_threshold is not None))
        rate, slowdown = job.rate.resolve(reader.info.rate)
        writer = None
        if job.output is not None:
            writer = stack.enter_context(
                FrameWriter(
                    job.output,
                    reader.info,
                    rate,
                    job.encode,
                    overwrite=job.overwrite,
                    copy_audio=slowdown == 1,
                )
            )
        display.begin(job.label or job.input.name, expected_frames(reader.info, rate, slowdown))
        try:
            return _Run(job, engine, display, reader, writer, Timeline(rate, slowdown=slowdown)).execute()
        finally:
            display.end()


def check_job(job: Job, new_folder: bool = False) -> MediaInfo:
    """Find out what would stop the job before anything is loaded or written; return what the input holds. new_folder:
    whether the output's folder is made first where it is missing.

    Raises UgspError: the input cannot be read, the rate makes no sense, the output may not be written, the encoder or
    the container does not take it.
    """
    info = probe(job.input)
    rate, _ = job.rate.resolve(info.rate)
    if job.output is not None:
        if same_file(job.output, job.input):
            raise OutputError(f"{job.output} is the input", "Choose another name with -o.")
        if job.output.parent.exists() or not new_folder:
            check_target(job.output, job.overwrite)
        check_output(job.output, info, rate, job.encode)
    return info


def expected_frames(info: MediaInfo, rate: Fraction, slowdown: int) -> int | None:
    """About how many frames the output will have; None where the source does not tell its length."""
    duration = info.duration
    if duration is None and info.frames_estimate is not None:
        duration = info.frames_estimate / info.rate
    return None if duration is None else ceil(duration * slowdown * rate)


def _frame_bytes(info: MediaInfo) -> int:
    """Bytes of the planes of one frame."""
    layout = info.layout
    samples = (layout.plane_size(plane, info.width, info.height) for plane in range(layout.planes))
    return sum(rows * columns for rows, columns in samples) * (1 if layout.bits == 8 else 2)


class _Run:
    """The moving parts of one job."""

    def __init__(
        self,
        job: Job,
        engine: Engine,
        display: Display,
        reader: FrameReader,
        writer: FrameWriter | None,
        timeline: Timeline,
    ) -> None:
        self._job = job
        self._engine = engine
        self._display = display
        self._reader = reader
        self._writer = writer
        self._timeline = timeline
        waiting = min(job.limits.waiting_frames, max(2, job.limits.waiting_bytes // _frame_bytes(reader.info)))
        self._decoded: Channel[Frame] = Channel(waiting)
        self._made: Channel[_Output] = Channel(waiting)
        self._decoding, self._computing, self._encoding = Stopwatch(), Stopwatch(), Stopwatch()
        self._recorder = StatsRecorder(engine.strides)
        self._pending: list[_Pending] = []

    def execute(self) -> JobStats:
        """Run all stages to their end."""
        begin = time.perf_counter()
        self._engine.reset()
        with _short_turns(), Stages(self._decoded, self._made) as stages:
            stages.start("ugsp-decode", self._decode)
            if self._writer is not None:
                stages.start("ugsp-encode", self._encode)
            for pending in self._scheduled():
                self._pending.append(pending)
                self._flush_if_due()
            self._flush()
            self._made.close()
            stages.join()
            notes = self._finish_output()
        engine = self._engine
        return self._recorder.result(
            input=str(self._job.input),
            output=None if self._job.output is None else str(self._job.output),
            model=ModelIdentity(engine.model_name, engine.weights_sha256, engine.parameters),
            device=engine.device,
            precision=engine.precision,
            backend=engine.backend,
            seconds=StageSeconds(
                total=time.perf_counter() - begin,
                decode=self._decoding.seconds,
                network=self._computing.seconds,
                encode=self._encoding.seconds,
            ),
            notes=notes,
        )

    def _decode(self) -> None:
        """The decode thread."""
        frames = iter(self._reader)
        while True:
            with self._decoding.running():
                frame = next(frames, None)
            if frame is None:
                break
            self._decoded.put(frame)
        self._decoded.close()

    def _encode(self) -> None:
        """The encode thread."""
        assert self._writer is not None
        for output in self._made:
            with self._encoding.running():
                self._writer.write(output.planes, output.time)
            self._display.advance()

    def _scheduled(self) -> Iterator[_Pending]:
        """The output frames in order, each with the source frames that it needs."""
        from ugsp_cli.engine import Request  # brings torch, which `check_job` need not wait for

        threshold = self._job.scene_threshold
        before: Frame | None = None
        left: Frame | None = None
        waiting: list[_Pending] = []  # for the frame after their pair
        for right in self._decoded:
            cut = left is not None and threshold is not None and right.scene_score >= threshold
            follows = left is not None and not cut and not right.duplicate
            yield from (pending.followed_by(right) if follows else pending for pending in waiting)
            waiting.clear()
            self._recorder.add_source(cut=cut, duplicate=right.duplicate)
            # The slots that became certain lie before `right`, so their left frame is the one read before it.
            for slot in self._timeline.push(right.time, cut=cut, duplicate=right.duplicate):
                assert left is not None  # the first instant is the first frame's own
                request = Request(left, right, float(slot.t), before) if slot.kind == "interpolated" else None
                waiting.append(_Pending(slot, left, request))
            before, left = (left if follows else None), right
        yield from waiting
        if left is not None:
            for slot in self._timeline.finish(self._reader.last_duration):
                yield _Pending(slot, left, None)

    def _flush_if_due(self) -> None:
        """Run the network when a batch is full; pass frames on at once when none before them waits for it.

        The second bound keeps memory flat where a few frames to make lie among many that are shown as they are.
        """
        requests = sum(pending.request is not None for pending in self._pending)
        size = self._engine.batch_size
        if requests == 0 or requests >= size or len(self._pending) >= 4 * size:
            self._flush()

    def _flush(self) -> None:
        """Make what is pending and hand it on, in output order."""
        requests = [pending.request for pending in self._pending if pending.request is not None]
        made: Iterator[Made] = iter(())
        if requests:
            with self._computing.running():
                made = iter(self._engine.interpolate(requests))
        for pending in self._pending:
            self._recorder.add_output(pending.slot.kind)
            planes = pending.left.planes
            if pending.request is not None:
                result = next(made)
                self._recorder.add_made(pending.slot, result)
                planes = result.planes
            if self._writer is not None:
                self._made.put(_Output(planes, pending.slot.time))
            else:
                self._display.advance()
        self._pending.clear()

    def _finish_output(self) -> list[str]:
        """Close the output, which gives it its name, and collect what the user should know about it.

        In the main thread on purpose: an interrupt here still ends the writer's `with` block with an error, and an
        output that was interrupted does not appear.
        """
        notes = [*self._reader.notes, *self._engine.notes]
        if self._reader.corrupt:
            notes.append(f"{self._reader.corrupt} damaged packets of the input were skipped")
        if self._reader.dropped:
            notes.append(f"{self._reader.dropped} source frames were dropped: their time stamps do not increase")
        if self._reader.misplaced:
            notes.append(
                f"{self._reader.misplaced} source frames have times beyond the file's end: each follows the one before"
            )
        if self._writer is not None:
            with self._encoding.running():
                self._writer.close()
            notes.extend(self._writer.notes)
            notes.extend(self._faster_encoder())
        return notes

    def _faster_encoder(self) -> list[str]:
        """What to say where a card waited for the encoder, though it has one itself."""
        waited = self._encoding.seconds > max(self._computing.seconds, self._decoding.seconds)
        output = self._job.output
        if output is None or not waited or self._job.encode.codec or not self._engine.device.startswith("cuda"):
            return []
        name = card_encoder(output, self._reader.info.layout.bits)
        return [f"the encoder was busy longest: --codec {name} encodes on the card"] if name else []
