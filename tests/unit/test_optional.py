"""Optional inputs, apart from processes: their values in shapes, the exchange's defaults, and which versions
are compatible."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clockwork.controller._values import ModelInterface
from clockwork.controller.models.interfaces import as_counted
from clockwork.controller.ports.flaws import Flaw
from clockwork.device.base import TensorView
from clockwork.device.cpu import CpuArena, fingerprint
from clockwork.errors import InvalidModel
from clockwork.formats.interface import Interface, defaults_of, misfit
from clockwork.formats.prepared import TensorSpec, prepared_directory
from clockwork.models.inputs import timed_shape
from clockwork.models.prepare import prepare
from clockwork.scheduler.types import ProfilePoint
from clockwork.wire import codec
from clockwork.wire.messages import NEVER_NS, Infer, InferRequest, Load, Profile, Status
from clockwork.wire.optional import OPTIONAL_KEY, default_of, defaults_text, is_value, value_entry, value_of
from clockwork.wire.tensors import BOOL, FLOAT, INT64, encode_array
from tests.native import _tested
from tests.unit.models_onnx import negated_if_told, normal, save_package, unpack

PAGE_BYTES = 64 << 10


def interface(*optional: str) -> Interface:
    """Take x [N, 2], told [1] bool and size [2] int64."""
    defaults = {"told": default_of(np.array([True])), "size": default_of(np.array([3, -1]))}
    inputs = [
        TensorSpec("told", BOOL, (1,)),
        TensorSpec("x", FLOAT, ("N", 2)),
        TensorSpec("size", INT64, (2,)),
    ]
    text = defaults_text({name: defaults[name] for name in optional})
    return Interface(inputs, [TensorSpec("y", FLOAT, ("N", 2))], {OPTIONAL_KEY: text} if optional else {})


def check(model: Interface, arrays: dict[str, np.ndarray], batches: bool = True) -> Any:
    """Return the exchange's reading of a request."""
    references, frames = [], []
    for name, array in arrays.items():
        dtype, shape, frame = encode_array(array)
        references.append([name, dtype, list(shape), len(frames)])
        frames.append(bytes(frame))
    defaults = defaults_of(model.inputs, model.metadata)
    made = ModelInterface(model.inputs, model.outputs, batches, True, {}, defaults)
    return _tested.check_request(made, codec.encode(InferRequest(1, "m", 0, 0, references)), frames)


@given(st.binary(min_size=1, max_size=64))
def test_the_entry_of_a_value_tells_the_value(data: bytes) -> None:
    entry = value_entry(data)
    assert is_value(entry)
    assert value_of(entry, len(data)) == data
    assert all(0 <= number < NEVER_NS for number in entry)


@pytest.mark.parametrize("batches", [True, False])
def test_a_request_has_the_default_of_what_it_leaves_out(batches: bool) -> None:
    model = interface("told", "size")
    x = normal(3, 2)
    told, size = np.array([True]), np.array([3, -1])
    rows, _, _, frames, shape = check(model, {"x": x}, batches)
    assert rows == (3 if batches else 1)
    assert frames == [1, 0, 2], "defaults lie behind what came"
    assert shape == timed_shape([told, x, size], batches, [True, False, True])
    for given_told in (np.array([True]), np.array([False])):
        found = check(model, {"told": given_told, "x": x}, batches)
        assert found[4] == timed_shape([given_told, x, size], batches, [True, False, True])
        assert (found[4] == shape) is bool(given_told[0]), "only equal values share batches"
    unnamed = check(model, {"": x}, batches)
    assert unnamed[4] == shape


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"told": np.array([True])}, "missing"),
        ({"x": normal(3, 2), "told": np.array([1.0], np.float32)}, "dtype"),
        ({"x": normal(3, 2), "told": np.array([True, False])}, "shape"),
        ({"x": normal(3, 2), "other": np.array([True])}, "no_input"),
        ({"": normal(3, 2), "x": normal(3, 2)}, "twice"),
    ],
)
def test_what_is_wrong_with_a_request_is_found_beside_defaults(
    arrays: dict[str, np.ndarray], code: str
) -> None:
    found = check(interface("told", "size"), arrays)
    assert isinstance(found, Flaw)
    assert found.code == code


def test_an_input_that_is_not_optional_is_missing() -> None:
    found = check(interface("size"), {"x": normal(3, 2)}, False)
    assert isinstance(found, Flaw)
    assert (found.code, found.tensor) == ("missing", "told")


def test_measurements_are_counted_otherwise_without_their_values() -> None:
    entry = value_entry(b"\1")
    point = ProfilePoint((entry, (2,)), 4, 1000)
    (unbatched,) = as_counted([point], False)
    assert unbatched == ProfilePoint((entry, (4, 2)), 1, 1000)
    assert as_counted([unbatched], True) == [point]


@pytest.mark.parametrize(
    ("served", "new", "fits"),
    [
        (("told", "size"), ("told", "size"), True),
        (("told",), ("told", "size"), True),
        (("told", "size"), ("told",), False),
        ((), ("told", "size"), True),
    ],
)
def test_a_version_fits_where_nothing_that_was_optional_is_required(
    served: tuple[str, ...], new: tuple[str, ...], fits: bool
) -> None:
    assert (misfit(interface(*served), interface(*new)) == "") is fits


def test_a_version_may_have_more_optional_inputs_and_no_fewer() -> None:
    full = interface("told", "size")
    less = dataclasses.replace(interface("size"), inputs=full.inputs[1:])
    assert misfit(less, full) == ""
    assert "told" in misfit(full, less)
    assert "told" in misfit(less, interface("size")), "it is required there"


def test_a_default_of_another_shape_is_no_models() -> None:
    model = interface("told")
    with pytest.raises(InvalidModel, match="not of its shape"):
        defaults_of([dataclasses.replace(model.inputs[0], shape=(2,))], model.metadata)


def test_a_device_takes_one_value_for_a_batch_and_refuses_two(tmp_path: Path) -> None:
    from clockwork.models.onnx_import import package_files

    package = save_package(negated_if_told(), tmp_path / "plain")
    package = unpack(package_files(package / "model.onnx"), tmp_path / "package")
    options = {"batch_max": 4}
    prepared = prepare(package, tmp_path / "store", fingerprint(1), PAGE_BYTES, options)
    assert prepared.batches, prepared.batching_note
    assert {point.shape[1] for point in prepared.profile} == {value_entry(b"\0"), value_entry(b"\1")}
    assert max(point.batch for point in prepared.profile) > 1
    (device,) = CpuArena(max(1, sum(prepared.runs)) * PAGE_BYTES, PAGE_BYTES).devices
    device.open(0, str(prepared_directory(tmp_path / "store", prepared.digest, fingerprint(1), options)))
    starts = list(itertools.accumulate(prepared.runs, initial=0))[:-1]
    device.start(Load(1, 0, 0, 1, starts, 0, NEVER_NS, 0))
    (done,) = device.wait([1], 30.0)
    assert done.status == Status.OK
    parts = [normal(1, 4, seed=1), normal(2, 4, seed=2)]
    for number, flags in enumerate([(True, True), (False, False), (True, False)], 2):
        views = [
            [TensorView(dtype, tuple(shape), data) for dtype, shape, data in map(encode_array, (x, np.array([flag])))]
            for x, flag in zip(parts, flags)
        ]  # fmt: skip
        device.start(Infer(number, 0, 0, 1, 0, NEVER_NS, 0, []), views)
        (done,) = device.wait([number], 30.0)
        if flags[0] != flags[1]:
            assert (done.status, done.text) == (
                Status.INVALID_INPUT, "input 1 is optional and has another value in each part of a batch",
            )  # fmt: skip
            continue
        answers = [np.frombuffer(part[0].data, np.float32).reshape(-1, 4) for part in done.parts]
        for x, y in zip(parts, answers):
            assert np.array_equal(y, -x if flags[0] else x)
    for number, (shapes, status) in enumerate(
        [
            ([[1, 4], list(value_entry(b"\1"))], Status.OK),
            ([[1, 4], [1]], Status.INVALID_INPUT),
            ([[1, 4], [*value_entry(b"\1"), 0]], Status.INVALID_INPUT),
        ],
        9,
    ):
        device.start(Profile(number, 0, 0, 1, 0, NEVER_NS, 0, shapes))
        (done,) = device.wait([number], 30.0)
        assert done.status == status, done.text
    device.close()
