"""Every test asserts something, and waits with one limit: read from the sources of the tests with ast."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inner_loop import STORIES

TESTS = Path(__file__).resolve().parents[1]

ASSERTS = re.compile(r"raises|warns|fail|(check|assert|expect)(_\w+)?")
"""Names of functions that a test calls to assert: pytest's, and helpers named so (check_answers,
assert_allclose)."""


def called_name(call: ast.Call) -> str:
    match call.func:
        case ast.Name(name) | ast.Attribute(_, name):
            return name
    return ""


def asserts(node: ast.AST) -> bool:
    return isinstance(node, ast.Assert) or (
        isinstance(node, ast.Call) and ASSERTS.fullmatch(called_name(node)) is not None
    )


def find_tests(source: str) -> Iterator[tuple[str, bool]]:
    """Return (name, whether it asserts in sight of its reader) of each test function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield node.name, any(asserts(one) for one in ast.walk(node))


def test_every_story_of_the_inner_loop_is_a_test() -> None:
    for name, stories in STORIES.items():
        source = (TESTS / "process" / f"{name}.py").read_text(encoding="utf-8")
        assert set(stories) - {test for test, _ in find_tests(source)} == set(), name
        assert list(stories) == sorted(set(stories)), name
    assert list(STORIES) == sorted(STORIES)


def test_every_test_asserts_in_sight_of_its_reader() -> None:
    found = {
        f"{path.relative_to(TESTS)}::{name}": visible
        for path in sorted(TESTS.rglob("test_*.py"))
        for name, visible in find_tests(path.read_text(encoding="utf-8"))
    }
    assert f"unit/{Path(__file__).name}::test_every_test_asserts_in_sight_of_its_reader" in found
    assert [name for name, visible in found.items() if not visible] == []


def test_no_test_waits_by_select() -> None:
    """It takes no descriptor above 1,023: readable() does."""
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "select.select"
    ]
    assert found == []


@pytest.mark.parametrize(
    ("body", "visible"),
    [
        ("assert answer()", True),
        ("with pytest.raises(ValueError): answer()", True),
        ("for one in (1, 2): check_answer(one)", True),
        ("side.expect(Prepared)", True),
        ("await case.check_answers(1)", True),
        ("answer()", False),
        ("checked(answer())", False),
        ("subprocess.run(['true'], check=True)", False),
        ("raise AssertionError", False),
        ("check_answer", False),
    ],
)
def test_what_counts_as_an_assertion(body: str, visible: bool) -> None:
    assert list(find_tests(f"async def test_it():\n    {body}\n")) == [("test_it", visible)]


WAITS = ("result", "join", "wait", "acquire")
"""Methods whose only argument is a time to wait."""

RUNS = ("run", "create_connection", "urlopen", "get", "acquire", "Client", "AsyncClient")
"""Functions whose argument ``timeout`` ends a wait, in place of a request."""


def own_limits(source: str) -> Iterator[int]:
    """Yield the lines of waits that end after a written number of seconds, of five or more."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = called_name(node)
        given = [one.value for one in node.keywords if one.arg == "timeout" and name in RUNS]
        if name in WAITS and len(node.args) == 1:
            given += node.args
        for one in given:
            if isinstance(one, ast.Constant) and isinstance(one.value, int | float) and one.value >= 5:
                yield one.lineno


def test_waits_have_the_limit_of_all_tests() -> None:
    """A number that a test chooses is too short for some machine; see tests/patience.py."""
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for folder in ("device", "emulation", "native", "process", "sim", "unit")
        for path in sorted((TESTS / folder).rglob("*.py"))
        for line in own_limits(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("call", "is_own"),
    [
        ("future.result(10)", True),
        ("thread.join(5.0)", True),
        ("subprocess.run(command, timeout=60)", True),
        ("future.result(PATIENCE_S)", False),
        ("pause.wait(0.02)", False),
        ("client.infer('m', x, timeout=30)", False),
    ],
)
def test_what_counts_as_a_limit_of_its_own(call: str, is_own: bool) -> None:
    assert bool([*own_limits(call)]) == is_own
