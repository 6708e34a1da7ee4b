"""What is done pixel by pixel on CUDA devices, against torch: there, and interpreted as in ``interpreter``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import interpreter
from tests.test_triton import DEVICE, INTERPRETED, full_of_nan, kernels, needs_triton
from ugsp_cli import colour
from ugsp_net import gpu, masks, network, pooling, search
from ugsp_net.blocks import Conv
from ugsp_net.compiled import only_torch

BT709 = 0.2126, 0.0722
# Their arguments are told one by one below, as mypy does not follow.
_to_rgb: Any = colour._to_rgb
_to_planes: Any = colour._to_planes


def kernel(name: str) -> Any:
    """What does it on CUDA devices. Imported when it is needed, since triton may not be installed."""
    module, _, function = name.rpartition(".")
    return getattr(import_module(f"ugsp_net.gpu.{module}"), function)


def full(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """As ``full_of_nan``, also of bytes."""
    if dtype in (torch.uint8, torch.int16):
        return like.new_full(shape, 85, dtype=dtype)
    return full_of_nan(shape, like, dtype)


@pytest.fixture(autouse=True)
def _buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "empty", full)
    torch.manual_seed(0)


def close(made: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-6) -> None:
    for one, other in zip(made, expected, strict=True):
        assert one.device.type == DEVICE
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def frames(height: int, width: int) -> list[Tensor]:
    """Two times two frames that are alike in places; edges stand still at some of them."""
    coarse = torch.rand(2, 3, -(-height // 9), -(-width // 9)).repeat_interleave(9, 2).repeat_interleave(9, 3)
    coarse = coarse[..., :height, :width]
    first = (coarse + 0.03 * torch.randn(2, 3, height, width)).to(DEVICE)
    second = first + 0.03 * torch.randn_like(first) * (torch.rand_like(first) > 0.5)
    return [first, second]


def views(values: Tensor) -> list[Tensor]:
    """The same values laid out in several ways: of one piece, as a part of larger pictures, and sideways."""
    batch, channels, height, width = values.shape
    larger = torch.full((batch, channels + 1, height + 32, width + 48), 1e30, device=values.device)
    part = larger[:, 1:, 16 : 16 + height, 32 : 32 + width]
    part.copy_(values)
    return [values.contiguous(), part, values.transpose(2, 3).contiguous().transpose(2, 3)]


@kernels
@pytest.mark.parametrize(("height", "width"), [(16, 48), (13, 87), (1, 1)])
def test_change(height: int, width: int) -> None:
    change = kernel("masks.change")

    first, second = torch.rand(2, 2, 3, height, width, device=DEVICE)
    with only_torch():
        expected = masks.change(first, second)
    for one, other in zip(views(first), reversed(views(second)), strict=True):
        close([change(one, other)], [expected])
    close([change(first[:1].expand(2, -1, -1, -1), first[:1].expand(2, -1, -1, -1))], [torch.zeros_like(expected)])


@kernels
@pytest.mark.parametrize("side", [3, 8, 16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 23)])
def test_blocks(side: int, rows: int, columns: int) -> None:
    over_blocks, share_below = kernel("masks.over_blocks"), kernel("masks.share_below")

    values = torch.randn(2, 2, rows * side, columns * side, device=DEVICE)
    values[0, 0] -= 10  # so that the largest are below what is read where there is nothing
    with only_torch():
        expected = pooling.over_blocks(values, side)
        shares = [masks._share_below(values[:, channel : channel + 1], 0.5, side) for channel in (0, 1)]
    for some in views(values):
        close(over_blocks(some, side), expected)
        close(over_blocks(some[:, 1:], side), [one[:, 1:] for one in expected])
        close([share_below(some[:, channel : channel + 1], 0.5, side) for channel in (0, 1)], shares)
    few = (
        0.02
        * torch.rand_like(values)
        * torch.rand(2, 1, rows, columns, device=DEVICE).repeat_interleave(side, 2).repeat_interleave(side, 3)
    )
    with only_torch():
        agree = masks.agreement(few, side)
    assert torch.equal(kernel("masks.agreement")(few, side), agree)


@kernels
def test_what_is_as_large_as_the_limit_is_not_below() -> None:
    share_below = kernel("masks.share_below")

    changed = torch.full((1, 1, 16, 16), masks.SAME, device=DEVICE)
    changed[..., 0] = torch.nextafter(changed[..., 0], torch.zeros_like(changed[..., 0]))
    assert share_below(changed, masks.SAME, 16).item() == 1 / 16


@kernels
@pytest.mark.parametrize(("height", "width"), [(16, 16), (18, 70), (2, 6), (6, 2), (4, 4)])
def test_rooted_edges(height: int, width: int) -> None:
    rooted_edges = kernel("masks.rooted_edges")

    first, second = frames(height, width)
    with only_torch():
        changed = masks.change(first, second)
        expected = masks._rooted_edges(first, second, changed)
    if min(height, width) > 6:
        for one in expected:
            assert 0.1 < one.mean() < 0.9
    for one, other, differs in zip(views(first), reversed(views(second)), views(changed), strict=True):
        for made, right in zip(rooted_edges(one, other, differs), expected, strict=True):
            assert made.shape == right.shape
            # All is compared with something, so that a last digit may decide.
            assert (made - right).ne(0).float().mean() <= (0 if INTERPRETED else 1e-3)


@kernels
@pytest.mark.parametrize(("channels", "side"), [(16, 4), (20, 2), (32, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_logits(channels: int, side: int, dtype: torch.dtype, tolerance: float) -> None:
    """Of a part of what lies beside each other, whose padding is nothing; and of a feature in planes."""
    block_logits = kernel("masks.block_logits")

    torch.manual_seed(0)
    gate = Conv(channels, 1).to(DEVICE, dtype).requires_grad_(False)
    parent = (torch.rand(2, 1, 5, 7, device=DEVICE) > 0.4).float()
    feature = torch.randn(2, 5 * side, 7 * side, channels + 4, device=DEVICE).to(dtype).permute(0, 3, 1, 2)[:, 4:]
    with only_torch(), torch.inference_mode():  # not on a card, which may take TF32 for that
        expected = masks.block_logits(feature.float().cpu(), gate.cpu().float(), side, parent.cpu()).to(DEVICE)
    gate.to(DEVICE, dtype)
    for some in (feature, feature.contiguous()):
        with torch.inference_mode():
            made = block_logits(some, gate, side, parent)
        close([made], [expected], tolerance)
        assert made.ne(0).float().equal(parent)
    nothing = block_logits(feature * torch.nan, gate, side, torch.zeros_like(parent))
    assert torch.equal(nothing, torch.zeros_like(parent))


@kernels
@pytest.mark.parametrize(("rows", "columns", "share"), [(1, 1, 1.0), (13, 21, 0.02), (7, 9, 0.0)])
def test_what_moves(rows: int, columns: int, share: float) -> None:
    """Where nothing differs, little or all; flow that is no number is not slow."""
    torch.manual_seed(0)
    agree = torch.rand(2, 1, rows, columns, device=DEVICE) >= share
    flow = 0.12 * torch.randn(2, 6, rows, columns, device=DEVICE)
    flow[0, 1, 0, 0] = torch.nan
    moving_blocks = kernel("masks.moving_blocks")
    with only_torch():
        expected = masks.moving_blocks(agree, flow[:, :4], 16, 16)
    close([moving_blocks(agree, flow[:, :4], 16, 16)], [expected])
    close([moving_blocks(agree, flow.mT.contiguous().mT[:, :4], 16, 16)], [expected])
    if rows > 1:
        assert expected.mean() == share or 0.02 < share + 0.02 < expected.mean() < 0.9
        larger = flow[:, :4].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        with only_torch():
            expected = masks.moving_blocks(agree, larger, 8, 16)
        close([moving_blocks(agree, larger, 8, 16)], [expected])

    within, values = kernel("search.within"), torch.randn(2, 4, 4 * rows, 4 * columns, device=DEVICE)
    for beside in (0, 2):
        with only_torch():
            expected = search._within(values, agree, beside)
        close([within(values, agree, beside)], [expected])


@kernels
@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 56)])
def test_flows(height: int, width: int) -> None:
    """From level to level: smaller, enlarged, and what a level adds, which lies beside each other."""
    flow = torch.randn(2, 6, height, width, device=DEVICE)
    with only_torch(), torch.inference_mode():
        expected = network._smaller_flows(flow[:, :4])
    close(kernel("flows.smaller_flows")(flow[:, :4]), expected)
    close(kernel("flows.smaller_flows")(flow.mT.contiguous().mT[:, :4]), expected)

    small, found = torch.randn(2, 2, 4, height // 2, width // 2, device=DEVICE)
    with only_torch(), torch.inference_mode():
        enlarged = network._enlarged(flow[:, :4], small, found)
    close([kernel("flows.enlarged")(flow[:, :4], small, found)], [enlarged])
    close([kernel("flows.enlarged")(flow[:, :4], small.mT.contiguous().mT, found)], [enlarged])

    for dtype in (torch.float32, torch.bfloat16):
        added = torch.randn(2, height, width, 12, device=DEVICE).to(dtype).permute(0, 3, 1, 2)[:, :4]
        for pace in (torch.rand(2, 4, 1, 1, device=DEVICE), torch.ones(1, 1, 1, 1, device=DEVICE)):
            with only_torch(), torch.inference_mode():
                bent = network._bent(flow[:, 2:], added, pace)
            close([kernel("flows.bent")(flow[:, 2:], added, pace)], [bent])


@kernels
@pytest.mark.parametrize(("height", "width"), [(48, 112), (4, 4), (20, 92)])
def test_what_the_search_sees(height: int, width: int) -> None:
    looked_at, compared = kernel("pictures.looked_at"), kernel("pictures.compared")

    first, second = torch.rand(2, 2, 3, height, width, device=DEVICE)
    with only_torch():
        expected, changed = search.looked_at(first, second), masks.change(first, second)
    for one, other in zip(views(first), reversed(views(second)), strict=True):
        close(looked_at(one, other), expected, 1e-4)  # of 0 to 255
        between, *looked = compared(one, other)
        close(looked, expected, 1e-4)
        close([between], [changed])


def narrow(bits: int) -> tuple[float, float, float, float]:
    unit = 2.0 ** (bits - 8)
    return 16 * unit, 219 * unit, 128 * unit, 224 * unit


def wide(bits: int) -> tuple[float, float, float, float]:
    return 0.0, 2.0**bits - 1, 2.0 ** (bits - 1), 2.0**bits - 1


@kernels
@pytest.mark.parametrize(("height", "width"), [(16, 36), (17, 31)])
@pytest.mark.parametrize("shifts", [(1, 1), (0, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize(("bits", "scales"), [(8, narrow), (10, wide), (16, narrow)])
def test_colours(height: int, width: int, shifts: tuple[int, int], bits: int, scales: Any) -> None:
    """To RGB, and exactly back."""
    to_planes, to_rgb = kernel("colour.to_planes"), kernel("colour.to_rgb")

    top = 2**bits - 1
    sides = [(height, width), *2 * [(-(-height // (1 + shifts[0])), -(-width // (1 + shifts[1])))]]
    planes = [torch.randint(0, top + 1, side, dtype=torch.int32) for side in sides]
    codes = [plane.to(torch.uint8 if bits == 8 else torch.uint16).to(DEVICE) for plane in planes]
    how: Any = scales(bits), *BT709, shifts
    with only_torch():
        expected = _to_rgb(*codes, *how)
    rgb = to_rgb(*codes, *how)
    close([rgb], [expected], 2e-6)
    for some in views(rgb.repeat(2, 1, 1, 1)):
        for made, plane, code in zip(to_planes(some, *how, top), planes, codes, strict=True):
            assert made.dtype == code.dtype
            assert torch.equal(made.cpu().int(), plane.expand(2, -1, -1))


@kernels
@pytest.mark.parametrize("shifts", [(1, 1), (0, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_any_colours_to_planes(shifts: tuple[int, int], bits: int) -> None:
    """Of two pictures, of odd sides, beyond what there are codes for."""
    to_planes = kernel("colour.to_planes")

    rgb, top = 1.6 * torch.rand(2, 3, 37, 51, device=DEVICE) - 0.3, 2**bits - 1
    how: Any = narrow(bits), *BT709, shifts, top
    with only_torch():
        expected = _to_planes(rgb, *how)
    for made, other in zip(to_planes(rgb, *how), expected, strict=True):
        assert made.dtype == other.dtype
        differs = (made.cpu().int() - other.cpu().int()).abs()
        assert differs.max() <= 1
        assert differs.float().mean() <= (1e-3 if bits < 16 else 1e-2)
    luma = expected[0].cpu().int()
    assert [int(luma.min()), int(luma.max())] == [0, top]


@kernels
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_codes_are_rounded_as_in_torch(bits: int) -> None:
    """Exactly: halves, halves of 256ths, what lies beside them, and what has no code."""
    to_planes = kernel("colour.to_planes")

    top = 2**bits - 1
    code = torch.cat((torch.arange(-2, 6), torch.arange(top // 2 - 4, top // 2 + 4), torch.arange(top - 6, top + 3)))
    steps = torch.cat((torch.arange(0, 513, 32), torch.arange(249, 264), torch.tensor([1, 3, 511]))) / 512
    at = (code[:, None] + steps).flatten()
    extremes = torch.tensor([-0.0, 1e-30, -1e-30, 1e9, -1e9, 3e38, -3e38, torch.inf, -torch.inf])
    values = torch.cat((at, *(torch.nextafter(at, torch.tensor(end)) for end in (-1e9, 1e9)), extremes))
    values = torch.cat((values, top * torch.rand(-len(values) % 64)))
    # With green alone luma, and a code to the unit, what is rounded is green itself.
    rgb = torch.zeros(1, 3, 64, len(values) // 64, device=DEVICE)
    rgb[:, 1] = values.view(64, -1)
    how: Any = (0.0, 1.0, 0.0, 1.0), 0.0, 0.0, (0, 0), top
    with only_torch():
        expected = _to_planes(rgb, *how)[0]
    assert torch.equal(to_planes(rgb, *how)[0].cpu().int(), expected.cpu().int())
    to_planes(torch.full_like(rgb, torch.nan), *how)  # into anything


@needs_triton
@pytest.mark.gpu
def test_the_decorated_functions_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none makes the host wait."""
    first, second = torch.rand(2, 2, 3, 64, 96, device=DEVICE)
    codes = [torch.randint(0, 256, side, device=DEVICE).to(torch.uint8) for side in ((64, 96), (32, 48), (32, 48))]
    how: Any = narrow(8), *BT709, (1, 1)

    def everything() -> list[Tensor]:
        changed = masks.change(first, second)
        made = [changed, *pooling.over_blocks(changed, 16), masks._share_below(changed[:, :1], masks.SAME, 16)]
        made += masks._rooted_edges(first, second, changed)
        made += [_to_rgb(*codes, *how), *_to_planes(first, *how, 255)]
        return made

    with torch.inference_mode():
        everything()  # compiles
        torch.cuda.set_sync_debug_mode("error")
        made = []

        def counted(*arguments: Any) -> Tensor:
            made.append(full(*arguments))
            return made[-1]

        monkeypatch.setattr(gpu, "empty", counted)
        try:
            assert len(everything()) == len(made)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_interpreted() -> None:
    """The tests above on the CPU, as in ``interpreter``."""
    interpreter.wait(__file__)
