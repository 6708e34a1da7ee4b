"""What the paper's variants add to training: IFRNet's two losses (UGSP-distill) and RIFE's teacher (UGSP-refine)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ugsp_net.blocks import Activation, Enlarge, Level
from ugsp_net.config import NetConfig
from ugsp_net.network import UGSP, Encoding, Interpolation, he_initialise
from ugsp_net.sparse import run_level
from ugsp_net.training import losses
from ugsp_net.warp import backward_warp, upsample

FALL = 0.3
"""How fast belief in a flow label falls with the final flow's distance from it, per pixel (IFRNet)."""
MARGIN = 0.01
"""By how much, in [0, 1], the teacher's pixel must be better than the student's to be followed (RIFE)."""


def flow_distillation(made: Interpolation, flow: Tensor, trust: Tensor) -> Tensor:
    """Task-oriented distance of the flow at every scale from labels; a scalar, the sum over scales of means.

    flow: [B, 4, H, W], pixels t -> 0, t -> 1; trust: [B, 1, H, W] in [0, 1]. Flows at strides 16, 8 and 4 are enlarged
    to full size and to pixels. The distance d of each of the two flows is taken as ``(d^2 + e^2)^(p / 2)``, where
    ``p = exp(-0.3 d')`` and ``e = 10^(-(10 p - 1) / 3)`` follow the distance d' of the final flow: where that has come
    to the label, as L1; where it insists on something else, a label hardly pulls at all, because the flow that makes
    the best frame is not always the true one. No gradient goes through p.
    """
    label = _directions(flow)
    with torch.no_grad():
        exponent = torch.exp(-FALL * _square(made.flow, label).sqrt())  # [B, 2, H, W]
        epsilon = 10 ** (-(10 * exponent - 1) / 3)
    total = flow.new_zeros(())
    for predicted in (*(state.flow for state in made.states), made.flow):
        stride = flow.shape[-1] // predicted.shape[-1]
        whole = predicted if stride == 1 else stride * upsample(predicted, stride)
        distance = (_square(whole, label) + epsilon.square()) ** (exponent / 2)
        total = total + (distance * trust).mean()
    return total


def geometry_consistency(made: Interpolation, truth_encoding: Encoding) -> Tensor:
    """Census distance between the features handed down, enlarged, and the true frame's own there; a scalar.

    made.states are at strides 16, 8 and 4, and what they hand down meets the encoder's features at strides 8, 4 and 2,
    whose channels it has. The true frame's features are a target only: no gradient reaches the encoder through them.
    """
    targets = truth_encoding.features[-2::-1]
    distances = [
        losses.census(upsample(state.feature.float()), target.detach())
        for state, target in zip(made.states, targets, strict=True)
    ]
    return torch.stack(distances).sum()


def blended(frame0: Tensor, frame1: Tensor, flow: Tensor, blend: Tensor) -> Tensor:
    """What flow [B, 4, H, W] and blend weight [B, 1, H, W] alone make of two frames, [B, 3, H, W]."""
    return torch.lerp(backward_warp(frame1, flow[:, 2:]), backward_warp(frame0, flow[:, :2]), blend)


class PrivilegedTeacher(nn.Module):
    """One more level at stride 2 that sees the true frame, and so finds better flow; in training only.

    It corrects the student's final flow and blend weight. It has no RGB residual: with that it could show the true
    frame without any flow. It begins as the student, and learns by a loss on its frame; from that the student learns
    nothing, since all that the teacher takes from it is detached. ``distil`` is the one way back.
    """

    DEPTH = 2
    """3x3 convolutions after the head."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        channels, width = config.encoder_channels[0], config.widths[0]
        self.level = Level(config, 3 * channels + 5, width, self.DEPTH, width, pruned=False)
        self.activation = Activation(config.activation, width)
        self.enlarge = Enlarge(width, 5)
        he_initialise(self)
        nn.init.zeros_(self.enlarge.weight)

    def forward(
        self,
        net: UGSP,
        made: Interpolation,
        first: Encoding,
        second: Encoding,
        truth_encoding: Encoding,
        frame0: Tensor,
        frame1: Tensor,
        t: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The teacher's frame [B, 3, H, W] and flow [B, 4, H, W] in pixels, both fp32.

        made: what the student ``net`` made of frame0 and frame1, [B, 3, H, W] in [0, 1], whose encodings are first and
        second, at the instants t [B]; truth_encoding: that of the true frames.
        """
        with torch.no_grad():
            flow = F.avg_pool2d(made.flow, 2) / 2  # [B, 4, H / 2, W / 2]
            parts = (
                backward_warp(first.features[0], flow[:, :2]),
                backward_warp(second.features[0], flow[:, 2:]),
                truth_encoding.features[0],
                flow,
                F.avg_pool2d(made.blend, 2),
            )
            joined = torch.cat([part.to(net.dtype) for part in parts], dim=1)
            joined = joined.contiguous(memory_format=torch.channels_last)
        hidden = run_level(self.level, joined, None, "reference").to(net.dtype)
        out = self.enlarge(self.activation(hidden)).float()  # [B, 5, H, W]
        flow = made.flow.detach() + out[:, :4] * net.pace(t)
        blend = torch.sigmoid(torch.logit(made.blend.detach(), eps=1e-6) + out[:, 4:])
        return blended(frame0, frame1, flow, blend), flow

    @staticmethod
    def distil(
        student_flow: Tensor, teacher_flow: Tensor, student_frame: Tensor, teacher_frame: Tensor, truth: Tensor
    ) -> Tensor:
        """Robust distance of the student's flow from the teacher's where the teacher's frame is the better; a scalar.

        student_flow: [B, 4, h, w] at any stride, in positions of it; teacher_flow: [B, 4, H, W]; the frames
        [B, 3, H, W] should be made alike, the student's by ``blended``. Only student_flow gets a gradient.
        """
        with torch.no_grad():
            ours, theirs = (
                (frame - truth).abs().mean(1, keepdim=True) for frame in (student_frame, teacher_frame)
            )  # [B, 1, H, W]
            better = (ours > theirs + MARGIN).float()
        return losses.flow_error(student_flow, teacher_flow.detach(), better)


def _directions(flow: Tensor) -> Tensor:
    """[B, 4, H, W] -> [B, 2, 2, H, W]: t -> 0 and t -> 1, each (x, y)."""
    batch, _, height, width = flow.shape
    return flow.float().reshape(batch, 2, 2, height, width)


def _square(flow: Tensor, label: Tensor) -> Tensor:
    """Squared distance of both flows from labels [B, 2, 2, H, W]; [B, 2, H, W]."""
    return (_directions(flow) - label).square().sum(2)
