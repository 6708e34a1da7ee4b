"""Errors carry what the command line prints and returns."""

from __future__ import annotations

import pytest

from ugsp_cli.errors import (
    DecodeError,
    EncodeError,
    ExitCode,
    InputError,
    OutputError,
    UgspError,
    UsageError,
)


def test_exit_codes_are_the_documented_ones() -> None:
    assert [(code.name, int(code)) for code in ExitCode] == [
        ("OK", 0),
        ("FAILED", 1),
        ("USAGE", 2),
        ("INTERRUPTED", 130),
    ]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (UgspError, ExitCode.FAILED),
        (DecodeError, ExitCode.FAILED),
        (EncodeError, ExitCode.FAILED),
        (UsageError, ExitCode.USAGE),
        (InputError, ExitCode.USAGE),
        (OutputError, ExitCode.USAGE),
    ],
)
def test_kinds(kind: type[UgspError], code: ExitCode) -> None:
    error = kind("it broke", "Mend it.")
    assert (str(error), error.message, error.hint) == ("it broke", "it broke", "Mend it.")
    assert error.exit_code == code
    assert isinstance(error, UgspError)
    assert kind("it broke").hint == ""
