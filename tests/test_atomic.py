"""A file is there whole or not at all."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ugsp_cli.atomic import AtomicFile
from ugsp_cli.errors import OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_commit(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    file = AtomicFile(target, overwrite=False)
    file.write(b"content")
    assert not target.exists()
    file.commit()
    file.discard()  # harmless now
    assert target.read_bytes() == b"content"
    assert names(tmp_path) == ["out.mp4"]
    other = tmp_path / "other"
    other.touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_discard_keeps_the_older_file(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"older")
    file = AtomicFile(target, overwrite=True)
    file.write(b"content")
    file.discard()
    file.discard()
    assert file.closed
    assert target.read_bytes() == b"older"
    assert names(tmp_path) == ["out.mp4"]


def test_a_file_that_appears_in_the_meantime_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    file = AtomicFile(target, overwrite=False)
    target.write_bytes(b"another's")
    with pytest.raises(OutputError, match="meantime"):
        file.commit()
    assert target.read_bytes() == b"another's"
    assert names(tmp_path) == ["out.mp4"]


def test_names_of_the_greatest_length(tmp_path: Path) -> None:
    target = tmp_path / ("ü" * 125 + ".mp4")
    AtomicFile(target, overwrite=False).commit()
    assert target.exists()


def test_written_parts_can_be_read_and_changed(tmp_path: Path) -> None:
    file = AtomicFile(tmp_path / "out.mp4", overwrite=False)
    file.write(b"abcdef")
    file.seek(2)
    file.write(memoryview(b"XY"))
    assert file.tell() == 4
    file.seek(0)
    assert file.read() == b"abXYef"
    assert file.path.read_bytes() == b"abXYef"
    file.discard()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    script = (
        "import os, sys; from pathlib import Path; from ugsp_cli.atomic import AtomicFile;"
        "AtomicFile(Path(sys.argv[1]), overwrite=False).write(b'half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert len(names(tmp_path)) == 1
    kept = [".out.mp4", ".out.01234567.mkv", ".out.0123456g.mp4", "out.01234567.mp4", ".other.01234567.mp4"]
    for name in kept:
        (tmp_path / name).touch()
    running = AtomicFile(target, overwrite=False)
    assert names(tmp_path) == sorted([*kept, running.path.name])
    second = AtomicFile(target, overwrite=False)
    assert names(tmp_path) == sorted([*kept, running.path.name, second.path.name])  # that of a living one stays
    running.commit()
    second.discard()
    assert names(tmp_path) == sorted([*kept, "out.mp4"])
