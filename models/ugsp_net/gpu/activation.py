"""What comes after a convolution of cuDNN's, in one pass: its bias and a leaky ReLU."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ugsp_net import gpu

BLOCK = 2048
"""Values that a program takes."""


def add_and_activate(made: Tensor, bias: Tensor, slope: float) -> Tensor:
    """A leaky ReLU of ``made + bias``, in place. made: [B, C, H, W], channels last or copied; bias: [C]."""
    rows = made.permute(0, 2, 3, 1).contiguous()
    with gpu.on(made.device):
        _add_and_activate[(triton.cdiv(rows.numel(), BLOCK),)](
            rows, bias.contiguous(), slope, rows.numel(), CHANNELS=rows.shape[-1], BLOCK=BLOCK
        )
    return rows.permute(0, 3, 1, 2)


@triton.jit(do_not_specialize=["slope"])
def _add_and_activate(
    rows: tl.tensor,  # [entries], channels fastest, changed
    bias: tl.tensor,  # [CHANNELS]
    slope: tl.tensor,
    entries: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = entry < entries
    value = tl.load(rows + entry, mask=there, other=0.0).to(tl.float32)
    value += tl.load(bias + entry % CHANNELS).to(tl.float32)
    value = tl.where(value >= 0, value, value * slope)
    tl.store(rows + entry, value.to(rows.dtype.element_ty), mask=there)
