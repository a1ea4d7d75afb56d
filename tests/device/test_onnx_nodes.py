"""ONNX's own operator tests through preparation and the CPU device.

Each test runs as shipped, and again with every input but the first turned into an initializer, so that the
split is exercised, in both holdings. Every test that plain ONNX Runtime passes must pass. ``make
conformance`` and ``make test-all`` run them, and print the counts.
"""

from __future__ import annotations

import collections
import functools
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

from clockwork.device.cpu import fingerprint
from clockwork.errors import InvalidModel
from clockwork.formats.prepared import PreparedModel, prepared_directory
from clockwork.models.measure import Bench
from clockwork.models.onnx_import import check_interface, package_files
from clockwork.models.prepare import prepare
from clockwork.models.runtime import ModelSession, RunError
from clockwork.wire.tensors import Array

PAGE_BYTES = 64 << 10


@functools.cache
def node_tests() -> list[Any]:
    """Return every node test of the installed onnx, in order of name."""
    with warnings.catch_warnings():  # its generators overflow and divide by zero on purpose
        warnings.simplefilter("ignore")
        return sorted(load_model_tests(kind="node"), key=lambda case: str(case.name))


def tensors_only(case: Any) -> bool:
    try:
        check_interface(case.model, case.name)
    except InvalidModel:
        return False
    return True


def as_arrays(values: Sequence[Any]) -> list[Array]:
    return [np.asarray(value) for value in values]


def close_to(case: Any, actual: Sequence[Array], expected: Sequence[Array]) -> str:
    """Return the objection of ONNX's own runner to a result, or ""."""
    if len(actual) != len(expected):
        return f"{len(actual)} outputs instead of {len(expected)}"
    for one, other in zip(actual, expected):
        if one.shape != other.shape:
            return f"shape {one.shape} instead of {other.shape}"
        if one.dtype.kind in "OSU" or other.dtype.kind in "OSU":
            if one.astype(str).tolist() != other.astype(str).tolist():
                return f"{one} instead of {other}"
        elif one.dtype != other.dtype:
            return f"{one.dtype} instead of {other.dtype}"
        else:
            wide = np.complex128 if one.dtype.kind == "c" else np.float64
            if not np.allclose(one.astype(wide), other.astype(wide), case.rtol, case.atol, equal_nan=True):
                return f"{one} instead of {other}"
    return ""


def plain(model: onnx.ModelProto, inputs: Sequence[Array]) -> list[Array] | None:
    """Return the answer of ONNX Runtime alone, or None."""
    try:
        return ModelSession(model.SerializeToString(), optimise=True).run(inputs)
    except (RunError, TypeError):
        return None


def with_initializers(model: onnx.ModelProto, inputs: Sequence[Array]) -> onnx.ModelProto | None:
    """Return the model with every input but the first as a constant; None if it has a single input."""
    if len(inputs) < 2 or len(inputs) != len(model.graph.input):
        return None
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value, array in zip(model.graph.input[1:], inputs[1:]):
        result.graph.initializer.append(constant(value, array))
    del result.graph.input[1:]
    return result


def constant(value: onnx.ValueInfoProto, array: Array) -> TensorProto:
    dtype = value.type.tensor_type.elem_type
    if dtype == TensorProto.STRING:
        flat = [str(one).encode() for one in array.reshape(-1)]
        return onnx.helper.make_tensor(value.name, dtype, array.shape, flat)
    return numpy_helper.from_array(array, value.name)


class Server:
    """Prepares models below a directory and runs them on a device."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fingerprint = fingerprint(1)

    def serve(
        self, model: onnx.ModelProto, inputs: Sequence[Array], holding: str = "auto"
    ) -> tuple[list[Array], PreparedModel]:
        """Prepare and run a model. Raises InvalidModel or RunError."""
        shutil.rmtree(self._root, ignore_errors=True)
        source, package = self._root / "source", self._root / "package"
        source.mkdir(parents=True)
        package.mkdir()
        (source / "given.onnx").write_bytes(model.SerializeToString())
        example = {value.name: array for value, array in zip(model.graph.input, inputs)}
        for name, content in package_files(source / "given.onnx", example):
            data = content if isinstance(content, bytes) else content.read_bytes()
            (package / name).write_bytes(data)
        options = {"holding": holding}
        prepared = prepare(package, self._root, self._fingerprint, PAGE_BYTES, options)
        directory = prepared_directory(self._root, prepared.digest, self._fingerprint, options)
        bench = Bench(self._fingerprint, PAGE_BYTES, [directory])
        try:
            bench.load(0)
            return bench.run(0, inputs)[0], prepared
        finally:
            bench.close()


def examine(cases: Iterable[Any], root: Path) -> tuple[collections.Counter[str], list[str]]:
    """Return counts by outcome, and a line for each test that plain ONNX Runtime passes and Clockwork does
    not."""
    server = Server(root)
    counts: collections.Counter[str] = collections.Counter()
    failures: list[str] = []

    def attempt(
        kind: str, case: Any, serve: Callable[[], tuple[list[Array], PreparedModel]], expected: Any
    ) -> None:
        counts[f"{kind}, plain ONNX Runtime passes"] += 1
        try:
            actual, prepared = serve()
        except (InvalidModel, RunError) as error:
            failures.append(f"{kind} {case.name}: {type(error).__name__}: {error}")
            return
        text = close_to(case, actual, expected)
        if text:
            failures.append(f"{kind} {case.name}: {text}")
            return
        counts[f"{kind}, we pass"] += 1
        counts[f"{kind}, held {prepared.holding}"] += 1
        if "stay inside" in prepared.constants_note:
            counts[f"{kind}, weights kept inside"] += 1

    for case in cases:
        counts["tests"] += 1
        if not tensors_only(case):
            counts["not servable: sequence, optional or map"] += 1
            continue
        inputs, expected = (as_arrays(values) for values in case.data_sets[0])
        answer = plain(case.model, inputs)
        if answer is None or close_to(case, answer, expected):
            counts["plain ONNX Runtime fails"] += 1
            continue
        attempt("as shipped", case, functools.partial(server.serve, case.model, inputs), expected)
        model = with_initializers(case.model, inputs)
        if model is None:
            continue
        answer = plain(model, inputs[:1])
        if answer is None or close_to(case, answer, expected):
            counts["plain ONNX Runtime fails with constants"] += 1
            continue
        for holding in ("bound", "packed"):
            serve = functools.partial(server.serve, model, inputs[:1], holding)
            attempt(f"split {holding}", case, serve, expected)
    shutil.rmtree(root, ignore_errors=True)
    return counts, failures


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """Return a folder for many short-lived files: in memory, if possible."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="clockwork-test-", dir=parent) as name:
        yield Path(name) / "work"


def report(counts: collections.Counter[str]) -> None:
    print()
    for what in sorted(counts):
        print(f"{counts[what]:6d}  {what}")


@pytest.mark.conformance
@pytest.mark.timeout(1500)
def test_every_operator(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts, failures = examine(node_tests(), work)
    with capsys.disabled():
        report(counts)
        for line in failures:
            print(line[:400])
    assert not failures
    assert counts["as shipped, we pass"] > 1200
    assert counts["split bound, held bound"] > 20
    assert counts["split packed, held packed"] > 20
