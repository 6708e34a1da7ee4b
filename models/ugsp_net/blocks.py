"""The parts of the network: the encoder and the interpolation levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ugsp_net import gpu
from ugsp_net.config import NetConfig

LEAKY_SLOPE = 0.1
_LEAKY: tuple[object, ...] = "leaky_relu", [LEAKY_SLOPE], ""
_NONE: tuple[object, ...] = "none", [], ""
"""What oneDNN does to what it makes."""

Made = TypeVar("Made")


class _Keeping:
    """A module with a weight of which others keep what they make."""

    weight: Tensor

    def kept(self, make: Callable[[Tensor], Made]) -> Made:
        """``make(weight)``, by which it is known, as it was made before if the weight is the same."""
        return _kept(self, make, self.weight, lambda: (self.weight,))


def freeze(root: nn.Module, frozen: bool) -> None:
    """Tell all modules of one whether their weights stay as they are, so that what they keep is not compared with them,
    frame by frame, in Python."""
    for module in root.modules():
        module.__dict__.pop("_kept", None)
        module.__dict__["_frozen"] = frozen


def _kept(module: Any, make: Callable[[Any], Made], of: Any, weights: Callable[[], Sequence[Tensor]]) -> Made:
    """``make(of)``, as the module keeps it from before if the weights of which it is made are the same."""
    kept: dict[Any, tuple[Any, ...]] = module.__dict__.setdefault("_kept", {})
    if make in kept and module.__dict__.get("_frozen", False):
        known: Made = kept[make][1]
        return known
    every = weights()
    if any(weight.is_inference() for weight in every):  # which do not tell when they change
        return make(of)
    state = [(weight._version, weight.data_ptr()) for weight in every]
    if kept.get(make, (None,))[0] != state:
        kept[make] = state, make(of)
    made: Made = kept[make][1]
    return made


class Conv(_Keeping, nn.Conv2d):
    """A 3x3 convolution that keeps its input's type: bf16 activations meet bf16 copies of fp32 weights."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """x: [B, inputs, H, W]; activation: of what comes out."""
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if activation is not None and activation.slope is None and _by_onednn(x):
            sides = [self.kernel_size[0] // 2] * 2, list(self.stride), [1, 1]
            fused: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *sides, 1, *_LEAKY)
            return fused
        if activation is not None and activation.slope is None and bias is not None and by_kernels(x):
            from ugsp_net.gpu.convolution import convolve_and_activate  # it imports triton

            return convolve_and_activate(self, x, LEAKY_SLOPE)
        made = F.conv2d(x, weight, bias, self.stride, self.padding)
        return made if activation is None else activation(made)


class Convolutions(nn.Sequential):
    """Convolutions, each with the activation after it."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, inputs, H, W]."""
        layers = list(self)
        for conv, activation in zip(layers[::2], layers[1::2], strict=True):
            x = conv(x, activation)
        return x


class Enlarge(_Keeping, nn.ConvTranspose2d):
    """A 4x4 stride-2 transposed convolution that keeps its input's type, as ``Conv`` does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """[B, inputs, H, W] -> [B, outputs, 2 H, 2 W]."""
        assert self.bias is not None
        return F.conv_transpose2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), stride=2, padding=1)

    def as_3x3(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The same as the kernel of a 3x3 convolution that makes 2x2 pixels of each position, [4 outputs, 9 inputs] of
        that type (output, row, column; row, column, input), and its bias [4 outputs] fp32."""
        assert self.bias is not None
        inputs, outputs = self.weight.shape[:2]
        # Pixel 2 y + a reads position y + d with the tap a + 1 - 2 d: of the four, or of the zeros beyond them.
        taps = torch.tensor([3, 1, 4, 4, 2, 0], device=self.weight.device)
        read = F.pad(self.weight, (0, 1, 0, 1)).to(dtype)[:, :, taps][..., taps].view(inputs, outputs, 2, 3, 2, 3)
        kernel = read.permute(1, 2, 4, 3, 5, 0).reshape(4 * outputs, 9 * inputs)
        return kernel, self.bias.float().repeat_interleave(4)


class Activation(nn.Module):
    """PReLU, as in the paper, or leaky ReLU."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((channels,), 0.25)) if kind == "prelu" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.slope is not None:
            return F.prelu(x, self.slope.to(x.dtype))
        return F.leaky_relu(x, LEAKY_SLOPE, inplace=not torch.is_grad_enabled())


def linear(x: Tensor, weight: Tensor, activation: Activation | None = None) -> Tensor:
    """``F.linear`` without a bias, and what an activation makes of it. x: [N, K]; weight: [C, K]."""
    leaky = activation is not None and activation.slope is None
    if _by_onednn(x):
        # By itself torch leaves products of fp32 to MKL, which reached half of oneDNN's rate on an AMD processor.
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, *(_LEAKY if leaky else _NONE))
        if leaky:
            return made
    else:
        made = F.linear(x, weight)
    return made if activation is None else activation(made)


def _by_onednn(x: Tensor) -> bool:
    """Whether the operations to which torch's compiler turns take x: oneDNN's, which apply a leaky ReLU before what
    they make leaves the registers. By itself it takes a tenth of the time of a 3x3 convolution of 48 channels."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def by_kernels(x: Tensor) -> bool:
    """Whether kernels convolve, or add the bias and activate: after cuDNN's these are two passes by themselves."""
    return x.device.type == "cuda" and not torch.is_grad_enabled() and gpu.available(x.device)


class Encoder(nn.Module):
    """Features of one frame at strides 2, 4, 8 and 16 (paper, section 3.1)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        inputs = 3
        for channels in config.encoder_channels:
            self.levels.append(
                Convolutions(
                    Conv(inputs, channels, stride=2),
                    Activation(config.activation, channels),
                    Conv(channels, channels),
                    Activation(config.activation, channels),
                )
            )
            inputs = channels

    def forward(self, frame: Tensor) -> list[Tensor]:
        """[B, 3, H, W], normalised -> features [B, C_l, H / s, W / s] at each stride s of ``STRIDES``."""
        conv, activation = self.first
        return self.after_first(conv(frame, activation))

    def kept(self, make: Callable[[Encoder], Made]) -> Made:
        """``make(encoder)``, by which it is known, as it was made before if all weights are the same."""
        return _kept(self, make, self, lambda: list(self.parameters()))

    @property
    def convolutions(self) -> list[tuple[Conv, Conv]]:
        """Both of each level."""
        every = ([conv for conv in level.children() if isinstance(conv, Conv)] for level in self.levels)
        return [(first, second) for first, second in every]

    @property
    def first(self) -> tuple[Conv, Activation]:
        """The first convolution, and its activation."""
        conv, activation = self._level(0)[0], self._level(0)[1]
        assert isinstance(conv, Conv)
        assert isinstance(activation, Activation)
        return conv, activation

    def after_first(self, x: Tensor) -> list[Tensor]:
        """What ``forward`` returns, from what the first activation puts out."""
        features = [self._level(0)[2:](x)]
        for index in range(1, len(self.levels)):
            features.append(self._level(index)(features[-1]))
        return features

    def _level(self, index: int) -> Convolutions:
        level = self.levels[index]
        assert isinstance(level, Convolutions)
        return level


class Level(nn.Module):
    """Head, 3x3 convolutions and a 1x1 projection of all their outputs.

    The projection of the concatenation is summed layer by layer (the two are the same sum), so that no layer's output
    has to outlive the next layer. The convolutions have no bias: what is masked to zero contributes nothing, and the
    projection's bias alone remains there.
    """

    def __init__(self, config: NetConfig, inputs: int, width: int, depth: int, outputs: int, *, pruned: bool) -> None:
        super().__init__()
        self.head = Conv(inputs, width, bias=not pruned)
        self.convs = nn.ModuleList(Conv(width, width, bias=not pruned) for _ in range(depth))
        self.activations = nn.ModuleList(Activation(config.activation, width) for _ in range(depth + 1))
        self.project = Conv(width * (depth + 1), outputs, kernel=1)
        self.width = width
        self.outputs = outputs

    @property
    def layers(self) -> list[tuple[Conv, Activation]]:
        """The 3x3 convolutions, each with its activation, in order."""
        convs = [conv for conv in (self.head, *self.convs) if isinstance(conv, Conv)]
        activations = [activation for activation in self.activations if isinstance(activation, Activation)]
        return list(zip(convs, activations, strict=True))

    def kept(self, make: Callable[[Level], Made]) -> Made:
        """``make(level)``, by which it is known, as it was made before if all weights are the same."""
        return _kept(self, make, self, lambda: list(self.parameters()))

    def projection(self, layer: int, dtype: torch.dtype) -> Tensor:
        """The columns of the 1x1 projection that meet one layer's output, [outputs, width, 1, 1]."""
        return self.project.weight[:, layer * self.width : (layer + 1) * self.width].to(dtype)

    def bias(self) -> Tensor:
        """What the level puts out where nothing is computed, [1, outputs, 1, 1] fp32."""
        assert self.project.bias is not None
        return self.project.bias.float().reshape(1, -1, 1, 1)


class Synthesis(nn.Module):
    """The last level's way to full resolution: activation, then a 4x4 stride-2 transposed convolution."""

    OUTPUTS = 8
    """Residual flow (4), blend logit (1), RGB residual (3)."""

    def __init__(self, config: NetConfig, width: int) -> None:
        super().__init__()
        self.activation = Activation(config.activation, width)
        self.enlarge = Enlarge(width, self.OUTPUTS)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, width, H / 2, W / 2] -> [B, 8, H, W] fp32."""
        made: Tensor = self.enlarge(self.activation(hidden))
        # Planes are what it is used by: to turn it at half the size, once, takes less than to read it across.
        return made.contiguous().float()

    def of_bias(self, level: Level) -> Tensor:
        """What it makes of the bias of the last level alone, at four by four positions, [8, 8, 8] fp32."""
        if torch.is_grad_enabled():
            return _of_bias((self, level))
        return _kept(self, _of_bias, (self, level), lambda: [*self.parameters(), *level.parameters()])


def _of_bias(both: tuple[Synthesis, Level]) -> Tensor:
    synthesis, level = both
    small: Tensor = synthesis(level.bias().to(synthesis.enlarge.weight.dtype).repeat(1, 1, 4, 4))
    return small[0]
