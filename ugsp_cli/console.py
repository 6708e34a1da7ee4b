"""What the user sees: progress on stderr and only on a terminal, results on stdout, errors in one or two lines."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ugsp_cli.errors import UgspError

__all__ = [
    "Display",
    "ProgressDisplay",
    "SilentDisplay",
    "debugging",
    "make_display",
    "print_json",
    "print_note",
    "report_bug",
    "report_error",
    "stdout",
]

BUG_ADVICE = "This is a bug in ugsp. Run again with UGSP_DEBUG=1 to see the traceback, and report it with that."


_PIPE_WIDTH = 160  # characters


class Display(Protocol):
    """Follows one file at a time. `advance` may be called from any thread."""

    def begin(self, label: str, total: int | None) -> None:
        """A file begins; total: output frames, None where that is not known."""

    def advance(self) -> None:
        """One more output frame is finished."""

    def end(self) -> None:
        """The file has ended, well or not."""


class SilentDisplay:
    """Shows nothing: for pipes, log files, tests and `--quiet`."""

    def begin(self, label: str, total: int | None) -> None:
        """Show nothing."""

    def advance(self) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class ProgressDisplay:
    """A bar with frames, speed, the time taken and the time left, which goes away when the file has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def begin(self, label: str, total: int | None) -> None:
        """Show the bar."""
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _FramesColumn(),
            _SpeedColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            transient=True,
            # Results go to stdout through their own console; taking over print() would send them to stderr.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(label, total=total)
        self._progress.start()

    def advance(self) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.advance(self._task)

    def end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def make_display(quiet: bool) -> Display:
    """Progress if somebody watches, else silence."""
    console = Console(stderr=True)
    return ProgressDisplay(console) if console.is_terminal and not quiet else SilentDisplay()


def stdout() -> Console:
    """A console for results. Nothing is coloured by guesswork; in a pipe, tables are not squeezed into 80 columns."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def print_json(document: dict[str, Any]) -> None:
    """Write a JSON document to stdout, as plain text."""
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def print_note(text: str) -> None:
    """Tell on stderr what the user should know but need not act on."""
    Console(stderr=True, highlight=False).print(f"[yellow]Note:[/yellow] {escape(text)}", soft_wrap=True)


def report_error(error: UgspError) -> None:
    """Say on stderr what failed and what to try; with the traceback where it was asked for."""
    if debugging():
        traceback.print_exception(error)
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]Error:[/bold red] {escape(error.message)}", soft_wrap=True)
    if error.hint:
        console.print(escape(error.hint), soft_wrap=True)


def report_bug(error: BaseException) -> None:
    """Say on stderr that something unforeseen happened; the traceback only where it was asked for."""
    summary = " ".join(f"{type(error).__name__}: {error}".split())
    report_error(UgspError(f"unexpected {summary}", BUG_ADVICE).with_traceback(error.__traceback__))


def debugging() -> bool:
    """Whether the user asked for tracebacks with UGSP_DEBUG=1."""
    return os.environ.get("UGSP_DEBUG", "") not in ("", "0")


class _FramesColumn(ProgressColumn):
    """Finished and expected frames."""

    def render(self, task: Task) -> Text:
        done = f"{task.completed:.0f}"
        return Text(f"{done} frames" if task.total is None else f"{done}/{task.total:.0f} frames")


class _SpeedColumn(ProgressColumn):
    """Output frames per second of the last seconds."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")
