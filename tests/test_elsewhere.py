"""The ways of a graphics card, on a device that no machine lacks: all is where it belongs, and gives what a processor
gives."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.elsewhere import DEVICE, Elsewhere, device_elsewhere
from tests.test_engine import passing
from tests.test_trainer import CONFIG, make_bank
from ugsp_cli import engine as engine_module
from ugsp_cli.console import SilentDisplay
from ugsp_cli.engine import EngineOptions, Interpolator, Request
from ugsp_cli.timing import measure
from ugsp_net.compiled import only_torch
from ugsp_net.network import UGSP
from ugsp_net.training.config import TrainConfig
from ugsp_net.training.device import DeviceBatches
from ugsp_net.training.trainer import Trainer
from ugsp_net.training.validation import Validation


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are made on the device."""
    monkeypatch.setattr(engine_module, "resolve_device", lambda text: str(DEVICE))


def test_what_lies_on_two_devices_is_refused() -> None:
    here = torch.arange(6.0).view(2, 3)
    with device_elsewhere() as device:
        there = here.to(device)
        assert there.device == device
        assert there.sum().item() == 15
        assert torch.equal((2 * there[:, [0, 2]]).cpu(), 2 * here[:, [0, 2]])
        assert isinstance(torch.zeros(3, device=device) + torch.tensor([1.0, 2.0, 3.0], device=device), Elsewhere)
        with pytest.raises(RuntimeError, match="two devices"):
            there + here
        with pytest.raises(RuntimeError, match="two devices"):
            torch.cat((there, here))
        with pytest.raises(RuntimeError, match="generator of another device"):
            torch.rand(3, generator=torch.Generator(device))


def requests(count: int) -> list[Request]:
    """Two instants of each pair of frames in which something passes before what stands still."""
    frames = [passing(index) for index in range(count)]
    known = [None, *frames, None]
    return [
        Request(frames[index], frames[index + 1], t, known[index], known[index + 3])
        for index in range(count - 1)
        for t in (0.4, 0.8)
    ]


@pytest.mark.parametrize(
    ("options", "less"),
    [
        ({}, 0),
        ({"batch_size": "3", "keep": "0.3"}, 0),
        ({"keep": "0"}, 0),
        ({"pruning": False}, 0),
        ({"backend": "reference"}, 0),
        ({"flow_scale": "0.5"}, 0),
        ({"batch_size": "1"}, 1),
    ],
)
def test_frames_are_those_of_the_processor(options: dict[str, Any], less: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ugsp_cli.windows.MARGIN", 32)
    monkeypatch.setattr("ugsp_cli.windows.LEAST_CELL", 64)
    wanted = requests(3)
    height, width = wanted[0].left.planes[0].shape
    chosen = EngineOptions(None, "cpu", precision="fp32", **options)

    def made() -> tuple[Interpolator, list[engine_module.Made]]:
        engine = Interpolator(chosen)
        engine.batch_at(width, height)
        for _ in range(less):
            assert engine._portions.shrink(height, width)
        return engine, engine.interpolate(wanted, masks=True)

    engine, expected = made()
    # Views of what was made outside of it are no tensors of inference mode, which a wrapper cannot follow.
    with torch.inference_mode(), device_elsewhere():
        monkeypatch.setattr(engine_module, "resolve_device", lambda text: str(DEVICE))
        there, found = made()
    assert next(there.network.parameters()).device == DEVICE
    assert there._crew is None
    assert (len(there._portions.windows(height, width)) > 1) == bool(less)
    assert there.backend == engine.backend
    for one, other in zip(found, expected, strict=True):
        assert one.level_performed_macs == other.level_performed_macs
        assert one.performed_macs >= other.performed_macs  # torch enlarges more than compiled code
        assert one.masks is not None
        assert other.masks is not None
        assert np.array_equal(one.masks, other.masks)
        for plane, as_expected in zip(one.planes, other.planes, strict=True):
            assert np.abs(plane.astype(int) - as_expected).max() <= 1


def test_a_batch_is_one_launch(on_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of torch is a launch there: what several pairs and frames need is done for all of them at once."""
    calls: Counter[str] = Counter()

    def count(holder: object, name: str) -> None:
        original = getattr(holder, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return original(*arguments, **named)

        monkeypatch.setattr(holder, name, counting)

    for name in ("trace", "still_pixels", "carry", "rgb_to_planes"):
        count(engine_module, name)
    for name in ("compare", "encode", "match", "coarse", "interpolate"):
        count(UGSP, name)
    with torch.inference_mode(), device_elsewhere():
        engine = Interpolator(EngineOptions(None, "cpu", precision="fp32", batch_size="6"))
        engine.interpolate(requests(4))
    assert set(calls.values()) == {1}
    assert len(calls) == 9


@pytest.mark.usefixtures("on_device")
def test_the_bench_runs_there() -> None:
    with torch.inference_mode(), device_elsewhere():
        engine = Interpolator(EngineOptions(None, "cpu", precision="fp32", batch_size="2"))
        (timing,) = measure(engine, [(128, 96)], [0.5], 1, SilentDisplay())
    assert timing.batch == 2
    assert timing.rows[1].macs < 1


@pytest.mark.parametrize("variant", ["plain", "distill", "refine"])
def test_learning_there_is_learning_here(variant: str, tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank.rgb", 3)
    net = replace(CONFIG.net, refine=variant == "refine")
    config: TrainConfig = replace(CONFIG, variant=variant, net=net, steps=3, warmup=1, prune_from=0.3)
    losses = []

    def train(device: torch.device) -> None:
        folder = tmp_path / device.type
        batches = DeviceBatches(bank, config.plan, 7, 10, device)
        trainer = Trainer(config, bank, folder, device, validation=Validation(bank, 1), dataset=batches, workers=0)
        trainer.run(log_every=1, report=lambda record: None)
        records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        losses.append([record["loss"] for record in records if "loss" in record])

    # By the same code: compiled code may choose another one of two flows that fit equally well.
    with only_torch():
        train(torch.device("cpu"))
    with device_elsewhere() as device:
        train(device)
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=0.02, abs=0.002)
