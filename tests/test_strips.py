"""Levels and the encoder by a processor's matrix unit, and by its vectors: what convolutions in torch make of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.nets import SMALL, small_net, smooth_frames
from tests.test_sparse import random_masks
from ugsp_net import cpu, precision
from ugsp_net.blocks import Activation, Level
from ugsp_net.config import NetConfig
from ugsp_net.masks import enlarge, fixed_gate
from ugsp_net.network import MEAN, SCALE
from ugsp_net.precision import has_fast_bf16
from ugsp_net.sparse import run_level, strips, tiles
from ugsp_net.sparse.inputs import DenseInputs, SparseInputs

compiled = pytest.mark.skipif(not cpu.available(), reason="Numba does not know this Python yet")

if cpu.available():
    from ugsp_net.cpu import encoder_bf16, products


@pytest.fixture(params=["matrix unit", "vectors"])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either, where there are both."""
    if not has_fast_bf16():
        pytest.skip("this processor does not know the instructions that multiply bf16, and would stop at them")
    if request.param == "vectors":
        for module in (products, encoder_bf16):
            monkeypatch.setattr(module, "unit", lambda: None)
    elif products.unit() is None:
        pytest.skip("this processor has no matrix unit, or the system does not let it be used")


@pytest.fixture(autouse=True)
def full_of_nan() -> None:
    """Memory that is used once more holds what is no number."""
    for size in (1 << 12, 1 << 16, 1 << 20, 1 << 22):
        several = [np.full(size, 0x7FC0, np.int16) for _ in range(4)]
        del several


def rounded(values: Tensor) -> Tensor:
    return values.bfloat16().float()


def by_convolutions(level: Level, x: Tensor, mask: Tensor, activation: Activation | None) -> Tensor:
    """In fp32, of what is rounded to bf16 where strips round it: [B, outputs, H, W]."""
    side = x.shape[2] // mask.shape[2]
    there, summed = enlarge(mask, side), level.bias()
    x = rounded(x)
    for layer, (conv, activate) in enumerate(level.layers):
        x = rounded(activate(F.conv2d(x, rounded(conv.weight), padding=1)) * there)
        summed = summed + F.conv2d(x, rounded(level.projection(layer, torch.float32)))
    return summed if activation is None else activation(summed)


@pytest.mark.usefixtures("units")
@compiled
@torch.inference_mode()
@pytest.mark.parametrize("kind", ["one", "ragged", "border", "all"])
@pytest.mark.parametrize("side", [1, 2, 4, 8])
@pytest.mark.parametrize(("width", "depth", "outputs"), [(12, 0, 7), (48, 3, 48), (64, 2, 20), (100, 1, 33)])
def test_strips_are_convolutions(kind: str, side: int, width: int, depth: int, outputs: int) -> None:
    """Of sizes that neither strips nor cells divide; of two kinds of activations."""
    torch.manual_seed(0)
    inputs = 10 + width
    mask = random_masks(kind, 2, 5, 7 if side > 2 else 19)
    height, columns = (side * length for length in mask.shape[2:])
    x = torch.randn(2, inputs, height, columns)
    for activation in (None, Activation("leaky", outputs), Activation("prelu", outputs)):
        config = replace(SMALL, activation="prelu" if activation and activation.slope is not None else "leaky")
        level = Level(config, inputs, width, depth, outputs, pruned=True)
        torch.nn.init.normal_(level.project.bias)  # type: ignore[arg-type]
        for name, parameter in level.named_parameters():
            if name.startswith("activations"):
                parameter.copy_(torch.linspace(-0.5, 1.5, len(parameter)))
        made = strips.run(level, DenseInputs(x.bfloat16()), mask, height, columns, activation)
        made = made.view(2, height, columns, -1).permute(0, 3, 1, 2).float()
        assert made.shape[1] % products.PAIRS == 0
        expected = by_convolutions(level, x, mask, activation)
        there = enlarge(mask, side).expand_as(expected) > 0
        assert (made[:, :outputs] - expected)[there].abs().max() <= 0.02 * expected.abs().max()
        assert not made[:, outputs:][there[:, :1].expand_as(made[:, outputs:])].any()
        if activation is None:
            outside = level.bias().bfloat16().float().expand_as(expected)
            assert torch.equal(made[:, :outputs][~there], outside[~there])


@pytest.mark.usefixtures("units")
@compiled
@torch.inference_mode()
def test_wide_levels_are_the_same_in_every_cell() -> None:
    """Rings of lines go round many times, and cells begin wherever something is active."""
    torch.manual_seed(0)
    level = Level(SMALL, 20, 32, 4, 16, pruned=True)
    x = torch.randn(1, 20, 96, 200)
    for share in (0.02, 0.3, 0.8):
        mask = (torch.rand(1, 1, 24, 50) < share).float()
        mask[..., 10:13, :] = 0
        expected = by_convolutions(level, x, mask, None)
        made = tiles.run_tiles(level, DenseInputs(x.bfloat16()), mask, 96, 200).float()
        assert (made - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.usefixtures("units")
@compiled
@torch.inference_mode()
def test_what_is_no_number_elsewhere_does_not_matter() -> None:
    """Positions are multiplied in cells: what lies in those that are not active must not reach the others."""
    torch.manual_seed(0)
    level = Level(SMALL, 20, 32, 3, 16, pruned=True)
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., 2:4, 3:5] = 1
    x = torch.randn(1, 20, 32, 48)
    expected = tiles.run_tiles(level, DenseInputs(x.bfloat16()), mask, 32, 48)
    near = F.max_pool2d(enlarge(mask, 4), 3, 1, 1) > 0
    x = torch.where(near, x, torch.nan)
    assert torch.equal(tiles.run_tiles(level, DenseInputs(x.bfloat16()), mask, 32, 48), expected)


@compiled
@torch.inference_mode()
@pytest.mark.parametrize("channels", [8, 12])  # compiled code reads maps by eight
@pytest.mark.parametrize("timed", [False, True])
def test_lines_hold_what_is_read(channels: int, timed: bool) -> None:
    torch.manual_seed(0)

    def channels_last(count: int, height: int, width: int) -> Tensor:
        return torch.randn(2, height, width, count).bfloat16().permute(0, 3, 1, 2)

    maps = channels_last(channels, 24, 40), channels_last(channels, 24, 40), channels_last(8, 12, 20)
    t = torch.tensor([0.2, 0.7]) if timed else None
    inputs = SparseInputs(*maps, 3 * torch.randn(2, 4, 24, 40), 4.0, t, None, torch.bfloat16)
    mask = random_masks("ragged", 2, 6, 10)
    for picture in range(2):
        lines = inputs.lines(mask[picture, 0], picture)
        read = F.max_pool2d(enlarge(mask, 4), 3, 1, 1)[picture].flatten().nonzero()[:, 0]
        rows = inputs.rows(read + picture * 24 * 40)[:-1]
        found = lines[1:25, 1:41].flatten(0, 1)[read]
        assert rows.shape[1] == inputs.channels
        assert torch.equal(found[:, : inputs.channels], rows)
        assert not found[:, inputs.channels :].any()
        assert not torch.cat((lines[0, :42], lines[25, :42], lines[:26, 0], lines[:26, 41])).any()


@pytest.mark.usefixtures("units")
@compiled
@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 80), (208, 336)])
@pytest.mark.parametrize("channels", [(16, 32, 32, 32), (32, 16, 48, 64)])
def test_the_encoder_is_convolutions(height: int, width: int, channels: tuple[int, int, int, int]) -> None:
    net = small_net(replace(SMALL, encoder_channels=channels))
    frames = smooth_frames(2, height, width)
    made = encoder_bf16.encode(net.encoder, frames, SCALE, -MEAN * SCALE)
    x = SCALE * (frames - MEAN)
    for level, feature in zip(net.encoder.levels, made, strict=True):
        x = level(x)
        assert feature.shape == x.shape
        assert feature.dtype == torch.bfloat16
        assert (feature.float() - x).abs().max() <= 0.02 * x.abs().max()


@pytest.mark.usefixtures("units")
@compiled
@torch.inference_mode()
@pytest.mark.parametrize("motion", [True, False])
@pytest.mark.parametrize("config", [NetConfig(), replace(SMALL, matching_radius=(0, 2, 0, 0), widths=(16, 24, 16, 16))])
def test_frames_are_the_references(motion: bool, config: NetConfig) -> None:
    """Whole ones, dense and pruned, in both ways in which what the last level puts out is read."""
    net = small_net(config)
    frames = smooth_frames(3, 96, 160)
    t = torch.tensor([0.3])
    exact = frames[:1], frames[1:2], t, frames[2:], None
    masks = [random_masks("ragged", 1, 96 // side, 160 // side) for side in (16, 16, 16)]
    for gate in (None, fixed_gate(masks)):
        found = net.find(*exact)

        def make(backend: str, gate: Any = gate, found: Any = found) -> Tensor:
            if gate is not None:
                gate = fixed_gate(masks)
            first, second = (net.encode(frame) for frame in frames[:2].split(1))
            return net.make(frames[:1], frames[1:2], [first], [second], found, t, gate, backend, None, motion).frame

        expected = make("reference")
        net.bfloat16()
        try:
            made = make("tiles")
        finally:
            net.float()
        assert (made - expected).abs().max() < 0.02


def test_the_matrix_unit_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find = precision.has_matrix_unit.__wrapped__
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    known = find()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert not find()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert find() == known


@pytest.mark.usefixtures("units")
@compiled
def test_backends_know_when_strips_are_made() -> None:
    level = Level(SMALL, 10, 16, 2, 7, pruned=True).requires_grad_(False)
    mask = random_masks("ragged", 1, 4, 6)
    x = torch.randn(1, 10, 16, 24).bfloat16()
    with torch.inference_mode():
        assert tiles.pays(torch.ones(1, 1, 4, 6), 16, torch.bfloat16)
        made = run_level(level, x, mask, "tiles")
    assert made.dtype == torch.bfloat16
    assert not strips.pays(torch.bfloat16, torch.device("cpu"))  # gradients are recorded
    assert not strips.pays(torch.float32, torch.device("cpu"))
