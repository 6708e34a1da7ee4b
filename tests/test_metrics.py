"""PSNR, SSIM and IE against their definitions, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ugsp_net.metrics import Picture, interpolation_error, psnr, ssim


def pair(height: int = 13, width: int = 17, noise: int = 30) -> tuple[Picture, Picture]:
    """A smooth picture and a noisy copy."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[0:height, 0:width]
    first = np.stack([128 + 90 * np.sin(x / 4 + phase) * np.cos(y / 3) for phase in (0, 1, 2)], axis=-1)
    second = first + rng.integers(-noise, noise + 1, first.shape)
    return first.clip(0, 255).astype(np.uint8), second.clip(0, 255).astype(np.uint8)


def direct_ssim(first: Picture, second: Picture) -> float:
    """One window at a time, in double precision: 11x11x11 over rows, columns and channels, the borders repeated."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    window = taps[:, None, None] * taps[None, :, None] * taps[None, None, :]
    a, b = (np.pad(picture / 255, 5, mode="edge") for picture in (first, second))
    values = []
    for y, x, channel in np.ndindex(first.shape):
        here = (slice(y, y + 11), slice(x, x + 11), slice(channel, channel + 11))
        p, q = a[here], b[here]
        mean_p, mean_q = (window * p).sum(), (window * q).sum()
        variance_p, variance_q = (window * (p - mean_p) ** 2).sum(), (window * (q - mean_q) ** 2).sum()
        covariance = (window * (p - mean_p) * (q - mean_q)).sum()
        upper = (2 * mean_p * mean_q + 0.01**2) * (2 * covariance + 0.03**2)
        values.append(upper / ((mean_p**2 + mean_q**2 + 0.01**2) * (variance_p + variance_q + 0.03**2)))
    return float(np.mean(values))


def direct_psnr(first: Picture, second: Picture) -> float:
    """As the name says, one value at a time."""
    errors = [(int(a) - int(b)) ** 2 for a, b in zip(first.ravel(), second.ravel(), strict=True)]
    return 10 * math.log10(255**2 / (sum(errors) / len(errors)))


def direct_error(first: Picture, second: Picture) -> float:
    """The mean absolute difference, one value at a time."""
    errors = [abs(int(a) - int(b)) for a, b in zip(first.ravel(), second.ravel(), strict=True)]
    return sum(errors) / len(errors)


@pytest.mark.parametrize(("height", "width", "noise"), [(13, 17, 30), (32, 20, 3), (7, 5, 100)])
def test_measures_equal_their_definitions(height: int, width: int, noise: int) -> None:
    first, second = pair(height, width, noise)
    assert psnr(first, second) == pytest.approx(direct_psnr(first, second), abs=1e-9)
    assert ssim(first, second) == pytest.approx(direct_ssim(first, second), abs=1e-5)
    assert interpolation_error(first, second) == pytest.approx(direct_error(first, second), abs=1e-9)


def test_known_values() -> None:
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert psnr(black, white) == pytest.approx(0)
    assert interpolation_error(black, white) == 255
    assert ssim(black, white) == pytest.approx(0.01**2 / (1 + 0.01**2), rel=1e-4)
    one_off = black + np.uint8(1)
    assert psnr(black, one_off) == pytest.approx(48.1308, abs=1e-4)
    assert interpolation_error(black, one_off) == 1


def test_equal_pictures_are_perfect_but_finite() -> None:
    first, _ = pair()
    assert psnr(first, first) == pytest.approx(108.13, abs=0.01)
    assert ssim(first, first) == pytest.approx(1, abs=1e-6)
    assert interpolation_error(first, first) == 0


def test_red_and_blue_may_change_places() -> None:
    # Half of the scripts in the field read pictures as BGR.
    first, second = pair()
    assert ssim(first[..., ::-1], second[..., ::-1]) == pytest.approx(ssim(first, second), abs=1e-6)


def test_sizes_must_agree() -> None:
    first, second = pair()
    for measure in (psnr, ssim, interpolation_error):
        with pytest.raises(ValueError, match="different sizes"):
            measure(first, second[1:])
