"""Between the planes of a video and the RGB that the network sees: one way there, the same way back.

Chroma is repeated on the way in and averaged on the way out. The two are exact inverses, so a frame that the network
left alone comes back as it was, and real and made frames cannot differ in colour. The conversion runs on the
network's device; libswscale's interpolated chroma would not come back exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_cli.media import ColourTags, PixelLayout
from ugsp_cli.pixels import HD_LINES, RANGE_FULL, RGB
from ugsp_net.compiled import compiled_by
from ugsp_net.pooling import halve
from ugsp_net.search import look

__all__ = ["planes_to_rgb", "planes_to_rgb_and_look", "rgb_to_planes"]

# Weights of red and blue in luma, by FFmpeg's AVColorSpace (ITU-T H.273, table 4).
_LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.470 BG
    6: (0.299, 0.114),  # SMPTE 170M
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, non-constant luminance
    10: (0.2627, 0.0593),  # BT.2020, constant luminance: read as the above, the same both ways
}

Scales = tuple[float, float, float, float]
"""Luma's zero and reach, chroma's zero and reach, in code values."""
Shifts = tuple[int, int]
"""How often chroma's rows and columns are halved, 0 or 1."""


def _luma_weights(matrix: int, height: int) -> tuple[float, float]:
    """Where the file does not say, HD is taken for BT.709 and SD for BT.601, as players do."""
    return _LUMA_WEIGHTS.get(matrix, _LUMA_WEIGHTS[1] if height >= HD_LINES else _LUMA_WEIGHTS[6])


def _scales(layout: PixelLayout, colour: ColourTags) -> Scales:
    if colour.range == RANGE_FULL:
        top = float(2**layout.bits - 1)
        return 0.0, top, float(2 ** (layout.bits - 1)), top
    unit = float(2 ** (layout.bits - 8))
    return 16 * unit, 219 * unit, 128 * unit, 224 * unit


def planes_to_rgb(
    planes: tuple[np.ndarray, ...],
    layout: PixelLayout,
    colour: ColourTags,
    device: torch.device,
    beyond: tuple[int, int] = (0, 0),
) -> Tensor:
    """Planes of one frame -> [1, 3, H, W] fp32 RGB on the device; nominally [0, 1], never clipped.

    beyond: rows below and columns on the right that are added, in which the border is repeated.
    """
    height, width = planes[0].shape
    values = _values(planes, device)
    if layout == RGB:
        g, b, r = (plane.float() for plane in values)
        return with_borders(torch.stack((r, g, b))[None] / 255, beyond)
    scales = _scales(layout, colour)
    if layout.planes == 1:
        return with_borders(values[0].float().sub_(scales[0]).div_(scales[1]).expand(1, 3, height, width), beyond)
    y, u, v = values
    return _to_rgb(y, u, v, scales, *_luma_weights(colour.matrix, height), (layout.chroma_y, layout.chroma_x), beyond)


def planes_to_rgb_and_look(
    planes: tuple[np.ndarray, ...],
    layout: PixelLayout,
    colour: ColourTags,
    device: torch.device,
    beyond: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``planes_to_rgb`` returns, and what a search sees of it (``ugsp_net.search.look``); sides with what is
    ``beyond`` multiples of 4."""
    if len(planes) < 3 or layout == RGB:
        rgb = planes_to_rgb(planes, layout, colour, device, beyond)
        return rgb, *look(rgb)
    y, u, v = _values(planes, device)
    shifts, weights = (layout.chroma_y, layout.chroma_x), _luma_weights(colour.matrix, len(y))
    return _to_rgb_and_look(y, u, v, _scales(layout, colour), *weights, shifts, beyond)


def _values(planes: tuple[np.ndarray, ...], device: torch.device) -> list[Tensor]:
    return [_on_device(torch.from_numpy(np.ascontiguousarray(plane)), device) for plane in planes]


@compiled_by("cpu.colour.to_rgb_and_look")
def _to_rgb_and_look(y: Tensor, *how: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What ``_to_rgb`` returns of all of its arguments, [1, 3, H, W] fp32, and what a search sees of it (``look``)."""
    rgb = _to_rgb(y, *how)
    return rgb, *look(rgb)


@compiled_by("cpu.colour.to_rgb", "gpu.colour.to_rgb")
def _to_rgb(
    y: Tensor,
    u: Tensor,
    v: Tensor,
    scales: Scales,
    red: float,
    blue: float,
    shifts: Shifts,
    beyond: tuple[int, int] = (0, 0),
) -> Tensor:
    """[H, W] and twice [h, w], of whole numbers -> [1, 3, H, W] fp32, with what is ``beyond`` for ``planes_to_rgb``.
    red, blue: their weights in luma."""
    luma_zero, luma_reach, chroma_zero, chroma_reach = scales
    height, width = y.shape
    y = y.float().sub_(luma_zero).div_(luma_reach)
    u, v = (plane.float().sub_(chroma_zero).div_(chroma_reach) for plane in (u, v))
    # What each colour has beyond luma, while there are few values of it.
    beyond_red, beyond_blue = 2 * (1 - red) * v, 2 * (1 - blue) * u
    beyond_green = (red * beyond_red + blue * beyond_blue) / (red + blue - 1)
    chroma = torch.stack((beyond_red, beyond_green, beyond_blue))
    times = float(1 + shifts[0]), float(1 + shifts[1])
    # By the nearest: torch.repeat_interleave takes twice as long.
    return with_borders(F.interpolate(chroma[None], scale_factor=times)[..., :height, :width].add_(y), beyond)


def with_borders(rgb: Tensor, beyond: tuple[int, int]) -> Tensor:
    """Pictures [B, C, H, W] with their border repeated in so many rows below and columns on the right."""
    below, right = beyond
    return F.pad(rgb, (0, right, 0, below), mode="replicate") if below or right else rgb


def _on_device(plane: Tensor, device: torch.device) -> Tensor:
    """A plane on the device; a card fetches it by itself, from memory that is pinned, while the processor goes on."""
    return plane.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else plane.to(device)


def rgb_to_planes(rgb: Tensor, layout: PixelLayout, colour: ColourTags) -> list[tuple[np.ndarray, ...]]:
    """[B, 3, H, W] fp32 RGB -> planes of each frame: inverse of ``planes_to_rgb``, rounded to the nearest value."""
    top = 2**layout.bits - 1
    if layout == RGB:
        r, g, b = rgb.float().unbind(1)
        return _on_host([_whole(plane * 255, 255) for plane in (g, b, r)])
    scales, weights = _scales(layout, colour), _luma_weights(colour.matrix, rgb.shape[2])
    if layout.planes == 1:
        y = _luma(rgb.float(), *weights)
        return _on_host([_whole(y * scales[1] + scales[0], top)])
    return _on_host(_to_planes(rgb.float(), scales, *weights, (layout.chroma_y, layout.chroma_x), top))


STEPS = 256
"""To a code value, in which planes are rounded before they are rounded to whole ones."""


def _luma(rgb: Tensor, red: float, blue: float) -> Tensor:
    """[B, 3, H, W] -> [B, H, W]. red, blue: their weights in it."""
    r, g, b = rgb.unbind(1)
    return (red * r).add_(g, alpha=1 - red - blue).add_(b, alpha=blue)


@compiled_by("cpu.colour.to_planes", "gpu.colour.to_planes")
def _to_planes(rgb: Tensor, scales: Scales, red: float, blue: float, shifts: Shifts, top: int) -> list[Tensor]:
    """[B, 3, H, W] fp32 -> [B, H, W] and twice [B, h, w], of whole numbers up to ``top``: inverse of ``_to_rgb``."""
    luma_zero, luma_reach, chroma_zero, chroma_reach = scales
    height, width = rgb.shape[2:]
    y = _luma(rgb, red, blue)
    chroma = rgb[:, [2, 0]] - y[:, None]
    right, below = -width % (1 + shifts[1]), -height % (1 + shifts[0])
    if right or below:
        chroma = F.pad(chroma, (0, right, 0, below), mode="replicate")
    chroma = halve(chroma, bool(shifts[0]), bool(shifts[1]))
    reach = chroma.new_tensor((chroma_reach / (2 * (1 - blue)), chroma_reach / (2 * (1 - red))))
    u, v = (chroma * reach[:, None, None] + chroma_zero).unbind(1)
    return [_whole(plane, top) for plane in (y * luma_reach + luma_zero, u, v)]


def _whole(plane: Tensor, top: int) -> Tensor:
    """A plane, overwritten, in whole numbers up to ``top``.

    The mean of two frames' codes often lies halfway between two, and would follow the errors of its computation:
    compiled code took nearly all of them down, which cost clean clips up to 0.17 dB. With the errors rounded away
    first, halves go to the even code.
    """
    return (
        plane.mul_(STEPS)
        .round_()
        .mul_(1 / STEPS)
        .round_()
        .clamp_(0, top)
        .to(torch.uint8 if top < 256 else torch.uint16)
    )


def _on_host(planes: list[Tensor]) -> list[tuple[np.ndarray, ...]]:
    """Planes [B, h, w] of several frames, frame by frame."""
    if planes[0].device.type == "cuda":  # which writes to pinned memory at several times the rate, and all at once
        pinned = [torch.empty(plane.shape, dtype=plane.dtype, pin_memory=True) for plane in planes]
        for host, plane in zip(pinned, planes, strict=True):
            host.copy_(plane, non_blocking=True)
        torch.cuda.current_stream(planes[0].device).synchronize()
        planes = pinned
    return list(zip(*(plane.cpu().numpy() for plane in planes), strict=True))
