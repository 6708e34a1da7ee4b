"""How samples are laid out and what their numbers mean."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from av.video.format import VideoFormat
from av.video.frame import VideoFrame

__all__ = [
    "HD_LINES",
    "MATRIX_RGB",
    "MATRIX_UNSPECIFIED",
    "RANGE_FULL",
    "RANGE_LIMITED",
    "RGB",
    "ColourTags",
    "PixelLayout",
    "colour_of",
    "is_grey",
    "layout_of",
    "stored_as_rgb",
]

RANGE_LIMITED, RANGE_FULL = 1, 2
MATRIX_RGB, MATRIX_BT709, MATRIX_UNSPECIFIED = 0, 1, 2
HD_LINES = 720
"""Lines from which players take BT.709 for a matrix that is not specified, and BT.601 below."""


@dataclass(frozen=True)
class ColourTags:
    """How numbers mean colours: FFmpeg's enum values as PyAV gives them; nothing is guessed here."""

    matrix: int
    """AVColorSpace; 2 where unspecified."""
    primaries: int
    """AVColorPrimaries; 2 where unspecified."""
    transfer: int
    """AVColorTransferCharacteristic; 2 where unspecified."""
    range: int
    """AVColorRange: 0 unspecified, 1 limited (16-235 at 8 bit), 2 full."""


@dataclass(frozen=True)
class PixelLayout:
    """A planar YUV or grey pixel format, the only kind that a video's frames carry; still pictures carry ``RGB``."""

    name: str
    """FFmpeg's name, for example yuv420p, yuv422p10le, gray."""
    bits: int
    """Bits per sample: 8, 10 or 12."""
    chroma_x: int
    """log2 of the horizontal chroma subsampling: 0 or 1."""
    chroma_y: int
    """log2 of the vertical chroma subsampling: 0 or 1."""
    planes: int
    """3 (Y, U, V), or 1 for grey."""

    def plane_size(self, plane: int, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of a plane of a picture of that width and height; odd sizes round up."""
        if plane == 0:
            return height, width
        return -(-height >> self.chroma_y), -(-width >> self.chroma_x)


RGB = PixelLayout("gbrp", 8, 0, 0, 3)
"""Planes of green, blue and red, each 0 to 255."""


def colour_of(frame: VideoFrame) -> ColourTags:
    """The colour tags that this decoded frame has once it is in its `layout_of` layout."""
    colour_range = int(frame.color_range)
    if frame.format.name.startswith("yuvj"):
        colour_range = RANGE_FULL
    matrix = int(frame.colorspace)
    if stored_as_rgb(frame.format):
        # Frames become YCbCr; BT.709 in limited range is what players assume where tags are lost.
        matrix, colour_range = MATRIX_BT709, RANGE_LIMITED
    return ColourTags(matrix, int(frame.color_primaries), int(frame.color_trc), colour_range)


def layout_of(pix_fmt: str) -> PixelLayout:
    """The planar layout nearest to a pixel format, losing nothing but alpha and bits above 12.

    RGB becomes 4:4:4, semi-planar and packed YUV become planar, uncommon subsamplings the next finer common one.
    Raises ValueError for formats without readable samples (those of graphics cards).
    """
    video_format = VideoFormat(pix_fmt, 64, 64)
    colours = [component for component in video_format.components if not component.is_alpha]
    if not colours:
        raise ValueError(f"frames of the format {pix_fmt} cannot be read")
    deepest = max(component.bits for component in colours)
    bits = next((bits for bits in (8, 10, 12) if deepest <= bits), 12)
    suffix = "" if bits == 8 else f"{bits}le"
    if is_grey(video_format):
        return PixelLayout(f"gray{suffix}", bits, 0, 0, 1)
    chroma_x = chroma_y = 0
    if not stored_as_rgb(video_format):
        stored_x = int(log2(64 // video_format.chroma_width()))
        stored_y = int(log2(64 // video_format.chroma_height()))
        chroma_x, chroma_y = min(stored_x, 1), min(stored_y, 1, stored_x)
    name = {(0, 0): "yuv444p", (1, 0): "yuv422p", (1, 1): "yuv420p"}[chroma_x, chroma_y]
    return PixelLayout(f"{name}{suffix}", bits, chroma_x, chroma_y, 3)


def is_grey(video_format: VideoFormat) -> bool:
    """Whether samples are of brightness alone, perhaps with alpha."""
    return sum(not component.is_alpha for component in video_format.components) == 1 and not video_format.has_palette


def stored_as_rgb(video_format: VideoFormat) -> bool:
    """Whether samples are RGB (or XYZ), so that delivering YUV means a change of colour model."""
    return video_format.is_rgb or video_format.has_palette or video_format.name.startswith("xyz")
