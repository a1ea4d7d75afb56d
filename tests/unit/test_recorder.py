"""The flight recorder: the native encoding, the steps that the ring keeps, and the file that follows the
ring."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clockwork import __version__
from clockwork.config.recorder import STATE_BYTES_MAX, STATE_PATIENCE_NS, STATES_MAX
from clockwork.controller._exchange import Ring
from clockwork.controller.recording.recorder import (
    PARTIAL,
    ClusterEvents,
    Content,
    Dumps,
    EncodedEvent,
    FlightRecorder,
    RecordingFile,
)
from clockwork.errors import ConfigError, Unavailable
from clockwork.scheduler.recording import Header, Stream, decode, decode_step, encode_step
from clockwork.scheduler.types import (
    NEVER_NS,
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    CopyLost,
    DeviceClock,
    DeviceLost,
    Fault,
    LinkMeasured,
    ModelFault,
    ModelGone,
    ModelReady,
    ModelRemoved,
    ModelSpec,
    ProfilePoint,
    Reason,
    Request,
    RequestCancelled,
    RoomWanted,
    SendDrop,
    SendFetch,
    SendInfer,
    SendLoad,
    SendProfile,
    SendReserve,
    SendRevoke,
    SendUnload,
    Status,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from tests.native._tested import Recorder
from tests.patience import readable

MARK_BYTES = 64 << 10
HEADER = Header("edf", "", {}, __version__)

edges = [0, 1, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32]
ids = st.sampled_from([*edges, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
small = st.sampled_from([*edges[:5], (1 << 31) - 1]) | st.integers(0, (1 << 31) - 1)
times = st.sampled_from([*edges, NEVER_NS]) | st.integers(0, NEVER_NS)
nows = st.sampled_from([*edges, NEVER_NS - 1]) | st.integers(0, NEVER_NS - 1)
spans = times | st.integers(-NEVER_NS, NEVER_NS)
texts = st.text(max_size=40) | st.sampled_from(["ü" * 20, "x" * 300, "x" * 70_000])
shapes = st.lists(st.lists(times, max_size=20).map(tuple), max_size=20).map(tuple)
headed = (small, small, ids, small, ids)
window = (times, times, times)
requests = st.builds(Request, ids, small, small, shapes, ids, times, times, st.integers(0, 255))
points = st.builds(ProfilePoint, shapes, small, times)
specs = st.builds(
    ModelSpec, small, texts, small, texts, st.booleans(), small, times, st.lists(small).map(tuple), times,
    st.lists(points, max_size=3),
)  # fmt: skip
EVENT_STRATEGIES = [
    st.builds(Arrived, nows, requests),
    st.builds(RequestCancelled, nows, ids),
    st.builds(ActionDone, nows, small, ids, st.sampled_from(Status), texts, times, times, spans, times),
    st.builds(LinkMeasured, nows, small, times, times),
    st.builds(ModelReady, nows, small, specs, st.booleans()),
    st.builds(CopyLost, nows, small, small),
    st.builds(RoomWanted, nows, small, ids),
    st.builds(WorkerJoined, nows, small, st.just((("v100", 1 << 24, 100, 2),)), ids, ids),
]
COMMAND_STRATEGIES = [
    st.builds(SendLoad, *headed, st.lists(small, max_size=20).map(tuple), *window),
    st.builds(SendUnload, *headed, *window),
    st.builds(SendInfer, *headed, st.lists(ids, max_size=20).map(tuple), *window),
    st.builds(SendProfile, *headed, small, shapes, *window),
    st.builds(SendFetch, *headed, *window),
    st.builds(SendDrop, *headed, *window),
    st.builds(SendReserve, *headed, st.lists(small, max_size=3).map(tuple), *window),
    st.builds(SendRevoke, small, ids),
    st.builds(AnswerOk, ids, ids, small, spans, spans, spans),
    st.builds(
        AnswerFailed, ids, st.sampled_from(Status), st.sampled_from(["", *Reason]), texts, spans, spans
    ),
    st.builds(ModelGone, small),
    st.builds(ModelFault, small, small, st.sampled_from(Fault), st.booleans()),
]
steps = st.tuples(
    st.lists(st.one_of(*EVENT_STRATEGIES), max_size=6), st.lists(st.one_of(*COMMAND_STRATEGIES), max_size=6), nows
)  # fmt: skip


@settings(deadline=None)  # no deadline, because a busy machine is slow
@given(st.lists(steps, min_size=1, max_size=4))
def test_steps_are_written_as_scheduler_recording_writes_them(told) -> None:
    recorder = Recorder(1 << 24)
    expected = b""
    for events, commands, settled_ns in told:
        events = [*events, Tick(settled_ns)]
        recorder.record(events, commands)
        expected += encode_step(events, commands)
    assert recorder.read() == expected
    unpacker = msgpack.Unpacker(max_buffer_size=1 << 28)
    unpacker.feed(expected)
    for body, (events, commands, settled_ns) in zip(unpacker, told, strict=True):
        found = decode_step(body)
        late = not events or max(event.now_ns for event in events) < settled_ns
        assert found.events == [*events, *([Tick(settled_ns)] if late else [])]
        assert found.commands == commands


# ----- the ring ----------------------------------------------------------------------------------


def step_of(at_ns: int, bytes_about: int) -> bytes:
    done = ActionDone(at_ns, 1, 2, Status.OK, "x" * bytes_about, at_ns, at_ns, 5)
    return encode_step([done], [])


def steps_in(body: bytes) -> list[int]:
    """The times of the steps in a piece of the stream, which begins with a step."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    return [decode_step(step).events[0].now_ns for step in unpacker]


def test_the_ring_keeps_whole_steps_and_forgets_the_oldest() -> None:
    rng = random.Random(7)
    ring = Ring(4_000, 1 << 62)
    written = b""
    for at_ns in range(2_000):
        step = step_of(at_ns, rng.choice([0, 5, 200, 300, 1_500]))
        ring.append(at_ns, step)
        written += step
        state = ring.state()
        assert state["end"] == len(written)
        assert state["steps"] == at_ns + 1
        assert 0 < state["end"] - state["begin"] <= 4_000
        place, kept = ring.read(0, 10_000)
        assert place == state["begin"]
        assert kept == written[place:]
        times = steps_in(kept)
        assert times == list(range(at_ns + 1 - len(times), at_ns + 1))
        assert state["oldest_ns"] == times[0]
        oldest = len(encode_step([ActionDone(times[0] - 1, 1, 2, Status.OK, "", 0, 0, 5)], []))
        assert state["begin"] == 0 or state["end"] - state["begin"] > 4_000 - 1_600 - oldest


def test_the_ring_forgets_by_time() -> None:
    ring = Ring(1 << 20, 1_000)
    for at_ns in range(5_000, 10_000, 100):
        ring.append(at_ns, step_of(at_ns, 10))
    _, kept = ring.read(0, 1 << 20)
    assert steps_in(kept) == list(range(8_900, 10_000, 100))
    ring.append(50_000, step_of(50_000, 10))
    assert steps_in(ring.read(0, 1 << 20)[1]) == [50_000]


def test_a_step_larger_than_the_ring_empties_it_and_is_counted() -> None:
    ring = Ring(1_000, 1 << 62)
    ring.append(1, step_of(1, 10))
    huge = step_of(2, 5_000)
    before = ring.state()["end"]
    ring.append(2, huge)
    assert ring.state() | {"steps": 0} == {
        "begin": before + len(huge), "end": before + len(huge), "oldest_ns": 0, "steps": 0, "bytes_max": 1_000,
    }  # fmt: skip
    ring.append(3, step_of(3, 10))
    place, kept = ring.read(0, 1_000)
    assert (place, steps_in(kept)) == (before + len(huge), [3])
    full = step_of(4, 1_000 - len(step_of(4, 300)) + 300)
    assert len(full) == 1_000
    ring.append(4, full)
    assert ring.read(0, 2_000)[1] == full


def test_a_reader_goes_on_where_it_was_and_learns_what_it_missed() -> None:
    ring = Ring(10_000, 1 << 62)
    written, read, at = b"", b"", 0
    for at_ns in range(1_000):
        step = step_of(at_ns, at_ns % 90)
        ring.append(at_ns, step)
        written += step
        if at_ns % 7 == 0:
            while True:
                place, chunk = ring.read(at, 100)
                assert place == at
                assert len(chunk) <= 100
                read += chunk
                at += len(chunk)
                if not chunk:
                    break
            assert read == written
    for at_ns in range(1_000):  # few steps, because the test is slow
        ring.append(at_ns, step_of(at_ns, 50))
    place, chunk = ring.read(at, 10_000)
    assert place == ring.state()["begin"] > at
    assert len(steps_in(chunk)) > 50


def test_a_stream_goes_on_with_whole_steps_where_something_was_lost() -> None:
    ring = Ring(3_000, 1 << 62)
    stream = Stream()
    seen: list[int] = []

    def read() -> None:
        place, piece = ring.read(int(stream.argument[1:]), 70)  # a piece that ends within a step
        following = place + len(piece)
        answer = {"place": place, "bytes": piece, "next": following, "end": ring.state()["end"], "epoch": 5}
        seen.extend(step.events[0].now_ns for step in stream.take(answer))

    for at_ns in range(400):
        ring.append(at_ns, step_of(at_ns, at_ns % 60))
        for _ in range(3 if at_ns < 200 or at_ns > 300 else 0):
            read()
    while not stream.is_at_end:
        read()
    assert seen == sorted(seen)
    assert seen[:200] == list(range(200))
    missed = 400 - len(seen)
    assert 40 < missed < 100
    assert seen[200:] == list(range(200 + missed, 400))
    assert stream.lost == sum(len(step_of(at_ns, at_ns % 60)) for at_ns in range(200, 200 + missed))


@pytest.mark.parametrize("since", [1 << 63, (1 << 64) - 1, 50_000])
def test_a_place_that_was_never_reached_is_the_end(since: int) -> None:
    ring = Ring(10_000, 1 << 62)
    ring.append(1, step_of(1, 100))
    end = ring.state()["end"]
    assert ring.read(since, 1 << 40) == (end, b"")
    assert ring.read(end, 5) == (end, b"")
    with pytest.raises(OverflowError):
        ring.read(1 << 64, 5)
    with pytest.raises(OverflowError):
        ring.read(-1, 5)


def test_places_beyond_what_32_bits_hold_are_as_good_as_others() -> None:
    """More than 4 GiB go through the ring, most of it in steps that it cannot hold."""
    ring = Ring(1 << 20, 1 << 62)
    huge = bytes(64 << 20)
    for at_ns in range(65):
        ring.append(at_ns, huge)
    assert ring.state()["begin"] == 65 * (64 << 20) > 1 << 32
    for at_ns in range(1_000_000_000, 1_000_030_000):
        ring.append(at_ns, step_of(at_ns, 30))
    place, kept = ring.read(0, 1 << 20)
    assert place > 1 << 32
    times = steps_in(kept)
    assert times == list(range(1_000_030_000 - len(times), 1_000_030_000))


def test_steps_are_found_by_time_and_by_place() -> None:
    ring = Ring(1 << 20, 1 << 62)
    assert (ring.seek(5), ring.step_from(5)) == (0, 0)
    for at_ns in range(10_000, 50_000):
        ring.append(at_ns, step_of(at_ns, 20))
    state = ring.state()
    for at_ns in (0, state["oldest_ns"] - 1, state["oldest_ns"], state["oldest_ns"] + 5):
        assert ring.seek(at_ns) == state["begin"]
    for at_ns in range(state["oldest_ns"] + 5_000, 50_000, 777):
        place, kept = ring.read(ring.seek(at_ns), 1 << 20)
        first = steps_in(kept)[0]
        assert first <= at_ns
        assert (at_ns - first) * len(step_of(at_ns, 20)) < MARK_BYTES + 200
        assert ring.step_ns(place) == first
        behind = ring.step_from(place + 1)
        assert place < behind < place + 2 * MARK_BYTES or behind == state["end"]
        assert steps_in(ring.read(behind, 1 << 20)[1])[:1] > [first] or behind == state["end"]
    assert ring.step_from(state["end"] + 5) == state["end"]
    assert ring.step_ns(state["end"]) == ring.step_ns(state["begin"] - 1) == 0


def test_a_ring_of_no_bytes_is_off() -> None:
    ring = Ring(0, 1 << 62)
    assert not ring.is_on
    assert ring.read(0, 100) == (0, b"")


# ----- the file that follows it ------------------------------------------------------------------


def record(path: Path, count: int, bytes_max: int = 1 << 30) -> Ring:
    ring = Ring(1 << 20, 1 << 62)
    file = RecordingFile(path, HEADER, ring, bytes_max)
    for at_ns in range(count):
        ring.append(at_ns, step_of(at_ns, 50))
    file.close()
    return ring


def test_a_recording_has_every_step(tmp_path: Path) -> None:
    record(tmp_path / "it", 2_000)
    with (tmp_path / "it").open("rb") as file:
        header, found = decode(file)
        assert header == HEADER
        assert [step.events[0].now_ns for step in found] == list(range(2_000))


def test_a_full_recording_is_good_until_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record(tmp_path / "it", 2_000, bytes_max=10_000)
    assert (tmp_path / "it").stat().st_size == 10_000
    assert "is full and ends here" in caplog.text
    with (tmp_path / "it").open("rb") as file:
        times = [step.events[0].now_ns for step in decode(file)[1]]
    assert times == list(range(len(times)))
    assert len(times) > 100


def test_a_recording_that_has_missed_something_ends_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring = Ring(1_000, 1 << 62)
    for at_ns in range(100):
        ring.append(at_ns, step_of(at_ns, 50))
    RecordingFile(tmp_path / "it", HEADER, ring, 1 << 20).close()
    assert "the disk was too slow" in caplog.text
    with (tmp_path / "it").open("rb") as file:
        assert list(decode(file)[1]) == []


def test_files_that_cannot_be_written_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        RecordingFile(tmp_path / "no" / "directory", HEADER, Ring(1_000, 1), 100)
    record(Path("/dev/full"), 10)
    assert "ends here: No space left" in caplog.text


# ----- dumps and alerts --------------------------------------------------------------------------

SECOND = 1_000_000_000
JOINED = [WorkerJoined(1_000, worker, (("v100", 1 << 24, 100, 2),)) for worker in (1, 2, 3)]


def ready(worker: int, model_id: int) -> ModelReady:
    profile = [ProfilePoint((), 1, 5)]
    return ModelReady(
        2_000, worker, ModelSpec(model_id, f"m{model_id}", 1, "p", False, 1, 0, (1,), 5, profile)
    )


class Box:
    """A flight recorder and its answers."""

    def __init__(self, directory: Path, ring: Ring) -> None:
        self.ring = ring
        self.state: bytes | None = b"state"
        self.saved = 0
        self.pauses: list[int] = []
        held = struct.pack("=qqqq", 1, 0, 7, 9)
        self.recorder = FlightRecorder(
            ring, HEADER, directory, lambda: held, 5, self.save, self.pauses.append
        )
        self.directory = directory / "recordings"
        self.answers: list[tuple[Any, BaseException | None]] = []

    def save(self, bytes_max: int) -> bytes | None:
        assert bytes_max == min(STATE_BYTES_MAX, self.ring.state()["bytes_max"])
        self.saved += 1
        return self.state and self.state + b"%d" % self.saved

    def ask(self, argument: str, now_ns: int = 0) -> Any:
        self.recorder.ask(argument, now_ns, lambda body, error: self.answers.append((body, error)))
        while not self.answers:
            self.wait()
        body, error = self.answers.pop()
        if error is not None:
            raise error
        return body

    def wait(self) -> None:
        """Return once the recorder's thread has ended a task."""
        readable(self.recorder.fileno())
        self.recorder.drain(lambda error: pytest.fail(str(error)))

    def names(self) -> list[str]:
        return [path.name.partition("-")[2] for path in sorted(self.directory.glob("*"))]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    found = Box(tmp_path, Ring(1 << 20, 60 * SECOND))
    yield found
    found.recorder.close()


def test_a_cluster_is_what_was_said_last() -> None:
    cluster = ClusterEvents()
    link = LinkMeasured(5_000, 2, 7, 8)
    lost, clock = DeviceLost(6_000, 2, 0), DeviceClock(6_500, 2, 0, 1_380)
    for event in (
        *JOINED, ready(1, 1), ready(2, 1), ready(2, 2), LinkMeasured(4_000, 2, 1, 1), link,
        DeviceClock(4_500, 2, 0, 900), clock, lost, WorkerLeft(7_000, 1), ModelRemoved(7_500, 1),
        WorkerDraining(8_000, 3), LinkMeasured(8_500, 1, 1, 1), RequestCancelled(9_000, 5),
    ):  # fmt: skip
        if not isinstance(event, RequestCancelled):
            cluster.told(EncodedEvent.of(event))
    before = cluster.copy()
    for event in (ready(2, 9), DeviceClock(8_800, 2, 0, 1), DeviceLost(8_900, 2, 1), WorkerLeft(9_000, 2)):
        cluster.told(EncodedEvent.of(event))
    assert len(cluster) == 1
    assert [decode_step(msgpack.unpackb(step)).events for step in before.steps(10)] == [
        [one._replace(now_ns=10) for one in (JOINED[1], clock, ready(2, 2), lost, link)],
        [one._replace(now_ns=10) for one in (JOINED[2], WorkerDraining(8_000, 3))],
    ]


def test_a_dump_has_the_cluster_as_it_was_where_it_begins(box: Box) -> None:
    events = [*JOINED, *(ready(worker, model) for model in range(40) for worker in (1, 2, 3))]
    told: dict[int, Any] = {}  # told events, by place
    now = 3_000

    def tell(event: Any) -> None:
        nonlocal now
        now += 1_000
        event = event._replace(now_ns=now)
        told[box.ring.state()["end"]] = event
        box.recorder.told(event)
        box.ring.append(now, encode_step([event], []))

    for number, event in enumerate(events):
        tell(event)
        for _ in range(200):
            now += 1_000
            box.ring.append(now, step_of(now, 20))
        if number == 60:
            tell(WorkerLeft(0, 2))
    assert box.ring.state()["begin"] > 0
    dump = box.ask("dump", now)
    with (box.directory / dump["name"]).open("rb") as file:
        header, found = decode(file)
        assert header.held == ((1, 0, 7, 9),)
        body = list(found)
    assert dump["bytes"] == (box.directory / dump["name"]).stat().st_size
    expected = ClusterEvents()
    for place, event in told.items():
        if place < header.start:
            expected.told(EncodedEvent.of(event))
    assert 0 < header.cluster_steps == len(expected)
    first_ns = body[header.cluster_steps].events[0].now_ns
    wanted = [decode_step(msgpack.unpackb(step)) for step in expected.steps(first_ns)]
    assert body[: header.cluster_steps] == wanted
    assert (header.state, header.inexact) == (b"", "no state of the scheduler was kept in time")
    rest = [step.events[0].now_ns for step in body[header.cluster_steps :]]
    assert rest == sorted(rest)
    assert rest[-1] == now
    pieces = b""
    while piece := box.ask(f"{dump['name']}#{len(pieces)}"):
        pieces += piece
    assert pieces == (box.directory / dump["name"]).read_bytes()


def test_a_dump_that_cannot_be_written_says_why_and_leaves_nothing(box: Box) -> None:
    box.ring.append(1, step_of(1, 10))
    box.directory.write_text("in the way")
    with pytest.raises(Unavailable, match="the dump cannot be written: "):
        box.ask("dump")
    box.directory.unlink()
    assert box.ask("dump")["bytes"] > 20
    assert len(list(box.directory.iterdir())) == 1


def test_what_a_killed_controller_left_of_a_dump_goes_with_the_next(box: Box) -> None:
    box.ring.append(1, step_of(1, 10))
    box.directory.mkdir()
    (box.directory / f"20260801T120000.000000Z-asked{PARTIAL}").write_bytes(b"it was ki")
    assert box.ask("dumps") == []
    dump = box.ask("dump")
    assert [path.name for path in box.directory.iterdir()] == [dump["name"]]


def test_a_dump_whose_ring_has_gone_on_is_none(box: Box) -> None:
    for at_ns in range(20_000):
        box.ring.append(at_ns, step_of(at_ns, 100))
    dumps = Dumps(box.directory)
    with pytest.raises(OSError, match="the disk is too slow"):
        dumps.write("it", Content(HEADER, ClusterEvents(), [], b""), box.ring, box.ring.state()["end"])
    assert list(box.directory.iterdir()) == []
    assert dumps.describe() == []


def fill(box: Box, now_ns: int, part: float) -> None:
    """Append steps that fill the ring so many times."""
    steps = int(box.ring.state()["bytes_max"] * part) // len(step_of(now_ns, 100))
    for _ in range(steps):
        box.ring.append(now_ns, step_of(now_ns, 100))


def live(box: Box, seconds: int, part: float = 0.05, from_s: int = 100) -> None:
    """Each second a part of a ring, a beat, and the pause that the beat asks for."""
    for second in range(from_s, from_s + seconds):
        fill(box, second * SECOND, part)
        box.recorder.beat(0, 0, second * SECOND)
        if box.pauses:
            assert box.pauses.pop() == second * SECOND + STATE_PATIENCE_NS
            box.recorder.paused(second * SECOND)


def test_states_are_kept_so_that_the_ring_always_has_one(box: Box) -> None:
    live(box, 2)
    assert box.saved == 0, "nothing has left the ring yet"
    live(box, 100, from_s=102)
    assert 30 < box.saved < 40, "a state for each eighth of a ring"
    state = box.ask("", 201 * SECOND)
    assert state["state_bytes"] == len(b"state33")
    reach_s = (201 * SECOND - state["exact_ns"]) / SECOND
    assert 20 * (1 - 1.2 / STATES_MAX) - 2 < reach_s < 20, "of some twenty seconds that the ring has"
    saved = box.saved
    live(box, 60, part=0, from_s=202)
    assert box.saved == saved, "nothing has happened since"
    live(box, 60, part=0.0002, from_s=262)
    assert 7 <= box.saved - saved <= STATES_MAX, "by the time where little is written"


def test_a_dump_begins_with_the_oldest_state_that_the_ring_has_whole(box: Box) -> None:
    box.recorder.told(JOINED[0]._replace(now_ns=99 * SECOND))
    live(box, 100)
    dump = box.ask("dump", 199 * SECOND)
    with (box.directory / dump["name"]).open("rb") as file:
        header, steps = decode(file)
        found = list(steps)
    assert header.state.startswith(b"state")
    assert header.start == box.ring.state()["end"] - sum(
        len(step_of(step.events[0].now_ns, 100)) for step in found[header.cluster_steps :]
    )
    assert found[0].events == [JOINED[0]._replace(now_ns=found[1].events[0].now_ns)]
    assert found[1].events[0].now_ns >= box.ask("", 199 * SECOND)["exact_ns"]
    span_s = (199 * SECOND - found[1].events[0].now_ns) / SECOND
    assert 14 <= span_s <= 20


def test_a_dump_says_why_it_has_no_state(box: Box) -> None:
    box.state = None
    live(box, 100)
    assert 30 < box.saved < 40, "it may become smaller"
    assert (state := box.ask("", 199 * SECOND))["exact_ns"] == 0
    assert state["inexact"] == "the scheduler's state takes more than 1,048,576 bytes"
    with (box.directory / box.ask("dump", 199 * SECOND)["name"]).open("rb") as file:
        header, _ = decode(file)
    assert (header.state, header.inexact) == (b"", state["inexact"])


def test_a_state_that_cannot_be_written_ends_the_states_and_nothing_else(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(bytes_max: int) -> bytes:
        raise ValueError("a record is missing")

    recorder, box.recorder = (
        box.recorder,
        FlightRecorder(box.ring, HEADER, box.directory.parent, bytes, 5, fail, box.pauses.append),
    )
    recorder.close()
    live(box, 100)
    assert caplog.text.count("no more states of the flight recorder") == 1
    state = box.ask("", 199 * SECOND)
    assert (state["exact_ns"], state["inexact"]) == (
        0, "the scheduler's state could not be written: a record is missing"
    )  # fmt: skip


def test_the_state_of_a_policy_in_python_is_not_asked_for(tmp_path: Path) -> None:
    header = HEADER._replace(policy="mine:Policy")
    recorder = FlightRecorder(
        Ring(1 << 20, SECOND),
        header,
        tmp_path,
        bytes,
        1,
        lambda _: pytest.fail("asked"),
        lambda _: pytest.fail("paused"),
    )
    for second in range(100):
        recorder.beat(0, 0, second * SECOND)
    found: list[Any] = []
    recorder.ask("", 0, lambda body, _: found.append(body))
    assert found[0]["inexact"] == "the policy is a class in Python, whose state only it knows"
    recorder.close()


def test_the_cluster_of_a_dump_knows_which_copies_were_lost() -> None:
    cluster = ClusterEvents()
    for event in (
        JOINED[0],
        ready(1, 4),
        ready(1, 5),
        CopyLost(3_000, 1, 4),
        CopyLost(3_000, 1, 9),
        CopyLost(3_000, 7, 4),
    ):
        cluster.told(EncodedEvent.of(event))
    [step] = cluster.steps(5_000)
    events = decode_step(msgpack.unpackb(step)).events
    assert [(one.spec.model_id, one.is_stored) for one in events if isinstance(one, ModelReady)] == [
        (4, False),
        (5, True),
    ]


def test_the_cluster_of_a_dump_knows_the_room_that_was_wanted_last() -> None:
    cluster = ClusterEvents()
    for event in (JOINED[0], RoomWanted(3_000, 1, 70), RoomWanted(4_000, 1, 30), RoomWanted(4_000, 7, 90)):
        cluster.told(EncodedEvent.of(event))
    [step] = cluster.copy().steps(5_000)
    events = decode_step(msgpack.unpackb(step)).events
    assert [one for one in events if isinstance(one, RoomWanted)] == [RoomWanted(5_000, 1, 30)]


def test_one_dump_at_a_time_and_few_reads(box: Box) -> None:
    box.ring.append(1, step_of(1, 10))
    ignored: list[Any] = []
    box.recorder.ask("dump", 0, lambda *answer: ignored.append(answer))
    with pytest.raises(Unavailable, match="a dump is being written"):
        box.recorder.ask("dump", 0, lambda *answer: ignored.append(answer))
    for _ in range(16):
        box.recorder.ask("dumps", 0, lambda *answer: ignored.append(answer))
    with pytest.raises(Unavailable, match="16 pieces"):
        box.recorder.ask("dumps", 0, lambda *answer: ignored.append(answer))
    while len(ignored) < 17:
        box.wait()
    assert len(box.ask("dumps")) == 1


def beats(box: Box, seconds: Iterable[tuple[int, int]], from_s: int = 100) -> None:
    """A beat each second, with so many requests answered and bad ones since the beat before."""
    answered = bad = 0
    for second, (more, worse) in enumerate(seconds, from_s):
        answered, bad = answered + more, bad + worse
        box.recorder.beat(answered, bad, second * SECOND)


def test_a_burst_is_dumped_when_it_begins(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    box.ring.append(1, step_of(1, 10))
    calm, few, rare, burst = (1_000, 5), (10, 49), (1_000, 200), (1_000, 300)
    beats(box, [calm, calm, few, rare] + [calm] * 5)
    assert box.ask("dumps") == []
    beats(box, [calm] * 3 + [burst] * 300, 200)
    box.wait()
    assert box.names() == ["burst.rec"]
    assert "the flight recorder was dumped (burst)" in caplog.text
    beats(box, [burst] * 3 + [calm] * 10 + [burst] * 5, 503)
    assert len(box.ask("dumps")) == 1
    beats(box, [calm] * 70 + [burst] + [calm] * 10, 600)
    box.wait()
    assert len(box.ask("dumps")) == 2


def test_alerts_are_dumped_once_a_minute_and_the_newest_are_kept(box: Box) -> None:
    box.ring.append(1, step_of(1, 10))
    for number in range(11):
        start = (100 + 60 * number) * SECOND
        box.recorder.alert(f"{number:02}", start)
        box.recorder.alert("too-soon", start + SECOND)
        box.recorder.beat(0, 0, start + 2 * SECOND)
        box.recorder.beat(0, 0, start + 3 * SECOND)
        box.wait()
        box.recorder.alert("too-soon", start + 59 * SECOND)
        box.recorder.beat(0, 0, start + 59 * SECOND)
    assert sorted(box.names()) == [f"{number:02}.rec" for number in range(3, 11)]
    listed = [one["name"].partition("-")[2] for one in box.ask("dumps")]
    assert sorted(listed) == sorted(box.names())
