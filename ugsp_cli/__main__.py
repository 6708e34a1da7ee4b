"""`ugsp` and `python -m ugsp_cli`."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from pathlib import Path

from ugsp_cli.errors import ExitCode

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    _prepare_streams()
    # The last collection would look through all of torch: a fifth of a second in which nothing is freed that matters.
    atexit.register(gc.freeze)
    try:
        from ugsp_cli.cli import cli

        cli(prog_name="ugsp")
    except KeyboardInterrupt:  # while starting; a running command reports its own
        sys.exit(ExitCode.INTERRUPTED)


def _prepare_streams() -> None:
    """Let everything be written to stdout and stderr: also where they are closed, and in whatever encoding, where what
    it does not have is written as its number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - as long as it runs
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
