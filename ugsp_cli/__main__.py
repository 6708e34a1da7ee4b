"""`ugsp` and `python -m ugsp_cli`."""

from __future__ import annotations

import atexit
import gc
import sys

from ugsp_cli.errors import ExitCode

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    # The last collection would look through all of torch: a fifth of a second in which nothing is freed that matters.
    atexit.register(gc.freeze)
    try:
        from ugsp_cli.cli import cli

        cli(prog_name="ugsp")
    except KeyboardInterrupt:  # while starting; a running command reports its own
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
