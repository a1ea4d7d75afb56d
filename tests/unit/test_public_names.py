"""The names that documents and examples import exist."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))


def imports_in(source: str) -> Iterator[tuple[str, str]]:
    """Return (module, name) of each import from clockwork; name "" for a module as a whole."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "clockwork":
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((one.name, "") for one in node.names if one.name.split(".")[0] == "clockwork")


def told() -> set[tuple[str, str]]:
    found = {pair for path in EXAMPLES for pair in imports_in(path.read_text(encoding="utf-8"))}
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        for statement in re.findall(
            r"from clockwork[\w.]* import (?:\([^)]*\)|[\w, ]+)|import clockwork[\w.]*", text
        ):
            found |= set(imports_in(statement))
        for module in re.findall(r"-m (clockwork[\w.]*)", text):
            found.add((module.rstrip("."), ""))
    return found


def test_the_examples_and_documents_are_read() -> None:
    assert {
        ("clockwork", "Client"),
        ("clockwork.profiles", "paper_models"),
        ("clockwork.sim.check", ""),
    } <= told()


@pytest.mark.parametrize(("module", "name"), sorted(told()))
def test_a_name_that_is_told_can_be_imported(module: str, name: str) -> None:
    found = importlib.import_module(module)
    assert not name or hasattr(found, name) or importlib.import_module(f"{module}.{name}")
