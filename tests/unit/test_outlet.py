"""The controller's single exit: effects are carried out in order, and no effect bypasses it."""

from __future__ import annotations

import ast
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clockwork.controller._exchange import CLIENTS, WORKERS
from clockwork.controller.effects import (
    CountDevices,
    Effect,
    FailAction,
    FailActions,
    ForgetReferences,
    LetGo,
    Post,
    ScheduleRemoval,
    SetClock,
    Tell,
)
from clockwork.controller.outlet import Outlet
from clockwork.errors import PolicyFailed
from clockwork.scheduler.types import ModelRemoved, WorkerDraining

ROOM = Path(__file__).parents[2] / "clockwork" / "controller"


class Noting:
    """Records each call in a list that several of these share."""

    def __init__(self, calls: list[Any], failures: dict[str, Exception]) -> None:
        self._calls = calls
        self._failures = failures

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self._calls.append((name, *arguments))
            if name in self._failures:
                raise self._failures[name]

        return call


class Bench:
    """An outlet whose surroundings record their calls. failures: exceptions that calls raise, by the calls'
    names."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.failures: dict[str, Exception] = {}
        self.effects: deque[Effect] = deque()
        noting: Any = Noting(self.calls, self.failures)
        context: Any = SimpleNamespace(
            exchange=noting, flight=SimpleNamespace(told=lambda event: None, alert=lambda *_: None),
            links=SimpleNamespace(worker_by_id={5: SimpleNamespace(slot=2, identity=b"w", fd=9)}),
            troubles=SimpleNamespace(note=lambda *_: None, clear=lambda *_: None),
            complaints=SimpleNamespace(note=lambda kind, *_: self.calls.append(("complaint", kind))), now_ns=70,
        )  # fmt: skip
        self.outlet = Outlet(self.effects, context, noting, noting, noting, noting, noting, noting, noting)

    def carry_out(self, *effects: Effect, is_deciding: bool = False) -> list[Any]:
        """Return the calls for these effects."""
        self.calls.clear()
        self.effects.extend(effects)
        self.outlet.carry_out(is_deciding)
        return list(self.calls)


DRAINING = WorkerDraining(70, 5)


def test_effects_are_carried_out_in_the_order_of_their_decisions() -> None:
    bench = Bench()
    assert bench.carry_out(
        Tell(DRAINING), FailActions(5, "gone"), LetGo(5, "was let go"), ScheduleRemoval(3), ForgetReferences()
    ) == [
        ("note", DRAINING),
        ("fail_actions", 2, "gone"),
        ("let_go", 5, "was let go"),
        ("note", ModelRemoved(70, 3)),
        ("forget_references",),
    ]
    assert not bench.effects


def test_the_scheduler_is_told_of_nothing_while_its_orders_are_carried_out() -> None:
    bench = Bench()
    assert bench.carry_out(Tell(DRAINING), ForgetReferences(), is_deciding=True) == [("forget_references",)]
    assert bench.carry_out(ScheduleRemoval(3), is_deciding=True) == []
    assert bench.carry_out(ScheduleRemoval(4)) == [
        ("note", DRAINING),
        ("note", ModelRemoved(70, 3)),
        ("note", ModelRemoved(70, 4)),
    ]
    assert bench.carry_out() == []


def test_a_defect_costs_one_effect() -> None:
    bench = Bench()
    bench.failures["forget_references"] = ValueError("a defect")
    assert bench.carry_out(ForgetReferences(), FailAction(5, 11, "none")) == [
        ("forget_references",),
        ("complaint", "storage failed"),
        ("fail_action", 2, 11, "none"),
    ]


@pytest.mark.parametrize("error", [PolicyFailed("in the middle"), ValueError("no such worker")])
def test_what_the_scheduler_cannot_take_ends_the_controller(error: Exception) -> None:
    bench = Bench()
    bench.failures["note"] = error
    with pytest.raises(type(error)):
        bench.carry_out(Tell(DRAINING))


def test_what_was_decided_of_a_worker_that_has_left_comes_to_nothing() -> None:
    bench = Bench()
    assert bench.carry_out(FailAction(6, 1, ""), FailActions(6, ""), SetClock(6, (0, 0, 0, 0))) == []
    assert bench.carry_out(SetClock(5, (1, 2, 3, 4))) == [("set_clock", 2, 1, 2, 3, 4)]


@pytest.mark.parametrize("side", [CLIENTS, WORKERS])
def test_a_peer_that_takes_no_message_has_left(side: int) -> None:
    bench = Bench()  # the exchange reports that nothing could be sent
    sent = ("send", side, b"i", 4, b"header", (), b"")
    assert bench.carry_out(Post(side, b"i", 4, b"header")) == [sent, ("unreachable", b"i", 4)]


def test_devices_are_counted_in_the_exchange() -> None:
    bench = Bench()
    bench.carry_out(CountDevices(8))
    exchange: Any = bench.outlet._exchange
    assert exchange.shadow_width == 8


# ----- nothing goes past them ----------------------------------------------------------------------

ASKED = {
    # events that it has read
    "ended", "flaw", "heard_ns", "key", "lost", "message", "now_ns", "order",
    # seats, which must be told of a hello at once
    "client_joined", "client_left", "heard", "seat_for", "worker_joined", "worker_left",
    # counts
    "action_count", "action_results", "actions_sent", "connections", "copy_count", "device_counts", "held_count",
    "host_counts", "lag", "model_counts", "outcomes", "refusals", "shadow_results",
    # functions of the loop
    "end_orders", "fail_all", "is_timed", "pause", "run", "spent_ns", "wait_on",
}  # fmt: skip
"""Functions of the exchange that modules other than the outlet may call."""


def test_the_outlet_alone_has_the_exchange_do_something() -> None:
    wrong = []
    for path in sorted(ROOM.rglob("*.py")):
        if path.name in ("outlet.py", "mirror.py"):  # a module that the outlet uses
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            owner = ast.unparse(node.value).rpartition(".")[2]
            if owner in ("exchange", "_exchange") and node.attr not in ASKED:
                wrong.append(f"{path.relative_to(ROOM)}:{node.lineno} {node.attr}")
            if owner in ("troubles", "_troubles", "publisher") and node.attr in ("note", "clear", "send"):
                wrong.append(f"{path.relative_to(ROOM)}:{node.lineno} {node.attr}")
    assert wrong == []
