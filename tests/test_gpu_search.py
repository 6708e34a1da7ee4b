"""The search's kernels against torch, of every size by itself: on a card, and interpreted where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import interpreter
from tests.nets import SMALL, small_net, smooth_frames
from tests.test_search import busy, texture
from tests.test_triton import DEVICE, INSTALLED, INTERPRETED, exact, kernels, needs_triton
from ugsp_net import search
from ugsp_net.compiled import only_torch
from ugsp_net.gpu import graphs
from ugsp_net.masks import hard_gate

if INSTALLED:
    from ugsp_net.gpu import search as gpu_search

__all__ = ["exact"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes one program after the other, so they are few."""
    if INTERPRETED:
        monkeypatch.setattr(gpu_search, "PATCHES", 256)
        monkeypatch.setattr(gpu_search, "FEW_PATCHES", 128)
        monkeypatch.setattr(search, "LOST_LEAST", 6)
        monkeypatch.setattr(search, "FAR", 3)
        monkeypatch.setattr(search, "REACH", 1)
        monkeypatch.setattr(search, "DISTANCES", ((2,), (4, 1), (1,)))
        monkeypatch.setattr(search, "COLOUR_STEPS", ((3, 2.0), (1, 0.5)))


def moved(values: Any) -> Any:
    return values.to(DEVICE) if isinstance(values, Tensor) else values


@kernels
@pytest.mark.parametrize(("height", "width"), [(96, 112), (52, 100), (16, 136)])
def test_searches_find_the_same_at_every_size(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where two places fit equally well: sums are taken in another order."""
    of_size, sizes = search._search, 0

    def compare(first: Tensor, second: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        nonlocal sizes
        sizes += 1
        in_torch = of_size(first, second, *arguments)
        made = gpu_search.search_size(*map(moved, (first, *arguments)))
        for one, other in zip(in_torch, made, strict=True):
            assert one.shape == other.shape
            assert other.isfinite().all()
            # Of the few patches of a small picture one is more: it covers 16 points, of two numbers each.
            assert ((one - other.to(one.device)).abs() > 0.01).float().mean() < max(0.02, 40 / one.numel())
            assert (one - other.to(one.device)).abs().median() < 1e-3
        return in_torch

    monkeypatch.setattr(search, "_search", compare)
    with only_torch(), torch.inference_mode():
        assert search.inverse_search(*busy(height, width)).abs().max() > 1
    assert sizes == ({16: 1, 52: 3, 96: 4}[height])


@kernels
def test_every_step_for_colours_is_the_same() -> None:
    pictures = 255 * torch.stack([texture(44, 60, seed)[0] for seed in (0, 1)])
    grid, chosen = (11, 15), torch.tensor([[3, 77, 164], [0, 14, 90]])
    torch.manual_seed(0)  # of other flows one in forty has a patch that finds nothing better
    flow = 3 * torch.randn(2, 11 * 15, 2)
    near = flow.gather(1, chosen[..., None].expand(-1, -1, 2))
    given = pictures, pictures.flip(0), grid
    with torch.inference_mode(), only_torch():
        seen, found = search._lost_colours(*given, flow), search._look_for_colours(*given, chosen, near)
    numbers = torch.cat((chosen, torch.full((2, 1), -1)), dim=1).int()
    with torch.inference_mode():
        frames = gpu_search.Padded(moved(pictures), search.COLOUR_SAMPLED)
        seen_there = gpu_search.lost_colours(frames, moved(flow))
        found_there = gpu_search.look_for_colours(frames, moved(numbers), moved(flow))
    assert 0.5 < (seen > 0).float().mean() < 0.95
    # A last digit may decide whether a patch looks.
    differs = (seen_there.to(seen.device) - seen).abs() > 1e-3 * seen + 1e-3
    assert differs.float().mean() <= 0.01
    flow_there, *costs_there = (one[:, :-1].to(near.device) for one in found_there)
    for one, other in zip(found[1:], costs_there, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)
    # Two flows may cost the same.
    assert (found[0] - flow_there).abs().median() < 1e-4
    assert (found[2] < 0.9 * found[1]).all()


@kernels
@pytest.mark.parametrize(("count", "most"), [(700, 37), (300, 300), (40, 90), (1, 1)])
def test_the_largest_are_chosen(count: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several steps, too; where there are fewer, and where the last of them are equal."""
    monkeypatch.setattr(gpu_search, "CHOICES", 256)
    torch.manual_seed(0)
    rows = [torch.randn(count).exp(), torch.randn(count), torch.rand(count).mul(20).round(), torch.zeros(count)]
    rows.append(torch.where(torch.rand(count) < 0.05, torch.inf, -torch.inf))
    values = torch.stack(rows)
    for above in (0.0, 1.5):
        made = gpu_search.largest(moved(values), most, above).cpu()
        assert made.shape == (len(rows), most)
        for row, numbers in zip(values, made, strict=True):
            chosen = numbers[numbers >= 0].long()
            assert len(set(chosen.tolist())) == len(chosen)
            expected = row[row > above].sort(descending=True).values[:most]
            assert torch.equal(row[chosen].sort(descending=True).values, expected)


@kernels
@pytest.mark.parametrize(("height", "width"), [(44, 60), (41, 58)])
def test_what_colours_mend_is_the_same(height: int, width: int) -> None:
    """Where sides are not whole cells, too."""
    pictures = 255 * torch.stack([texture(44, 60, seed)[0] for seed in (0, 1)])[..., :height, :width].contiguous()
    torch.manual_seed(0)
    flow, found = 3 * torch.randn(2, 2, height, width), 3 * torch.randn(2, 4, 2)
    chosen = torch.tensor([[3, 77, 164, 30], [0, 14, 90, 149]])
    better = torch.tensor([[True, True, True, False], [True] * 4])
    with torch.inference_mode(), only_torch():
        cells = search._of_cells(flow)
        mended = search._where_better(pictures, pictures.flip(0), flow, chosen, found, better)
    numbers = chosen.int()
    numbers[0, 3] = -1
    least = torch.rand(2, 4)
    cost = least / search.SEEN * torch.where(better, 1.1, 0.9)
    given = pictures, flow, numbers, found, cost, least
    with torch.inference_mode():
        cells_there, mended_there = gpu_search.of_cells(moved(flow)), gpu_search.where_better(*map(moved, given))
    torch.testing.assert_close(cells_there.to(cells.device), cells, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mended_there.to(mended.device), mended)
    assert 20 < (mended != flow).any(1).sum() < 100


@kernels
def test_flow_that_is_no_number_reads_nothing_outside() -> None:
    pictures = 255 * moved(torch.cat([texture(40, 56, seed)[:, :1] for seed in (0, 1)]))
    begun = torch.full((2, 2, 10, 14), float("nan"), device=DEVICE)
    begun[0, :, :5], begun[1, :, :5] = float("inf"), 1e30
    with torch.inference_mode():
        averaged, best = gpu_search.search_size(pictures, begun, begun[..., ::2, ::2].contiguous(), 1)
    assert averaged.shape == (2, 2, 20, 28)
    assert best.shape == (2, 2, 10, 14)


@kernels
def test_nothing_is_read_behind_the_pictures() -> None:
    """By patches in the last rows that move out of the picture, where rows are left out: interpreted there is no memory
    there (``full_of_nan``)."""
    pictures = 255 * moved(torch.cat([texture(34, 50, seed)[:, :1] for seed in (0, 1)]))
    for level in (0, 1):
        for far in (-90.0, 90.0):
            begun = torch.full((2, 2, 9, 13), far, device=DEVICE)
            with torch.inference_mode():
                _, best = gpu_search.search_size(pictures, begun, begun[..., ::2, ::2].contiguous(), level)
            assert best.isfinite().all()


@needs_triton
@pytest.mark.gpu
def test_replays_follow_what_they_are_given() -> None:
    """A graph is captured after some calls, and then serves inference and training."""
    pairs = [tuple(map(moved, busy(96, 112 + 16 * (index == 3)))) for index in range(4)]
    pairs[1] = pairs[1][::-1]
    graphs.forget()
    with torch.no_grad():
        expected = []
        for pair in pairs:
            expected.append(search.inverse_search(*pair))
            graphs.forget()
        made = []
        for turn in range(graphs.USES + 3):
            with torch.inference_mode() if turn else torch.no_grad():
                made.append([search.inverse_search(*pair) for pair in pairs])
    for turns in made:
        for one, other in zip(turns, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    assert len(graphs._known) == 2
    assert all(known.graphs for known in graphs._known.values())


@needs_triton
@pytest.mark.gpu
def test_levels_in_a_graph_are_the_same() -> None:
    """Dense and pruned, with frames that change from call to call."""
    config = replace(SMALL, matching_radius=(0, 1, 2, 0), matching_channels=(0, 4, 4, 0))
    plain, net = small_net(config).to(DEVICE), small_net(config).to(DEVICE)
    net.frozen = True
    t = torch.tensor([0.3, 0.6], device=DEVICE)
    with torch.inference_mode():
        for chosen in (None, hard_gate(-0.1)):
            for seed in range(graphs.USES + 3):
                frames = smooth_frames(4, 96, 128, seed).to(DEVICE)
                ways = net.encode(frames[:2]).chunk(2), [net.encode(frames[2:])]  # each by itself, and both as one
                found = net.find(frames[:2], frames[2:], t)
                expected, made = (
                    one.make(frames[:2], frames[2:], *ways, found, t, chosen, "triton", motion=False)
                    for one in (plain, net)
                )
                torch.testing.assert_close(made.frame, expected.frame, rtol=1e-4, atol=1e-4)
                for one, other in zip(made.masks, expected.masks, strict=True):
                    assert torch.equal(one, other)
    levels = [known for (key, *_), known in graphs._known.items() if key[0] is net]
    assert len(levels) == 2
    assert all(known.graphs for known in levels)
    net.frozen = False
    assert not graphs._known, "graphs that read what is no longer kept"


def test_interpreted() -> None:
    """The tests above on the CPU."""
    interpreter.wait(__file__)
