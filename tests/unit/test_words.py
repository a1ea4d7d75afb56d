"""tools/words.py finds each kind of violation, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import words  # noqa: E402

WIDE = "word " * 23
FOUND = {
    "opening.py": '"""What a device does."""\n\n# Of a device.\n# What follows is the same comment.\nDEVICES = 1  # That which is.\n',
    "name.py": "for one in []:\n    print(one)\n",
    "wide.py": f'"""Devices.\n\n{WIDE}"""\n# {WIDE}\n',
    "opening.h": "// Who waits.\nint waits;  // What for.\n",
    "name.cpp": "int f(int one) { return one; }\n",
    "wide.h": f"// {WIDE}\n",
    "block.h": f"int f();\n/* What is\n * wide: {WIDE} */\n",
    "opening.pyx": '"""Who waits."""\ncdef int waits  # Of a device\n',
    "name.pxd": "cdef extern from *:\n    int one\n",
    "sentence.py": '"""A lane.\n\nIt runs actions. What waits is queued.\n"""\n# An action.\n# Whoever sent it waits.\n',
    "sentence.h": "int lane;  // a lane. Who holds it?\n// A device. Those that wait\n// are queued.\n",
    "document.md": "# A lane\n\nIt runs.\nWhat waits is queued.\n\n| What | waits |\n\n- Who waits.\n",
}
LINES = {
    "opening.py": [1, 3, 5], "name.py": [1, 2], "wide.py": [3, 4], "opening.h": [1, 2], "name.cpp": [1, 1], "wide.h": [1],
    "block.h": [2, 3],
    "opening.pyx": [1, 2], "name.pxd": [2],
    "sentence.py": [3, 5], "sentence.h": [2], "document.md": [3, 6, 8],
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_it_finds_each_kind_in_each_language(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FOUND[name], encoding="utf-8")
    found = [number for number, _ in words.check(tmp_path / name)]
    # A line is named once at least, and only lines that are at fault.
    assert sorted(set(found)) == sorted(set(LINES[name]))


def test_it_finds_nothing_in_strings_attributes_and_urls(tmp_path: Path) -> None:
    path = tmp_path / "fine.py"
    address = "https://example.org/" + "a" * 120
    path.write_text(
        f'"""A device.\n\n{address}\n"""\n# {address}\nNAME = "one"\nTEXT = """What it is."""\nstring = "{WIDE}"\n',
        encoding="utf-8",
    )
    assert list(words.check(path)) == []
    path = tmp_path / "fine.md"
    path.write_text(
        "What is a lane? A queue: those that wait, and what runs.\n\n```\nWhat it is.\n```\n\n    What it is.\n",
        encoding="utf-8",
    )
    assert list(words.check(path)) == []
    path = tmp_path / "fine.h"
    path.write_text('const char* name = "one";  // "one"\nint one_device;\n/* one */\n', encoding="utf-8")
    assert list(words.check(path)) == []
