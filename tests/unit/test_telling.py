"""Sentences about untrusted values: bounded in length and in cost, whatever the value is."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from clockwork.wire.telling import printable, tell, visible


def nested(levels: int, kind: type) -> Any:
    value: Any = []
    for _ in range(levels):
        value = {"k": value} if kind is dict else (value,) if kind is tuple else [value]
    return value


class Costly:
    def __repr__(self) -> str:
        raise AssertionError("a stranger's code")


class CostlyText(str):
    __slots__ = ()

    def __repr__(self) -> str:
        raise AssertionError("a stranger's code")


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 1 << 64, 1.5, "", "name", "it's \"so\"\n", b"\x00\xff", [], (), {}, [1, [2, "x"]],
        {"a": 1, 2: [None]}, (1, 2),
    ],
)  # fmt: skip
def test_a_small_value_is_told_as_python_writes_it(value: object) -> None:
    assert tell(value) == repr(value)


HUGE: list[Any] = [
    *(nested(levels, kind) for levels in (5, 1_000, 100_000) for kind in (list, dict, tuple)),
    "x" * 50_000_000,
    b"x" * 50_000_000,
    "\0" * 100,
    [0] * 5_000_000,
    [[[0] * 1_000] * 1_000] * 1_000,
    dict.fromkeys(range(1_000_000)),
    {("k" * 1_000_000,): "v" * 1_000_000},
    10**100_000,
    Costly(),
    [Costly()],
    CostlyText("x"),
    {1.0, 2.0},
]


@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
@pytest.mark.parametrize("chars", [1, 80, 300])
def test_what_is_told_is_short_printable_and_cheap_whatever_the_value(value: object, chars: int) -> None:
    spent_s = 1.0
    for _ in range(3):  # the collector may run once, over the objects that other tests have left
        begun = time.thread_time()
        text = tell(value, chars)
        spent_s = min(spent_s, time.thread_time() - begun)
    assert text.isprintable()
    assert len(text) <= chars + len("...")
    assert spent_s < 0.005, "a repr() of the smallest of these takes longer"


def test_a_containers_first_elements_are_told() -> None:
    assert tell(list(range(1_000)), 20) == "[0, 1, 2, 3, 4, 5, ..."
    assert tell(nested(9, list)) == "[[[[[...]]]]]"


def test_a_text_for_the_log_moves_no_cursor() -> None:
    assert (
        printable("w\n2026 ERROR forged\x1b[2J")
        == "w\N{REPLACEMENT CHARACTER}2026 ERROR forged\N{REPLACEMENT CHARACTER}[2J"
    )
    assert printable("x" * 1_000, 10) == "x" * 10 + "..."
    assert printable("worker-1") == "worker-1"


@pytest.mark.slow
def test_whatever_is_not_shown_as_itself_is_escaped_as_python_writes_it() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        shown = visible(character)
        assert shown.isprintable()
        assert shown == (character if character.isprintable() else ascii(character)[1:-1])
    assert visible("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc\\x1b"
    assert visible(visible("\x9b")) == visible("\x9b") == "\\x9b"
