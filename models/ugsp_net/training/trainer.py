"""The training loop: an unpruned network that learns where it is needed, and a pruned one that follows its labels.

Both of the paper's phases (section 3.4) in one run. Throughout, the unpruned branch learns to interpolate and the mask
heads learn which blocks to compute; past ``prune_from`` a pruned branch with sampled masks is trained beside it. What
is minimised is in `objective`.

Several processes, started by torchrun, share a run: each takes batches of its own, and gradients are averaged.
"""

from __future__ import annotations

import json
import math
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ugsp_net import checkpoint
from ugsp_net.allocator import keep_freed_memory
from ugsp_net.network import UGSP, channels_last
from ugsp_net.training import curve
from ugsp_net.training.clips import ClipBank
from ugsp_net.training.config import TrainConfig
from ugsp_net.training.data import Batch, Batches
from ugsp_net.training.objective import Objective
from ugsp_net.training.validation import Validation

__all__ = ["DamagedError", "TrainConfig", "Trainer"]

Record = dict[str, Any]
"""One line of the log."""

VALIDATION_SHARE = 0.05
"""Of a run's time that measuring itself may take, about."""
MOST_SETBACKS = 3
"""How often a run goes back to its last good checkpoint before it has written another."""


class DamagedError(Exception):
    """A file to go on from that cannot be read."""


class Trainer:
    """State of one run; ``run`` goes on from wherever it is."""

    def __init__(
        self,
        config: TrainConfig,
        bank: ClipBank,
        folder: Path,
        device: torch.device,
        *,
        validation: Validation | None = None,
        dataset: Dataset[Batch] | None = None,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """folder: where the run's files go. dataset: batches by number, instead of those that the plan makes of the
        bank. workers: processes that make batches; 0 makes them here. clock: counts the schedule's minutes, in seconds
        (benchmarks count processor time, which other work on the machine does not change)."""
        keep_freed_memory()
        self.rank, self.processes = 0, 1
        if distributed.is_available() and distributed.is_initialized():
            self.rank, self.processes = distributed.get_rank(), distributed.get_world_size()
        torch.manual_seed(config.seed)
        self.config = config
        self.bank = bank
        self.folder = folder
        self.device = device
        self.validation = validation
        self.dataset = dataset or Batches(bank, config.plan, config.seed, config.steps * self.processes)
        self.workers = workers
        self.clock = clock
        self.objective = Objective(config).to(device)
        self.averaged = channels_last(UGSP(config.net).to(device))
        self.averaged.load_state_dict(self.net.state_dict())
        self.averaged.requires_grad_(False)
        named = dict(self.objective.named_parameters())
        gates = [name for name in named if name.startswith("net.gates.")]
        others = [name for name in named if name not in gates]
        self.names = [*others, *gates]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [named[name] for name in others], "scale": 1.0},
                {"params": [named[name] for name in gates], "scale": config.gate_rate},
            ],
            lr=config.rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
        )
        self.model: nn.Module = self.objective
        if self.processes > 1:
            self.model = DistributedDataParallel(self.objective)
            torch.manual_seed(config.seed + self.rank)  # masks are sampled: every process its own
        self.step = 0
        self.batches = 0
        """Batches taken so far: those of undone steps count too, so that a bad one is not met again."""
        self.samples = 0
        self.seconds = 0.0
        self.stopping = False
        """Set (by a signal's handler, say) to end ``run`` after the step that it is in."""
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def net(self) -> UGSP:
        """The network that is trained (``averaged`` is the one that ships)."""
        return self.objective.net

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

    def run(
        self,
        until: float = 1.0,
        log_every: int = 50,
        save_every_seconds: float = 180.0,
        report: Callable[[Record], None] = lambda record: print(json.dumps(record), flush=True),
    ) -> None:
        """Train until that share of the schedule is done. Checkpoints, a log of JSON lines and a page with its curves
        go to the folder; every line of the log is also reported.

        Where the gradient is not finite, the run goes back to its last checkpoint. Raises RuntimeError when that does
        not help.
        """
        sums: dict[str, Tensor] = {}
        counted, setbacks = 0, 0
        since = saved = time.monotonic()
        due = saved + save_every_seconds
        self.save()  # there must be something to go back to
        self._wait()
        with _batches(self._loader()) as batches:
            while self.progress < until and not self.stopping:
                begun = self.clock()
                values = self._train_step(next(batches))
                self.seconds = self._first_of(self.seconds + self.clock() - begun)
                means = None
                if values is not None:
                    for name, value in values.items():
                        sums[name] = sums[name] + value if name in sums else value
                    counted += 1
                    if self.step % log_every and self.progress < until:
                        continue
                    means = self._means(sums, counted)
                now = time.monotonic()
                if means is None or not math.isfinite(means["gradient"]):
                    setbacks += 1
                    if setbacks > MOST_SETBACKS:
                        raise RuntimeError(
                            f"the gradient was not finite {setbacks} times after step {self.step}: "
                            "go on with --resume and a lower --rate"
                        )
                    undone = self.step
                    self._load(self.folder / "last.pt", back=True)
                    self._log({"step": self.step, "setback": undone - self.step}, report)
                else:
                    trained = counted * self.config.plan.batch * self.processes
                    self._log(
                        {
                            "step": self.step,
                            "samples": self.samples,
                            "minutes": round(self.seconds / 60, 2),
                            "progress": round(self.progress, 4),
                            "seconds_left": round(self._seconds_left((now - since) / counted)),
                            "samples_per_second": round(trained / (now - since), 1),
                            **{name: round(value, 5) for name, value in means.items()},
                        },
                        report,
                    )
                    if now - saved > save_every_seconds and self.progress < until:
                        self.save()
                        saved, setbacks = time.monotonic(), 0
                        if saved > due:
                            self._validate(report)
                            ended = time.monotonic()
                            due = ended + max(save_every_seconds, (ended - saved) / VALIDATION_SHARE)
                sums, counted, since = {}, 0, time.monotonic()
        self.save()
        if not self.stopping:
            self._validate(report)
        self._wait()

    def _loader(self) -> DataLoader[Batch]:
        numbers = range(self.batches * self.processes + self.rank, 1 << 40, self.processes)
        return DataLoader(
            self.dataset,
            batch_size=None,
            sampler=_Numbers(numbers),
            num_workers=self.workers,
            prefetch_factor=6 if self.workers else None,
            worker_init_fn=_prepare_worker,
            pin_memory=self.device.type == "cuda" and self.workers > 0,
            # Its own generator: a loader draws a seed when it starts, which must not shift the masks' random numbers.
            generator=torch.Generator(),
        )

    def _train_step(self, batch: Batch) -> dict[str, Tensor] | None:
        """One step; what it was made of, or None where it was not taken because its loss or gradient was not finite.

        On CUDA nobody looks here, since looking means waiting for the device: the log finds out.
        """
        config = self.config
        self.batches += 1
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        total, values = self.model(batch, self.progress)
        # Before the gradient: where a flow is not finite, grid_sample's reads outside its picture.
        if not self._finite(total.detach()):
            return None
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), config.clip)
        if not self._finite(norm):
            return None
        self.optimizer.step()
        self.step += 1
        self.samples += batch.t.shape[0] * self.processes
        decay = min(config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            pairs = zip(self.averaged.parameters(), self.net.parameters(), strict=True)
            averaged, current = (list(group) for group in zip(*pairs, strict=True))
            torch._foreach_lerp_(averaged, current, 1 - decay)
        return {**values, "loss": total.detach(), "gradient": norm.detach(), "rate": torch.tensor(rate)}

    def _finite(self, value: Tensor) -> bool:
        """Whether a scalar is finite in all processes; on CUDA not known, and said to be."""
        if self.device.type == "cuda":
            return True
        flag = value.isfinite().float()
        if self.processes > 1:
            distributed.all_reduce(flag, distributed.ReduceOp.MIN)
        return bool(flag)

    def _rate(self) -> float:
        config = self.config
        if self.step < config.warmup:
            return config.rate * (self.step + 1) / config.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return config.rate_last + (config.rate - config.rate_last) * cosine

    def _means(self, sums: dict[str, Tensor], count: int) -> dict[str, float]:
        """Means per step, over all processes."""
        totals = torch.stack([total.to(self.device, torch.float32) for total in sums.values()])
        if self.processes > 1:
            distributed.all_reduce(totals)
        return dict(zip(sums, (totals / (count * self.processes)).tolist(), strict=True))

    def _seconds_left(self, seconds_per_step: float) -> float:
        if self.config.minutes is not None:
            return max(0.0, 60 * self.config.minutes - self.seconds)
        return (self.config.steps - self.step) * seconds_per_step

    def _log(self, record: Record, report: Callable[[Record], None]) -> None:
        if self.rank == 0:
            with (self.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            report(record)

    def _validate(self, report: Callable[[Record], None]) -> None:
        """Measure the averaged weights on clips that are not trained on, and draw the curves."""
        if self.rank:
            return
        if self.validation is not None:
            measured = {name: round(value, 4) for name, value in self.validation.measure(self.averaged).items()}
            minutes = round(self.seconds / 60, 2)
            self._log({"step": self.step, "samples": self.samples, "minutes": minutes, "validation": measured}, report)
        curve.write(self.folder / "log.jsonl", self.folder / "curve.html")

    def save(self) -> None:
        """Write ``last.pt`` (everything, to go on from) and ``last.safetensors`` (the averaged weights)."""
        if self.rank:
            return
        moments = self.optimizer.state_dict()["state"]
        state = {
            "config": asdict(self.config),
            "objective": self.objective.state_dict(),
            "averaged": self.averaged.state_dict(),
            # By name, so that they survive another kind of labels.
            "optimizer": {self.names[index]: value for index, value in moments.items()},
            "step": self.step,
            "batches": self.batches,
            "samples": self.samples,
            "seconds": self.seconds,
            "rng": torch.get_rng_state(),
            "rng_device": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        partial = self.folder / "last.pt.partial"
        torch.save(state, partial)
        partial.rename(self.folder / "last.pt")
        checkpoint.save(self.averaged, self.folder / "last.safetensors", self.provenance())

    def resume(self, keep_rate: bool = True) -> None:
        """Go on from ``last.pt`` in the folder, exactly. The length of the schedule may be another, and the learning
        rate where the saved one is not to be kept; raises ValueError where anything else of the configuration is, and
        DamagedError."""
        saved = self._load(self.folder / "last.pt")
        ours = json.loads(json.dumps(asdict(self.config)))
        theirs = json.loads(json.dumps(saved["config"]))
        free = {"steps", "minutes", "rate"}
        if keep_rate:
            self.config = replace(self.config, rate=theirs["rate"])
        changed = sorted(
            name for name in {*ours, *theirs} - free if ours.get(name, None) != theirs.get(name, ours.get(name))
        )
        if changed:
            raise ValueError(f"the run in {self.folder} was begun with another {', '.join(changed)}")

    def branch(self, folder: Path) -> None:
        """Go on from another run's ``last.pt`` under this configuration; a labeller of another kind begins anew."""
        self._load(folder / "last.pt")

    def _load(self, path: Path, back: bool = False) -> dict[str, Any]:
        """back: only undo what was learnt since; the clock, the batches and the random numbers go on."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            known = state["objective"]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise DamagedError(f"{path} is damaged: {type(error).__name__}") from error
        if state["config"]["labels"] != self.config.labels:
            fresh = self.objective.labeller.state_dict(prefix="labeller.")
            known = {name: value for name, value in known.items() if not name.startswith("labeller.")} | fresh
        self.objective.load_state_dict(known)
        self.averaged.load_state_dict(state["averaged"])
        optimizer = self.optimizer.state_dict()
        moments = {index: state["optimizer"].get(name) for index, name in enumerate(self.names)}
        optimizer["state"] = {index: value for index, value in moments.items() if value is not None}
        self.optimizer.load_state_dict(optimizer)
        self.step, self.samples = state["step"], state["samples"]
        if not back:
            self.batches, self.seconds = state["batches"], state["seconds"]
            if self.rank == 0:
                torch.set_rng_state(state["rng"].cpu())
                if state["rng_device"] is not None:
                    torch.cuda.set_rng_state(state["rng_device"].cpu(), self.device)
        return state

    def provenance(self) -> dict[str, Any]:
        """What a weights file says of this run."""
        return {
            "steps": self.step,
            "samples": self.samples,
            "minutes": round(self.seconds / 60, 1),
            "device": self.device.type,
            "processes": self.processes,
            "clips": sorted({shot.clip for shot in self.bank.shots}),
            "training": {key: value for key, value in asdict(self.config).items() if key != "net"},
        }

    def _first_of(self, seconds: float) -> float:
        """The first process's clock, which is everybody's where the schedule follows the clock."""
        if self.processes == 1 or self.config.minutes is None:
            return seconds
        shared = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, 0)
        return float(shared)

    def _wait(self) -> None:
        if self.processes > 1:
            distributed.barrier()


@contextmanager
def _batches(loader: DataLoader[Batch]) -> Iterator[Iterator[Batch]]:
    """The batches of a loader. Its processes, which ignore signals, have ended afterwards, also after an error: whose
    traceback would keep them, and the interpreter would wait for them forever."""
    batches = iter(loader)
    try:
        yield batches
    finally:
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()


class _Numbers(torch.utils.data.Sampler[int]):
    """Batch numbers in order."""

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


def _prepare_worker(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they may reach all processes; the main one decides
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()
