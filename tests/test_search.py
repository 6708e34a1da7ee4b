"""The search for the first flow: plain motion is found to a fraction of a pixel, and what stands still stays still."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net import search
from ugsp_net.compiled import only_torch
from ugsp_net.masks import bounds
from ugsp_net.search import POINT, inverse_search, search_macs


@pytest.fixture(params=["torch", "compiled"], autouse=True)
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """The search in torch, and by what is compiled for processors."""
    with only_torch() if request.param == "torch" else nullcontext():
        yield


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """[1, 3, height, width] in [0, 1]: noise of every scale, as photographs have it."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.zeros(1, 3, height, width)
    for scale in (4, 8, 16, 32, 64):
        noise = torch.rand(1, 3, height // scale + 2, width // scale + 2, generator=generator)
        out += scale**0.5 * F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)
    return (out - out.min()) / (out.max() - out.min())


def shifted(x: float, y: float, height: int = 192, width: int = 256) -> tuple[Tensor, Tensor]:
    """Two frames between which everything moves by so many pixels, which may be halves."""
    room = 64
    large = texture(2 * (height + 2 * room), 2 * (width + 2 * room))

    def cut(dx: float, dy: float) -> Tensor:
        top, left = round(2 * (room - dy)), round(2 * (room - dx))
        return F.avg_pool2d(large[..., top : top + 2 * height, left : left + 2 * width], 2)

    return cut(0, 0), cut(x, y)


def busy(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two pairs of frames. In the first some moves, some moves far and is small, and some differs in colour alone; the
    second is a pan."""
    x = torch.arange(width).expand(height, width)
    pair = []
    for left in (width // 3, width // 3 + 24):
        frame = texture(height, width)
        inside = (x - left).abs() < 12
        inside[: height // 2] = False
        frame[..., inside] = 1 - frame[..., inside]
        tinted = (x - left + 30).abs() < 14
        tinted[height // 4 :] = False
        frame[:, 0, tinted] += 0.3
        frame[:, 2, tinted] -= 0.3 * search._LUMA[0] / search._LUMA[2]
        pair.append(frame)
    pan = shifted(7, -3.5, height, width)
    return torch.cat((pair[0], pan[0])), torch.cat((pair[1], pan[1]))


@pytest.mark.parametrize(("x", "y"), [(1.5, -0.5), (6, 3.5), (-21, 9), (44, -30.5)])
def test_a_shift_is_found_both_ways(x: float, y: float) -> None:
    flow = POINT * inverse_search(*shifted(x, y))
    assert flow.shape == (1, 4, 48, 64)
    assert flow.dtype == torch.float32
    moved = torch.tensor([x, y, -x, -y], dtype=torch.float32)
    inner = flow[0, :, 16:-16, 16:-16].flatten(1)
    torch.testing.assert_close(inner.median(1).values, moved, atol=0.25, rtol=0)
    distance = (inner - moved[:, None]).abs()
    assert (distance < 1).float().mean() > 0.95


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 272), (144, 80)])
def test_nothing_moves_in_equal_frames_of_any_size(height: int, width: int) -> None:
    frame = texture(height, width)
    flow = inverse_search(frame, frame)
    assert flow.shape == (1, 4, height // POINT, width // POINT)
    assert flow.abs().max() < 1e-5


def test_flat_frames_and_a_change_of_brightness_are_no_motion() -> None:
    flat = torch.full((1, 3, 64, 96), 0.4)
    assert inverse_search(flat, flat + 0.3).abs().max() == 0
    frame = texture(96, 128)
    assert (POINT * inverse_search(0.8 * frame, 0.8 * frame + 0.1)).abs().mean() < 0.1


def test_patches_that_fit_look_no_further() -> None:
    """Half of the picture moves: the other half keeps its flow of zero, and no time is spent on it."""
    frame0, moved = shifted(9, -6)
    frame1 = frame0.clone()
    frame1[..., 128:] = moved[..., 128:]
    flow = POINT * inverse_search(frame0, frame1)
    assert flow[0, :, :, :20].abs().mean() < 0.5
    there = flow[0, :2, 8:-8, 40:-8].flatten(1).median(1).values
    torch.testing.assert_close(there, torch.tensor([9.0, -6.0]), atol=0.25, rtol=0)


def test_pairs_of_a_batch_are_searched_by_themselves_and_in_fp32() -> None:
    still = shifted(0, 0)[0]
    pairs = shifted(6, 3.5), shifted(-3, 1), (still, (still + 0.003 * torch.rand_like(still)))
    frame0, frame1 = (torch.cat(pair) for pair in zip(*pairs, strict=True))
    together = inverse_search(frame0, frame1)
    for index in range(3):
        one = slice(index, index + 1)
        torch.testing.assert_close(together[one], inverse_search(frame0[one], frame1[one]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inverse_search(frame0, frame1), together)


def test_what_one_direction_has_found_serves_the_other() -> None:
    images = torch.cat(shifted(12, 0)).mean(1, keepdim=True)[..., ::2, ::2] * 255
    grid = images.shape[-2] // search.CELL, images.shape[-1] // search.CELL
    patches, slopes = search._cut(images, images.flip(0), grid, list(range(search.PATCH**2)))
    known = torch.tensor([[0.0, 0.0], [-6.0, 0.0]])[:, None].repeat(1, grid[0] * grid[1], 1)
    residual = patches.residual(known)
    state = search._State(patches, slopes, known, residual, search._cost(residual), fits=0.0)
    state.try_back(grid)
    there, back = state.best.view(2, *grid, 2)[:, 2:-2, 4:-4]
    torch.testing.assert_close(there, torch.tensor([6.0, 0.0]).expand_as(there))
    torch.testing.assert_close(back, -there)  # the way that stands still does not fit


@pytest.mark.parametrize("fitting", [0.0, 0.5])
def test_what_differs_by_the_best_flow_is_known(fitting: float) -> None:
    """Whatever was tried, and where only some of the patches look."""
    images = torch.cat((texture(96, 128), texture(96, 128, seed=1))).mean(1, keepdim=True) * 255
    grid = images.shape[-2] // search.CELL, images.shape[-1] // search.CELL
    patches, slopes = search._cut(images, images.flip(0), grid, search._one_in(2))
    begun = torch.zeros(2, grid[0] * grid[1], 2)
    residual = patches.residual(begun)
    cost = search._cost(residual)
    state = search._State(patches, slopes, begun, residual, cost, float(cost.quantile(fitting)) if fitting else 0.0)
    first = float(state._cost.clamp(min=0).sum())
    for distance in (2, 1):
        state.look_far()
        state.try_around(grid, distance)
        state.step()
    state.try_back(grid)
    torch.testing.assert_close(state._residual, state._patches.residual(state._flow), rtol=0, atol=1e-2)
    looking = torch.isfinite(state._cost)
    torch.testing.assert_close(state._cost[looking], search._cost(state._residual)[looking], rtol=1e-3, atol=1.0)
    assert float(state._cost.clamp(min=0).sum()) < 0.9 * first
    assert state._flow.shape[1] < begun.shape[1] if fitting else state._flow.shape == begun.shape


def test_what_is_small_and_fast_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disc that is gone at the sizes at which its motion is short, before a background that stands still."""
    ground, thing = texture(192, 320), texture(192, 320, seed=1)
    y, x = torch.meshgrid(torch.arange(192.0), torch.arange(320.0), indexing="ij")

    def frame(left: float) -> Tensor:
        inside = (x - left) ** 2 + (y - 96) ** 2 < 15**2
        return torch.where(inside, 1 - thing.roll(round(left), -1), ground)

    def found() -> Tensor:
        flow = POINT * inverse_search(frame(140), frame(165))
        return flow[0, 0, 96 // POINT - 2 : 96 // POINT + 2, 140 // POINT - 2 : 140 // POINT + 2]

    assert (found() - 25).abs().median() < 1
    monkeypatch.setattr(search, "LOST", torch.inf)
    assert (found() - 25).abs().mean() > 5


def test_what_differs_in_colour_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disc as bright as the flat ground before which it moves."""
    y, x = torch.meshgrid(torch.arange(192.0), torch.arange(320.0), indexing="ij")
    red, green, _ = search._LUMA
    colour = torch.tensor([0.2, -0.2 * red / green, 0.0]).view(3, 1, 1)

    def frame(left: float) -> Tensor:
        return 0.5 + colour * ((x - left) ** 2 + (y - 96) ** 2 < 18**2)[None, None]

    def found() -> Tensor:
        return POINT * inverse_search(frame(140), frame(180))[0]

    def errors(flow: Tensor) -> tuple[float, float]:
        disc = flow[:2, 96 // POINT - 3 : 96 // POINT + 3, 140 // POINT - 3 : 140 // POINT + 3]
        beside = flow[:2, :, : 116 // POINT]
        right = torch.tensor([40.0, 0.0])[:, None, None]
        return float((disc - right).abs().mean()), float(beside.abs().mean())

    disc, beside = errors(found())
    assert disc < 1
    assert beside < 0.2
    monkeypatch.setattr(search, "COLOURED", torch.inf)
    assert errors(found())[0] > 15


def test_learning_does_not_reach_into_the_search() -> None:
    frame0, frame1 = shifted(2, 1, 64, 64)
    assert not inverse_search(frame0.requires_grad_(), frame1).requires_grad


def test_work_is_counted_as_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    sample = F.grid_sample

    def counting(image: Tensor, grid: Tensor, **how: object) -> Tensor:
        nonlocal read
        read += grid.shape[0] * grid.shape[1] * grid.shape[2] * image.shape[1]
        return sample(image, grid, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "grid_sample", counting)
    frames = texture(112, 208), texture(112, 208, seed=1)
    with only_torch():
        inverse_search(*frames)
    # Patches, rounds, compared positions and flows to begin with, at a half, a quarter, an eighth and a sixteenth of
    # the size: at the last one all displacements are tried, at the others what the smaller one found, and at the first
    # what the other direction has. In the end a quarter of the positions say how well a patch fits.
    compared = stepped = 0
    sizes = (26 * 14, 2, 32, 2), (13 * 7, 3, 24, 1), (7 * 4, 3, 64, 1), (4 * 2, 4, 64, 25)
    for patches, rounds, positions, first in sizes:
        compared += 2 * patches * (positions * (1 + first + 5 * rounds) + 16)
        stepped += 2 * patches * positions * rounds
    # Of the second size's patches those that fit worst look farther; what differs in the end is read once more.
    compared += 2 * 24 * 32 * (13**2 + 1)
    # In the end all see their colours with 16 positions, those of the worst are looked for, and at all of their
    # positions both flows are compared in what they read.
    compared += 2 * 16 * 3 * (13 * 7 + 32 * (1 + 13**2 + 3 * 9)) + 2 * 32 * 64 * (3 + 2 + 3 + 3)
    assert read == compared
    assert search_macs(208, 112) == 6 * read + 2 * stepped


def test_there_is_no_flow_beside_what_differs() -> None:
    """Outside of the rectangle that holds it and some blocks more."""
    frames = shifted(3, -2, 96, 160)
    agree = torch.ones(1, 1, 6, 10, dtype=torch.bool)
    agree[..., 2, 4] = agree[..., 3, 6] = False
    box = bounds((~agree).float())
    assert box is not None
    rows, columns = (slice(4 * (span.start - 1), 4 * (span.stop + 1)) for span in box)
    whole = inverse_search(*frames)
    expected = torch.zeros_like(whole)
    expected[..., rows, columns] = whole[..., rows, columns]
    torch.testing.assert_close(inverse_search(*frames, agree, 1), expected)
    assert not inverse_search(*frames, torch.ones_like(agree), 1).any()
    assert inverse_search(*frames, torch.zeros_like(agree), 1).equal(whole)
