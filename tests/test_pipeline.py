"""The pipeline with a stand-in for the network: counts, times, memory, and what happens when a stage fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.clips import Clip, Sound, make_clip
from tests.fakes import ACTIVE, FakeEngine
from ugsp_cli import encoders, pipeline
from ugsp_cli.console import SilentDisplay
from ugsp_cli.decode import FrameReader
from ugsp_cli.encode import FrameWriter
from ugsp_cli.encoders import EncodeOptions
from ugsp_cli.engine import Made, Request
from ugsp_cli.errors import OutputError, UgspError, UsageError
from ugsp_cli.pipeline import Job, Limits, RateWish, check_job, run_job
from ugsp_cli.timeline import parse_rate

LOSSLESS = EncodeOptions(codec="ffv1")


class CountingDisplay(SilentDisplay):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int | None]] = []
        self.advanced = 0
        self.ended = 0

    def begin(self, label: str, total: int | None) -> None:
        self.begun.append((label, total))

    def advance(self) -> None:
        self.advanced += 1

    def end(self) -> None:
        self.ended += 1


def job_to(tmp_path: Path, source: Path, **changes: Any) -> Job:
    """A job for 60 fps with everything else as usual."""
    settings: dict[str, Any] = {"rate": RateWish(fps=Fraction(60)), "output": tmp_path / "out.mp4", **changes}
    return Job(source, **settings)


def stage_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ugsp-")]


def pairs(engine: FakeEngine) -> set[tuple[int, int]]:
    return {(request.left.index, request.right.index) for request in engine.requests}


def read_times(path: Path) -> list[Fraction]:
    """Times of a video's frames, seconds, as stored."""
    with av.open(str(path)) as container:
        return [Fraction(frame.pts or 0) * Fraction(frame.time_base or 0) for frame in container.decode(video=0)]


def read_luma(path: Path) -> list[np.ndarray]:
    with FrameReader(path) as reader:
        return [frame.planes[0] for frame in reader]


def left_behind(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("source_rate", "wanted", "frames", "expected"),
    [
        ("24", "60", 12, 30),
        ("25", "60", 10, 24),
        ("30", "60", 10, 20),
        ("23.976", "59.94", 12, 30),
        ("30", "24", 15, 12),
    ],
)
def test_counts_and_durations(tmp_path: Path, source_rate: str, wanted: str, frames: int, expected: int) -> None:
    rate, wish = parse_rate(source_rate), parse_rate(wanted)
    source = make_clip(tmp_path / "in.mp4", Clip(frames, rate))
    display = CountingDisplay()
    stats = run_job(job_to(tmp_path, source, rate=RateWish(fps=wish)), FakeEngine(), display)
    times = read_times(tmp_path / "out.mp4")
    assert times == [k / wish for k in range(expected)]
    assert stats.frames.source == frames
    assert stats.frames.output == expected == display.advanced
    assert stats.frames.interpolated == len(stats.per_frame)
    assert display.begun == [("in.mp4", expected)]
    assert display.ended == 1


def test_multiplier_keeps_every_source_frame(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(8, Fraction(25)))
    stats = run_job(job_to(tmp_path, source, rate=RateWish(multiplier=2)), FakeEngine(), SilentDisplay())
    assert (stats.frames.copied, stats.frames.interpolated, stats.frames.held) == (8, 7, 1)
    assert read_times(tmp_path / "out.mp4") == [Fraction(k, 50) for k in range(16)]


def test_slow_motion_keeps_the_rate_and_lasts_longer(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(8, Fraction(25)))
    stats = run_job(job_to(tmp_path, source, rate=RateWish(slow_motion=3)), FakeEngine(), SilentDisplay())
    assert stats.frames.output == 24
    assert read_times(tmp_path / "out.mp4") == [Fraction(k, 25) for k in range(24)]


def test_variable_rate_is_sampled_at_exact_instants(tmp_path: Path) -> None:
    times = [Fraction(n, 100) for n in (0, 4, 10, 11, 20, 26, 30)]
    source = make_clip(tmp_path / "in.mkv", Clip(times=times, time_base=Fraction(1, 1000)))
    engine = FakeEngine()
    stats = run_job(job_to(tmp_path, source, rate=RateWish(fps=Fraction(50))), engine, SilentDisplay())
    shown = read_times(tmp_path / "out.mp4")
    assert shown == [Fraction(k, 50) for k in range(len(shown))]
    # The instants 0, 4, 10, 20, 26, 30 ms * 10 lie on the grid of 20 ms; 110 ms does not.
    assert stats.frames.copied == 6
    for request in engine.requests:
        instant = request.left.time + Fraction(request.t).limit_denominator(10**6) * (
            request.right.time - request.left.time
        )
        assert (instant * 50).denominator == 1


def test_requests_come_in_batches_and_order(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(10, Fraction(15)))
    engine = FakeEngine(batch_size=4)
    stats = run_job(job_to(tmp_path, source), engine, SilentDisplay())
    assert stats.frames.interpolated == 27
    assert engine.batches == [4] * 6 + [3]
    assert engine.resets == 1
    instants = [(request.left.index, request.t) for request in engine.requests]
    assert instants == sorted(instants)
    assert all(request.right.index == request.left.index + 1 for request in engine.requests)


def around(engine: FakeEngine) -> dict[int, tuple[int | None, int | None]]:
    """Of each pair's first frame: the frames before and after the pair."""
    return {
        request.left.index: (
            None if request.before is None else request.before.index,
            None if request.after is None else request.after.index,
        )
        for request in engine.requests
    }


def test_requests_bring_the_frames_before_and_after(tmp_path: Path) -> None:
    """But not across a cut, and not repeated ones."""
    engine = FakeEngine(batch_size=3)
    run_job(job_to(tmp_path, make_clip(tmp_path / "in.mp4", Clip(6, Fraction(30), cut=3))), engine, SilentDisplay())
    assert around(engine) == {0: (None, 2), 1: (0, None), 3: (None, 5), 4: (3, None)}
    repeated = Clip(8, Fraction(30), codec="ffv1", content=lambda number: min(number, max(3, number - 1)))
    engine = FakeEngine(batch_size=1)
    source = make_clip(tmp_path / "in.mkv", repeated)  # frame 4 shows frame 3 again
    run_job(job_to(tmp_path, source, overwrite=True), engine, SilentDisplay())
    assert around(engine) == {0: (None, 2), 1: (0, 3), 2: (1, None), 4: (None, 6), 5: (4, 7), 6: (5, None)}


def test_frames_are_written_in_their_places(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(5, Fraction(30), codec="ffv1"))
    run_job(job_to(tmp_path, source, output=tmp_path / "out.mkv", encode=LOSSLESS), FakeEngine(), SilentDisplay())
    before, after = read_luma(source), read_luma(tmp_path / "out.mkv")
    assert len(after) == 10
    for left, right in zip(after[0::2], before, strict=True):
        np.testing.assert_array_equal(left, right)
    for made, left, right in zip(after[1:-1:2], before, before[1:], strict=False):
        np.testing.assert_allclose(made, (left.astype(float) + right) / 2, atol=0.5)
    np.testing.assert_array_equal(after[-1], before[-1])


def test_nothing_is_interpolated_across_a_cut(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(12, Fraction(30), cut=6))
    engine = FakeEngine()
    stats = run_job(job_to(tmp_path, source), engine, SilentDisplay())
    assert stats.frames.scene_cuts == 1
    assert (5, 6) not in pairs(engine)
    engine = FakeEngine()
    job = job_to(tmp_path, source, scene_threshold=None, overwrite=True)
    assert run_job(job, engine, SilentDisplay()).frames.scene_cuts == 0
    assert (5, 6) in pairs(engine)


def test_duplicates_are_held(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(10, Fraction(30), codec="ffv1", content=lambda number: number // 2))
    stats = run_job(job_to(tmp_path, source), FakeEngine(), SilentDisplay())
    assert stats.frames.duplicates == 5
    assert (stats.frames.copied, stats.frames.interpolated, stats.frames.held) == (10, 4, 6)


@pytest.mark.parametrize("frames", [1, 10])
def test_still_videos_need_no_network(tmp_path: Path, frames: int) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(frames, Fraction(25), codec="ffv1", content=lambda number: 0))
    engine = FakeEngine()
    stats = run_job(job_to(tmp_path, source, rate=RateWish(fps=Fraction(50))), engine, SilentDisplay())
    assert engine.requests == []
    assert stats.frames.output == 2 * frames
    assert stats.skipped_fraction == 0.0
    assert stats.to_json()["compute"]["levels"][0]["active_fraction"] == 0.0


def test_without_output_everything_is_counted_and_nothing_written(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(6, Fraction(30)))
    display = CountingDisplay()
    stats = run_job(job_to(tmp_path, source, output=None), FakeEngine(), display)
    assert stats.output is None
    assert display.advanced == stats.frames.output == 12
    assert [level.active_fraction for level in stats.levels] == pytest.approx(list(ACTIVE))
    assert left_behind(tmp_path) == {"in.mp4"}


@pytest.mark.parametrize("limits", [Limits(waiting_frames=2), Limits(waiting_bytes=1)])
def test_source_frames_are_let_go(limits: Limits, tmp_path: Path) -> None:
    """However long the video, only the frames around the present instant are held."""
    import gc

    from ugsp_cli.decode import Frame

    source = make_clip(tmp_path / "in.mp4", Clip(30, Fraction(30)))
    most = 0

    def count() -> None:
        nonlocal most
        most = max(most, sum(type(thing) is Frame for thing in gc.get_objects()))

    engine = FakeEngine(batch_size=1, before=count)
    engine.requests = _Forgetful()
    gc.collect()  # what the tests before left in cycles
    run_job(job_to(tmp_path, source, limits=limits), engine, SilentDisplay())
    assert 2 <= most <= 8


class _Forgetful(list[Request]):
    def extend(self, values: Any) -> None:
        """Keep nothing."""


class _Boom(Exception):
    """An error that nobody expects."""


class FailingEngine(FakeEngine):
    """Fails at its third batch."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(batch_size=1)
        self._error = error

    def interpolate(self, requests: Sequence[Request]) -> list[Made]:
        if len(self.batches) == 2:
            raise self._error
        return super().interpolate(requests)


@pytest.mark.parametrize("stage", ["decode", "network", "encode", "close", "display"])
def test_an_error_in_any_stage_surfaces_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(40, Fraction(30)))
    (tmp_path / "out.mp4").write_bytes(b"an older output")
    boom = _Boom(stage)
    engine, display = FakeEngine(batch_size=1), CountingDisplay()

    def fail(*_: object) -> None:
        raise boom

    if stage == "decode":
        frames = FrameReader.__iter__

        def broken(reader: FrameReader) -> Any:
            for number, frame in enumerate(frames(reader)):
                if number == 7:
                    raise boom
                yield frame

        monkeypatch.setattr(FrameReader, "__iter__", broken)
    elif stage == "network":
        engine = FailingEngine(boom)
    elif stage == "encode":
        monkeypatch.setattr(FrameWriter, "write", fail)
    elif stage == "close":
        monkeypatch.setattr(FrameWriter, "close", fail)
    else:
        monkeypatch.setattr(display, "advance", fail)
    with pytest.raises(_Boom) as caught:
        run_job(job_to(tmp_path, source, overwrite=True), engine, display)
    assert caught.value is boom
    assert caught.value.__context__ is None or isinstance(caught.value.__context__, Exception)
    assert stage_threads() == []
    assert display.ended == 1
    assert left_behind(tmp_path) == {"in.mp4", "out.mp4"}
    assert (tmp_path / "out.mp4").read_bytes() == b"an older output"


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.mark.parametrize("number", SIGNALS)
def test_interrupts_leave_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(40, Fraction(30)))
    handlers = [signal.getsignal(each) for each in SIGNALS]
    engine = FakeEngine(batch_size=1, before=lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        run_job(job_to(tmp_path, source), engine, SilentDisplay())
    assert stage_threads() == []
    assert left_behind(tmp_path) == {"in.mp4"}
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


def test_a_second_interrupt_does_not_disturb_the_clean_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(40, Fraction(30)))
    discard = FrameWriter.discard

    def impatient(writer: FrameWriter) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        discard(writer)

    monkeypatch.setattr(FrameWriter, "discard", impatient)
    engine = FakeEngine(batch_size=1, before=lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_job(job_to(tmp_path, source), engine, SilentDisplay())
    assert left_behind(tmp_path) == {"in.mp4"}


def test_runs_outside_the_main_thread(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(4, Fraction(30)))
    done: list[int] = []
    thread = threading.Thread(
        target=lambda: done.append(run_job(job_to(tmp_path, source), FakeEngine(), SilentDisplay()).frames.output)
    )
    thread.start()
    thread.join(60)
    assert done == [8]


def test_what_the_network_had_to_give_up_is_told(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(4, Fraction(30)))
    engine = FakeEngine()
    engine.notes.append("memory ran out")
    assert "memory ran out" in run_job(job_to(tmp_path, source), engine, SilentDisplay()).notes


def test_who_waits_for_the_encoder_hears_of_the_card_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(4, Fraction(30)))
    opened: list[str] = []

    def opens(name: str) -> bool:
        opened.append(name)
        return True

    monkeypatch.setattr(encoders, "_opens_at_all", opens)
    monkeypatch.setattr(av, "codecs_available", {"h264_nvenc"})

    def told(engine: FakeEngine, **changes: Any) -> bool:
        notes = run_job(job_to(tmp_path, source, overwrite=True, **changes), engine, SilentDisplay()).notes
        return any("--codec h264_nvenc" in note for note in notes)

    engine = FakeEngine()
    monkeypatch.setattr(FrameWriter, "close", slow(FrameWriter.close))
    assert not told(engine)
    monkeypatch.setattr(FakeEngine, "device", "cuda:0")
    monkeypatch.setattr(pipeline, "_short_turns", nullcontext)
    assert told(engine)
    assert not told(engine, encode=LOSSLESS, output=tmp_path / "out.mkv")
    assert not told(engine, output=tmp_path / "out.webm")
    assert not told(FakeEngine(8, before=lambda: time.sleep(1.5)))
    assert opened == ["h264_nvenc"]


def slow(close: Callable[[FrameWriter], None]) -> Callable[[FrameWriter], None]:
    """An encoder with much to do in the end."""

    def closes(writer: FrameWriter) -> None:
        time.sleep(0.5)
        close(writer)

    return closes


def test_sound_is_copied_but_not_into_slow_motion(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(sounds=[Sound()]))
    run_job(job_to(tmp_path, source), FakeEngine(), SilentDisplay())
    assert _packets(tmp_path / "out.mp4") == _packets(source)
    job = job_to(tmp_path, source, rate=RateWish(slow_motion=2), overwrite=True)
    notes = run_job(job, FakeEngine(), SilentDisplay()).notes
    assert any("audio" in note for note in notes)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio


def _packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_check_job_finds_what_would_stop_it(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(4, Fraction(30)))
    assert check_job(job_to(tmp_path, source)).width == 96
    with pytest.raises(OutputError, match="is the input"):
        check_job(job_to(tmp_path, source, output=source, overwrite=True))
    (tmp_path / "out.mp4").touch()
    with pytest.raises(OutputError, match="exists"):
        check_job(job_to(tmp_path, source))
    with pytest.raises(UsageError):
        check_job(job_to(tmp_path, source, output=None, rate=RateWish(multiplier=100)))
    with pytest.raises(UgspError, match="no such file"):
        check_job(job_to(tmp_path, tmp_path / "missing.mp4"))
    assert left_behind(tmp_path) == {"in.mp4", "out.mp4"}
