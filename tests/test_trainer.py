"""The training loop: exact resuming, going back, several processes, validation, the knobs and the paper's preset."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.utils.data import Dataset

from tests.nets import SMALL, small_net, smooth_frames
from ugsp_net.config import NetConfig
from ugsp_net.cost import network_cost
from ugsp_net.masks import hard_gate
from ugsp_net.network import UGSP
from ugsp_net.precision import autocast
from ugsp_net.training import curve
from ugsp_net.training.clips import ClipBank, Shot
from ugsp_net.training.config import TrainConfig
from ugsp_net.training.data import Batch, Batches, BatchPlan
from ugsp_net.training.objective import Objective
from ugsp_net.training.trainer import Trainer
from ugsp_net.training.validation import Validation, hold_out

CPU = torch.device("cpu")
PLAN = BatchPlan(size=64, context=32, batch=4, longest_span=4, largest_shift=0.125, teacher=False)
CONFIG = TrainConfig(net=SMALL, plan=PLAN, steps=6, warmup=2, prune_from=0.34)


def make_bank(path: Path, clips: int = 2) -> ClipBank:
    """Shots of a smooth texture that drifts, one a clip."""
    shots, offset = [], 0
    with path.open("wb") as out:
        for number in range(clips):
            texture = smooth_frames(1, 128, 168, seed=number)[0].permute(1, 2, 0).mul(255).to(torch.uint8).numpy()
            for index in range(8):
                out.write(np.ascontiguousarray(texture[index : index + 96, 2 * index : 2 * index + 128]).tobytes())
            shots.append(Shot(f"clip{number:02d}", offset, 8, 96, 128, 24.0))
            offset += 8 * 96 * 128 * 3
    return ClipBank(path, shots)


@pytest.fixture
def bank(tmp_path: Path) -> ClipBank:
    return make_bank(tmp_path / "bank.rgb")


def trained(config: TrainConfig, bank: ClipBank, folder: Path, until: float = 1.0, **options: Any) -> Trainer:
    trainer = Trainer(config, bank, folder, CPU, workers=0, **options)
    if (folder / "last.pt").exists():
        trainer.resume()
    trainer.run(until, log_every=1, report=lambda record: None)
    return trainer


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("labels", ["change", "uncertainty"])
def test_a_stopped_and_resumed_run_is_the_run_that_was_not_stopped(labels: str, bank: ClipBank, tmp_path: Path) -> None:
    config = replace(CONFIG, labels=labels)
    whole = trained(config, bank, tmp_path / "whole")
    trained(config, bank, tmp_path / "parts", until=0.5)
    torch.manual_seed(99)  # whatever happens between
    parts = trained(config, bank, tmp_path / "parts")
    assert len(losses(tmp_path / "whole")) == 6
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)
    for one, other in zip(whole.averaged.parameters(), parts.averaged.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_resuming_under_another_configuration_is_refused(bank: ClipBank, tmp_path: Path) -> None:
    trained(CONFIG, bank, tmp_path / "run", until=0.2)
    with pytest.raises(ValueError, match="begun with another weight_decay"):
        trained(replace(CONFIG, weight_decay=1e-3), bank, tmp_path / "run")
    longer = trained(replace(CONFIG, steps=7), bank, tmp_path / "run")
    assert longer.step == 7


def test_a_run_branches_from_another(bank: ClipBank, tmp_path: Path) -> None:
    trained(replace(CONFIG, labels="uncertainty"), bank, tmp_path / "first", until=0.5)
    other = Trainer(CONFIG, bank, tmp_path / "second", CPU, workers=0)
    other.branch(tmp_path / "first")
    assert other.step == 3
    assert float(other.objective.labeller.get_buffer("price")) == pytest.approx(0.05)
    moments = other.optimizer.state_dict()["state"]
    assert len(moments) == len(other.names)  # labels by change have nothing that learns
    other.run(report=lambda record: None)
    assert other.step == 6


class Poisoned(Dataset[Batch]):
    """Batches of which some have an instant that is no number."""

    def __init__(self, batches: Batches, bad: set[int]) -> None:
        self.batches = batches
        self.bad = bad
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> Batch:
        self.asked.append(index)
        batch = self.batches[index]
        return replace(batch, t=batch.t * float("nan")) if index in self.bad else batch


def test_a_gradient_that_is_not_finite_sends_the_run_back(bank: ClipBank, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=4)
    dataset = Poisoned(Batches(bank, PLAN, 0, 4), {2})
    folder = tmp_path / "run"
    trainer = Trainer(config, bank, folder, CPU, dataset=dataset, workers=0)
    trainer.run(log_every=1, save_every_seconds=0, report=lambda record: None)
    assert dataset.asked == [0, 1, 2, 3, 4]  # the bad batch is not met again
    assert trainer.step == 4
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["setback"] for record in records if "setback" in record] == [0]
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.averaged.parameters())

    hopeless = Poisoned(Batches(bank, PLAN, 0, 4), set(range(1, 99)))
    trainer = Trainer(config, bank, tmp_path / "hopeless", CPU, dataset=hopeless, workers=0)
    with pytest.raises(RuntimeError, match="not finite 4 times"):
        trainer.run(log_every=1, save_every_seconds=0, report=lambda record: None)


class Joined(Dataset[Batch]):
    """The batches of two processes as one."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Batch:
        pair = [self.batches[2 * index], self.batches[2 * index + 1]]
        return Batch(*(torch.cat([getattr(part, name) for part in pair]) for name in Batch.__dataclass_fields__))


def one_of_two(rank: int, folder: Path, config: TrainConfig) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    bank = make_bank(folder / f"bank{rank}.rgb")
    trainer = Trainer(config, bank, folder / "run", CPU, workers=0)
    trainer.run(log_every=1, report=lambda record: None)
    distributed.barrier()
    distributed.destroy_process_group()
    # Without what the interpreter does at its end: gloo has a thread that it forgets to wait for, in one of ten runs.
    os._exit(0)


# Of the whole batch's quantiles, labels by uncertainty see the mean of the processes'.
@pytest.mark.parametrize(("labels", "tolerance"), [("change", 1e-4), ("uncertainty", 5e-3)])
def test_two_processes_are_one_with_twice_the_batch(
    labels: str, tolerance: float, bank: ClipBank, tmp_path: Path
) -> None:
    """Without sampled masks, whose random numbers are each process's own."""
    config = replace(CONFIG, steps=6, prune_from=1.0, labels=labels, precision="fp32")
    torch.multiprocessing.spawn(one_of_two, (tmp_path, config), nprocs=2)
    both = replace(config, plan=replace(PLAN, batch=8))
    one = trained(both, bank, tmp_path / "one", dataset=Joined(Batches(bank, PLAN, 0, 12)))
    expected = losses(tmp_path / "one")
    # The loss of the uncertainty passes through zero, where a share of it means nothing: it counts by the largest.
    by_largest = tolerance * max(map(abs, expected)) if labels == "uncertainty" else 0
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=tolerance, abs=by_largest)
    assert one.samples == 48
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["samples"] == 48


def test_two_processes_train_pruned(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (tmp_path, replace(CONFIG, steps=3, prune_from=0.0)), nprocs=2)
    assert len(losses(tmp_path / "run")) == 3


def test_validation_measures_what_it_says(bank: ClipBank) -> None:
    net = small_net()
    validation = Validation(bank, count=3)
    assert len({example.shot.clip for example in validation.examples}) == 2
    measured = validation.measure(net)
    cost = network_cost(SMALL, 128, 96)
    wanted: dict[str, list[float]] = {"psnr": [], "psnr_pruned": [], "skipped": []}
    for example in validation.examples:
        half, shot = example.span // 2, bank.frames(example.shot)
        numbers = [example.first + step * half for step in (-2, 0, 1, 2, 4)]
        before, first, truth, last, after = (
            torch.from_numpy(shot[number].copy()).permute(2, 0, 1)[None].float() / 255
            if 0 <= number < len(shot)
            else None
            for number in numbers
        )
        assert truth is not None
        with torch.no_grad(), autocast(CPU, "auto"):
            gates = None, hard_gate()
            full, pruned = (net(first, last, torch.tensor([0.5]), gate, before, after) for gate in gates)
        for name, made in (("psnr", full), ("psnr_pruned", pruned)):
            rounded = (made.frame.clamp(0, 1) * 255).round()
            error = float((rounded - truth * 255).square().mean())
            wanted[name].append(10 * np.log10(255**2 / error))
        done = cost.performed([float(mask.mean()) for mask in pruned.masks])
        wanted["skipped"].append(1 - (cost.triplet - cost.dense + done) / cost.triplet)
    for name, values in wanted.items():
        assert measured[name] == pytest.approx(np.mean(values), abs=1e-3)
    assert 0 < measured["ssim_pruned"] < 1


def test_measuring_takes_little_of_the_time(bank: ClipBank, tmp_path: Path) -> None:
    """However often a run saves, it does not measure itself again before twenty times as long has passed."""

    class Slow(Validation):
        measured = 0

        def measure(self, net: UGSP) -> dict[str, float]:
            self.measured += 1
            time.sleep(1)
            return {"psnr": 0.0}

    validation = Slow(bank, count=1)
    trainer = Trainer(replace(CONFIG, steps=4), bank, tmp_path / "run", CPU, validation=validation, workers=0)
    trainer.run(log_every=1, save_every_seconds=0, report=lambda record: None)
    assert validation.measured == 2  # once on the way, once at the end


@pytest.mark.parametrize(
    ("fast", "precision", "half"), [(True, "auto", True), (False, "auto", False), (False, "bf16", True)]
)
def test_bf16_only_where_it_is_fast_or_asked_for(
    fast: bool, precision: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ugsp_net.precision.has_fast_bf16", lambda: fast)
    with autocast(CPU, precision):
        assert torch.is_autocast_enabled("cpu") == half


def test_clips_are_held_out_where_there_are_enough(tmp_path: Path) -> None:
    few = make_bank(tmp_path / "few.rgb", 3)
    assert hold_out(few, 4) == (few, None)
    rest, kept = hold_out(make_bank(tmp_path / "many.rgb", 9), 4)
    assert kept is not None
    assert {shot.clip for shot in kept.shots} == {"clip02", "clip06"}
    assert len(rest.shots) == 7
    with pytest.raises(ValueError, match="no clip to validate on"):
        Validation(ClipBank(tmp_path / "none.rgb", []))


def test_the_log_becomes_curves(bank: ClipBank, tmp_path: Path) -> None:
    trained(CONFIG, bank, tmp_path / "run", validation=Validation(bank, 1))
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"psnr", "psnr_pruned", "ssim", "ssim_pruned", "skipped"} == set(records[-1]["validation"])
    assert records[0]["seconds_left"] >= records[-2]["seconds_left"] == 0
    page = (tmp_path / "run" / "curve.html").read_text()
    assert page.count("<svg") == 5
    assert "psnr_pruned" in page
    curve.write(tmp_path / "no log", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.fixture
def batch(bank: ClipBank) -> Batch:
    return Batches(bank, PLAN, 0, 10)[0]


def parts_of(config: TrainConfig, batch: Batch, progress: float) -> dict[str, float]:
    torch.manual_seed(0)
    _, values = Objective(config)(batch, progress)
    return {name: float(value) for name, value in values.items()}


def gate_gradient(config: TrainConfig, batch: Batch, progress: float) -> float:
    torch.manual_seed(0)
    objective = Objective(config)
    objective(batch, progress)[0].backward()
    gradients = [parameter.grad for parameter in objective.net.gates.parameters()]
    return sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None)


def test_the_ablations_knobs(batch: Batch) -> None:
    everything = parts_of(CONFIG, batch, 0.5)
    assert everything["label"] > 0
    assert everything["contrast"] > 0
    assert "pruned" not in parts_of(CONFIG, batch, 0.1)
    assert "pruned" not in parts_of(replace(CONFIG, prune_from=1.0), batch, 0.9)
    unsupervised = replace(CONFIG, label_weight=0.0)
    assert parts_of(unsupervised, batch, 0.5)["label"] == 0
    assert gate_gradient(unsupervised, batch, 0.1) == 0  # nothing but labels teaches the masks before pruning
    assert gate_gradient(unsupervised, batch, 0.5) > 0
    assert parts_of(replace(CONFIG, contrast_weight=0.0), batch, 0.5)["contrast"] == 0


def test_ramps_and_schedules(batch: Batch) -> None:
    config = replace(CONFIG, prune_from=0.5, mask_from=0.5, mask_ramp=0.2, label_weight=0.4, label_weight_last=0.2)
    assert parts_of(config, batch, 0.4)["label"] == 0
    objective = Objective(config)
    assert [round(objective._mask_weight(at), 3) for at in (0.0, 0.5, 0.6, 0.7, 1.0)] == [0, 0, 0.5, 1, 1]
    assert [round(objective._label_weight(at), 3) for at in (0.0, 0.5, 0.75, 1.0)] == [0.4, 0.4, 0.3, 0.2]


@pytest.mark.parametrize("variant", ["plain", "distill", "refine"])
def test_the_papers_preset(variant: str, bank: ClipBank) -> None:
    config = TrainConfig.paper(variant)
    assert config.net == NetConfig.paper(variant)
    assert (config.rate, config.rate_last) == (1e-4, 1e-5)
    assert (config.plan.batch, config.plan.size) == (32, 224)
    small = replace(SMALL, any_instant=False, refine=variant == "refine")
    config = replace(config, net=small, plan=replace(config.plan, size=64, batch=2, teacher=False))
    batch = Batches(bank, config.plan, 0, 10)[0]
    assert batch.t.tolist() == [0.5, 0.5]
    assert bool(batch.real.all())
    objective = Objective(config)
    # The temperature is max(1 - epoch / 150, 0.4) in phase 2, and the mask terms rise over its epochs 1 to 16.
    phase2 = [config.prune_from + (1 - config.prune_from) * epoch / 300 for epoch in (0, 8, 16, 150)]
    assert [round(objective._mask_weight(at), 2) for at in phase2] == [0, 0.5, 1, 1]
    total, values = objective(batch, phase2[3])
    total.backward()
    assert bool(total.isfinite())
    assert values["label"] > 0
    extras = {"plain": set(), "distill": {"distillation", "geometry"}, "refine": {"distillation", "teacher"}}
    assert {"distillation", "geometry", "teacher"} & set(values) == extras[variant]
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_what_does_not_fit_together_is_refused() -> None:
    for wrong, message in (
        ({"labels": "nothing"}, "labels must be one of"),
        ({"variant": "other"}, "variant must be one of"),
        ({"variant": "refine"}, "need each other"),
        ({"net": replace(SMALL, any_instant=False)}, "middle_only"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **wrong)


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
