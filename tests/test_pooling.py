"""Pooling in sums of slices: what torch's own makes of the same maps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ugsp_net.pooling import halve, largest_around, mean_around, over_blocks


def test_halving_is_the_mean_of_four() -> None:
    values = torch.randn(2, 3, 10, 14)
    torch.testing.assert_close(halve(values), F.avg_pool2d(values, 2))
    torch.testing.assert_close(halve(values, across=False), F.avg_pool2d(values, (2, 1)))
    torch.testing.assert_close(halve(values, down=False), F.avg_pool2d(values, (1, 2)))
    assert halve(values, down=False, across=False) is values


@pytest.mark.parametrize("side", [2, 16])
def test_blocks_tell_their_mean_and_their_largest(side: int) -> None:
    values = torch.randn(2, 1, 3 * side, 5 * side)
    mean, most = over_blocks(values, side)
    torch.testing.assert_close(mean, F.avg_pool2d(values, side))
    assert torch.equal(most, F.max_pool2d(values, side))


@pytest.mark.parametrize("side", [3, 9])
@pytest.mark.parametrize("size", [(20, 31), (4, 50), (1, 2)])
def test_around_a_position_counts_what_lies_in_the_map(side: int, size: tuple[int, int]) -> None:
    """Also where the map is smaller than the square."""
    values = torch.rand(2, 3, *size)
    expected = F.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)
    torch.testing.assert_close(mean_around(values, side), expected)
    assert torch.equal(largest_around(values, side), F.max_pool2d(values, side, 1, side // 2))
