"""Requests and results that the exchange accepts and refuses, and their error texts, compared with
tests/unit/oracle.py."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clockwork.config import STRINGS_MAX
from clockwork.controller import _values
from clockwork.controller._values import ModelInterface
from clockwork.controller.ports import flaws
from clockwork.controller.ports.flaws import Flaw
from clockwork.errors import InvalidInput
from clockwork.formats.prepared import UNKNOWN_RANK, TensorSpec
from clockwork.scheduler._core import TEXTS
from clockwork.system.clock import duration
from clockwork.wire import codec
from clockwork.wire.messages import FROM_CLIENT, FROM_WORKER, NEVER_NS, InferRequest, Result, Status
from clockwork.wire.shared import PLACE, SHARED, Reference
from clockwork.wire.tensors import (
    BOOL,
    DTYPES,
    FLOAT,
    INT4,
    INT64,
    STRING,
    UINT8,
    join_strings,
    length_class,
    length_classes,
    string_size,
)
from tests.fuzz import mutate
from tests.native import _tested
from tests.unit import oracle
from tests.unit.oracle import Model

SEED = 20201104
MUTATIONS = 20_000
CHOSEN = settings(derandomize=True, database=None, deadline=None, max_examples=1_000)

MACHINE = 7
"""The machine whose memory the workers can map."""

Y = [TensorSpec("y", FLOAT, ("N",))]
IMAGE = Model([TensorSpec("x", FLOAT, ("N", 3, "H", "W"))], Y, True)
TWO = Model([TensorSpec("ids", INT64, ("N", "T")), TensorSpec("mask", BOOL, ("N", "T"))], Y, True)
FIXED = Model([TensorSpec("x", UINT8, (4, 2)), TensorSpec("scale", FLOAT, ())], Y, False)
ANY = Model([TensorSpec("x", INT4, UNKNOWN_RANK)], Y, False)
WORDS = Model([TensorSpec("text", STRING, ("N",))], Y, True)
OPEN = TWO._replace(lengths={"T": 40})
SQUARE = IMAGE._replace(lengths={"W": 0})
MODELS = [IMAGE, TWO, FIXED, ANY, WORDS, OPEN, SQUARE]

_interfaces: dict[int, tuple[Model, ModelInterface]] = {}


def interface_of(model: Model) -> ModelInterface:
    if id(model) not in _interfaces:
        made = ModelInterface(model.inputs, model.outputs, model.batches, model.verified, model.lengths)
        _interfaces[id(model)] = model, made
    return _interfaces[id(model)][1]


def facts(error: InvalidInput) -> tuple[str, str, str, str]:
    return str(error), error.tensor, error.expected, error.got


def by_oracle(model: Model, header: bytes, frames: list[bytes]) -> Any:
    """Return (rows, bytes, frames, shape key), or the error text."""
    try:
        message = codec.decode(header, FROM_CLIENT)
        if type(message) is not InferRequest:
            return None
        found = oracle.check_request(model, message.tensors, frames, MACHINE)
    except InvalidInput as error:
        return facts(error)
    except codec.WireError as error:
        return str(error)
    return found.rows, found.bytes, found.copied_bytes, [frame for _, _, frame in found.tensors], found.shape


def by_exchange(model: Model, header: bytes, frames: list[bytes]) -> Any:
    read = _tested.read_request(header)
    if isinstance(read, Flaw):
        assert read.header is not None
        return None if read.header.kind == "other" else codec.complaint(header, FROM_CLIENT, read.header)
    found = _tested.check_request(interface_of(model), header, frames, MACHINE)
    return facts(flaws.request_error(found, model.name)) if isinstance(found, Flaw) else found


def header_of(refs: Any) -> bytes:
    return codec.encode(InferRequest(1, "m", 0, 0, refs))


def reference(machine: int = MACHINE, offset: int = 64, room_bytes: int = 0) -> bytes:
    return Reference(machine, 1, 3, bytes(16), offset, -1, bytes(16), room_bytes).pack()


REFERENCES = [
    *[reference()] * 3, reference(offset=0, room_bytes=1), reference(8), reference(0), reference(offset=-1),
    reference(offset=(1 << 63) - 1), reference(room_bytes=-1), reference()[:-1], reference() + b"x", b"",
]  # fmt: skip

GOOD = [
    (IMAGE, [["x", FLOAT | SHARED, [2, 3, 4, 5], 0]], [reference()]),
    (
        TWO,
        [["ids", INT64, [2, 5], 0], ["mask", BOOL | SHARED, [2, 5], 1]],
        [bytes(80), reference(room_bytes=9)],
    ),
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
    (WORDS, [["text", STRING, [2], 0]], [join_strings([b"abc", b""])]),
    (OPEN, [["mask", BOOL, [2, 9], 0], ["ids", INT64, [2, 9], 1]], [bytes(18), bytes(144)]),
    (SQUARE, [["x", FLOAT, [2, 3, 4, 5], 0]], [bytes(480)]),
]


@pytest.mark.parametrize(("model", "refs", "frames"), GOOD)
def test_good_requests_are_taken(model: Model, refs: Any, frames: list[bytes]) -> None:
    taken = by_exchange(model, header_of(refs), frames)
    assert taken == by_oracle(model, header_of(refs), frames)
    assert taken[1] == sum(map(len, frames))


@pytest.mark.parametrize(
    ("texts", "size"),
    [
        ([b""], 64),
        ([b"x" * 64], 64),
        ([b"x" * 65], 128),
        ([b"x" * 1024], 1024),
        ([b"x" * 1025, b""], 1024),  # strings of 512.5 bytes each
        ([bytes(100)] * 3 + [bytes(60_000)], 16_384),
    ],
)
def test_strings_count_by_their_size(texts: list[bytes], size: int) -> None:
    refs = [["text", STRING, [len(texts)], 0]]
    rows, *_, shape = by_exchange(WORDS, header_of(refs), [join_strings(texts)])
    assert (rows, shape) == (len(texts), ((size,),))
    assert string_size(len(texts), sum(map(len, texts))) == size


def test_images_count_by_the_work_that_their_headers_declare() -> None:
    small = (
        bytes.fromhex(
            "ffd8 ffc0 0011 08 1388 1388 03 011100 021100 031100 ffda 000c 03 0100 0200 0300 003f00"
        )
        + b"\xff\xd9"
    )
    padded = small + bytes(100_000)
    refs = [["text", STRING, [2], 0]]
    for texts in ([small, small], [padded, small]):
        frames = [join_strings(texts)]
        taken = by_exchange(WORDS, header_of(refs), frames)
        assert taken == by_oracle(WORDS, header_of(refs), frames)
        assert taken[-1] == ((4 << 20,),), "5,000 x 5,000 pixels"


@pytest.mark.parametrize(
    ("model", "length", "counts_as"),
    [
        (TWO, 9, 9), (OPEN, 0, 0), (OPEN, 1, 4), (OPEN, 4, 4), (OPEN, 5, 6), (OPEN, 7, 8), (OPEN, 8, 8), (OPEN, 9, 12), (OPEN, 12, 12), (OPEN, 13, 16), (OPEN, 17, 24),
        (OPEN, 25, 32), (OPEN, 33, 40), (OPEN, 40, 40), (OPEN, 41, 48), (SQUARE, 3, 4), (SQUARE, 49, 64), (SQUARE, 65, 96),
        (SQUARE, 97, 128),
    ],
)  # fmt: skip
def test_lengths_that_share_batches_count_as_their_class(model: Model, length: int, counts_as: int) -> None:
    if model is SQUARE:  # the other open dimension stays as it is
        refs, frames = [["x", FLOAT, [2, 3, 9, length], 0]], [bytes(2 * 3 * 9 * length * 4)]
        wanted: Any = ((3, 9, counts_as),)
    else:
        refs = [["ids", INT64, [2, length], 0], ["mask", BOOL, [2, length], 1]]
        frames, wanted = [bytes(2 * length * 8), bytes(2 * length)], ((counts_as,), (counts_as,))
    rows, *_, shape = by_exchange(model, header_of(refs), frames)
    assert (rows, shape) == (2, wanted)
    if model is not TWO:
        assert length_class(length, 40 if model is OPEN else 0) == counts_as


def test_classes_are_listed_up_to_the_limit() -> None:
    assert length_classes(33) == [4, 6, 8, 12, 16, 24, 32, 48]
    assert length_classes(33, 40) == [4, 6, 8, 12, 16, 24, 32, 40]
    assert length_classes(3, 5) == [4]
    assert length_classes(5, 5) == [4, 5]
    assert length_classes(1) == [4]


BAD = [
    *((IMAGE, [["x", FLOAT | SHARED, [1, 3, 1, 1], 0]], [frame]) for frame in REFERENCES[4:]),
    (IMAGE, [["x", INT64 | SHARED, [1, 3, 1, 1], 0]], [reference()]),
    (IMAGE, [["x", FLOAT | SHARED, [1, 3, 1 << 40, 1 << 40], 0]], [reference()]),
    (IMAGE, [["x", FLOAT | 2 * SHARED, [1, 3, 1, 1], 0]], [reference()]),
    (WORDS, [["text", STRING | SHARED, [2], 0]], [reference()]),
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
def test_bad_requests_are_turned_down_with_a_reason(model: Model, refs: Any, frames: list[bytes]) -> None:
    said = by_exchange(model, header_of(refs), frames)
    assert said == by_oracle(model, header_of(refs), frames)
    assert type(said) is str or type(said[0]) is str


def requests(rng: random.Random) -> Iterator[tuple[Model, bytes, list[bytes]]]:
    """Draw valid requests, sometimes with a mistake."""
    for _ in range(MUTATIONS):
        model, refs, frames = rng.choice(GOOD)
        header = codec.encode(
            InferRequest(rng.choice([1, 200, 1 << 40]), "m", rng.choice([0, 10**9]), 0, refs)
        )
        yield model, mutate.odd_bytes(header, rng), frames


def test_mutated_requests_are_taken_or_turned_down_as_they_are_read() -> None:
    rng = random.Random(SEED)
    taken = 0
    for model, header, frames in requests(rng):
        found = by_exchange(model, header, frames)
        if found is not None:
            assert found == by_oracle(model, header, frames), (SEED, header)
        read = _tested.read_request(header)
        if not isinstance(read, Flaw):
            assert read == tuple(codec.decode(header, FROM_CLIENT))
            taken += 1
    assert taken > MUTATIONS // 100, "the mutations are too wild to say anything"


# ----- any requests for any model ----------------------------------------------------------------

DIMENSIONS = st.sampled_from([0, 1, 2, 3, 4, -1, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1])
SYMBOLS = st.sampled_from(["N", "T", "", "K"])
DTYPE_CODES = st.sampled_from([FLOAT, STRING, INT4, BOOL, 99])
NAMES = st.sampled_from(["", "x", "y", "\N{SNOWMAN}'"])


@st.composite
def specs(draw: Callable[..., Any], name: str) -> TensorSpec:
    shape = draw(st.just(UNKNOWN_RANK) | st.lists(SYMBOLS | st.integers(0, 4), max_size=3).map(tuple))
    return TensorSpec(name, draw(DTYPE_CODES), shape)


@st.composite
def frames_of(draw: Callable[..., Any], dtype: int, shape: Sequence[int]) -> bytes:
    """Return the size of such a tensor, or a size near it, if that is not too much."""
    count = 1
    for dimension in shape:
        count = min(count * max(dimension, 0), 100)
    if dtype == STRING:
        data = join_strings([b"ab"[: place % 3] for place in range(count)])
    else:
        kind = DTYPES.get(dtype)
        data = bytes((count * (kind.bits if kind is not None else 8) + 7) >> 3)
    return bytes(draw(st.sampled_from([data] * 6 + [data[:-1], data + b"x", b"\xff" + data[1:]])))


@st.composite
def asked(draw: Callable[..., Any]) -> tuple[Model, list[Any], list[bytes]]:
    """Draw a model, and a request for it that is right or nearly right."""
    count = draw(st.sampled_from([1, 1, 2, 2, 3, 18]))
    inputs = [draw(specs(f"x{place}" if count > 1 else "x")) for place in range(count)]
    sizes = {symbol: draw(st.integers(0, 3)) for symbol in ("N", "T", "", "K")}
    refs, frames = [], []
    for place, spec in enumerate(draw(st.permutations(inputs)) if count < 4 else inputs[::-1]):
        shape = (
            [1, 2]
            if spec.shape == UNKNOWN_RANK
            else [sizes[one] if type(one) is str else one for one in spec.shape]
        )
        name, dtype, frame = spec.name, spec.dtype, place
        if draw(st.integers(0, 4)) == 0:
            match draw(st.integers(0, 5)):
                case 0:
                    name = draw(NAMES)
                case 1:
                    dtype = draw(DTYPE_CODES)
                case 2:
                    shape.insert(draw(st.integers(0, len(shape))), draw(DIMENSIONS))
                case 3 if shape:
                    shape[draw(st.integers(0, len(shape) - 1))] = draw(DIMENSIONS)
                case 4 if shape:
                    shape.pop()
                case 5:
                    frame = draw(st.integers(0, count))
        is_shared = draw(st.integers(0, 4)) == 0
        refs.append([name, dtype | SHARED if is_shared else dtype, shape, frame])
        frames.append(draw(st.sampled_from(REFERENCES) if is_shared else frames_of(dtype, shape)))
    match draw(st.integers(0, 20)):
        case 0:
            refs.pop()
        case 1:
            frames.pop()
        case 2:
            refs.pop(), frames.pop()
        case 3:
            refs.append(refs[0]), frames.append(frames[0])
    return Model(inputs, Y, draw(st.booleans())), refs, frames


@CHOSEN
@given(asked())
@pytest.mark.slow
def test_any_request_is_taken_or_turned_down_as_the_oracle_says(
    case: tuple[Model, list[Any], list[bytes]],
) -> None:
    model, refs, frames = case
    header = header_of(refs)
    _interfaces.clear()
    assert by_exchange(model, header, frames) == by_oracle(model, header, frames)


def test_every_flaw_has_its_sentence() -> None:
    assert set(_values.FLAW_NAMES) == {"none", "unserved", *flaws.SAID}


# ----- results -----------------------------------------------------------------------------------

RESULTS = [
    Result(7, 0, "", 5, [0, 0, 0], [10, 20, 9], [0, 0, 0], [[[1, [1, 2], 0]], [[1, [1, 300], 1]]]),
    Result(1 << 40, 0, "", 1 << 50, [1, 2, 1], [3, 70_000, 4], [70_001, 70_002, 1], [[[1, [], 0]], [[9, [1 << 33], 0]]]),
    Result(300, 20, "too late: \N{GREEK SMALL LETTER MU}s", 5, [0, 0, 0], [0, 0, 0], [0, 0, 0], []),
    Result(8, 0, "", 5, [0, 0, 0], [0, 0, 0], [0, 0, 0], [[], []]),
]  # fmt: skip


def result_by_oracle(
    model: Model | None, part_rows: list[int], header: bytes, frames: list[bytes], has_room: bool = False
) -> str | None:
    """Return the error text of a result; "" if it is valid, None if it is no result at all."""
    try:
        message = codec.decode(header, FROM_WORKER)
        if type(message) is not Result:
            return None
        oracle.check_result(model, part_rows, message, frames, has_room)
    except (codec.WireError, InvalidInput) as error:
        return str(error)
    return ""


def result_by_exchange(
    model: Model | None, part_rows: list[int], header: bytes, frames: list[bytes], has_room: bool = False
) -> str | None:
    read = _tested.read_result(header)
    if isinstance(read, Flaw):
        assert read.header is not None
        return None if read.header.kind == "other" else codec.complaint(header, FROM_WORKER, read.header)
    interface = None if model is None else interface_of(model)
    found = _tested.check_result(interface, part_rows, header, frames, [has_room] * len(part_rows))
    return "" if found is None else flaws.result_text(found)


def times(message: Result) -> tuple[int, int, int, int]:
    happened = [phase for phase in (message.copy_in, message.execute, message.copy_out) if phase[1]]
    begin = next((phase[0] for phase in happened if phase[0]), 0)
    took = min(sum(phase[2] for phase in happened), NEVER_NS)
    return message.received_ns, begin, happened[-1][1] if happened else 0, took


def check_result_is_read(header: bytes) -> None:
    message = codec.decode(header, FROM_WORKER)
    expected = (message.action_id, message.status, message.text, *times(message), message.parts)
    assert _tested.read_result(header) == expected, (SEED, header)


@pytest.mark.parametrize("result", RESULTS)
def test_results_are_read_as_they_were_written(result: Result) -> None:
    check_result_is_read(codec.encode(result))


def test_mutated_results_are_wrong_for_the_reason_that_the_oracle_says() -> None:
    rng = random.Random(SEED)
    model = Model([], [TensorSpec("y", FLOAT, ("N", 2))], True)
    taken = 0
    for _ in range(MUTATIONS):
        header = mutate.odd_bytes(codec.encode(rng.choice(RESULTS)), rng)
        case = model, [1, 1], header, [bytes(8)] * rng.randrange(3)
        found = result_by_exchange(*case)
        if found is not None:
            assert found == result_by_oracle(*case), (SEED, header)
        if not isinstance(_tested.read_result(header), Flaw):
            taken += 1
            check_result_is_read(header)
    assert taken > MUTATIONS // 100


OUTPUTS = [
    TensorSpec("y", FLOAT, ("N", 3)),
    TensorSpec("words", STRING, ("N",)),
    TensorSpec("any", INT4, UNKNOWN_RANK),
    TensorSpec("n", INT64, ()),
    TensorSpec("fixed", BOOL, (2, 0)),
]
STRANGE = [0, 1, 2, 3, 4, 5, 1 << 31, 1 << 61, NEVER_NS - 1]


def test_outputs_are_taken_or_refused_as_the_oracle_says() -> None:
    """Draw valid results, and results with a changed dtype, rank, dimension, number of rows or bytes."""
    rng = random.Random(SEED)
    words = join_strings([b"a", b"", b"xyz"])
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
        if rng.random() < 0.2:
            size = len(data) if dtype != STRING else 12
            dtype |= SHARED
            data = PLACE.pack(rng.choice([64, 0, -1, (1 << 63) - 1]), size + rng.choice([0, 0, 0, 1, -1]))
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
                    shape = shape + [1] * rng.choice([1, 26])
        model = Model([], [spec], rows > 0, verified)
        nothing = [0, 0, 0]
        header = codec.encode(Result(1, 0, "", 0, nothing, nothing, nothing, [[[dtype, shape, 0]]]))
        _interfaces.clear()
        case = model, [rows or 1], header, [data], rng.random() < 0.8
        found = result_by_exchange(*case)
        assert found == result_by_oracle(*case)
        taken, refused = taken + (found == ""), refused + (found != "")
    assert min(taken, refused) > MUTATIONS // 10


@pytest.mark.parametrize(("more", "is_taken"), [(0, True), (1, False)])
def test_an_answer_has_no_more_strings_than_anybody_reads(more: int, is_taken: bool) -> None:
    count = STRINGS_MAX + more
    model = Model([], [TensorSpec("words", STRING, ("N",))], False)
    nothing = [0, 0, 0]
    header = codec.encode(Result(1, 0, "", 0, nothing, nothing, nothing, [[[STRING, [count], 0]]]))
    case = model, [1], header, [bytes(4 * count)]
    assert result_by_exchange(*case) == result_by_oracle(*case)
    assert (result_by_exchange(*case) == "") == is_taken


def test_every_status_and_no_other_number_is_one() -> None:
    def said(status: int) -> str | None:
        header = codec.encode(Result(1, status, "", 0, [0] * 3, [0] * 3, [0] * 3, []))
        found = result_by_exchange(None, [], header, [])
        assert found == result_by_oracle(None, [], header, [])
        return found

    assert {status for status in range(-1, 300) if said(status) == ""} == {int(status) for status in Status}


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
    said = result_by_exchange(None, [1], header, [])
    assert said == result_by_oracle(None, [1], header, [])
    assert (said == "") == is_read


# ----- answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [None, "it said {so}: \N{SNOWMAN}"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (20, 1),
        (27, 999_999_999_999),
        (22, 50_000),
        (26, 149_999),
        (25, 1_005_000),
        (24, 9_995_000),
        (24, 999_950_000),
    ],
)
def test_both_ways_of_saying_why_are_one(a: int, b: int, said: str | None) -> None:
    """a is a status as well as a number: if the worker gave no text, the name of the status is used."""
    for number, template in enumerate(TEXTS):
        status = Status(a).name
        words = (
            said if said is not None else status if "loaded" in template else status.lower().replace("_", " ")
        )
        times = {"a_time": duration(a), "b_time": duration(b), "c_time": duration(a + b)}
        expected = template.format(name="m{0}", a=a, b=b, said=words, **times)
        assert _tested.sentence(TEXTS, number, a, b, a + b, "m{0}", said) == expected


def test_nothing_fits_a_declaration_beyond_int64() -> None:
    model = Model([TensorSpec("x", UINT8, (1 << 70,))], Y, False)
    header = header_of([["x", UINT8, [1], 0]])
    assert by_exchange(model, header, [b"1"]) == by_oracle(model, header, [b"1"])
    assert str(1 << 70) in by_exchange(model, header, [b"1"])[0]
