"""What `ugsp info` says of a file, as a table and as JSON."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ugsp_cli.media import MediaInfo, StreamInfo

__all__ = ["media_document", "print_media"]


def print_media(console: Console, info: MediaInfo) -> None:
    """Print a file's properties and its streams."""
    table = Table.grid(padding=(0, 2))
    table.add_row("file", Text(str(info.path), overflow="fold"))
    table.add_row("container", info.container)
    if info.duration is not None:
        table.add_row("duration", f"{float(info.duration):.3f} s")
    table.add_row(
        "video", f"{info.codec}, {info.width}x{info.height}, {info.pix_fmt}" + ", interlaced" * bool(info.interlaced)
    )
    kind = "constant" if info.constant_rate is not None else "average of a variable rate"
    table.add_row("frame rate", f"{float(info.rate):.3f} ({info.rate}), {kind}")
    if info.frames_estimate is not None:
        table.add_row("frames", f"about {info.frames_estimate}")
    if info.rotation:
        table.add_row("rotation", f"{info.rotation} degrees")
    if info.hdr is not None:
        table.add_row("HDR", "mastering data present")
    if info.chapters:
        table.add_row("chapters", str(info.chapters))
    for stream in info.streams:
        table.add_row(f"stream {stream.index}", Text(_stream_line(stream)))
    console.print(table)


def media_document(info: MediaInfo) -> dict[str, Any]:
    """The same as plain JSON values. Times are in seconds; rates and ratios are exact, as text."""
    colour = info.colour
    return {
        "schema": 1,
        "file": str(info.path),
        "container": info.container,
        "duration_seconds": None if info.duration is None else float(info.duration),
        "bit_rate": info.bit_rate,
        "video": {
            "stream": info.stream_index,
            "codec": info.codec,
            "width": info.width,
            "height": info.height,
            "pix_fmt": info.pix_fmt,
            "bits": info.layout.bits,
            "rate": _exact(info.rate),
            "constant_rate": info.constant_rate is not None,
            "start_seconds": float(info.start),
            "frames_estimate": info.frames_estimate,
            "rotation": info.rotation,
            "sample_aspect_ratio": _exact(info.sample_aspect_ratio),
            "interlaced": info.interlaced,
            "hdr": info.hdr is not None,
            "colour": {
                "matrix": colour.matrix,
                "primaries": colour.primaries,
                "transfer": colour.transfer,
                "range": colour.range,
            },
        },
        "streams": [
            {
                "index": stream.index,
                "kind": stream.kind,
                "codec": stream.codec,
                "language": stream.language,
                "title": stream.title,
                "disposition": list(stream.disposition),
                "sample_rate": stream.sample_rate,
                "channels": stream.channels,
            }
            for stream in info.streams
        ],
        "chapters": info.chapters,
        "metadata": info.metadata,
    }


def _stream_line(stream: StreamInfo) -> str:
    words = [stream.kind, stream.codec]
    if stream.sample_rate:
        words.append(f"{stream.sample_rate} Hz")
    if stream.channels:
        words.append(f"{stream.channels} channel{'' if stream.channels == 1 else 's'}")
    words += [stream.language if stream.language not in (None, "und") else "", stream.title or "", *stream.disposition]
    return ", ".join(word for word in words if word)


def _exact(ratio: Fraction | None) -> str | None:
    return None if ratio is None else f"{ratio.numerator}/{ratio.denominator}"
