"""ONNX's own operator tests through the compiler: the tests that pass, and the reasons for the others'
refusals.

    python -m tests.emulation.operators                      # all tests, 15 minutes; writes the table
    python -m tests.emulation.operators test_abs test_add    # these tests, printed
    python -m tests.emulation.operators --card test_abs      # by the kernels for sm_80, emulated

Each test is compiled as shipped. A test with several inputs is compiled a second time with all but the first
as constants, as most models have them. Its program for the host must give the outputs that the test names.
Results are docs/operators.json and, made of that file, docs/operators.md.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import onnx
import onnx.backend.test.case.node
import onnx.numpy_helper

from clockwork import config
from clockwork.errors import InvalidModel
from clockwork.formats.program import HOST
from clockwork.models.answers import QUANTISED_RELATIVE, RELATIVE, difference
from clockwork.models.compile import host
from clockwork.models.compile.compiler import CompileOptions, compile_model
from clockwork.models.holdings import is_quantised
from clockwork.models.split import operator
from clockwork.wire.tensors import Array
from tests.device.test_onnx_nodes import (
    as_arrays,
    close_to,
    node_tests,
    plain,
    tensors_only,
    with_initializers,
)
from tests.emulation import forks, modules, process

CASE_S = 900
"""Time limit for a test, on a busy machine."""

PASS, REFUSED, WRONG = "pass", "refused", "wrong"
"""Beginnings of outcomes; the last two are followed by ": " and the reason."""

REASON_CHARS_MAX = 160
ARCHITECTURE = "sm_80"
RESULTS = modules.ROOT / "docs" / "operators.json"
TABLE = RESULTS.with_suffix(".md")
SHIPPED, CONSTANTS = "as shipped", "with constants"


def outcome(
    case: Any, model: onnx.ModelProto, inputs: Sequence[Array], expected: Sequence[Array], card: bool
) -> str:
    """Return the outcome of a test whose model takes these inputs. card: use the kernels for a card."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        work = Path(name)
        path = work / "model.onnx"
        path.write_bytes(model.SerializeToString())
        shapes = {
            value.name: [list(array.shape)] for value, array in zip(model.graph.input, inputs) if array.size
        }
        options = CompileOptions(
            (ARCHITECTURE if card else HOST,), (1,), shapes, batching="off", examples=[list(inputs)],
            verify=False, jobs=1, pad=False, sources=work / "sources" if card else None,
        )  # fmt: skip
        try:
            summary = compile_model(path, work / "package", options)
            if card:
                made = work / "emulated"
                modules.emulated(work / "package", work / "sources", ARCHITECTURE, made, modules.SANITISED, 1)
                actual, _ = process.run(made, inputs)
            else:
                actual = host.HostExecutor(summary.program, work / "package").run(inputs)
        except InvalidModel as error:
            text = str(error)
            unforeseen = text.startswith(("compiling for", "NVRTC rejects"))
            return f"{WRONG}: {text}" if unforeseen else f"{REFUSED}: {reason(text)}"
        said = close_to(case, actual, expected)
        if not said:
            return PASS
        quantised = is_quantised([operator(node) for node in model.graph.node])
        relative = QUANTISED_RELATIVE if quantised else RELATIVE
        if (
            quantised or all(array.dtype.name in ("float16", "bfloat16") for array in expected)
        ) and not difference(actual, expected, relative):
            return f"{PASS}, up to rounding"
        reference = plain(model, inputs)
        if (
            reference is not None
            and close_to(case, reference, expected)
            and not close_to(case, actual, reference)
        ):
            return f"{PASS}, as ONNX Runtime has it"
        return f"{WRONG}: {difference(actual, expected) or said}"


def reason(text: str) -> str:
    """Return a refusal without the parts that differ from test to test."""
    text = re.sub(
        r",? which ONNX Runtime cannot execute here: .*", ", which ONNX Runtime cannot execute", text
    )
    text = re.sub(
        r"^ONNX Runtime rejects model\.onnx: .*", "ONNX Runtime rejects the model", text, flags=re.DOTALL
    )
    text = re.sub(r"^model\.onnx uses ", "uses ", text)
    return re.sub(r" '[^']*'", "", text)[:REASON_CHARS_MAX]


def arrays(values: Sequence[Any]) -> list[Array]:
    return as_arrays([
        onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value for value in values
    ])  # fmt: skip


def outcomes(case: Any, card: bool) -> dict[str, str]:
    """The inputs of a test, for each way in which it is compiled."""
    if not tensors_only(case):
        return {SHIPPED: f"{REFUSED}: sequences, optionals and maps are no tensors"}
    inputs, expected = (arrays(values) for values in case.data_sets[0])
    found = {SHIPPED: outcome(case, case.model, inputs, expected, card)}
    model = with_initializers(case.model, inputs)
    if model is not None:
        found[CONSTANTS] = outcome(case, model, inputs[:1], expected, card)
    return found


def chosen_cases(names: Sequence[str]) -> list[Any]:
    """Return the tests of these names, in order of name; all tests if none are given.

    FILE:NAME is a test in a file of onnx's, and FILE: the file's first test. If all names have a file, other
    files are not loaded, which saves seconds.
    """
    if not names or not all(":" in name for name in names):
        return [case for case in node_tests() if not names or case.name in names]
    found = []
    for name in names:
        file, _, wanted = name.partition(":")
        known = len(onnx.backend.test.case.node._NodeTestCases)
        importlib.import_module(f"onnx.backend.test.case.node.{file}")
        made = onnx.backend.test.case.node._NodeTestCases[known:]
        found += [case for case in made if case.name == wanted] if wanted else made[:1]
    return found


def run(names: Sequence[str], card: bool) -> None:
    """Print a line of JSON for each test, several at a time: its name, and its outcomes."""

    def failed(why: str) -> dict[str, str]:
        return {SHIPPED: f"{WRONG}: {why}"}

    for case, found in forks.each(chosen_cases(names), lambda case: outcomes(case, card), CASE_S, failed):
        print(json.dumps([case.name, found]), flush=True)


def ask(names: Sequence[str], card: bool = False) -> dict[str, dict[str, str]]:
    """Return outcomes by test, from a process of its own. names: empty for all tests."""
    return dict(forks.ask("tests.emulation.operators", [*(["--card"] if card else []), *names]))


# ----- the table -------------------------------------------------------------------------------


def to_json(found: Mapping[str, Mapping[str, str]]) -> str:
    """Return the outcomes that docs/operators.json keeps: those that are not simply "pass"."""
    kept: dict[str, dict[str, list[str]]] = {}
    for name, result in sorted(found.items()):
        for way, text in result.items():
            if text != PASS:
                kept.setdefault(text, {}).setdefault(way, []).append(name)
    body = {
        "onnx": onnx.__version__,
        "tinygrad": importlib.metadata.version("tinygrad"),
        "tests": len(found),
        "not simply passed": {text: kept[text] for text in sorted(kept)},
    }
    return json.dumps(body, indent=1) + "\n"


def from_json(text: str) -> dict[str, dict[str, str]]:
    """Return the outcomes of all tests of the installed onnx, from the kept outcomes that are not "pass"."""
    kept = {
        (name, way): outcome
        for outcome, ways in json.loads(text)["not simply passed"].items()
        for way, names in ways.items()
        for name in names
    }
    found = {}
    for case in node_tests():
        ways = [SHIPPED]
        if tensors_only(case) and with_initializers(case.model, arrays(case.data_sets[0][0])) is not None:
            ways.append(CONSTANTS)
        found[case.name] = {way: kept.get((case.name, way), PASS) for way in ways}
    return found


@functools.cache
def _models() -> dict[str, onnx.ModelProto]:
    return {case.name: case.model for case in node_tests()}


def operator_of(name: str) -> str:
    """Return the operator that a test is about; a test of its expanded definition counts, too."""
    models = _models()
    return str(models.get(name.removesuffix("_expanded"), models[name]).graph.node[-1].op_type)


def to_markdown(found: Mapping[str, Mapping[str, str]]) -> str:
    """Return the table for readers: by operator, how many tests pass, and why others are refused."""
    passed: dict[str, list[bool]] = {}
    reasons: dict[str, dict[str, int]] = {}
    for name, result in sorted(found.items()):
        operator = operator_of(name)
        best = any(text.startswith(PASS) for text in result.values())
        passed.setdefault(operator, []).append(best)
        if not best:
            text = result.get(CONSTANTS, result[SHIPPED]).removeprefix(f"{REFUSED}: ")
            counts = reasons.setdefault(operator, {})
            counts[text] = counts.get(text, 0) + 1
    whole = sorted(operator for operator, results in passed.items() if all(results))
    parts = sorted(operator for operator, results in passed.items() if any(results) and not all(results))
    none = sorted(operator for operator, results in passed.items() if not any(results))
    total = sum(map(len, passed.values()))
    fine = sum(map(sum, passed.values()))

    def rows(operators: Sequence[str]) -> list[str]:
        lines = []
        for operator in operators:
            whys = "; ".join(f"{text} ({count})" for text, count in sorted(reasons[operator].items()))
            whys = whys.replace("|", "\\|")
            lines.append(f"| {operator} | {sum(passed[operator])} of {len(passed[operator])} | {whys} |")
        return lines

    return "\n".join([
        "# Operators that can be compiled",
        "",
        fill(
            f"The result of `clockwork compile` for the {total} tests of operators that come with onnx {onnx.__version__}: "
            f"{fine} pass, {total - fine} are refused, none gives wrong answers. Each was compiled as it is, and with all "
            "inputs but the first as constants, as most models have them (the shape of a Reshape, the axes of a sum); it "
            "counts as passed if one of the two gives what the test expects. A model with an operator that cannot be "
            "compiled is refused when it is registered on a GPU, by the operator's name; CPU workers serve it.",
            110,
        ),
        "",
        "Made by `python -m tests.emulation.operators`; `make test-all` holds a sample against it, `make conformance` all.",
        "",
        "## All tests pass",
        "",
        ", ".join(whole) + ".",
        "",
        "## Some tests are refused",
        "",
        "| operator | pass | why the others are refused (tests) |",
        "|---|---|---|",
        *rows(parts),
        "",
        "## None passes",
        "",
        "| operator | pass | why they are refused (tests) |",
        "|---|---|---|",
        *rows(none),
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulation.operators", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--card", action="store_true", help="by the kernels for a card, emulated and sanitised"
    )
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("tests", nargs="*", help="names of tests; none: all, and the table is written")
    given = parser.parse_args()
    config.silence_onnxruntime()
    if given.run:
        run(given.tests, given.card)
        return
    found = ask(given.tests, given.card)
    wrong = {
        name: result
        for name, result in found.items()
        if any(text.startswith(WRONG) for text in result.values())
    }
    if given.tests or given.card:
        print(json.dumps(found, indent=1))
    else:
        RESULTS.write_text(to_json(found))
        TABLE.write_text(to_markdown(found))
        print(json.dumps(wrong, indent=1))
    print(f"{len(found)} tests, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
