"""Paths of points by Triton's kernels against torch: on a CUDA device, and interpreted as in ``interpreter``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests import interpreter
from tests.test_triton import DEVICE, INTERPRETED, full_of_nan, kernels, needs_triton
from ugsp_net import gpu, paths
from ugsp_net.compiled import only_torch

SIZES = [(1, 1), (9, 35)] if INTERPRETED else [(1, 1), (3, 2), (13, 19), (9, 35), (41, 70), (272, 480)]
"""Less than a tile of any kernel, and several with a remainder, both ways."""
T = (0.3, 0.6)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that are full of NaN, and tiles so low that small maps have several."""
    monkeypatch.setattr(gpu, "empty", full_of_nan)
    if INTERPRETED:
        monkeypatch.setattr(by_kernels(), "TALL", 8)


def by_kernels() -> Any:
    """Imported when it is needed: it imports triton."""
    return import_module("ugsp_net.gpu.paths")


def flows(height: int, width: int, count: int, far: float | None = None) -> list[Tensor]:
    """Flow [2, 4, h, w] of pairs: of the first picture it leads there and back but in some places, of the second it
    does not, as across a cut. far: points in some places lead so far, to any side."""
    torch.manual_seed(0)
    smooth = min(3.0, width / 20) * F.interpolate(torch.randn(1, 2, 2, 3), (height, width), mode="bicubic")
    made = []
    for _ in range(count):
        there = smooth + 0.3 * torch.randn(1, 2, 1, 1)
        pair = torch.cat((there, 0.2 * torch.randn_like(there) - there), dim=1)
        pair = torch.where(torch.rand(1, 1, height, width) < 0.2, 5 * torch.randn_like(pair), pair)
        pair = torch.cat((pair, 9 * torch.randn_like(pair)))
        if far is not None:
            places = torch.rand(2, 1, height, width) < 0.1
            pair = torch.where(places, far * torch.randn_like(pair).sign(), pair)
        made.append(pair.to(DEVICE))
    return made


def assert_alike(made: Tensor, expected: Tensor, tolerance: float) -> None:
    assert made.is_contiguous()
    torch.testing.assert_close(made, expected, atol=tolerance, rtol=tolerance)


def tolerance_of(width: int) -> float:
    """Torch's grids are relative to a map's size: positions in a large one are farther off, by 5e-5 in 480."""
    return 5e-4 if width < 100 else 5e-3


def check_trace(*arguments: Any, tolerance: float = 5e-4) -> Tensor:
    """Return what torch makes."""
    with only_torch():
        expected = paths.trace(*arguments)
    assert_alike(by_kernels().trace(*arguments), expected, tolerance)
    return expected


def check_carry(traced: Tensor, *times: float, tolerance: float = 5e-4) -> None:
    t = torch.tensor(times, device=DEVICE)
    with only_torch():
        expected = paths.carry(traced, t)
    assert_alike(by_kernels().carry(traced, t), expected, tolerance)


@kernels
@pytest.mark.parametrize("sides", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_trace_equals_torch(height: int, width: int, sides: tuple[bool, bool]) -> None:
    flow, *around = flows(height, width, 3)
    before, after = (beyond if there_is else None for beyond, there_is in zip(around, sides, strict=True))
    traced = check_trace(flow, before, after, tolerance=tolerance_of(width))
    if height > 3:
        assert paths.is_cut(traced).tolist() == [False, True]


@kernels
@pytest.mark.parametrize("sides", [(False, False), (True, False), (False, True), (True, True)])
def test_frames_beyond_are_as_far_away_as_they_are(sides: tuple[bool, bool]) -> None:
    """And one that is no time away is none."""
    flow, *around = flows(7, 19, 3)
    before, after = (beyond if there_is else None for beyond, there_is in zip(around, sides, strict=True))
    still = (torch.rand(2, 1, 14, 38, device=DEVICE) > 0.7).float()
    check_trace(flow, before, after, torch.tensor([[0.0, 0.5], [2.0, 0.0]], device=DEVICE), still)


@kernels
def test_a_cut_before_or_after_tells_nothing() -> None:
    """While there is none between the two frames: what is beyond is then as if it were not."""
    flow, before, after = flows(7, 19, 3)
    pair = flow[:1].expand(2, -1, -1, -1)
    traced = check_trace(pair, before, after.flip(0))
    assert not paths.is_cut(traced).any()
    made, alone = by_kernels().trace(pair, before), by_kernels().trace(pair)
    assert torch.equal(made[1, :14], alone[1, :14])
    assert not torch.equal(made[0, :14], alone[0, :14])


@kernels
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_carry_equals_torch(height: int, width: int) -> None:
    """Across a cut too, in the second picture."""
    flow, before, after = flows(height, width, 3)
    still = (torch.rand(2, 1, 2 * height, 2 * width, device=DEVICE) > 0.7).float()
    with only_torch():
        traced = paths.trace(flow, before, after, torch.tensor([[1.0, 2.0], [0.0, 1.0]], device=DEVICE), still)
    loose = tolerance_of(width)
    check_carry(traced, 0.98, 0.5, tolerance=loose)
    if not INTERPRETED:
        for times in ((0.02, 0.7), (0.5, 0.3)):
            check_carry(traced, *times, tolerance=loose)
            check_carry(traced.flip(0), *times, tolerance=loose)


@kernels
def test_what_stands_still_is_carried_nowhere() -> None:
    flow = torch.zeros(2, 4, 5, 9, device=DEVICE)
    check_carry(check_trace(flow, flow, flow), *T, tolerance=1e-5)


@kernels
def test_flow_that_leads_far_outside() -> None:
    """And across a cut that is overlooked, so that it is followed wherever it leads."""
    flow, before, after = flows(4, 16, 3, far=1e3)
    traced = check_trace(flow, before, after, torch.tensor([[0.5, 2.0], [1.0, 1.0]], device=DEVICE))
    traced[:, 16] = 0
    check_carry(traced, 0.02, 0.7, tolerance=5e-3)


@kernels
def test_flow_that_is_no_number_reads_nothing_outside() -> None:
    """It makes maps of no numbers, as in torch, and nothing worse; the picture beside it in memory is as it was."""
    given, t = flows(7, 19, 3), torch.tensor(T, device=DEVICE)
    spoilt = [flow.clone() for flow in given]
    for flow in spoilt:
        flow[1, :, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30], device=DEVICE)[:, None, None]
        flow[1, :, 5:] = -3e38
    whole, found = by_kernels().trace(*(flow[:1] for flow in given)), by_kernels().trace(*spoilt)
    assert torch.equal(found[:1], whole)
    assert torch.equal(found[1, :4].nan_to_num(), spoilt[0][1].nan_to_num())
    carried = by_kernels().carry(found, t)
    assert_alike(carried[:1], by_kernels().carry(whole, t[:1]), 1e-5)  # sums in another order


@kernels
def test_maps_in_any_layout() -> None:
    flow, before, after = (beyond.transpose(2, 3).contiguous().transpose(2, 3) for beyond in flows(4, 16, 3))
    still = torch.rand(2, 1, 32, 8, device=DEVICE).transpose(2, 3)
    intervals = torch.tensor([[1.0, 0.5], [2.0, 1.0]], device=DEVICE).t()
    traced = check_trace(flow, before, after, intervals, still)
    check_carry(traced.to(memory_format=torch.channels_last), 0.4, 0.6)


@needs_triton
@pytest.mark.gpu
def test_the_host_never_waits() -> None:
    flow, before, after = flows(41, 70, 3)
    intervals, t = torch.ones(2, 2, device=DEVICE), torch.tensor(T, device=DEVICE)
    still = torch.zeros(2, 1, 82, 140, device=DEVICE)

    def run() -> Tensor:
        found: Tensor = by_kernels().carry(by_kernels().trace(flow, before, after, intervals, still), t)
        return found

    run()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_interpreted() -> None:
    """The tests above on the CPU."""
    interpreter.wait(__file__)
