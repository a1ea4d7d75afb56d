"""docs/security.md names a defence for every attack that exists, and no other attack."""

from __future__ import annotations

import re
from pathlib import Path

from bench.attacks.measure import ATTACKS

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def test_the_page_names_every_attack_and_no_other() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    named = {
        name
        for row in rows
        for part in re.findall(r"attacks? ((?:\"[^\"]+\"(?:, )?)+)", row)
        for name in re.findall(r"\"([^\"]+)\"", part)
    }
    assert named == set(ATTACKS)


def test_the_page_names_tests_that_there_are() -> None:
    root = PAGE.parents[1]
    named = re.findall(r"\btests/[\w/]+\.py", PAGE.read_text(encoding="utf-8"))
    assert named
    assert [path for path in named if not (root / path).exists()] == []
