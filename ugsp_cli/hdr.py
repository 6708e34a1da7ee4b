"""HDR10's static metadata: read from decoded frames, handed to the encoders that can write it.

FFmpeg's muxers and encoders take it from fields that PyAV does not reach, but the encoders' own parameter strings do.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

__all__ = ["HdrMetadata", "MasteringDisplay", "encoder_parameters", "read_hdr", "side_data"]

_MASTERING_STRUCT = struct.Struct("=22i")  # AVMasteringDisplayMetadata: ten rationals and two flags
_LIGHT_STRUCT = struct.Struct("=2I")  # AVContentLightMetadata


@dataclass(frozen=True)
class MasteringDisplay:
    """The display on which the picture was graded."""

    red: tuple[Fraction, Fraction]
    """CIE 1931 x and y of the red primary."""
    green: tuple[Fraction, Fraction]
    """CIE 1931 x and y of the green primary."""
    blue: tuple[Fraction, Fraction]
    """CIE 1931 x and y of the blue primary."""
    white: tuple[Fraction, Fraction]
    """CIE 1931 x and y of the white point."""
    darkest: Fraction
    """Lowest luminance, cd/m2."""
    brightest: Fraction
    """Highest luminance, cd/m2."""


@dataclass(frozen=True)
class HdrMetadata:
    """HDR10 static metadata; each part may be missing."""

    mastering: MasteringDisplay | None
    """The mastering display."""
    max_content_light: int | None
    """MaxCLL: the brightest pixel, cd/m2."""
    max_average_light: int | None
    """MaxFALL: the brightest frame's average, cd/m2."""


def read_hdr(frame: VideoFrame) -> HdrMetadata | None:
    """The HDR10 metadata that comes with a decoded frame, or None where there is none."""
    mastering: MasteringDisplay | None = None
    light: tuple[int, int] | None = None
    contents = side_data(frame)
    if len(content := contents.get(SideDataType.MASTERING_DISPLAY_METADATA, b"")) >= _MASTERING_STRUCT.size:
        mastering = _read_mastering(content)
    if len(content := contents.get(SideDataType.CONTENT_LIGHT_LEVEL, b"")) >= _LIGHT_STRUCT.size:
        light = _LIGHT_STRUCT.unpack_from(content)
    if mastering is None and light is None:
        return None
    return HdrMetadata(mastering, light[0] if light else None, light[1] if light else None)


def side_data(frame: VideoFrame) -> dict[SideDataType, bytes]:
    """What a decoder attached to a frame beside its samples, as raw bytes of FFmpeg's structures."""
    # PyAV's stub declares a TypedDict; it is a container that iterates over its entries.
    entries: Iterable[SideData] = frame.side_data  # type: ignore[assignment]
    return {entry.type: bytes(entry) for entry in entries}


def encoder_parameters(codec: str, hdr: HdrMetadata) -> tuple[str, str] | None:
    """Name and value of the encoder option that writes this metadata, or None where the encoder has none."""
    parts: list[str] = []
    light = hdr.max_content_light is not None
    if codec == "libx265":
        if hdr.mastering:
            parts.append(f"master-display={_mastering_integers(hdr.mastering)}")
        if light:
            parts.append(f"max-cll={hdr.max_content_light},{hdr.max_average_light}")
        return "x265-params", ":".join(["hdr10=1", *parts])
    if codec == "libx264":
        if hdr.mastering:
            parts.append(f"mastering-display={_mastering_integers(hdr.mastering)}")
        if light:
            parts.append(f"cll={hdr.max_content_light},{hdr.max_average_light}")
        return "x264-params", ":".join(parts)
    if codec == "libsvtav1":
        if hdr.mastering:
            parts.append(f"mastering-display={_mastering_decimals(hdr.mastering)}")
        if light:
            parts.append(f"content-light={hdr.max_content_light},{hdr.max_average_light}")
        return "svtav1-params", ":".join(parts)
    return None


def _read_mastering(content: bytes) -> MasteringDisplay | None:
    values = _MASTERING_STRUCT.unpack_from(content)
    has_primaries, has_luminance = values[20:]
    if not (has_primaries and has_luminance) or 0 in values[1:20:2]:
        return None
    red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y, darkest, brightest = (
        Fraction(values[2 * i], values[2 * i + 1]) for i in range(10)
    )
    return MasteringDisplay(
        (red_x, red_y), (green_x, green_y), (blue_x, blue_y), (white_x, white_y), darkest, brightest
    )


def _mastering_integers(display: MasteringDisplay) -> str:
    """As HEVC's SEI stores it: chromaticities in units of 0.00002, luminance in units of 0.0001 cd/m2."""
    points = (("G", display.green), ("B", display.blue), ("R", display.red), ("WP", display.white))
    colours = "".join(f"{name}({round(x * 50000)},{round(y * 50000)})" for name, (x, y) in points)
    return f"{colours}L({round(display.brightest * 10000)},{round(display.darkest * 10000)})"


def _mastering_decimals(display: MasteringDisplay) -> str:
    points = (("G", display.green), ("B", display.blue), ("R", display.red), ("WP", display.white))
    colours = "".join(f"{name}({float(x):.5f},{float(y):.5f})" for name, (x, y) in points)
    return f"{colours}L({float(display.brightest):.4f},{float(display.darkest):.4f})"
