"""Containers that are written, on disk or in memory: what FFmpeg's muxers hold is known to them alone."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.video.stream import VideoStream

from ugsp_cli.atomic import AtomicFile
from ugsp_cli.errors import OutputError, UsageError

__all__ = ["ISO_FORMATS", "Memory", "add_encoded", "open_container"]

ISO_FORMATS = {"3gp", "3g2", "f4v", "ipod", "ismv", "mov", "mp4", "psp"}
"""Muxers of the MP4 family."""


class Memory(io.BytesIO):
    """A file in memory with a name, by which FFmpeg chooses a muxer."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.name = f"file:{path}"


def open_container(file: AtomicFile | Memory, output: Path) -> OutputContainer:
    """A container for an output of that name. Raises OutputError."""
    try:
        # FFmpeg writes .m4v as a raw stream without times.
        name = "mp4" if output.suffix.lower() == ".m4v" else None
        # Tags keep bytes that are no valid text as the source has them.
        return av.open(file, "w", format=name, metadata_errors="surrogateescape", options={})
    except (ValueError, LookupError, av.FFmpegError) as error:
        raise OutputError(
            f"{output}: '{output.suffix}' is not a video format that can be written", "Use .mp4, .mkv, .mov or .webm."
        ) from error


def add_encoded(container: OutputContainer, codec: str, rate: Fraction, output: Path) -> VideoStream:
    """Add a video stream by the encoder of that name. Raises UsageError where the container does not hold it."""
    try:
        stream = container.add_stream(codec, rate=rate)
    except ValueError as error:
        others = "" if output.suffix.lower() == ".mkv" else ", or an .mkv file, which holds most"
        raise UsageError(
            f"a {output.suffix} file cannot hold video encoded by '{codec}'", f"Choose another --codec{others}."
        ) from error
    assert isinstance(stream, VideoStream)
    return stream
