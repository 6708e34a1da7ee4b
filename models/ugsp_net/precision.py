"""Which number format a device is fast in."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

import torch

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of activations, by the names that users know."""


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself (AVX512-BF16 or AMX); elsewhere bf16 is emulated and slower than fp32."""
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check is not None and check())


@cache
def has_matrix_unit() -> bool:
    """Whether this process may multiply bf16 by the processor's matrix unit (AMX): Linux lets a process use it that
    asks for it, once. Not where oneDNN is told not to use it (ONEDNN_MAX_CPU_ISA)."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if check is None or not check() or not has_fast_bf16() or platform.system() != "Linux":
        return False
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if "AMX" not in most and most not in ("ALL", "DEFAULT"):
        return False
    ask, permission, tile_data = 158, 0x1023, 18  # arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    answer: int = ctypes.CDLL(None, use_errno=True).syscall(ask, permission, tile_data)
    return answer == 0


def instructions() -> str:
    """What this processor computes with, in words for the user."""
    words = [torch.backends.cpu.get_cpu_capability()]
    words += ["bf16"] * has_fast_bf16() + ["AMX"] * has_matrix_unit()
    return " ".join(words)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Training's number format on a device: ``bf16``, ``fp32``, or ``auto``, bf16 where that is fast.

    Emulated bf16 ran convolutions at an eighth of fp32's rate (8 against 70 GFLOP/s, two cores with AVX2).
    """
    wanted = precision == "bf16" or (precision == "auto" and (device.type != "cpu" or has_fast_bf16()))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
