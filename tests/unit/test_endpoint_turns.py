"""Which of several endpoints is dialled, and for how long."""

from __future__ import annotations

import pytest

from clockwork.config.wire import (
    ENDPOINT_DIAL_NS,
    ENDPOINT_GREETING_NS,
    ENDPOINT_ROUNDS_MAX,
    ENDPOINT_WELCOME_NS,
    ENDPOINTS_MAX,
)
from clockwork.errors import ConfigError
from clockwork.wire.messages import NEVER_NS
from clockwork.wire.transport import EndpointTurns, split_endpoints


def test_lists_are_split_at_commas() -> None:
    assert split_endpoints("tcp://a:1") == ("tcp://a:1",)
    assert split_endpoints("tcp://a:1, tcp://b:2") == ("tcp://a:1", "tcp://b:2")
    assert len(split_endpoints(",".join("a" * ENDPOINTS_MAX))) == ENDPOINTS_MAX
    with pytest.raises(ConfigError, match=f"at most {ENDPOINTS_MAX}"):
        split_endpoints("," * ENDPOINTS_MAX)


def test_a_single_endpoint_is_dialled_for_ever_unless_it_is_dialled_anew() -> None:
    turns = EndpointTurns(("a",))
    turns.dialled(0)
    assert turns.due_ns == NEVER_NS
    turns.lost(5)
    assert turns.due_ns == NEVER_NS, "libzmq dials it again"
    turns.redial(7)
    assert turns.due_ns == 7
    assert turns.advance(7, True, True)
    assert turns.current == "a"


def test_the_next_is_dialled_where_no_connection_begins() -> None:
    turns = EndpointTurns(("a", "b"))
    turns.dialled(100)
    assert (turns.current, turns.due_ns) == ("a", 100 + ENDPOINT_DIAL_NS)
    assert turns.advance(turns.due_ns, False, False)
    assert turns.current == "b"


def test_a_connection_has_its_time_for_a_welcome() -> None:
    turns = EndpointTurns(("a", "b"))
    turns.dialled(0)
    assert not turns.advance(10, True, False)
    assert (turns.current, turns.due_ns) == ("a", 10 + ENDPOINT_GREETING_NS)
    assert not turns.advance(20, True, True)
    assert (turns.current, turns.due_ns) == ("a", 20 + ENDPOINT_WELCOME_NS)
    assert turns.advance(turns.due_ns, True, True), "nobody lets it in"
    assert turns.current == "b"
    turns.dialled(0)
    turns.settle()
    assert turns.due_ns == NEVER_NS


def test_a_connection_without_a_handshake_is_left_soon_at_first() -> None:
    """The system takes connections for a process that is stopped."""
    turns = EndpointTurns(("a", "b"))
    for wait_ns in (ENDPOINT_GREETING_NS, ENDPOINT_GREETING_NS, 2 * ENDPOINT_GREETING_NS):
        turns.dialled(0)
        assert not turns.advance(10, True, False)
        assert turns.due_ns == 10 + wait_ns
        assert turns.advance(turns.due_ns, True, False)


def test_the_next_is_dialled_at_once_where_a_connection_is_lost() -> None:
    turns = EndpointTurns(("a", "b"))
    turns.dialled(0)
    turns.settle()
    turns.lost(50)
    assert turns.due_ns == 50
    assert turns.advance(50, True, True), "what began is over"
    assert turns.current == "b"


def test_each_round_takes_longer_until_somebody_lets_the_caller_in() -> None:
    turns = EndpointTurns(("a", "b"))
    waits = []
    for _ in range(2 * (ENDPOINT_ROUNDS_MAX + 2)):
        turns.dialled(0)
        waits.append(turns.due_ns // ENDPOINT_DIAL_NS)
        turns.advance(0, False, False)
    assert waits == [1, 1, 2, 2, 4, 4, 8, 8, 8, 8]
    turns.settle()
    turns.dialled(0)
    assert turns.due_ns == ENDPOINT_DIAL_NS
