"""The client's types as type checkers see them: the documents' Python passes `mypy --strict` where Clockwork
is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FRAGMENTS = {"strings-and-images.md": "from clockwork import Client\n\nclient = Client()\n"}
"""Code before the examples of a document that continues README's."""

PROMISED = """
import asyncio
from concurrent.futures import Future
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

from clockwork import AsyncClient, Client

Array = npt.NDArray[Any]
x = np.zeros((1, 4), np.float32)


def blocking(client: Client, either: Array | dict[str, Array]) -> None:
    assert_type(client.infer("m", x), Array)
    assert_type(client.infer("m", [[0.5, 1.5]]), Array)
    assert_type(client.infer("m", ["a text"]), Array)
    assert_type(client.infer("m", {"x": x}), dict[str, Array])
    assert_type(client.infer("m", {"x": x, "ids": [1, 2]}, slo=0.1), dict[str, Array])
    assert_type(client.infer("m", either), Array | dict[str, Array])
    assert_type(client.submit("m", x), Future[Array])
    assert_type(client.submit("m", {"x": x}), Future[dict[str, Array]])


async def awaited(client: AsyncClient) -> None:
    assert_type(await client.infer("m", x), Array)
    assert_type(await client.infer("m", {"x": x}), dict[str, Array])
    assert_type(await client.why_not_ready(timeout=1.0), str)
    assert_type(client.submit("m", x), asyncio.Future[Array])
    assert_type(client.submit("m", {"x": x}), asyncio.Future[dict[str, Array]])
"""

MISTAKEN = """
from clockwork import Client

Client().infer("m", object())
Client().infer("m", {1: [0.5]})
"""


def examples() -> dict[str, str]:
    """The documents' blocks of Python that ask Clockwork, by file name."""
    found = {}
    for document in DOCUMENTS:
        blocks = re.findall(r"^```python\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)
        before = FRAGMENTS.get(document.name, "")
        for number, block in enumerate(blocks):
            if before or re.search(r"\bclockwork\b", block):
                found[f"{document.stem.replace('-', '_')}_{number}.py"] = before + block
    return found


def mypy(directory: Path, *files: str, python: str | Path = sys.executable) -> str:
    """Return mypy's findings for files of a directory outside the checkout, in which `python` finds the
    installed package."""
    cache = directory if python != sys.executable else ROOT / ".mypy_cache"
    options = ["--strict", "--python-executable", str(python), "--cache-dir", str(cache / "documents")]
    command = [sys.executable, "-m", "mypy", *options, *files]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.stdout + done.stderr


def check(directory: Path, texts: dict[str, str], python: str | Path = sys.executable) -> None:
    """Check that mypy finds nothing in these texts, and all mistakes in MISTAKEN."""
    for name, text in {**texts, "mistaken.py": MISTAKEN}.items():
        (directory / name).write_text(text, encoding="utf-8")
    said = mypy(directory, *texts, "mistaken.py", python=python)
    faults = [line for line in said.splitlines() if ": error:" in line]
    assert [line for line in faults if not line.startswith("mistaken.py:")] == [], said
    assert [line.split(":")[1] for line in faults] == ["4", "5"], said


@pytest.mark.slow
def test_the_documents_examples_and_the_promised_types_pass_strictly(tmp_path: Path) -> None:
    texts = {**examples(), "promised.py": PROMISED}
    assert {
        "README_0.py",
        "shared_memory_0.py",
        "python_0.py",
        "client_0.py",
        "strings_and_images_0.py",
    } <= set(texts)
    check(tmp_path, texts)


def test_it_is_imported_from_beside_a_checkout_that_has_its_name(tmp_path: Path) -> None:
    """A directory without __init__.py is a namespace package, which is found before packages of an import
    hook at the end."""
    (tmp_path / "clockwork" / "clockwork").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", "from clockwork import Client; print(Client.__module__)"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.stdout == "clockwork.client.blocking\n", done.stderr
