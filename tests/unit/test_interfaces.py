"""Interfaces of packages are read as ONNX reads them; workers' reports are checked against them, and are
bounded."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import helper

from clockwork.config import BATCH_SIZE_MAX, RANK_MAX, TENSORS_MAX
from clockwork.config.formats import TIME_MAX_NS
from clockwork.config.wire import HOST_BYTES_MAX, PAGES_MAX
from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.effects import Effect
from clockwork.controller.models.interfaces import as_counted, may_share_lengths, read_summary
from clockwork.controller.models.version import ModelVersion
from clockwork.controller.registration.table import ModelTable
from clockwork.errors import InvalidInput, InvalidModel
from clockwork.formats import interface
from clockwork.formats.interface import Interface, difference, loosened, read_interface, read_onnx
from clockwork.formats.package import PackageFile
from clockwork.formats.prepared import UNKNOWN_RANK, PreparedModel, TensorSpec
from clockwork.formats.profile_package import encode_profile
from clockwork.formats.profiles import ModelProfile
from clockwork.models import zoo
from clockwork.models.onnx_import import metadata_of, real_inputs
from clockwork.scheduler.types import ProfilePoint
from clockwork.wire import codec
from clockwork.wire.messages import FROM_WORKER, Prepared, Status
from clockwork.wire.packages import PROFILE_FILE, PROGRAM_JSON
from tests.process.peers import echo_model, prepared_model

HELD = Interface(
    inputs=[TensorSpec("x", 1, ("N", 2)), TensorSpec("ids", 7, ("N", "T"))],
    outputs=[TensorSpec("y", 1, ("N", 10))],
    metadata={},
)


def said(**changes: Any) -> PreparedModel:
    return prepared_model(
        **({"inputs": HELD.inputs, "outputs": HELD.outputs, "outputs_verified": True} | changes)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": [HELD.inputs[0]]}, "it has the inputs ['x'], not ['x', 'ids']"),
        ({"inputs": HELD.inputs[::-1]}, "it has the inputs"),
        ({"inputs": [TensorSpec("x", 10, ("N", 2)), HELD.inputs[1]]}, "input 'x' is float16, not float32"),
        ({"inputs": [TensorSpec("x", 1, ("N", 3)), HELD.inputs[1]]}, "input 'x' is ['N', 3], not ['N', 2]"),
        ({"inputs": [TensorSpec("x", 1, ("N", 2, 1)), HELD.inputs[1]]}, "input 'x'"),
        (
            {"inputs": [TensorSpec("x", 1, (1, 2)), HELD.inputs[1]]},
            "input 'x'",
        ),  # the worker would accept less than the others
        ({"inputs": [TensorSpec("x", 1, ("N", "M")), HELD.inputs[1]]}, "input 'x'"),
        ({"inputs": [TensorSpec("x", 1, UNKNOWN_RANK), HELD.inputs[1]]}, "input 'x'"),
        ({"outputs": []}, "it has the outputs [], not ['y']"),
        ({"outputs": [TensorSpec("z", 1, ("N", 10))]}, "it has the outputs ['z']"),
        ({"outputs": [TensorSpec("y", 7, ("N", 10))]}, "output 'y' is int64, not float32"),
        ({"outputs": [TensorSpec("y", 1, ("N", 11))]}, "output 'y' is ['N', 11], not ['N', 10]"),
        ({"outputs": [TensorSpec("y", 1, ("N", 10, 1))]}, "output 'y'"),
    ],
)
def test_what_must_be_equal_is_compared(change: dict[str, Any], words: str) -> None:
    assert difference(HELD, said(**change)).startswith(words)


@pytest.mark.parametrize(
    "change",
    [
        {},
        # workers that differ in names of dimensions
        {"inputs": [TensorSpec("x", 1, ("", 2)), TensorSpec("ids", 7, ("B", "S"))]},
        {"outputs": [TensorSpec("y", 1, (1, 10))]},  # a worker that knows more
        {"outputs": [TensorSpec("y", 1, ("N", ""))]},
        {"outputs": [TensorSpec("y", 1, UNKNOWN_RANK)]},
        {"outputs": [TensorSpec("y", 1, ("N", 11))], "outputs_verified": False},  # declared, never observed
        {"metadata": {"labels": "others"}},
    ],
)
def test_what_may_differ_is_not(change: dict[str, Any]) -> None:
    assert difference(HELD, said(**change)) == ""


def test_an_interface_survives_the_disk() -> None:
    held = dataclasses.replace(HELD, metadata={"labels": "a\nb"})
    assert Interface.from_dict(json.loads(json.dumps(held.to_dict()))) == held
    for broken in (
        {},
        *(
            held.to_dict() | {"inputs": [one]}
            for one in (["x", -1, []], ["x", 10**30, []], ["\ud800", 1, []])
        ),
        *(held.to_dict() | {"outputs": one} for one in ([1], [["x", 1, [-1]]], [["x", 1, [[[]]]]])),
        held.to_dict() | {"metadata": {"a": 1}},
    ):
        with pytest.raises((ValueError, TypeError, KeyError, InvalidModel)):
            Interface.from_dict(broken)


def test_outputs_are_as_fixed_as_all_say() -> None:
    def after(shape: Sequence[int | str]) -> Any:
        return loosened(HELD.outputs, [TensorSpec("y", 1, tuple(shape))])[0].shape

    assert loosened(HELD.outputs, HELD.outputs) is HELD.outputs
    assert after(("M", 10)) == ("N", 10)
    assert after((3, 10)) == ("N", 10)  # the package leaves the dimension open
    assert after(("N", "")) == after(("N", 11)) == ("N", "")
    assert after(UNKNOWN_RANK) == after(("N", 10, 1)) == UNKNOWN_RANK


def test_measurements_are_told_as_requests_are_counted() -> None:
    whole = [
        ProfilePoint(((3, 2), (3, 5)), 1, 70),
        ProfilePoint(((3, 2), (4, 5)), 1, 80),
        ProfilePoint(((),), 1, 9),
    ]
    assert as_counted(whole, batches=True) == [ProfilePoint(((2,), (5,)), 3, 70)]
    rows = [ProfilePoint(((2,), (5,)), 4, 70)]
    assert as_counted(rows, batches=False) == [ProfilePoint(((4, 2), (4, 5)), 1, 70)]


def test_lengths_share_batches_only_where_every_worker_can_pad() -> None:
    able, unable = (
        said(batches=True, batch_max=16, lengths=lengths, lengths_note="they do")
        for lengths in ({"T": 8}, {})
    )
    assert may_share_lengths(able, {"T": 8})
    assert may_share_lengths(able, {})
    assert not may_share_lengths(unable, {"T": 8})
    for workers, lengths in ([able, able], {"T": 8}), ([able, unable], {}), ([unable, able], {}):
        effects: deque[Effect] = deque()
        table = ModelTable(effects)
        model = ModelVersion(1, ModelRecord("m", 1, "0" * 64, [], {}))
        for worker, prepared in enumerate(workers):
            table.learn(model, worker, dataclasses.replace(prepared))
            model.workers[worker] = "ready"
            assert model.spec(prepared).batch_max == 16
        assert model.prepared is not None
        assert model.lengths == model.prepared.lengths == lengths
        assert len(effects) == 1 + (workers[0] is able and workers[1] is unable)
    assert model.prepared.lengths_note == "they do"
    # When no other worker has it any more, the next worker decides.
    table.learn(model, 0, dataclasses.replace(able))
    model.workers.clear()
    table.learn(model, 2, dataclasses.replace(able))
    assert model.lengths == {"T": 8}


@pytest.mark.parametrize("limit", [-1, 1 << 62, "8", None, True])
def test_lengths_of_a_summary_are_sizes(limit: Any) -> None:
    with pytest.raises(
        InvalidInput, match="a summary's lengths are sizes below 4611686018427387904 by symbol"
    ):
        read_summary(said(lengths={"T": limit}).summary())


SUMMARY = prepared_model().summary()
TENSOR = {"name": "x", "dtype": 1, "shape": ["N", 2]}
POINT = {"shape": [[2]], "batch": 1, "exec_ns": 1}


def told(summary: dict[str, Any]) -> PreparedModel:
    """As a controller receives it."""
    return read_summary(codec.decode(codec.encode(Prepared(1, Status.OK, "", summary)), FROM_WORKER).summary)


def test_an_honest_summary_is_read() -> None:
    assert told(SUMMARY) == prepared_model()


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in SUMMARY if name != "outputs_verified" for value in (None, -1, [[[]]])),
        *({"batch_max": value} for value in (0, BATCH_SIZE_MAX + 1, True, 2**40)),
        *({"load_ns": value} for value in (-1, TIME_MAX_NS + 1)),
        *({"weights_bytes": value} for value in (-1, HOST_BYTES_MAX + 1)),
        *({"runs": value} for value in ([0], [-1], [PAGES_MAX + 1], [PAGES_MAX] * 128, [1.5], ["1"], [True])),
        *({"profile": [POINT | one]} for one in ({"batch": 0}, {"exec_ns": -1}, {"exec_ns": TIME_MAX_NS + 1}, {"shape": 7})),
        *({"profile": [POINT | {"shape": one}]} for one in ([[-1]], [[1] * (RANK_MAX + 1)], [["N"]])),
        *({"inputs": [TENSOR | one]} for one in ({"dtype": -1}, {"dtype": 1 << 31}, {"name": 1}, {"name": "x" * 5000})),
        *({"outputs": [TENSOR | {"shape": one}]} for one in ([-1], [1 << 63], [[]], [1] * (RANK_MAX + 1), ["N" * 5000])),
        {"outputs": [TENSOR] * (TENSORS_MAX + 1)},
        *({"by_threads": value} for value in ([[0, 1]], [[2, -1]], [[2, TIME_MAX_NS + 1]], [[1 << 20, 1]], [[2]], [2, 1], [[2, 1]] * 17)),
        {"metadata": {"a": 1}},
        {"metadata": {1: "a"}},
        {"format_version": 999},
    ],
)  # fmt: skip
def test_a_summary_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((InvalidInput, codec.WireError)):
        told(SUMMARY | change)


def test_a_later_workers_summary_may_say_more() -> None:
    assert told(SUMMARY | {"unknown": 1}) == told(SUMMARY)


LATER = {"outputs_verified", "lengths", "lengths_note", "by_threads"}
"""Fields that earlier workers did not report."""


@pytest.mark.parametrize("name", sorted(SUMMARY.keys() - LATER))
def test_a_summary_says_everything(name: str) -> None:
    with pytest.raises(InvalidInput):
        told({key: value for key, value in SUMMARY.items() if key != name})


# ----- what a package declares ---------------------------------------------------------------------


def write(place: Path, name: str, data: bytes) -> Interface:
    (place / name).write_bytes(data)
    return read_interface(place, [PackageFile(name, len(data), "0" * 64)], {})


def by_onnx(data: bytes) -> Interface:
    """The same by ONNX's own parser. Raises DecodeError."""
    model = onnx.ModelProto.FromString(data)

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        kind = value.type.tensor_type
        dims = [
            one.dim_value if one.HasField("dim_value") and one.dim_value >= 0 else one.dim_param
            for one in kind.shape.dim
        ]
        return TensorSpec(value.name, kind.elem_type, tuple(dims) if kind.HasField("shape") else UNKNOWN_RANK)

    return Interface(
        list(map(spec, real_inputs(model))), list(map(spec, model.graph.output)), metadata_of(model)
    )


def odd_model() -> onnx.ModelProto:
    """Every way to declare a tensor; an input that a weight fills, another that a sparse weight does."""
    info = helper.make_tensor_value_info
    inputs = [
        info("a", 1, ["N", 3, None, 0]), info("scalar", 7, []), info("any", 8, None), info("w", 1, [2]), info("s", 1, [4]),
    ]  # fmt: skip
    weight = helper.make_tensor("w", 1, [2], [1.0, 2.0])
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("s", 1, [1], [1.0]), helper.make_tensor("i", 7, [1], [2]), [4]
    )
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["y"])], "g", inputs, [info("y", 1, ["N", -1, "M", 0])], [weight],
        sparse_initializer=[sparse], doc_string="of no interest", value_info=[info("z", 1, [9])],
    )  # fmt: skip
    model = helper.make_model(graph)
    helper.set_model_props(model, {"labels": "one\ntwo", "": "x"})
    return model


@pytest.mark.parametrize("name", ["digits", "odd"])
def test_an_interface_is_read_as_onnx_reads_it(name: str) -> None:
    data = (odd_model() if name == "odd" else zoo.build(name)).SerializeToString()
    assert read_onnx(io.BytesIO(data)) == by_onnx(data)


def test_no_bytes_are_read_otherwise_than_onnx_reads_them() -> None:
    """Otherwise a model could make honest workers look like liars."""
    rng = random.Random(7)
    data = odd_model().SerializeToString()
    read = 0
    for _ in range(1000):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            place = rng.randrange(len(changed))
            if rng.random() < 0.7:
                changed[place] = rng.choice((rng.randrange(256), changed[place] ^ 1 << rng.randrange(8)))
            else:
                end = place + rng.randrange(1, 30)
                changed[place:end] = rng.choice((b"", changed[place:end] * 2))
        try:
            found = read_onnx(io.BytesIO(changed))
        except InvalidModel:
            continue
        try:
            expected = by_onnx(bytes(changed))
        except DecodeError:
            continue
        assert found == expected
        read += 1
    assert read > 100


def field(number: int, data: bytes) -> bytes:
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


VALUE = field(1, b"x") + field(2, field(1, b"\x08\x01"))
GRAPH = field(12, VALUE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        field(7, GRAPH) * 2,  # protobuf merges repeated fields
        field(7, field(12, field(1, b"x"))),  # an output without a type
        field(7, field(12, VALUE + field(1, b"y"))),
        field(7, field(12, field(1, b"x") + field(2, field(4, b"")))),  # an output that is a sequence
        field(7, field(12, field(1, b"\xff") + field(2, field(1, b"\x08\x01")))),
        field(7, GRAPH) + b"\x0b",  # a field encoded as a group
        field(7, GRAPH)[:-1],
        field(7, GRAPH) + b"\x08" + b"\x80" * 20,
        field(7, GRAPH) + field(14, field(1, b"a") * 2),
        b"\x38\x01",  # a graph that is a number
    ],
)
def test_what_declares_nothing_is_refused(data: bytes) -> None:
    assert read_onnx(io.BytesIO(field(7, GRAPH))).outputs == [TensorSpec("x", 1, UNKNOWN_RANK)]
    with pytest.raises(InvalidModel):
        read_onnx(io.BytesIO(data))


def test_reading_a_model_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = echo_model().SerializeToString()
    monkeypatch.setattr(interface, "FIELDS_MAX", 10)
    with pytest.raises(InvalidModel, match="more than 10"):
        read_onnx(io.BytesIO(data))
    monkeypatch.setattr(interface, "FIELDS_MAX", 1000)
    long = helper.make_graph([], "g", [], [helper.make_tensor_value_info("x" * 70_000, 1, [])])
    with pytest.raises(InvalidModel, match="name of 70000 bytes"):
        read_onnx(io.BytesIO(helper.make_model(long).SerializeToString()))


SPEC = {"name": "x", "dtype": 1, "shape": ["N", 2]}


def test_the_head_of_a_program_is_read(tmp_path: Path) -> None:
    body = {
        "format": 1,
        "name": "p",
        "inputs": [SPEC],
        "outputs": [SPEC | {"name": "y"}],
        "weights": [1] * 99,
    }
    text = json.dumps(body, indent=1)
    expected = Interface([TensorSpec("x", 1, ("N", 2))], [TensorSpec("y", 1, ("N", 2))], {})
    for data in (text, text[: text.index("weights")]):
        assert write(tmp_path, PROGRAM_JSON, data.encode()) == expected
    for broken in (
        "", "{", "[]", "{}", text.replace('"outputs"', '"puts"'), text.replace("inputs", "x", 1), text.replace("[", "", 1),
        text.replace('"N"', "-1"), text.replace('"N"', "1e400"), "[" * 5000, '{"a": ' * 5000,
    ):  # fmt: skip
        with pytest.raises(InvalidModel):
            write(tmp_path, PROGRAM_JSON, broken.encode())


def test_a_profile_declares_bytes(tmp_path: Path) -> None:
    profile = ModelProfile("p", {1: 1000, 2: 1500}, 1 << 20, 1000, input_bytes=7, output_bytes=9)
    found = write(tmp_path, PROFILE_FILE, encode_profile(profile))
    assert found == Interface([TensorSpec("input", 2, ("n", 7))], [TensorSpec("output", 2, ("n", 9))], {})
    with pytest.raises(InvalidModel):
        write(tmp_path, PROFILE_FILE, b"{}")
