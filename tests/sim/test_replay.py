"""A replay of a recording reproduces its decisions, and reports where the decisions differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest

from clockwork import __version__
from clockwork.errors import ConfigError
from clockwork.observe.recorded import opened
from clockwork.scheduler import make_scheduler
from clockwork.scheduler.recording import Header, Step, decode, decode_step, encode_header, encode_step
from clockwork.scheduler.types import (
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    Fault,
    LinkMeasured,
    ModelFault,
    Reason,
    SendInfer,
    SendLoad,
    Status,
    Tick,
    Wake,
    WorkerJoined,
)
from clockwork.sim.replay import replay
from clockwork.wire.messages import NEVER_NS
from tests.sim.test_scheduler_random import random_world

Trace = Sequence[tuple[Any, Sequence[Any]]]


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Return the events and orders of a world with many failures."""
    world = random_world(4, calm=False)
    world.settle()
    assert len(world.trace) > 300
    return world.trace


def write(path: Path, trace: Trace) -> Path:
    steps = [encode_step([event], orders) for event, orders in trace]
    path.write_bytes(encode_header(Header("edf", "", {}, __version__)) + b"".join(steps))
    return path


def test_what_is_read_is_what_was_written(tmp_path: Path, trace: Trace) -> None:
    with write(tmp_path / "it", trace).open("rb") as file:
        header, steps = decode(file)
        found = list(steps)
    assert header.policy == "edf"
    assert [step.events for step in found] == [[event] for event, _ in trace]
    assert [type(step.events[0]) for step in found] == [type(event) for event, _ in trace]
    ordered = [[order for order in orders if not isinstance(order, Wake)] for _, orders in trace]
    assert [step.commands for step in found] == ordered
    assert [[type(order) for order in step.commands] for step in found] == [
        [type(order) for order in orders] for orders in ordered
    ]
    kinds = {type(order) for orders in ordered for order in orders}
    assert {SendInfer, SendLoad, AnswerOk, AnswerFailed} <= kinds
    refusals = [order for step in found for order in step.commands if isinstance(order, AnswerFailed)]
    assert {type(order.status) for order in refusals} == {Status}
    assert Reason in {type(order.reason) for order in refusals} <= {Reason, str}


def test_time_that_passes_before_the_decision_is_kept() -> None:
    told = [LinkMeasured(1_000, 1, 5, 5), Tick(3_000)]
    body = msgpack.unpackb(encode_step(told, [Wake(9_000)]))
    assert decode_step(body) == Step(told, [])
    assert decode_step(msgpack.unpackb(encode_step([Tick(7)], []))) == Step([Tick(7)], [])


@pytest.mark.parametrize("settled_ns", [0, 5])
def test_a_step_at_the_end_of_time_is_damaged(settled_ns: int) -> None:
    """Every timer would be due then, those of the scheduler that never are, too."""
    body = msgpack.packb((NEVER_NS - settled_ns, settled_ns, (), ()))
    with pytest.raises(ValueError, match=rf"its time is {NEVER_NS} ns, not below {NEVER_NS}"):
        decode_step(body)


def test_a_fault_of_a_model_is_kept() -> None:
    fault = ModelFault(3, 1, Fault.OVERRUN, True)
    (found,) = decode_step(msgpack.unpackb(encode_step([Tick(7)], [fault]))).commands
    assert found == fault
    assert (type(found), type(found.fault)) == (ModelFault, Fault)


def test_a_fresh_scheduler_decides_the_same(tmp_path: Path, trace: Trace) -> None:
    found = replay(write(tmp_path / "it", trace))
    assert found.identical
    assert (found.steps, found.events) == (len(trace), len(trace))
    assert found.orders == sum(len(orders) for _, orders in trace)


def test_another_decision_is_found_where_it_was_taken(tmp_path: Path, trace: Trace) -> None:
    place = next(
        i for i, (event, orders) in enumerate(trace)
        if i > 100 and isinstance(event, Arrived) and orders and not isinstance(orders[0], Wake)
    )  # fmt: skip
    changed = list(trace)
    changed[place] = (trace[place][0], trace[place][1][1:])
    found = replay(write(tmp_path / "it", changed))
    assert not found.identical
    assert found.parted_at == found.steps == place
    assert list(found.parted_events) == [trace[place][0]]
    assert list(found.parted_orders) == list(trace[place][1])


def test_another_event_is_found_by_what_it_leads_to(tmp_path: Path, trace: Trace) -> None:
    place = next(i for i, (event, _) in enumerate(trace) if isinstance(event, LinkMeasured))
    event = trace[place][0]
    changed = list(trace)
    changed[place] = (event._replace(there_ns=event.there_ns + 50_000_000), trace[place][1])
    found = replay(write(tmp_path / "it", changed))
    assert found.parted_at > place
    assert any(isinstance(one, Arrived | ActionDone) for one in found.parted_events)


def dump(path: Path, trace: Trace, place: int, **changed: Any) -> Path:
    """Return a recording that begins in the middle, with the scheduler's state there and a step that
    describes the cluster."""
    scheduler = make_scheduler("edf")
    for event, _ in trace[:place]:
        scheduler.step(event)
    state = scheduler.save(1 << 24)
    assert state is not None
    header = Header("edf", "", {}, __version__, start=1_000, cluster_steps=1, state=state)._replace(**changed)
    steps = [encode_step([event], orders) for event, orders in trace[place:]]
    told = encode_step([event for event, _ in trace[:place] if isinstance(event, WorkerJoined)], [])
    path.write_bytes(encode_header(header) + told + b"".join(steps))
    return path


def test_a_dump_from_the_middle_is_decided_the_same(tmp_path: Path, trace: Trace) -> None:
    for place in (50, len(trace) // 2, len(trace) - 20):
        found = replay(dump(tmp_path / "it", trace, place))
        assert found.identical
        assert found.steps == found.events == len(trace) - place


def test_another_decision_is_found_in_a_dump_from_the_middle(tmp_path: Path, trace: Trace) -> None:
    place = next(
        i for i, (_, orders) in enumerate(trace) if i > 200 and orders and not isinstance(orders[0], Wake)
    )
    changed = list(trace)
    changed[place] = (trace[place][0], trace[place][1][1:])
    found = replay(dump(tmp_path / "it", changed, 100))
    assert found.parted_at == place - 100


def test_a_dump_is_replayed_only_from_the_state_that_it_had(tmp_path: Path, trace: Trace) -> None:
    with pytest.raises(
        ConfigError, match="it begins after its controller did, without the scheduler's state"
    ):
        replay(dump(tmp_path / "it", trace, 100, state=b""))
    with pytest.raises(ConfigError, match=r"it: the state of the scheduler cannot be restored: "):
        replay(dump(tmp_path / "it", trace, 100, state=b"nothing"))
    with pytest.raises(ConfigError, match="it is of policy 'edf' with memory rules ''"):
        replay(dump(tmp_path / "it", trace, 100, policy="fifo"))
    path = dump(tmp_path / "it", trace, 100)
    body = bytearray(path.read_bytes())
    body[300] ^= 1
    path.write_bytes(body)
    with pytest.raises(ConfigError, match="it: the state of the scheduler in the recording is damaged"):
        replay(path)


def test_a_file_of_the_format_before_is_read() -> None:
    """A recording written by the version that had format 2."""
    path = Path(__file__).parents[1] / "data" / "recordings" / "format-2.rec"
    with opened(path) as (header, steps):
        found = list(steps)
    assert header == Header("edf", "", {}, "0.1.0")
    assert len(found) == 250
    assert {type(step.events[0]) for step in found} >= {WorkerJoined, ActionDone, Arrived, LinkMeasured, Tick}


def test_recordings_of_the_format_before_are_replayed(tmp_path: Path, trace: Trace) -> None:
    steps = b"".join(encode_step([event], orders) for event, orders in trace)
    (tmp_path / "it").write_bytes(msgpack.packb([2, "edf", "", {}, "0.9", 0, 0, []]) + steps)
    found = replay(tmp_path / "it")
    assert found.identical
    assert (found.header.version, found.header.state, found.steps) == ("0.9", b"", len(trace))


def test_a_recording_that_was_cut_off_is_good_until_there(tmp_path: Path, trace: Trace) -> None:
    path = write(tmp_path / "it", trace)
    path.write_bytes(path.read_bytes()[:-1000])
    found = replay(path)
    assert found.identical
    assert len(trace) - 50 < found.steps < len(trace)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "no recording"),
        (b"\x93\x01\x02\x03", "no recording"),
        (b"\x95\x63\xa3edf\xa0\x80\xa10", "format 99; this program reads formats 2 to 4"),
        (b"\x95\x01\xa3edf\xa0\x80\xa10", "format 1;"),
        (b"\x95\x02\xa3edf\xa0\x80\xa10\xc4\x07\x94\x05\x00\x91\x91\x63\x90", "step 0 .* is damaged"),
        (b"\x95\x02\xa3edf\xa0\x80\xa10\xc4\x01\x94", "step 0 .* is damaged"),
        (b"\x95\x02\xa3edf\xa0\x80\xa10\x94\x05\x00\x90\x90", "step 0 .* is damaged"),
        (b"\x95\x02\xa3edf\xa0\x80\xa10\xc1", "is damaged"),
        (b"\x95\x02\xa6no-one\xa0\x80\xa10", "no-one"),
        (b"\x96\x02\xa3edf\xa0\x80\xa10\xa10", "head of the recording is damaged"),
        (b"\x95\x02\xa3edf\xa0\x01\xa10", "head of the recording is damaged"),
        (b"\x98\x02\xa3edf\xa0\x80\xa10\x00\x00\x91\x93\x01\x02\x03", "head of the recording is damaged"),
        (b"\x98\x02\xa3edf\xa0\x80\xa10\x00\x00\x91\x94\x01\x02\x03\xc0", "head of the recording is damaged"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, body: bytes, sentence: str) -> None:
    (tmp_path / "it").write_bytes(body)
    with pytest.raises(ConfigError, match=sentence):
        replay(tmp_path / "it")


def test_files_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        replay(tmp_path / "nothing")
