"""Jobs side by side, each with its share of the cores."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from ugsp_cli.crew import Crew


@pytest.fixture(autouse=True)
def cores() -> Iterator[None]:
    """Whatever this machine has, torch uses four."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_jobs_run_side_by_side_with_their_share_of_the_cores() -> None:
    crew = Crew(2)
    meet = threading.Barrier(2, timeout=20)

    def job() -> tuple[int, str]:
        meet.wait()  # fails unless two are at work at once
        return torch.get_num_threads(), threading.current_thread().name

    results = crew.each([job, job])
    assert [threads for threads, _ in results] == [2, 2]
    assert len({name for _, name in results}) == 2
    assert torch.get_num_threads() == 4


def test_jobs_of_compiled_code_take_a_core_each() -> None:
    assert Crew(2, shares=False).each([torch.get_num_threads] * 4) == [1] * 4
    assert torch.get_num_threads() == 4


def test_one_job_gets_all_cores() -> None:
    def job() -> tuple[int, bool]:
        return torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    assert Crew(4).each([job]) == [(4, True)]
    torch.set_num_threads(1)
    alone = Crew(4)
    assert alone.count == 1
    assert alone.each([job, job]) == [(1, True)] * 2


def test_results_come_in_order_and_errors_when_nothing_runs_any_more() -> None:
    crew = Crew(4)
    assert crew.each([partial(int, number) for number in range(9)]) == list(range(9))
    done = []

    def slow() -> None:
        time.sleep(0.2)
        done.append(1)

    def fail() -> None:
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        crew.each([slow, fail, slow])
    assert len(done) == 2


def test_what_a_failed_job_had_made_is_not_kept_and_those_that_wait_are_not_begun() -> None:
    """Where memory ran out the next try needs it."""
    crew = Crew(2)
    kept: list[weakref.ref[torch.Tensor]] = []
    begun: list[int] = []

    def job(number: int) -> int:
        begun.append(number)
        large = torch.zeros(1000)
        kept.append(weakref.ref(large))
        if number == 0:
            raise MemoryError
        time.sleep(0.05)
        return number

    gc.disable()
    try:
        raised = False
        try:
            crew.each([partial(job, number) for number in range(50)])
        except MemoryError:  # pytest.raises would keep it
            raised = True
        assert raised
        assert not any(one() is not None for one in kept)
    finally:
        gc.enable()
    assert len(begun) < 10
    assert crew.each([partial(job, number) for number in (1, 2, 3)]) == [1, 2, 3]
