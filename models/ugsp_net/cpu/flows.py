"""Flow from size to size, for processors: every map is read and written once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ugsp_net.cpu.vectors import allocating, as_array, compiled, lane, load4, plain


def smaller_flows(flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What ``network._smaller_flows`` returns."""
    made = []
    for _ in range(3):
        batch, planes, height, width = flow.shape
        small = flow.new_empty(batch, planes, height // 2, width // 2)
        _halve(plain(flow.flatten(0, 1)), np.float32(1 / 8), small.flatten(0, 1).numpy())
        made.append(small)
        flow = small
    return made[0], made[1], made[2]


def enlarged(begun: Tensor, flow: Tensor, found: Tensor) -> Tensor:
    """What ``network._enlarged`` returns."""
    out = begun.new_empty(begun.shape)
    some = (plain(one.flatten(0, 1)) for one in (begun, flow, found))
    _enlarge(*some, out.flatten(0, 1).numpy())
    return out


def bent(flow: Tensor, added: Tensor, pace: Tensor) -> Tensor:
    """What ``network._bent`` returns."""
    if added.stride(1) != 1 or added.dtype not in (torch.float32, torch.bfloat16):
        return flow + added.float() * pace
    out, (height, width) = flow.new_empty(flow.shape), flow.shape[-2:]
    for index, share in enumerate(plain(pace.expand(len(flow), -1, -1, -1)[:, :, 0, 0])):
        down, across = added.stride(2), added.stride(3)
        length = (height - 1) * down + (width - 1) * across + 4
        line = as_array(added[index].as_strided((1, length), (length, 1)))
        _bend(plain(flow[index]), line, down, across, share, out[index].numpy())
    return out


@compiled
def _bend(flow: Any, added: Any, down: int, across: int, pace: Any, out: Any) -> None:
    """flow, out: [4, H, W]; added: [1, N], four numbers of each position; pace: [4]."""
    for y in range(out.shape[1]):
        for x in range(out.shape[2]):
            four = load4(added, 0, y * down + x * across)
            for plane in range(4):
                out[plane, y, x] = flow[plane, y, x] + pace[plane] * lane(four, plane)


@compiled
def _halve(flow: Any, share: float, out: Any) -> None:
    """Sums over 2x2 positions, times a share. flow: [N, H, W]; out: [N, H / 2, W / 2]."""
    for plane in range(out.shape[0]):
        for i in range(out.shape[1]):
            upper, lower, into = flow[plane, 2 * i], flow[plane, 2 * i + 1], out[plane, i]
            for j in range(len(into)):
                into[j] = share * (upper[2 * j] + upper[2 * j + 1] + lower[2 * j] + lower[2 * j + 1])


@allocating
def _enlarge(begun: Any, flow: Any, found: Any, out: Any) -> None:
    """begun, out: [N, H, W]; flow, found: [N, H / 2, W / 2]."""
    # Twice the difference, of which each position takes three quarters down and three quarters across.
    near, far = np.float32(1.5), np.float32(0.5)
    most, quarter = np.float32(0.75), np.float32(0.25)
    rows, columns = flow.shape[1:]
    row = np.empty(columns + 2, np.float32)
    for plane in range(out.shape[0]):
        for y in range(out.shape[1]):
            i = y // 2
            beside = min(i + 1, rows - 1) if y % 2 else max(i - 1, 0)
            here, other = flow[plane, i], flow[plane, beside]
            less, other_less = found[plane, i], found[plane, beside]
            first, into = begun[plane, y], out[plane, y]
            for j in range(columns):
                row[j + 1] = near * (here[j] - less[j]) + far * (other[j] - other_less[j])
            row[0], row[columns + 1] = row[1], row[columns]
            for j in range(columns):
                into[2 * j] = first[2 * j] + most * row[j + 1] + quarter * row[j]
                into[2 * j + 1] = first[2 * j + 1] + most * row[j + 1] + quarter * row[j + 2]
