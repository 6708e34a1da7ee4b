"""`ugsp bench`: what it reports belongs together, and bad values are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.nets import SMALL, small_net
from ugsp_cli import timing
from ugsp_cli.cli import cli
from ugsp_net import checkpoint
from ugsp_net.compiled import only_torch
from ugsp_net.cost import network_cost
from ugsp_net.network import UGSP, Encoding


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "small.safetensors"
    checkpoint.save(small_net(), path, {})
    return str(path)


def bench(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["bench", "--device", "cpu", "--turns", "1", *arguments])
    return result.exit_code, result.output


def test_seconds_stand_beside_the_work_that_was_done(weights: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    sizes = ("--size", "150x90", "--size", "64x64")
    code, output = bench("--weights", weights, *sizes, "--density", "0.25", "--density", "1", "--json", str(file))
    assert code == 0, output
    assert "150x90" in output
    assert "25 %" in output
    document = json.loads(file.read_text())
    assert document["machine"]["backend"] == "tiles"
    assert [(one["width"], one["height"]) for one in document["timings"]] == [(150, 90), (64, 64)]
    first = document["timings"][0]
    assert [row["density"] for row in first["rows"]] == [None, 0.25, 1.0]
    for row in first["rows"]:
        assert set(row["seconds"]) == {"encode", "pair", "levels"}
        assert all(value > 0 for value in row["seconds"].values())
    assert first["products"] > 0
    dense, sparse, full = (row["macs"] for row in first["rows"])
    cost = network_cost(SMALL, 160, 96)
    least = 1 - (sum(cost.prunable) + sum(cost.beside)) / (cost.encode + cost.match + cost.dense)
    # Tiles at every density cost a little more than all: what they are enlarged by has nine taps for four.
    assert dense == 1 <= full < 1.2
    assert least < sparse < 1


def test_the_network_sees_what_the_flow_scale_says(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, sizes = UGSP.encode, set()

    def noted(net: UGSP, frame: torch.Tensor) -> Encoding:
        sizes.add(tuple(frame.shape[-2:]))
        return encode(net, frame)

    monkeypatch.setattr(UGSP, "encode", noted)
    file = tmp_path / "bench.json"
    options = ("--flow-scale", "0.5", "--size", "150x90", "--density", "0.5")
    code, output = bench("--weights", weights, *options, "--json", str(file))
    assert code == 0, output
    assert "150x90, flow scale 0.5" in output
    assert sizes == {(48, 80)}
    assert json.loads(file.read_text())["timings"][0]["flow_scale"] == 0.5


def test_the_masks_have_the_density_and_are_nested() -> None:
    masks = timing._masks(small_net(), 96, 160, 2, 0.4)
    for mask in masks:
        assert mask.shape == (2, 1, 6, 10)
        assert mask.mean((1, 2, 3)).tolist() == pytest.approx([0.4, 0.4])
    assert torch.equal(masks[0], masks[2])


def test_the_products_that_are_replayed_are_those_of_the_network() -> None:
    net, frames = small_net(), torch.rand(2, 3, 64, 96)
    with torch.inference_mode(), timing._Recorder() as recorder, only_torch():
        net(frames[:1], frames[1:], torch.tensor([0.5]))
    macs = 0
    for func, args, _ in recorder.calls:
        name = func.overloadpacket.__name__
        if name.startswith("conv"):
            # A kernel meets every position of what a convolution puts out, and of what a transposed one takes.
            moved = args[0] if name == "conv_transpose2d" else func(*args)
            macs += moved[:, :1].numel() * args[1].numel()
        elif name.startswith("addmm"):
            macs += args[1].numel() * args[2].shape[1]
    cost = network_cost(SMALL, 96, 64)
    correlations = (25 * 16 * 4 * 6) + (25 * 12 * 8 * 12) + (9 * 8 * 16 * 24)
    assert macs == cost.triplet - cost.match - correlations


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "large"), "is not a size such as 1280x720"),
        (("--size", "8x8"), "16 to 16384"),
        (("--density", "2"), "0<=x<=1"),
        (("--weights", "nothing"), "no weights called 'nothing'"),
    ],
)
def test_what_is_wrong_is_named(arguments: tuple[str, ...], message: str) -> None:
    code, output = bench(*arguments)
    assert code == 2
    assert message in output


def test_products_are_noted_without_torchs_compiler() -> None:
    """Which takes seconds to import and imports Triton."""
    program = """
import sys, torch
from ugsp_cli import timing
with torch.inference_mode(), timing._Recorder() as recorder:
    torch.mm(torch.ones(2, 3), torch.ones(3, 2))
assert len(recorder.calls) == 1
print([name for name in sys.modules if name in ("torch._dynamo", "triton._C")])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
