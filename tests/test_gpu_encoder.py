"""The encoder's kernels against torch: on a card, and interpreted where there is none."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests import interpreter
from tests.test_triton import DEVICE, exact, kernels
from ugsp_net.blocks import LEAKY_SLOPE, Conv

__all__ = ["exact"]


@kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("channels", "height", "width"), [(16, 10, 34), (12, 2, 30), (8, 16, 2)])
def test_the_first_convolution(channels: int, height: int, width: int, dtype: torch.dtype, tolerance: float) -> None:
    """Of a part of larger frames, too: outside of it is nothing, though there are pixels."""
    from ugsp_net.gpu.encoder import first_features

    torch.manual_seed(0)
    conv = Conv(3, channels, stride=2).to(DEVICE, dtype).requires_grad_(False)
    large = torch.rand(2, 3, height + 6, width + 8, device=DEVICE)
    for frame in (large[..., 2 : 2 + height, 4 : 4 + width], large[..., :height, :width].contiguous()):
        with torch.inference_mode():
            made = first_features(conv, frame, 4.0, -1.8, dtype)
            assert conv.bias is not None
            given = (4 * frame - 1.8).to(dtype).float()
            expected = F.conv2d(given, conv.weight.float(), conv.bias.float(), 2, 1)
        assert made.dtype == dtype
        assert made.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(made.float(), F.leaky_relu(expected, LEAKY_SLOPE), rtol=tolerance, atol=tolerance)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_and_an_activation(dtype: torch.dtype) -> None:
    from ugsp_net.gpu.convolution import add_and_activate

    torch.manual_seed(0)
    x, bias = torch.randn(2, 12, 7, 19, device=DEVICE, dtype=dtype), torch.randn(12, device=DEVICE, dtype=dtype)
    expected = F.leaky_relu(x.float() + bias.float().view(1, -1, 1, 1), LEAKY_SLOPE).to(dtype)
    made = add_and_activate(x.to(memory_format=torch.channels_last), bias, LEAKY_SLOPE)
    torch.testing.assert_close(made, expected)


@kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "height", "width"),
    [
        (16, 32, 2, 18, 34),
        (32, 32, 1, 9, 40),
        (8, 12, 2, 4, 6),
        (24, 64, 1, 3, 1),
        (65, 32, 1, 5, 70),
        (16, 16, 1, 37, 9),
    ],
)
def test_other_convolutions(
    inputs: int, outputs: int, stride: int, height: int, width: int, dtype: torch.dtype, tolerance: float
) -> None:
    """By a kernel, which memory filled with NaN does not disturb; and in two-byte types by the convolution itself."""
    from ugsp_net.gpu.convolution import convolve, convolve_and_activate

    torch.manual_seed(0)
    conv = Conv(inputs, outputs, stride=stride).to(DEVICE, dtype).requires_grad_(False)
    x = torch.randn(2, inputs, height, width, device=DEVICE, dtype=dtype)
    pitched = torch.zeros(2, height, width, -(-inputs // 8) * 8, device=DEVICE, dtype=dtype)
    pitched[..., :inputs] = x.permute(0, 2, 3, 1)
    for given in (x, x.to(memory_format=torch.channels_last), pitched[..., :inputs].permute(0, 3, 1, 2)):
        assert conv.bias is not None
        expected = F.conv2d(given.float(), conv.weight.float(), conv.bias.float(), stride, 1)
        for made in (convolve(conv, given, 0.1), convolve_and_activate(conv, given, 0.1)):
            assert made.dtype == dtype
            assert made.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(made.float(), F.leaky_relu(expected, 0.1), rtol=tolerance, atol=tolerance)


def test_interpreted() -> None:
    """The tests above on the CPU."""
    interpreter.wait(__file__)
