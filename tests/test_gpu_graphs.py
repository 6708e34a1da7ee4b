"""What the host does for cards, on a machine that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ugsp_net import gpu
from ugsp_net.gpu.graphs import replayed

CUDA = torch.device("cuda", 0)


def test_who_has_compiled_nothing_yet_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[str] = []
    monkeypatch.setattr(gpu, "why_not", lambda device: None)
    monkeypatch.setattr(gpu, "before_compiling", [lambda: told.append("now")])
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    assert gpu.available(torch.device("cpu"))
    assert told == []
    assert gpu.available(CUDA)
    assert gpu.available(CUDA)
    assert told == ["now"]

    gpu.before_compiling.append(lambda: told.append("again"))
    (tmp_path / "cache" / "kernel").mkdir(parents=True)
    assert gpu.available(CUDA)
    assert told == ["now"]
    assert gpu.before_compiling == []


def test_who_asks_for_torch_alone_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_not", lambda device: None)
    with gpu.refused():
        assert not gpu.available(CUDA)
    assert gpu.available(CUDA)


def test_on_a_processor_nothing_is_captured() -> None:
    calls = []

    def twice(values: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(1)
        return (2 * values,)

    for number in range(6):
        (made,) = replayed(twice, "key", torch.full((3,), float(number)))
        assert made.tolist() == [2 * number] * 3
    assert len(calls) == 6
