"""Between planes of luma and chroma and RGB, for CUDA devices: see ``ugsp_cli.colour``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ugsp_net import gpu
from ugsp_net.gpu.pictures import BLOCK, in_rows, read_colours


def to_rgb(
    y: Tensor,
    u: Tensor,
    v: Tensor,
    scales: tuple[float, ...],
    red: float,
    blue: float,
    shifts: tuple[int, int],
    beyond: tuple[int, int] = (0, 0),
) -> Tensor:
    """What ``ugsp_cli.colour._to_rgb`` returns."""
    height, width = y.shape
    out = gpu.empty((1, 3, height, width), y, torch.float32)
    pixels = height * width
    with gpu.on(y.device):
        _to_rgb[(triton.cdiv(pixels, BLOCK),)](
            *(_codes(plane) for plane in (y, u, v)),
            out,
            pixels,
            width,
            u.shape[1],
            *(float(scale) for scale in scales),
            2 * (1 - red),
            2 * (1 - blue),
            red / (red + blue - 1),
            blue / (red + blue - 1),
            DOWN=shifts[0],
            ACROSS=shifts[1],
            BLOCK=BLOCK,
        )
    below, right = beyond
    return F.pad(out, (0, right, 0, below), mode="replicate") if below or right else out


def to_planes(
    rgb: Tensor, scales: tuple[float, ...], red: float, blue: float, shifts: tuple[int, int], top: int
) -> list[Tensor]:
    """What ``ugsp_cli.colour._to_planes`` returns."""
    rgb = in_rows(rgb)
    batch, _, height, width = rgb.shape
    (down, across), wide = shifts, top >= 256
    half = -(-height // (1 + down)), -(-width // (1 + across))
    y, u, v = (
        gpu.empty((batch, *sides), rgb, torch.int16 if wide else torch.uint8) for sides in ((height, width), half, half)
    )
    luma_zero, luma_reach, chroma_zero, chroma_reach = scales
    places, some = half[0] * half[1], BLOCK // (1 + across)
    with gpu.on(rgb.device):
        _to_planes[(triton.cdiv(places, some), batch)](
            rgb,
            y,
            u,
            v,
            places,
            half[1],
            height,
            width,
            *rgb.stride()[:3],
            red,
            1 - red - blue,
            blue,
            float(luma_zero),
            float(luma_reach),
            float(chroma_zero),
            chroma_reach / (2 * (1 - blue)),
            chroma_reach / (2 * (1 - red)),
            float(top),
            DOWN=down,
            ACROSS=across,
            SOME=some,
        )
    return [plane.view(torch.uint16) if wide else plane for plane in (y, u, v)]


def _codes(plane: Tensor) -> Tensor:
    """A plane as ``_to_rgb`` reads it: of one piece, and 16 bits with a sign, since torch does little else with them
    without one."""
    plane = plane.contiguous()
    return plane.view(torch.int16) if plane.dtype == torch.uint16 else plane


@triton.jit(
    do_not_specialize=[
        "pixels",
        "width",
        "columns",
    ]
)
def _to_rgb(
    luma: tl.tensor,  # [H, W] uint8, or uint16 taken for int16
    blues: tl.tensor,  # [rows, columns] of the same
    reds: tl.tensor,  # [rows, columns] of the same
    out: tl.tensor,  # [3, H, W] fp32, out
    pixels: tl.tensor,  # H * W
    width: tl.tensor,
    columns: tl.tensor,  # of chroma
    luma_zero: tl.tensor,
    luma_reach: tl.tensor,
    chroma_zero: tl.tensor,
    chroma_reach: tl.tensor,
    red_times: tl.tensor,  # what red has beyond luma, for each unit of its chroma
    blue_times: tl.tensor,
    red_share: tl.tensor,  # what green has beyond luma, for each unit that red has
    blue_share: tl.tensor,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Each pixel's luma, and on top what the nearest chroma says."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = pixel < pixels
    row = pixel // width
    column = pixel % width
    # Told as ``pixel``, red would be written by threads of four pixels each, which write one in four at a time.
    place = row * width + column
    chroma = (row >> DOWN) * columns + (column >> ACROSS)
    y = (tl.load(luma + place, mask=exists, other=0).to(tl.int32) & 0xFFFF).to(tl.float32)
    u = (tl.load(blues + chroma, mask=exists, other=0).to(tl.int32) & 0xFFFF).to(tl.float32)
    v = (tl.load(reds + chroma, mask=exists, other=0).to(tl.int32) & 0xFFFF).to(tl.float32)
    y = (y - luma_zero) / luma_reach
    beyond_red = red_times * ((v - chroma_zero) / chroma_reach)
    beyond_blue = blue_times * ((u - chroma_zero) / chroma_reach)
    beyond_green = red_share * beyond_red + blue_share * beyond_blue
    made = out + place
    tl.store(made, y + beyond_red, mask=exists)
    tl.store(made + pixels, y + beyond_green, mask=exists)
    tl.store(made + pixels + pixels, y + beyond_blue, mask=exists)


@triton.jit
def _whole(value: tl.tensor, top: tl.tensor) -> tl.tensor:
    """What ``_whole`` makes there of values, int32 of the same shape: in 256ths first and then in whole numbers, halves
    to the even one.

    In integers, which is exact for any ``top`` up to 2^16: 256 times that is counted one by one in fp32 too, and there
    is no rounding to the even in all versions of Triton. Both ends are whole, so values may be clamped first.
    """
    value = tl.where(value > 0.0, value, 0.0)  # what is no number too
    value = tl.where(value < top, value, top)
    scaled = value * 256.0
    steps = scaled.to(tl.int32)
    rest = scaled - steps.to(tl.float32)
    steps += ((rest > 0.5) | ((rest == 0.5) & ((steps & 1) == 1))).to(tl.int32)
    code = steps >> 8
    steps = steps & 255
    return code + ((steps > 128) | ((steps == 128) & ((code & 1) == 1))).to(tl.int32)


@triton.jit(
    do_not_specialize=[
        "places",
        "columns",
        "height",
        "width",
        "picture_stride",
        "channel_stride",
        "row_stride",
    ]
)
def _to_planes(
    rgb: tl.tensor,  # [B, 3, H, W] fp32, rows of one piece
    luma: tl.tensor,  # [B, H, W] uint8, or int16 for uint16, out
    blues: tl.tensor,  # [B, rows, columns] of the same, out
    reds: tl.tensor,  # [B, rows, columns] of the same, out
    places: tl.tensor,  # rows * columns
    columns: tl.tensor,  # of chroma
    height: tl.tensor,
    width: tl.tensor,
    picture_stride: tl.tensor,
    channel_stride: tl.tensor,
    row_stride: tl.tensor,
    red: tl.tensor,  # its weight in luma
    green: tl.tensor,
    blue: tl.tensor,
    luma_zero: tl.tensor,
    luma_reach: tl.tensor,
    chroma_zero: tl.tensor,
    blue_reach: tl.tensor,  # codes for each unit that blue has beyond luma
    red_reach: tl.tensor,
    top: tl.tensor,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    SOME: tl.constexpr,  # chroma samples of a program
) -> None:
    """The luma of the pixels of each chroma sample, and their mean chroma.

    Where the picture ends within a sample, the mean is of the pixels that are there, as if they were repeated. Pixels
    beside each other are in one tile, [SOME, 2], so that whole rows are read.
    """
    picture = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * SOME + tl.arange(0, SOME)
    exists = place < places
    y = (place // columns) * (1 + DOWN)
    column = place % columns
    x = column
    there = exists
    if ACROSS == 1:
        x = 2 * column[:, None] + tl.arange(0, 2)[None, :]
        y = tl.broadcast_to(y[:, None], [SOME, 2])
        there = exists[:, None] & (x < width)
    pixel = rgb + picture * picture_stride + (y * row_stride + x)
    made = luma + picture * height * width + (y * width + x)
    r, g, b = read_colours(pixel, channel_stride, there)
    bright = red * r + green * g + blue * b
    tl.store(made, _whole(bright * luma_reach + luma_zero, top).to(luma.dtype.element_ty), mask=there)
    beyond_blue = b - bright
    beyond_red = r - bright
    if DOWN == 1:
        both = y + 1 < height
        r, g, b = read_colours(pixel + row_stride, channel_stride, there & both)
        bright = red * r + green * g + blue * b
        code = _whole(bright * luma_reach + luma_zero, top).to(luma.dtype.element_ty)
        tl.store(made + width, code, mask=there & both)
        # What is not there was read as 0.
        share = tl.where(both, 0.5, 1.0)
        beyond_blue = (beyond_blue + (b - bright)) * share
        beyond_red = (beyond_red + (r - bright)) * share
    if ACROSS == 1:
        share = tl.where(2 * column + 1 < width, 0.5, 1.0)
        beyond_blue = tl.sum(beyond_blue, axis=1) * share
        beyond_red = tl.sum(beyond_red, axis=1) * share
    chroma = picture * places + place
    u = _whole(beyond_blue * blue_reach + chroma_zero, top)
    v = _whole(beyond_red * red_reach + chroma_zero, top)
    tl.store(blues + chroma, u.to(blues.dtype.element_ty), mask=exists)
    tl.store(reds + chroma, v.to(reds.dtype.element_ty), mask=exists)
