"""What the search sees of whole frames, pixel by pixel, for CUDA devices; and how kernels read pixels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ugsp_net import gpu
from ugsp_net.search import _LUMA, POINT

BLOCK = 512
"""Values that a program makes, or pixels that it reads at once."""


def looked_at(frame0: Tensor, frame1: Tensor) -> tuple[Tensor, Tensor]:
    """What ``search._looked_at`` returns."""
    batch, channels, height, width = frame0.shape
    rows, columns = height // POINT, width // POINT
    image = gpu.empty((2 * batch, 1, height // 2, width // 2), frame0)
    points = gpu.empty((2 * batch, channels, rows, columns), frame0)
    with gpu.on(frame0.device):
        for frame, *made in zip((frame0, frame1), image.chunk(2), points.chunk(2), strict=True):
            source = in_rows(frame)
            _look[(triton.cdiv(rows * columns, BLOCK), batch)](
                source, *made, rows * columns, columns, *source.stride()[:3], *_LUMA, SIDE=POINT, BLOCK=BLOCK
            )
    return image, points


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
def _look(
    frame: tl.tensor,  # [B, 3, SIDE rows, SIDE columns], rows of one piece
    image: tl.tensor,  # [B, SIDE / 2 rows, SIDE / 2 columns], out: brightness
    points: tl.tensor,  # [B, 3, rows, columns], out: colours
    places: tl.tensor,  # rows * columns
    columns: tl.tensor,
    picture_stride: tl.tensor,
    channel_stride: tl.tensor,
    row_stride: tl.tensor,
    red: tl.tensor,  # its weight in brightness
    green: tl.tensor,
    blue: tl.tensor,
    SIDE: tl.constexpr,  # 4
    BLOCK: tl.constexpr,
) -> None:
    """The mean brightness of the 2x2 pixels in each quarter of every 4x4, and the mean colour of the four in its
    middle, both of 0 to 255."""
    picture = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = place < places
    row = place // columns
    column = place % columns
    corner = frame + picture * picture_stride + (SIDE * row * row_stride + SIDE * column)
    image += picture * 4 * places + 2 * row * (2 * columns) + 2 * column
    middle_r = tl.zeros([BLOCK], dtype=tl.float32)
    middle_g = tl.zeros([BLOCK], dtype=tl.float32)
    middle_b = tl.zeros([BLOCK], dtype=tl.float32)
    for quarter in tl.static_range(4):
        left = tl.zeros([BLOCK], dtype=tl.float32)
        right = tl.zeros([BLOCK], dtype=tl.float32)
        for inner in tl.static_range(4):
            down = 2 * (quarter // 2) + inner // 2
            across = 2 * (quarter % 2) + inner % 2
            r, g, b = read_colours(corner + down * row_stride + across, channel_stride, exists)
            luma = red * r + green * g + blue * b
            if inner % 2 == 0:
                left += luma
            else:
                right += luma
            if (down == 1 or down == 2) and (across == 1 or across == 2):
                middle_r += r
                middle_g += g
                middle_b += b
        made = 255.0 * ((left * 0.5 + right * 0.5) * 0.5)
        tl.store(image + (quarter // 2) * (2 * columns) + quarter % 2, made, mask=exists)
    points += picture * 3 * places + place
    tl.store(points, 255.0 * (middle_r * 0.25), mask=exists)
    tl.store(points + places, 255.0 * (middle_g * 0.25), mask=exists)
    tl.store(points + 2 * places, 255.0 * (middle_b * 0.25), mask=exists)


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
