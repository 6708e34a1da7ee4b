"""The training loop: an unpruned network that learns where it is needed, and a pruned one that follows its labels.

Both of the paper's phases (section 3.4) in one run. Throughout, the unpruned branch learns to interpolate and the mask
heads learn which blocks to compute; past ``prune_from`` a pruned branch with sampled masks is trained beside it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ugsp_net import checkpoint
from ugsp_net.allocator import keep_freed_memory
from ugsp_net.config import NetConfig
from ugsp_net.masks import Gate, gumbel_gate
from ugsp_net.network import UGSP, Encoding, Interpolation, LevelState, channels_last
from ugsp_net.training import losses
from ugsp_net.training.clips import ClipBank
from ugsp_net.training.data import Batch, Batches, BatchPlan
from ugsp_net.training.labels import Labels, make_labeller


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a run depends on besides its clips."""

    net: NetConfig = field(default_factory=NetConfig)
    plan: BatchPlan = field(default_factory=BatchPlan)
    steps: int = 20_000
    """Steps of the whole schedule."""
    minutes: float | None = None
    """When set, the schedule follows the clock instead of the steps."""
    seed: int = 0
    rate: float = 5e-4
    """Highest learning rate (AdamW)."""
    rate_last: float = 1e-5
    gate_rate: float = 10.0
    """Learning rate of the mask heads, times that of the rest: their labels move while the network learns."""
    warmup: int = 300
    """Steps of linear rise."""
    weight_decay: float = 1e-4
    clip: float = 1.0
    """Largest norm of the gradient."""
    average: float = 0.999
    """Decay of the averaged weights, which are the ones that ship."""
    prune_from: float = 0.45
    """Share of the schedule from which the pruned branch is trained."""
    prune_share: float = 0.5
    """Share of every batch that also goes through the pruned branch."""
    labels: str = "change"
    """What the mask labels follow: ``change``, what skipping a block would change, or ``uncertainty``, as the paper."""
    compute: float = 0.5
    """Labels by change: mean share of the prunable work to keep, on real crops. Clips move less than the crops that are
    trained on, so more is skipped there."""
    density: tuple[float, float, float] = (0.70, 0.55, 0.45)
    """Labels by uncertainty: mean share of blocks to compute at strides 8, 4, 2. The threshold follows from it: U has
    no natural scale to cut at, and the share is what the cost depends on."""
    relative: float = 0.8
    """How far a block's error is measured by its crop's own: 0 not at all, 1 wholly. What is lost in dB by skipping a
    block depends on the error that the rest of the picture has anyway; a gate, though, sees no more than its
    surroundings."""
    flow_weight: float = 0.02
    """Weight of flow supervision at first, per pixel of error; it falls to a tenth over the schedule."""
    label_weight: float = 0.02
    sparsity_weight: float = 0.02
    contrast_weight: float = 1e-2
    auxiliary_weight: float = 0.5
    """Weight of the unpruned branch beside the pruned one."""
    temperature_last: float = 0.4
    """The Gumbel temperature falls from 1 to this while the pruned branch is trained."""


class Trainer:
    """State of one run; ``run`` goes on from wherever it is."""

    def __init__(
        self,
        config: TrainConfig,
        bank: ClipBank,
        folder: Path,
        device: torch.device,
        dataset: Dataset[Batch] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """dataset: batches by number, instead of those that the plan makes of the bank; clock: counts the schedule's
        minutes, in seconds (benchmarks count processor time, which other work on the machine does not change)."""
        keep_freed_memory()
        torch.manual_seed(config.seed)
        self.config = config
        self.bank = bank
        self.folder = folder
        self.device = device
        self.dataset = dataset or Batches(bank, config.plan, config.seed, config.steps)
        self.clock = clock
        self.net = channels_last(UGSP(config.net).to(device))
        self.averaged = channels_last(UGSP(config.net).to(device))
        self.averaged.load_state_dict(self.net.state_dict())
        self.averaged.requires_grad_(False)
        labeller = make_labeller(config.labels, config.net, config.compute, config.density, config.relative)
        self.labeller = labeller.to(device)
        gates = list(self.net.gates.parameters())
        known = {id(parameter) for parameter in gates}
        others = [parameter for parameter in self.net.parameters() if id(parameter) not in known]
        self.parameters = [*others, *self.labeller.parameters(), *gates]
        modules = {"net": self.net, "labeller": self.labeller}
        names = {id(p): f"{kind}.{name}" for kind, module in modules.items() for name, p in module.named_parameters()}
        self.names = [names[id(parameter)] for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(
            [{"params": self.parameters[: -len(gates)], "scale": 1.0}, {"params": gates, "scale": config.gate_rate}],
            lr=config.rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
        )
        self.step = 0
        self.samples = 0
        self.seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, 0 to 1."""
        if self.config.minutes is not None:
            return min(1.0, self.seconds / 60 / self.config.minutes)
        return min(1.0, self.step / self.config.steps)

    def start_from(self, net: UGSP) -> None:
        """Begin with a network's weights; the configuration must be the same."""
        self.net.load_state_dict(net.state_dict())
        self.averaged.load_state_dict(net.state_dict())

    def run(self, until: float = 1.0, log_every: int = 50, save_every_seconds: float = 180.0) -> None:
        """Train until that share of the schedule is done; checkpoints and a log of JSON lines go to the folder."""
        config = self.config
        batches = iter(self._loader())
        log = (self.folder / "log.jsonl").open("a")
        sums: dict[str, float] = {}
        counted, since, saved = 0, time.monotonic(), time.monotonic()
        while self.progress < until:
            begun = self.clock()
            values = self._train_step(next(batches))
            self.seconds += self.clock() - begun
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
            counted += 1
            if self.step % log_every == 0:
                now = time.monotonic()
                record = {
                    "step": self.step,
                    "samples": self.samples,
                    "minutes": round(self.seconds / 60, 2),
                    "progress": round(self.progress, 4),
                    "samples_per_second": round(counted * config.plan.batch / (now - since), 1),
                    **{name: round(total / counted, 5) for name, total in sums.items()},
                }
                log.write(json.dumps(record) + "\n")
                log.flush()
                print(json.dumps(record), flush=True)
                sums, counted, since = {}, 0, now
            if time.monotonic() - saved > save_every_seconds:
                self.save()
                saved = time.monotonic()
        self.save()
        log.close()

    def _loader(self) -> DataLoader[Batch]:
        order = range(self.step, 1 << 40)
        return DataLoader(
            self.dataset,
            batch_size=None,
            sampler=_Numbers(order),
            num_workers=1,
            prefetch_factor=6,
            worker_init_fn=_prepare_worker,
        )

    def _train_step(self, batch: Batch) -> dict[str, float]:
        config = self.config
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        total, values = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip)
        if not torch.isfinite(norm):
            raise RuntimeError(f"the gradient is not finite at step {self.step}: go on from the last checkpoint")
        self.optimizer.step()
        self.step += 1
        self.samples += batch.t.shape[0]
        decay = min(config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            pairs = zip(self.averaged.parameters(), self.net.parameters(), strict=True)
            averaged, current = (list(group) for group in zip(*pairs, strict=True))
            torch._foreach_lerp_(averaged, current, 1 - decay)
        values["gradient"] = float(norm)
        values["rate"] = rate
        return values

    def _rate(self) -> float:
        config = self.config
        if self.step < config.warmup:
            return config.rate * (self.step + 1) / config.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return config.rate_last + (config.rate - config.rate_last) * cosine

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step and what it is made of."""
        config, net, device = self.config, self.net, self.device
        frames = batch.frames.to(device).float() / 255
        frame0, truth, frame1 = frames[:, 0], frames[:, 1], frames[:, 2]
        t = batch.t.to(device)
        flow, trust = batch.flow.to(device).float(), batch.trust.to(device).float()
        pruned: Interpolation | None = None
        with torch.autocast(device.type, torch.bfloat16):
            both = net.encode(torch.cat((frame0, frame1)))
            first, second = (Encoding(tuple(part)) for part in zip(*(f.chunk(2) for f in both.features), strict=True))
            coarse = net.coarse(first, second, net.match(first, second), t)
            full = net.interpolate(frame0, frame1, first, second, coarse, t)
            if self.progress >= config.prune_from:
                some = slice(0, None, max(1, round(1 / config.prune_share)))
                parts0, parts1 = (Encoding(tuple(f[some] for f in side.features)) for side in (first, second))
                above = LevelState(coarse.flow[some], coarse.feature[some])
                gate = self._gate()
                pruned = net.interpolate(frame0[some], frame1[some], parts0, parts1, above, t[some], gate)
            labels: Labels = self.labeller(net, full, frame0, truth, frame1, t, batch.real.to(device))
        flow_weight = config.flow_weight * (1 - 0.9 * self.progress)
        parts = {
            "reconstruction": self._reconstruction(full, truth),
            "flow": flow_weight * self._flow(full, flow, trust),
            "uncertainty": labels.loss,
            "label": config.label_weight * self._label(full.logits, labels, slice(None)),
        }
        values = {"psnr": float(losses.psnr(full.frame.detach().clamp(0, 1), truth).mean())}
        if pruned is not None:
            parts["reconstruction"] = config.auxiliary_weight * parts["reconstruction"]
            parts["pruned"] = self._reconstruction(pruned, truth[some])
            parts["contrast"] = config.contrast_weight * self._contrast(pruned, full, some)
            parts["label"] = parts["label"] + config.label_weight * self._label(pruned.logits, labels, some)
            parts["sparsity"] = config.sparsity_weight * self._sparsity(pruned, batch.real[some], labels.density)
            for stride, mask in zip((8, 4, 2), pruned.masks, strict=True):
                values[f"kept_{stride}"] = float(mask.detach().mean())
            values["loss_of_psnr"] = float(
                (
                    losses.psnr(full.frame[some].detach(), truth[some])
                    - losses.psnr(pruned.frame.detach(), truth[some])
                ).mean()
            )
        for stride, share in zip((8, 4, 2), labels.density.tolist(), strict=True):
            values[f"density_{stride}"] = share
        values |= {name: float(part.detach()) for name, part in parts.items()}
        total: Tensor = sum(parts.values(), start=full.frame.new_zeros(()))
        return total, values

    def _gate(self) -> Gate:
        config = self.config
        done = (self.progress - config.prune_from) / max(1e-6, 1 - config.prune_from)
        return gumbel_gate(max(config.temperature_last, 1 - done))

    def _reconstruction(self, made: Interpolation, truth: Tensor) -> Tensor:
        difference = made.frame - truth
        return losses.charbonnier(difference) + 0.5 * losses.laplacian(difference)

    def _flow(self, made: Interpolation, flow: Tensor, trust: Tensor) -> Tensor:
        total = losses.flow_error(made.flow, flow, trust)
        for state in made.states:
            total = total + losses.flow_error(state.flow, flow, trust)
        return total

    def _contrast(self, pruned: Interpolation, full: Interpolation, some: slice) -> Tensor:
        """How far pruning bends the features of the pruned levels (paper, eq. 7)."""
        ours, theirs = ((*(state.feature for state in made.states[1:]), made.hidden) for made in (pruned, full))
        pairs = zip(ours, theirs, strict=True)
        distances = [losses.census(bent, straight[some].detach()) for bent, straight in pairs]
        return torch.stack(distances).sum()

    def _sparsity(self, pruned: Interpolation, real: Tensor, density: Tensor) -> Tensor:
        """How far each level's mean density on real crops is from its target (paper, eq. 8)."""
        if not real.any():
            return pruned.frame.new_zeros(())
        pairs = zip(pruned.masks, density, strict=True)
        return torch.stack([(mask[real].mean() - share).abs() for mask, share in pairs]).sum()

    def _label(self, logits: tuple[Tensor, ...], labels: Labels, some: slice) -> Tensor:
        pairs = zip(logits, labels.keep, strict=True)
        return torch.stack([F.binary_cross_entropy_with_logits(values, keep[some]) for values, keep in pairs]).sum()

    def save(self) -> None:
        """Write ``last.pt`` (everything, to go on from) and ``last.safetensors`` (the averaged weights)."""
        state = {
            "config": asdict(self.config),
            "net": self.net.state_dict(),
            "averaged": self.averaged.state_dict(),
            "labeller": self.labeller.state_dict(),
            "optimizer": self._optimizer_state(),
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
            "rng": torch.get_rng_state(),
        }
        partial = self.folder / "last.pt.partial"
        torch.save(state, partial)
        partial.rename(self.folder / "last.pt")
        checkpoint.save(self.averaged, self.folder / "last.safetensors", self.provenance())

    def resume(self) -> None:
        """Go on from ``last.pt`` in the folder."""
        self._load(self.folder / "last.pt")

    def branch(self, folder: Path) -> None:
        """Go on from another run's ``last.pt`` under this configuration; a labeller of another kind begins anew."""
        self._load(folder / "last.pt")

    def _load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.averaged.load_state_dict(state["averaged"])
        if state["config"]["labels"] == self.config.labels:
            self.labeller.load_state_dict(state["labeller"])
        self._load_optimizer(state["optimizer"])
        self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]
        torch.set_rng_state(state["rng"].cpu())

    def _optimizer_state(self) -> dict[str, Any]:
        """Moments by parameter name, so that they survive another labeller."""
        return {self.names[index]: moments for index, moments in self.optimizer.state_dict()["state"].items()}

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        state = self.optimizer.state_dict()
        state["state"] = {index: saved[name] for index, name in enumerate(self.names) if name in saved}
        self.optimizer.load_state_dict(state)

    def provenance(self) -> dict[str, Any]:
        """What a weights file says of this run."""
        return {
            "steps": self.step,
            "samples": self.samples,
            "minutes": round(self.seconds / 60, 1),
            "device": self.device.type,
            "clips": sorted({shot.clip for shot in self.bank.shots}),
            "training": {key: value for key, value in asdict(self.config).items() if key != "net"},
        }


class _Numbers(torch.utils.data.Sampler[int]):
    """Batch numbers in order."""

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


def _prepare_worker(_: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
