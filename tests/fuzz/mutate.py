"""Valid examples of the readers' inputs, and seeded changes of them: of bytes, and of values within."""

from __future__ import annotations

import dataclasses
import json
import random
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgpack

from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.catalog.routes import Shadow, TrafficSplit
from clockwork.formats import profiles
from clockwork.formats.checksums import seal, unseal
from clockwork.formats.interface import Interface
from clockwork.formats.package import PackageFile, digest_of
from clockwork.formats.prepared import FORMAT_VERSION, PreparedModel, TensorSpec
from clockwork.formats.program import write_program
from clockwork.protocol import inference_pb2 as pb
from clockwork.scheduler import make_scheduler, recording
from clockwork.scheduler.types import AnswerOk, LinkMeasured, ProfilePoint, Tick
from clockwork.wire import codec
from clockwork.wire.tensors import FLOAT, STRING
from tests import catalogues
from tests.edges import plain
from tests.process.peers import echo_model

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1 << 31, 1 << 32, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
    -(1 << 63), 0.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan"), "", "x", "../../evil", "/etc/passwd",
    "nul\0", "9" * 5000, "\N{SNOWMAN}", "x" * 4000, [], {}, [[]], [None], [1] * 100, {"a": 1}, {"": None},
)  # fmt: skip
"""Values that a field does not expect."""

DEPTH = 900  # the depth that a decoder may accept


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def odd_value(rng: random.Random) -> Any:
    place = rng.randrange(len(ODD) + 2)
    if place < len(ODD):
        return ODD[place]
    return deep(rng.choice([3, 40, DEPTH])) if place == len(ODD) else b"bytes" * rng.randint(0, 3)


def odd_within(value: Any, rng: random.Random) -> Any:
    """Return the value with a random part replaced, removed, doubled or moved a level down."""
    if isinstance(value, Mapping) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value, key=str))
        match rng.randrange(6):
            case 0:
                return {name: one for name, one in value.items() if name != key}
            case 1:
                return {**value, rng.choice(["", "more", "x" * 300]): odd_value(rng)}
            case _:
                return {**value, key: odd_within(value[key], rng)}
    if isinstance(value, list | tuple) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        before, one, after = list(value[:place]), value[place], list(value[place + 1 :])
        match rng.randrange(6):
            case 0:
                return before + after
            case 1:
                return [*before, one, one, *after]
            case _:
                return [*before, odd_within(one, rng), *after]
    return odd_value(rng)


_MARKS = b"\x00\x01\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc2\xc3\xcc\xcf\xd3\xd9\xdc\xdd\xe0\xff"
"""The bytes at which msgpack's types begin and end."""


def odd_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with a few bytes changed, inserted, removed, repeated or cut off."""
    body = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(body) + 1)
        match rng.randrange(6):
            case 0 if place < len(body):
                body[place] = rng.randrange(256)
            case 4 if place < len(body):
                body[place] = rng.choice(_MARKS)
            case 1:
                body[place:place] = rng.randbytes(rng.randint(1, 4))
            case 2:
                del body[place : place + rng.randint(1, 8)]
            case 3:
                del body[place:]
            case _:
                body[place:place] = body[: rng.randint(1, 40)]
    return bytes(body)


def packed(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


# ----- examples ----------------------------------------------------------------------------------


def every_message() -> list[Any]:
    """Return a message of each kind, with fields that their forms accept."""
    return [
        typing.cast(Any, kind)._make(plain(form) for form in codec.forms_of(kind).values())
        for kind in codec.TAG_OF
    ]


def prepared() -> PreparedModel:
    return PreparedModel(
        FORMAT_VERSION, "0" * 64, "cpu", "p", "bound", [TensorSpec("x", FLOAT, ("N", 3))],
        [TensorSpec("y", FLOAT, ("N", 2))], True, "", 4, 4096, [1, 2], [], 12, 4096, 1000,
        [ProfilePoint(((3,),), 1, 1000), ProfilePoint(((3,),), 4, 2000)], "", {"labels": "[]"}, [[1, 3]],
    )  # fmt: skip


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _http_body(fields: Any, rest: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()[:65_000]
    return len(text).to_bytes(2, "big") + text + rest


def _program(directory: Any) -> Any:
    from tests.unit.test_models_program import program

    (directory / "modules").mkdir(exist_ok=True)
    (directory / "modules" / "host.so").write_bytes(b"code")
    (directory / "weights.bin").write_bytes(bytes(72))
    write_program(directory, program())
    return json.loads((directory / "program.json").read_bytes())


TRITON = """
name: "folder"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
version_policy { latest { num_versions: 2 } }  # a comment
parameters: { key: "slo_ms" value: { string_value: "50" } }
dynamic_batching { preferred_batch_size: [ 4, 8 ] }
"""

HTTP = {
    "id": "1",
    "parameters": {"binary_data_output": True},
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[1.0, 2.0]]},
        {"name": "y", "datatype": "UINT8", "shape": [4], "parameters": {"binary_data_size": 4}},
        {"name": "z", "datatype": "BYTES", "shape": [1], "data": ["text"]},
    ],
    "outputs": [{"name": "o", "parameters": {"binary_data": False}}],
}


def values(directory: Any) -> dict[str, tuple[Callable[[Any], bytes], list[Any]]]:
    """For each target, its encoder, and valid values."""

    def as_json(value: Any) -> bytes:
        return json.dumps(value, default=str).encode()

    def sealed(value: Any) -> bytes:
        return seal(value) if type(value) is dict and value else as_json(value)

    files = [PackageFile("model.onnx", 10, "1" * 64)]
    record = ModelRecord(
        "m", 1, digest_of(files), files, {"slo_ns": 100_000_000}, is_read=True,
        interface=Interface(prepared().inputs, prepared().outputs, {"labels": "[]"}),
    )  # fmt: skip
    split = TrafficSplit(((1, 7000), (2, 3000)), Shadow(3, 500, 1e-6))
    model = dataclasses.asdict(prepared())
    return {
        "headers": (packed, [[codec.TAG_OF[type(one)], *one] for one in every_message()]),
        "packages": (packed, [[["model.onnx", 10, "1" * 64], ["weights/a", 1 << 30, "2" * 64]]]),
        "summaries": (packed, [_plain(prepared().summary())]),
        "prepared": (
            lambda body: seal(body) if type(body) is dict and body else as_json(body),
            [_plain(model)],
        ),
        "program": (as_json, [_program(directory)]),
        "head": (as_json, [_program(directory)]),
        "profiles": (as_json, [json.loads(profiles.dump_profiles(profiles.paper_models()[:2]))]),
        "catalog": (sealed, [unseal(catalogues.sealed(record))[0]]),
        "route": (
            sealed,
            [{"name": "m", "split": split.to_wire(), "earlier": [split.to_wire()]}],
        ),
        "pieces": (
            as_json,
            [HTTP, {"a": [*range(30)], "b": [1.5e300, float("nan"), True, None, [-7, [2], []]]}],
        ),
        "bodies": (lambda value: _http_body(value, b"abcd"), [HTTP]),
        "recordings": (
            lambda rows: (
                packed(rows[0]) + b"".join(packed(packed(one)) for one in rows[1:])
                if type(rows) is list and rows
                else b""
            ),
            [_recording()],
        ),
        "states": (packed, [_state()]),
    }


def _recording() -> list[Any]:
    """Return the header of a recording, and the content of its steps."""
    step = recording.encode_step([LinkMeasured(5, 1, 2, 3), Tick(6)], [AnswerOk(1, 2, 0, 3, 4, 5)])
    return [
        msgpack.unpackb(recording.encode_header(recording.Header("edf", "", {}, "1"))),
        *[msgpack.unpackb(msgpack.unpackb(step))] * 3,
    ]


def _state() -> Any:
    """Return the state of a scheduler in the middle of a run."""
    from tests.sim.test_scheduler_random import random_world

    scheduler = make_scheduler("adaptive")
    world = random_world(6, calm=False, policy="adaptive")
    world.settle()
    scheduler.step_many([event for event, _ in world.trace[:200]])
    return msgpack.unpackb(scheduler.save(1 << 24), strict_map_key=False)


def inferences() -> list[Any]:
    """Return messages to gRPC's ModelInfer: raw tensors between other fields, elements, parameters."""
    raw = pb.ModelInferRequest(model_name="m", id="7", raw_input_contents=[bytes(8), b"", bytes(300)])
    for name in ("x", "y", "z"):
        raw.inputs.add(name=name, datatype="FP32", shape=[1, 2]).parameters["p"].double_param = 0.5
    raw.outputs.add(name="o").parameters["binary_data"].bool_param = True
    listed = pb.ModelInferRequest(model_name="m", model_version="1")
    contents = listed.inputs.add(name="x", datatype="INT64", shape=[3]).contents
    contents.int64_contents.extend([1, -1, 1 << 40])
    contents.fp64_contents.extend([0.5, 2.5])
    contents.bytes_contents.extend([b"a", b""])
    listed.parameters["timeout"].int64_param = 5
    return [raw, listed]


RAW: dict[str, list[bytes]] = {
    "tensor": [
        bytes([FLOAT, 2]) + (2).to_bytes(8, "big") + (3).to_bytes(8, "big") + bytes(24),
        bytes([STRING, 1]) + (1).to_bytes(8, "big") + (3).to_bytes(4, "little") + b"abc",
        bytes([22, 1]) + (3).to_bytes(8, "big") + bytes(2),
    ],
    "triton": [TRITON.encode()],
    "split": [inference.SerializeToString() for inference in inferences()],
    "onnx": [echo_model(note="n").SerializeToString()],
    "asked": [
        b"localhost:8000\nhttp://localhost:8000",
        b"[::1]:8000\n",
        b"proxy.example.com:8443\nhttps://proxy.example.com:8443",
        b"10.0.0.1\nhttps://models.example.com",
    ],
}
"""Return valid bytes for readers whose input has no values in it."""


def changed(target: str, seed: int, count: int, directory: Any) -> Iterator[bytes]:
    """Yield so many inputs for a target: the valid ones, then changed ones."""
    rng = random.Random(f"{target} {seed}")
    make, good = values(directory).get(target, (bytes, []))
    raw = [*RAW.get(target, []), *(make(one) for one in good)]
    yield from raw
    for _ in range(count):
        if good and rng.random() < 0.7:
            value = rng.choice(good)
            for _ in range(rng.randint(1, 3)):
                value = odd_within(value, rng)
            try:
                yield make(value)
            except (ValueError, OverflowError, TypeError, RecursionError):
                continue  # a value that cannot be encoded cannot be sent
        else:
            yield odd_bytes(rng.choice(raw), rng)
