"""The requests that a client refuses to send, and the exceptions for failures: no sockets needed."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

import clockwork
from clockwork import errors
from clockwork.client import calls
from clockwork.client.calls import error_of, infer_call, registration_options
from clockwork.errors import ClockworkError, InvalidInput
from clockwork.wire import codec, tensors
from clockwork.wire.description import ModelInfo
from clockwork.wire.messages import (
    FROM_CLIENT,
    Answer,
    Failure,
    HandOver,
    InferRequest,
    Offer,
    Promote,
    Query,
    Register,
    Reply,
    ReportSource,
    Rollback,
    Route,
    Status,
    Unregister,
)


def request(**changes: object) -> InferRequest:
    arguments = {"model": "m", "inputs": np.zeros((1, 2), np.float32), "slo": None, "priority": 0} | changes
    header, _ = infer_call(arguments["inputs"]).encode(7, *arguments.values())  # type: ignore[arg-type]
    message = codec.decode(header, FROM_CLIENT)
    assert type(message) is InferRequest
    return message


def test_an_array_goes_without_a_name() -> None:
    assert request() == InferRequest(7, "m", 0, 0, [["", tensors.FLOAT, [1, 2], 0]])


def test_an_input_without_a_name_is_called_the_input() -> None:
    with pytest.raises(InvalidInput, match="the input: an array of objects holds strings, not NoneType"):
        request(inputs=None)


def test_a_mapping_goes_by_name_one_frame_each() -> None:
    message = request(inputs={"ids": np.zeros((1, 2), np.int64), "text": ["a"]}, slo=0.1, priority=2)
    assert message.slo_ns == 100_000_000
    assert message.priority == 2
    assert message.tensors == [["ids", tensors.INT64, [1, 2], 0], ["text", tensors.STRING, [1], 1]]


@pytest.mark.parametrize("slo", [0, 0.0, -1, math.nan, math.inf, -math.inf, 1e9, "soon"])
def test_an_slo_that_is_none(slo: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        request(slo=slo)
    assert f"slo {slo!r}: must be a number of seconds above 0 and at most" in str(caught.value)


def test_an_slo_that_was_probably_meant_in_milliseconds_is_taken_with_a_question() -> None:
    with pytest.warns(errors.SloWarning, match=r"in seconds: 100 is 100 s, 100 ms is 0\.1"):
        assert request(slo=100).slo_ns == 100_000_000_000
    with pytest.warns(errors.SloWarning) as told:
        registration_options(250, "auto", None)
    assert told[0].filename == __file__, "the caller's line is shown, and none of ours"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        request(slo=9.9)


@pytest.mark.parametrize("priority", [-1, 256, 1.5, True, "high"])
def test_a_priority_that_is_none(priority: object) -> None:
    with pytest.raises(InvalidInput, match="priority"):
        request(priority=priority)


@pytest.mark.parametrize("model", ["", "x" * 300, None, 3])
def test_a_name_that_is_none(model: object) -> None:
    with pytest.raises(InvalidInput, match="model"):
        request(model=model)


def test_an_input_that_cannot_be_sent_is_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        request(inputs={"when": np.zeros(2, "M8[s]")})
    assert caught.value.tensor == "when"
    with pytest.raises(InvalidInput, match="str"):
        request(inputs={3: np.zeros(2)})


def test_numbers_of_another_dtype_come_with_how_to_convert_them() -> None:
    details = {"tensor": "x", "expected": "float32", "got": "float64"}
    wrong = error_of(Failure(1, Status.INVALID_INPUT, "input 'x' is float32, got float64", details))
    assert wrong.__notes__ == ["NumPy converts it: .astype('float32')"]
    assert str(wrong) == "input 'x' is float32, got float64"
    other = error_of(Failure(1, Status.INVALID_INPUT, "no", details | {"expected": "string"}))
    assert not hasattr(other, "__notes__")


@pytest.mark.parametrize(
    "arguments", [(-0.1, "auto", None), (None, "maybe", None), (None, "auto", -1), (None, "auto", 1.5)]
)
def test_registration_options_that_are_none(arguments: tuple[object, ...]) -> None:
    with pytest.raises(InvalidInput):
        registration_options(*arguments)  # type: ignore[arg-type]


def test_a_bound_of_batches_is_named_with_what_it_may_be() -> None:
    assert registration_options(None, "auto", 4096)["batch_max"] == 4096
    with pytest.raises(InvalidInput, match=r"^batch_max 4097: an integer from 1 to 4096, or 0: as measured$"):
        registration_options(None, "auto", 4097)


def test_what_is_not_said_of_a_registration_is_not_sent() -> None:
    assert registration_options(None, None, None) == {}
    said = {"slo_ns": 0, "batching": "auto", "batch_max": 0, "dtype": "fp32"}
    assert registration_options(0, "auto", 0, dtype="fp32") == said
    assert registration_options(None, None, None, share=0.1) == {"traffic": "part"}
    assert registration_options(None, None, None, share=0, force=True) == {"traffic": "none", "forced": True}
    with pytest.raises(InvalidInput, match=r"share 1\.5"):
        registration_options(None, None, None, share=1.5)


# ----- the table -----------------------------------------------------------------------------

MESSAGES: list[tuple[calls.Call[Any, *tuple[Any, ...]], tuple[Any, ...], tuple[Any, ...]]] = [
    (calls.REGISTER, ("m", [["model.onnx", 3, "0" * 64]], {}), Register(7, "m", [["model.onnx", 3, "0" * 64]], {})),
    (calls.UNREGISTER, ("m@2",), Unregister(7, "m@2")),
    (calls.LOAD, ("m",), Offer(7, "m", True)),
    (calls.UNLOAD, ("m",), Offer(7, "m", False)),
    (calls.REPORT_SOURCE, ("s3://b", "away"), ReportSource(7, "s3://b", "away")),
    (calls.HAND_OVER, (), HandOver(7)),
    (calls.ROUTE, ("m", {2: 0.1}, {3: 1.0}, 0.5), Route(7, "m", [[2, 1_000]], [3, 10_000, 0.5])),
    (calls.ROUTE, ("m", None, {}, 0.5), Route(7, "m", [], [0, 0, 0.0])),
    (calls.PROMOTE, ("m", 2), Promote(7, "m", 2)),
    (calls.ROLLBACK, ("m",), Rollback(7, "m")),
    (calls.MODELS, ("#3",), Query(7, "models", "#3")),
    (calls.MODEL, ("m@2",), Query(7, "model", "m@2")),
    (calls.STATUS, (), Query(7, "status", "")),
    (calls.READINESS, (), Query(7, "readiness", "")),
    (calls.METRICS, ("m",), Query(7, "metrics", "m")),
    (calls.CORES, (), Query(7, "cores", "")),
    (calls.RECORDER, ("#5",), Query(7, "recorder", "#5")),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "message"), MESSAGES)
def test_a_call_becomes_its_message(call: Any, arguments: tuple[Any, ...], message: tuple[Any, ...]) -> None:
    header, frames = call.encode(7, *arguments)
    assert (codec.decode(header, FROM_CLIENT), list(frames)) == (message, [])


def test_every_call_of_the_table_is_asked_for_its_message() -> None:
    rows = {name: call for name, call in vars(calls).items() if isinstance(call, calls.Call)}
    asked = {id(call) for call, _, _ in MESSAGES}
    assert {name for name, call in rows.items() if id(call) not in asked} == {
        "INFER_ARRAY", "INFER_MAPPING", "INFER_FRAMES",
    }  # fmt: skip


def test_both_clients_have_the_same_calls() -> None:
    def face(client: type) -> dict[str, Any]:
        methods = inspect.getmembers(client, inspect.isfunction)
        return {
            name: list(inspect.signature(method).parameters.values())
            for name, method in methods
            if name[0] != "_"
        }

    assert face(clockwork.AsyncClient) == face(clockwork.Client)


# ----- answers -------------------------------------------------------------------------------


def answer(*refs: list[object]) -> Answer:
    return Answer(1, 1, list(refs), [0, 0, 0, 0])


def test_one_array_for_one_array_and_a_dict_for_a_dict() -> None:
    frame = np.arange(2, dtype=np.float32).tobytes()
    one, two = answer(["y", 1, [2], 0]), answer(["y", 1, [2], 0], ["z", 1, [1, 2], 0])
    x = np.zeros(2)
    assert infer_call(x).decode(one, [frame]).tolist() == [0, 1]  # type: ignore[union-attr]
    assert infer_call({"x": x}).decode(one, [frame])["y"].tolist() == [0, 1]  # type: ignore[index,call-overload]
    assert list(infer_call({"x": x}).decode(two, [frame])) == ["y", "z"]
    with pytest.raises(
        InvalidInput, match=r"2 outputs \(y, z\): give its inputs by name, and infer\(\) returns a dict"
    ):
        infer_call(x).decode(two, [frame])


@pytest.mark.parametrize(
    "reference",
    [
        ["y", 1, [3], 0],
        ["y", 1, [2], 1],
        ["y", 1, [2]],
        ["y", 99, [2], 0],
        ["y", 1, None, 0],
        3,
        ["y", 1, [2], "0"],
    ],
)
def test_a_damaged_answer_is_an_error_not_a_crash(reference: object) -> None:
    with pytest.raises(ClockworkError, match="damaged"):
        calls.INFER_ARRAY.decode(Answer(1, 1, [reference], [0, 0, 0, 0]), [bytes(8)])  # type: ignore[list-item]


@pytest.mark.parametrize("call", [calls.INFER_ARRAY, calls.INFER_MAPPING, calls.INFER_FRAMES])
def test_a_reply_is_no_answer_to_an_inference(call: calls.Call[Any]) -> None:
    with pytest.raises(ClockworkError, match="damaged"):
        call.decode(Reply(1, {}), [])


@pytest.mark.parametrize("call", [calls.MODELS, calls.MODEL, calls.ROUTE, calls.LOAD, calls.REGISTER])
def test_an_answer_is_no_reply(call: calls.Call[Any]) -> None:
    with pytest.raises(ClockworkError, match="damaged"):
        call.decode(answer(), [])


# ----- failures ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.DEADLINE_MISSED, errors.DeadlineMissed),
        (Status.CANCELLED, errors.Cancelled),
        (Status.MODEL_NOT_FOUND, errors.ModelNotFound),
        (Status.INVALID_INPUT, errors.InvalidInput),
        (Status.EXECUTION_FAILED, errors.ExecutionFailed),
        (Status.UNAVAILABLE, errors.Unavailable),
        (Status.PROTOCOL_MISMATCH, errors.ProtocolMismatch),
        (Status.INVALID_MODEL, errors.InvalidModel),
        (Status.REFUSED, errors.Refused),
        (Status.INTERNAL, ClockworkError),
        (99, ClockworkError),
    ],
)
def test_every_status_has_its_exception(status: int, kind: type[ClockworkError]) -> None:
    error = error_of(Failure(1, status, "why", {}))
    assert type(error) is kind
    assert str(error) == "why"
    assert isinstance(error, ClockworkError)


def test_a_refusal_says_what_would_have_been_admitted() -> None:
    details = {"reason": "deadline", "feasible_slo_ns": 20_000_000, "retry_after_ns": 1_500_000_000}
    error = error_of(Failure(1, Status.REFUSED, "no", details))
    assert isinstance(error, errors.Refused)
    assert (error.reason, error.feasible_slo, error.retry_after) == ("deadline", 0.02, 1.5)
    unknown = error_of(Failure(1, Status.REFUSED, "no", {"feasible_slo_ns": 0}))
    assert isinstance(unknown, errors.Refused)
    assert (unknown.feasible_slo, unknown.retry_after) == (None, None)


def test_an_invalid_input_names_the_tensor() -> None:
    error = error_of(
        Failure(1, Status.INVALID_INPUT, "no", {"tensor": "x", "expected": "float32", "got": "int8"})
    )
    assert isinstance(error, errors.InvalidInput)
    assert (error.tensor, error.expected, error.got) == ("x", "float32", "int8")


# ----- descriptions --------------------------------------------------------------------------


def test_a_description_tolerates_what_it_does_not_know() -> None:
    info = ModelInfo.from_wire({
        "name": "m", "version": 3, "slo_ns": 100_000_000, "from_the_future": 1,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 4]}],
        "profile": [{"shape": [[4]], "batch": 2, "exec_ns": 5}],
    })  # fmt: skip
    assert (info.name, info.version, info.slo, info.reference) == ("m", 3, 0.1, "m@3")
    assert (info.inputs[0].dtype, info.inputs[0].shape) == ("float32", ("n", 4))
    assert info.profile[0].shape == ((4,),)
    assert info.raw["from_the_future"] == 1
    assert ModelInfo.from_wire({}).slo is None


# ----- the package ---------------------------------------------------------------------------


def test_everything_public_can_be_imported() -> None:
    for name in clockwork.__all__:
        assert getattr(clockwork, name) is not None
    with pytest.raises(AttributeError):
        clockwork.nonsense  # noqa: B018


def test_importing_the_package_is_light() -> None:
    code = "import sys, clockwork; print(*sys.modules); clockwork.Client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    imported, used = (set(line.split()) for line in done.stdout.splitlines())
    assert not {"numpy", "zmq", "onnx", "onnxruntime"} & imported
    assert "clockwork.client.blocking" in used - imported
    assert not {"onnx", "onnxruntime", "PIL", "rich", "click", "asyncio"} & used
