"""Frames side by side on a processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
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
        first one that failed, once none is running."""
        if len(jobs) < 2 or self.count < 2:
            return [job() for job in jobs]
        started = [self._pool.submit(job) for job in jobs]
        wait(started)
        return [one.result() for one in started]
