"""Data sets are found as they lie, and what is wrong with them is said before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.clips import Clip, make_clip
from tests.datasets import (
    BUILDERS,
    Expected,
    middlebury,
    septuplets,
    snufilm,
    triplets,
    ucf101,
    ucf101_quintuplets,
    vimeo90k,
    x4k,
)
from ugsp_cli import engine as engine_module
from ugsp_cli.cli import cli
from ugsp_cli.engine import EngineOptions
from ugsp_cli.evaluate import LAYOUT_NAMES
from ugsp_cli.layouts import LAYOUTS, X4K_PARTS, find_samples


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong must be found before the network is loaded."""

    def load(options: EngineOptions) -> None:
        raise AssertionError("the network was loaded")

    monkeypatch.setattr(engine_module, "load_interpolator", load)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *(str(argument) for argument in arguments)])


def test_the_names_of_layouts_agree() -> None:
    assert (*LAYOUTS, "video") == LAYOUT_NAMES


@pytest.mark.parametrize(("layout", "build"), BUILDERS, ids=lambda value: getattr(value, "__name__", value))
def test_samples_are_found(tmp_path: Path, layout: str, build: Callable[[Path], list[Expected]]) -> None:
    expected = build(tmp_path)
    found = [sample for item in find_samples(layout, tmp_path) for sample in item.samples()]
    assert [(one.split, one.name, one.t) for one in found] == [(one.split, one.name, one.t) for one in expected]
    for one, other in zip(found, expected, strict=True):
        for name in ("left", "truth", "right"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_snufilm_paths_are_found_where_they_lie(tmp_path: Path) -> None:
    for number, (inside, listed) in enumerate(
        (("test", "test"), ("data/SNU-FILM/test", "data/SNU-FILM/test"), (".", "data/SNU-FILM/test"))
    ):
        root = tmp_path / str(number)
        root.mkdir()
        assert len(snufilm(root, inside, listed)) == len(find_samples("snufilm", root)) == 4
    modes = root / "eval_modes"
    modes.mkdir()
    for path in list(root.glob("test-*.txt"))[:3]:
        path.rename(modes / path.name)
    (modes / "test-hard.txt").unlink(missing_ok=True)
    (root / "test-hard.txt").unlink(missing_ok=True)
    assert [getattr(one, "split", "") for one in find_samples("snufilm", root)] == ["easy", "medium", "extreme"]


def test_longer_x4k_clips_have_more_spans(tmp_path: Path) -> None:
    samples = x4k(tmp_path / "test", last=64)
    assert len(samples) == 2 * 2 * (X4K_PARTS - 1)
    names = [(one.split, one.name) for item in find_samples("x4k", tmp_path) for one in item.samples()]
    assert names == [(one.split, one.name) for one in samples]


MISSING = [
    ("vimeo90k", vimeo90k, "sequences/00002/0010/im2.png"),
    ("vimeo90k", septuplets, "sequences/00001/0266/im4.png"),
    ("ucf101", ucf101, "11/frame_01_gt.png"),
    ("ucf101", ucf101_quintuplets, "0/framet.png"),
    ("middlebury", middlebury, "other-gt-interp/Urban3/frame10i11.png"),
    ("middlebury", middlebury, "other-data/Beanbags/frame11.png"),
    ("snufilm", snufilm, "test/GOPRO_test/GOPR0384/000005.png"),
    ("x4k", x4k, "Type2/TEST01/0016.png"),
    ("x4k", x4k, "Type1/TEST01/0000.png"),
    ("x4k", x4k, "Type1/TEST01/0032.png"),
]


@pytest.mark.parametrize(("layout", "build", "frame"), MISSING, ids=[f"{one[0]}-{one[2]}" for one in MISSING])
def test_missing_frames_are_named(
    tmp_path: Path, no_network: None, layout: str, build: Callable[[Path], list[Expected]], frame: str
) -> None:
    build(tmp_path)
    (tmp_path / frame).unlink()
    result = run(tmp_path, "--layout", layout)
    assert result.exit_code == 2
    assert f"missing in {tmp_path}" in result.stderr
    assert str(tmp_path / frame) in result.stderr
    assert "Complete the data set" in result.stderr


def test_many_missing_frames_are_counted(tmp_path: Path, no_network: None) -> None:
    septuplets(tmp_path)
    for path in (tmp_path / "sequences").rglob("*.png"):
        path.unlink()
    result = run(tmp_path, "--layout", "vimeo90k")
    assert result.exit_code == 2
    assert "and 4 more" in result.stderr


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_empty_folders(tmp_path: Path, no_network: None, layout: str) -> None:
    result = run(tmp_path, "--layout", layout)
    assert result.exit_code == 2
    assert f"{tmp_path} holds no" in result.stderr
    result = run(tmp_path / "nowhere", "--layout", layout)
    assert result.exit_code == 2
    assert "nowhere is not a folder" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00junk", "it is not a text file"),
        (b"a/1.png a/2.png a/3.png\na/1.png a/2.png\n", "line 2 holds 2 names, not 3"),
        (b"\n\n", "is empty"),
        (None, "cannot be read"),
    ],
)
def test_unreadable_lists(tmp_path: Path, no_network: None, content: bytes | None, message: str) -> None:
    path = tmp_path / "test-hard.txt"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    result = run(tmp_path, "--layout", "snufilm")
    assert result.exit_code == 2
    assert f"the list {path}" in result.stderr
    assert message in result.stderr


def test_bad_videos(tmp_path: Path, no_network: None) -> None:
    (tmp_path / "a.mp4").write_bytes(b"junk")
    result = run(tmp_path, "--layout", "video")
    assert result.exit_code == 2
    assert "a.mp4" in result.stderr


def test_hidden_files_are_no_videos(tmp_path: Path) -> None:
    """Such as a Mac leaves beside others on a foreign disk."""
    make_clip(tmp_path / "a.mp4", Clip(4))
    (tmp_path / "._a.mp4").write_bytes(b"no video")
    assert [item.paths for item in find_samples("video", tmp_path, None)] == [(tmp_path / "a.mp4",)]


def test_documents_replace_no_picture(tmp_path: Path, no_network: None) -> None:
    triplets(tmp_path)
    picture = tmp_path / "one" / "b.png"
    before = picture.read_bytes()
    result = run(tmp_path, "--layout", "triplets", "--json", picture)
    assert result.exit_code == 2
    assert "is a file of this run's own" in result.stderr
    result = run(tmp_path, "--layout", "triplets", "--worst", picture / "worst")
    assert result.exit_code == 2
    assert picture.read_bytes() == before


def test_the_worst_need_a_new_folder(tmp_path: Path, no_network: None) -> None:
    triplets(tmp_path / "data")
    result = run(tmp_path / "data", "--layout", "triplets", "--worst", tmp_path)
    assert result.exit_code == 2
    assert "not an empty folder" in result.stderr
