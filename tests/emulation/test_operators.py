"""ONNX's operator tests through the compiler, compared with docs/operators.json and its table."""

from __future__ import annotations

import importlib.metadata
import json
import pkgutil
import random
from collections.abc import Mapping

import onnx
import onnx.backend.test.case.node
import pytest

from clockwork.models.compile import compiler, nvrtc
from tests.emulation import operators, process
from tests.emulation.operators import CONSTANTS, PASS, RESULTS, SHIPPED, TABLE, WRONG

needs_compiler = pytest.mark.skipif(
    not compiler.is_installed(), reason="tinygrad is not installed (the extra [compile])"
)

SEED = 20201104
MENDED = (
    "convinteger:test_convinteger_with_padding", "einsum:test_einsum_scalar",
    "lpnormalization:test_l2normalization_axis_0", "mod:test_mod_float_edge_cases_fmod_0_float32",
)  # fmt: skip
"""Tests in which tinygrad alone answers differently, or that were once refused, behind their files."""
SAMPLE, CARD_SAMPLE = 4, 60


@pytest.fixture(scope="module")
def recorded() -> Mapping[tuple[str, str], str]:
    """Return outcomes that are not simply "pass", by test and way.

    Skips if the tests or the compiler have another version.
    """
    body = json.loads(RESULTS.read_text())
    versions = {"onnx": onnx.__version__, "tinygrad": importlib.metadata.version("tinygrad")}
    for name, version in versions.items():
        if body[name] != version:
            pytest.skip(f"the table is of {name} {body[name]}, and {version} is installed")
    return {
        (name, way): outcome
        for outcome, ways in body["not simply passed"].items()
        for way, names in ways.items()
        for name in names
    }


def check(found: Mapping[str, Mapping[str, str]], recorded: Mapping[tuple[str, str], str]) -> None:
    differing = {
        (name, way): outcome
        for name, result in found.items()
        for way, outcome in result.items()
        if outcome != recorded.get((name, way), PASS)
    }
    assert differing == {}, "python -m tests.emulation.operators makes the table anew"


def test_no_operator_is_compiled_to_wrong_answers() -> None:
    body = json.loads(RESULTS.read_text())
    assert [outcome for outcome in body["not simply passed"] if outcome.startswith(WRONG)] == []
    refused = {name for ways in body["not simply passed"].values() for name in ways.get(SHIPPED, ())}
    assert 0.5 * body["tests"] < body["tests"] - len(refused) < body["tests"]


@needs_compiler
@pytest.mark.slow
def test_a_sample_of_operators_is_compiled_as_the_table_says(recorded: Mapping[tuple[str, str], str]) -> None:
    files = sorted(module.name for module in pkgutil.iter_modules(onnx.backend.test.case.node.__path__))
    left = [name for name in files if not name.startswith("_") and f"{name}:" not in " ".join(MENDED)]
    chosen = random.Random(SEED).sample(left, SAMPLE)
    found = operators.ask([*MENDED, *(f"{name}:" for name in chosen)])
    assert len(found) == len(MENDED) + SAMPLE
    mended = [found[name.partition(":")[2]] for name in MENDED]
    assert all(outcome == PASS for result in mended for outcome in result.values())
    check(found, recorded)


@needs_compiler
@pytest.mark.long
@pytest.mark.conformance
@pytest.mark.timeout(1800)
def test_every_operator_is_compiled_as_the_table_says(recorded: Mapping[tuple[str, str], str]) -> None:
    found = operators.ask([])
    check(found, recorded)
    assert RESULTS.read_text() == operators.to_json(found)
    assert TABLE.read_text() == operators.to_markdown(found)


@pytest.mark.slow
def test_the_table_is_made_of_the_results(recorded: Mapping[tuple[str, str], str]) -> None:
    assert TABLE.read_text() == operators.to_markdown(operators.from_json(RESULTS.read_text()))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not (compiler.is_installed() and nvrtc.is_installed() and process.sanitizer()),
    reason="NVRTC is not installed (the extra [compile]), or g++ has no AddressSanitizer",
)
def test_a_sample_of_operators_by_the_kernels_of_a_card(recorded: Mapping[tuple[str, str], str]) -> None:
    """A test that passes on the host passes by the kernels for sm_80 under sanitizers; a test that is refused
    is refused for both."""
    names = sorted(case.name for case in operators.node_tests())
    found = operators.ask(random.Random(SEED).sample(names, CARD_SAMPLE), card=True)
    differing = {
        (name, way): outcome
        for name, result in found.items()
        for way, outcome in result.items()
        if outcome.split(":")[0].split(",")[0] != recorded.get((name, way), PASS).split(":")[0].split(",")[0]
    }
    assert differing == {}
    assert sum(result.get(CONSTANTS, result[SHIPPED]).startswith(PASS) for result in found.values()) > 25
