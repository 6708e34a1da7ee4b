"""The transforms of ``sparse.winograd``, for processors: as sums of rows, eight channels at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ugsp_net.cpu.vectors import compiled, inlined, largest, load, plain, same, store

LANES = 8


def transform(rows: Tensor, around: Tensor, out: Tensor) -> None:
    """What N tiles read, brought where a convolution is a product.

    rows: [R, C] fp32, C at least 8; around: [N, 36] int32; out: [36, N, C], filled.
    """
    _transform(plain(rows), plain(around), out.flatten(0, 1).numpy())


def back(products: Tensor, slope: float, out: Tensor) -> None:
    """From products [36, N, K], K at least 8, to what the convolution makes, and a leaky ReLU of it; out: [16 * N, K],
    filled as ``Winograd`` does."""
    _back(plain(products.flatten(0, 1)), np.float32(slope), out.numpy())


@inlined
def _forth(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """A row of six times ``winograd._INPUT``."""
    four, five, two = same(np.float32(4)), same(np.float32(5)), same(np.float32(2))
    outer, inner = e - c, two * (d - b)
    return (
        four * a - five * c + e,
        d + e - four * (b + c),
        e - d + four * (b - c),
        outer + inner,
        outer - inner,
        four * b - five * d + f,
    )


@inlined
def _home(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """A row of six times ``winograd._OUTPUT``."""
    two, four, eight = same(np.float32(2)), same(np.float32(4)), same(np.float32(8))
    near, far = b + c, d + e
    odd, beyond = b - c, d - e
    return a + near + far, odd + two * beyond, near + four * far, odd + eight * beyond + f


@compiled
def _transform(rows: Any, around: Any, out: Any) -> None:
    """out: [36 N, C]."""
    tiles, channels = around.shape[0], rows.shape[1]
    half = np.empty((36, LANES), np.float32)
    for tile in range(tiles):
        read = around[tile]
        for start in range(0, channels, LANES):
            # The last eight channels overlap those before them where their number is no multiple.
            first = min(start, channels - LANES)
            for x in range(6):
                made = _forth(
                    load(rows, read[x], first),
                    load(rows, read[6 + x], first),
                    load(rows, read[12 + x], first),
                    load(rows, read[18 + x], first),
                    load(rows, read[24 + x], first),
                    load(rows, read[30 + x], first),
                )
                store(made[0], half, x, 0)
                store(made[1], half, 6 + x, 0)
                store(made[2], half, 12 + x, 0)
                store(made[3], half, 18 + x, 0)
                store(made[4], half, 24 + x, 0)
                store(made[5], half, 30 + x, 0)
            for y in range(6):
                line = 6 * y
                made = _forth(
                    load(half, line, 0),
                    load(half, line + 1, 0),
                    load(half, line + 2, 0),
                    load(half, line + 3, 0),
                    load(half, line + 4, 0),
                    load(half, line + 5, 0),
                )
                store(made[0], out, line * tiles + tile, first)
                store(made[1], out, (line + 1) * tiles + tile, first)
                store(made[2], out, (line + 2) * tiles + tile, first)
                store(made[3], out, (line + 3) * tiles + tile, first)
                store(made[4], out, (line + 4) * tiles + tile, first)
                store(made[5], out, (line + 5) * tiles + tile, first)


@compiled
def _back(products: Any, slope: float, out: Any) -> None:
    """products: [36 N, K]; out: [16 N, K]."""
    tiles, channels = products.shape[0] // 36, products.shape[1]
    half = np.empty((24, LANES), np.float32)
    leak = same(slope)
    for tile in range(tiles):
        for start in range(0, channels, LANES):
            first = min(start, channels - LANES)
            for x in range(6):
                made = _home(
                    load(products, x * tiles + tile, first),
                    load(products, (6 + x) * tiles + tile, first),
                    load(products, (12 + x) * tiles + tile, first),
                    load(products, (18 + x) * tiles + tile, first),
                    load(products, (24 + x) * tiles + tile, first),
                    load(products, (30 + x) * tiles + tile, first),
                )
                store(made[0], half, x, 0)
                store(made[1], half, 6 + x, 0)
                store(made[2], half, 12 + x, 0)
                store(made[3], half, 18 + x, 0)
            for y in range(4):
                line = 6 * y
                made = _home(
                    load(half, line, 0),
                    load(half, line + 1, 0),
                    load(half, line + 2, 0),
                    load(half, line + 3, 0),
                    load(half, line + 4, 0),
                    load(half, line + 5, 0),
                )
                place = 4 * y * tiles + tile
                store(largest(made[0], leak * made[0]), out, place, first)
                store(largest(made[1], leak * made[1]), out, place + tiles, first)
                store(largest(made[2], leak * made[2]), out, place + 2 * tiles, first)
                store(largest(made[3], leak * made[3]), out, place + 3 * tiles, first)
