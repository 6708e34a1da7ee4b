"""What the search sees of whole frames, pixel by pixel, for CUDA devices; and how kernels read pixels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ugsp_net import gpu
from ugsp_net.search import _LUMA, POINT

BLOCK = 512
"""Values that a program makes, or pixels that it reads at once."""
POINTS = 128
"""Of 4x4 pixels each that a program looks at in both frames."""


def looked_at(frame0: Tensor, frame1: Tensor) -> tuple[Tensor, Tensor]:
    """What ``search.looked_at`` returns."""
    _, image, points = _looked(frame0, frame1, False)
    return image, points


def compared(frame0: Tensor, frame1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What ``masks.change`` and ``search.looked_at`` return, of one look at both frames."""
    changed, image, points = _looked(frame0, frame1, True)
    assert changed is not None
    return changed, image, points


def _looked(frame0: Tensor, frame1: Tensor, change: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    frame0, frame1 = in_rows(frame0), in_rows(frame1)
    batch, channels, height, width = frame0.shape
    rows, columns = height // POINT, width // POINT
    changed = gpu.empty((batch, 2, height, width), frame0) if change else None
    image = gpu.empty((2 * batch, 1, height // 2, width // 2), frame0)
    points = gpu.empty((2 * batch, channels, rows, columns), frame0)
    with gpu.on(frame0.device):
        _look[(triton.cdiv(rows * columns, POINTS), batch)](
            frame0,
            frame1,
            changed,
            image,
            points,
            rows * columns,
            columns,
            *frame0.stride()[:3],
            *frame1.stride()[:3],
            *_LUMA,
            SIDE=POINT,
            BLOCK=POINTS,
        )
    return changed, image, points


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


@triton.jit(do_not_specialize=["places", "columns"])
def _look(
    frame0: tl.tensor,  # [B, 3, SIDE rows, SIDE columns], rows of one piece
    frame1: tl.tensor,  # the same
    changed: tl.tensor,  # [B, 2, SIDE rows, SIDE columns], out: what ``_change`` writes; or None
    image: tl.tensor,  # [2, B, SIDE / 2 rows, SIDE / 2 columns], out: brightness
    points: tl.tensor,  # [2, B, 3, rows, columns], out: colours
    places: tl.tensor,  # rows * columns
    columns: tl.tensor,
    picture_stride0: tl.tensor,  # of multiples of 16 it is known that four pixels are read at once
    channel_stride0: tl.tensor,
    row_stride0: tl.tensor,
    picture_stride1: tl.tensor,
    channel_stride1: tl.tensor,
    row_stride1: tl.tensor,
    red: tl.tensor,  # its weight in brightness
    green: tl.tensor,
    blue: tl.tensor,
    SIDE: tl.constexpr,  # 4
    BLOCK: tl.constexpr,
) -> None:
    """The mean brightness of the 2x2 pixels in each quarter of every 4x4, and the mean colour of the four in its
    middle, both of 0 to 255."""
    picture = tl.program_id(1).to(tl.int64)
    batch = tl.num_programs(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = place < places
    row = (place // columns)[:, None]
    column = (place % columns)[:, None]
    inner = tl.arange(0, SIDE)[None, :]
    across = SIDE * column + inner
    there = exists[:, None] & (inner >= 0)
    middle = (inner == 1) | (inner == 2)
    nothing = tl.zeros([BLOCK, SIDE], dtype=tl.float32)
    seen0 = nothing, nothing, nothing
    seen1 = nothing, nothing, nothing
    for half in tl.static_range(2):
        bright0 = nothing
        bright1 = nothing
        for line in tl.static_range(2):
            down = SIDE * row + (2 * half + line)
            colours0 = read_colours(
                frame0 + picture * picture_stride0 + (down * row_stride0 + across), channel_stride0, there
            )
            colours1 = read_colours(
                frame1 + picture * picture_stride1 + (down * row_stride1 + across), channel_stride1, there
            )
            bright0 += _bright(colours0, red, green, blue)
            bright1 += _bright(colours1, red, green, blue)
            if half != line:
                seen0 = _added(seen0, colours0, middle)
                seen1 = _added(seen1, colours1, middle)
            if changed is not None:
                r = colours0[0] - colours1[0]
                g = colours0[1] - colours1[1]
                b = colours0[2] - colours1[2]
                pixels = SIDE * SIDE * places
                made = changed + picture * 2 * pixels + (down * (SIDE * columns) + across)
                tl.store(made, tl.maximum(tl.maximum(tl.abs(r), tl.abs(g)), tl.abs(b)), mask=there)
                tl.store(made + pixels, tl.abs(_bright((r, g, b), red, green, blue)), mask=there)
        _write_bright(image + picture * 4 * places, bright0, row, column, half, columns, exists, SIDE, BLOCK)
        second = image + (picture + batch) * 4 * places
        _write_bright(second, bright1, row, column, half, columns, exists, SIDE, BLOCK)
    for channel in tl.static_range(3):
        told = points + (picture * 3 + channel) * places + place
        tl.store(told, 255.0 * (tl.sum(seen0[channel], axis=1) * 0.25), mask=exists)
        told += batch.to(tl.int64) * 3 * places
        tl.store(told, 255.0 * (tl.sum(seen1[channel], axis=1) * 0.25), mask=exists)


@triton.jit
def _bright(colours: tl.tensor, red: tl.tensor, green: tl.tensor, blue: tl.tensor) -> tl.tensor:
    return red * colours[0] + green * colours[1] + blue * colours[2]


@triton.jit
def _added(seen: tl.tensor, colours: tl.tensor, where: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Three colours each, and others where they count."""
    return (
        seen[0] + tl.where(where, colours[0], 0.0),
        seen[1] + tl.where(where, colours[1], 0.0),
        seen[2] + tl.where(where, colours[2], 0.0),
    )


@triton.jit
def _write_bright(
    image: tl.tensor,
    bright: tl.tensor,  # [BLOCK, SIDE]: of two rows of pixels
    row: tl.tensor,  # [BLOCK, 1]
    column: tl.tensor,
    half: tl.constexpr,  # the upper or the lower one of SIDE rows
    columns: tl.tensor,
    exists: tl.tensor,  # [BLOCK]
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The mean of two by two, of 0 to 255."""
    across = tl.arange(0, SIDE // 2)[None, :]
    pairs = tl.sum(tl.reshape(bright, [BLOCK, SIDE // 2, 2]), axis=2)
    start = image + ((SIDE // 2 * row + half) * (SIDE // 2 * columns) + SIDE // 2 * column + across)
    tl.store(start, 255.0 * (pairs * 0.25), mask=exists[:, None] & (across >= 0))


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
