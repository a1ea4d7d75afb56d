"""Tensors in a client's memory: the memory that a client lends, and a worker's use of it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tests.native._tested", reason="the extensions are not built")
if not hasattr(os, "memfd_create"):
    pytest.skip("this system has no memfd_create()", allow_module_level=True)

from clockwork.client import memory
from clockwork.client.calls import infer_call
from clockwork.client.memory import ClientMemory, Loan
from clockwork.config.client import CLIENT_SHARED_TENSOR_BYTES
from clockwork.errors import InvalidInput, RequestTimeout
from clockwork.wire import codec, shared
from clockwork.wire.messages import FROM_CLIENT, Answer
from clockwork.wire.shared import (
    FIRST_OFFSET,
    MAGIC,
    PLACE,
    REFERENCE_BYTES,
    SHARED,
    Reference,
    machine_id,
    unpack,
)
from clockwork.wire.tensors import FLOAT, INT32, INT64, STRING, UINT8, encode_array
from tests.fuzz.mutate import odd_bytes
from tests.native._tested import InputCopy, OutputCopy, Snapshots, room_places, shared_bytes

LARGE = CLIENT_SHARED_TENSOR_BYTES
RNG = np.random.default_rng(7)
PIECE = 1 << 20


@pytest.fixture
def lender() -> Iterator[ClientMemory]:
    lender = ClientMemory()
    yield lender
    lender.close()


def bytes_of(count: int = LARGE) -> np.ndarray:
    return RNG.integers(0, 256, count, dtype=np.uint8)


def placed(loan: Loan, *arrays: np.ndarray) -> tuple[list[Any], list[Any]]:
    """Return a request's references and frames, after the loan has stored them."""
    references, frames = [], []
    for array in arrays:
        dtype, shape, frame = encode_array(array)
        references.append([f"x{len(frames)}", dtype, shape, len(frames)])
        frames.append(frame)
    loan.place(references, frames)
    return references, frames


def input_copy(size: int, frame: bytes) -> InputCopy:
    process = unpack(frame).process if len(frame) == REFERENCE_BYTES else 0
    return InputCopy(process, [(size, frame)], Snapshots(1 << 30, 1 << 29, 1), PIECE)


def taken(dtype: int, shape: Any, frame: bytes) -> bytes:
    """An input as a worker reads it."""
    copy = input_copy(shared_bytes(dtype, shape), frame)
    while copy.step():
        pass
    [content] = copy.contents()
    return content


def written(frame: bytes, outputs: list[bytes], places: list[int]) -> None:
    """Write outputs to the room of a reference, as a worker does."""
    copy = OutputCopy(frame, [output for output in zip(outputs, places) if output[1]], PIECE)
    while copy.step():
        pass


# ----- the form ------------------------------------------------------------------------------------


def test_a_reference_is_what_was_packed() -> None:
    reference = Reference(machine_id(), 2, 3, bytes(range(16)), 4, 5, bytes(16), 6)
    assert unpack(reference.pack()) == reference
    assert len(reference.pack()) == REFERENCE_BYTES
    assert len(MAGIC) + shared.KEY_BYTES <= FIRST_OFFSET
    for frame in (b"", bytes(79), bytes(81)):
        with pytest.raises(ValueError, match="80 bytes"):
            unpack(frame)


def test_processes_of_one_machine_and_user_have_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from clockwork.wire.shared import machine_id; print(machine_id())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) == machine_id() > 0
    ours = machine_id()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert machine_id() not in (0, ours)


# ----- a client ------------------------------------------------------------------------------------


def test_large_inputs_are_lent_and_others_are_sent(lender: ClientMemory) -> None:
    loan = Loan(lender, 0)
    arrays = [bytes_of(), bytes_of(LARGE - 1), np.zeros(LARGE // 4, np.float32), np.array(["x" * LARGE])]
    indices = [np.zeros(LARGE, np.int64), np.zeros(LARGE, np.int32)]
    references, frames = placed(loan, *arrays, *indices)
    codes = [dtype for _, dtype, _, _ in references]
    assert codes == [UINT8 | SHARED, UINT8, FLOAT | SHARED, STRING, INT64 | SHARED, INT32 | SHARED]
    assert loan.is_used
    for place in (0, 2, 4, 5):
        content = taken(codes[place], [*arrays, *indices][place].shape, frames[place])
        assert content == [*arrays, *indices][place].tobytes()
        assert unpack(frames[place]).room_bytes == 0
        assert unpack(frames[place]).offset % shared.ALIGNMENT == 0
    loan.release()
    loan.release()


def test_memory_is_lent_again_and_never_twice_at_once(lender: ClientMemory) -> None:
    rng = np.random.default_rng(11)
    lent: list[tuple[Loan, int, int]] = []
    for _ in range(500):
        if lent and rng.random() < 0.5:
            loan, _, _ = lent.pop(rng.integers(len(lent)))
            loan.release()
        else:
            loan, size = Loan(lender, 0), int(rng.integers(LARGE, 20 * LARGE))
            _, frames = placed(loan, np.empty(size, np.uint8))
            begin = unpack(frames[0]).offset
            assert all(begin + size <= other or end <= begin for _, other, end in lent)
            lent.append((loan, begin, begin + size))
    for loan, _, _ in lent:
        loan.release()
    whole = Loan(lender, 0)
    _, frames = placed(whole, np.empty(60 << 20, np.uint8))
    assert unpack(frames[0]).offset == FIRST_OFFSET, "all of it is free again, in one piece"
    whole.release()


def test_without_memory_left_tensors_are_sent(lender: ClientMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CLIENT_MEMORY_BYTES_MAX", memory.CLIENT_MEMORY_PART_BYTES)
    first, second = Loan(lender, 0), Loan(lender, 0)
    references, _ = placed(first, np.empty(60 << 20, np.uint8))
    assert references[0][1] == UINT8 | SHARED
    references, frames = placed(second, np.empty(60 << 20, np.uint8))
    assert references[0][1] == UINT8
    assert len(frames[0]) == 60 << 20
    assert not second.is_used
    first.release()


def test_outputs_are_read_from_the_room_and_from_nowhere_else(lender: ClientMemory) -> None:
    loan = Loan(lender, 3 * LARGE)
    _, frames = placed(loan, bytes_of())
    outputs = [bytes_of(LARGE), bytes_of(5), bytes_of(LARGE * 3), bytes_of(LARGE)]
    places = room_places(unpack(frames[0]).room_bytes, [(UINT8, one.size) for one in outputs])
    assert [place > 0 for place in places] == [True, True, False, True]
    assert room_places(LARGE, [(STRING, 5), (UINT8, LARGE + 1), (UINT8, LARGE)]) == [0, 0, FIRST_OFFSET]
    assert room_places(0, [(UINT8, 1)]) == [0]
    written(frames[0], [one.tobytes() for one in outputs], places)
    tensors = [[f"y{number}", UINT8 | SHARED, [one.size], number] for number, one in enumerate(outputs)]
    del tensors[2]
    answer = Answer(1, 1, tensors, [0] * 6)
    decoded = infer_call({}, loan).decode(
        answer, [PLACE.pack(*one) for one in zip(places, map(len, outputs))]
    )
    assert [decoded[f"y{number}"].tolist() for number in (0, 1, 3)] == [
        outputs[number].tolist() for number in (0, 1, 3)
    ]
    for place in (
        (FIRST_OFFSET, 3 * LARGE + 1),
        (FIRST_OFFSET - 1, 1),
        (FIRST_OFFSET + 3 * LARGE, 1),
        (-1, 1),
        (64, -1),
    ):
        with pytest.raises(InvalidInput, match="did not lend"):
            loan.fetch(PLACE.pack(*place))
    for frame in (b"", bytes(15)):
        with pytest.raises(InvalidInput, match="did not lend"):
            loan.fetch(frame)
    loan.release()
    with pytest.raises(InvalidInput, match="did not lend"):
        loan.fetch(PLACE.pack(FIRST_OFFSET, 1))


def test_a_room_is_lent_with_small_inputs_too(lender: ClientMemory) -> None:
    loan = Loan(lender, LARGE)
    small = [np.array(["a"]), np.zeros(0, np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)]
    references, frames = placed(loan, *small)
    assert [dtype for _, dtype, _, _ in references] == [STRING, FLOAT, FLOAT | SHARED, FLOAT]
    assert unpack(frames[2]).room_bytes == LARGE
    loan.release()
    loan = Loan(lender, LARGE)
    placed(loan, np.array(["a"]))
    assert not loan.is_used, "there is no input that may be shared"
    loan.release()


def test_an_answer_in_memory_that_was_not_lent_is_damaged() -> None:
    answer = Answer(1, 1, [["y", UINT8 | SHARED, [1], 0]], [0] * 6)
    with pytest.raises(Exception, match="damaged"):
        infer_call(np.zeros(1)).decode(answer, [PLACE.pack(64, 1)])


def test_a_request_that_a_worker_could_not_take_is_sent_and_then_nothing_is_shared(
    lender: ClientMemory, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[bool] = []

    def ask(loan: Loan | None) -> str:
        asked.append(loan is not None)
        if loan is not None:
            placed(loan, bytes_of())
            raise InvalidInput("cannot use the memory")
        return "outputs"

    def infer() -> Any:
        return lender.infer(ask, "m")

    with caplog.at_level("WARNING", "clockwork.client"):
        assert infer() == "outputs"
    assert "cannot use the memory" in caplog.text
    assert lender.is_paused
    assert infer() == "outputs"
    assert asked == [True, False, False]


def test_the_pause_doubles_until_a_worker_can(lender: ClientMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    now, can = [0], [False]
    monkeypatch.setattr(memory, "now_ns", lambda: now[0])

    def ask(loan: Loan | None) -> np.ndarray:
        if loan is not None:
            placed(loan, bytes_of())
            if not can[0]:
                raise InvalidInput("cannot use the memory")
        return np.zeros(1)

    pauses = []
    for can[0] in (False, False, True, False):
        lender.infer(ask, "m")
        lender.infer(lambda loan: np.zeros(1), "small")  # the arguments take no shared memory
        pauses.append((lender._paused_until_ns - now[0]) // memory.CLIENT_MEMORY_PAUSE_NS)
        now[0] = max(now[0], lender._paused_until_ns)
    assert pauses == [1, 2, 0, 1]


def test_a_wrong_request_is_the_callers_and_sharing_goes_on(lender: ClientMemory) -> None:
    def wrong(loan: Loan | None) -> str:
        if loan is not None:
            placed(loan, bytes_of())
        raise InvalidInput("by reference" if loan is not None else "of its own")

    with pytest.raises(InvalidInput, match="of its own"):
        lender.infer(wrong, "m")
    assert not lender.is_paused

    def late(loan: Loan | None) -> str:
        assert loan is not None
        placed(loan, bytes_of())
        raise RequestTimeout("late")

    with pytest.raises(RequestTimeout):
        lender.infer(late, "m")


@pytest.mark.parametrize("how", ["answered", "sent again", "wrong", "late", "not asked again"])
def test_a_future_ends_as_its_request_does_and_the_memory_is_free(lender: ClientMemory, how: str) -> None:
    asked: list[Future[Any]] = []
    loans: list[Loan] = []
    outputs = np.zeros(1)

    def ask(loan: Loan | None) -> Future[Any]:
        if loan is not None:
            placed(loan, bytes_of())
            loans.append(loan)
        elif how == "not asked again":
            raise RequestTimeout("the client was closed")
        asked.append(Future())
        return asked[-1]

    future = lender.submit(ask, "m")
    assert loans[0].is_used
    assert not future.done()
    if how == "answered":
        asked[0].set_result(outputs)
    else:
        asked[0].set_exception(RequestTimeout("late") if how == "late" else InvalidInput("no such memory"))
    assert not loans[0].is_used
    assert lender.is_paused is False
    if how == "sent again":
        assert not future.done()
        asked[1].set_result(outputs)
    elif how == "wrong":
        asked[1].set_exception(InvalidInput("wrong"))
    if how in ("answered", "sent again"):
        assert future.result(0) is outputs
    else:
        error = InvalidInput if how == "wrong" else RequestTimeout
        with pytest.raises(error, match=r"wrong|late|closed"):
            future.result(0)
    assert lender.is_paused == (how == "sent again")


@pytest.mark.parametrize("when", ["first", "again"])
def test_a_future_that_is_cancelled_cancels_what_is_under_way(lender: ClientMemory, when: str) -> None:
    asked: list[Future[Any]] = []

    def ask(loan: Loan | None) -> Future[Any]:
        if loan is not None:
            placed(loan, bytes_of())
        asked.append(Future())
        return asked[-1]

    future = lender.submit(ask, "m")
    if when == "again":
        asked[0].set_exception(InvalidInput("no such memory"))
    assert future.cancel()
    assert asked[-1].cancelled()
    assert len(asked) == (2 if when == "again" else 1)
    assert wait([future], 0).done == {future}


def test_a_forked_child_lends_nothing(lender: ClientMemory) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            loans: list[Any] = []
            lender.infer(lambda loan: loans.append(loan), "m")
            code = 0 if loans == [None] else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_room_is_as_large_as_the_models_outputs_were(lender: ClientMemory) -> None:
    rooms: list[int] = []

    def ask(loan: Loan | None) -> Any:
        assert loan is not None
        rooms.append(loan._room_bytes)
        placed(loan, bytes_of(5))
        return answers.pop()

    answers = [np.zeros(LARGE, np.uint8), {"a": np.zeros(LARGE, np.uint8), "b": np.zeros(1)}, np.zeros(5)]
    for _ in range(3):
        lender.infer(ask, "m")
    lender.infer(lambda loan: ask(loan) if answers else np.zeros(1), "other")
    assert rooms == [0, 0, LARGE + 64]


def test_a_request_by_reference_is_a_request_to_the_controller(lender: ClientMemory) -> None:
    x = np.zeros((1, LARGE), np.float32)
    loan = Loan(lender, 0)
    header, frames = infer_call(x, loan).encode(1, "m", x, None, 0)
    message = codec.decode(header, FROM_CLIENT)
    assert message.tensors == [["", FLOAT | SHARED, [1, LARGE], 0]]
    assert sum(map(len, frames)) == 80
    loan.release()


# ----- a worker ------------------------------------------------------------------------------------


def reference_to(loan: Loan, **changes: Any) -> bytes:
    _, frames = placed(loan, bytes_of())
    return unpack(frames[0])._replace(**changes).pack()


def test_memory_is_taken_with_its_key_alone(lender: ClientMemory) -> None:
    for changes, words in (
        ({"key": bytes(16)}, "has not the key"),
        ({"descriptor": 10_000}, "No such file"),
        ({"process": (1 << 22) + 1}, "No such file"),
        ({"descriptor": -1}, "No such file"),
        ({"offset": -1}, "of a client's memory"),
        ({"offset": 64 << 20}, "of a client's memory"),
        ({"offset": (64 << 20) - LARGE + 1}, "of a client's memory"),
    ):
        loan = Loan(lender, 0)
        with pytest.raises(InvalidInput, match=words):
            taken(UINT8 | SHARED, [LARGE], reference_to(loan, **changes))
        loan.release()
    for dtype, shape, words in (
        (UINT8, [1 << 41], "no tensor has the shape"),
        (UINT8, [-1], r"no tensor has the shape \[-1\]"),
        (UINT8, [1 << 20, 1 << 20], "a tensor of 1099511627776 bytes"),
        (99, [1], "dtype 99 is not one of ONNX's"),
    ):
        with pytest.raises(InvalidInput, match=words):
            shared_bytes(dtype | SHARED, shape)
    assert shared_bytes(FLOAT | SHARED, [3, 0]) == 0
    assert shared_bytes(INT64 | SHARED, []) == 8


def test_no_mutation_of_a_reference_does_more_than_be_refused(lender: ClientMemory) -> None:
    seed = 13
    rng = random.Random(seed)
    loan, found = Loan(lender, LARGE), 0
    _, frames = placed(loan, bytes_of())
    for _ in range(3_000):
        frame = odd_bytes(frames[0], rng)
        try:
            content = taken(UINT8 | SHARED, [LARGE], frame)
        except InvalidInput:
            continue
        assert len(content) == LARGE, (seed, frame)
        found += 1
    assert 0 < found < 3_000
    loan.release()


def test_other_files_of_a_process_are_not_opened(tmp_path: Path) -> None:
    """Not even names that begin like shared memory: opening a process's file may wait, or have an effect."""
    key = bytes(range(16))
    path = tmp_path / "memfd:clockwork-client"
    path.write_bytes(MAGIC + key + bytes(1000))
    lent = os.memfd_create("clockwork-client")
    os.write(lent, MAGIC + key + bytes(1000))
    reading, writing = os.pipe()
    descriptors = [reading, writing]
    descriptors += [os.open(name, os.O_RDWR) for name in (path, "/dev/null")]
    try:  # where the kernel may use huge pages
        descriptors.append(os.memfd_create("clockwork-client", os.MFD_HUGETLB))
    except OSError as error:
        print(f"without a file of huge pages: {error}")
    libc = ctypes.CDLL(None)
    events = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(events, bytes(path), IN_OPEN) >= 0
    for descriptor in descriptors:
        reference = Reference(machine_id(), os.getpid(), descriptor, key, 64, -1, bytes(16), 0)
        with pytest.raises(InvalidInput, match="cannot use the memory"):
            taken(UINT8 | SHARED, [10], reference.pack())
    with pytest.raises(BlockingIOError):
        os.read(events, 4096)
    reference = Reference(machine_id(), os.getpid(), lent, key, 64, -1, bytes(16), 0)
    assert taken(UINT8 | SHARED, [10], reference.pack()) == bytes(10)
    os.close(os.open(path, os.O_RDONLY))
    assert os.read(events, 4096), "an open() is seen"
    for descriptor in (*descriptors, lent, events):
        os.close(descriptor)


IN_OPEN = 0x20


def test_memory_with_a_lease_is_refused_at_once() -> None:
    """An open() that waits for the lease would take 45 s (/proc/sys/fs/lease-break-time)."""
    descriptor, key = memory._create(4096)
    holder = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    fcntl.fcntl(holder, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    frame = Reference(machine_id(), os.getpid(), descriptor, key, 64, -1, bytes(16), 0).pack()
    with pytest.raises(InvalidInput, match="temporarily unavailable"):
        taken(UINT8 | SHARED, [10], frame)
    os.close(holder)
    assert len(taken(UINT8 | SHARED, [10], frame)) == 10
    os.close(descriptor)


def test_what_was_read_does_not_change_with_its_memory(lender: ClientMemory) -> None:
    loan, x = Loan(lender, 0), bytes_of()
    _, frames = placed(loan, x)
    copy = input_copy(LARGE, frames[0])
    assert not copy.step()
    assert loan._part is not None
    loan._part.bytes[:] = 0
    assert copy.contents() == [x.tobytes()]
    loan.release()


def test_memory_that_becomes_shorter_is_refused() -> None:
    descriptor, key = os.memfd_create("short"), bytes(range(16))
    os.write(descriptor, MAGIC + key)
    os.ftruncate(descriptor, 3 * PIECE)
    frame = Reference(machine_id(), os.getpid(), descriptor, key, 64, -1, bytes(16), 0).pack()
    copy = input_copy(2 * PIECE, frame)
    assert copy.step()
    os.ftruncate(descriptor, 4096)
    with pytest.raises(InvalidInput, match="has become shorter"):
        copy.step()
    os.close(descriptor)


def test_memory_that_cannot_be_used_leaves_no_descriptor(lender: ClientMemory) -> None:
    frames = [
        reference_to(Loan(lender, 0), **changes)
        for changes in ({"key": bytes(16)}, {"offset": -1}, {"descriptor": 10_000})
    ]
    before = len(os.listdir("/proc/self/fd"))
    for frame in frames:
        with pytest.raises(InvalidInput):
            taken(UINT8 | SHARED, [10], frame)
    copy = input_copy(2 * PIECE, reference_to(Loan(lender, 0)))
    assert copy.step()
    assert len(os.listdir("/proc/self/fd")) == before + 1, "it goes on"
    del copy
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_room_that_is_gone_or_anothers_is_not_written_to(lender: ClientMemory) -> None:
    """A request was given up, and its descriptor is another request's by the time its outputs are there."""
    output = bytes_of(100)
    loan = Loan(lender, LARGE)
    _, frames = placed(loan, bytes_of())
    former = frames[0]
    loan.release()
    again = Loan(lender, LARGE)
    _, frames = placed(again, bytes_of())
    assert unpack(frames[0]).room == unpack(former).room
    with pytest.raises(InvalidInput, match="has not the key"):
        written(former, [output.tobytes()], [FIRST_OFFSET])
    assert not again.fetch(PLACE.pack(FIRST_OFFSET, LARGE)).any()
    again.release()
    with pytest.raises(InvalidInput, match="No such file"):
        written(former, [output.tobytes()], [FIRST_OFFSET])


# ----- copies --------------------------------------------------------------------------------------


def test_snapshots_are_bounded_for_each_owner_and_in_all() -> None:
    snapshots = Snapshots(1 << 20, 512 << 10, 1)
    mine = snapshots.take(1, 400 << 10)
    with pytest.raises(InvalidInput, match=rf"process 1's tensors {400 << 10} bytes, at most {512 << 10}"):
        snapshots.take(1, 200 << 10)
    others = snapshots.take(2, 400 << 10)
    assert snapshots.used_bytes == 800 << 10
    with pytest.raises(InvalidInput, match=rf"clients' tensors {800 << 10} bytes, at most {1 << 20}"):
        snapshots.take(3, 300 << 10)
    mine.give_back()
    mine = snapshots.take(1, 200 << 10)
    assert mine.address % shared.ALIGNMENT == 0
    mine.give_back()
    others.give_back()
    assert snapshots.used_bytes == 0
    assert len(snapshots.take(1, 512 << 10).content()) == 512 << 10, "all is free again, in one piece"


def test_snapshots_of_different_size_never_overlap() -> None:
    rng = random.Random(5)
    snapshots, held = Snapshots(1 << 20, 1 << 20, 1), []
    for _ in range(2_000):
        if held and rng.random() < 0.5:
            place, size = held.pop(rng.randrange(len(held)))
            place.give_back()
            continue
        size = rng.randint(1, 100_000)
        try:
            place = snapshots.take(rng.randint(1, 3), size)
        except InvalidInput:
            continue
        assert all(
            place.address + size <= other.address or other.address + more <= place.address
            for other, more in held
        )
        held.append((place, size))
        assert snapshots.used_bytes == sum(-(-size // 64) * 64 for _, size in held)
    for place, _ in held:
        place.give_back()
    assert snapshots.used_bytes == 0
    assert len(snapshots.take(1, 1 << 20).content()) == 1 << 20


def test_snapshots_without_use_give_their_pages_back() -> None:
    snapshots = Snapshots(1 << 30, 1 << 29, 10)
    found = snapshots.take(1, 1 << 20)
    found.fill(7)

    def is_kept() -> bool:
        place = snapshots.take(1, 1 << 20)
        content = place.content()
        place.give_back()
        assert content in (bytes(1 << 20), b"\7" * (1 << 20))
        return content[0] == 7

    for now in (0, 20, 40):
        snapshots.tidy(now)
    assert found.content()[0] == 7, "it is held"
    found.give_back()
    for now in (45, 49):
        snapshots.tidy(now)
    assert is_kept(), "not for long enough"
    for now in (60, 65, 69):
        snapshots.tidy(now)
    assert is_kept(), "it was used at 65"
    for now in (75, 85):
        snapshots.tidy(now)
    assert not is_kept()
