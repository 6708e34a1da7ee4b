"""`ugsp train`: parse, then hand over to `ugsp_net.training`."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ugsp_cli.options import FiniteRange, Talk, talk_options

if TYPE_CHECKING:
    from ugsp_net.training.config import TrainConfig
    from ugsp_net.training.trainer import Trainer

__all__ = ["train"]


@click.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of videos, or of folders of pictures, to learn from; everything below it is used. Vimeo90K's folder "
    "gives the sequences of its training list.",
)
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the run: last.safetensors (use it with --weights), last.pt (to go on from), log.jsonl, curve.html.",
)
@click.option("--minutes", type=FiniteRange(min=0, min_open=True), help="Train for so long, by the clock.")
@click.option("--steps", type=click.IntRange(min=1), help="Train for so many steps instead.")
@click.option("--from", "start", metavar="PATH|NAME", help="Begin with these weights (a file, or a name that ships).")
@click.option("--resume", is_flag=True, help="Go on from last.pt in the run's folder.")
@click.option(
    "--validate",
    "held_out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of clips to measure on every few minutes. Default: one clip in twenty of --data, not trained on.",
)
@click.option(
    "--preset",
    type=click.Choice(["default", "paper"]),
    default="default",
    show_default=True,
    help="Settings to begin with: this project's, or the paper's network, losses and schedules (for GPUs).",
)
@click.option(
    "--variant",
    type=click.Choice(["plain", "distill", "refine"]),
    default="plain",
    show_default=True,
    help="The paper's variants: flow distillation, or a refinement network after the last level.",
)
@click.option("--size", type=click.IntRange(min=64), help="Side of the crops, pixels. Default: 128 (paper: 224).")
@click.option("--batch", type=click.IntRange(min=1), help="Crops in a step of each process. Default: 16 (paper: 32).")
@click.option(
    "--rate", type=FiniteRange(min=0, min_open=True), help="Highest learning rate. Default: 5e-4; --from: 2e-4."
)
@click.option(
    "--prune-from",
    type=FiniteRange(0, 1),
    help="Share of the run after which pruning is trained too. Default: 0.45; --from: 0.",
)
@click.option("--labels", type=click.Choice(["change", "uncertainty"]), help="What the masks learn to follow.")
@click.option("--pruning/--no-pruning", default=True, help="Train the pruned branch. Default: on.")
@click.option("--supervision/--no-supervision", default=True, help="Show the masks what to keep. Default: on.")
@click.option("--contrast/--no-contrast", default=True, help="Hold pruned features to unpruned ones. Default: on.")
@click.option(
    "--teacher/--no-teacher",
    default=None,
    help="Learn the motion of real clips from OpenCV's DIS optical flow (needs the train extra). Default: on.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the decoded clips are kept (about 0.5 MB a frame). Default: inside the run's folder.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that make batches. Default: 1; with CUDA, one for each core but one.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@talk_options()
def train(
    data: Path,
    folder: Path,
    minutes: float | None,
    steps: int | None,
    start: str | None,
    resume: bool,
    held_out: Path | None,
    preset: str,
    variant: str,
    size: int | None,
    batch: int | None,
    rate: float | None,
    prune_from: float | None,
    labels: str | None,
    pruning: bool,
    supervision: bool,
    contrast: bool,
    teacher: bool | None,
    cache: Path | None,
    workers: int | None,
    seed: int,
    device: str,
    talk: Talk,
) -> None:
    """Train a network on a folder of videos, from nothing or from weights.

    A run can be stopped at any time and gone on with: add --resume to the same command. Several GPUs: put
    `torchrun --nproc-per-node N -m` before the command, with ugsp_cli in place of ugsp.

    \b
    ugsp train --data clips/ -o runs/first --minutes 120
    ugsp train --data clips/ -o runs/mine --from ugsp --minutes 15 --rate 1e-4
    """
    from dataclasses import replace

    from ugsp_cli.errors import UsageError

    if (minutes is None) == (steps is None):
        raise UsageError("how long to train is not clear", "Give either --minutes or --steps.")
    if size is not None and size % 16:
        raise UsageError(f"crops of {size} pixels do not fit the network", "Give --size a multiple of 16.")
    if start and preset == "paper":
        raise UsageError("--from names a network and so does --preset paper", "Leave out one of the two.")

    from ugsp_cli.engine import load_weights, resolve_device
    from ugsp_net.config import NetConfig
    from ugsp_net.training.config import TrainConfig

    weights = load_weights(start) if start else None
    if preset == "paper":
        config = TrainConfig.paper(variant)
    else:
        net = weights.net.config if weights else NetConfig(refine=variant == "refine")
        if net.refine != (variant == "refine"):
            fitting = "refine" if net.refine else "plain"
            raise UsageError(f"--from {start} is not a network of --variant {variant}", f"Give --variant {fitting}.")
        config = TrainConfig(net=net, variant=variant)
        if weights:  # whose masks have learnt already
            config = replace(config, rate=2e-4, prune_from=0.0)
    plan: dict[str, Any] = {"size": size, "batch": batch, "teacher": teacher}
    changes: dict[str, Any] = {
        "plan": replace(config.plan, **{name: value for name, value in plan.items() if value is not None}),
        # By the clock the number of steps is not known; it only paces the change from synthetic to real samples.
        "steps": steps or max(1, round((minutes or 0) * 120)),
        "minutes": minutes,
        "seed": seed,
        "rate": rate or config.rate,
        "labels": labels or config.labels,
        "prune_from": config.prune_from if prune_from is None else prune_from,
    }
    if not pruning:
        changes["prune_from"] = 1.0
    if not supervision:
        changes |= {"label_weight": 0.0, "label_weight_last": None}
    if not contrast:
        changes["contrast_weight"] = 0.0
    _run(
        replace(config, **changes),
        data,
        folder,
        held_out,
        cache,
        resume,
        start,
        rate,
        workers,
        resolve_device(device),
        talk,
    )


def _run(
    config: TrainConfig,
    data: Path,
    folder: Path,
    held_out: Path | None,
    cache: Path | None,
    resume: bool,
    start: str | None,
    rate: float | None,
    workers: int | None,
    device: str,
    talk: Talk,
) -> None:
    """Open the clips and train, in this process alone or as one of torchrun's."""
    import importlib.util
    import os

    import torch
    from torch import distributed

    from ugsp_cli.console import print_note, stdout
    from ugsp_cli.engine import load_weights
    from ugsp_cli.errors import ExitCode, InputError, UgspError, UsageError
    from ugsp_cli.stages import one_interrupt
    from ugsp_net.training.clips import open_bank
    from ugsp_net.training.device import DeviceBatches
    from ugsp_net.training.trainer import DamagedError, Trainer
    from ugsp_net.training.validation import Validation, hold_out

    if resume != (folder / "last.pt").is_file():
        if resume:
            raise InputError(f"there is no run to resume in {folder}", "Leave out --resume to begin one.")
        raise InputError(f"there is a run in {folder} already", "Go on with it by --resume, or name another folder.")
    if config.plan.teacher and importlib.util.find_spec("cv2") is None:
        raise UsageError("the optical-flow teacher needs OpenCV", "pip install 'ugsp[train]', or give --no-teacher.")
    where = torch.device(device)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        if where.type == "cuda":
            where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(where)
        distributed.init_process_group("nccl" if where.type == "cuda" else "gloo")
    first = not several or distributed.get_rank() == 0
    try:
        try:
            # The first process decodes; the others find what it left.
            if not first:
                distributed.barrier()
            with one_interrupt():
                bank = open_bank(data, cache or folder)
                shown = None if held_out is None else open_bank(held_out, cache or folder)
            validation = None
            if shown is not None:
                validation = Validation(shown)
            else:
                bank, kept_out = hold_out(bank)
                validation = Validation(kept_out) if kept_out else None
            if several and first:
                distributed.barrier()
            bank.large()  # there must be some: raises ValueError
        except (FileNotFoundError, ValueError) as error:
            raise InputError(str(error), "See ugsp train --help.") from error
        if validation is None and first and not talk.quiet:
            print_note("too few clips to keep one out of training: give --validate to see what the run is worth")
        dataset = None
        if where.type == "cuda" and not config.plan.teacher:
            dataset = DeviceBatches(bank, config.plan, config.seed, config.steps, where)
            workers = 0
        if workers is None:
            workers = max(1, (os.cpu_count() or 2) - 1) if where.type == "cuda" else 1
        trainer = Trainer(config, bank, folder, where, validation=validation, dataset=dataset, workers=workers)
        if resume:
            try:
                trainer.resume(keep_rate=rate is None)
            except DamagedError as error:
                raise InputError(str(error), f"Begin another run --from {folder / 'last.safetensors'}.") from error
            except ValueError as error:
                raise InputError(str(error), "Give the options that it was begun with.") from error
        elif start:
            trainer.start_from(load_weights(start).net)
        try:
            with _stops_at_interrupt(trainer, enabled=not several):
                trainer.run(report=_Report(quiet=talk.quiet))
        except RuntimeError as error:
            if "not finite" in str(error):
                raise UgspError(str(error), "See log.jsonl in the run's folder.") from error
            raise
    finally:
        if several:
            distributed.destroy_process_group()
    if trainer.stopping:
        print_note("stopped; the same command with --resume goes on")
        click.get_current_context().exit(ExitCode.INTERRUPTED)
    if first:
        stdout().print(
            f"{folder / 'last.safetensors'}: {trainer.samples} samples in {trainer.seconds / 60:.1f} minutes"
        )


@contextlib.contextmanager
def _stops_at_interrupt(trainer: Trainer, enabled: bool) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM let the step end and save; a second one ends at once.

    Not where several processes share a run: those must all stop at the same step.
    """
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        if trainer.stopping:
            raise KeyboardInterrupt
        trainer.stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Report:
    """A line for each line of the log: how far, how fast, how long still, and how good."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._quiet = quiet

    def __call__(self, record: dict[str, Any]) -> None:
        if self._quiet:
            return
        if "setback" in record:
            text = f"step {record['step']}: the gradient was not finite; {record['setback']} steps undone"
        elif "validation" in record:
            found = record["validation"]
            whole, pruned = (f"{found['psnr' + of]:.2f} dB, SSIM {found['ssim' + of]:.4f}" for of in ("", "_pruned"))
            skipped = f"{100 * found['skipped']:.0f} % skipped"
            text = f"step {record['step']}: validation {whole}; pruned {pruned}, {skipped}"
        else:
            left = record["seconds_left"]
            text = (
                f"step {record['step']} ({100 * record['progress']:.1f} %, {left // 3600}:{left // 60 % 60:02d}:"
                f"{left % 60:02d} left): {record['samples_per_second']:.1f} samples/s, loss {record['loss']:.4f}, "
                f"{record['psnr']:.2f} dB"
            )
        self._console.print(text, soft_wrap=True)
