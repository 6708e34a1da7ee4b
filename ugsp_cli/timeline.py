"""The exact output timeline: which source frames, and which instant between them, make each output frame.

Pure arithmetic in Fractions: nothing here reads a file or knows about pixels. Time is never a float.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Literal

__all__ = ["RateGrid", "Slot", "SlotKind", "Timeline", "format_rate", "parse_rate", "resolve_rate"]

SlotKind = Literal["copied", "interpolated", "held"]

MAX_RATE = 1000
"""The highest rate that is accepted, frames per second; above it a container's millisecond stamps would collide."""
MAX_TERM = 2**31 - 1
"""The largest numerator and denominator of a rate that FFmpeg stores."""

_RATE_PATTERN = re.compile(r"(?P<whole>\d{1,9})(?:\.(?P<decimals>\d{1,12})|/(?P<denominator>\d{1,9}))?")


@dataclass(frozen=True)
class Slot:
    """One output frame."""

    index: int
    """k: the number of the output frame, from 0."""
    time: Fraction
    """Output time, seconds: start + k / output rate."""
    source: int
    """Index of the source frame at or before this instant."""
    t: Fraction
    """Position between frames `source` and `source + 1`, in [0, 1); 0 for copied and held frames."""
    kind: SlotKind
    """copied: the instant is exactly that of `source`. interpolated: between `source` and `source + 1`. held: repeats
    `source`, because a cut or a duplicate follows, or because `source` is the last frame."""


class Timeline:
    """Turns source times, as they arrive, into output slots.

    Output frame k shows the source at `start + k / rate / slowdown` and carries the time `start + k / rate`. Slots come
    out as soon as they are certain, that is, when the first source frame after their instant is known.
    """

    def __init__(self, rate: Fraction, start: Fraction | None = None, slowdown: int = 1) -> None:
        """rate: output frames per second. start: seconds, the first output instant; None takes the first frame's time.
        slowdown: how many seconds of output one second of source becomes."""
        if rate <= 0:
            raise ValueError(f"the output rate must be above 0, not {rate}")
        if slowdown < 1:
            raise ValueError(f"the slow-down must be 1 or more, not {slowdown}")
        self.rate = rate
        self.start = start
        self.slowdown = slowdown
        self._next = 0  # k of the next slot
        self._source = -1  # index of the newest source frame
        self._time = Fraction(0)  # its time, seconds
        self._finished = False

    def push(self, time: Fraction, cut: bool = False, duplicate: bool = False) -> list[Slot]:
        """Take the next source frame and return the slots before it.

        time: seconds, above the previous frame's. cut: a scene cut lies between the previous frame and this one.
        duplicate: this frame shows the same picture as the previous one. In both cases nothing lies between the two,
        so the instants between them hold the previous frame.
        """
        if self._finished:
            raise ValueError("a frame came after the timeline was finished")
        if self._source < 0:
            if self.start is None:
                self.start = time
        elif time <= self._time:
            raise ValueError(f"source times must increase: {time} s came after {self._time} s")
        slots = self._slots_before(time, hold=cut or duplicate)
        self._source += 1
        self._time = time
        return slots

    def finish(self, last_duration: Fraction) -> list[Slot]:
        """End the source and return the remaining slots: the last frame is held for its own duration (seconds)."""
        if last_duration < 0:
            raise ValueError(f"the last frame cannot last {last_duration} s")
        if self._finished:
            raise ValueError("the timeline was finished before")
        self._finished = True
        if self._source < 0:
            return []
        return self._slots_before(self._time + last_duration, hold=True)

    def _slots_before(self, end: Fraction, hold: bool) -> list[Slot]:
        """All slots not yet given whose instant lies before `end` (seconds), the newest frame being on their left."""
        assert self.start is not None  # set by the first push
        # The first k whose instant start + k / rate / slowdown is not before `end`.
        stop = ceil((end - self.start) * self.rate * self.slowdown)
        slots = [self._slot(k, end, hold) for k in range(self._next, stop)]
        self._next = max(self._next, stop)
        return slots

    def _slot(self, k: int, right: Fraction, hold: bool) -> Slot:
        assert self.start is not None
        instant = self.start + k / (self.rate * self.slowdown)
        time = self.start + k / self.rate
        # Before the first frame (where a `start` before it was given) there is nothing but that frame to show.
        if self._source < 0 or (hold and instant != self._time):
            return Slot(k, time, max(self._source, 0), Fraction(0), "held")
        if instant == self._time:
            return Slot(k, time, self._source, Fraction(0), "copied")
        t = (instant - self._time) / (right - self._time)
        return Slot(k, time, self._source, t, "interpolated")


class RateGrid:
    """Takes a container's rounding out of the time stamps of a video of constant rate.

    Matroska stores milliseconds, so a 30 fps video reads 0, 33, 67, 100 ms; taken literally, only every third source
    frame would meet an instant of 60 fps. A stamp that lies within one tick of the nominal grid goes back onto it. (One
    tick, because the first frame's stamp, which anchors the grid, may be off by half a tick as well.)
    """

    def __init__(self, rate: Fraction | None, tick: Fraction) -> None:
        """rate: the nominal constant rate, None for variable rate. tick: the container's time unit, seconds."""
        period = 1 / rate if rate else Fraction(0)
        # Where a period is a whole number of ticks nothing was rounded, and where a tick is a large part of a period
        # the stamps say too little to correct them by.
        self._period = period if period >= 8 * tick > 0 and (period / tick).denominator != 1 else None
        self._tick = tick
        self._start: Fraction | None = None

    def time(self, time: Fraction) -> Fraction:
        """The time, seconds, that the stamp `time` was rounded from, as far as that can be told."""
        if self._period is None:
            return time
        if self._start is None:
            self._start = time
        exact = self._start + round((time - self._start) / self._period) * self._period
        return exact if abs(exact - time) <= self._tick else time

    def duration(self, duration: Fraction) -> Fraction:
        """The duration, seconds, that `duration` was rounded from, as far as that can be told."""
        if self._period is None or abs(duration - self._period) > self._tick:
            return duration
        return self._period


def parse_rate(text: str) -> Fraction:
    """Read a frame rate: a whole number, a decimal or a fraction (`60`, `59.94`, `60000/1001`).

    A decimal that is a rounded NTSC rate means that rate: 23.976, 29.97, 47.952, 59.94, 119.88 and so on. Raises
    ValueError with a message for the user.
    """
    match = _RATE_PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a frame rate; write 60, 59.94 or 60000/1001")
    denominator = match["denominator"]
    if denominator is not None and int(denominator) == 0:
        raise ValueError(f"'{text}' is not a frame rate; its denominator is 0")
    rate = Fraction(match[0])
    if match["decimals"]:
        rate = _ntsc_rate(rate, len(match["decimals"])) or rate
    if not 0 < rate <= MAX_RATE:
        raise ValueError(f"the frame rate must be above 0 and at most {MAX_RATE}, not {text.strip()}")
    if rate.numerator > MAX_TERM:
        raise ValueError(f"the frame rate {text.strip()} has more decimals than can be stored; six are enough")
    return rate


def format_rate(rate: Fraction) -> str:
    """A rate as people write it, for file names and messages: `60`, `59.94`, `23.976`, `12.5`."""
    if rate.denominator == 1:
        return str(rate.numerator)
    for decimals in (2, 3):
        text = f"{float(rate):.{decimals}f}".rstrip("0")
        # 23.98 reads back as 24000/1001 too, but everybody writes 23.976: two decimals must be close to do.
        if not text.endswith(".") and abs(Fraction(text) - rate) < Fraction(1, 1000) and parse_rate(text) == rate:
            return text
    return f"{float(rate):.3f}".rstrip("0").rstrip(".")


def resolve_rate(
    source_rate: Fraction,
    *,
    fps: Fraction | None = None,
    multiplier: Fraction | int | None = None,
    slow_motion: int | None = None,
) -> tuple[Fraction, int]:
    """The output rate (frames per second) and the slow-down that one of the three ways to ask for them means."""
    if sum(wish is not None for wish in (fps, multiplier, slow_motion)) != 1:
        raise ValueError("give exactly one of --fps, --multiplier and --slow-motion")
    rate, slowdown = source_rate, 1
    if fps is not None:
        rate = fps
    elif multiplier is not None:
        rate = source_rate * multiplier
    elif slow_motion is not None:
        if slow_motion < 1:
            raise ValueError(f"the slow-down must be 1 or more, not {slow_motion}")
        slowdown = slow_motion
    if not 0 < rate <= MAX_RATE:
        raise ValueError(f"the output rate must be above 0 and at most {MAX_RATE} frames per second, not {rate}")
    if max(rate.numerator, rate.denominator) > MAX_TERM:
        raise ValueError(f"the output rate {rate} cannot be stored: give it by --fps")
    return rate, slowdown


def _ntsc_rate(rate: Fraction, decimals: int) -> Fraction | None:
    """The NTSC rate (a multiple of 24 or 30, by 1000/1001) that is `rate` at that many decimals, if there is one."""
    nominal = round(rate * Fraction(1001, 1000))
    if decimals < 2 or nominal == 0 or (nominal % 24 and nominal % 30):
        return None
    exact = Fraction(nominal * 1000, 1001)
    return exact if abs(exact - rate) <= Fraction(1, 2 * 10**decimals) else None
