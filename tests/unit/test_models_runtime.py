"""Executions during preparation are limited, all by one thread."""

from __future__ import annotations

import threading

import pytest

from clockwork.models import runtime
from clockwork.models.runtime import Limit, RunsTooLong
from clockwork.system.clock import MS
from tests.patience import PATIENCE_S


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Short limits; the calls that the steps of a limit make."""
    said: list[str] = []
    monkeypatch.setattr(runtime, "PREPARATION_LONG_RUN_NS", 20 * MS)
    monkeypatch.setattr(runtime, "preparation_run_ns", lambda: 40 * MS)
    monkeypatch.setattr(runtime, "EXECUTION_GRACE_NS", 20 * MS)
    monkeypatch.setattr(runtime, "on_long_run", lambda: said.append("long"))
    monkeypatch.setattr(runtime, "on_endless_run", lambda: said.append("endless"))
    return said


def test_an_execution_is_ended_and_called_endless_if_it_goes_on(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = threading.Event()
    monkeypatch.setattr(runtime, "on_endless_run", lambda: (said.append("endless"), endless.set()))
    with pytest.raises(RunsTooLong), Limit(lambda: said.append("end")):
        assert endless.wait(PATIENCE_S)
    assert said == ["long", "end", "endless"]


def test_an_execution_that_ends_when_told_to_is_too_long(said: list[str]) -> None:
    ended = threading.Event()
    with pytest.raises(RunsTooLong), Limit(ended.set):
        assert ended.wait(PATIENCE_S)
    assert said[:1] == ["long"]


def test_short_executions_are_left_alone_and_take_one_thread(said: list[str]) -> None:
    for _ in range(100):
        with Limit(lambda: pytest.fail("ended")):
            pass
    assert said == []
    assert sum(thread.name == "limit" for thread in threading.enumerate()) == 1


def test_a_limit_is_met_beside_one_that_is_due_later(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread sleeps until the first limit is due, and is woken for the second."""
    ended = threading.Event()
    late = Limit(lambda: pytest.fail("ended"))
    late._waits_ns[0] = round(PATIENCE_S * 1e9)
    with late, pytest.raises(RunsTooLong), Limit(ended.set):
        assert ended.wait(PATIENCE_S)
