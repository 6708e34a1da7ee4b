"""Which number format a device is fast in."""

from __future__ import annotations

import torch


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself (AVX512-BF16 or AMX); elsewhere bf16 is emulated and slower than fp32."""
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check is not None and check())


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Training's number format on a device: ``bf16``, ``fp32``, or ``auto``, bf16 where that is fast.

    Emulated bf16 ran convolutions at an eighth of fp32's rate (8 against 70 GFLOP/s, two cores with AVX2).
    """
    wanted = precision == "bf16" or (precision == "auto" and (device.type != "cpu" or has_fast_bf16()))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
