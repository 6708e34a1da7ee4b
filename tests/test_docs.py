"""Every command in the documents is one that the tool takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from ugsp_cli.cli import cli

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")


def commands(document: str) -> list[str]:
    """The lines in code blocks that call ugsp."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip().startswith("ugsp ")]


@pytest.mark.parametrize("line", [line for document in DOCUMENTS for line in commands(document)])
def test_documented_commands_parse(line: str) -> None:
    _, *arguments = shlex.split(line, comments=True)
    if arguments[0].startswith("-"):
        return
    command = cli.commands[arguments[0]]
    with command.make_context(arguments[0], arguments[1:], parent=click.Context(cli)) as context:
        assert context.params


def test_the_readme_shows_the_main_commands() -> None:
    shown = {shlex.split(line)[1] for line in commands("README.md")}
    assert {"interpolate", "batch", "stats", "info", "doctor"} <= shown


def test_every_option_of_the_main_command_is_in_the_readme() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    options = [name for param in cli.commands["interpolate"].params for name in param.opts if name.startswith("--")]
    assert [name for name in options if name not in text] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_pictures_in_the_documents_are_here_and_small(document: str) -> None:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (REPOSITORY / name).stat().st_size < 300_000
