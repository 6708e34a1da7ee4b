"""Paths of points through four frames: where they are between the inner two, and which of them are in front."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.test_search import shifted, texture
from ugsp_net.paths import FINER, carry, trace
from ugsp_net.search import inverse_search

HALF = torch.tensor([0.5])


def flow(x: float, y: float, height: int = 24, width: int = 40) -> Tensor:
    """Of a pair in which everything moves alike by so many positions, there and back: in points, as it is searched."""
    return torch.tensor([x, y, -x, -y]).view(1, 4, 1, 1).repeat(1, 1, height // FINER, width // FINER) / FINER


def inside(found: Tensor) -> Tensor:
    """Away from the border, where points come in of which nothing is known."""
    return found[0, :5, 10:-10, 10:-10]


@pytest.mark.parametrize("t", [0.25, 0.5, 0.8])
def test_what_moves_evenly_is_its_share_of_the_way_along(t: float) -> None:
    pair = flow(6, -4)
    for before, after in ((None, None), (pair, pair)):
        found = inside(carry(trace(pair, before, after), torch.tensor([t])))
        expected = torch.tensor([-6 * t, 4 * t, 6 * (1 - t), -4 * (1 - t), 0])
        torch.testing.assert_close(found, expected[:, None, None].expand_as(found), atol=1e-4, rtol=0)


@pytest.mark.parametrize("t", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("step", [1.0, 0.5, 2.0])
def test_what_accelerates_is_where_its_parabola_says(t: float, step: float) -> None:
    """Frames before and after need not be as far away as those of the pair."""

    def place(when: float) -> float:
        return 2 * when + 3 * when**2

    pair, before, after = flow(5, 0), flow(0 - place(-step), 0), flow(place(1 + step) - 5, 0)
    intervals = torch.tensor([[step, step]])
    found = inside(carry(trace(pair, before, after, intervals), torch.tensor([t])))
    expected = torch.tensor([0 - place(t), 0, 5 - place(t), 0, 0])
    # A twentieth of it is the guess that knows no paths.
    torch.testing.assert_close(found, expected[:, None, None].expand_as(found), atol=0.05, rtol=0)


def test_where_one_neighbour_is_missing_half_of_the_bend_is_believed() -> None:
    pair, before, after = flow(5, 0), flow(-1, 0), flow(11, 0)
    straight, one, both = (
        float(inside(carry(trace(pair, *around), HALF))[0].mean())
        for around in ((None, None), (before, None), (before, after))
    )
    assert straight == pytest.approx(-2.5)
    assert one == pytest.approx((straight + both) / 2, abs=0.05)
    assert both == pytest.approx(-1.75, abs=0.05)
    known = carry(trace(pair, before, after, torch.tensor([[1.0, 0.0]])), HALF)
    torch.testing.assert_close(known, carry(trace(pair, before), HALF))  # an interval of 0: no such frame


def test_flow_that_does_not_lead_back_bends_nothing() -> None:
    pair, wrong = flow(5, 0), torch.cat((flow(20, 9)[:, :2], flow(-30, 7)[:, 2:]), dim=1)
    torch.testing.assert_close(carry(trace(pair, wrong, wrong), HALF), carry(trace(pair), HALF), atol=1e-3, rtol=0)


def test_what_is_not_known_bends_like_what_is_around_it() -> None:
    """Unless so little is known that there is a cut."""
    pair, before, after = flow(5, 0, 64, 80), flow(-1, 0, 64, 80), flow(11, 0, 64, 80)
    whole = carry(trace(pair, before, after), HALF)
    generator = torch.Generator().manual_seed(0)
    lost = torch.rand(1, 1, 16, 20, generator=generator) < 0.3
    lost = lost.repeat_interleave(2, 2).repeat_interleave(2, 3)
    noise = 20 * torch.randn(1, 4, 32, 40, generator=generator)
    found = carry(trace(pair, torch.where(lost, noise, before), torch.where(lost, noise, after)), HALF)
    error = (found - whole)[0, 0, 12:-12, 12:-12].abs()
    assert error.mean() < 0.03  # of a bend of 0.75
    assert torch.equal(carry(trace(pair, noise, noise), HALF), carry(trace(pair), HALF))


def test_what_is_hidden_goes_on_as_it_came_and_is_taken_from_the_frame_that_shows_it() -> None:
    """A square of 48 pixels moves by 16 over ground that moves by 4 the other way."""
    ground, square = texture(128, 320), texture(48, 48, seed=1)

    def frame(number: int) -> Tensor:
        picture = ground[..., 96 + 4 * number : 96 + 4 * number + 192].clone()
        left = 48 + 16 * number
        picture[..., 40:88, left : left + 48] = square
        return picture

    before, first, second, after = (frame(number) for number in (-1, 0, 1, 2))
    flows = [inverse_search(*pair) for pair in ((before, first), (first, second), (second, after))]
    found, alone = carry(trace(flows[1], flows[0], flows[2]), HALF), carry(trace(flows[1]), HALF)
    # At the half way the square covers columns 56 to 104. The second frame hides ten columns of the ground right of it,
    # the first frame as many left of it.
    row, right, left, middle = slice(28, 36), slice(53, 57), slice(23, 27), slice(32, 48)
    prior = found[0, 4, row]
    assert prior[:, right].mean() > 0.5
    assert prior[:, left].mean() < -0.25
    assert prior[:, middle].abs().mean() < 0.05
    assert found[0, 4, 4:12].abs().mean() < 0.05
    assert alone[0, 4, 12:-12, 12:-12].abs().max() == 0  # a pair alone does not tell
    # The ground right of the square is where it was in the first frame, less four pixels of half a way.
    assert found[0, 0, row, 56:60].mean() == pytest.approx(1, abs=0.3)
    assert found[0, 0, row, middle].mean() == pytest.approx(-4, abs=0.3)


def test_across_a_cut_the_nearer_frame_is_shown() -> None:
    flow = inverse_search(texture(256, 384), texture(256, 384, seed=1))
    for t, sign in ((0.3, 1), (0.5, 1), (0.7, -1)):
        found = carry(trace(flow), torch.tensor([t]))
        assert not found[0, :4].any()
        assert sign * found[0, 4].min() > 5
        assert sign * found[0, 4].max() > 5
    assert inside(carry(trace(inverse_search(*shifted(6, 3.5))), HALF))[4].abs().max() == 0


def test_samples_of_a_batch_do_not_touch_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [4 * torch.randn(3, 4, 16, 20, generator=generator) for _ in range(3)]
    intervals, t = torch.tensor([[1.0, 0.5], [0.0, 1.0], [2.0, 0.0]]), torch.tensor([0.2, 0.5, 0.9])
    together = carry(trace(pairs[1], pairs[0], pairs[2], intervals), t)
    assert together.shape == (3, 6, 32, 40)
    assert together.isfinite().all()
    for index in range(3):
        one = slice(index, index + 1)
        alone = carry(trace(pairs[1][one], pairs[0][one], pairs[2][one], intervals[one]), t[one])
        torch.testing.assert_close(together[one], alone)


def test_points_that_leave_the_picture_land_nowhere() -> None:
    """What moves out by more than the picture is wide leaves the guess behind, not itself at the border."""
    far = flow(200, 0, 16, 16)
    landed = carry(trace(far), HALF)
    assert landed[0, 4].abs().max() == 0
    torch.testing.assert_close(landed[0, :4, 8, 8], torch.tensor([-100.0, 0, 100, 0]))
    assert trace(far).shape == (1, 21, 8, 8)


def test_what_leaves_the_picture_is_taken_from_the_frame_that_shows_it() -> None:
    """The other one has nothing there but its border, repeated."""
    prior = carry(trace(flow(12, 0)), HALF)[0, 4]
    assert prior[:, -6:].min() > 2  # what the camera loses
    assert prior[:, :6].max() < -2  # what it finds
    assert prior[:, 8:-8].abs().max() < 0.05
    assert carry(trace(flow(0, 0)), HALF)[0, 4].abs().max() == 0


def test_what_stands_still_is_handed_on_as_it_is() -> None:
    still = (torch.rand(2, 1, 24, 40, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    pairs = torch.cat((flow(3, 1), flow(0, 2)))
    found = carry(trace(pairs, still=still), torch.tensor([0.3, 0.5]))
    assert torch.equal(found[:, 5:], still)
    assert carry(trace(pairs), torch.tensor([0.3, 0.5]))[:, 5:].abs().max() == 0


def test_where_two_motions_land_together_the_one_in_front_is_kept() -> None:
    """Not their mean, which is nobody's motion."""
    way = 6  # points, of what passes before a background that stands still
    here, there = torch.zeros(2, 12, 40)
    here[:, 10:18], there[:, 10 + way : 18 + way] = way, way
    still = torch.zeros_like(here)
    pair = torch.stack((here, still, -there, still))[None]
    came = torch.stack((torch.roll(here, -way, 1), still, -here, still))[None]
    goes = torch.stack((there, still, -torch.roll(there, way, 1), still))[None]
    found = carry(trace(pair, came, goes), HALF) / FINER
    # Of what passes, the part before background that the first frame shows and the second one does not.
    passing = found[0, :4, 6:-6, FINER * 18 : FINER * 20].mean((1, 2))
    assert passing.tolist() == pytest.approx([-way / 2, 0, way / 2, 0], abs=0.05)
