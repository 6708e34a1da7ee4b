"""Tiles against the reference: the same numbers, whatever the mask."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.nets import SMALL, small_net, smooth_frames
from ugsp_net import cpu
from ugsp_net.blocks import Activation, Conv, Level
from ugsp_net.compiled import only_torch
from ugsp_net.gpu import graphs
from ugsp_net.masks import fixed_gate, hard_gate
from ugsp_net.sparse import performed_share, run_level, strips, tiles, winograd
from ugsp_net.sparse.inputs import DenseInputs


@pytest.fixture(params=["one by one", "winograd", "strips"])
def always_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles at every density, so that the dense way does not stand in for them, made in each way on every machine that
    can."""
    monkeypatch.setattr(tiles, "PAYS_BELOW", 9.0)
    wanted, of_strips = request.param, strips.pays
    monkeypatch.setattr(winograd, "pays", lambda dtype, device: wanted == "winograd" and dtype == torch.float32)
    monkeypatch.setattr(strips, "pays", lambda *how: wanted == "strips" and of_strips(*how))


def convolved(weight: Tensor, tiles: Tensor, activation: Activation) -> Tensor:
    """By ``Winograd``: [K, C, 3, 3] and what each tile reads [N, C, 6, 6] -> [N, K, 4, 4]."""
    count, inputs = tiles.shape[:2]
    rows, around = tiles.permute(0, 2, 3, 1).reshape(-1, inputs), torch.arange(36 * count, dtype=torch.int32)
    out = torch.full((16 * count, len(weight)), torch.nan)
    winograd.Winograd(weight)(rows, around.view(count, 36), activation, out)
    return out.view(count, 4, 4, -1).permute(0, 3, 1, 2)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["leaky", "prelu"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(5, 7), (8, 8), (16, 21), (19, 32)])
def test_winograd_is_a_convolution(outputs: int, inputs: int, compiled: bool, kind: str) -> None:
    """Of any number of channels, of which compiled code takes eight at a time, and of more tiles than it takes."""
    torch.manual_seed(0)
    activation = Activation(kind, outputs)
    weight, read = torch.randn(outputs, inputs, 3, 3), torch.randn(23, inputs, 6, 6)
    with nullcontext() if compiled else only_torch():
        expected = activation(F.conv2d(read, weight))
        torch.testing.assert_close(convolved(weight, read, activation), expected, atol=2e-4, rtol=1e-4)
        # Small whole numbers come out exactly but for the kernel's twenty-fourths.
        weight, read = torch.randint(-3, 4, weight.shape).float(), torch.randint(-9, 10, read.shape).float()
        expected = activation(F.conv2d(read, weight))
        torch.testing.assert_close(convolved(weight, read, activation), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize(("instructions", "pays"), [("DEFAULT", False), ("AVX2", True), ("AVX512", True)])
def test_winograd_is_for_fp32_on_processors_alone(
    instructions: str, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    assert winograd.pays(torch.float32, torch.device("cpu")) == pays
    assert not winograd.pays(torch.bfloat16, torch.device("cpu"))
    assert not winograd.pays(torch.float32, torch.device("cuda"))


def make_level(width: int = 12, depth: int = 3) -> Level:
    torch.manual_seed(1)
    level = Level(SMALL, 10, width, depth, 7, pruned=True).requires_grad_(False)
    assert level.project.bias is not None
    level.project.bias.normal_()
    return level


def random_masks(kind: str, batch: int, rows: int, columns: int) -> Tensor:
    mask = torch.zeros(batch, 1, rows, columns)
    if kind == "all":
        mask += 1
    elif kind == "one":
        mask[0, 0, rows // 2, columns // 2] = 1
    elif kind == "ragged":  # another number of blocks in each picture, none in the last
        for index in range(batch - 1):
            share = (index + 1) / batch
            mask[index] = (torch.rand(1, rows, columns) < share).float()
    elif kind == "border":
        mask[:, :, 0], mask[:, :, -1], mask[..., 0], mask[..., -1] = 1, 1, 1, 1
    return mask


def shares(mask: Tensor, level: int, height: int, width: int, backend: str = "tiles") -> Tensor:
    return performed_share(mask, level, height, width, backend, torch.float32)


@pytest.mark.parametrize("kind", ["none", "one", "ragged", "border", "all"])
@pytest.mark.parametrize("side", [1, 2, 8])
@pytest.mark.parametrize(("rows", "columns", "batch"), [(3, 5, 3), (1, 1, 2), (4, 4, 1)])
@pytest.mark.usefixtures("always_tiles")
def test_tiles_equal_reference(kind: str, side: int, rows: int, columns: int, batch: int) -> None:
    torch.manual_seed(0)
    level = make_level()
    x = torch.randn(batch, 10, rows * side, columns * side).to(memory_format=torch.channels_last)
    mask = random_masks(kind, batch, rows, columns)
    expected = run_level(level, x, mask, "reference")  # as in training
    torch.testing.assert_close(run_level(level, x, mask, "tiles"), expected, atol=1e-5, rtol=1e-4)
    with torch.inference_mode():
        for backend in ("reference", "tiles"):
            torch.testing.assert_close(run_level(level, x, mask, backend), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("always_tiles")
def test_outside_the_mask_only_the_bias_remains() -> None:
    level = make_level()
    x = torch.randn(1, 10, 16, 16)
    mask = torch.zeros(1, 1, 2, 2)
    mask[..., 0, 0] = 1
    assert level.project.bias is not None
    for backend in ("reference", "tiles"):
        out = run_level(level, x, mask, backend)
        outside = out[:, :, 8:, :]
        assert torch.equal(outside, level.project.bias.view(1, -1, 1, 1).expand_as(outside))
        assert not torch.equal(out[:, :, :8, :8], level.project.bias.view(1, -1, 1, 1).expand(1, 7, 8, 8))


def test_performed_share_counts_active_positions() -> None:
    mask = torch.zeros(2, 1, 5, 7)
    mask[0, 0, 0, 0] = mask[0, 0, 0, 1] = mask[0, 0, 4, 6] = 1
    for level, side in ((0, 8), (2, 2)):
        assert shares(mask, level, 5 * side, 7 * side)[:, 0].tolist() == pytest.approx([3 / 35, 0])
    assert shares(mask, 0, 40, 56, "reference").tolist() == [[1, 1], [1, 1]]


def test_performed_share_counts_what_is_around() -> None:
    mask = torch.zeros(2, 1, 5, 7)
    mask[0, 0, 0, 0] = 1
    # The enlargement reaches one position further, as a 3x3 kernel where each pixel has four taps; a correlation is
    # made in squares of 4x4 positions that the convolution reads.
    assert shares(mask, 0, 40, 56)[:, 1].tolist() == pytest.approx([9 / 4 * 81 / 2240, 0])
    assert shares(mask, 1, 20, 28)[:, 1].tolist() == pytest.approx([64 / 560, 0])
    mask[0, 0, 0, 1] = 1  # positions 4 to 7, with what is beside them to position 8
    assert shares(mask, 1, 20, 28)[:, 1].tolist() == pytest.approx([96 / 560, 0])


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_what_is_around_is_counted_by_blocks(side: int) -> None:
    mask = torch.cat([random_masks(kind, 3, 5, 6) for kind in ("none", "one", "ragged", "border", "all")])
    height, width = 5 * side, 6 * side
    reached = F.max_pool2d(mask.repeat_interleave(side, 2).repeat_interleave(side, 3), 3, 1, 1).flatten(1).mean(1)
    torch.testing.assert_close(tiles.reached_share(mask, height, width), reached)
    with torch.inference_mode():  # by compiled code
        torch.testing.assert_close(tiles.reached_share(mask, height, width), reached)


@pytest.mark.skipif(not cpu.available(), reason="Numba does not know this Python yet")
def test_compiled_code_is_counted_as_it_is() -> None:
    mask = random_masks("ragged", 3, 5, 7)
    with torch.inference_mode():
        everywhere = performed_share(torch.ones_like(mask), 0, 40, 56, "tiles", torch.float32)
        assert everywhere.tolist() == [[1, 1]] * 3
        share, enlarged = shares(mask, 0, 40, 56).unbind(1)
        assert torch.equal(share, enlarged)
        torch.testing.assert_close(shares(mask, 1, 20, 28)[:, 1], tiles.reached_share(mask, 20, 28))
        # Flow and blend are read from all of what is enlarged, by torch.
        whole = performed_share(mask, 0, 40, 56, "tiles", torch.float32, motion=True)[:, 1]
        assert (whole[:2] > enlarged[:2]).all()


@pytest.mark.parametrize("by_winograd", [False, True])
def test_a_dense_mask_is_computed_whole_and_counted_so(by_winograd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    level, x = make_level(), torch.randn(1, 10, 40, 32)
    mask = torch.ones(1, 1, 5, 4)
    mask[..., 0, :2] = 0  # 0.9 active: above what pays
    monkeypatch.setattr(winograd, "pays", lambda dtype, device: by_winograd)
    if by_winograd and cpu.available():
        assert shares(mask, 0, 40, 32)[0, 0] == pytest.approx(0.9)  # that pays at any density
        return
    assert shares(mask, 0, 40, 32).tolist() == [[1, 1]]
    expected = run_level(level, x, mask, "reference")
    assert torch.equal(run_level(level, x, mask, "tiles"), expected)
    mask[..., :2] = 0
    assert shares(mask, 0, 40, 32)[:, 0].tolist() == [0.5]


def test_no_mask_is_dense_for_every_backend() -> None:
    level, x = make_level(), torch.randn(1, 10, 16, 16)
    assert torch.equal(run_level(level, x, None, "tiles"), run_level(level, x, None, "reference"))


def test_unknown_backend_and_misfitting_mask() -> None:
    level, x = make_level(), torch.randn(1, 10, 16, 16)
    with pytest.raises(ValueError, match="backend must be one of"):
        run_level(level, x, torch.ones(1, 1, 2, 2), "magic")
    with pytest.raises(ValueError, match="does not cover"):
        run_level(level, x, torch.ones(1, 1, 3, 2), "tiles")


@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("activation", ["leaky", "prelu"])
@pytest.mark.usefixtures("always_tiles")
def test_whole_network_tiles_equal_reference(block: int, activation: str) -> None:
    config = dataclasses.replace(SMALL, block=block, activation=activation)
    net, frames = small_net(config), smooth_frames(4, 96, 160)
    t = torch.tensor([0.5, 0.3])
    first, second = net.encode(frames[:2]), net.encode(frames[2:])
    coarse = net.coarse(first, second, net.find(frames[:2], frames[2:], t), t)
    grid = (96 // block, 160 // block)
    masks = [(torch.rand(2, 1, *grid) < share).float() for share in (0.8, 0.6, 0.6)]
    expected = net.interpolate(frames[:2], frames[2:], first, second, coarse, t, fixed_gate(masks))
    with torch.inference_mode():
        for backend in ("reference", "tiles"):
            gate = fixed_gate(masks)
            result = net.interpolate(frames[:2], frames[2:], first, second, coarse, t, gate, backend)
            torch.testing.assert_close(result.frame, expected.frame, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(result.flow, expected.flow, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["nothing", "one", "corners", "some", "all"])
@pytest.mark.parametrize("pruned", [0, 1, 2])
@pytest.mark.parametrize(("block", "height", "width"), [(2, 48, 80), (16, 80, 48), (16, 16, 16), (32, 96, 64)])
@pytest.mark.usefixtures("always_tiles")
def test_levels_in_tiles_from_end_to_end_equal_reference(
    kind: str, pruned: int, block: int, height: int, width: int
) -> None:
    """From a level's inputs on, matching included: warping, convolutions, enlargement, and the picture's border."""
    net, frames = small_net(dataclasses.replace(SMALL, block=block)), smooth_frames(6, height, width)
    t = torch.tensor([0.5, 0.2, 0.9])
    grids = [(height // net.config.grid_stride(level), width // net.config.grid_stride(level)) for level in (2, 1, 0)]
    masks = [torch.ones(3, 1, *grid) for grid in grids]
    chosen = masks[pruned] if kind == "all" else torch.zeros(3, 1, *grids[pruned])
    if kind == "one":
        chosen[1, 0, -1, 0] = 1
    elif kind == "corners":
        chosen[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] = 1
    elif kind == "some":
        chosen = (torch.rand(3, 1, *grids[pruned]) < 0.4).float()
    masks[pruned] = chosen
    with torch.inference_mode():
        first, second = net.encode(frames[:3]), net.encode(frames[3:])
        coarse = net.coarse(first, second, net.find(frames[:3], frames[3:], t), t)
        whole, tiles = (
            net.interpolate(frames[:3], frames[3:], first, second, coarse, t, fixed_gate(masks), backend)
            for backend in ("reference", "tiles")
        )
    assert tiles.hidden is None
    torch.testing.assert_close(tiles.frame, whole.frame, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tiles.flow, whole.flow, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tiles.blend, whole.blend, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["nothing", "some"])
def test_a_part_of_the_last_level_is_as_in_the_whole(kind: str) -> None:
    net = small_net()
    net.synthesis.enlarge.weight.data.mul_(5)
    level = net._level(0)
    torch.nn.init.normal_(level.project.bias)  # type: ignore[arg-type]
    mask = (torch.rand(2, 1, 5, 3) < 0.3 * (kind == "some")).float()
    x = torch.randn(2, level.head.in_channels, 40, 24)
    with torch.inference_mode():
        expected = net.synthesis(run_level(level, x, mask, "reference"))
        out = tiles.run_last_tiles(level, net.synthesis, DenseInputs(x), mask, 40, 24)
        for rows, columns in (
            (slice(0, 80), slice(0, 48)),
            (slice(16, 48), slice(0, 20)),
            (slice(50, 80), slice(8, 48)),
        ):
            torch.testing.assert_close(out.part(rows, columns), expected[:, :, rows, columns], atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("always_tiles")
def test_bf16_tiles_agree_within_bf16() -> None:
    torch.manual_seed(0)
    level = make_level().to(torch.bfloat16)
    x = torch.randn(1, 10, 32, 32).to(torch.bfloat16)
    mask = (torch.rand(1, 1, 4, 4) < 0.5).float()
    expected = run_level(level.float(), x.float(), mask, "reference")
    level.to(torch.bfloat16)
    with torch.inference_mode():
        for backend in ("reference", "tiles"):
            difference = (run_level(level, x, mask, backend).float() - expected).abs().max()
            assert difference <= 0.02 * expected.abs().max()


@pytest.mark.usefixtures("always_tiles")
def test_a_bf16_network_in_tiles_is_as_near_as_the_reference() -> None:
    """Inputs and matching included: tiles are no farther from fp32 than twice what bf16 is by itself."""
    frames, t = smooth_frames(2, 96, 160), torch.tensor([0.4])
    masks = [(torch.rand(1, 1, 6, 10) < share).float() for share in (0.8, 0.7, 0.7)]

    def made(dtype: torch.dtype, backend: str) -> torch.Tensor:
        net = small_net().to(dtype)
        with torch.inference_mode():
            first, second = net.encode(frames[:1]), net.encode(frames[1:])
            coarse = net.coarse(first, second, net.find(frames[:1], frames[1:], t), t)
            gate = fixed_gate(masks)
            return net.interpolate(frames[:1], frames[1:], first, second, coarse, t, gate, backend).frame

    exact = made(torch.float32, "reference")
    reference, tiles = ((made(torch.bfloat16, backend) - exact).abs() for backend in ("reference", "tiles"))
    assert 0 < tiles.mean() < 2 * reference.mean()
    assert tiles.max() < 2 * reference.max()


@pytest.mark.usefixtures("always_tiles")
def test_hard_gate_masks_serve_both_backends() -> None:
    net, frames, t = small_net(), smooth_frames(2, 64, 64), torch.tensor([0.5])
    first, second = net.encode(frames[:1]), net.encode(frames[1:])
    coarse = net.coarse(first, second, net.find(frames[:1], frames[1:], t), t)
    made = [
        net.interpolate(frames[:1], frames[1:], first, second, coarse, t, hard_gate(), backend)
        for backend in ("reference", "tiles")
    ]
    for one, other in zip(made[0].masks, made[1].masks, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(made[0].frame, made[1].frame, atol=1e-5, rtol=1e-4)


def test_what_is_made_of_weights_is_kept_until_they_change() -> None:
    conv, made = Conv(8, 8), []

    def double(weight: Tensor) -> Tensor:
        made.append(weight)
        return 2 * weight.detach()

    assert conv.kept(double) is conv.kept(double)
    assert len(made) == 1
    with torch.no_grad():
        conv.weight.add_(1)
    assert torch.equal(conv.kept(double), 2 * conv.weight)
    conv.weight.data = torch.ones(8, 8, 3, 3)
    assert torch.equal(conv.kept(double), 2 * conv.weight)
    assert "_kept" not in str(conv.state_dict().keys())


def test_what_is_made_of_frozen_weights_is_kept_until_they_are_no_more() -> None:
    net = small_net()
    gate = net.gates[0]
    assert isinstance(gate, Conv)

    def double(weight: Tensor) -> Tensor:
        return 2 * weight.detach()

    before = gate.kept(double)
    with torch.no_grad():
        gate.weight.add_(1)
    net.frozen = True
    assert net.dtype == torch.float32
    made = gate.kept(double)
    assert torch.equal(made, 2 * gate.weight)
    assert not torch.equal(made, before)
    assert gate.kept(double) is made
    graphs._known["a graph that reads it"] = graphs._Known()
    net.frozen = False
    assert not net.frozen
    assert gate.kept(double) is not made
    assert not graphs._known


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_changes_no_weight(dtype: torch.dtype) -> None:
    """A level of a single position took its bias for the sum that it adds to, and all later frames suffered."""
    net = small_net().to(dtype)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    frames = smooth_frames(2, 16, 16)
    with torch.inference_mode():
        for gate in (None, hard_gate()):
            net(frames[:1], frames[1:], torch.tensor([0.5]), gate)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
