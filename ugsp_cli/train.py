"""`ugsp train`: parse, then hand over to `ugsp_net.training`."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["train"]


@click.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of videos to learn from; every video below it is used.",
)
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the run: last.safetensors (use it with --weights), last.pt (to go on from) and log.jsonl.",
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Train for so long, by the clock.")
@click.option("--steps", type=click.IntRange(min=1), help="Train for so many steps instead.")
@click.option("--from", "start", metavar="PATH|NAME", help="Begin with these weights (a file, or a name that ships).")
@click.option("--resume", is_flag=True, help="Go on from last.pt in the run's folder.")
@click.option("--size", type=click.IntRange(min=64), default=128, show_default=True, help="Side of the crops, pixels.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Crops in a step.")
@click.option("--rate", type=float, default=5e-4, show_default=True, help="Highest learning rate.")
@click.option(
    "--prune-from",
    type=click.FloatRange(0, 1),
    default=0.45,
    show_default=True,
    help="Share of the run after which pruning is trained too.",
)
@click.option(
    "--teacher/--no-teacher",
    default=True,
    help="Learn the motion of real clips from OpenCV's DIS optical flow (needs the train extra). Default: on.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the decoded clips are kept (about 0.5 MB a frame). Default: inside the run's folder.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def train(
    data: Path,
    folder: Path,
    minutes: float | None,
    steps: int | None,
    start: str | None,
    resume: bool,
    size: int,
    batch: int,
    rate: float,
    prune_from: float,
    teacher: bool,
    cache: Path | None,
    seed: int,
    device: str,
) -> None:
    """Train a network on a folder of videos, from nothing or from weights.

    A run can be stopped at any time and gone on with: add --resume to the same command.

    \b
    ugsp train --data clips/ -o runs/first --minutes 120
    ugsp train --data clips/ -o runs/mine --from ugsp --minutes 15 --rate 1e-4
    """
    from ugsp_cli.errors import InputError, UsageError

    if (minutes is None) == (steps is None):
        raise UsageError("how long to train is not clear", "Give either --minutes or --steps.")
    if size % 16:
        raise UsageError(f"crops of {size} pixels do not fit the network", "Give --size a multiple of 16.")
    if resume and not (folder / "last.pt").is_file():
        raise InputError(f"there is no run to resume in {folder}", "Leave out --resume to begin one.")

    import torch

    from ugsp_cli.engine import load_weights, resolve_device
    from ugsp_net.config import NetConfig
    from ugsp_net.training.clips import open_bank
    from ugsp_net.training.data import BatchPlan
    from ugsp_net.training.trainer import TrainConfig, Trainer

    where = torch.device(resolve_device(device))
    weights = load_weights(start) if start else None
    try:
        bank = open_bank(data, cache or folder)
    except FileNotFoundError as error:
        raise InputError(str(error), "Give a folder of videos with --data.") from error
    config = TrainConfig(
        net=weights.net.config if weights else NetConfig(),
        plan=BatchPlan(size=size, batch=batch, teacher=teacher),
        # By the clock the number of steps is not known; it only paces the change from synthetic to real samples.
        steps=steps or max(1, round((minutes or 0) * 120)),
        minutes=minutes,
        seed=seed,
        rate=rate,
        prune_from=prune_from,
    )
    trainer = Trainer(config, bank, folder, where)
    if resume:
        trainer.resume()
    elif weights:
        trainer.start_from(weights.net)
    trainer.run()
    click.echo(f"{folder / 'last.safetensors'}: {trainer.samples} samples in {trainer.seconds / 60:.1f} minutes")
