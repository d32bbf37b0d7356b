"""What the pages tell people to type exists: every option of every command line in the README and docs/."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from mdstore.tools.cli import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINE = re.compile(r"\bmdstore ([a-z]+(?: [^`|;&)\n]*)?)")


def found(command: click.Command, words: list[str]) -> click.Command:
    """The command that the words name; what names it is taken off them."""
    while isinstance(command, click.Group) and words and (below := command.get_command(click.Context(command), words[0])):
        command = below
        words.pop(0)
    return command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_on_the_page_exists(page: Path) -> None:
    for line in LINE.findall(page.read_text()):
        words = line.split()
        command = found(cli, words)
        known = {"--help"} | {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        named = {word for text in words if (word := re.match(r"--[a-z-]+", text.strip("\"'")))}
        assert command is cli or {word.group() for word in named} <= known, line
