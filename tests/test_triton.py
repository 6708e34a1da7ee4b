"""Triton's kernels against the reference: on a CUDA device, and interpreted as in ``interpreter`` where triton is
installed."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import interpreter
from tests.nets import SMALL, small_net, smooth_frames
from tests.test_sparse import random_masks
from ugsp_net import gpu
from ugsp_net.blocks import Level
from ugsp_net.config import NetConfig
from ugsp_net.masks import fixed_gate
from ugsp_net.sparse import performed_share, run_level, triton_level, why_not
from ugsp_net.sparse.triton_level import Choice, padded

INTERPRETED, INSTALLED = interpreter.RUNS, interpreter.INSTALLED
DEVICE = "cpu" if INTERPRETED else "cuda"

needs_triton = pytest.mark.skipif(
    not INSTALLED and os.environ.get("UGSP_REQUIRE_CUDA") != "1", reason="triton is not installed"
)


def kernels(test: Callable[..., None]) -> Any:
    """Mark a test that runs kernels."""
    return needs_triton(test if INTERPRETED else pytest.mark.gpu(test))


def full_of_nan(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What kernels must write to, if anyone is to read it. Where they are interpreted there is no memory behind it: who
    reads or writes on ends the process."""
    dtype = dtype or like.dtype
    made = _at_the_end(shape, dtype) if INTERPRETED and 0 not in shape else like.new_empty(shape, dtype=dtype)
    return made.fill_(float("nan") if dtype.is_floating_point else min(1 << 20, torch.iinfo(dtype).max))


def _at_the_end(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count, page = torch.Size(shape).numel(), mmap.PAGESIZE
    pages = -(-count * dtype.itemsize // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    behind = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + pages * page
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(behind), page, 0) == 0
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=pages * page - count * dtype.itemsize).view(shape)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tf32, buffers that are full of NaN, and tiles so small that a program takes several."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(gpu, "empty", full_of_nan)
    if INTERPRETED:
        monkeypatch.setattr(triton_level, "choose", lambda *_: Choice(64, 16, 128, 4, 3, waves=2))


def make_level(inputs: int = 10, width: int = 12, depth: int = 1, outputs: int = 7, activation: str = "leaky") -> Level:
    torch.manual_seed(1)
    config = dataclasses.replace(SMALL, activation=activation)
    level = Level(config, inputs, width, depth, outputs, pruned=True).requires_grad_(False)
    assert level.project.bias is not None
    level.project.bias.normal_()
    for _, act in level.layers:
        if act.slope is not None:
            act.slope.uniform_(-0.5, 0.5)
    return level.to(DEVICE)


def make_input(level: Level, mask: Tensor, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    batch, _, rows, columns = mask.shape
    x = torch.randn(batch, level.head.in_channels, rows * side, columns * side, device=DEVICE, dtype=dtype)
    return x.to(memory_format=torch.channels_last)


def check(level: Level, x: Tensor, mask: Tensor, tolerance: float = 1e-5) -> None:
    """Within the tolerance, relative to the largest output, and exactly the bias where nothing is computed."""
    mask = mask.to(DEVICE)
    with torch.inference_mode():
        out = run_level(level, x, mask, "triton")
        expected = run_level(level.float(), x[:, : level.head.in_channels].float(), mask, "reference")
    level.to(x.dtype)
    assert out.dtype == x.dtype
    assert out.shape == expected.shape
    assert (out.float() - expected).abs().max() <= tolerance * expected.abs().max()
    side = x.shape[-1] // mask.shape[-1]
    pruned = (mask == 0).repeat_interleave(side, 2).repeat_interleave(side, 3).expand_as(out)
    assert torch.equal(out[pruned], level.bias().to(x.dtype).expand_as(out)[pruned])


@kernels
@pytest.mark.parametrize("kind", ["none", "one", "ragged", "border", "all"])
@pytest.mark.parametrize(("side", "rows", "columns", "batch"), [(1, 5, 7, 3), (2, 3, 5, 3), (4, 3, 3, 2), (8, 2, 1, 2)])
def test_equals_reference(kind: str, side: int, rows: int, columns: int, batch: int) -> None:
    torch.manual_seed(side)
    level = make_level(activation="prelu" if kind in ("ragged", "border") else "leaky")
    mask = random_masks(kind, batch, rows, columns)
    check(level, make_input(level, mask, side), mask)


@kernels
@pytest.mark.parametrize(("inputs", "width", "outputs"), [(53, 20, 36), (21, 48, 5), (8, 9, 17)])
def test_odd_channel_counts(inputs: int, width: int, outputs: int) -> None:
    torch.manual_seed(0)
    level = make_level(inputs, width, 1, outputs)
    mask = random_masks("ragged", 2, 3, 4)
    check(level, make_input(level, mask, 2), mask)


@kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
@pytest.mark.parametrize("side", [2, 4])
def test_half_precision(dtype: torch.dtype, tolerance: float, side: int) -> None:
    torch.manual_seed(0)
    level = make_level(depth=2).to(dtype)
    mask = random_masks("ragged", 3, 2, 3)
    check(level, make_input(level, mask, side, dtype), mask, tolerance)


@kernels
def test_input_in_any_layout() -> None:
    level, mask = make_level(), random_masks("one", 2, 3, 3)
    x = make_input(level, mask, 2)
    wider = torch.full((2, padded(10), 6, 6), 1e30, device=DEVICE).to(memory_format=torch.channels_last)
    wider[:, :10] = x
    for layout in (x.contiguous(), wider, wider[:, :10], x.transpose(2, 3).contiguous().transpose(2, 3)):
        check(level, layout, mask)


@kernels
def test_weights_are_packed_once_and_again_when_they_change() -> None:
    level, mask = make_level(), random_masks("one", 1, 2, 2)
    x = make_input(level, mask, 2)
    first = triton_level._packed(level, x.dtype, x.device)
    check(level, x, mask)
    assert triton_level._packed(level, x.dtype, x.device) is first
    level.head.weight *= 2
    check(level, x, mask)
    level.project.bias = torch.nn.Parameter(torch.ones(7, device=DEVICE), requires_grad=False)
    check(level, x, mask)


@kernels
def test_what_does_not_fit_is_refused() -> None:
    level = make_level()
    x = torch.randn(1, 10, 16, 16, device=DEVICE)
    with pytest.raises(ValueError, match="does not cover"):
        run_level(level, x, torch.ones(1, 1, 3, 2, device=DEVICE), "triton")
    with pytest.raises(ValueError, match="takes 10 channels, not 12"):
        run_level(level, torch.randn(1, 12, 16, 16, device=DEVICE), torch.ones(1, 1, 2, 2, device=DEVICE), "triton")
    biased = Level(SMALL, 10, 12, 1, 7, pruned=False).to(DEVICE)
    with pytest.raises(ValueError, match="have no bias"):
        run_level(biased, x, torch.ones(1, 1, 2, 2, device=DEVICE), "triton")


@kernels
def test_no_mask_is_dense() -> None:
    level, x = make_level(), torch.randn(1, 10, 16, 16, device=DEVICE)
    assert torch.equal(run_level(level, x, None, "triton"), run_level(level, x, None, "reference"))


@kernels
def test_whole_network() -> None:
    net, frames, t = small_net().to(DEVICE), smooth_frames(2, 32, 32).to(DEVICE), torch.tensor([0.3], device=DEVICE)
    first, second = net.encode(frames[:1]), net.encode(frames[1:])
    coarse = net.coarse(first, second, net.find(frames[:1], frames[1:], t), t)
    masks = [torch.tensor(rows).view(1, 1, 2, 2) for rows in ([1.0, 1, 1, 1], [1.0, 0, 1, 1], [0.0, 1, 1, 0])]
    with torch.inference_mode():
        reference, made = (
            net.interpolate(frames[:1], frames[1:], first, second, coarse, t, fixed_gate(masks), backend)
            for backend in ("reference", "triton")
        )
    torch.testing.assert_close(made.frame, reference.frame, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.flow, reference.flow, atol=1e-4, rtol=1e-4)


@needs_triton
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("level_index", "side"), [(0, 8), (1, 4), (2, 2)])
def test_the_shipped_shapes(dtype: torch.dtype, level_index: int, side: int) -> None:
    """With the tiles that are used in earnest; the sums are longer, so bf16 strays further."""
    config = NetConfig()
    inputs, outputs = ((53, 48), (117, 20), (101, 36))[level_index]
    level = make_level(inputs, config.widths[level_index], config.depths[level_index], outputs).to(dtype)
    for kind in ("none", "one", "ragged", "all"):
        mask = random_masks(kind, 3, 17, 23)
        check(level, make_input(level, mask, side, dtype), mask, 1e-4 if dtype == torch.float32 else 0.03)


@needs_triton
@pytest.mark.gpu
def test_the_host_never_waits() -> None:
    """No call synchronises, and a captured graph follows a mask that changes after the capture."""
    level = make_level()
    masks = [random_masks("ragged", 3, 5, 4).to(DEVICE) for _ in range(2)]
    x, mask = make_input(level, masks[0], 4), masks[0].clone()
    with torch.inference_mode():
        run_level(level, x, mask, "triton")  # compiles and packs
        torch.cuda.set_sync_debug_mode("error")
        try:
            run_level(level, x, mask, "triton")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run_level(level, x, mask, "triton")
        for chosen in masks:
            mask.copy_(chosen)
            graph.replay()
            torch.testing.assert_close(out, run_level(level, x, chosen, "reference"), atol=1e-5, rtol=1e-4)


def test_interpreted() -> None:
    """The tests above on the CPU, one kernel program after the other, in plain numpy."""
    interpreter.wait(__file__)


def test_the_share_that_is_performed_is_the_masks() -> None:
    mask = torch.zeros(2, 1, 5, 7)
    mask[0, 0, 0, 0] = 1
    assert performed_share(mask, 2, 10, 14, "triton", torch.bfloat16)[:, 0].tolist() == pytest.approx([1 / 35, 0])


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Imported here: a machine that only runs the kernels' tests need not have the video libraries.
    from ugsp_cli.engine import EngineOptions, Interpolator
    from ugsp_cli.errors import UsageError
    from ugsp_net import checkpoint

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    weights = tmp_path / "small.safetensors"
    checkpoint.save(small_net(), weights, {"note": "random"}, torch.float32)
    level = Level(SMALL, 10, 12, 1, 7, pruned=True)
    x, mask = torch.randn(1, 10, 16, 16), torch.ones(1, 1, 2, 2)
    assert why_not("tiles", "cpu") is None
    for installed, cuda, reason in [
        (False, True, "triton is not installed"),
        (True, False, "there is no CUDA device"),
        (True, True, "it runs on CUDA devices, not on cpu"),
    ]:
        monkeypatch.setattr(gpu, "_installed", lambda installed=installed: installed)
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        with pytest.raises(ValueError, match=f"the triton backend cannot run: {reason}"):
            run_level(level, x, mask, "triton")
        with pytest.raises(UsageError, match=f"the triton backend cannot run on cpu: {reason}"):
            Interpolator(EngineOptions(str(weights), device="cpu", backend="triton"))
    assert Interpolator(EngineOptions(str(weights), device="cpu")).backend == "tiles"
