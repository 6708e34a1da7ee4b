"""The search's kernels against torch, of every size by itself: on a card, and interpreted where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import interpreter
from tests.nets import small_net, smooth_frames
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
        monkeypatch.setattr(gpu_search, "AT_ONCE", 4096)
        monkeypatch.setattr(gpu_search, "PATCHES", 256)
        monkeypatch.setattr(search, "LOST_LEAST", 6)
        monkeypatch.setattr(search, "FAR", 3)
        monkeypatch.setattr(search, "COLOUR_STEPS", ((3, 2.0), (1, 0.5)))


def moved(values: Any) -> Any:
    return values.to(DEVICE) if isinstance(values, Tensor) else values


@kernels
@pytest.mark.parametrize(("height", "width"), [(96, 112), (52, 100), (16, 136)])
def test_searches_find_the_same_at_every_size(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where two places fit equally well: sums are taken in another order."""
    of_size, sizes = search._search, 0

    def compare(*arguments: Any) -> tuple[Tensor, Tensor]:
        nonlocal sizes
        sizes += 1
        in_torch = of_size(*arguments)
        made = gpu_search.search_size(*map(moved, arguments))
        for one, other in zip(in_torch, made, strict=True):
            assert one.shape == other.shape
            assert other.isfinite().all()
            assert ((one - other.to(one.device)).abs() > 0.01).float().mean() < 0.02
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
        seen, found = search._miscoloured(*given, flow), search._look_for_colours(*given, chosen, near)
    with torch.inference_mode():
        given = tuple(map(moved, given))
        seen_there = gpu_search.miscoloured(*given, moved(flow))
        found_there = gpu_search.look_for_colours(*given, moved(chosen), moved(near))
    for one, other in (*zip(seen, seen_there, strict=True), *zip(found[1:], found_there[1:], strict=True)):
        torch.testing.assert_close(other.to(one.device), one, rtol=1e-3, atol=1e-3)
    # Two flows may cost the same.
    assert (found[0] - found_there[0].to(near.device)).abs().median() < 1e-4
    assert (found[2] < 0.9 * found[1]).all()


@kernels
@pytest.mark.parametrize(("height", "width"), [(44, 60), (41, 58)])
def test_what_colours_mend_is_the_same(height: int, width: int) -> None:
    """Where sides are not whole cells, too."""
    pictures = 255 * torch.stack([texture(44, 60, seed)[0] for seed in (0, 1)])[..., :height, :width].contiguous()
    torch.manual_seed(0)
    flow, found = 3 * torch.randn(2, 2, height, width), 3 * torch.randn(2, 4, 2)
    chosen = torch.tensor([[3, 77, 164, 30], [0, 14, 90, 149]])
    better = torch.tensor([[True, True, True, False], [True] * 4])
    given = pictures, pictures.flip(0), flow, chosen, found, better
    with torch.inference_mode(), only_torch():
        cells, mended = search._of_cells(flow), search._where_better(*given)
    with torch.inference_mode():
        cells_there, mended_there = gpu_search.of_cells(moved(flow)), gpu_search.where_better(*map(moved, given))
    torch.testing.assert_close(cells_there.to(cells.device), cells, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mended_there.to(mended.device), mended)
    assert 20 < (mended != flow).any(1).sum() < 100


@kernels
def test_flow_that_is_no_number_reads_nothing_outside() -> None:
    first, second = (255 * moved(texture(40, 56, seed)[:, :1].repeat(2, 1, 1, 1)) for seed in (0, 1))
    begun = torch.full((2, 2, 10, 14), float("nan"), device=DEVICE)
    begun[0, :, :5], begun[1, :, :5] = float("inf"), 1e30
    with torch.inference_mode():
        averaged, best = gpu_search.search_size(first, second, begun, begun[..., ::2, ::2].contiguous(), 1)
    assert averaged.shape == (2, 2, 20, 28)
    assert best.shape == (2, 2, 10, 14)


@kernels
def test_nothing_is_read_behind_the_pictures() -> None:
    """By patches in the last rows that move out of the picture, where rows are left out: interpreted there is no memory
    there (``full_of_nan``)."""
    first, second = (255 * texture(34, 50, seed)[:, :1].contiguous() for seed in (0, 1))
    for level in (0, 1):
        for far in (-90.0, 90.0):
            begun = torch.full((1, 2, 9, 13), far, device=DEVICE)
            with torch.inference_mode():
                _, best = gpu_search.search_size(
                    moved(first), moved(second), begun, begun[..., ::2, ::2].contiguous(), level
                )
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
    net = small_net().to(DEVICE)
    t = torch.tensor([0.3, 0.6], device=DEVICE)
    gate = hard_gate(-0.1)
    with torch.inference_mode():
        for chosen in (None, gate):
            for seed in range(graphs.USES + 3):
                frames = smooth_frames(4, 96, 128, seed).to(DEVICE)
                first, second = net.encode(frames[:2]), net.encode(frames[2:])
                given = frames[:2], frames[2:], first, second, net.find(frames[:2], frames[2:], t), t, chosen, "triton"
                net.frozen = False
                expected = net.make(*given, motion=False)
                net.frozen = True
                made = net.make(*given, motion=False)
                torch.testing.assert_close(made.frame, expected.frame, rtol=1e-4, atol=1e-4)
                for one, other in zip(made.masks, expected.masks, strict=True):
                    assert torch.equal(one, other)
    assert sum(len(known.graphs) for known in graphs._known.values()) >= 2
    graphs.forget()


def test_interpreted() -> None:
    """The tests above on the CPU."""
    interpreter.wait(__file__)
