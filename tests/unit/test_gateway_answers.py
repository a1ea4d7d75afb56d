"""Room for answers: which callers are refused, and which connections are ended. Pure; the tests set the
time."""

from __future__ import annotations

import pytest

from clockwork.config.gateway import (
    ANSWER_BYTES_PER_S,
    ANSWER_MODELS_MAX,
    ANSWER_STALL_NS,
    ANSWERS_BYTES_MAX,
    CALLER_ANSWERS_BYTES_MAX,
    JOINED_BYTES_MAX,
)
from clockwork.errors import Refused
from clockwork.gateway.answers import AnswerMemory, HeldAnswer
from clockwork.system.clock import SECOND

MIB = 1 << 20
LARGE = 64 * MIB
FULL = ANSWERS_BYTES_MAX // LARGE
ANSWER_S = 30.0


class Callers:
    """Callers by name, and the room that they share."""

    def __init__(self) -> None:
        self.answers = AnswerMemory(ANSWER_S)
        self.ended: list[str] = []

    def held(self, name: str, copies: int = 1) -> HeldAnswer:
        return HeldAnswer(name, copies, lambda: self.ended.append(name))

    def answered(self, name: str, size: int, now: int, model: str = "m", copies: int = 1) -> HeldAnswer:
        """A caller whose answer has come."""
        held = self.held(name, copies)
        self.answers.ask(held, model, now)
        self.answers.come(held, size, now)
        return held


def test_an_answer_is_counted_until_it_is_released() -> None:
    callers = Callers()
    held = callers.answered("a", LARGE, 1)
    twice = callers.answered("b", LARGE, 1, copies=2)
    assert callers.answers.bytes == 3 * LARGE
    for _ in range(2):
        callers.answers.release(held)
        assert callers.answers.bytes == 2 * LARGE
    callers.answers.release(twice)
    assert callers.answers.bytes == 0


def test_where_room_is_short_the_longest_without_progress_is_ended_and_small_answers_pass() -> None:
    callers = Callers()
    held = [callers.answered(f"deaf {number}", LARGE, 1) for number in range(FULL)]
    with pytest.raises(Refused, match=str(ANSWERS_BYTES_MAX)):
        callers.answered("soon", LARGE, ANSWER_STALL_NS)
    assert callers.ended == [], "a caller has some time for its first bytes"
    later = 2 + ANSWER_STALL_NS
    callers.answers.move(held[0], later)
    with pytest.raises(Refused):
        callers.answered("honest", LARGE, later)
    assert callers.ended == ["deaf 1"], "the first has taken something meanwhile"
    callers.answers.release(callers.answered("small", JOINED_BYTES_MAX, later, "small"))
    callers.answers.release(held[1])
    callers.answered("honest", LARGE, later)


def test_the_smaller_of_a_models_last_two_answers_is_room_for_its_next() -> None:
    """A caller is refused before its request has cost anything, and a large answer delays no other caller."""
    callers = Callers()

    def answered(*sizes: int) -> None:
        for size in sizes:
            callers.answers.release(callers.answered("a", size, 1))

    answered(10, LARGE)
    callers.answers.ask(callers.held("b"), "m", 1)
    assert callers.answers.bytes == 0
    answered(LARGE)
    asked = [callers.held(f"caller {number}") for number in range(FULL + 1)]
    for held in asked[:-1]:
        callers.answers.ask(held, "m", 2)
    with pytest.raises(Refused):
        callers.answers.ask(asked[-1], "m", 2)
    callers.answers.ask(asked[-1], "another", 2)
    callers.answers.come(asked[0], 10, 3)
    callers.answers.ask(callers.held("next"), "m", 3)
    assert callers.answers.bytes == (FULL - 1) * LARGE + 20


def test_one_connection_has_a_share_and_may_always_have_one_answer() -> None:
    callers = Callers()
    for _ in range(CALLER_ANSWERS_BYTES_MAX // LARGE):
        callers.answered("proxy", LARGE, 1)
    with pytest.raises(Refused, match="on this connection"):
        callers.answered("proxy", LARGE, 1)
    assert callers.answers.bytes == CALLER_ANSWERS_BYTES_MAX
    callers.answered("another", CALLER_ANSWERS_BYTES_MAX - 1, 1)


def test_an_answer_must_be_taken_at_a_least_rate() -> None:
    callers = Callers()
    held = callers.answered("slow", 2 * ANSWER_BYTES_PER_S, SECOND)
    ends = SECOND + int((ANSWER_S + 2) * SECOND)
    callers.answers.move(held, ends - 1)
    callers.answers.sweep(ends)
    assert callers.ended == []
    callers.answers.sweep(ends + 1)
    assert callers.ended == ["slow"]


def test_what_comes_for_a_caller_that_has_gone_is_not_counted() -> None:
    callers = Callers()
    held = callers.held("gone")
    callers.answers.ask(held, "m", 1)
    callers.answers.release(held)
    callers.answers.come(held, LARGE, 2)
    assert callers.answers.bytes == 0
    callers.answers.sweep(1 << 62)
    assert callers.ended == []


def test_a_bounded_number_of_models_is_remembered() -> None:
    callers = Callers()
    for number in range(ANSWER_MODELS_MAX + 1):
        for _ in range(2):
            callers.answers.release(callers.answered("a", LARGE, 1, f"m{number}"))
    callers.answers.ask(callers.held("a"), "m0", 2)
    assert callers.answers.bytes == 0, "the oldest is forgotten"
    callers.answers.ask(callers.held("a"), "m1", 2)
    assert callers.answers.bytes == LARGE
