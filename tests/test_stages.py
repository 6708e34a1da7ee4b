"""Channels and the threads at their ends."""

from __future__ import annotations

import threading
import time

import pytest

from ugsp_cli.stages import Cancelled, Channel, Stages, Stopwatch


def test_a_channel_keeps_order_and_bound() -> None:
    channel: Channel[int] = Channel(3)
    ahead: list[int] = []
    taken: list[int] = []

    def produce() -> None:
        for number in range(50):
            channel.put(number)
            ahead.append(number)
        channel.close()

    with Stages(channel) as stages:
        stages.start("ugsp-producer", produce)
        for number in channel:
            taken.append(number)
            # Three may wait and one more has made its place while this one is looked at.
            assert len(ahead) - len(taken) <= 4
        stages.join()
    assert taken == list(range(50))


def test_cancelling_wakes_both_sides() -> None:
    full: Channel[int] = Channel(1)
    empty: Channel[int] = Channel(1)
    full.put(0)
    woken: list[str] = []

    def put() -> None:
        with pytest.raises(Cancelled):
            full.put(1)
        woken.append("producer")

    def get() -> None:
        with pytest.raises(Cancelled):
            next(iter(empty))
        woken.append("consumer")

    threads = [threading.Thread(target=put), threading.Thread(target=get)]
    for thread in threads:
        thread.start()
    full.cancel()
    empty.cancel()
    for thread in threads:
        thread.join(10)
    assert sorted(woken) == ["consumer", "producer"]


def test_the_first_error_is_raised_and_waiting_stages_end() -> None:
    channel: Channel[int] = Channel(1)

    def produce() -> None:
        while True:
            channel.put(0)

    def fail() -> None:
        raise ValueError("first")

    def run() -> None:
        with Stages(channel) as stages:
            stages.start("ugsp-producer", produce)
            stages.start("ugsp-failing", fail)
            stages.join()

    with pytest.raises(ValueError, match="first"):
        run()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ugsp-")]


def test_the_bodys_own_error_wins_over_later_ones() -> None:
    channel: Channel[int] = Channel(1)

    def consume() -> None:
        for _ in channel:
            pass

    def run() -> None:
        with Stages(channel) as stages:
            stages.start("ugsp-consumer", consume)
            raise KeyError

    with pytest.raises(KeyError):
        run()


def test_a_stopwatch_sums() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.running():
            time.sleep(0.01)
    assert watch.seconds >= 0.02
