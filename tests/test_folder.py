"""Folders: what is converted, skipped and refused, with a stand-in for the network."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.clips import Clip, make_clip
from tests.fakes import FakeEngine
from ugsp_cli import engine as engine_module
from ugsp_cli import media
from ugsp_cli.cli import cli
from ugsp_cli.errors import InputError, OutputError
from ugsp_cli.folder import RECORD_NAME, plan_folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """Stand in for the network; lists the models that were loaded."""
    loaded: list[FakeEngine] = []

    def load(options: engine_module.EngineOptions) -> FakeEngine:
        loaded.append(FakeEngine())
        return loaded[-1]

    monkeypatch.setattr(engine_module, "load_interpolator", load)
    return loaded


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two good videos, one of them deeper, one bad one, and things that are no videos."""
    folder = tmp_path / "videos"
    (folder / "deeper").mkdir(parents=True)
    make_clip(folder / "a.mp4", Clip(6, Fraction(30)))
    make_clip(folder / "deeper" / "b.mkv", Clip(6, Fraction(30)))
    (folder / "bad.mp4").write_bytes(b"no video at all")
    (folder / "notes.txt").write_text("not to be converted")
    (folder / ".hidden.mp4").write_bytes(b"")
    return folder


def batch(source: Path, target: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, ["batch", str(source), str(target), "--fps", "60", *more])


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def modified(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in tree(folder)}


def statuses(result: Result) -> dict[str, str]:
    return {entry["input"]: entry["status"] for entry in json.loads(result.stdout)["files"]}


def test_one_bad_file_does_not_stop_the_rest(videos: Path, tmp_path: Path, loads: list[FakeEngine]) -> None:
    result = batch(videos, tmp_path / "out", "--recursive")
    assert result.exit_code == 1
    assert tree(tmp_path / "out") == {"a.mp4", "deeper/b.mkv", RECORD_NAME}
    assert len(loads) == 1
    assert loads[0].resets == 2
    assert media.probe(tmp_path / "out" / "a.mp4").rate == 60
    assert "bad.mp4 cannot be read" in result.stdout
    assert "3 files: 2 converted, 1 failed" in result.stdout


def test_a_second_run_converts_nothing(videos: Path, tmp_path: Path, loads: list[FakeEngine]) -> None:
    (videos / "bad.mp4").unlink()
    assert batch(videos, tmp_path / "out", "--recursive").exit_code == 0
    before = modified(tmp_path / "out")
    result = batch(videos, tmp_path / "out", "--recursive", "-y", "--stats", "-")
    assert result.exit_code == 0
    assert set(statuses(result).values()) == {"skipped"}
    assert modified(tmp_path / "out") == before
    assert loads[1].requests == []


@pytest.mark.parametrize("change", ["settings", "input", "record"])
def test_an_output_of_other_making_is_not_replaced_unasked(
    videos: Path, tmp_path: Path, loads: list[FakeEngine], change: str
) -> None:
    target = tmp_path / "out"
    more = ["--glob", "a.*", "--stats", "-"]
    assert batch(videos, target, *more).exit_code == 0
    if change == "settings":
        more += ["--crf", "30"]
    elif change == "input":
        make_clip(videos / "a.mp4", Clip(8, Fraction(30)))
    else:
        (target / RECORD_NAME).unlink()
    before = modified(target)
    result = batch(videos, target, *more)
    assert result.exit_code == 1
    assert statuses(result) == {"a.mp4": "failed"}
    assert modified(target) == before
    result = batch(videos, target, *more, "-y")
    assert statuses(result) == {"a.mp4": "converted"}
    assert statuses(batch(videos, target, *more)) == {"a.mp4": "skipped"}


def test_dry_run_writes_nothing(videos: Path, tmp_path: Path, loads: list[FakeEngine]) -> None:
    result = batch(videos, tmp_path / "out", "--dry-run", "--stats", "-")
    assert statuses(result) == {"a.mp4": "planned", "bad.mp4": "failed"}
    assert not (tmp_path / "out").exists()


def test_statistics_of_a_folder(videos: Path, tmp_path: Path, loads: list[FakeEngine]) -> None:
    batch(videos, tmp_path / "out", "--stats", str(tmp_path / "stats.json"))
    document = json.loads((tmp_path / "stats.json").read_text())
    good, bad = document["files"]
    assert good["stats"]["frames"]["output"] == 12
    assert bad["status"] == "failed"
    assert "reason" in bad


def test_an_interrupt_tells_what_was_done(
    videos: Path, tmp_path: Path, loads: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ugsp_cli import pipeline

    run_job = pipeline.run_job

    def interrupted(job: pipeline.Job, *more: Any) -> Any:
        if job.input.name == "b.mkv":
            raise KeyboardInterrupt
        return run_job(job, *more)

    monkeypatch.setattr(pipeline, "run_job", interrupted)
    result = batch(videos, tmp_path / "out", "--recursive")
    assert result.exit_code == 130
    assert "1 converted, 1 failed" in result.stdout
    assert tree(tmp_path / "out") == {"a.mp4", RECORD_NAME}


def test_the_plan_mirrors_the_tree_and_keeps_names_apart(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "in" / "out"
    (target / "old").mkdir(parents=True)
    for name in ("x.avi", "x.mpg", "x.MP4", "out/done.mp4", "sub/x.webm"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).touch()
    names = {task.name: task.output.relative_to(target).as_posix() for task in plan_folder(source, target)}
    assert names == {"x.avi": "x.avi.mkv", "x.mpg": "x.mpg.mkv", "x.MP4": "x.MP4"}
    tasks = plan_folder(source, target, recursive=True, pattern="*.webm")
    assert [task.output for task in tasks] == [target / "sub" / "x.webm"]


def test_a_record_that_is_none_is_left_aside(videos: Path, tmp_path: Path, loads: list[FakeEngine]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RECORD_NAME).write_text('{"schema": 1, "files": []}')
    result = batch(videos, tmp_path / "out", "--glob", "a.*", "--stats", "-")
    assert statuses(result) == {"a.mp4": "converted"}


def test_inputs_are_not_written_over(tmp_path: Path, loads: list[FakeEngine]) -> None:
    source = tmp_path / "v"
    (source / "v").mkdir(parents=True)
    for name in ("x.mp4", "v/x.mp4"):
        make_clip(source / name, Clip(4))
    before = modified(source)
    result = batch(source, tmp_path, "--recursive", "-y")
    assert result.exit_code == 2
    assert "written over" in result.stderr
    for name in ("v/x.mp4", "out/x.mp4", f"out/{RECORD_NAME}"):  # neither an input nor an output nor the record
        result = batch(source, source / "out", "--stats", str(source / name), "--recursive")
        assert result.exit_code == 2
        assert "is a file of this run's own" in result.stderr
    assert modified(source) == before


@pytest.mark.parametrize("wrong", [["--encoder-option", "crfx=1"], ["--preset", "warp"], ["--codec", "prores_ks"]])
def test_dry_run_finds_what_a_run_would(
    videos: Path, tmp_path: Path, loads: list[FakeEngine], wrong: list[str]
) -> None:
    for more in (["--dry-run"], []):
        result = batch(videos, tmp_path / "out", "--glob", "a.*", "--stats", "-", *wrong, *more)
        assert statuses(result) == {"a.mp4": "failed"}
        assert result.exit_code == 1


def test_what_cannot_be_planned(tmp_path: Path) -> None:
    source = tmp_path / "in"
    with pytest.raises(InputError, match="not a folder"):
        plan_folder(source, tmp_path / "out")
    source.mkdir()
    with pytest.raises(InputError, match="holds no videos"):
        plan_folder(source, tmp_path / "out")
    for name in ("x.avi", "x.avi.mkv"):
        (source / name).touch()
    with pytest.raises(OutputError, match="would both become"):
        plan_folder(source, tmp_path / "out")
    with pytest.raises(OutputError, match="the output folder too"):
        plan_folder(source, source)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is not a folder"):
        plan_folder(source, tmp_path / "file")
