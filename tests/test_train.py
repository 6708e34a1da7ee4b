"""`ugsp train`: from a folder of videos to weights that load, and what it says when something is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.clips import Clip, make_clip, make_sound
from ugsp_cli.cli import cli
from ugsp_net import checkpoint


def run(*arguments: str | Path | int) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["train", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    make_clip(folder / "a.mp4", Clip(8, size=(96, 80)))
    return folder


def test_a_run_gives_weights_and_goes_on(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = ("--data", clips, "-o", out, "--no-teacher", "--size", 64, "--batch", 2)
    code, output = run(*common, "--steps", 2)
    assert code == 0, output
    assert checkpoint.load(out / "last.safetensors").provenance["samples"] == 4
    code, output = run(*common, "--steps", 3, "--resume")
    assert code == 0, output
    assert checkpoint.load(out / "last.safetensors").provenance["samples"] == 6
    code, output = run(*common, "--steps", 3)
    assert code == 2
    assert "there is a run in" in output
    code, output = run(*common, "--steps", 4, "--resume", "--no-contrast")
    assert code == 2
    assert "begun with another contrast_weight" in output
    code, output = run(*common, "--steps", 4, "--resume", "--rate", "1e-4")  # as after a gradient that was not finite
    assert code == 0, output
    code, output = run(*common, "--steps", 5, "--resume")  # goes on as it was
    assert code == 0, output
    assert torch.load(out / "last.pt", weights_only=True)["config"]["rate"] == 1e-4
    (clips.parent / "run" / "last.pt").write_bytes((out / "last.pt").read_bytes()[:1000])
    code, output = run(*common, "--steps", 6, "--resume")
    assert code == 2
    assert "last.pt is damaged" in output
    other = ("--data", clips, "-o", tmp_path / "other", "--no-teacher", "--size", 64, "--batch", 2)
    code, output = run(*other, "--steps", 1, "--from", out / "last.safetensors")
    assert code == 0, output
    assert checkpoint.load(tmp_path / "other" / "last.safetensors").provenance["samples"] == 2


def test_a_gradient_that_stays_not_finite_is_1(clips: Path, tmp_path: Path) -> None:
    """And the process that made batches ends with it."""
    command = ["train", "--data", clips, "-o", tmp_path / "run", "--no-teacher", "--size", 64, "--batch", 2]
    done = subprocess.run(
        [sys.executable, "-m", "ugsp_cli", *map(str, command), "--steps", "6", "--rate", "1e30"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "a lower --rate" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_its_processes_lets_the_step_end_and_saves(
    number: signal.Signals, clips: Path, tmp_path: Path
) -> None:
    """As Ctrl-C in a terminal does it, or a service manager: a worker that dies of it would take the step along."""
    out = tmp_path / "run"
    command = ["train", "--data", clips, "-o", out, "--no-teacher", "--size", 64, "--batch", 2, "--minutes", 30]
    process = subprocess.Popen(
        [sys.executable, "-m", "ugsp_cli", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)  # the worker is there, and steps are taken
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume goes on" in errors
    step = torch.load(out / "last.pt", weights_only=True)["step"]
    arguments = (
        "--data",
        clips,
        "-o",
        out,
        "--no-teacher",
        "--size",
        64,
        "--batch",
        2,
        "--resume",
        "--steps",
        step + 1,
    )
    code, output = run(*arguments)
    assert code == 0, output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--minutes", 1, "--steps", 1), "either --minutes or --steps"),
        ((), "either --minutes or --steps"),
        (("--steps", 1, "--size", 100), "multiple of 16"),
        (("--steps", 1, "--resume"), "no run to resume"),
        (("--steps", 1, "--from", "nothing"), "no weights called 'nothing'"),
        (("--steps", 1, "--device", "tpu"), "no device called 'tpu'"),
        (("--steps", 1, "--seed", -1), "--seed"),
        (("--minutes", "nan"), "no number to count with"),
        (("--minutes", "inf"), "no number to count with"),
    ],
)
def test_what_is_wrong_is_named(arguments: tuple[str | int, ...], message: str, clips: Path, tmp_path: Path) -> None:
    code, output = run("--data", clips, "-o", tmp_path / "run", *map(str, arguments))
    assert code == 2
    assert message in output


def test_clips_that_are_of_no_use(tmp_path: Path) -> None:
    make_clip(tmp_path / "small.mp4", Clip(8, size=(48, 32)))
    code, output = run("--data", tmp_path, "-o", tmp_path / "run", "--steps", 1, "--no-teacher")
    assert code == 2
    assert "no clip has pictures of 64x64 pixels" in output
    make_sound(tmp_path / "sound.mp4")
    code, output = run("--data", tmp_path, "-o", tmp_path / "run", "--steps", 1, "--no-teacher")
    assert code == 2
    assert "sound.mp4 holds no video" in output


def test_a_folder_without_videos(tmp_path: Path) -> None:
    code, output = run("--data", tmp_path, "-o", tmp_path / "run", "--steps", 1, "--no-teacher")
    assert code == 2
    assert "no clips in" in output
