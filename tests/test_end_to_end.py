"""The tool with the weights that ship, from file to file."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.clips import Clip, Sound, make_clip
from ugsp_cli.cli import cli
from ugsp_cli.decode import Frame, FrameReader


def run(*arguments: str | Path) -> dict[str, object]:
    """Run `ugsp` and return the JSON that it prints."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document: dict[str, object] = json.loads(result.stdout)
    return document


def frames(path: Path) -> list[Frame]:
    with FrameReader(path, scene_detection=False) as reader:
        return list(reader)


@pytest.mark.parametrize("size", [(96, 64), (50, 38)])
@pytest.mark.parametrize("pruning", ["--pruning", "--no-pruning"])
def test_interpolate(tmp_path: Path, size: tuple[int, int], pruning: str) -> None:
    sound = Sound(seconds=Fraction(1, 4))
    source = make_clip(tmp_path / "in.mkv", Clip(6, codec="ffv1", size=size, sounds=[sound]))
    output = tmp_path / "out.mkv"
    document = run(
        "interpolate",
        source,
        "-o",
        output,
        "--fps",
        "48",
        "--codec",
        "ffv1",
        "--device",
        "cpu",
        pruning,
        "--stats",
        "-",
    )
    before, after = frames(source), frames(output)
    assert len(after) == 12
    for copied, original in zip(after[0::2], before, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(copied.planes, original.planes, strict=True))
    # What is made lies between its neighbours: nearer to both than they are to each other.
    for left, made, right in zip(after[0:-2:2], after[1:-1:2], after[2::2], strict=False):
        apart = difference(left, right)
        assert difference(left, made) < apart
        assert difference(made, right) < apart
    compute = document["compute"]
    assert isinstance(compute, dict)
    if pruning == "--no-pruning":
        assert compute["skipped_fraction"] == pytest.approx(0)
        assert [level["active_fraction"] for level in compute["levels"]] == [1, 1, 1]
    else:
        assert 0 <= compute["skipped_fraction"] < 1
    assert sum(level["performed_gmacs"] for level in compute["levels"]) <= compute["performed_gmacs"]


def test_stats_and_interpolate_agree(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(5))
    common = ("--multiplier", "2", "--device", "cpu", "--precision", "fp32")
    measured = run("stats", source, *common, "--json")
    converted = run("interpolate", source, *common, "--stats", "-")
    for key in ("frames", "compute", "per_frame", "model", "backend"):
        assert measured[key] == converted[key]


def difference(one: Frame, other: Frame) -> float:
    return float(np.abs(one.planes[0].astype(float) - other.planes[0]).mean())
