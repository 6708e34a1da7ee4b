"""`ugsp` and `python -m ugsp_cli`."""

from __future__ import annotations

import sys

from ugsp_cli.errors import ExitCode

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from ugsp_cli.cli import cli

        cli(prog_name="ugsp")
    except KeyboardInterrupt:  # while starting; a running command reports its own
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
