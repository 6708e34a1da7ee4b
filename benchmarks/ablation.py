"""What each part of the training is worth: the same small network, trained for the same time with and without it.

    python benchmarks/ablation.py train CLIPS RUNS JOB [--cache DIR] [--scale 1.0]
    python benchmarks/ablation.py report RUNS DEVELOPMENT_CLIPS --json FILE

The pruning jobs (the paper's table: unpruned, pruned, + labels, + self-contrast, and this project's labels) share one
first phase of 15 minutes, in which nothing is pruned and no mask learns, and go on from it for 30 minutes each, with the
same batches. The others repeat the first ten minutes of that phase without one of the things that make it efficient.
Minutes are processor minutes of one training thread, so that other work on the machine does not count; batches are
made once, by a second process, and kept for all jobs. Every job can be stopped and started again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ugsp_net.config import NetConfig
from ugsp_net.training.clips import open_bank
from ugsp_net.training.data import Batch, Batches, BatchPlan
from ugsp_net.training.trainer import TrainConfig, Trainer

NET = NetConfig(
    name="ugsp-small",
    encoder_channels=(12, 24, 36, 48),
    widths=(24, 36, 48, 64),
    depths=(3, 3, 3, 3),
    matching_channels=(0, 8, 16, 32),
)
MINUTES = 45.0
PHASE1 = 15 / 45
SHORT = 10 / 45
STEPS = 4400
"""Paces the change from synthetic to real samples: about what 45 minutes hold."""

BASE = TrainConfig(
    net=NET,
    steps=STEPS,
    minutes=MINUTES,
    rate=1e-3,
    warmup=100,
    labels="uncertainty",
    density=(0.5, 0.4, 0.3),
    compute=0.35,
    prune_from=1.0,
    label_weight=0.0,
    contrast_weight=0.0,
)
PRUNED = replace(BASE, prune_from=PHASE1)


@dataclass(frozen=True)
class Job:
    """One run."""

    config: TrainConfig
    until: float = 1.0
    after: str | None = None
    """The job whose end this one goes on from."""


JOBS = {
    "short": Job(BASE, SHORT),
    "phase1": Job(BASE, PHASE1, after="short"),
    "unpruned": Job(BASE, after="phase1"),
    "pruned": Job(PRUNED, after="phase1"),
    "labels": Job(replace(PRUNED, label_weight=0.02), after="phase1"),
    "contrast": Job(replace(PRUNED, label_weight=0.02, contrast_weight=0.01), after="phase1"),
    "change": Job(replace(PRUNED, label_weight=0.02, contrast_weight=0.01, labels="change"), after="phase1"),
    "no-matching": Job(
        replace(BASE, net=replace(NET, matching_radius=(0, 0, 0, 0), matching_channels=(0, 0, 0, 0))), SHORT
    ),
    "no-synthetic": Job(replace(BASE, plan=BatchPlan(synthetic_first=0.0, synthetic_last=0.0)), SHORT),
    "no-teacher": Job(replace(BASE, plan=BatchPlan(teacher=False)), SHORT),
}


class Kept(Dataset[Batch]):
    """Batches by number, each made once and kept in a folder for the jobs that want the same."""

    def __init__(self, batches: Batches, folder: Path) -> None:
        self.batches = batches
        self.folder = folder

    def __getitem__(self, index: int) -> Batch:
        path = self.folder / f"{index:06d}.pt"
        if not path.exists():
            values: dict[str, Any] = {name: getattr(self.batches[index], name) for name in Batch.__dataclass_fields__}
            partial = path.with_suffix(f".{os.getpid()}")
            torch.save(values, partial)
            partial.rename(path)
        return Batch(**torch.load(path, weights_only=True))


def train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    job = JOBS[arguments.job]
    config = replace(job.config, minutes=MINUTES * arguments.scale)
    cache = arguments.cache or arguments.runs
    bank = open_bank(arguments.clips, cache)
    plan = config.plan
    kind = "".join(str(value) for value in dataclasses.astuple(plan))
    folder = cache / f"batches-{abs(hash_text(kind)):x}"
    folder.mkdir(parents=True, exist_ok=True)
    dataset = Kept(Batches(bank, plan, config.seed, config.steps), folder)
    run = arguments.runs / arguments.job
    trainer = Trainer(config, bank, run, torch.device("cpu"), dataset, time.process_time)
    if (run / "last.pt").exists():
        trainer.resume()
    elif job.after:
        trainer.branch(arguments.runs / job.after)
    trainer.run(job.until)


def hash_text(text: str) -> int:
    import hashlib

    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    trains = commands.add_parser("train")
    trains.add_argument("clips", type=Path)
    trains.add_argument("runs", type=Path)
    trains.add_argument("job", choices=sorted(JOBS))
    trains.add_argument("--cache", type=Path, help="for decoded clips and batches (20 GB); default: RUNS")
    trains.add_argument("--scale", type=float, default=1.0, help="of every job's time")
    trains.set_defaults(run=train)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
