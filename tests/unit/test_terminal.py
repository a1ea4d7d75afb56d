"""Untrusted texts in coloured tables and sentences, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from clockwork.cli.terminal import Terminal

HOSTILE = "x\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e[red]y[/red][link=http://z]z[/link]"
OWN = re.compile(r"\x1b\[[0-9;]*m")
CLI = Path(__file__).resolve().parents[2] / "clockwork" / "cli"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_strangers_text_is_shown_and_does_nothing(is_terminal: bool) -> None:
    written = io.StringIO()
    terminal = Terminal(file=written, force_terminal=is_terminal, width=300)
    terminal.print(HOSTILE)
    terminal.print(Text(HOSTILE, "red"))
    table = Table("a", "b")
    table.add_row(HOSTILE, Text(HOSTILE))
    terminal.print(table)
    shown = OWN.sub("", written.getvalue())
    assert shown.replace("\n", "").isprintable()
    assert shown.count("[red]y[/red][link=http://z]z[/link]") == 2  # cells are cut
    assert r"\x1b[2J\x9b31m" in shown


def test_commands_print_by_what_they_share() -> None:
    """So that future commands escape untrusted texts, too. JSON is ASCII without control characters."""
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted(CLI.glob("*.py"))
        if path.name not in ("common.py", "terminal.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(
            r"click\.s?echo\(|(?<![a-z_.])print\(|\bConsole\(|\bTextColumn\(|std(out|err)\.write", line
        )
    ]
    assert not found
