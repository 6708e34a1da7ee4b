"""Levels in Triton's kernels from their inputs on, against torch: on a CUDA device, and interpreted where triton is
installed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests import interpreter
from tests.nets import SMALL, small_net
from tests.test_sparse import random_masks
from tests.test_triton import DEVICE, INTERPRETED, full_of_nan, kernels, needs_triton
from ugsp_net import gpu
from ugsp_net import network as network_module
from ugsp_net.blocks import Level, Synthesis
from ugsp_net.compiled import only_torch
from ugsp_net.config import NetConfig
from ugsp_net.masks import block_side, enlarge
from ugsp_net.network import UGSP, Encoding
from ugsp_net.pooling import largest_around
from ugsp_net.sparse import run_level, triton_level
from ugsp_net.sparse.triton_level import Choice, padded, run_last_triton, run_rows_triton

PLAIN = dataclasses.replace(
    SMALL, matching_radius=(0, 0, 0, 0), matching_channels=(0, 0, 0, 0), search=False, any_instant=False
)
"""Without anything that the paper's network has not, in which flow has no bound."""
KINDS = ("none", "one", "ragged", "all")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tf32, buffers that are full of NaN, and tiles so small that a program takes several."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(gpu, "empty", full_of_nan)
    if INTERPRETED:
        monkeypatch.setattr(triton_level, "choose", lambda *_: Choice(64, 16, 128, 4, 3, waves=2))


@dataclass
class Scene:
    """What a level's input is made of, on the device, with all that is random in place."""

    net: UGSP
    index: int
    """Of the level."""
    left: Tensor
    right: Tensor
    above: Tensor
    flow: Tensor
    t: Tensor

    def rows(self, mask: Tensor) -> Tensor:
        """[B, H, W, padded channels], by kernels."""
        from ugsp_net.gpu import inputs

        height, width = self.flow.shape[-2:]
        sparse = self.net._sparse_inputs(self.index, *self.encodings(), self.above, self.flow, self.t)
        made = inputs.rows(sparse, mask, block_side(mask, height, width))
        return made.view(mask.shape[0], height, width, -1)

    def truth(self) -> Tensor:
        """[B, H, W, channels], by torch."""
        with only_torch():
            parts = self.net._inputs(self.index, *self.encodings(), self.above, self.flow)
            return self.net._join(parts, self.flow, self.t).permute(0, 2, 3, 1)

    def encodings(self) -> tuple[Encoding, Encoding]:
        return Encoding((self.left,) * 4), Encoding((self.right,) * 4)


def network(config: NetConfig, dtype: torch.dtype = torch.float32) -> UGSP:
    """Any weights, and slopes of either sign."""
    net = small_net(config)
    for activation in net.modules():
        slope = getattr(activation, "slope", None)
        if isinstance(slope, Tensor):
            slope.uniform_(-0.5, 0.5)
    return net.to(DEVICE, dtype)


def scene(net: UGSP, index: int, batch: int, height: int, width: int) -> Scene:
    """Maps as the network has them: the second frame's and the level above's are parts of others."""
    torch.manual_seed(index)
    channels = net.config.encoder_channels[index]
    above = torch.randn(batch, height // 2, width // 2, 4 + channels).to(DEVICE, net.dtype).permute(0, 3, 1, 2)
    both = torch.randn(2 * batch, height, width, channels).to(DEVICE, net.dtype).permute(0, 3, 1, 2)
    flow = 4 * torch.randn(batch, 6, height, width).to(DEVICE)
    t = torch.linspace(0.2, 0.7, batch).to(DEVICE)
    return Scene(net, index, both[:batch], both[batch:], above[:, 4:], flow[:, :4], t)


def check_rows(made: Scene, mask: Tensor, tolerance: float = 2e-5) -> None:
    """The same wherever an active block or its halo is, then zeros."""
    mask = mask.to(DEVICE)
    with torch.inference_mode():
        rows, truth = made.rows(mask), made.truth()
    height, width = truth.shape[1:3]
    needed = largest_around(enlarge(mask, block_side(mask, height, width)), 3)[:, 0] != 0
    channels = truth.shape[-1]
    assert rows.dtype == made.net.dtype
    assert rows.shape[-1] == padded(channels)
    assert (rows[..., channels:][needed] == 0).all()
    read, expected = rows[..., :channels][needed].float(), truth[needed].float()
    torch.testing.assert_close(read, expected, atol=tolerance, rtol=tolerance, equal_nan=False)
    if not made.net.config.matching_radius[made.index]:
        assert rows[~needed].isnan().all()  # nothing is done in vain


@kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("index", "side"), [(0, 2), (0, 4), (1, 4)])
def test_rows_are_what_the_network_joins(kind: str, index: int, side: int) -> None:
    torch.manual_seed(side)
    check_rows(scene(network(SMALL), index, 2, 12, 20), random_masks(kind, 2, 12 // side, 20 // side))


@kernels
@pytest.mark.parametrize(("kind", "side", "batch"), [("one", 1, 1), ("one", 2, 2), ("ragged", 2, 3), ("all", 4, 1)])
def test_rows_that_are_matched_farther_away(kind: str, side: int, batch: int) -> None:
    torch.manual_seed(side)
    check_rows(scene(network(SMALL), 2, batch, 8, 12), random_masks(kind, batch, 8 // side, 12 // side))


@kernels
@pytest.mark.parametrize("index", [0, 1, 2])
def test_rows_without_search_and_instants(index: int) -> None:
    check_rows(scene(network(PLAIN), index, 2, 8, 20), random_masks("border", 2, 4, 10))


@kernels
def test_matching_with_slopes_and_large_blocks() -> None:
    """Blocks larger than a program's positions, one of them alone at the border."""
    mask = torch.zeros(2, 1, 1, 2)
    mask[1, 0, 0, 1] = 1
    check_rows(scene(network(dataclasses.replace(SMALL, activation="prelu")), 1, 2, 18, 36), mask)


@kernels
def test_rows_of_the_shipped_matching() -> None:
    check_rows(scene(network(NetConfig()), 1, 1, 8, 12), random_masks("one", 1, 2, 3))


@kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
@pytest.mark.parametrize("index", [0, 1])
def test_rows_in_half_precision(dtype: torch.dtype, tolerance: float, index: int) -> None:
    check_rows(scene(network(SMALL, dtype), index, 2, 8, 12), random_masks("one", 2, 4, 6), tolerance)


@kernels
@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["bounded", "boundless"])
def test_flow_that_points_far_away(config: NetConfig) -> None:
    """Nothing outside is read, and what is no number is read somewhere."""
    made = scene(network(config), 0, 2, 8, 12)
    made.flow[:, :, 0] = 1e4
    made.flow[:, :, 1] = -1e4
    made.flow[:, :, 2] = 1e30
    made.flow[:, :, 3] = -1e30
    made.flow[:, :, 4] = torch.rand(12).to(DEVICE) * 20 - 10
    mask = torch.ones(2, 1, 4, 6)
    check_rows(made, mask)
    made.flow[:, :, 5], made.flow[:, :, 6], made.flow[:, :, 7] = float("inf"), -float("inf"), float("nan")
    channels = made.left.shape[1]
    for one in (made.left, made.right):
        one.clamp_(-1, 1)
    with torch.inference_mode():
        rows = made.rows(mask.to(DEVICE))
    assert (rows[..., : 2 * channels].abs() <= 1 + 1e-5).all()


@kernels
@pytest.mark.parametrize("any_instant", [True, False])
@pytest.mark.parametrize(("height", "width"), [(5, 9), (1, 1)])
def test_what_the_coarsest_level_reads(any_instant: bool, height: int, width: int) -> None:
    """At a pitch, and zeros up to it; of parts of larger maps."""
    from ugsp_net.gpu.inputs import coarsest

    unmatched = dataclasses.replace(SMALL, matching_radius=(0, 0, 0, 0), matching_channels=(0, 0, 0, 0))
    net = small_net(dataclasses.replace(unmatched, any_instant=any_instant)).to(DEVICE)
    channels = net.config.encoder_channels[3]
    left, right = torch.randn(2, 2, height + 1, width + 2, channels, device=DEVICE).permute(0, 1, 4, 2, 3)[..., 1:, 2:]
    flow, t = 2 * torch.randn(2, 4, height, width, device=DEVICE), torch.tensor([0.3, 0.6], device=DEVICE)
    first, second = (Encoding((left,) * 3 + (one,)) for one in (left, right))
    with torch.inference_mode():
        expected = net._join(net._inputs(3, first, second, None, flow), None, t)
        made = coarsest(left, right, flow, t if any_instant else None, torch.float32)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    assert made.stride(3) == padded(made.shape[1])
    behind = made.as_strided(
        (*made.shape[:1], height, width, made.stride(3)), (*made.stride()[:1], *made.stride()[2:], 1)
    )
    assert not behind[..., made.shape[1] :].any()


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_read_where_they_lie(dtype: torch.dtype) -> None:
    """Frames by themselves and together, parts of larger maps, and such that have to be copied, by addresses alone."""
    from ugsp_net.gpu import inputs
    from ugsp_net.gpu.inputs import coarsest

    made = scene(network(NetConfig(), dtype), 1, 3, 8, 12)
    mask = random_masks("ragged", 3, 4, 6).to(DEVICE)
    room = torch.full((3, 10, 16, made.left.shape[1]), torch.nan, device=DEVICE, dtype=dtype).permute(0, 3, 1, 2)
    parts = room[:, :, 2:, 4:]
    parts.copy_(made.left)
    with torch.inference_mode():
        expected, flow = made.rows(mask), made.flow.contiguous()
        coarse = coarsest(made.left, made.right, flow, made.t, dtype)
        for left in (made.left, parts, made.left.contiguous()):
            ways = [Encoding((one,) * 4) for one in left.split(1)], [Encoding((made.right,) * 4)]
            layouts, addresses, kept = network_module._lying(*ways, torch.device(DEVICE))
            assert addresses.shape == (2, 4, 3)
            features = tuple(layout.meta(3) for layout in layouts)
            first, second = (Encoding(features, places=tuple(side.unbind())) for side in addresses.unbind())
            sparse = made.net._sparse_inputs(1, first, second, made.above, made.flow, made.t)
            told = inputs.rows(sparse, mask, 2).view_as(expected)
            assert torch.equal(told.nan_to_num(7.0), expected.nan_to_num(7.0))
            there = coarsest(features[3], features[3], flow, made.t, dtype, (first.places[3], second.places[3]))
            assert torch.equal(there, coarse)
            assert kept


@kernels
@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 4), (4, 2)])
def test_the_smallest_maps(height: int, width: int) -> None:
    """The level above has one row or column."""
    for index in (0, 1):
        check_rows(scene(network(SMALL), index, 2, height, width), torch.ones(2, 1, height // 2, width // 2))


@kernels
def test_maps_in_any_layout() -> None:
    made = scene(network(SMALL), 0, 2, 8, 12)
    made.left = made.left.contiguous()
    made.right = made.right.mT.contiguous().mT
    made.above = made.above.clone()
    made.flow = made.flow.mT.contiguous().mT
    check_rows(made, random_masks("one", 2, 4, 6))


@kernels
def test_another_reduction_is_refused() -> None:
    net = network(SMALL)
    net.reducers[1] = torch.nn.Identity()
    with pytest.raises(TypeError, match="reduce a correlation"):
        scene(net, 1, 1, 4, 4).rows(torch.ones(1, 1, 2, 2, device=DEVICE))


def last_level(
    width: int = 12, activation: str = "leaky", dtype: torch.dtype = torch.float32
) -> tuple[Level, Synthesis]:
    net = network(dataclasses.replace(SMALL, widths=(width, 12, 12, 16), activation=activation))
    level = net._level(0)
    assert level.project.bias is not None
    level.project.bias.normal_()
    net.synthesis.enlarge.weight.mul_(10)
    return level.to(dtype), net.synthesis.to(dtype)


def level_rows(level: Level, mask: Tensor, side: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A level's input [B, inputs, H, W], and as kernels read it, NaN wherever they must not."""
    torch.manual_seed(0)
    batch, _, rows, columns = mask.shape
    x = torch.randn(batch, level.head.in_channels, rows * side, columns * side).to(DEVICE, dtype)
    return x, triton_level._rows(x, level.head.in_channels, mask, side)


def check_last(
    level: Level, synthesis: Synthesis, mask: Tensor, side: int, dtype: torch.dtype, tolerance: float
) -> None:
    mask = mask.to(DEVICE)
    with torch.inference_mode():
        x, rows = level_rows(level, mask, side, dtype)
        height, width = x.shape[-2:]
        hidden = run_rows_triton(level, rows, mask, height, width)
        out = run_last_triton(level, synthesis, rows, mask, height, width)
        level, synthesis = level.float(), synthesis.float()
        with only_torch():
            expected_hidden = run_level(level, x.float(), mask, "reference")
            expected = synthesis(expected_hidden.clone())
    assert hidden.dtype == out.squares.dtype == dtype
    assert (hidden.float() - expected_hidden).abs().max() <= tolerance * expected_hidden.abs().max()
    assert out.reached is not None
    assert torch.equal(out.reached, largest_around(mask, 3))
    made = out.whole()
    assert made.shape == expected.shape
    assert made.dtype == torch.float32
    assert (made - expected).abs().max() <= tolerance * expected.abs().max()


@kernels
@pytest.mark.parametrize(
    ("kind", "side", "rows", "columns", "batch"),
    [
        ("ragged", 1, 4, 6, 3),
        ("border", 1, 4, 5, 1),
        ("none", 2, 3, 4, 2),
        ("one", 2, 5, 4, 2),
        ("all", 2, 3, 4, 2),
        ("ragged", 4, 2, 3, 3),
        ("border", 4, 2, 3, 1),
    ],
)
def test_levels_from_rows(kind: str, side: int, rows: int, columns: int, batch: int) -> None:
    torch.manual_seed(side)
    level, synthesis = last_level(activation="prelu" if kind in ("ragged", "border") else "leaky")
    check_last(level, synthesis, random_masks(kind, batch, rows, columns), side, torch.float32, 1e-5)


@kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_the_last_level_in_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    level, synthesis = last_level(8, "prelu", dtype)
    check_last(level, synthesis, random_masks("ragged", 3, 2, 4), 2, dtype, tolerance)


@kernels
def test_what_the_last_level_packs_is_kept_until_it_changes() -> None:
    level, synthesis = last_level()
    mask = random_masks("one", 1, 2, 2)

    def kept() -> list[object]:
        how = torch.float32, torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device("cpu")
        packed = triton_level._packed(level, *how), triton_level._packed_last(level, synthesis, *how)
        return [*packed, triton_level._bands(level, synthesis, 2, how[1])]

    check_last(level, synthesis, mask, 1, torch.float32, 1e-5)
    first = kept()
    check_last(level, synthesis, random_masks("one", 1, 2, 4), 1, torch.float32, 1e-5)  # and what is of that width
    assert all(one is other for one, other in zip(kept(), first, strict=True))
    synthesis.enlarge.weight *= 2
    check_last(level, synthesis, mask, 1, torch.float32, 1e-5)
    second = kept()
    assert [one is other for one, other in zip(second, first, strict=True)] == [True, False, False]
    assert level.project.bias is not None
    level.project.bias += 1
    check_last(level, synthesis, random_masks("one", 1, 2, 3), 1, torch.float32, 1e-5)


@needs_triton
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shipped_shapes(dtype: torch.dtype) -> None:
    """With the tiles that are used in earnest."""
    loose = 1e-4 if dtype == torch.float32 else 0.03
    for kind in KINDS:
        for index, side in ((2, 2), (1, 4), (0, 8)):
            check_rows(
                scene(network(NetConfig(), dtype), index, 3, 32 * side, 40 * side),
                random_masks(kind, 3, 32, 40),
                5e-4 if dtype == torch.float32 else loose,  # torch's grids are relative to the map's size
            )
        net = network(NetConfig(), dtype)
        check_last(net._level(0), net.synthesis, random_masks(kind, 3, 17, 23), 8, dtype, loose)


@needs_triton
@pytest.mark.gpu
def test_the_host_never_waits() -> None:
    mask = random_masks("ragged", 3, 6, 8).to(DEVICE)
    net = network(NetConfig(), torch.bfloat16)
    matched, last = scene(net, 1, 3, 24, 32), scene(net, 0, 3, 48, 64)

    def run() -> None:
        run_rows_triton(net._level(1), matched.rows(mask).flatten(0, 2), mask, 24, 32)
        run_last_triton(net._level(0), net.synthesis, last.rows(mask).flatten(0, 2), mask, 48, 64)

    with torch.inference_mode():
        run()  # compiles and packs
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_interpreted() -> None:
    """The tests above on the CPU, one kernel program after the other, in plain numpy."""
    interpreter.wait(__file__)
