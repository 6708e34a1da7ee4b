"""Many files: one model load, one bad file does not stop the rest, and what is finished is not done again.

When is an output finished? Outputs appear whole or not at all, so one that exists is complete. That it was made from
this input with these settings is written down when it is made: a small record file in the output folder holds, per
output, the input's size and modification time, the output's size, and a fingerprint of everything that changes the
picture (rate, weights, pruning, encoder settings). An output that does not match its record, or has none, is not ours
to replace: that file fails until `--overwrite` allows it. Finished ones are skipped even then. A run that is killed
loses at most the entry of the file that it had just finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ugsp_cli.atomic import check_folder
from ugsp_cli.errors import InputError, OutputError, UgspError
from ugsp_cli.naming import container_suffix, same_file

if TYPE_CHECKING:
    from ugsp_cli.pipeline import Job
    from ugsp_cli.stats import JobStats

__all__ = [
    "RECORD_NAME",
    "VIDEO_SUFFIXES",
    "FileResult",
    "Task",
    "convert_folder",
    "fingerprint",
    "make_folder",
    "plan_folder",
]

RECORD_NAME = ".ugsp-batch.json"
"""Name of the record of finished outputs, in the output folder."""

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv"}
    | {".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
"""Names that count as videos where no pattern is given."""

_RECORD_SCHEMA = 1

Status = Literal["converted", "skipped", "failed", "planned"]


@dataclass(frozen=True)
class Task:
    """One input and where its output goes."""

    name: str
    """The input's path within the input folder, for messages."""
    input: Path
    output: Path


@dataclass(frozen=True)
class FileResult:
    """What became of one file."""

    name: str
    """The input's path within the input folder."""
    output: Path
    status: Status
    reason: str = ""
    """Why it was skipped or failed."""
    stats: JobStats | None = None
    """Present where it was converted."""

    def to_json(self) -> dict[str, Any]:
        """The file's entry in the folder's statistics."""
        entry: dict[str, Any] = {"input": self.name, "output": str(self.output), "status": self.status}
        if self.reason:
            entry["reason"] = self.reason
        if self.stats is not None:
            entry["stats"] = self.stats.to_json()
        return entry


def plan_folder(source: Path, target: Path, *, recursive: bool = False, pattern: str | None = None) -> list[Task]:
    """Find the videos and name their outputs: same tree, same names, except where a container cannot be written.

    pattern: a shell pattern for file names that replaces the list of known endings. Raises UgspError where there is
    nothing to do or two inputs would end up in one output.
    """
    if not source.is_dir():
        raise InputError(f"{source} is not a folder", "Name a folder, or use `ugsp interpolate` for one file.")
    if same_file(source, target):
        raise OutputError("the input folder is the output folder too", "Name another folder for the outputs.")
    check_folder(target)
    tasks = []
    for path in sorted(_files(source, target, recursive)):
        if fnmatch(path.name, pattern) if pattern is not None else path.suffix.lower() in VIDEO_SUFFIXES:
            name = path.relative_to(source)
            suffix = container_suffix(path)
            # A name that changes keeps its old ending, so that a.avi and a.mpg stay apart: a.avi.mkv, a.mpg.mkv.
            output = name if suffix == path.suffix else name.with_name(path.name + suffix)
            tasks.append(Task(str(name), path, target / output))
    if not tasks:
        looked_for = f"files that match '{pattern}'" if pattern is not None else "videos"
        deeper = "" if recursive else " Use --recursive to look into folders within it."
        raise InputError(f"{source} holds no {looked_for}", f"Check the folder and --glob.{deeper}")
    inputs = {_identity(task.input): task for task in tasks}
    taken: dict[Path, Task] = {}
    for task in tasks:
        if task.output.exists() and _identity(task.output) in inputs:
            other = inputs[_identity(task.output)]
            raise OutputError(f"{task.name} would be written over {other.name}", "Name another folder for the outputs.")
        other = taken.setdefault(task.output, task)
        if other is not task:
            raise OutputError(f"{other.name} and {task.name} would both become {task.output}", "Rename one of them.")
    return tasks


def fingerprint(job: Job, weights_sha256: str, settings: dict[str, Any]) -> str:
    """A checksum of everything that changes the picture or the sound of an output, beyond the input itself.

    settings: what the network was told to do (pruning, share to keep, precision). Device, batch size and threads are
    left out on purpose: a batch may be continued on another machine.
    """
    everything = {
        "rate": dataclasses.asdict(job.rate),
        "encode": dataclasses.asdict(job.encode),
        "scene_threshold": job.scene_threshold,
        "weights": weights_sha256,
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()


def convert_folder(
    tasks: list[Task],
    target: Path,
    mark: str,
    convert: Callable[[Task, bool], JobStats | None],
    *,
    overwrite: bool = False,
) -> Iterator[FileResult]:
    """Convert what is not finished yet and yield each file's result.

    mark: the `fingerprint` of these settings. convert: converts one file, told whether it may replace the output, or
    returns None where it only looked whether it could; what it raises as UgspError or OSError is that file's failure;
    anything else ends the run.
    """
    record = _Record(target / RECORD_NAME)
    for task in tasks:
        state = record.state(task, mark)
        if state == "finished":
            yield FileResult(task.name, task.output, "skipped", "finished before")
        elif state == "foreign" and not overwrite:
            reason = "the output exists and was not made from this input with these settings; -y replaces it"
            yield FileResult(task.name, task.output, "failed", reason)
        else:
            yield _attempt(task, record, mark, convert, overwrite)


def _attempt(
    task: Task,
    record: _Record,
    mark: str,
    convert: Callable[[Task, bool], JobStats | None],
    overwrite: bool,
) -> FileResult:
    """Convert one file, or see whether it could be; its errors become its result."""
    try:
        stats = convert(task, overwrite)
        if stats is None:
            return FileResult(task.name, task.output, "planned")
        record.add(task, mark)
    except UgspError as error:
        return FileResult(task.name, task.output, "failed", error.message)
    except OSError as error:
        return FileResult(task.name, task.output, "failed", str(error))
    return FileResult(task.name, task.output, "converted", "; ".join(stats.notes), stats)


class _Record:
    """The record of finished outputs: written after every file, whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def state(self, task: Task, mark: str) -> Literal["missing", "finished", "foreign"]:
        """Whether the output is there, and made from this input with these settings."""
        if not task.output.exists():
            return "missing"
        known = self._read().get(self._key(task))
        return "finished" if known == self._entry(task, mark) else "foreign"

    def add(self, task: Task, mark: str) -> None:
        """Note that the output was finished just now. Raises OSError."""
        # Read again, so that two runs over different inputs into one folder keep each other's entries.
        outputs = self._read()
        outputs[self._key(task)] = self._entry(task, mark)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        try:
            document = {"schema": _RECORD_SCHEMA, "outputs": outputs}
            temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        """The entries; none where there is no record, or none that can be read (then outputs count as foreign)."""
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(self._path.read_text(encoding="utf-8"))
            outputs = document.get("outputs") if isinstance(document, dict) else None
            if isinstance(outputs, dict) and document.get("schema") == _RECORD_SCHEMA:
                return outputs
        return {}

    def _key(self, task: Task) -> str:
        return task.output.relative_to(self._path.parent).as_posix()

    @staticmethod
    def _entry(task: Task, mark: str) -> dict[str, Any]:
        source = task.input.stat()
        return {
            "input_bytes": source.st_size,
            "input_mtime_ns": source.st_mtime_ns,
            "output_bytes": task.output.stat().st_size,
            "settings": mark,
        }


def _files(source: Path, target: Path, recursive: bool) -> Iterator[Path]:
    """The visible files of a folder; never those of the output folder, which may lie inside."""
    for path in source.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif recursive and path.is_dir() and not path.is_symlink() and not same_file(path, target):
            yield from _files(path, target, recursive)


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of a file."""
    status = path.stat()
    return status.st_dev, status.st_ino


def make_folder(folder: Path) -> None:
    """Make a folder for outputs, and those above it, where there is none. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror}", "Check its permissions.") from error
