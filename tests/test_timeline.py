"""The timeline's promises, as properties: exact instants, exact count, nothing skipped, nothing out of order."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugsp_cli.timeline import RateGrid, Slot, Timeline, format_rate, parse_rate, resolve_rate

RATES = [Fraction(24), Fraction(25), Fraction(30), Fraction(60), Fraction(24000, 1001), Fraction(60000, 1001)]

rates = st.one_of(st.sampled_from(RATES), st.fractions(min_value=1, max_value=240, max_denominator=1001))
gaps = st.lists(st.integers(min_value=1, max_value=20000), min_size=0, max_size=30)
starts = st.fractions(min_value=-5, max_value=1000, max_denominator=90000)
marks = st.lists(st.sampled_from(["", "cut", "duplicate"]), min_size=31, max_size=31)


def run(
    times: Sequence[Fraction],
    last_duration: Fraction,
    rate: Fraction,
    slowdown: int = 1,
    marks: Sequence[str] | None = None,
) -> list[Slot]:
    timeline = Timeline(rate, slowdown=slowdown)
    slots: list[Slot] = []
    for number, time in enumerate(times):
        mark = marks[number] if marks else ""
        new = timeline.push(time, cut=mark == "cut", duplicate=mark == "duplicate")
        assert all((slot.time - times[0]) / slowdown + times[0] < time for slot in new)
        slots += new
    return slots + timeline.finish(last_duration)


def constant(rate: Fraction, frames: int, start: Fraction = Fraction(0)) -> list[Fraction]:
    return [start + n / rate for n in range(frames)]


@given(gaps, starts, rates, st.integers(min_value=1, max_value=8), marks, st.integers(min_value=1, max_value=20000))
def test_slots_of_any_source(
    gaps: list[int], start: Fraction, rate: Fraction, slowdown: int, marks: list[str], last: int
) -> None:
    times = [start]
    for gap in gaps:
        times.append(times[-1] + Fraction(gap, 90000))
    last_duration = Fraction(last, 90000)
    slots = run(times, last_duration, rate, slowdown, marks)

    assert len(slots) == ceil((times[-1] - times[0] + last_duration) * slowdown * rate)
    assert [slot.index for slot in slots] == list(range(len(slots)))
    assert all(slot.time == start + slot.index / rate for slot in slots)
    assert all(a.source <= b.source for a, b in pairwise(slots))
    for slot in slots:
        instant = start + slot.index / rate / slowdown
        left = times[slot.source]
        last_frame = slot.source == len(times) - 1
        right = times[slot.source + 1] if not last_frame else left + last_duration
        assert left <= instant < right
        assert 0 <= slot.t < 1
        if slot.kind == "interpolated":
            assert not last_frame
            assert not marks[slot.source + 1]
            assert left + slot.t * (right - left) == instant
            assert slot.t > 0
        elif slot.kind == "copied":
            assert instant == left
            assert slot.t == 0
        else:
            assert last_frame or marks[slot.source + 1]
            assert instant > left
            assert slot.t == 0


@pytest.mark.parametrize(
    ("source", "target", "frames", "count", "copied"),
    [
        (Fraction(24), Fraction(60), 24, 60, 12),
        (Fraction(25), Fraction(60), 25, 60, 5),
        (Fraction(30), Fraction(60), 30, 60, 30),
        (Fraction(24000, 1001), Fraction(60000, 1001), 24, 60, 12),
        (Fraction(30), Fraction(24), 30, 24, 6),
        (Fraction(30), Fraction(30), 30, 30, 30),
        (Fraction(30000, 1001), Fraction(60), 30, 61, 1),
        (Fraction(24), Fraction(60), 1, 3, 1),
    ],
)
def test_constant_rates(source: Fraction, target: Fraction, frames: int, count: int, copied: int) -> None:
    slots = run(constant(source, frames, Fraction(1, 3)), 1 / source, target)
    assert len(slots) == count
    assert sum(slot.kind == "copied" for slot in slots) == copied
    # The output is as long as the input, to within one output frame.
    assert 0 <= count / target - frames / source < 1 / target


def test_24_to_60_positions() -> None:
    slots = run(constant(Fraction(24), 3), Fraction(1, 24), Fraction(60))
    fifth = Fraction(1, 5)
    assert [(slot.source, slot.t) for slot in slots] == [
        *((0, 0 * fifth), (0, 2 * fifth), (0, 4 * fifth), (1, 1 * fifth), (1, 3 * fifth)),
        *((2, 0 * fifth), (2, 0 * fifth), (2, 0 * fifth)),
    ]
    assert [slot.kind for slot in slots][5:] == ["copied", "held", "held"]


def test_variable_rate_keeps_the_sources_own_times() -> None:
    times = [Fraction(n, 1000) for n in (0, 10, 110, 140)]
    slots = run(times, Fraction(60, 1000), Fraction(20))
    assert [(slot.source, slot.t) for slot in slots] == [(0, 0), (1, Fraction(2, 5)), (1, Fraction(9, 10)), (3, 0)]


def test_cut_and_duplicate_hold_the_frame_before() -> None:
    slots = run(constant(Fraction(10), 4), Fraction(1, 10), Fraction(20), marks=["", "cut", "duplicate", ""])
    assert [slot.kind for slot in slots] == ["copied", "held"] * 2 + ["copied", "interpolated"] + ["copied", "held"]
    assert [slot.source for slot in slots] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_slow_motion() -> None:
    slots = run(constant(Fraction(25), 5), Fraction(1, 25), Fraction(25), slowdown=4)
    assert len(slots) == 20
    assert [slot.source for slot in slots] == [n // 4 for n in range(20)]
    assert slots[5].time == Fraction(5, 25)
    assert slots[5].t == Fraction(1, 4)


def test_start_before_the_first_frame_shows_the_first_frame() -> None:
    timeline = Timeline(Fraction(10), start=Fraction(0))
    slots = timeline.push(Fraction(2, 10)) + timeline.finish(Fraction(1, 10))
    assert [(slot.source, slot.kind) for slot in slots] == [(0, "held"), (0, "held"), (0, "copied")]


def test_no_frames_make_no_slots() -> None:
    assert Timeline(Fraction(60)).finish(Fraction(1)) == []


def test_misuse_is_refused() -> None:
    timeline = Timeline(Fraction(60))
    timeline.push(Fraction(1))
    with pytest.raises(ValueError, match="must increase"):
        timeline.push(Fraction(1))
    with pytest.raises(ValueError, match="cannot last"):
        timeline.finish(Fraction(-1))
    timeline.finish(Fraction(1))
    with pytest.raises(ValueError, match="finished"):
        timeline.push(Fraction(2))
    with pytest.raises(ValueError, match="finished"):
        timeline.finish(Fraction(1))
    with pytest.raises(ValueError, match="rate"):
        Timeline(Fraction(0))
    with pytest.raises(ValueError, match="slow-down"):
        Timeline(Fraction(60), slowdown=0)


@given(st.sampled_from(RATES), st.integers(min_value=1, max_value=2000), st.integers(min_value=0, max_value=999))
def test_grid_takes_out_the_rounding_to_milliseconds(rate: Fraction, frames: int, first: int) -> None:
    tick = Fraction(1, 1000)
    grid = RateGrid(rate, tick)
    start = Fraction(first, 1000)
    for n in (0, 1, frames // 2, frames):
        rounded = round((start + n / rate) * 1000) * tick
        assert grid.time(rounded) == start + n / rate
    assert grid.duration(round(1000 / rate) * tick) == 1 / rate


def test_grid_leaves_true_times_alone() -> None:
    tick = Fraction(1, 1000)
    assert RateGrid(None, tick).time(Fraction(34, 1000)) == Fraction(34, 1000)
    grid = RateGrid(Fraction(30), tick)
    assert grid.time(Fraction(0)) == 0
    assert grid.time(Fraction(50, 1000)) == Fraction(50, 1000)  # in the middle between two frames
    assert grid.duration(Fraction(50, 1000)) == Fraction(50, 1000)
    # Exact clocks: 512 ticks are a frame of 24 fps, so 511 are meant.
    assert RateGrid(Fraction(24), Fraction(1, 12288)).time(Fraction(511, 12288)) == Fraction(511, 12288)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("60", Fraction(60)),
        (" 60 ", Fraction(60)),
        ("25.000", Fraction(25)),
        ("12.5", Fraction(25, 2)),
        ("60000/1001", Fraction(60000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("47.952", Fraction(48000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("59.940", Fraction(60000, 1001)),
        ("119.88", Fraction(120000, 1001)),
        ("59.9", Fraction(599, 10)),
        ("59.95", Fraction(1199, 20)),
    ],
)
def test_parse_rate(text: str, rate: Fraction) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "fast", "-60", "0", "0/1", "60/0", "1e3", "nan", "inf", "60.", "1001", "60 fps", "59.123456789"]
)
def test_parse_rate_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (Fraction(60), "60"),
        (Fraction(60000, 1001), "59.94"),
        (Fraction(24000, 1001), "23.976"),
        (Fraction(48000, 1001), "47.952"),
        (Fraction(25, 2), "12.5"),
        (Fraction(1, 3), "0.333"),
    ],
)
def test_format_rate(rate: Fraction, text: str) -> None:
    assert format_rate(rate) == text


def test_resolve_rate() -> None:
    film = Fraction(24000, 1001)
    assert resolve_rate(film, fps=Fraction(60)) == (Fraction(60), 1)
    assert resolve_rate(film, multiplier=2) == (Fraction(48000, 1001), 1)
    assert resolve_rate(film, slow_motion=4) == (film, 4)
    with pytest.raises(ValueError, match="exactly one"):
        resolve_rate(film)
    with pytest.raises(ValueError, match="exactly one"):
        resolve_rate(film, fps=Fraction(60), multiplier=2)
    with pytest.raises(ValueError, match="at most"):
        resolve_rate(film, multiplier=100)
    with pytest.raises(ValueError, match="cannot be stored"):
        resolve_rate(Fraction(2**31 - 1, 2**30), multiplier=3)
    with pytest.raises(ValueError, match="slow-down"):
        resolve_rate(film, slow_motion=0)
