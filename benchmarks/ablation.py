"""What each part of the training is worth: the same small network, trained for the same time with and without it.

    python benchmarks/ablation.py train CLIPS RUNS JOB [--cache DIR] [--scale 1.0]
    python benchmarks/ablation.py report RUNS DEVELOPMENT_CLIPS --json FILE
    python benchmarks/ablation.py blocks RUNS DEVELOPMENT_CLIPS

The pruning jobs (the paper's table: unpruned, pruned, + labels, + self-contrast, and this project's labels) share one
first phase of 15 minutes, in which nothing is pruned and no mask learns, and go on from it for 30 minutes each, with
the same batches. The others repeat the first ten minutes of that phase without one of the things that help it.
Minutes are processor minutes of one training thread, so that other work on the machine does not count; batches are
made once, by a second process, and kept for all jobs. Every job can be stopped and started again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from quality import picture, run_network, tasks
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torch.utils.data import Dataset

from ugsp_cli.engine import EngineOptions, Interpolator
from ugsp_net import checkpoint
from ugsp_net.config import NetConfig
from ugsp_net.cost import network_cost
from ugsp_net.metrics import psnr
from ugsp_net.training.clips import open_bank
from ugsp_net.training.data import Batch, Batches, BatchPlan
from ugsp_net.training.labels import UncertaintyLabels, make_labeller
from ugsp_net.training.trainer import TrainConfig, Trainer

NET = NetConfig(
    name="ugsp-small",
    encoder_channels=(12, 24, 36, 48),
    widths=(24, 36, 48, 64),
    depths=(3, 3, 3, 3),
    matching_channels=(0, 8, 16, 32),
)
MINUTES = 45.0
KEEP = 0.4
"""Share of every level's blocks that is also kept, so that masks can be compared at equal cost."""
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
    "no-search": Job(replace(BASE, net=replace(NET, search=False)), SHORT),
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
            partial = path.with_suffix(f".{os.getpid()}")
            torch.save(vars(self.batches[index]), partial)
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
    trainer = Trainer(config, bank, run, torch.device("cpu"), dataset=dataset, clock=time.process_time)
    if (run / "last.pt").exists():
        trainer.resume()
    elif job.after:
        trainer.branch(arguments.runs / job.after)
    trainer.run(job.until)
    checkpoint.save(trainer.net, run / "raw.safetensors", trainer.provenance())


@torch.inference_mode()
def blocks(arguments: argparse.Namespace) -> None:
    """Of the squared error that the pruned levels remove, the share in the 40 % of blocks that score highest: by that
    error itself (oracle), by the change, by the uncertainty, and by the first gate."""
    found: dict[str, dict[str, list[float]]] = {}
    t = torch.tensor([0.5])
    for task in tasks(arguments.clips, "half", arguments.only.split(",")):
        for index, _, true in task.wanted[2::9][:2]:
            shown = [task.kept[index], task.kept[index + 1], true]
            first, second, truth = (
                torch.from_numpy(picture(one.planes, one)).permute(2, 0, 1)[None].float() / 255 for one in shown
            )
            height, width = (side - side % NET.alignment for side in truth.shape[-2:])
            first, second, truth = (one[..., :height, :width].contiguous() for one in (first, second, truth))
            for name, job in JOBS.items():
                run = arguments.runs / name
                if job.config.prune_from == 1 or not run.exists():
                    continue
                net = checkpoint.load(run / "last.safetensors").net
                with torch.autocast("cpu", torch.bfloat16):
                    full = net(first, second, t)
                shortcut = net.shortcut(first, second, full.states[0], t)
                removed = (shortcut - truth).square() - (full.frame - truth).square()
                gain = F.avg_pool2d(removed.mean(1, keepdim=True), NET.block)
                change = (shortcut - full.frame).square().mean(1, keepdim=True)
                scores = {"oracle": gain, "gate": full.logits[0], "change": F.avg_pool2d(change, NET.block)}
                if job.config.labels == "uncertainty" and job.config.label_weight:
                    state = torch.load(run / "last.pt", weights_only=True)["objective"]
                    labeller = make_labeller(job.config)
                    own = {key.removeprefix("labeller."): value for key, value in state.items() if "labeller." in key}
                    labeller.load_state_dict(own)
                    assert isinstance(labeller, UncertaintyLabels)
                    assert full.hidden is not None
                    scale = labeller.enlarge(F.relu(full.hidden.float())).clamp(-8, 1).exp()
                    scores["uncertainty"] = F.avg_pool2d(scale, NET.block)
                for score, values in scores.items():
                    chosen = values.flatten().topk(round(KEEP * values.numel())).indices
                    share = float(gain.flatten()[chosen].sum() / gain.clamp(min=0).sum())
                    found.setdefault(name, {}).setdefault(score, []).append(share)
    print(json.dumps({name: {score: fmean(some) for score, some in row.items()} for name, row in found.items()}))


def at_the_end(log: Path) -> dict[str, float]:
    """How far a run got, and, of its last 500 steps, what sampled masks kept and lost on the training crops."""
    records = [record for record in map(json.loads, log.read_text().splitlines()) if "psnr" in record][-10:]
    last = records[-1]
    found = {"steps": last["step"], "samples": last["samples"], "processor_minutes": last["minutes"]}
    for name in ("loss_of_psnr", "kept_8", "kept_4", "kept_2"):
        if name in last:
            found[f"crops_{name}"] = fmean(record[name] for record in records)
    return found


def hash_text(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def report(arguments: argparse.Namespace) -> None:
    """Restore every second frame of the development clips with every run's weights."""
    runs: Path = arguments.runs
    wanted: dict[tuple[str, str], Interpolator] = {}
    for name, job in JOBS.items():
        files = {name: runs / name / "last.safetensors", f"{name}, not averaged": runs / name / "raw.safetensors"}
        for title, path in files.items():
            if not path.exists() or (title != name and name not in ("short", "unpruned")):
                continue
            wanted[title, "dense"] = Interpolator(EngineOptions(str(path), pruning=False))
            if job.config.prune_from < 1:
                wanted[title, "masks"] = Interpolator(EngineOptions(str(path)))
                wanted[title, "keep"] = Interpolator(EngineOptions(str(path), keep=KEEP))
    psnrs: dict[tuple[str, str], list[float]] = {key: [] for key in wanted}
    skips: dict[tuple[str, str], list[float]] = {key: [] for key in wanted}
    for task in tasks(arguments.clips, "half", []):
        short = replace(task, wanted=task.wanted[: arguments.frames])
        truths = [picture(truth.planes, truth) for _, _, truth in short.wanted]
        for key, engine in wanted.items():
            made, skipped = run_network(engine, short)
            psnrs[key].append(fmean(psnr(one, truth) for one, truth in zip(made, truths, strict=True)))
            skips[key].append(skipped)
        print(task.clip, file=sys.stderr, flush=True)
    gmacs = network_cost(NET, 448, 256).triplet / 1e9
    rows: dict[str, dict[str, Any]] = {}
    for (title, how), values in psnrs.items():
        row = rows.setdefault(title, {})
        row[f"psnr_{how}"] = fmean(values)
        row[f"clips_{how}"] = values
        if how != "dense":
            row[f"skipped_{how}"] = fmean(skips[title, how])
            row[f"gmacs_{how}"] = gmacs * (1 - fmean(skips[title, how]))
    for title, row in rows.items():
        log = runs / title.split(",")[0] / "log.jsonl"
        row |= at_the_end(log)
    table = Table("", "samples", "unpruned dB", "pruned dB", "skipped", "GMACs", f"keep {KEEP} dB", "skipped")
    for title, row in rows.items():
        cells = [title, str(row["samples"]), f"{row['psnr_dense']:.2f}"]
        for how in ("masks", "keep"):
            if f"psnr_{how}" in row:
                cells += [f"{row[f'psnr_{how}']:.2f}", f"{100 * row[f'skipped_{how}']:.0f} %"]
                cells += [f"{row['gmacs_masks']:.2f}"] * (how == "masks")
        table.add_row(*cells)
    Console(width=120).print(table)
    if arguments.json:
        document = {"net": NET.to_dict(), "gmacs_dense_448x256": gmacs, "keep": KEEP, "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


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
    reports = commands.add_parser("report")
    reports.add_argument("runs", type=Path)
    reports.add_argument("clips", type=Path, help="development clips")
    reports.add_argument("--frames", type=int, default=20, help="restored in each clip")
    reports.add_argument("--json", type=Path)
    reports.set_defaults(run=report)
    shares = commands.add_parser("blocks")
    shares.add_argument("runs", type=Path)
    shares.add_argument("clips", type=Path, help="development clips")
    shares.add_argument(
        "--only", default="bikes,elf,walk,flower,mixed-content,davis-camel,davis-kite-surf,davis-soapbox"
    )
    shares.set_defaults(run=blocks)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
