"""Threads that hand work on: a bounded channel between two stages, a worker that keeps its error, and interrupts.

The channel is made of two `SimpleQueue`s, one of items and one of free places, because their operations are atomic with
regard to signals: a `KeyboardInterrupt` in the main thread can never leave a lock taken, which `queue.Queue` and
`threading.Condition`, being written in Python, cannot promise.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType
from typing import Any, Generic, TypeVar

__all__ = ["Cancelled", "Channel", "Stages", "Stopwatch", "one_interrupt"]

T = TypeVar("T")


class Cancelled(Exception):
    """The channel was cancelled: another stage failed, and there is nothing left to do for this one."""


class _End:
    """Marks the end of a channel's items."""


class Channel(Generic[T]):
    """A bounded first-in first-out queue with one producer and one consumer."""

    def __init__(self, capacity: int) -> None:
        """capacity: how many items may wait."""
        self._items: SimpleQueue[T | _End] = SimpleQueue()
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(capacity):
            self._places.put(None)
        self._cancelled = False

    def put(self, item: T) -> None:
        """Hand an item on, waiting for a free place. Raises Cancelled."""
        self._places.get()
        if self._cancelled:
            raise Cancelled
        self._items.put(item)

    def close(self) -> None:
        """Say that no item follows."""
        self._items.put(_End())

    def cancel(self) -> None:
        """Wake both sides with Cancelled; waiting items are dropped."""
        self._cancelled = True
        self._places.put(None)
        self._items.put(_End())

    def __iter__(self) -> Iterator[T]:
        """The items, in order, until the producer closes the channel. Raises Cancelled."""
        while True:
            item = self._items.get()
            if self._cancelled:
                raise Cancelled
            if isinstance(item, _End):
                return
            self._places.put(None)
            yield item


class Stages:
    """The threads of one pipeline. Whichever stage fails first stops all, and its error surfaces once, here.

    A context manager: on leaving, for whatever reason, all channels are cancelled if something failed, and all threads
    are joined. A `Cancelled` that ends the body gives way to the error that caused it.
    """

    def __init__(self, *channels: Channel[Any]) -> None:
        self._channels: tuple[Channel[Any], ...] = channels
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` in a thread of that name."""
        thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait until every stage has ended; raise the error of the one that failed first."""
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise Cancelled

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._cancel()
        for thread in self._threads:
            thread.join()
        if self._errors and (error is None or isinstance(error, Cancelled)):
            raise self._errors[0]

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Cancelled:
            return
        except BaseException as error:
            self._errors.append(error)
            self._cancel()

    def _cancel(self) -> None:
        for channel in self._channels:
            channel.cancel()


class Stopwatch:
    """Sums the time that a stage is busy."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside the `with` block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Inside, SIGTERM and the end of the terminal act like Ctrl-C, and after the first of them the clean-up is left to
    finish undisturbed.

    Does nothing outside the main thread, where Python delivers no signals, and leaves ignored signals ignored (nohup).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is none of Windows'
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    signals = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in signals:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
