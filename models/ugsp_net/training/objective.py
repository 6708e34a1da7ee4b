"""What a training step minimises: both branches of the network, the labels of the masks, and the variants' extras."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ugsp_net.masks import Gate, gumbel_gate
from ugsp_net.network import UGSP, Encoding, Interpolation, channels_last
from ugsp_net.precision import autocast
from ugsp_net.search import STRIDE
from ugsp_net.training import losses
from ugsp_net.training.config import TrainConfig
from ugsp_net.training.data import Batch
from ugsp_net.training.labels import Labels, make_labeller
from ugsp_net.training.variants import PrivilegedTeacher, blended, flow_distillation, geometry_consistency


class Objective(nn.Module):
    """A network and what teaches it. Called with a batch and the share of the schedule that is done (0 to 1), it
    returns the loss and, by name, what the loss is made of and what is worth a line in the log (scalars, detached).
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.net = channels_last(UGSP(config.net))
        self.labeller = make_labeller(config)
        self.teacher = PrivilegedTeacher(config.net) if config.variant == "refine" else None

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        config, net = self.config, self.net
        device = next(net.parameters()).device
        windows = batch.frames.to(device, non_blocking=True).float() / 255
        size = config.plan.size
        frame0, truth, frame1 = batch.crops(windows, size).unbind(1)
        t, real = batch.t.to(device, non_blocking=True), batch.real.to(device, non_blocking=True)
        around, intervals = batch.around.to(device, non_blocking=True).float() / 255, batch.intervals.to(device)
        found = net.find(windows[:, 0], windows[:, 2], t, around[:, 0], around[:, 1], intervals)
        if found is not None:
            found = batch.crops(found, size, STRIDE)
        flow = batch.crops(batch.flow.to(device, non_blocking=True), size).float()
        trust = batch.crops(batch.trust.to(device, non_blocking=True), size).float()
        pruned: Interpolation | None = None
        truth_encoding: Encoding | None = None
        with autocast(device, config.precision):
            seen = (frame0, frame1) if config.variant == "plain" else (frame0, frame1, truth)
            encodings = net.encode(torch.cat(seen)).chunk(len(seen))
            first, second = encodings[:2]
            if len(encodings) > 2:
                truth_encoding = encodings[2]
            coarse = net.coarse(first, second, found, t)
            full = net.interpolate(frame0, frame1, first, second, coarse, t)
            if progress >= config.prune_from:
                some = slice(0, None, max(1, round(1 / config.prune_share)))
                parts0, parts1 = (side.map(lambda tensor: tensor[some]) for side in (first, second))
                above = coarse[some]
                pruned = net.interpolate(
                    frame0[some], frame1[some], parts0, parts1, above, t[some], self._gate(progress)
                )
            labels: Labels = self.labeller(net, full, frame0, truth, frame1, t, real)
            taught = None
            if self.teacher is not None and truth_encoding is not None:
                taught = self.teacher(net, full, first, second, truth_encoding, frame0, frame1, t)
        reconstruction = self._reconstruction(full.frame, truth)
        parts = {
            "reconstruction": reconstruction if pruned is None else config.auxiliary_weight * reconstruction,
            "uncertainty": labels.loss,
        }
        if config.flow_weight:
            parts["flow"] = config.flow_weight * (1 - 0.9 * progress) * self._flow(full, flow, trust)
        mask = self._mask_weight(progress)
        label = self._label_weight(progress)
        if config.label_loss == "cross-entropy":
            parts["label"] = mask * label * self._label(full.logits, labels, slice(None))
        values = {"psnr": losses.psnr(full.frame.detach().clamp(0, 1), truth).mean()}
        if pruned is not None:
            parts["pruned"] = self._reconstruction(pruned.frame, truth[some])
            parts["contrast"] = config.contrast_weight * self._contrast(pruned, full, some)
            parts["sparsity"] = mask * config.sparsity_weight * self._sparsity(pruned, real[some], labels.density)
            if config.label_loss == "cross-entropy":
                parts["label"] = parts["label"] + mask * label * self._label(pruned.logits, labels, some)
            else:
                pairs = zip(pruned.masks, labels.keep, strict=True)
                distances = [(made - keep[some]).abs().mean() for made, keep in pairs]
                parts["label"] = mask * label * torch.stack(distances).sum()
            for stride, made in zip((8, 4, 2), pruned.masks, strict=True):
                values[f"kept_{stride}"] = made.detach().mean()
            straight = losses.psnr(full.frame[some].detach(), truth[some])
            values["loss_of_psnr"] = (straight - losses.psnr(pruned.frame.detach(), truth[some])).mean()
        if config.variant == "distill" and truth_encoding is not None:
            parts["distillation"] = config.distillation_weight * flow_distillation(full, flow, trust)
            parts["geometry"] = config.geometry_weight * geometry_consistency(full, truth_encoding)
        if self.teacher is not None and taught is not None:
            frame, motion = taught
            parts["teacher"] = self._reconstruction(frame, truth)
            ours = blended(frame0, frame1, full.flow, full.blend).detach()
            flows = (*(state.flow for state in full.states), full.flow)
            distances = [self.teacher.distil(flow, motion, ours, frame, truth) for flow in flows]
            parts["distillation"] = config.teacher_weight * torch.stack(distances).sum()
        for stride, share in zip((8, 4, 2), labels.density, strict=True):
            values[f"density_{stride}"] = share
        values |= {name: part.detach() for name, part in parts.items()}
        total: Tensor = sum(parts.values(), start=full.frame.new_zeros(()))
        return total, values

    def _gate(self, progress: float) -> Gate:
        config = self.config
        done = (progress - config.prune_from) / max(1e-6, 1 - config.prune_from)
        return gumbel_gate(max(config.temperature_last, 1 - config.temperature_fall * done))

    def _mask_weight(self, progress: float) -> float:
        """The ramp of the mask terms."""
        config = self.config
        if progress < config.mask_from:
            return 0.0
        return min(1.0, (progress - config.mask_from) / config.mask_ramp) if config.mask_ramp else 1.0

    def _label_weight(self, progress: float) -> float:
        config = self.config
        if config.label_weight_last is None:
            return config.label_weight
        done = max(0.0, (progress - config.prune_from) / max(1e-6, 1 - config.prune_from))
        return config.label_weight + (config.label_weight_last - config.label_weight) * done

    def _reconstruction(self, frame: Tensor, truth: Tensor) -> Tensor:
        difference = frame - truth
        total = self.config.laplacian_weight * losses.laplacian(difference)
        if self.config.squared_weight:
            total = total + self.config.squared_weight * losses.log_squared(difference)
        return total

    def _flow(self, made: Interpolation, flow: Tensor, trust: Tensor) -> Tensor:
        total = losses.flow_error(made.flow, flow, trust)
        for state in made.states:
            total = total + losses.flow_error(state.flow, flow, trust)
        return total

    def _contrast(self, pruned: Interpolation, full: Interpolation, some: slice) -> Tensor:
        """How far pruning bends the features of the pruned levels (paper, eq. 7)."""
        assert pruned.hidden is not None
        assert full.hidden is not None
        ours = (*(state.feature for state in pruned.states[1:]), pruned.hidden)
        theirs = (*(state.feature for state in full.states[1:]), full.hidden)
        pairs = zip(ours, theirs, strict=True)
        distances = [losses.census(bent, straight[some].detach()) for bent, straight in pairs]
        return torch.stack(distances).sum()

    def _sparsity(self, pruned: Interpolation, real: Tensor, density: Tensor) -> Tensor:
        """How far each level's mean density on real crops is from its target (paper, eq. 8)."""
        weight = real.float()[:, None, None, None]
        count = weight.sum().clamp(min=1.0)
        pairs = zip(pruned.masks, density, strict=True)
        distances = [((mask * weight).sum() / (count * mask[0].numel()) - share).abs() for mask, share in pairs]
        return torch.stack(distances).sum() * (weight.sum() > 0)

    def _label(self, logits: tuple[Tensor, ...], labels: Labels, some: slice) -> Tensor:
        pairs = zip(logits, labels.keep, strict=True)
        return torch.stack([F.binary_cross_entropy_with_logits(values, keep[some]) for values, keep in pairs]).sum()
