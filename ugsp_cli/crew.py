"""Frames side by side on a processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

__all__ = ["Crew", "Result"]

Result = TypeVar("Result")


class Crew:
    """Threads that do whole jobs, each with its share of the cores that torch uses, or with one.

    The network's parts are too small for many cores to share one of them (figures in ARCHITECTURE.md).
    """

    def __init__(self, most: int, shares: bool = True) -> None:
        """most: threads, if there are so many cores; shares: whether torch may take a job's share of the cores for it.
        Compiled code takes one, and torch's threads would only wait for it, at work."""
        cores = torch.get_num_threads()
        self.count = max(1, min(most, cores))
        """Jobs that are done at once."""
        # A thread's number of torch threads is its own; others keep theirs.
        share = cores // self.count if shares else 1
        self._pool = ThreadPoolExecutor(self.count, "ugsp-crew", torch.set_num_threads, (share,))

    def each(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """What the jobs return, in order. One job alone gets all cores, in the caller's thread. Raises the error of the
        first one that failed, or an interrupt, once none is running; those that wait are not begun then."""
        if len(jobs) < 2 or self.count < 2:
            return [job() for job in jobs]
        started = [self._pool.submit(job) for job in jobs]
        try:
            wait(started, return_when=FIRST_EXCEPTION)
            _end(started)
            return list(map(Future.result, started))  # those that did not begin come after one that failed
        finally:
            _end(started)
            # An error's traceback holds on to the frames here, and a future to its error: together to all that the job
            # had made. So no frame keeps a future (a list's own would).
            started.clear()


def _end(started: Sequence[Future[Result]]) -> None:
    """Wait for the jobs that are running, and begin no other."""
    for one in started:
        one.cancel()
    wait(started)
