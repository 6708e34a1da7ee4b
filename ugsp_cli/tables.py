"""The tables and lines that commands print as their results."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ugsp_cli.timeline import format_rate

if TYPE_CHECKING:
    from ugsp_cli.doctor import Check
    from ugsp_cli.folder import FileResult
    from ugsp_cli.media import MediaInfo
    from ugsp_cli.pipeline import Job
    from ugsp_cli.stats import FrameRecord, JobStats

__all__ = ["print_checks", "print_file", "print_folder", "print_job", "print_over_time", "print_plan", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-:=+*#"
_STATUS_STYLES = {"converted": "green", "skipped": "dim", "failed": "bold red", "planned": "cyan"}
_TIMELINE_WIDTH = 60  # characters


def print_job(console: Console, stats: JobStats, verbose: bool = False) -> None:
    """What became of one file, and what was skipped."""
    frames = stats.frames
    if stats.output is not None:
        console.print(f"[bold green]Written[/bold green] {escape(stats.output)}", soft_wrap=True)
    console.print(
        f"{frames.source} source frames -> {frames.output} output frames: "
        f"{frames.interpolated} interpolated, {frames.copied} copied, {frames.held} held"
    )
    if frames.scene_cuts or frames.duplicates:
        console.print(f"{_count(frames.scene_cuts, 'scene cut')}, {_count(frames.duplicates, 'duplicate frame')}")
    if frames.interpolated:
        console.print(
            f"Skipped [bold]{stats.skipped_fraction:.1%}[/bold] of the network's work: "
            f"{_gmacs(stats.performed_macs)} of {_gmacs(stats.dense_macs)} GMACs were done"
        )
        console.print(_level_table(stats))
    seconds = stats.seconds
    if seconds.total > 0:
        console.print(
            f"{seconds.total:.1f} s ({frames.output / seconds.total:.1f} frames/s)  "
            f"busy: decode {seconds.decode:.1f} s, network {seconds.network:.1f} s, encode {seconds.encode:.1f} s"
        )
    if verbose:
        console.print(
            f"{stats.model.name}, {stats.model.parameters / 1e6:.2f} M parameters, weights "
            f"{stats.model.weights_sha256[:12]}, on {stats.device} in {stats.precision}, backend {stats.backend}"
        )


def print_over_time(console: Console, stats: JobStats) -> None:
    """How active each level was over the output's time, as one line of bars per level."""
    records = stats.per_frame
    if not records:
        return
    begin, end = records[0].pts_seconds, records[-1].pts_seconds
    table = _plain_table("level", f"active from {begin:.1f} s to {end:.1f} s (full bar: everything was computed)")
    table.add_row("all", sparkline(_binned(records, None)))
    for level, each in enumerate(stats.levels):
        table.add_row(f"1/{each.stride}", sparkline(_binned(records, level)))
    console.print(table)


def print_plan(console: Console, job: Job, info: MediaInfo, rate: Fraction, frames: int | None) -> None:
    """What `--dry-run` says. rate: output frames per second. frames: about how many the output will have."""
    source = f"{info.width}x{info.height}, {format_rate(info.rate)} frames/s"
    console.print(f"Would read  {escape(str(job.input))} ({source})", soft_wrap=True)
    about = "" if frames is None else f", about {_count(frames, 'frame')}"
    console.print(f"Would write {escape(str(job.output))} ({format_rate(rate)} frames/s{about})", soft_wrap=True)


def print_checks(console: Console, checks: Iterable[Check]) -> None:
    """The findings of `ugsp doctor`."""
    table = Table.grid(padding=(0, 2))
    marks = {"ok": "[green]ok[/green]", "info": "[dim]--[/dim]", "problem": "[bold red]problem[/bold red]"}
    for check in checks:
        table.add_row(marks[check.status], check.name, Text(check.finding))
        if check.hint:
            table.add_row("", "", Text(check.hint, style="yellow"))
    console.print(table)


def print_file(console: Console, result: FileResult) -> None:
    """One line of `ugsp batch`, as soon as a file has ended."""
    style = _STATUS_STYLES[result.status]
    reason = f" ({result.reason})" if result.reason else ""
    console.print(Text.assemble((result.status, style), f" {result.name}{reason}"), soft_wrap=True)


def print_folder(console: Console, results: Sequence[FileResult]) -> None:
    """The summary of `ugsp batch`."""
    table = _plain_table("file", "result", "frames", "work skipped", "seconds")
    for column in (2, 3, 4):
        table.columns[column].justify = "right"
    for result in results:
        stats = result.stats
        table.add_row(
            Text(result.name, overflow="fold"),
            Text(result.status, style=_STATUS_STYLES[result.status]),
            "" if stats is None else str(stats.frames.output),
            "" if stats is None or not stats.dense_macs else f"{stats.skipped_fraction:.1%}",
            "" if stats is None else f"{stats.seconds.total:.1f}",
        )
    console.print(table)
    dense = sum(result.stats.dense_macs for result in results if result.stats)
    performed = sum(result.stats.performed_macs for result in results if result.stats)
    tally = ", ".join(
        f"{count} {status}" for status in _STATUS_STYLES if (count := sum(each.status == status for each in results))
    )
    saved = f"; {1 - performed / dense:.1%} of the network's work skipped" if dense else ""
    console.print(f"{_count(len(results), 'file')}: {tally}{saved}")


def sparkline(values: Sequence[float | None]) -> str:
    """Fractions in [0, 1] as a line of bars, None as a blank; plain ASCII where the output carries nothing else."""
    bars = _BARS
    try:
        bars.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        bars = _ASCII_BARS
    return "".join(" " if value is None else bars[min(int(value * len(bars)), len(bars) - 1)] for value in values)


def _level_table(stats: JobStats) -> Table:
    table = _plain_table("level", "active", "GMACs done", "of", "skipped")
    for column in table.columns[1:]:
        column.justify = "right"
    for level in stats.levels:
        skipped = 1 - level.performed_macs / level.dense_macs if level.dense_macs else 0.0
        table.add_row(
            f"1/{level.stride}",
            f"{level.active_fraction:.1%}",
            _gmacs(level.performed_macs),
            _gmacs(level.dense_macs),
            f"{skipped:.1%}",
        )
    return table


def _binned(records: Sequence[FrameRecord], level: int | None) -> list[float | None]:
    """Mean activity in equal spans of output time; None for a span without interpolated frames."""
    begin = records[0].pts_seconds
    length = records[-1].pts_seconds - begin
    # Three records or more to a span, so that the source frames between them make no holes.
    width = max(1, min(_TIMELINE_WIDTH, len(records) // 3))
    sums, counts = [0.0] * width, [0] * width
    for record in records:
        place = min(int((record.pts_seconds - begin) / length * width), width - 1) if length else 0
        sums[place] += record.active_fraction if level is None else record.level_active[level]
        counts[place] += 1
    return [total / count if count else None for total, count in zip(sums, counts, strict=True)]


def _plain_table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading)
    return table


def _gmacs(macs: int) -> str:
    return f"{macs / 1e9:,.1f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
