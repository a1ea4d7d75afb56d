"""Every reader in Python of untrusted bytes, as a function of bytes.

A reader accepts the bytes (True) or raises an error that its callers expect (False). Anything else is a
defect: an exception of another kind ends the reading process, and a value that its own encoder cannot encode
again was not checked.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any, BinaryIO

from clockwork.controller.catalog import routes
from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.models.interfaces import read_summary
from clockwork.errors import ClockworkError, ConfigError, InvalidInput, InvalidModel
from clockwork.formats import interface
from clockwork.formats.checksums import unseal
from clockwork.formats.package import digest_of, parse_files, rows_of
from clockwork.formats.prepared import PreparedModel
from clockwork.formats.profiles import dump_profiles, parse_profiles
from clockwork.formats.program import parse_program
from clockwork.gateway import http_inference, long_json
from clockwork.gateway.errors import tell
from clockwork.gateway.regions import Regions, Shared
from clockwork.gateway.settings import StatusCodes
from clockwork.gateway.split import MessageReader
from clockwork.protocol import inference_pb2 as pb
from clockwork.repository import triton_config
from clockwork.scheduler import make_scheduler, recording
from clockwork.scheduler.types import Tick
from clockwork.web import pages
from clockwork.web.pages import Asking, Names, refusal
from clockwork.wire import codec, messages, tensors

TABLES = (messages.FROM_CLIENT, messages.TO_CLIENT, messages.FROM_WORKER, messages.TO_WORKER)

INFERENCES = MessageReader(pb.ModelInferRequest)

DAMAGED = (ValueError, KeyError, TypeError)
"""Errors that readers of Clockwork's own files raise for a damaged file, which is then set aside."""


def demand(holds: bool, what: str) -> None:
    assert holds, what


def headers(data: bytes) -> bool:
    """Target codec.decode() in all directions; a decoded message encodes to bytes that decode again."""
    taken = False
    for table in TABLES:
        codec.addressee(data, table)
        try:
            message = codec.decode(data, table)
        except codec.WireError as error:
            demand(len(str(error)) < 1000, "a sentence about a stranger's value has a bound")
            continue
        assert repr(codec.decode(codec.encode(message), table)) == repr(message)  # NaN is not equal to itself
        taken = True
    return taken


def _unpacked(data: bytes) -> Any:
    """A value of any type of msgpack, as a field of a message may have."""
    import msgpack

    try:
        return msgpack.unpackb(data, raw=False, use_list=True, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError):
        return None


def packages(data: bytes) -> bool:
    """The file list of a package, and its digest."""
    try:
        files = parse_files(_unpacked(data))
    except InvalidModel:
        return False
    assert parse_files(rows_of(files)) == files
    assert len(digest_of(files)) == 64
    return True


def tensor(data: bytes) -> bool:
    """A dtype, dimensions and a frame: the size is checked before an array is made."""
    code, rank = (data[0], data[1] % 5) if len(data) > 1 else (1, 0)
    shape = [
        int.from_bytes(data[2 + 8 * place : 10 + 8 * place], "big", signed=True) for place in range(rank)
    ]
    frame = data[2 + 8 * rank :]
    try:
        tensors.check_tensor(code, shape, len(frame))
        if code == tensors.STRING:
            tensors.check_strings(tensors_count(shape), frame)
        array = tensors.decode_tensor(code, shape, frame)
    except InvalidInput:
        return False
    assert list(array.shape) == shape
    assert array.nbytes <= 64 * (len(frame) + 1), "more memory than was sent"
    return True


def tensors_count(shape: list[int]) -> int:
    count = 1
    for dimension in shape:
        count *= dimension
    return count


def summaries(data: bytes) -> bool:
    """A worker's account of a model that it has prepared."""
    head = messages.Prepared(1, messages.Status.OK, "", {})
    try:
        message = codec.decode(codec.encode(head)[:-1] + data, messages.FROM_WORKER)
        read_summary(message.summary)
    except ClockworkError:
        return False
    return True


def onnx(data: bytes) -> bool:
    """The declarations of an ONNX file."""
    return _declares(interface.read_onnx, data)


def head(data: bytes) -> bool:
    """The declarations of a program.json, whose beginning is read."""
    return _declares(interface.read_program, data)


def _declares(read: Callable[[BinaryIO], interface.Interface], data: bytes) -> bool:
    try:
        found = read(io.BytesIO(data))
    except InvalidModel:
        return False
    assert interface.Interface.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    return True


def prepared(data: bytes) -> bool:
    """A prepared model's file in a worker's store."""
    try:
        body, _ = unseal(data)
        PreparedModel.from_dict(body)
    except DAMAGED:
        return False
    return True


def program(data: bytes) -> bool:
    """The program.json of a compiled package."""
    try:
        parse_program(data)
    except InvalidModel:
        return False
    return True


def profiles(data: bytes) -> bool:
    """A profile.json."""
    try:
        found = parse_profiles(json.loads(data))
    except (ValueError, RecursionError, ConfigError):
        return False
    assert parse_profiles(json.loads(dump_profiles(found))) == found
    return True


def catalog(data: bytes) -> bool:
    """A model's record in the data directory of an earlier release, and as a row of the catalogue."""
    try:
        body, _ = unseal(data)
        record = ModelRecord.from_body(body)
    except DAMAGED:
        return False
    assert ModelRecord.from_row(record.to_row("", 0)) == record
    return True


def route(data: bytes) -> bool:
    """A route's record, likewise."""
    try:
        body, _ = unseal(data)
        found = routes.NameRoute.from_body(body)
    except DAMAGED:
        return False
    assert routes.NameRoute.from_row(found.to_row("", 0)) == found or b"NaN" in data
    return True


def triton(data: bytes) -> bool:
    """The config.pbtxt of a model repository."""
    try:
        triton_config.read_config(data.decode("utf-8", "replace"), "folder")
    except InvalidModel:
        return False
    return True


def bodies(data: bytes) -> bool:
    """The body of an inference over HTTP: JSON, then raw bytes."""
    size = int.from_bytes(data[:2], "big")
    text, rest = data[2 : 2 + size], data[2 + size :]
    try:
        fields = long_json.read_object(text, "the body")
        shared = Shared(Regions(), lambda: 0, lambda count: None, len(data))
        inference, _ = http_inference.inference_of(fields, memoryview(rest), shared, "m", "", 0)
    except ClockworkError as error:
        demand(
            len(str(tell(error, StatusCodes.MESH).body)) < 5000, "an answer repeats a request without a bound"
        )
        return False
    assert sum(map(len, inference.frames)) <= 16 * len(data)
    return True


def pieces(data: bytes) -> bool:
    """JSON read in pieces of a few bytes, which must equal JSON read as a whole."""
    found = []
    for at_once in (8, 1 << 20):
        try:
            found.append(repr(long_json.read_object(data, "the body", at_once)))
        except ClockworkError:
            found.append("")
    # Both readers use the stack for each level, but not the same amount.
    assert found[0] == found[1] or data.count(b"[") + data.count(b"{") > 200
    return found[0] != ""


def split(data: bytes) -> bool:
    """The gRPC message of an inference: read as protobuf reads it, where groups are unknown fields."""
    try:
        found: Any = INFERENCES.read(data)
    except ClockworkError:
        return False
    whole = pb.ModelInferRequest.FromString(data)
    found.message.raw_input_contents.extend(map(bytes, found.raw))
    assert found.message.SerializeToString() == whole.SerializeToString()
    return True


def recordings(data: bytes) -> bool:
    """A recording of a controller, as users exchange them."""
    try:
        _, steps = recording.decode(io.BytesIO(data))
        for _ in steps:
            pass
    except ConfigError:
        return False
    return True


def states(data: bytes) -> bool:
    """The scheduler's state in a dump of the flight recorder.

    A scheduler with an accepted state must take further events.
    """
    scheduler = make_scheduler("adaptive")
    try:
        scheduler.restore(data)
    except ConfigError:
        return False
    scheduler.step(Tick(1 << 40))
    return True


def asked(data: bytes) -> bool:
    """A request's Host and Origin, with a line end between them.

    A name that is not the server's is always refused.
    """
    host, _, origin = data.decode("latin-1").partition("\n")
    names = Names(["models.example.com", "proxy.example.com:8443"])
    wrong = refusal(Asking(host=host, origin=origin), names, check_host=True, changes=False)
    demand(len(wrong) < 600, "a sentence about a stranger's value has a bound")
    if not wrong and host:
        name, _ = pages.split(host)
        own = name in ("localhost", "models.example.com", "proxy.example.com") or pages.is_address(name)
        demand(own, "the server has this name")
        demand(host.lower().startswith((name, f"[{name}]")), "nothing is before the name")
    return not wrong


TARGETS: dict[str, Callable[[bytes], bool]] = {
    one.__name__: one
    for one in (
        headers, packages, tensor, summaries, prepared, program, onnx, head, profiles, catalog, route, triton, bodies, pieces, split, recordings, states, asked,
    )
}  # fmt: skip
