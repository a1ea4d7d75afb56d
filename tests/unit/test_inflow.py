"""When the memory of a process counts against a connection that waits to be read."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from clockwork.wire import inflow
from clockwork.wire.inflow import Inflow

MIB = 1 << 20
BOUND = 64 * MIB


class Process:
    """A process whose memory and single connection are set by a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, connection: socket.socket) -> None:
        self.resident, self.received, self.kept = 100 * MIB, 0, 0
        monkeypatch.setattr(inflow, "resident_bytes", lambda: self.resident)
        monkeypatch.setattr(inflow, "received_bytes", lambda _: self.received)
        self.inflow = Inflow(connection.fileno(), 0)

    def receive(self, count: int, memory: int | None = None) -> None:
        """So many bytes arrive, and take as many of memory unless set otherwise."""
        self.received += count
        self.resident += count if memory is None else memory

    def take(self, count: int) -> None:
        """Take a message of so many bytes; no complete message is left then."""
        self.inflow.take(count, 1)
        self.inflow.drain()

    def is_ended(self) -> bool:
        return self.inflow.look(0, BOUND, self.kept)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as connection,
    ):
        yield Process(monkeypatch, connection)


def test_a_message_of_small_frames_is_ended_by_its_memory(process: Process) -> None:
    process.receive(2 * MIB, memory=42 * MIB)
    assert not process.is_ended()
    process.receive(2 * MIB, memory=42 * MIB)
    assert process.is_ended()


def test_small_messages_are_ended_although_some_are_taken(process: Process) -> None:
    for _ in range(20):
        process.receive(MIB, memory=21 * MIB)
        process.inflow.take(100, 100)
        if process.is_ended():
            return
    pytest.fail("420 MiB wait")


def test_messages_that_are_taken_and_kept_do_not_count(process: Process) -> None:
    """A gateway keeps answers until their callers have read them, while the next answer begins."""
    process.receive(4 * MIB)
    for _ in range(20):
        process.receive(16 * MIB)
        process.take(16 * MIB)
        process.resident += 32 * MIB  # the growth by copies
        assert not process.is_ended()
    process.receive(4 * MIB, memory=100 * MIB)
    assert process.is_ended(), "the memory of the next one counts"


def test_large_frames_that_wait_are_bounded_by_their_bytes_alone(process: Process) -> None:
    process.receive(BOUND)
    process.resident += BOUND
    assert not process.is_ended()
    process.receive(1)
    assert process.is_ended()


def test_what_a_process_keeps_for_its_callers_does_not_count(process: Process) -> None:
    process.receive(4 * MIB)
    assert not process.is_ended()
    process.kept = 200 * MIB
    process.resident += 200 * MIB
    assert not process.is_ended()


def test_memory_that_the_allocator_has_not_given_back_does_not_count(process: Process) -> None:
    process.kept = 200 * MIB
    process.receive(4 * MIB)
    process.take(4 * MIB)
    assert not process.is_ended()
    process.receive(4 * MIB)
    process.kept = 0
    assert not process.is_ended()


def test_memory_that_could_not_be_read_once_does_not_count(process: Process) -> None:
    """No descriptor was left for the connection."""
    resident, process.resident = process.resident, 0
    assert not process.is_ended()
    process.receive(4 * MIB)
    process.resident = resident + 4 * MIB
    assert not process.is_ended()
