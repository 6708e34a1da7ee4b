"""How much memory frames need, and how much there is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ugsp_net import cpu, gpu
from ugsp_net.precision import TYPES
from ugsp_net.sparse import strips, winograd

__all__ = ["USABLE", "free_bytes", "peak_bytes"]

NETWORK_BYTES = {"fp32": 780, "bf16": 840, "fp16": 840}
"""For each pixel that the network sees at once, of the network that ships, where every block is computed: as torch does
it, bf16 emulated. No graphics card has been measured."""

COMPILED_BYTES = {"strips": 180, "winograd": 300, "fp32": 600}
"""The same on a processor in compiled code: levels in bf16, in fp32 with AVX2 or AVX512, and otherwise. Measured as the
peak of the resident memory at sizes from 640x368 to 7680x4320 (`benchmarks/memory.py model`), up to a fifth less."""

CODE_BYTES = 150 << 20
"""Compiled code, once."""

FRAME_BYTES = 76
"""For each pixel of the frames: both given ones and the made one as fp32 RGB, and what their conversion needs. At
7680x4320, where it is most of it, an engine peaked at 3534 MiB."""

USABLE = 0.8
"""Share of the free memory that may be planned with: the allocators' gaps and the codecs' frames need some too."""


def peak_bytes(
    whole: int, seen: int, batch: int, precision: str, device: torch.device, workers: int | None = None
) -> int:
    """What making frames takes at its peak, beside the weights and what the process takes without frames.

    whole: pixels of a frame at its own size; seen: what the network sees of it at once; batch: frames made at once;
    workers: how many of them are in the network at once, None: all.
    """
    inside = batch if workers is None else min(batch, workers)
    each, code = _network_bytes(precision, device)
    return inside * seen * each + batch * whole * FRAME_BYTES + code


def _network_bytes(precision: str, device: torch.device) -> tuple[int, int]:
    """For each pixel that the network sees at once, and once."""
    if device.type != "cpu" or not cpu.available():
        return NETWORK_BYTES[precision], 0
    dtype = TYPES[precision]
    with torch.no_grad():  # as frames are made
        way = "strips" if strips.pays(dtype, device) else "winograd" if winograd.pays(dtype, device) else precision
    return COMPILED_BYTES.get(way, NETWORK_BYTES[precision]), CODE_BYTES


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process may still take on a device; None where the system does not tell."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
        # torch 2.6 has no way to read the limit that the process gave itself.
        limit = getattr(torch.cuda, "get_per_process_memory_fraction", lambda index: 1.0)(gpu.index_of(device))
        return min(free + held, int(limit * total)) - used
    if sys.platform != "linux":
        return None
    return min(_host_limits(Path("/")), default=None)


def _host_limits(root: Path) -> Iterator[int]:
    """Bytes that the machine, the control groups and the process's own limits leave, each where it is known."""
    meminfo = _fields(root / "proc/meminfo")
    if "MemAvailable:" in meminfo:
        yield 1024 * meminfo["MemAvailable:"]
    for folder in _control_groups(root):
        for most, used, reclaimable in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(folder / most)
            usage = _number(folder / used)
            if limit is not None and usage is not None:
                # Pages of files that were read count as used, and are given up when memory is wanted.
                yield limit - usage + _fields(folder / "memory.stat").get(reclaimable, 0)
    if sys.platform == "linux":
        import resource

        status = _fields(root / "proc/self/status")
        for which, used in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
            limit = resource.getrlimit(which)[0]
            if limit != resource.RLIM_INFINITY and used in status:
                yield limit - 1024 * status[used]


def _control_groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups, with those above them, that limit memory (version 2, then 1)."""
    listing = root / "proc/self/cgroup"
    for line in listing.read_text().splitlines() if listing.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        folder = top / path.lstrip("/")
        yield from [folder, *folder.parents][: len(folder.parts) - len(top.parts) + 1]


def _number(file: Path) -> int | None:
    """The only number in a file; None without the file, or where it says `max`."""
    text = file.read_text().strip() if file.exists() else ""
    return int(text) if text.isdecimal() else None


def _fields(file: Path) -> dict[str, int]:
    """The lines of a file that are a name and a number."""
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return {line[0]: int(line[1]) for line in lines if len(line) >= 2 and line[1].isdecimal()}
