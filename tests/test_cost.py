"""MACs: the paper's figures, and a count of the convolutions that really ran."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.nets import SMALL, small_net, smooth_frames
from ugsp_net.config import CONTEXT_CHANNELS, NetConfig
from ugsp_net.cost import network_cost
from ugsp_net.network import UGSP
from ugsp_net.search import search_macs


# The paper counts the transposed convolution at its output's positions with all 16 taps, four times what it does: an
# output position meets 4 of them. Everything else is counted alike.
def as_in_the_paper(width: int, height: int, variant: str = "plain") -> int:
    config = NetConfig.paper(variant)
    cost = network_cost(config, width, height)
    total = cost.triplet + 3 * 16 * config.widths[0] * 8 * (width // 2) * (height // 2)
    if config.refine:
        for level, channels in enumerate(CONTEXT_CHANNELS):
            total += 3 * 16 * 4 * channels * channels * (width >> level + 1) * (height >> level + 1)
    return total


@pytest.mark.parametrize(("width", "height", "gmacs"), [(448, 256, 31.76), (256, 256, 18.15), (640, 480, 85.07)])
def test_the_papers_configuration_costs_what_the_paper_says(width: int, height: int, gmacs: float) -> None:
    assert as_in_the_paper(width, height) / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_the_papers_share_that_is_never_pruned() -> None:
    total = as_in_the_paper(448, 256)
    assert (total - sum(network_cost(NetConfig.paper(), 448, 256).prunable)) / total == pytest.approx(0.123, abs=0.003)


def test_the_refinement_costs_what_the_papers_second_table_says() -> None:
    """Table 2, GMACs at 448x256: 19.73 refined, 15.60 plain, both pruned; the refinement itself never is."""
    plain, refine = (as_in_the_paper(448, 256, variant) for variant in ("plain", "refine"))
    assert (refine - plain) / 1e9 == pytest.approx(19.73 - 15.60, rel=0.02)
    cost = network_cost(NetConfig.paper("refine"), 448, 256)
    assert cost.performed((0, 0, 0)) - network_cost(NetConfig.paper(), 448, 256).performed((0, 0, 0)) == cost.refine


def counted(net: UGSP, *arguments: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        net(*arguments)
    flops = counter.get_flop_counts()["Global"]
    return int(sum(count for op, count in flops.items() if "convolution" in str(op))) // 2


@pytest.mark.parametrize(
    "config",
    [SMALL, NetConfig.paper(), dataclasses.replace(SMALL, refine=True), NetConfig.paper("refine")],
    ids=["small", "paper", "small-refine", "paper-refine"],
)
def test_formula_equals_the_convolutions_that_ran(config: NetConfig) -> None:
    frames = smooth_frames(2, 64, 96)
    net = small_net(config)
    cost = network_cost(config, 96, 64)
    beside = search_macs(96, 64) if config.search else 0
    for level, radius in enumerate(config.matching_radius):
        stride = 2 ** (level + 1)
        positions = (96 // stride) * (64 // stride) * (radius > 0)
        beside += (2 * radius + 1) ** 2 * config.encoder_channels[level] * positions
    assert cost.triplet == counted(net, frames[:1], frames[1:], torch.tensor([0.5])) + beside


def test_performed_follows_the_masks() -> None:
    cost = network_cost(NetConfig(), 448, 256)
    assert cost.performed((1, 1, 1)) == cost.dense
    assert cost.performed((0, 0, 0)) == cost.dense - sum(cost.prunable)
    half = cost.performed((1, 1, 0.5))
    assert cost.dense - half == round(cost.prunable[2] / 2)
    assert half - cost.performed((1, 1, 0.5), (1, 0.25, 1)) == cost.beside[1] - round(cost.beside[1] / 4)


def test_size_must_be_aligned() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        network_cost(NetConfig(), 450, 256)


def test_every_parameter_of_a_convolution_is_counted() -> None:
    """One more convolution in a level raises the cost by its own MACs."""
    base = network_cost(NetConfig(widths=(48, 64, 96, 32), depths=(4, 5, 5, 1)), 64, 64)
    more = network_cost(NetConfig(widths=(48, 64, 96, 32), depths=(4, 5, 6, 1)), 64, 64)
    extra = nn.Conv2d(96, 96, 3).weight.numel() + 96 * (4 + 32)
    assert more.triplet - base.triplet == extra * 64
