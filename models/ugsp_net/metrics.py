"""How close a made picture is to the true one, by the measures and in the variants that papers on this task report.

Pictures are 8-bit RGB, [H, W, 3] uint8: what a file would hold, so a prediction is rounded before it is measured.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Picture", "interpolation_error", "psnr", "ssim"]

Picture = NDArray[np.uint8]
"""[H, W, 3], RGB, 0 to 255."""

SMALLEST_ERROR = 1e-6
"""Mean squared error below which PSNR stops growing, at 108 dB: one equal picture must not make a mean infinite."""

WINDOW = 11
SIGMA = 1.5


def psnr(made: Picture, truth: Picture) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error over all pixels and channels; the peak is 255.

    As the evaluation scripts of RIFE do it; a data set's figure is the mean of its pictures' PSNR.
    """
    error = float(np.square(_difference(made, truth), dtype=np.float64).mean())
    return 10 * math.log10(255 * 255 / max(error, SMALLEST_ERROR))


def ssim(made: Picture, truth: Picture) -> float:
    """Structural similarity, as RIFE (`ssim_matlab`) and IFRNet (`calculate_ssim`) measure it; at most 1.

    A Gaussian window of 11 with sigma 1.5, C1 = 0.01^2, C2 = 0.03^2 at a data range of 1, and borders padded by
    repeating the outermost pixels, so that every pixel counts. Not per channel and not luma: these scripts take the
    picture as a volume, so the window is 11x11x11 and also runs over the three channels, themselves padded with copies
    of red and blue. That gives higher values than Wang et al.'s luma or the mean over channels, and it is what the
    tables on Vimeo90K, UCF101 and SNU-FILM hold. One difference: those scripts pass the unrounded prediction.
    """
    x, y = (torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255 for picture in (made, truth))
    _difference(made, truth)  # refuses pictures of two sizes
    mean_x, mean_y = _smooth(x), _smooth(y)
    variance_x = _smooth(x * x) - mean_x * mean_x
    variance_y = _smooth(y * y) - mean_y * mean_y
    covariance = _smooth(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float((luminance * structure).double().mean())


def interpolation_error(made: Picture, truth: Picture) -> float:
    """IE: the mean absolute difference over all pixels and channels, 0 to 255.

    This is what papers call IE on Middlebury's public "other" set (the scripts of RIFE and IFRNet). The table on
    Middlebury's own site means something else: Baker et al., "A Database and Evaluation Methodology for Optical Flow"
    (IJCV 2011), define IE as the root of the mean squared difference, which is never smaller.
    """
    return float(np.abs(_difference(made, truth)).mean(dtype=np.float64))


def _difference(made: Picture, truth: Picture) -> NDArray[np.int32]:
    if made.shape != truth.shape:
        raise ValueError(f"pictures of different sizes: {made.shape} and {truth.shape}")
    return made.astype(np.int32) - truth.astype(np.int32)


def _smooth(volume: Tensor) -> Tensor:
    """Gaussian means of [3, H, W] fp32 over channels, rows and columns, repeating what lies at the borders."""
    half = WINDOW // 2
    offsets = torch.arange(WINDOW) - half
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window /= window.sum()
    # With so few channels the padded window over them is a small matrix.
    channels = volume.shape[0]
    across = torch.zeros(channels, channels)
    for channel in range(channels):
        across[channel].index_add_(0, (channel + offsets).clamp(0, channels - 1), window)
    rows = F.pad(torch.tensordot(across, volume, dims=1)[:, None], (half, half, half, half), mode="replicate")
    return F.conv2d(F.conv2d(rows, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))[:, 0]
