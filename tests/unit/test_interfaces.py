"""What must be equal between workers is compared, and nothing else; what a stranger tells of a model has bounds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from clockwork.config import BATCH_SIZE_MAX, RANK_MAX, RUN_PAGES_MAX, TENSORS_MAX
from clockwork.controller.interfaces import Interface, as_counted, difference, read_summary
from clockwork.errors import InvalidInput
from clockwork.messages import NEVER_NS
from clockwork.models.prepared import UNKNOWN_RANK, TensorSpec
from clockwork.scheduler.types import ProfilePoint
from tests.process.peers import prepared_model

HELD = Interface.of(
    prepared_model(
        inputs=[TensorSpec("x", 1, ("N", 2)), TensorSpec("ids", 7, ("N", "T"))],
        outputs=[TensorSpec("y", 1, ("N", 10))],
        outputs_verified=True,
    )
)


def said(**changes: Any) -> Interface:
    return dataclasses.replace(HELD, **changes)


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
        ),  # it would take less than others
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
        {"inputs": [TensorSpec("x", 1, ("", 2)), TensorSpec("ids", 7, ("B", "S"))]},  # names of dimensions
        {"outputs": [TensorSpec("y", 1, (1, 10))]},  # one knows more
        {"outputs": [TensorSpec("y", 1, ("N", ""))]},
        {"outputs": [TensorSpec("y", 1, UNKNOWN_RANK)]},
        {"outputs": [TensorSpec("y", 1, ("N", 11))], "verified": False},  # declared, never seen
        {"metadata": {"labels": "others"}},
    ],
)
def test_what_may_differ_is_not(change: dict[str, Any]) -> None:
    assert difference(HELD, said(**change)) == ""


def test_an_interface_survives_the_disk() -> None:
    held = said(metadata={"labels": "a\nb"})
    assert Interface.from_dict(held.to_dict()) == held
    for broken in ({}, {**held.to_dict(), "inputs": [["x", -1, []]]}, {**held.to_dict(), "outputs": [1]}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            Interface.from_dict(broken)


def test_measurements_are_told_as_requests_are_counted() -> None:
    whole = [
        ProfilePoint(((3, 2), (3, 5)), 1, 70),
        ProfilePoint(((3, 2), (4, 5)), 1, 80),
        ProfilePoint(((),), 1, 9),
    ]
    assert as_counted(whole, batches=True) == [ProfilePoint(((2,), (5,)), 3, 70)]
    rows = [ProfilePoint(((2,), (5,)), 4, 70)]
    assert as_counted(rows, batches=False) == [ProfilePoint(((4, 2), (4, 5)), 1, 70)]


SUMMARY = prepared_model().summary()
TENSOR = {"name": "x", "dtype": 1, "shape": ["N", 2]}
POINT = {"shape": [[2]], "batch": 1, "exec_ns": 1}


def test_an_honest_summary_is_read() -> None:
    assert read_summary(SUMMARY) == prepared_model()


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in SUMMARY if name != "outputs_verified" for value in (None, -1, [[[]]])),
        *({"batch_max": value} for value in (0, BATCH_SIZE_MAX + 1, True, 2**64)),
        *({"load_ns": value} for value in (-1, NEVER_NS)),
        *({"weights_bytes": value} for value in (-1, 1 << 62)),
        *({"runs": value} for value in ([0], [-1], [RUN_PAGES_MAX + 1], [RUN_PAGES_MAX, 1], [1.5], ["1"], [True])),
        *({"profile": [POINT | one]} for one in ({"batch": 0}, {"exec_ns": -1}, {"exec_ns": NEVER_NS}, {"shape": 7})),
        *({"profile": [POINT | {"shape": one}]} for one in ([[-1]], [[1] * (RANK_MAX + 1)], [["N"]])),
        *({"inputs": [TENSOR | one]} for one in ({"dtype": -1}, {"dtype": 1 << 31}, {"name": 1}, {"name": "x" * 5000})),
        *({"outputs": [TENSOR | {"shape": one}]} for one in ([-1], [1 << 62], [[]], [1] * (RANK_MAX + 1), ["N" * 5000])),
        {"outputs": [TENSOR] * (TENSORS_MAX + 1)},
        {"metadata": {"a": 1}},
        {"metadata": {1: "a"}},
        {"format_version": 999},
        {"unknown": 1},
    ],
)  # fmt: skip
def test_a_summary_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        read_summary(SUMMARY | change)
