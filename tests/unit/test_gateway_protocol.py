"""The gateway's vocabulary: its protobuf messages, its table of errors, its OpenAPI document."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.protobuf", reason="protobuf is not installed ([gateway])")

from clockwork import errors
from clockwork.gateway import openapi
from clockwork.gateway.errors import TooLarge, WrongMethod, tell
from clockwork.gateway.settings import StatusCodes
from clockwork.protocol import inference_pb2 as pb
from clockwork.wire.messages import Reason
from tools.proto import PROTOCOL, header

ROOT = Path(__file__).resolve().parents[2]

DUMP = """
import json, sys
from {module} import {name} as pb
def rows(message):
    for one in message.fields:
        kind = one.message_type or one.enum_type
        yield [message.full_name, one.name, one.number, one.type, one.is_repeated, kind.full_name if kind else ""]
    for inner in message.nested_types:
        yield from rows(inner)
found = [row for message in pb.DESCRIPTOR.message_types_by_name.values() for row in rows(message)]
found += [[one.full_name, value.name, value.number, 0, False, ""]
          for one in pb.DESCRIPTOR.enum_types_by_name.values() for value in one.values]
found += [[service.full_name, method.name, method.client_streaming, method.server_streaming,
           method.input_type.full_name, method.output_type.full_name]
          for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods]
print(json.dumps(found))
"""


def rows_of(module: str, name: str) -> set[tuple[Any, ...]]:
    """Every field, number and method of a module of messages, read in a process of its own."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", DUMP.format(module=module, name=name)], cwd=ROOT, capture_output=True, text=True, check=True
    )  # fmt: skip
    return {tuple(row) for row in json.loads(done.stdout)}


@pytest.mark.parametrize("source", sorted(PROTOCOL.glob("*.proto")), ids=lambda source: source.stem)
def test_the_messages_are_made_from_their_source(source: Path) -> None:
    made = (PROTOCOL / f"{source.stem}_pb2.py").read_text(encoding="utf-8")
    assert made.startswith(header(source)), f"{source.name} has changed: run `make proto`"


@pytest.mark.parametrize(
    ("name", "package", "version"),
    [
        ("health", "grpc_health.v1", "grpc.health.v1"),
        ("reflection", "grpc_reflection.v1alpha", "grpc.reflection.v1"),
    ],
)
def test_every_field_and_number_is_grpcs(name: str, package: str, version: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed (requirements-clients.lock)")
    ours = rows_of("clockwork.protocol", f"{name}_pb2")
    theirs = {
        tuple(one.replace(".v1alpha.", ".v1.") if isinstance(one, str) else one for one in row)
        for row in rows_of(package, f"{name}_pb2")
    }
    assert len(ours) >= 4
    assert all(version in row[0] for row in ours)
    assert ours - theirs == set()


def test_every_field_and_number_is_tritons() -> None:
    pytest.importorskip(
        "tritonclient.grpc", reason="tritonclient is not installed (requirements-clients.lock)"
    )
    ours = rows_of("clockwork.protocol", "inference_pb2")
    theirs = rows_of("tritonclient.grpc", "service_pb2") | rows_of("tritonclient.grpc", "model_config_pb2")
    assert len(ours) > 150
    assert ours - theirs == set()


def test_our_messages_and_tritonclients_live_in_one_process() -> None:
    pytest.importorskip(
        "tritonclient.grpc", reason="tritonclient is not installed (requirements-clients.lock)"
    )
    from tritonclient.grpc import service_pb2

    ours = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"x"])
    assert service_pb2.ModelInferRequest.FromString(ours.SerializeToString()).model_name == "m"


def test_every_error_has_a_status_on_both_roads() -> None:
    import grpc

    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ClockworkError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        told = tell(kind("what went wrong"), StatusCodes.MESH)
        assert 400 <= told.status < 600
        assert hasattr(grpc.StatusCode, told.grpc)
        assert told.body["error"] == "what went wrong"
        assert told.body["reason"]
        assert ("Retry-After" in told.headers) == (told.status in (429, 503))
    assert tell(errors.ClockworkError(), StatusCodes.MESH).body["error"] == "ClockworkError"
    assert tell(WrongMethod("no", "GET, HEAD"), StatusCodes.MESH).headers == {"Allow": "GET, HEAD"}


SHED, UNSERVED, NEVER = (429, "RESOURCE_EXHAUSTED"), (503, "UNAVAILABLE"), (422, "FAILED_PRECONDITION")

MESH: dict[str, tuple[int, str]] = {
    Reason.DEADLINE: SHED,
    Reason.INFEASIBLE: NEVER,
    Reason.OVERLOADED: SHED,
    Reason.MEMORY: NEVER,
    Reason.DISPLACED: SHED,
    Reason.UNPROFILED: SHED,
    Reason.NO_WORKER: UNSERVED,
    Reason.DRAINING: UNSERVED,
}
"""Each reason for a refusal, by its remedy: waiting, another server, or none."""


def test_every_refusal_says_by_its_status_whether_to_try_again() -> None:
    assert set(MESH) == set(Reason), "a new reason needs a status"
    for reason, expected in MESH.items():
        told = tell(errors.Refused("no", reason), StatusCodes.MESH)
        assert (told.status, told.grpc) == expected, reason
        assert ("Retry-After" in told.headers) == (expected is not NEVER)
    assert tell(errors.Refused("no", "of another version"), StatusCodes.MESH).status == 429


def test_refusals_may_have_the_statuses_of_triton() -> None:
    for reason in Reason:
        told = tell(errors.Refused("no", reason), StatusCodes.TRITON)
        assert (told.status, told.grpc) == (NEVER if reason is Reason.INFEASIBLE else UNSERVED), reason


def test_resource_exhausted_means_shed_alone() -> None:
    too_large = TooLarge("more than is taken")
    told = tell(too_large, StatusCodes.MESH)
    assert (told.status, told.grpc, dict(told.metadata())) == (
        413,
        "OUT_OF_RANGE",
        {"clockwork-reason": "too_large"},
    )
    assert tell(too_large, StatusCodes.TRITON).grpc == "RESOURCE_EXHAUSTED"


def test_metadata_says_when_to_try_again() -> None:
    def found(retry_after: float | None) -> dict[str, str]:
        return dict(
            tell(errors.Refused("no", Reason.DEADLINE, None, retry_after), StatusCodes.MESH).metadata()
        )

    assert found(1.2001) == {
        "clockwork-reason": "deadline", "clockwork-retry-after-us": "1200100", "retry-after": "2",
        "grpc-retry-pushback-ms": "1201",
    }  # fmt: skip
    assert found(None) == {"clockwork-reason": "deadline", "retry-after": "1"}


@pytest.mark.parametrize(
    ("retry_after", "seconds"), [(None, "1"), (0.0, "1"), (0.2, "1"), (1.0, "1"), (1.001, "2"), (90.5, "91")]
)
def test_retry_after_is_whole_seconds_rounded_up(retry_after: float | None, seconds: str) -> None:
    told = tell(errors.Refused("no", Reason.OVERLOADED, None, retry_after), StatusCodes.MESH)
    assert told.headers["Retry-After"] == seconds
    assert told.body["reason"] == "overloaded"
    assert ("retry_after_us" in told.body) == (retry_after is not None)
    assert "feasible_timeout_us" not in told.body


def test_a_feasible_timeout_is_never_rounded_below_what_is_feasible() -> None:
    told = tell(errors.Refused("no", Reason.DEADLINE, 0.0100001, None), StatusCodes.MESH)
    assert told.body["feasible_timeout_us"] == 10_001


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        found = [part["$ref"]] if "$ref" in part else []
        return found + [one for value in part.values() for one in references(value)]
    return [one for value in part for one in references(value)] if isinstance(part, list) else []


@pytest.mark.parametrize("codes", StatusCodes)
def test_the_document_refers_to_what_it_has(codes: StatusCodes) -> None:
    document = openapi.document(True, codes)
    found = set(references(document))
    assert len(found) > 15
    for one in found:
        part: Any = document
        for key in one.removeprefix("#/").split("/"):
            part = part[key]
    used = {one.rpartition("/")[2] for one in found}
    assert {*document["components"]["schemas"], *document["components"]["responses"]} - used == set()
