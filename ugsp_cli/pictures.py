"""Still pictures: PNG and JPEG files <-> 8-bit RGB, and the frames that the engine knows <-> 8-bit RGB."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from ugsp_cli.colour import planes_to_rgb
from ugsp_cli.decode import Frame
from ugsp_cli.errors import InputError
from ugsp_cli.pixels import RGB, ColourTags
from ugsp_net.metrics import Picture

__all__ = ["PICTURE_SUFFIXES", "as_frame", "encode_png", "from_frame", "from_planes", "read_picture"]

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
"""Names that count as pictures."""

_CODECS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "mjpeg"}

# What FFmpeg's PNG decoder delivers: type of a sample, samples per pixel. These are unpacked here, because libswscale
# takes grey for limited range and cuts 16 bits off instead of rounding them.
_PACKED: dict[str, tuple[np.dtype, int]] = {
    "gray": (np.dtype("u1"), 1),
    "ya8": (np.dtype("u1"), 2),
    "rgb24": (np.dtype("u1"), 3),
    "rgba": (np.dtype("u1"), 4),
    "gray16be": (np.dtype(">u2"), 1),
    "ya16be": (np.dtype(">u2"), 2),
    "rgb48be": (np.dtype(">u2"), 3),
    "rgba64be": (np.dtype(">u2"), 4),
}

_IDENTITY = ColourTags(matrix=0, primaries=2, transfer=2, range=2)


def read_picture(path: Path) -> Picture:
    """A PNG or JPEG file as 8-bit RGB. Raises InputError.

    PNG is exact; 16 bits are rounded to 8, palettes looked up, grey repeated, alpha left out. Colour profiles and the
    orientation that a camera noted are not looked at, as everywhere in this field.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "Check the path and its permissions.") from error
    codec = next((name for magic, name in _CODECS.items() if data.startswith(magic)), None)
    if codec is None:
        raise InputError(f"{path} is neither PNG nor JPEG", "Convert it to PNG.")
    try:
        context = av.CodecContext.create(codec, "r")
        assert isinstance(context, VideoCodecContext)
        frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    except av.FFmpegError as error:
        raise InputError(f"{path} cannot be decoded: {error.strerror}", "The file may be damaged.") from error
    if not frames or frames[0].is_corrupt:
        raise InputError(f"{path} cannot be decoded", "The file may be damaged.")
    return _to_rgb(frames[0])


def encode_png(picture: Picture) -> bytes:
    """The bytes of a PNG file."""
    context = av.CodecContext.create("png", "w")
    assert isinstance(context, VideoCodecContext)
    context.height, context.width = picture.shape[:2]
    context.pix_fmt = "rgb24"
    context.time_base = Fraction(1)
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def as_frame(picture: Picture, index: int) -> Frame:
    """A picture as the engine takes it: planes of RGB, which pass through no other colour model."""
    planes = tuple(np.ascontiguousarray(picture[..., channel]) for channel in (1, 2, 0))
    return Frame(index, Fraction(index), planes, RGB, _IDENTITY, scene_score=0.0, duplicate=False)


def from_planes(planes: tuple[np.ndarray, ...]) -> Picture:
    """Planes of a frame in the layout of ``as_frame`` -> picture."""
    green, blue, red = planes
    return np.stack((red, green, blue), axis=-1)


def from_frame(frame: Frame) -> Picture:
    """A video's frame as 8-bit RGB, with the conversion that the network's input goes through."""
    rgb = planes_to_rgb(frame.planes, frame.layout, frame.colour, torch.device("cpu"))[0]
    picture: Picture = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return picture


def _to_rgb(frame: VideoFrame) -> Picture:
    name = frame.format.name
    if name == "pal8":
        palette = np.frombuffer(memoryview(frame.planes[1]), "=u4")[:256]  # 0xAARRGGBB
        colours = np.stack([palette >> shift & 255 for shift in (16, 8, 0)], axis=-1).astype(np.uint8)
        return np.array(colours[_rows(frame, np.dtype("u1"), 1)[..., 0]])
    if name == "monob":
        bits = np.unpackbits(np.frombuffer(memoryview(frame.planes[0]), np.uint8).reshape(frame.height, -1), axis=1)
        return np.repeat(bits[:, : frame.width, None] * np.uint8(255), 3, axis=2)
    if name not in _PACKED:
        exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        frame, name = frame.reformat(format="rgb24", interpolation=exact), "rgb24"
    dtype, channels = _PACKED[name]
    samples = _rows(frame, dtype, channels)
    samples = np.repeat(samples[..., :1], 3, axis=2) if channels < 3 else samples[..., :3]
    if dtype.itemsize == 2:
        samples = (samples.astype(np.uint32) + 128) // 257  # the nearest: 65535 is 255 * 257
    return np.array(samples, np.uint8, order="C")


def _rows(frame: VideoFrame, dtype: np.dtype, channels: int) -> np.ndarray:
    """The first plane as [H, W, channels], without the padding at the end of rows."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), dtype).reshape(-1, plane.line_size // dtype.itemsize)
    return rows[: frame.height, : frame.width * channels].reshape(frame.height, frame.width, channels)
