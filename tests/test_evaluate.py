"""`ugsp evaluate` on miniature data sets, each figure against numbers that are computed here in another way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests.clips import Clip, make_clip
from tests.datasets import (
    BUILDERS,
    SIZE,
    Expected,
    picture,
    put,
    snufilm,
    triplets,
    ucf101_quintuplets,
    video,
    vimeo90k,
    x4k,
)
from tests.nets import SMALL, small_net
from tests.test_metrics import direct_error, direct_psnr, direct_ssim
from ugsp_cli.cli import cli
from ugsp_cli.engine import EngineOptions, Interpolator, Request
from ugsp_cli.layouts import find_samples
from ugsp_cli.pictures import as_frame, read_picture
from ugsp_net import checkpoint
from ugsp_net.cost import network_cost
from ugsp_net.masks import keep_gate
from ugsp_net.metrics import Picture

COST = network_cost(SMALL, 48, 32)  # what pictures of SIZE are padded to
BLOCKS = 3 * 2
DENSE = ("--precision", "fp32", "--device", "cpu", "--no-pruning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    checkpoint.save(small_net(), path, {"note": "random"}, torch.float32)
    return str(path)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *(str(argument) for argument in arguments)])


def figures(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def made_directly(sample: Expected, keep: float | None = None) -> Picture:
    """The network called as a module on the padded pictures, in one pass."""
    height, width = sample.left.shape[:2]
    pad = ((0, -height % 16), (0, -width % 16), (0, 0))

    def tensor(picture: Picture) -> torch.Tensor:
        return torch.from_numpy(np.pad(picture, pad, mode="edge")).permute(2, 0, 1)[None].float() / 255

    left, right = tensor(sample.left), tensor(sample.right)
    before, after = (None if one is None else tensor(one) for one in (sample.before, sample.after))
    gate = None if keep is None else keep_gate(keep)
    with torch.inference_mode():
        out = small_net()(left, right, torch.tensor([float(sample.t)]), gate, before, after).frame[0]
    made: Picture = (out.permute(1, 2, 0)[:height, :width].numpy() * 255).round().clip(0, 255).astype(np.uint8)
    return made


@pytest.mark.parametrize(
    ("layout", "build"),
    [(layout, build) for layout, build in BUILDERS if build not in (ucf101_quintuplets, x4k)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_figure(tmp_path: Path, weights: str, layout: str, build: Callable[[Path], list[Expected]]) -> None:
    samples = build(tmp_path)
    document = figures(tmp_path, "--layout", layout, "--weights", weights, *DENSE)
    assert document["layout"] == layout
    assert document["backend"] == "dense"
    measured = {"psnr": direct_psnr, "ssim": direct_ssim, "ie": direct_error}
    rows: list[dict[str, float]] = []
    for sample, found in zip(samples, document["samples"], strict=True):
        made = made_directly(sample)
        rows.append({name: measure(made, sample.truth) for name, measure in measured.items()})
        assert (found["split"], found["name"], found["t"]) == (sample.split, sample.name, float(sample.t))
        # Another order of sums may round a few samples to their neighbours.
        assert found["psnr"] == pytest.approx(rows[-1]["psnr"], abs=0.01)
        assert found["ssim"] == pytest.approx(rows[-1]["ssim"], abs=1e-4)
        assert found["ie"] == pytest.approx(rows[-1]["ie"], abs=0.01)
        height, width = sample.left.shape[:2]
        cost = network_cost(SMALL, width + -width % 16, height + -height % 16)
        more = sum(one is not None for one in (sample.before, sample.after))
        assert found["dense_gmacs"] == found["performed_gmacs"] == (cost.triplet + more * cost.match) / 1e9
        assert found["active_fractions"] == [1, 1, 1]
    mean = document["mean"]
    assert mean["samples"] == len(samples)
    assert mean["skipped_fraction"] == 0
    for name, tolerance in (("psnr", 0.01), ("ssim", 1e-4), ("ie", 0.01)):
        assert mean[name] == pytest.approx(np.mean([row[name] for row in rows]), abs=tolerance)
    assert mean["seconds_per_frame"] > 0
    names = {sample.split for sample in samples} - {""}
    assert list(document["splits"]) == sorted(names, key=[sample.split for sample in samples].index)
    for split, summary in document["splits"].items():
        part = [row for row, sample in zip(rows, samples, strict=True) if sample.split == split]
        assert summary["samples"] == len(part)
        assert summary["psnr"] == pytest.approx(np.mean([row["psnr"] for row in part]), abs=0.01)


def test_x4k_is_measured_at_each_instant(tmp_path: Path, weights: str) -> None:
    samples = x4k(tmp_path)
    document = figures(tmp_path, "--layout", "x4k", "--weights", weights, *DENSE)
    for sample, found in zip(samples, document["samples"], strict=True):
        assert found["t"] == float(sample.t)
        assert found["psnr"] == pytest.approx(direct_psnr(made_directly(sample), sample.truth), abs=0.01)
        assert found["dense_gmacs"] == COST.triplet / 1e9  # both encodings, though seven samples share them


@pytest.mark.parametrize("batch_size", ["auto", "3"])
def test_pruned_work_is_counted(tmp_path: Path, weights: str, batch_size: str) -> None:
    samples = vimeo90k(tmp_path)
    options = ("--weights", weights, "--precision", "fp32", "--device", "cpu", "--batch-size", batch_size)
    for keep, blocks in ((0.0, 0), (0.5, 3)):
        document = figures(tmp_path, "--layout", "vimeo90k", *options, "--keep", str(keep))
        mean = document["mean"]
        assert document["backend"] == "tiles"
        assert [level["active_fraction"] for level in mean["levels"]] == pytest.approx([blocks / BLOCKS] * 3)
        assert [level["stride"] for level in mean["levels"]] == [8, 4, 2]
        assert [level["dense_gmacs"] for level in mean["levels"]] == [macs / 1e9 for macs in COST.prunable]
        assert mean["dense_gmacs"] == COST.triplet / 1e9
        spared = sum(level["dense_gmacs"] - level["performed_gmacs"] for level in mean["levels"])
        skipped = (mean["dense_gmacs"] - mean["performed_gmacs"]) / mean["dense_gmacs"]
        assert mean["skipped_fraction"] == pytest.approx(skipped, rel=1e-9)
        # Tiles also spare correlations and the enlargement where no block is near; near one it takes 9 / 4 of the work.
        beside = mean["dense_gmacs"] - mean["performed_gmacs"] - spared
        if blocks:
            assert -5 / 4 * sum(COST.beside) / 1e9 < beside < sum(COST.beside) / 1e9
        else:  # nothing but the search
            assert spared == pytest.approx(sum(COST.prunable) / 1e9)
            assert mean["performed_gmacs"] == pytest.approx(COST.match / 1e9)
        for sample, found in zip(samples, document["samples"], strict=True):
            expected = direct_psnr(made_directly(sample, keep), sample.truth)
            assert found["psnr"] == pytest.approx(expected, abs=0.02)


def test_limit_counts_in_each_split(tmp_path: Path, weights: str) -> None:
    x4k(tmp_path)
    options = ("--weights", weights, *DENSE, "--limit", "2")
    splits = figures(tmp_path, "--layout", "x4k", *options)["splits"]
    assert {name: summary["samples"] for name, summary in splits.items()} == {"Type1": 2, "Type2": 2}
    clips = tmp_path / "clips"
    clips.mkdir()
    video(clips)
    assert [item.count for item in find_samples("video", clips, 1)] == [1, 1]
    assert len([one for item in find_samples("video", clips, 1) for one in item.samples()]) == 2


def test_kept_frames_of_a_video_help_each_other(tmp_path: Path) -> None:
    video(tmp_path)
    first, second = find_samples("video", tmp_path, 5)[0].samples()
    assert first.before is None
    assert first.after is not None
    assert second.before is not None
    assert second.after is None
    assert np.array_equal(first.after, second.right)
    assert np.array_equal(second.before, first.left)
    assert np.array_equal(first.right, second.left)


def test_table(tmp_path: Path, weights: str) -> None:
    snufilm(tmp_path)
    result = run(tmp_path, "--layout", "snufilm", "--weights", weights, *DENSE, "-v")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "PSNR dB" in lines[0]
    assert "active 1/8" in lines[0]
    assert [line.split()[:2] for line in lines[1:6]] == [
        ["easy", "1"],
        ["medium", "1"],
        ["hard", "1"],
        ["extreme", "1"],
        ["all", "4"],
    ]
    assert f"{COST.triplet / 1e9:.2f}" in lines[5]
    assert "backend dense" in lines[-1]
    file = tmp_path / "figures.json"
    result = run(tmp_path, "--layout", "snufilm", "--weights", weights, *DENSE, "-q", "--json", file)
    assert (result.exit_code, result.output) == (0, "")
    assert json.loads(file.read_text())["mean"]["samples"] == 4


def test_the_worst_are_written(tmp_path: Path, weights: str) -> None:
    samples = snufilm(tmp_path)
    options = ("--weights", weights, "--device", "cpu", "--precision", "fp32", "--keep", "0.5")
    worst = tmp_path / "worst"
    document = figures(tmp_path, "--layout", "snufilm", *options, "--worst", worst, "--worst-count", "3")
    ranked = sorted(zip(document["samples"], samples, strict=True), key=lambda pair: float(pair[0]["psnr"]))[:3]
    paths = sorted(worst.iterdir())
    assert [path.name for path in paths] == [
        f"{rank:02d}_{found['psnr']:.2f}dB_{found['split']}_GOPR0384_000008.png"
        for rank, (found, _) in enumerate(ranked, 1)
    ]
    width, height = SIZE
    for path, (found, sample) in zip(paths, ranked, strict=True):
        whole = read_picture(path)
        assert whole.shape == (2 * height + 4, 3 * width + 8, 3)
        rows = (whole[:height], whole[height + 4 :])
        panels = [row[:, column * (width + 4) :][:, :width] for row in rows for column in range(3)]
        assert np.array_equal(panels[0], sample.left)
        assert np.array_equal(panels[1], sample.truth)
        assert np.array_equal(panels[2], sample.right)
        assert direct_psnr(panels[3], sample.truth) == pytest.approx(found["psnr"], abs=1e-6)
        assert np.array_equal(panels[4], (4 * np.abs(panels[3].astype(int) - sample.truth)).clip(max=255))
        assert 127 <= panels[5].max() < 256


def test_masks_are_those_of_the_picture(tmp_path: Path, weights: str) -> None:
    request = Request(as_frame(picture(0), 0), as_frame(picture(3), 1), 0.5)
    for options, blocks in ((EngineOptions(weights, keep=0.5), 3), (EngineOptions(weights, pruning=False), BLOCKS)):
        engine = Interpolator(options)
        (made,) = engine.interpolate([request], masks=True)
        assert made.masks is not None
        assert made.masks.shape == (3, SIZE[1], SIZE[0])
        for mask in made.masks:
            padded = np.pad(mask, ((0, 8), (0, 8)), mode="edge")
            assert padded.reshape(2, 16, 3, 16).all(axis=(1, 3)).sum() == blocks
            assert padded.sum() == blocks * 256
        engine.reset()
        assert engine.interpolate([request])[0].masks is None


def test_bad_pictures(tmp_path: Path, weights: str) -> None:
    triplets(tmp_path)
    put(tmp_path / "two" / "b.png", 0, (16, 16))
    result = run(tmp_path, "--layout", "triplets", "--weights", weights)
    assert result.exit_code == 2
    assert "b.png is 16x16, but a.png is 40x24" in result.stderr
    (tmp_path / "two" / "b.png").write_bytes(b"junk")
    result = run(tmp_path, "--layout", "triplets", "--weights", weights)
    assert result.exit_code == 2
    assert "b.png is neither PNG nor JPEG" in result.stderr
    put(tmp_path / "two" / "d.png", 0)
    result = run(tmp_path, "--layout", "triplets", "--weights", weights)
    assert result.exit_code == 2
    assert "two holds 4 pictures, not 3" in result.stderr


def test_a_video_may_be_too_short(tmp_path: Path, weights: str) -> None:
    make_clip(tmp_path / "a.mkv", Clip(frames=2, size=(48, 32), codec="ffv1"))
    result = run(tmp_path, "--layout", "video", "--weights", weights)
    assert result.exit_code == 2
    assert "fewer than three frames" in result.stderr
