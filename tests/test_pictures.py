"""Pictures come back exactly, whatever kind of PNG holds them."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from ugsp_cli.colour import planes_to_rgb, rgb_to_planes
from ugsp_cli.errors import InputError
from ugsp_cli.pictures import as_frame, encode_png, from_planes, read_picture

SIZE = (7, 13, 3)
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def noise(shape: tuple[int, ...] = SIZE, top: int = 256) -> np.ndarray:
    return np.random.default_rng(1).integers(0, top, shape)


def png(kind: int, depth: int, samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file by the specification, not by FFmpeg. samples: [H, W, channels]."""
    height, width, channels = samples.shape
    if depth == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        rows = samples.astype(np.uint8).reshape(height, -1)
    else:
        bits = (samples.reshape(height, width * channels, 1) >> np.arange(depth)[::-1]) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def read(path: Path, data: bytes) -> np.ndarray:
    path.write_bytes(data)
    picture = read_picture(path)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    return picture


def test_a_written_picture_comes_back(tmp_path: Path) -> None:
    # % and digits: FFmpeg would take the name for the pattern of a sequence.
    picture = noise().astype(np.uint8)
    assert np.array_equal(read(tmp_path / "frame%04d [1].png", encode_png(picture)), picture)


def test_every_kind_of_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = noise()
    alpha = noise((*SIZE[:2], 1))
    assert np.array_equal(read(path, png(COLOUR, 8, picture)), picture)
    assert np.array_equal(read(path, png(COLOUR_ALPHA, 8, np.concatenate((picture, alpha), -1))), picture)
    grey = np.repeat(picture[..., :1], 3, -1)
    assert np.array_equal(read(path, png(GREY, 8, grey[..., :1])), grey)
    assert np.array_equal(read(path, png(GREY_ALPHA, 8, np.concatenate((grey[..., :1], alpha), -1))), grey)


def test_16_bits_are_rounded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    deep = noise(top=65536)
    alpha = noise((*SIZE[:2], 1), 65536)
    nearest = np.rint(deep * (255 / 65535))
    assert np.array_equal(read(path, png(COLOUR, 16, deep)), nearest)
    assert np.array_equal(read(path, png(COLOUR_ALPHA, 16, np.concatenate((deep, alpha), -1))), nearest)
    grey = np.repeat(nearest[..., :1], 3, -1)
    assert np.array_equal(read(path, png(GREY, 16, deep[..., :1])), grey)
    assert np.array_equal(read(path, png(GREY_ALPHA, 16, np.concatenate((deep[..., :1], alpha), -1))), grey)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_and_few_bits(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.png"
    colours = noise((2**depth, 3)).astype(np.uint8)
    indices = noise((*SIZE[:2], 1), 2**depth)
    data = png(PALETTE, depth, indices, (b"PLTE", colours.tobytes()))
    assert np.array_equal(read(path, data), colours[indices[..., 0]])
    grey = np.repeat(indices * (255 // (2**depth - 1)), 3, -1)
    assert np.array_equal(read(path, png(GREY, depth, indices)), grey)


def test_jpeg_is_close(tmp_path: Path) -> None:
    y, x = np.mgrid[0:48, 0:64]
    picture = np.stack([20 + 3 * x, 250 - 4 * y, 60 + 2 * x], axis=-1).astype(np.uint8)
    context = av.CodecContext.create("mjpeg", "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt, context.time_base = 64, 48, "yuvj444p", Fraction(1)
    context.options = {"qmin": "1", "qmax": "1"}
    frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj444p")
    data = b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
    made = read(tmp_path / "a.jpg", data)
    assert np.abs(made.astype(int) - picture).mean() < 1.5
    assert np.abs(made.astype(int) - picture).max() < 8


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        read_picture(path)
    for data, message in (
        (b"not a picture", "neither PNG nor JPEG"),
        (b"", "neither PNG nor JPEG"),
        (encode_png(noise().astype(np.uint8))[:60], "cannot be decoded"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"a\.png.*{message}"):
            read_picture(path)


def test_the_engines_planes_are_the_picture(tmp_path: Path) -> None:
    picture = noise().astype(np.uint8)
    frame = as_frame(picture, 3)
    rgb = planes_to_rgb(frame.planes, frame.layout, frame.colour, torch.device("cpu"))
    assert torch.equal(rgb[0], torch.from_numpy(picture).permute(2, 0, 1) / 255)
    assert np.array_equal(from_planes(*rgb_to_planes(rgb, frame.layout, frame.colour)), picture)
