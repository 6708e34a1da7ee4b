"""3x3 convolutions of tiles of 4x4 positions by Winograd's minimal filtering: F(4x4, 3x3) of Lavin & Gray (CVPR 2016).

What a tile reads, 6x6 positions, and the kernel are brought where a convolution is a product for each of 36 numbers:
2.25 multiplications a position and pair of channels instead of nine. And a position is gathered 2.25 times, not nine.
The transforms of tiles are compiled (``cpu.winograd``); where they are not, they are products with constant matrices,
and half of the work that is left with 48 to 64 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ugsp_net import cpu
from ugsp_net.blocks import LEAKY_SLOPE, Activation

TILE = 4
"""Side of a tile of the output, positions; it reads one more on each side."""

BATCH = 108
"""Tiles that are convolved at once: what is made of them stays in the cache. No power of two: rows that lie so far
apart meet in the same few places of the cache, and levels took a tenth longer with 64 or 128."""

COLUMNS = 16
"""The columns of a projection that compiled code adds are a multiple of this."""

_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))
_KERNEL_OVER = 24
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
"""The paper's B^T, G (times 24) and A^T, for the points 0, 1, -1, 2, -2."""


def pays(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this is faster than one product with all that a kernel reads: in fp32, by AVX2 or AVX512.

    With AVX2 (one core of an AMD EPYC) products and dense convolutions run at 36 to 40 GMAC/s, and a level of 64
    channels in tiles takes 28 % less time than one by one, one of 48 channels 20 to 26 %. With AVX512 (one core of a
    Xeon) a whole frame takes 23 to 34 % less, all computed 18 to 22 %, and without Numba 15 % and nothing. In bf16 the
    transforms would lose digits, and where products take little time the transforms are most of it. Not measured: ARM.
    """
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return dtype == torch.float32 and device.type == "cpu" and fast


class Winograd:
    """One convolution without a bias."""

    def __init__(self, weight: Tensor) -> None:
        """weight: [K, C, 3, 3] fp32."""
        outputs, inputs = weight.shape[:2]
        taps = weight.permute(2, 3, 1, 0).reshape(9, -1)
        self.kernel = (_both_ways(_KERNEL, taps) / _KERNEL_OVER**2 @ taps).view(36, inputs, outputs)
        """[36, C, K]."""
        self._input, self._output = _both_ways(_INPUT, taps), _both_ways(_OUTPUT, taps)

    @cached_property
    def _padded(self) -> tuple[Any, Any]:
        """The kernel as compiled code takes it."""
        from ugsp_net.cpu import winograd as compiled

        return compiled.padded(self.kernel, None)

    def _compiles(self) -> bool:
        """Whether compiled code does it, eight channels at a time."""
        return self.kernel.device.type == "cpu" and cpu.available() and min(self.kernel.shape[1:]) >= 8

    def __call__(self, rows: Tensor, around: Tensor, activation: Activation, out: Tensor) -> None:
        """Convolve N tiles, and activate what that makes.

        rows: [R, C] fp32; around: [N, 36] int32, which of them a tile reads, row by row; out: [16 * N, K], filled tile
        by tile, row by row.
        """
        if self._compiles():
            from ugsp_net.cpu import winograd as compiled

            slope = LEAKY_SLOPE if activation.slope is None else 1.0
            nothing = out.new_empty(0, 0)
            compiled.convolve(rows, around, self._padded, slope, out, nothing, nothing, nothing, 1.0)
            if activation.slope is None:
                return
        else:
            read = rows.index_select(0, around.T.flatten()).view(36, -1)
            transformed = torch.mm(self._input, read).view(36, len(around), -1)
            products = torch.bmm(transformed, self.kernel)
            made = torch.mm(self._output, products.view(36, -1)).view(TILE**2, len(around), -1)
            out.view(len(around), TILE**2, -1).copy_(made.transpose(0, 1))
        out.copy_(activation(out))  # a leaky ReLU is done in place

    def projects(self, activation: Activation) -> bool:
        """Whether ``project`` works."""
        return self._compiles() and activation.slope is None


def project(
    convs: Sequence[Winograd],
    rows: Tensor,
    source: Tensor,
    around: Tensor,
    out: Tensor,
    projected: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor,
    last_slope: float = 1.0,
) -> None:
    """One convolution with a leaky ReLU, or two one after the other; besides, add the products of what each makes with
    a weight [K, P], P a multiple of ``COLUMNS``, to what was projected, [16 * N, P].

    rows: [R, C] fp32; source: which of them a tile reads, as in a call of ``Winograd``; around: which of what the first
    of two makes, any number from 16 * N on where there is nothing; out: what the last one makes, [16 * N, K], or of no
    rows where nobody wants what the second of two does; bias: [1, P], what is projected is not written yet and begins
    with, or of no rows; last_slope: of the leaky ReLU that becomes of it in the end, 1 for none.
    """
    from ugsp_net.cpu import winograd as compiled

    kernels = [conv._padded for conv in convs]
    if len(kernels) == 1:
        compiled.convolve(rows, source, kernels[0], LEAKY_SLOPE, out, projected, weights[0], bias, last_slope)
    else:
        how = LEAKY_SLOPE, out, projected, weights, bias, last_slope
        compiled.convolve_twice(rows, source, around, kernels, *how)


def _both_ways(matrix: tuple[tuple[int, ...], ...], like: Tensor) -> Tensor:
    """What a matrix does down and across at once, to squares whose values follow each other row by row."""
    one = like.new_tensor(matrix)
    return torch.kron(one, one)
