"""How fast training is, what makes it so, and where the time of a step goes.

    python benchmarks/training.py CLIPS [--cache DIR] [--device cpu] [--json FILE]

From a plain step (fp32, PReLU, the C library's own handling of freed memory, batches made in the step itself) one thing
after the other is switched to what `ugsp train` does; each row is measured in a fresh process, on the same batches. The
last rows are the two phases of a run. For these, a profile sums the processor time of operators by kind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from ugsp_net.config import NetConfig
from ugsp_net.training import trainer as training
from ugsp_net.training.clips import open_bank
from ugsp_net.training.data import BatchPlan
from ugsp_net.training.trainer import TrainConfig, Trainer

ROWS: dict[str, dict[str, Any]] = {
    "plain": {"precision": "fp32", "activation": "prelu", "keep": False, "workers": 0},
    "+ bf16": {"activation": "prelu", "keep": False, "workers": 0},
    "+ leaky ReLU": {"keep": False, "workers": 0},
    "+ freed memory kept": {"workers": 0},
    "+ batches made ahead": {},
    "with the pruned branch": {"prune_from": 0.0},
}
KINDS = {
    "convolution": ("convolution", "conv2d", "conv_transpose"),
    "grid_sample": ("grid_sampl",),
    "activation": ("relu", "sigmoid"),
    "copy, cast, concatenation": ("copy_", "cat", "_to_copy", "contiguous", "clone", "to_dense"),
    "optimizer": ("_foreach", "optimizer", "adam"),
    "pooling, enlarging": ("pool", "upsample", "interpolate"),
}
WARM, STEPS = 3, 12


def measure(arguments: argparse.Namespace) -> None:
    """One row, in this process; prints JSON."""
    row = ROWS[arguments.row]
    if not row.get("keep", True):
        training.keep_freed_memory = lambda: None  # type: ignore[attr-defined]
    config = TrainConfig(
        net=replace(NetConfig(), activation=row.get("activation", "leaky")),
        plan=BatchPlan(size=arguments.size, batch=arguments.batch),
        precision=row.get("precision", "bf16"),
        prune_from=row.get("prune_from", 1.0),
    )
    bank = open_bank(arguments.folder, arguments.cache)
    device = torch.device(arguments.device)
    trainer = Trainer(config, bank, arguments.cache / "unused", device, workers=row.get("workers", arguments.workers))
    batches = iter(trainer._loader())

    def done() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(WARM):
        trainer._train_step(next(batches))
    begun, waited = done(), 0.0
    for _ in range(STEPS):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        trainer._train_step(batch)
    seconds = done() - begun
    result: dict[str, Any] = {
        "samples_per_second": STEPS * config.plan.batch / seconds,
        "waiting_for_batches": waited / seconds,
    }
    if not row or "prune_from" in row:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(3):
                trainer._train_step(batch)
        sums = dict.fromkeys([*KINDS, "other"], 0.0)
        for event in profiler.key_averages():
            kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), "other")
            backward = "backward" in event.key.lower()
            name = f"{kind}, backward" if backward and kind in ("convolution", "grid_sample") else kind
            sums[name] = sums.get(name, 0.0) + event.self_cpu_time_total
        total = sum(sums.values())
        result["profile"] = {kind: value / total for kind, value in sorted(sums.items(), key=lambda item: -item[1])}
    print(json.dumps(result))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs"), help="where decoded clips are kept")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--row", choices=sorted(ROWS), help="measure this row alone and print JSON")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.row:
        measure(arguments)
        return
    results = {}
    table = Table(title="Training, samples per second")
    for column in ("", "samples/s", "against plain", "waiting for batches"):
        table.add_column(column, justify="right" if column else "left")
    for row in ROWS:
        command = [sys.executable, __file__, *sys.argv[1:], "--row", row]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[row] = json.loads(done.stdout.splitlines()[-1])
        speed, waiting = results[row]["samples_per_second"], results[row]["waiting_for_batches"]
        ratio = speed / results["plain"]["samples_per_second"]
        table.add_row(row, f"{speed:.1f}", f"{ratio:.2f}", f"{100 * waiting:.0f} %")
    console = Console(width=110)
    console.print(table)
    for row, result in results.items():
        if "profile" in result:
            shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in result["profile"].items())
            console.print(f"{row}: {shares}")
    if arguments.json:
        machine = {"device": arguments.device, "threads": torch.get_num_threads(), "batch": arguments.batch}
        document = {"machine": machine, "size": arguments.size, "rows": results}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
