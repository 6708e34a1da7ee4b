"""Memory: what is free, what is planned with it, and that a run keeps to a limit and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from ugsp_cli import memory, portions
from ugsp_cli.decode import Frame
from ugsp_cli.engine import MOST_WORKERS, EngineOptions, Interpolator, Request
from ugsp_cli.memory import peak_bytes
from ugsp_cli.pixels import RGB, ColourTags
from ugsp_cli.portions import Portion, Portions
from ugsp_net import cpu
from ugsp_net.config import NetConfig
from ugsp_net.sparse import strips, winograd

GIB = 1 << 30
WIDTH, HEIGHT = 3072, 384
"""Of the frames that are made under a limit."""
CPU = torch.device("cpu")


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        (MEMINFO, [5000 << 10]),
        # Version 2: the group has no limit, the one above it has; read files do not count as used.
        (
            {
                **MEMINFO,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "700\n",
                "sys/fs/cgroup/a/memory.max": "3000\n",
                "sys/fs/cgroup/a/memory.current": "1000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 600\ninactive_file 300\n",
            },
            [5000 << 10, 2300],
        ),
        # Version 1 in a container, which sees its own group at the root under another name.
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/123\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "4000\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 100\n",
            },
            [5100],
        ),
    ],
)
def test_what_the_system_leaves(files: dict[str, str], expected: list[int], tmp_path: Path) -> None:
    assert list(memory._host_limits(tree(tmp_path, files))) == expected


def planned(monkeypatch: pytest.MonkeyPatch, free: int | None, batch: int | None, scale: float | None) -> Portions:
    monkeypatch.setattr(portions, "free_bytes", lambda device: free)
    return Portions(CPU, "fp32", NetConfig(), batch, scale)


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1920, 1080), (3840, 2160), (7680, 4320)])
@pytest.mark.parametrize("free", [None, 64 * GIB, 4 * GIB, 1 * GIB])
def test_what_is_planned_fits(width: int, height: int, free: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(monkeypatch, free, 8, None)
    chosen = plan.settle(height, width)
    seen = max(window.pixels for window in plan.windows(height, width))
    need = peak_bytes(width * height, seen, chosen.batch, "fp32", CPU)
    if free is None or free == 64 * GIB:
        assert chosen == Portion(8)
        assert plan.notes == []
    elif free == 4 * GIB or width < 3840:  # what does not fit at all is tried all the same
        assert need < 0.8 * free
    if chosen.batch > 1:
        assert chosen.halvings == 0
    if chosen.coarser > 1:
        assert len(plan._windows(height, width, chosen.halvings + 1)) == len(plan.windows(height, width))


@pytest.mark.skipif(not cpu.available(), reason="Numba does not know this Python yet")
def test_compiled_code_is_planned_with_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels by strips and in tiles of Winograd's take a fraction of what torch's tiles do."""
    pixels, needs = 2560 * 1440, []
    for way in ("strips", "winograd", "neither"):
        for module, name in ((strips, "strips"), (winograd, "winograd")):
            monkeypatch.setattr(module, "pays", lambda *_, pays=way == name: pays)
        needs.append(peak_bytes(pixels, pixels, 2, "fp32", CPU))
    assert needs == sorted(needs)
    with cpu.refused():
        needs.append(peak_bytes(pixels, pixels, 2, "fp32", CPU))
    assert needs[0] < 0.4 * needs[-1]
    assert needs[-1] == peak_bytes(pixels, pixels, 2, "fp32", torch.device("cuda"))


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(1920, 1080, [1, 8, 16, 16, 16]), (3840, 2160, [1, 4, 8, 8, 8])]
)
def test_batches_occupy_all_workers_and_no_more_memory_than_that_takes(
    width: int, height: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "free_bytes", lambda device: None)
    workers = (1, 2, 4, 6, MOST_WORKERS)
    plans = [Portions(CPU, "bf16", NetConfig(), None, None, count) for count in workers]
    batches = [plan.settle(height, width).batch for plan in plans]
    assert batches == expected
    assert all(batch >= count for batch, count in zip(batches, workers, strict=True))


def test_each_thing_that_is_given_up_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(monkeypatch, None, 4, None)
    plan.settle(2160, 3840)
    while plan.shrink(2160, 3840):
        pass
    count = len(plan.windows(2160, 3840))
    assert plan.notes == [
        "memory ran out: frames made at once: 1",
        f"memory ran out: each frame is made in {count} windows that overlap",
        "memory ran out: motion is looked for at 0.25 of the size (--flow-scale)",
    ]
    plan.reset()
    assert plan.notes == []
    assert plan.settle(2160, 3840) == Portion(4)


def test_the_flow_scale_that_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(monkeypatch, 1, 2, 1.0)
    plan.settle(2160, 3840)
    assert plan.factor(2160, 3840) == 1
    assert [note.partition(":")[0] for note in plan.notes] == ["little memory is free"] * 2
    assert not plan.shrink(2160, 3840)


def ramp(index: int, width: int, height: int) -> Frame:
    """A pattern that moves by five pixels a frame."""
    plane = np.add.outer(np.arange(height), np.arange(width) - 5 * index).astype(np.uint8)
    return Frame(index, Fraction(index), (plane,) * 3, RGB, ColourTags(0, 1, 1, 2), 0.0, False)


def _run_limited(room: int) -> None:
    """Make a frame while the process may take so many bytes beside what it has with the network loaded."""
    import resource

    engine = Interpolator(EngineOptions(device="cpu", precision="fp32", pruning=False))
    left, right = (ramp(index, WIDTH, HEIGHT) for index in range(2))
    used = 1024 * memory._fields(Path("/proc/self/status"))["VmData:"]
    resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
    (made,) = engine.interpolate([Request(left, right, 0.5)])
    assert made.planes[0].shape == (HEIGHT, WIDTH)
    print(json.dumps(engine.notes))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are Linux's")
def test_a_run_under_a_limit_is_made_in_windows() -> None:
    """What is predicted is more than the four fifths of the limit that are planned with."""
    predicted = peak_bytes(WIDTH * HEIGHT, WIDTH * HEIGHT, 1, "fp32", CPU)
    command = [sys.executable, "-m", "tests.test_memory", str(predicted)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == ["little memory is free: each frame is made in 2 windows that overlap"]


@pytest.mark.gpu
def test_a_card_with_a_limit_gets_smaller_portions() -> None:
    """8 GiB of a card, as `set_per_process_memory_fraction` cuts it: 4K and 8K are made, whatever the prediction."""
    device = torch.device("cuda", 0)
    total = torch.cuda.mem_get_info(device)[1]
    try:
        torch.cuda.set_per_process_memory_fraction(min(1.0, 8 * GIB / total), device)
        engine = Interpolator(EngineOptions(device="cuda"))
        for width, height in ((3840, 2160), (7680, 4320)):
            engine.reset()
            torch.cuda.reset_peak_memory_stats(device)
            left, right = (ramp(index, width, height) for index in range(2))
            (made,) = engine.interpolate([Request(left, right, 0.5)])
            assert made.planes[0].shape == (height, width)
            assert torch.cuda.max_memory_reserved(device) <= 8 * GIB
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


if __name__ == "__main__":
    _run_limited(int(sys.argv[1]))
