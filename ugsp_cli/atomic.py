"""A file that appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
from io import FileIO
from pathlib import Path

from ugsp_cli.errors import OutputError
from ugsp_cli.naming import same_file

__all__ = ["AtomicFile", "check_document", "check_folder", "check_target"]


class AtomicFile:
    """A writable, seekable binary file beside `target` that takes its place on `commit` and vanishes on `discard`.

    The writes go straight to the file, so that FFmpeg may read through the name what it wrote before (it moves an MP4's
    index to the front that way).
    """

    def __init__(self, target: Path, overwrite: bool) -> None:
        """Raises OutputError where the target exists and may not be overwritten, or its folder cannot be written."""
        self.target = target
        self._overwrite = overwrite
        check_target(target, overwrite)
        # The extension stays, because FFmpeg and people tell formats by it; the dot hides the file from globs. A name
        # that is as long as the system allows is shortened.
        stem = f".{target.stem[:50]}."
        _remove_abandoned(target.parent, stem, target.suffix)
        there = False
        while not there:
            self.path = target.with_name(f"{stem}{secrets.token_hex(4)}{target.suffix}")
            try:
                self._file = FileIO(self.path, "x+")
            except OSError as error:
                raise OutputError(f"{self.path.parent} cannot be written: {error.strerror}", _FOLDER_HINT) from error
            _lock(self._file)
            # Before it was locked, another process may have taken it for an abandoned one.
            there = self.path.exists()
            if not there:
                self._file.close()
        self.name = f"file:{self.path}"

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data` (a raw file may take only a part at a time)."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += self._file.write(view[done:]) or 0
        return done

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size) or b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def commit(self) -> None:
        """Make the content durable and move it to the target in one step."""
        os.fsync(self._file.fileno())
        self._file.close()
        if not self._overwrite and self.target.exists():
            self.path.unlink()
            raise OutputError(f"{self.target} appeared in the meantime", "Choose another name, or allow it with -y.")
        self.path.replace(self.target)
        _sync_folder(self.target.parent)

    def discard(self) -> None:
        """Remove the unfinished file. Harmless after `commit`."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def check_target(target: Path, overwrite: bool) -> None:
    """Raise OutputError where an output file could not be made; makes nothing."""
    if target.is_dir():
        raise OutputError(f"{target} is a folder", "Name a file.")
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists already", "Choose another name with -o, or overwrite it with -y.")
    if not target.parent.is_dir():
        raise OutputError(f"the folder {target.parent} does not exist", "Create it first.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{target.parent} cannot be written: no permission", _FOLDER_HINT)


def check_document(path: Path, option: str, *others: Path) -> None:
    """Raise OutputError where a document could not be written that an option (its name) asks for, or would replace one
    of the other files; makes nothing."""
    if path.exists():
        taken = any(same_file(path, other) for other in others)
    else:
        taken = any(path.resolve() == other.resolve() for other in others if not other.exists())
    if taken:
        raise OutputError(f"{path} is a file of this run's own", f"Name another one for {option}.")
    if path.exists() and not path.is_file():  # a pipe or a device
        return
    if not os.access(path.resolve().parent, os.W_OK):
        raise OutputError(f"{path}: its folder does not exist or cannot be written to", f"Name another for {option}.")


def check_folder(folder: Path) -> None:
    """Raise OutputError where a folder could not be made or written to; makes nothing."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is not a folder", "Name another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} cannot be written: no permission", "Name another folder.")


_KNOWS_LOCKS = importlib.util.find_spec("fcntl") is not None
"""Not on Windows."""

_FOLDER_HINT = "Choose another folder with -o, or check its permissions and free space."


def _lock(file: FileIO) -> None:
    """Mark a file as being written for as long as this process lives: the system forgets a lock with its process, also
    after kill -9. Some network folders know no locks; what is abandoned there stays."""
    if _KNOWS_LOCKS:
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)


def _remove_abandoned(folder: Path, stem: str, suffix: str) -> None:
    """Remove unfinished files for the same target that a process left when it was killed."""
    if not _KNOWS_LOCKS:  # nobody can tell which are abandoned
        return
    import fcntl

    name = re.compile(re.escape(stem) + "[0-9a-f]{8}" + re.escape(suffix))
    for path in folder.iterdir():
        if name.fullmatch(path.name):
            with contextlib.suppress(OSError), FileIO(path, "r+") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets folders be opened (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
