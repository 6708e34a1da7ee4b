"""What the search sees of whole frames, pixel by pixel, for CUDA devices; and how kernels read pixels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ugsp_net import gpu
from ugsp_net.search import _LUMA, POINT

BLOCK = 512
"""Values that a program makes, or pixels that it reads at once."""


def brightness(frame: Tensor) -> Tensor:
    """What ``search._brightness`` returns."""
    frame = in_rows(frame)
    batch, _, height, width = frame.shape
    out = gpu.empty((batch, 1, height // 2, width // 2), frame)
    places, pairs = (height // 2) * (width // 2), BLOCK // 2
    with gpu.on(frame.device):
        _brightness[(triton.cdiv(places, pairs), batch)](
            frame, out, places, width // 2, *frame.stride()[:3], *_LUMA, PAIRS=pairs
        )
    return out


def smaller(image: Tensor) -> Tensor:
    """What ``search._smaller`` returns."""
    image = in_rows(image)
    batch, _, height, width = image.shape
    out = gpu.empty((batch, 1, -(-height // 2), -(-width // 2)), image)
    places = out[0].numel()
    with gpu.on(image.device):
        _halve[(triton.cdiv(places, BLOCK), batch)](
            image, out, places, height, width, image.stride(0), image.stride(2), BLOCK=BLOCK
        )
    return out


def of_points(frame: Tensor) -> Tensor:
    """What ``search._of_points`` returns."""
    frame = in_rows(frame)
    batch, channels, height, width = frame.shape
    out = gpu.empty((batch, channels, height // POINT, width // POINT), frame)
    places = (height // POINT) * (width // POINT)
    with gpu.on(frame.device):
        _of_points[(triton.cdiv(places, BLOCK), batch * channels)](
            frame, out, places, width // POINT, channels, *frame.stride()[:3], SIDE=POINT, BLOCK=BLOCK
        )
    return out


def in_rows(values: Tensor) -> Tensor:
    """A tensor whose rows kernels can read: their values lie one behind the other, whatever lies between rows."""
    return values if values.stride(-1) == 1 else values.contiguous()


@triton.jit
def read_colours(pixel: tl.tensor, channel_stride: tl.tensor, there: tl.tensor) -> tuple[tl.tensor, ...]:
    """Red, green and blue, fp32, of pixels whose red is pointed to; 0 where there is none. All of one shape."""
    # Channels may be farther apart than 2^30 values, so twice their distance is never computed.
    red = tl.load(pixel, mask=there, other=0.0).to(tl.float32)
    green = tl.load(pixel + channel_stride, mask=there, other=0.0).to(tl.float32)
    blue = tl.load(pixel + channel_stride + channel_stride, mask=there, other=0.0).to(tl.float32)
    return red, green, blue


@triton.jit(do_not_specialize=["places", "columns", "picture_stride", "channel_stride", "row_stride"])
def _brightness(
    frame: tl.tensor,  # [B, 3, 2 rows, 2 columns], rows of one piece
    out: tl.tensor,  # [B, rows, columns], out
    places: tl.tensor,  # rows * columns
    columns: tl.tensor,
    picture_stride: tl.tensor,
    channel_stride: tl.tensor,
    row_stride: tl.tensor,
    red: tl.tensor,  # its weight in brightness
    green: tl.tensor,
    blue: tl.tensor,
    PAIRS: tl.constexpr,
) -> None:
    """The mean brightness of 2x2 pixels each. Both of a row are in one tile, so that whole rows are read."""
    picture = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    exists = place < places
    there = tl.broadcast_to(exists[:, None], [PAIRS, 2])
    corner = 2 * (place // columns) * row_stride + 2 * (place % columns)
    pixel = frame + picture * picture_stride + (corner[:, None] + tl.arange(0, 2)[None, :])
    r, g, b = read_colours(pixel, channel_stride, there)
    below_r, below_g, below_b = read_colours(pixel + row_stride, channel_stride, there)
    halves = ((red * r + green * g + blue * b) + (red * below_r + green * below_g + blue * below_b)) * 0.5
    tl.store(out + picture * places + place, 255.0 * (tl.sum(halves, axis=1) * 0.5), mask=exists)


@triton.jit(do_not_specialize=["places", "height", "width", "picture_stride", "row_stride"])
def _halve(
    image: tl.tensor,  # [B, height, width], rows of one piece
    out: tl.tensor,  # [B, half the height, half the width], both rounded up, out
    places: tl.tensor,  # in a picture of it
    height: tl.tensor,
    width: tl.tensor,
    picture_stride: tl.tensor,
    row_stride: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """The mean of 2x2 values each; the last row and column are repeated where they have no other."""
    picture = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = place < places
    columns = (width + 1) // 2
    row = 2 * (place // columns)
    column = 2 * (place % columns)
    upper = image + picture * picture_stride + row * row_stride
    lower = image + picture * picture_stride + tl.minimum(row + 1, height - 1) * row_stride
    beside = tl.minimum(column + 1, width - 1)
    left = tl.load(upper + column, mask=exists, other=0.0) + tl.load(lower + column, mask=exists, other=0.0)
    right = tl.load(upper + beside, mask=exists, other=0.0) + tl.load(lower + beside, mask=exists, other=0.0)
    tl.store(out + picture * places + place, (left + right) * 0.25, mask=exists)


@triton.jit(do_not_specialize=["places", "columns", "channels", "picture_stride", "channel_stride", "row_stride"])
def _of_points(
    frame: tl.tensor,  # [B, C, SIDE rows, SIDE columns], rows of one piece
    out: tl.tensor,  # [B, C, rows, columns], out
    places: tl.tensor,  # rows * columns
    columns: tl.tensor,
    channels: tl.tensor,
    picture_stride: tl.tensor,
    channel_stride: tl.tensor,
    row_stride: tl.tensor,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The mean of the pixels at rows and columns 1 and 2 of every SIDE x SIDE, of one channel."""
    plane = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = place < places
    source = frame + (plane // channels) * picture_stride + (plane % channels) * channel_stride
    upper = source + (SIDE * (place // columns) + 1) * row_stride + (SIDE * (place % columns) + 1)
    lower = upper + row_stride
    left = tl.load(upper, mask=exists, other=0.0).to(tl.float32)
    left += tl.load(lower, mask=exists, other=0.0).to(tl.float32)
    right = tl.load(upper + 1, mask=exists, other=0.0).to(tl.float32)
    right += tl.load(lower + 1, mask=exists, other=0.0).to(tl.float32)
    tl.store(out + plane * places + place, (left + right) * 0.25, mask=exists)
