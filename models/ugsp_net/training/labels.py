"""Which blocks a mask should keep: labels made on the fly from the unpruned branch (paper, section 3.2 and 3.3).

A labeller is a module, because it may learn and has state that a resumed run needs. Called with the network, what its
unpruned branch made, the frames [B, 3, H, W] in [0, 1] at 0, t and 1, the instants [B] and which samples are real [B],
it returns ``Labels``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from ugsp_net.config import NetConfig
from ugsp_net.cost import PRUNED, network_cost
from ugsp_net.masks import enlarge
from ugsp_net.network import UGSP, Interpolation
from ugsp_net.training import losses
from ugsp_net.training.config import TrainConfig

SMALLEST_ERROR = 0.5 / 255
"""A crop whose error is less than half an 8-bit step counts as having that."""


@dataclass(frozen=True)
class Labels:
    """What the masks should be."""

    keep: list[Tensor]
    """One per pruned level, coarse to fine: [B, 1, rows, columns] of 0 and 1."""
    density: Tensor
    """[3]: the mean share of active blocks that masks should have on real clips."""
    loss: Tensor
    """The labeller's own; a scalar."""


class ChangeLabels(nn.Module):
    """Blocks whose finer levels change the frame by more than they cost.

    The levels' shortcuts show, without a convolution, the frame that is left when a block stops after each level. A
    block gets the stop that minimises the squared change that is missed, measured by the crop's error, plus ``price``
    times the MACs; the price follows what the gates keep, to the wanted mean share of the prunable work.

    For an estimate of least squared error the change that is missed is, in the mean, the error that is added; but it
    does not depend on the truth, so a gate can foresee it. Uncertainty, the paper's choice, is low, too, where the
    finer levels have just put things right. ARCHITECTURE.md has what was seen; the two were not compared at equal
    training.
    """

    price: Tensor

    def __init__(self, config: NetConfig, compute: float, relative: float) -> None:
        super().__init__()
        self.config = config
        self.compute = compute
        self.relative = relative
        macs = network_cost(config, 16 * config.alignment, 16 * config.alignment).prunable
        steps = torch.tensor([0.0, *macs]).cumsum(0)
        self.costs = [float(value / steps[-1]) for value in steps]
        """Share of the prunable work that is done when a block stops after none, one, two or all levels."""
        self.register_buffer("price", torch.tensor(0.05))

    @torch.no_grad()
    def forward(
        self, net: UGSP, full: Interpolation, frame0: Tensor, truth: Tensor, frame1: Tensor, t: Tensor, real: Tensor
    ) -> Labels:
        """See the module."""
        stride = max(self.config.grid_stride(level) for level in PRUNED)
        frames = [net.shortcut(frame0, frame1, state, t) for state in full.states]
        around = F.avg_pool2d((full.frame - truth).square().mean(1, keepdim=True), stride).mean((2, 3), keepdim=True)
        scale = around.clamp(min=SMALLEST_ERROR**2) ** self.relative
        missed = [(made - full.unrefined).square().mean(1, keepdim=True) for made in (*frames, full.unrefined)]
        totals = [
            F.avg_pool2d(change, stride) / scale + self.price * cost
            for change, cost in zip(missed, self.costs, strict=True)
        ]
        stop = torch.cat(totals, dim=1).argmin(1, keepdim=True)  # [B, 1, rows, columns], levels to compute
        grids = [stride // self.config.grid_stride(level) for level in PRUNED]
        keep = [enlarge((stop > index).float(), grid) for index, grid in enumerate(grids)]
        density, known = self._density(full, real)
        shares = torch.tensor(self.costs, device=density.device).diff()
        step = torch.exp(0.05 * ((shares * density).sum() - self.compute))
        self.price.mul_(torch.where(known, step, torch.ones_like(step))).clamp_(1e-5, 1e3)
        return Labels(keep, density, density.new_zeros(()))

    @staticmethod
    def _density(full: Interpolation, real: Tensor) -> tuple[Tensor, Tensor]:
        """What the gates keep at inference: nested hard masks, mean over the real crops of all processes, [3].

        Also whether there are any real crops; without, the mean is over all crops.
        """
        weight = real.float()
        sums = []
        active: Tensor | None = None
        for logits in full.logits:
            mask = (logits > 0).float()
            if active is not None:
                mask = mask * enlarge(active, mask.shape[-1] // active.shape[-1])
            active = mask
            share = mask.mean((1, 2, 3))
            sums += [(share * weight).sum(), share.sum()]
        totals = add_over_processes(torch.stack([*sums, weight.sum(), weight.new_tensor(float(len(real)))]))
        known = totals[-2] > 0
        return torch.where(known, totals[0:-2:2] / totals[-2].clamp(min=1), totals[1:-2:2] / totals[-1]), known


class UncertaintyLabels(nn.Module):
    """Blocks whose error the unpruned branch expects to be large (paper, section 3.2).

    A head on the last level's output learns the per-pixel log scale U of the error from ``exp(-U) |error| + 2 U``.
    Unless it ``trains`` the network, as in the paper, the error is detached: through that loss, the network would care
    least for the pixels that PSNR counts most.
    """

    density: Tensor
    thresholds: Tensor

    def __init__(
        self,
        config: NetConfig,
        density: tuple[float, ...],
        relative: float,
        weight: float = 0.01,
        trains: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.relative = relative
        self.weight = weight
        self.trains = trains
        self.enlarge = nn.ConvTranspose2d(config.widths[0], 1, 4, stride=2, padding=1)
        assert self.enlarge.bias is not None
        nn.init.constant_(self.enlarge.bias, -4.0)
        self.register_buffer("density", torch.tensor(density))
        self.register_buffer("thresholds", torch.full((len(density),), -1.0))

    def forward(
        self, net: UGSP, full: Interpolation, frame0: Tensor, truth: Tensor, frame1: Tensor, t: Tensor, real: Tensor
    ) -> Labels:
        """See the module."""
        assert full.hidden is not None
        frame, hidden = (full.frame, full.hidden) if self.trains else (full.frame.detach(), full.hidden.detach())
        error = (frame - truth).abs().mean(1, keepdim=True)
        log_scale = self.enlarge(F.relu(hidden.float())).float().clamp(-8, 1)  # [B, 1, H, W]
        loss = self.weight * losses.uncertainty_loss(error, log_scale)
        keep = self.cut(log_scale.detach(), real)
        return Labels(keep, self.density, loss)

    @torch.no_grad()
    def cut(self, log_scale: Tensor, real: Tensor) -> list[Tensor]:
        """Labels from U [B, 1, H, W]: 1 where a block's mean error scale is above the level's threshold.

        The threshold is the running quantile that leaves the level's density of the real crops' blocks.
        """
        labels = []
        scale = log_scale.exp()
        for index, level in enumerate(PRUNED):
            score = F.avg_pool2d(scale, self.config.grid_stride(level))  # [B, 1, rows, columns]
            score = score / score.mean((2, 3), keepdim=True).clamp(min=SMALLEST_ERROR) ** self.relative
            chosen = score.masked_fill(~real[:, None, None, None], float("nan"))
            quantile = torch.nanquantile(chosen.flatten(), 1 - self.density[index])
            threshold = self.thresholds[index]
            known = quantile.isfinite().float()
            count = add_over_processes(torch.stack((quantile.nan_to_num(0.0), known)))
            quantile = count[0] / count[1].clamp(min=1)
            moved = torch.where(threshold < 0, quantile, threshold + 0.02 * (quantile - threshold))
            threshold.copy_(torch.where(count[1] > 0, moved, threshold))
            labels.append((score > threshold).float())
        return labels


def make_labeller(config: TrainConfig) -> ChangeLabels | UncertaintyLabels:
    """The labeller that a run's configuration asks for."""
    if config.labels == "change":
        return ChangeLabels(config.net, config.compute, config.relative)
    return UncertaintyLabels(
        config.net, config.density, config.relative, config.uncertainty_weight, config.uncertainty_trains
    )


def add_over_processes(values: Tensor) -> Tensor:
    """The sum over all training processes, so that labels follow the whole batch; without several, the values."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)
    return values
