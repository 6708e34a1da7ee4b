"""Where an output goes when the user does not say."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from ugsp_cli.timeline import format_rate

__all__ = ["container_suffix", "default_output", "same_file"]

WRITABLE_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm"})
"""Containers that outputs are written to; Matroska, which holds nearly everything, stands in for all others."""


def container_suffix(source: Path) -> str:
    """The ending of the output for this source: its own where that container can be written, else `.mkv`."""
    return source.suffix if source.suffix.lower() in WRITABLE_SUFFIXES else ".mkv"


def default_output(source: Path, rate: Fraction) -> Path:
    """`<stem>.<rate>fps.<ext>` beside the source. rate: output frames per second."""
    return source.with_name(f"{source.stem}.{format_rate(rate)}fps{container_suffix(source)}")


def same_file(one: Path, other: Path) -> bool:
    """Whether both names lead to one existing file or folder."""
    try:
        return one.samefile(other)
    except OSError:
        return False
