"""What the exchange reads and accepts without Python, against what Python would have said.

The exchange may leave anything to Python; what it takes itself must be exactly what Python would have taken.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import pytest

from clockwork.config import STRINGS_MAX
from clockwork.controller._exchange import (
    ClockBounds,
    Interface,
    accepts,
    gives_output,
    read_request,
    read_result,
    sentence,
)
from clockwork.controller.clocksync import ClockSync
from clockwork.controller.intake import check_request
from clockwork.controller.links import check_bytes, check_result
from clockwork.controller.models import ServedModel
from clockwork.controller.records import ModelRecord
from clockwork.errors import InvalidInput
from clockwork.formats.prepared import FORMAT_VERSION, UNKNOWN_RANK, PreparedModel, TensorSpec, contradiction
from clockwork.scheduler._core import TEXTS
from clockwork.wire import codec
from clockwork.wire.messages import FROM_CLIENT, FROM_WORKER, NEVER_NS, InferRequest, Result, Status
from clockwork.wire.tensors import BOOL, FLOAT, INT4, INT64, STRING, UINT8
from tests.fuzz import mutate

SEED = 20201104
MUTATIONS = 20_000


def model_of(inputs: list[TensorSpec], batches: bool) -> ServedModel:
    """A model as far as its requests are checked."""
    outputs = [TensorSpec("y", FLOAT, ("N",))]
    prepared = PreparedModel(
        FORMAT_VERSION, "0" * 64, "test", "p", "none", inputs, outputs, batches, "", 8, 4096, [1], [], 0, 0, 0, [], "",
        {}, [],
    )  # fmt: skip
    model = ServedModel(1, ModelRecord("m", 1, "0" * 64, [], {}))
    model.prepared = prepared
    model.input_index = {spec.name: index for index, spec in enumerate(inputs)}
    return model


IMAGE = model_of([TensorSpec("x", FLOAT, ("N", 3, "H", "W"))], True)
TWO = model_of([TensorSpec("ids", INT64, ("N", "T")), TensorSpec("mask", BOOL, ("N", "T"))], True)
FIXED = model_of([TensorSpec("x", UINT8, (4, 2)), TensorSpec("scale", FLOAT, ())], False)
ANY = model_of([TensorSpec("x", INT4, UNKNOWN_RANK)], False)
WORDS = model_of([TensorSpec("text", STRING, ("N",))], True)
MODELS = [IMAGE, TWO, FIXED, ANY, WORDS]

_interfaces: dict[int, Interface] = {}


def interface_of(model: ServedModel) -> Interface:
    prepared = model.prepared
    assert prepared is not None
    if id(model) not in _interfaces:
        _interfaces[id(model)] = Interface(prepared.inputs, prepared.outputs, prepared.batches, False)
    return _interfaces[id(model)]


def by_python(model: ServedModel, refs: Any, frames: list[bytes]) -> Any:
    """(rows, bytes, frames, shape key), or None where it is no good."""
    try:
        found = check_request(model, refs, frames)
    except InvalidInput:
        return None
    return found.rows, found.bytes, [frame for _, _, frame in found.tensors], found.shape


def by_exchange(model: ServedModel, refs: Any, frames: list[bytes]) -> Any:
    header = codec.encode(InferRequest(1, "m", 0, 0, refs))
    return accepts(interface_of(model), header, [len(frame) for frame in frames])


GOOD = [
    (IMAGE, [["x", FLOAT, [2, 3, 4, 5], 0]], [bytes(480)]),
    (IMAGE, [["", FLOAT, [1, 3, 1, 1], 0]], [bytes(12)]),
    (IMAGE, [["x", FLOAT, [1, 3, 0, 7], 0]], [b""]),
    (TWO, [["ids", INT64, [2, 5], 0], ["mask", BOOL, [2, 5], 1]], [bytes(80), bytes(10)]),
    (TWO, [["mask", BOOL, [2, 5], 0], ["ids", INT64, [2, 5], 1]], [bytes(10), bytes(80)]),
    (TWO, [["mask", BOOL, [2, 5], 1], ["ids", INT64, [2, 5], 0]], [bytes(80), bytes(10)]),
    (FIXED, [["x", UINT8, [4, 2], 0], ["scale", FLOAT, [], 1]], [bytes(8), bytes(4)]),
    (ANY, [["x", INT4, [3], 0]], [bytes(2)]),
    (ANY, [["x", INT4, [], 0]], [bytes(1)]),
    (ANY, [["x", INT4, [1] * 32, 0]], [bytes(1)]),
]


@pytest.mark.parametrize(("model", "refs", "frames"), GOOD)
def test_good_requests_are_taken_without_python_as_python_would_take_them(
    model: ServedModel, refs: Any, frames: list[bytes]
) -> None:
    taken = by_exchange(model, refs, frames)
    assert taken is not None
    assert taken == by_python(model, refs, frames)


BAD = [
    (IMAGE, [["x", FLOAT, [2, 3, 4, 5], 0]], [bytes(479)]),
    (IMAGE, [["x", FLOAT, [2, 3, 4], 0]], [bytes(96)]),
    (IMAGE, [["x", FLOAT, [2, 4, 1, 1], 0]], [bytes(32)]),
    (IMAGE, [["y", FLOAT, [1, 3, 1, 1], 0]], [bytes(12)]),
    (IMAGE, [["x", INT64, [1, 3, 1, 1], 0]], [bytes(24)]),
    (IMAGE, [["x", FLOAT, [1, 3, -1, -1], 0]], [bytes(12)]),
    (IMAGE, [["x", FLOAT, [1, 3, 1 << 40, 1 << 40], 0]], [bytes(12)]),
    (IMAGE, [["x", FLOAT, [1 << 62, 3, 0, 1 << 62], 0]], [b""]),
    (IMAGE, [["x", FLOAT, [0, 3, 1, 1], 0]], [b""]),
    (IMAGE, [["x", FLOAT, [1, 3, 1, 1], 1]], [bytes(12)]),
    (IMAGE, [["x", FLOAT, [1, 3, 1, 1], -1]], [bytes(12)]),
    (IMAGE, [["x", FLOAT, [1, 3, 1, 1], 0]], [bytes(12), b""]),
    (IMAGE, [["x", FLOAT, [1, 3, 1, True], 0]], [bytes(12)]),
    (IMAGE, [["x", FLOAT, [1, 3, 1, 1.0], 0]], [bytes(12)]),
    (IMAGE, [["x", FLOAT, [1, 3, 1, None], 0]], [bytes(12)]),
    (IMAGE, [["x", FLOAT, "1311", 0]], [bytes(12)]),
    (IMAGE, [[b"x", FLOAT, [1, 3, 1, 1], 0]], [bytes(12)]),
    (IMAGE, [["x", FLOAT, [1, 3, 1, 1], 0, 0]], [bytes(12)]),
    (IMAGE, [], []),
    (TWO, [["ids", INT64, [2, 5], 0], ["mask", BOOL, [2, 4], 1]], [bytes(80), bytes(8)]),
    (TWO, [["ids", INT64, [2, 5], 0], ["mask", BOOL, [1, 5], 1]], [bytes(80), bytes(5)]),
    (TWO, [["ids", INT64, [2, 5], 0], ["ids", INT64, [2, 5], 1]], [bytes(80), bytes(80)]),
    (TWO, [["ids", INT64, [2, 5], 0], ["mask", BOOL, [2, 5], 0]], [bytes(80), bytes(10)]),
    (TWO, [["ids", INT64, [2, 5], 0], ["", BOOL, [2, 5], 1]], [bytes(80), bytes(10)]),
    (TWO, [["ids", INT64, [2, 5], 0]], [bytes(80)]),
    (FIXED, [["x", UINT8, [4, 3], 0], ["scale", FLOAT, [], 1]], [bytes(12), bytes(4)]),
    (FIXED, [["x", UINT8, [4, 2], 0], ["scale", FLOAT, [1], 1]], [bytes(8), bytes(4)]),
    (ANY, [["x", INT4, [1] * 33, 0]], [bytes(1)]),
    (ANY, [["x", INT4, [1 << 31], 0]], [bytes(1)]),
]


@pytest.mark.parametrize(("model", "refs", "frames"), BAD)
def test_bad_requests_are_left_to_python_which_refuses_them(
    model: ServedModel, refs: Any, frames: list[bytes]
) -> None:
    assert by_exchange(model, refs, frames) is None
    assert by_python(model, refs, frames) is None


def test_strings_are_left_to_python_which_looks_at_each() -> None:
    frame = (3).to_bytes(4, "little") + b"abc"
    refs = [["text", STRING, [1], 0]]
    assert by_exchange(WORDS, refs, [frame]) is None
    assert by_python(WORDS, refs, [frame]) == (1, 7, [0], ((),))


def requests(rng: random.Random) -> Iterator[tuple[ServedModel, bytes, list[bytes]]]:
    """Good ones, and what becomes of them on a bad day."""
    for _ in range(MUTATIONS):
        model, refs, frames = rng.choice(GOOD)
        header = codec.encode(
            InferRequest(rng.choice([1, 200, 1 << 40]), "m", rng.choice([0, 10**9]), 0, refs)
        )
        yield model, mutate.odd_bytes(header, rng), frames


def test_mutated_requests_are_read_as_python_reads_them_or_left_to_it() -> None:
    rng = random.Random(SEED)
    taken = 0
    for model, header, frames in requests(rng):
        found = accepts(interface_of(model), header, [len(frame) for frame in frames])
        if found is None:
            continue
        taken += 1
        message = codec.decode(header, FROM_CLIENT)
        assert found == by_python(model, message.tensors, frames), (SEED, header)
        fields = read_request(header)
        assert fields is not None
        assert fields == (
            message.request_id,
            message.model,
            message.slo_ns,
            message.priority,
            message.tensors,
        )
    assert taken > MUTATIONS // 100, "the mutations are too wild to say anything"


RESULTS = [
    Result(7, 0, "", 5, [0, 0, 0], [10, 20, 9], [0, 0, 0], [[[1, [1, 2], 0]], [[1, [1, 300], 1]]]),
    Result(1 << 40, 0, "", 1 << 50, [1, 2, 1], [3, 70_000, 4], [70_001, 70_002, 1], [[[1, [], 0]], [[9, [1 << 33], 0]]]),
    Result(300, 20, "too late: \N{GREEK SMALL LETTER MU}s", 5, [0, 0, 0], [0, 0, 0], [0, 0, 0], []),
    Result(8, 0, "", 5, [0, 0, 0], [0, 0, 0], [0, 0, 0], [[], []]),
]  # fmt: skip


def result_by_python(header: bytes) -> Any:
    """What check_result() makes of a batch of two parts: the message, or None."""
    try:
        message = codec.decode(header, FROM_WORKER)
        if type(message) is not Result:
            return None
        tensors = len(message.parts[0]) if message.parts and type(message.parts[0]) is list else 1
        count = sum(len(part) for part in message.parts if type(part) is list)
        check_result(message, [b""] * min(2, count), [1] * len(message.parts), tensors, None)
    except (codec.WireError, InvalidInput):
        return None
    return message


def times(message: Result) -> tuple[int, int, int, int]:
    happened = [phase for phase in (message.copy_in, message.execute, message.copy_out) if phase[1]]
    begin = next((phase[0] for phase in happened if phase[0]), 0)
    return message.received_ns, begin, happened[-1][1] if happened else 0, sum(phase[2] for phase in happened)


@pytest.mark.parametrize("result", RESULTS)
def test_results_are_read_as_python_reads_them(result: Result) -> None:
    header = codec.encode(result)
    assert result_by_python(header) == result
    assert read_result(header) == (
        result.action_id,
        result.status,
        result.text,
        *times(result),
        result.parts,
    )


def test_mutated_results_are_odd_exactly_where_python_finds_them_malformed() -> None:
    rng = random.Random(SEED)
    taken = 0
    for _ in range(MUTATIONS):
        header = mutate.odd_bytes(codec.encode(rng.choice(RESULTS)), rng)
        found = read_result(header)
        message = result_by_python(header)
        if message is not None and message.action_id < 1 << 63:  # no action has such a number
            assert found is not None, (SEED, header)
            taken += 1
            expected = (message.action_id, message.status, message.text, *times(message), message.parts)
            assert found == expected, (SEED, header)
    assert taken > MUTATIONS // 100


OUTPUTS = [
    TensorSpec("y", FLOAT, ("N", 3)),
    TensorSpec("words", STRING, ("N",)),
    TensorSpec("any", INT4, UNKNOWN_RANK),
    TensorSpec("n", INT64, ()),
    TensorSpec("fixed", BOOL, (2, 0)),
]
STRANGE = [0, 1, 2, 3, 4, 5, -1, 1 << 31, 1 << 61, 1 << 62]


def test_both_roads_take_and_refuse_the_same_outputs() -> None:
    """Good ones, and ones of which dtype, rank, a dimension, rows or bytes are changed."""
    rng = random.Random(SEED)
    words = b"".join(len(word).to_bytes(4, "little") + word for word in (b"a", b"", b"xyz"))
    good = [
        (OUTPUTS[0], 3, FLOAT, [3, 3], bytes(36)),
        (OUTPUTS[1], 3, STRING, [3], words),
        (OUTPUTS[2], 3, INT4, [3, 5], bytes(8)),
        (OUTPUTS[3], 0, INT64, [], bytes(8)),
        (OUTPUTS[4], 0, BOOL, [2, 0], b""),
    ]
    taken = refused = 0
    for _ in range(MUTATIONS):
        spec, rows, dtype, shape, data = rng.choice(good)
        verified, shape = rng.random() < 0.7, list(shape)
        for _ in range(rng.choice([0, 1, 1, 2])):
            match rng.randrange(6):
                case 0:
                    dtype = rng.choice([FLOAT, STRING, INT4, INT64, BOOL, 0, 99])
                case 1 if shape:
                    shape[rng.randrange(len(shape))] = rng.choice(STRANGE)
                case 2:
                    shape.insert(rng.randrange(len(shape) + 1), rng.choice(STRANGE))
                case 3 if shape:
                    shape.pop()
                case 4:
                    data = rng.choice(
                        [data[:-1], data + b"x", data[1:], bytes([rng.randrange(5)]) + data[1:]]
                    )
                case 5:
                    shape = shape + [1] * rng.choice([1, 31, 40])
        by_python = True
        try:
            if contradiction(spec, verified, rows, dtype, shape) or any(one < 0 for one in shape):
                by_python = False
            check_bytes(spec, shape, data)
        except InvalidInput:
            by_python = False
        interface = Interface([], [spec], rows > 0, verified)
        assert gives_output(interface, 0, rows or 1, dtype, shape, data) == by_python, (
            spec,
            dtype,
            shape,
            data,
        )
        taken, refused = taken + by_python, refused + (not by_python)
    assert min(taken, refused) > MUTATIONS // 10


@pytest.mark.parametrize(("more", "is_taken"), [(0, True), (1, False)])
def test_an_answer_has_no_more_strings_than_anybody_reads(more: int, is_taken: bool) -> None:
    count, spec = STRINGS_MAX + more, TensorSpec("words", STRING, ("N",))
    interface = Interface([], [spec], False, True)
    assert gives_output(interface, 0, 1, STRING, [count], bytes(4 * count)) == is_taken
    assert bool(contradiction(spec, True, 0, STRING, [count])) != is_taken


def test_every_status_and_no_other_number_is_one() -> None:
    def header(status: int) -> bytes:
        return codec.encode(Result(1, status, "", 0, [0] * 3, [0] * 3, [0] * 3, []))

    read = {status for status in range(-1, 300) if read_result(header(status)) is not None}
    assert read == {int(status) for status in Status}


@pytest.mark.parametrize(
    ("received_ns", "phase", "is_read"),
    [
        (-5, [-4, -2, 2], True),
        (1 - NEVER_NS, [1 - NEVER_NS, NEVER_NS - 1, NEVER_NS - 1], True),
        (-NEVER_NS, [1, 2, 1], False),
        (NEVER_NS, [1, 2, 1], False),
        (5, [-NEVER_NS, 2, 1], False),
        (5, [1, NEVER_NS, 1], False),
        (5, [1, 2, -1], False),
        (5, [1, 2, NEVER_NS], False),
    ],
)
def test_a_workers_clock_may_read_less_than_zero_but_nothing_takes_less(
    received_ns: int, phase: list[int], is_read: bool
) -> None:
    header = codec.encode(Result(1, Status.OK, "", received_ns, [0] * 3, phase, [0] * 3, [[]]))
    assert (read_result(header) is not None, result_by_python(header) is not None) == (is_read, is_read)


@pytest.mark.parametrize("said", [None, "it said {so}: \N{SNOWMAN}"])
@pytest.mark.parametrize(
    ("a", "b"), [(20, 1), (27, 999_999_999_999), (22, 50_000), (26, 149_999), (25, 150_000), (24, 250_000)]
)
def test_both_ways_of_saying_why_are_one(a: int, b: int, said: str | None) -> None:
    """a is a status as well as a number: where the worker said nothing, the name of that is said."""
    for number, template in enumerate(TEXTS):
        status = Status(a).name
        words = (
            said if said is not None else status if "loaded" in template else status.lower().replace("_", " ")
        )
        expected = template.format(name="m{0}", a=a, b=b, a_ms=a / 1e6, b_ms=b / 1e6, said=words)
        assert sentence(TEXTS, number, a, b, "m{0}", said) == expected


def test_both_ways_of_converting_a_clock_are_one() -> None:
    rng = random.Random(SEED)
    for offset in (-(10**15), -1, 0, 12345, 10**15):
        clock, bounds = ClockSync(), ClockBounds()
        now = 10**12
        for _ in range(100):
            assert bounds.to_worker_latest(NEVER_NS) == NEVER_NS == clock.to_worker_latest(NEVER_NS)
            for at in (now - rng.randrange(10**9), now + rng.randrange(10**10)):
                assert bounds.to_worker_latest(at) == clock.to_worker_latest(at)
                assert bounds.to_worker_earliest(at, now) == clock.to_worker_earliest(at, now)
                assert bounds.to_controller(at + offset, now) == clock.to_controller(at + offset, now)
            sent = now
            there, back = rng.randrange(1, 10**6), rng.randrange(1, 10**6)
            now += there + back
            clock.pong(sent, sent + there + offset, sent + there + offset, now)
            bounds.set(*clock.bounds())
            now += rng.randrange(10**9)


def test_a_declaration_beyond_int64_leaves_its_requests_to_python() -> None:
    spec = TensorSpec("x", UINT8, (1 << 70,))
    model = model_of([spec], False)
    assert by_exchange(model, [["x", UINT8, [1], 0]], [b"1"]) is None
    assert dataclasses.astuple(spec)[2] == (1 << 70,)
