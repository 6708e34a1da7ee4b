"""What Numba compiles for processors does what torch does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numba
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.nets import SMALL, small_net
from tests.test_search import busy, texture
from tests.test_sparse import make_level, random_masks
from ugsp_cli import colour
from ugsp_net import cpu, masks, network, paths, pooling, rendering, search
from ugsp_net.blocks import Activation, Conv, Convolutions, Level
from ugsp_net.compiled import only_torch
from ugsp_net.cpu import vectors
from ugsp_net.sparse import DenseOutput, LastOutput, run_last_tiles, run_level, tiles, winograd
from ugsp_net.sparse.inputs import DenseInputs, Matching, SparseInputs


def both(make: Callable[[], Any]) -> tuple[Any, Any]:
    """What is made by torch and by compiled code."""
    with torch.inference_mode():
        with only_torch():
            in_torch = make()
        return in_torch, make()


def assert_alike(made: tuple[Any, Any], within: float = 0.0) -> None:
    for one, other in zip(*made, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=within, atol=within)


@pytest.mark.parametrize(("height", "width"), [(192, 256), (100, 236), (16, 272)])
def test_searches_find_the_same_at_every_size(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where two places fit equally well: sums are taken in another order."""
    of_size, sizes = search._search_both, 0

    def compare(*arguments: Any) -> tuple[Tensor, Tensor]:
        nonlocal sizes
        sizes += 1
        in_torch, compiled = both(lambda: of_size(*arguments))
        for one, other in zip(in_torch, compiled, strict=True):
            assert one.shape == other.shape
            assert ((one - other).abs() > 0.01).float().mean() < 0.02
            assert (one - other).abs().median() < 1e-3
        found: tuple[Tensor, Tensor] = in_torch
        return found

    monkeypatch.setattr(search, "_search_both", compare)
    assert search.inverse_search(*busy(height, width)).abs().max() > 1
    assert sizes == (1 if min(height, width) < 48 else 4 if height < 192 else 5)


@pytest.mark.parametrize(("height", "width"), [(192, 256), (100, 236), (4, 12)])
def test_what_a_search_sees_is_the_same(height: int, width: int) -> None:
    frames = torch.rand(2, 2, 3, height + 4, width + 8)[..., 4:, 8:]  # parts of larger pictures
    made = both(lambda: search.looked_at(*frames))
    assert_alike(made, 1e-4)  # of 255
    for one, other in zip(both(lambda: search.look(frames[1])), made, strict=True):
        assert all(torch.equal(seen, of_both[2:]) for seen, of_both in zip(one, other, strict=True))
    image = made[0][0]
    while min(image.shape[-2:]) > 1:
        smaller = both(partial(lambda image: (search._smaller(image),), image))
        assert_alike(smaller, 1e-4)
        image = smaller[0][0]


def test_flow_from_size_to_size_is_the_same() -> None:
    found = 9 * torch.randn(2, 6, 48, 80)[:, :4]
    made = both(lambda: network._smaller_flows(found))
    assert_alike(made, 1e-5)
    small = made[0][0]
    flow = small + torch.randn_like(small)
    assert_alike(both(lambda: (network._enlarged(found, flow, small),)), 1e-5)
    for dtype in (torch.float32, torch.bfloat16):
        added = torch.randn(2, 24, 40, 24).to(dtype).permute(0, 3, 1, 2)[:, :4]
        for pace in (torch.rand(2, 4, 1, 1), torch.rand(1, 4, 1, 1)):
            assert_alike(both(partial(lambda *how: (network._bent(*how),), flow, added, pace)), 1e-5)


def test_every_step_for_colours_is_the_same() -> None:
    pictures = 255 * torch.stack([texture(44, 60, seed)[0] for seed in (0, 1)])
    grid, chosen = (11, 15), torch.tensor([[3, 77, 164], [0, 14, 90]])
    torch.manual_seed(0)  # of other flows one in forty has a patch that finds nothing better
    flow = 3 * torch.randn(2, 11 * 15, 2)
    near = flow.gather(1, chosen[..., None].expand(-1, -1, 2))
    assert_alike(both(lambda: search._miscoloured(pictures, pictures.flip(0), grid, flow)), 1e-3)
    made = both(lambda: search._look_for_colours(pictures, pictures.flip(0), grid, chosen, near))
    assert_alike(tuple(costs[1:] for costs in made), 1e-3)  # two flows may cost the same
    assert (made[0][0] - made[1][0]).abs().median() < 1e-4
    assert (made[0][2] < 0.9 * made[0][1]).all()


@pytest.mark.parametrize("sides", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("motion", [0.5, 60.0])
def test_paths_are_the_same(sides: tuple[bool, bool], motion: float) -> None:
    """Of motion that leads there and back, and of such that shows a cut, in pictures of odd sizes."""

    def flow(there: Tensor) -> Tensor:
        return torch.cat((there, 0.1 * torch.randn_like(there) - there), dim=1)

    def traced_by(*arguments: Any) -> tuple[Tensor]:
        return (paths.trace(*arguments),)

    def carried(traced: Tensor, t: Tensor) -> tuple[Tensor]:
        return (paths.carry(traced, t),)

    ways = [motion * F.interpolate(torch.randn(2, 2, 4, 5), (23, 37), mode="bicubic") for _ in range(2)]
    between = flow(ways[0])
    before, after = (flow(ways[0] + 0.1 * ways[1]) if there_is else None for there_is in sides)
    intervals, still = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), (torch.rand(2, 1, 46, 74) > 0.9).float()
    for arguments in ((between, before, after), (between, before, after, intervals, still)):
        traced = both(partial(traced_by, *arguments))
        assert_alike(traced, 1e-3 if motion > 1 else 1e-4)
        assert bool(paths.is_cut(traced[0][0]).any()) == (motion > 1)
        for t in (torch.tensor([0.3, 0.5]), torch.tensor([0.9, 0.7])):
            assert_alike(both(partial(carried, traced[0][0], t)), 1e-4)


def test_masks_see_the_same() -> None:
    frames = busy(96, 160)
    frames[1][0, :, 40:60, 30:90] = frames[0][0, :, 40:60, 30:90] = (torch.rand(3, 20, 60) > 0.5).float()
    ((exact,), (change,)) = both(lambda: (masks.change(*frames),))
    assert change.dtype == torch.bfloat16
    torch.testing.assert_close(change.float(), exact, rtol=2**-8, atol=0)
    wider = F.pad(frames[0], (3, 10)), F.pad(frames[1], (3, 10))
    parts = [frame[..., 3:150] for frame in wider]  # whose width is no multiple of eight
    assert torch.equal(both(lambda: (masks.change(*parts),))[1][0], change[..., :147])
    for values in (exact, change, torch.rand(1, 3, 96, 160)[:, 1:]):
        assert_alike(both(partial(pooling.over_blocks, values, 16)), 1e-6)
    for others in (
        [],
        [change[:, 1:]],
        [change[:, 1:], change.flip(3)[:, :1]],
        [change.flip(dim)[:, :1] for dim in (1, 2, 3)],
    ):
        assert_alike(
            both(partial(lambda others: (masks._share_below(change[:, :1], masks.SAME, 16, others),), others)), 1e-6
        )
    edges = both(lambda: masks._rooted_edges(*frames, change))
    assert_alike(both(lambda: masks._rooted_edges(*frames, change, [change.flip(3), change.flip(2)])))
    assert_alike(edges)
    assert edges[0][0].max() == 1
    assert_alike(both(lambda: (masks._standing(*edges[0]),)))
    often = torch.tensor([0.2, 0.5, 0.8, 1.0]).view(4, 1, 1, 1)
    shares = (torch.rand(4, 1, 48, 80) < often) * torch.randint(5, (4, 1, 48, 80)) / 4
    alike = (torch.rand_like(shares) > 0.5).float()
    stands = both(lambda: (masks._standing(shares, alike),))
    assert_alike(stands)
    assert 0 < stands[0][0][0].mean() < stands[0][0][2].mean()
    # Of a part of a picture, whose rows do not lie one behind the other.
    first, second, between = (whole[..., 16:80, 32:128] for whole in (*frames, change))
    assert_alike(both(lambda: masks._rooted_edges(first, second, between)))


@pytest.mark.parametrize(("rows", "columns"), [(12, 20), (1, 3), (24, 40)])
def test_the_same_blocks_may_move(rows: int, columns: int) -> None:
    agree = torch.rand(2, 1, rows, columns) > 0.02
    agree[1, :, :, 1:] = True
    flow = torch.randn(2, 6, 12, 20).abs_()[:, :4, :rows, :columns] if rows < 24 else torch.randn(2, 4, 12, 20)
    flow *= torch.rand(flow.shape[-2:]) > 0.9
    moving = both(lambda: (masks.moving_blocks(agree, flow, 4, 16),))
    assert_alike(moving)
    assert rows == 1 or 0 < moving[0][0].mean() < 1
    assert_alike(both(lambda: (pooling.mean_around(agree.float(), 5),)), 1e-6)


@pytest.mark.parametrize(("channels", "dtype", "tolerance"), [(16, torch.float32, 1e-5), (12, torch.bfloat16, 0.03)])
@pytest.mark.parametrize("t", [None, torch.tensor([0.3, 0.6])])
def test_what_the_coarsest_level_reads_is_the_same(
    channels: int, dtype: torch.dtype, tolerance: float, t: Tensor | None
) -> None:
    left, right = torch.randn(2, 2, 5, 9, channels).to(dtype).permute(0, 1, 4, 2, 3)
    flow = 3 * torch.randn(2, 4, 5, 9)
    assert_alike(both(lambda: (network._coarsest_inputs(left, right, flow, t, dtype),)), tolerance)
    one, other = left.contiguous(), right.contiguous()  # planes
    assert_alike(both(lambda: (network._coarsest_inputs(one, other, flow, t, dtype),)), tolerance)


@pytest.mark.parametrize(("channels", "side"), [(32, 4), (20, 2), (8, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_logits_are_the_same(channels: int, side: int, dtype: torch.dtype, tolerance: float) -> None:
    parent = (torch.rand(2, 1, 5, 6) > 0.5).float()
    gate = Conv(channels, 1).to(dtype).requires_grad_(False)
    feature = torch.randn(2, 5 * side, 6 * side, channels + 4).to(dtype).permute(0, 3, 1, 2)
    logits: Any = masks.block_logits
    for some in (feature[:, 4:], feature[:, 4:].contiguous()):
        made = both(partial(lambda some: (logits(some, gate, side, parent),), some))
        assert_alike(made, tolerance)
    assert made[0][0].ne(0).float().equal(parent)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 80), (144, 112)])
@pytest.mark.parametrize("channels", [(8, 16, 24, 8), (20, 9, 32, 40)])
def test_features_are_the_same(
    height: int, width: int, channels: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sizes that tiles and products do not divide, and of any number of channels."""
    monkeypatch.setattr("ugsp_net.sparse.winograd.pays", lambda dtype, device: True)
    net, frames = small_net(replace(SMALL, encoder_channels=channels)), torch.rand(2, 3, height, width)
    for conv in net.encoder.modules():
        if isinstance(conv, Conv):
            torch.nn.init.normal_(conv.bias)  # type: ignore[arg-type]
    assert_alike(both(lambda: net.encode(frames).features), 1e-4)


@pytest.mark.parametrize("radius", [0, 2])
@pytest.mark.parametrize(("height", "width"), [(20, 28), (22, 12)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.06)])
def test_level_inputs_are_the_same(radius: int, height: int, width: int, dtype: torch.dtype, tolerance: float) -> None:
    """Of maps that are parts of larger ones, with flow that leads far out of them."""

    def channels_last(channels: int, height: int, width: int) -> Tensor:
        return torch.randn(2, height + 2, width + 3, channels + 4).to(dtype).permute(0, 3, 1, 2)[:, 4:, 1:-1, 2:-1]

    left, right, above = (
        channels_last(16, height, width),
        channels_last(16, height, width),
        channels_last(24, height // 2, width // 2),
    )
    flow, t = 4 * torch.randn(2, 4, height, width), torch.tensor([0.3, 0.6])
    reduce = Convolutions(Conv(25, 8, kernel=1), Activation("leaky", 8)).to(dtype)
    how = Matching(2, reduce, 8) if radius else None
    inputs = SparseInputs(left, right, above, flow, 4.0, t, how, dtype)
    for share in (0.02, 0.5, 1.0):
        positions = (torch.rand(2 * height * width) < share).nonzero()[:, 0]
        assert inputs._compiled()
        made = both(partial(lambda positions: (inputs.rows(positions).float(),), positions))
        assert_alike(made, tolerance)
    with torch.inference_mode():
        read, copied = replace(inputs, flow=torch.zeros_like(flow)).whole(), torch.cat((left, right), dim=1)
    assert torch.equal(read[:, :32], copied)  # what lies on a position is rounded by nobody


@pytest.mark.parametrize("kind", ["one", "ragged", "border", "all"])
@pytest.mark.parametrize(("side", "tile"), [(1, 1), (2, 1), (4, 4), (8, 4)])
def test_positions_are_the_same(kind: str, side: int, tile: int) -> None:
    mask = random_masks(kind, 3, 5, 7)
    for multiple in (1, 16):
        made = both(lambda: tiles.place(mask, 5 * side, 7 * side, tile, multiple))  # noqa: B023
        assert_alike(made)
        needed, active, source, around, numbers = made[1]
        assert len(source) == len(around) == len(active) // tile**2
        assert 0 <= len(source) - int(mask.sum()) * side**2 // tile**2 < multiple
        assert numbers.max() == len(active)
        assert source.max() <= len(needed)


@pytest.mark.parametrize("kind", ["none", "one", "ragged", "border", "all"])
@pytest.mark.parametrize("side", [1, 2])
def test_tiles_hold_several_blocks(kind: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where any of them is active; of sizes that tiles do not divide."""
    monkeypatch.setattr(winograd, "pays", lambda dtype, device: True)
    level, mask = make_level(16), random_masks(kind, 3, 5, 7)
    x = torch.randn(3, level.head.in_channels, 5 * side, 7 * side).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = run_level(level, x, mask, "reference")
        assert tiles.ActivePositions(mask, 5 * side, 7 * side, x.dtype).tile == winograd.TILE
        made = tiles.run_tiles(level, DenseInputs(x), mask, 5 * side, 7 * side)
    assert (made - expected).abs().max() <= 2e-5 * expected.abs().max()
    pruned = (mask == 0).repeat_interleave(side, 2).repeat_interleave(side, 3).expand_as(made)
    assert torch.equal(made[pruned], level.bias().expand_as(made)[pruned])


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("share", [0.03, 0.4, 1.0])
def test_layers_two_at_a_time_are_the_same(depth: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many more tiles than are made at once, in rows of many and of few; of two pictures."""
    monkeypatch.setattr(winograd, "pays", lambda dtype, device: True)
    level = Level(SMALL, 13, 24, depth, 20, pruned=True)
    torch.nn.init.normal_(level.project.bias)  # type: ignore[arg-type]
    mask = (torch.rand(2, 1, 20, 44) < share).float()
    mask[0, :, 3:9], mask[1, :, :, 9:30] = 0, 0
    positions = tiles.ActivePositions(mask, 80, 176, torch.float32)
    inputs = DenseInputs(torch.randn(2, 13, 80, 176))
    for activation in (None, Activation("leaky", 20)):
        made = both(partial(lambda activation: (tiles._run_layers(level, inputs, positions, activation),), activation))
        assert_alike(made, 1e-4)
        assert made[1][0].shape == (len(positions.active) + 2, 20)


def last_output(kind: str) -> LastOutput:
    """Of two pictures of 64 x 80 pixels."""
    if kind == "dense":
        return DenseOutput(torch.randn(2, 8, 64, 80))
    net = small_net()
    net.synthesis.enlarge.weight.data.mul_(20)
    level = net._level(0)
    torch.nn.init.normal_(level.project.bias)  # type: ignore[arg-type]
    mask = torch.zeros(2, 1, 4, 5)
    if kind == "sparse":
        mask[0, 0, 1:3, 1:3], mask[0, 0, 3, 4], mask[1, 0, 0] = 1, 1, 1
    with torch.inference_mode():
        inputs = DenseInputs(torch.randn(2, level.head.in_channels, 32, 40))
        return run_last_tiles(level, net.synthesis, inputs, mask, 32, 40)


@pytest.mark.parametrize("kind", ["dense", "constant", "sparse"])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("found", [False, True])
def test_rendering_is_the_same(kind: str, everywhere: bool, found: bool) -> None:
    """With flow that leads far out of the picture, in a picture and in a part of a larger one."""
    frame0, frame1 = torch.rand(2, 2, 3, 96, 96)[..., 8:72, 8:88]
    flow, pace, t = 6 * torch.randn(2, 4, 32, 40), torch.rand(2, 4, 1, 1), torch.tensor([0.3, 0.6])
    prior, still = torch.randn(2, 1, 32, 40), (torch.rand(2, 1, 32, 40) > 0.8).float()
    moving = torch.zeros(2, 1, 4, 5)
    moving[0, 0, 1:3, 1:3], moving[0, 0, 3, 3:], moving[1, 0, 0], moving[1, 0, 2, ::2] = 1, 1, 1, 1
    out = last_output(kind)
    put: Any = rendering.put_rendered
    last: Any = (prior, still) if found else (None, None)

    def render(frame0: Tensor, frame1: Tensor) -> list[Tensor]:
        picture = torch.zeros(2, 3, 96, 96)
        part = picture[..., 16:80, 16:]
        put(part, frame0, frame1, flow, out, t, pace, *last, None if everywhere else moving)
        return [picture]

    across = [frame.to(memory_format=torch.channels_last) for frame in (frame0, frame1)]
    for frames in ((frame0, frame1), (frame0.contiguous(), frame1.contiguous()), across):
        assert_alike(both(partial(render, *frames)), 1e-4)


def test_flow_that_is_no_number_reads_nothing_outside() -> None:
    """It makes pictures of no numbers, as in torch, and nothing worse."""
    frame = torch.rand(1, 3, 64, 80)
    flow = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30]).view(1, 4, 1, 1).repeat(1, 1, 32, 40)
    with torch.inference_mode():
        picture, t = torch.zeros(1, 3, 64, 80), torch.tensor([0.5])
        out, pace = DenseOutput(torch.zeros(1, 8, 64, 80)), torch.ones(1, 4, 1, 1)
        rendering.put_rendered(picture, frame, frame, flow, out, t, pace, None, None, None)
        carried = paths.carry(paths.trace(flow, flow, flow), t)
        found = search.inverse_search(frame * torch.nan, frame)
    assert picture.shape == frame.shape
    assert carried.shape == (1, 6, 64, 80)
    assert found.shape == (1, 4, 16, 20)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
@pytest.mark.parametrize("shifts", [(1, 1), (0, 1), (0, 0)])
@pytest.mark.parametrize("bits", [8, 10])
def test_colours_are_the_same(height: int, width: int, shifts: tuple[int, int], bits: int) -> None:
    top, unit = 2**bits - 1, 2.0 ** (bits - 8)
    sides = [(height, width), *2 * [(-(-height // (1 + shifts[0])), -(-width // (1 + shifts[1])))]]
    planes = [torch.randint(0, top + 1, side, dtype=torch.int32) for side in sides]
    codes: Any = [plane.to(torch.uint8 if bits == 8 else torch.uint16) for plane in planes]
    to_rgb: Any = colour._to_rgb
    to_planes: Any = colour._to_planes
    how = (16 * unit, 219 * unit, 128 * unit, 224 * unit), 0.2126, 0.0722, shifts
    rgb = both(lambda: (to_rgb(*codes, *how),))
    assert_alike(rgb, 1e-6)
    wider = both(lambda: (to_rgb(*codes, *how, (3, 5)),))
    assert_alike(wider, 1e-6)
    assert wider[1][0].shape == (1, 3, height + 3, width + 5)
    assert torch.equal(wider[1][0][..., :height, :width], rgb[1][0])
    to_rgb_and_look: Any = colour._to_rgb_and_look
    more = -height % 16, -width % 16
    in_torch, made = both(lambda: to_rgb_and_look(*codes, *how, more))
    assert_alike((in_torch[:1], made[:1]), 1e-6)
    assert_alike((in_torch[1:], made[1:]), 1e-4)  # of 255
    assert torch.equal(made[0], both(lambda: (to_rgb(*codes, *how, more),))[1][0])
    back = both(lambda: to_planes(rgb[0][0].repeat(2, 1, 1, 1), *how, top))
    for one, other, plane in zip(*back, planes, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.int(), other.int())
        assert torch.equal(one.int(), plane.expand(2, -1, -1))
    beyond = both(lambda: to_planes(4 * rgb[0][0] - 1, *how, top))
    for one, other in zip(*beyond, strict=True):
        assert torch.equal(one.int(), other.int())
        assert one.int().max() == top


@pytest.mark.parametrize("bits", [8, 10])
def test_halves_go_to_the_even_code(bits: int) -> None:
    """However the mean of two frames' planes is computed: compiled code took nearly all of them down."""
    unit, top = 2 ** (bits - 8), 2**bits - 1
    dtype = torch.uint8 if bits == 8 else torch.uint16
    how = (16.0 * unit, 219.0 * unit, 128.0 * unit, 224.0 * unit), 0.2126, 0.0722, (1, 1)
    luma, chroma = torch.arange(20 * unit, 230 * unit).repeat(24, 1), torch.arange(90 * unit, 195 * unit).repeat(12, 1)
    to_rgb: Any = colour._to_rgb
    to_planes: Any = colour._to_planes
    frames: list[Tensor] = []
    for more in (0, 1):
        planes = luma + more, chroma + more, chroma.flip(1) + more
        frames.append(to_rgb(*(plane.to(dtype) for plane in planes), *how))
    for made in both(lambda: to_planes(torch.lerp(frames[0], frames[1], 0.5), *how, top)):
        for plane, low in zip(made, (luma, chroma, chroma.flip(1)), strict=True):
            assert torch.equal(plane[0].long(), low + low % 2)


def test_where_nothing_can_be_written_functions_are_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def refusing(*arguments: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function 'doubled': no locator available")
        return njit(*arguments, **options)

    monkeypatch.setattr(numba, "njit", refusing)

    def doubled(number: int) -> int:
        return 2 * number

    assert vectors.compiled(doubled)(21) == 42


def test_what_learns_is_done_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_arguments: Tensor) -> Tensor:
        raise AssertionError("no gradients come from there")

    monkeypatch.setattr(f"{cpu.__name__}.masks.change", none)
    frame = torch.rand(1, 3, 16, 16, requires_grad=True)
    masks.change(frame, torch.rand(1, 3, 16, 16)).sum().backward()
    assert frame.grad is not None


def test_numba_that_is_told_to_compile_nothing_is_left_alone() -> None:
    code = "from ugsp_net import cpu; print(cpu.available())"
    for value, expected in (("0", "True"), ("1", "False")):
        environment = os.environ | {"NUMBA_DISABLE_JIT": value}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert done.stdout.strip() == expected
