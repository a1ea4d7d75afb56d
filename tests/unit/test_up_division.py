"""How `clockwork up` goes from one division of the cores to the next, with children that are no processes."""

from __future__ import annotations

import collections
import signal
from collections.abc import Sequence
from typing import Any, cast

import pytest

from clockwork.config.launch import DIVISION_JOINED_NS, DIVISION_WHOLE_NS, WORKER_LEAVES_NS
from clockwork.launch import local
from clockwork.launch.cores import CoreWatch, DividedCores
from clockwork.launch.local import AnyChild, ProcessCluster, UpSettings
from clockwork.scheduler.cores import Division

FIRST, SECOND = Division(6), Division(2, 1, 4)


class FakeChild:
    """A child that does as it is told when the test says so."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        self.arguments = arguments
        self.lines: collections.deque[str] = collections.deque()
        self.status = -signal.SIGKILL
        self.serves = self.settled = ""
        self.stands_by = self.lost = False
        self.signals: list[int] = []
        self.has_ended = self.is_reaped = False

    def ended(self) -> bool:
        return self.has_ended

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def end(self) -> None:
        self.has_ended = self.is_reaped = True


class FakeWatch:
    """The controller's view of the workers, as the test sets it."""

    def __init__(self) -> None:
        self.present = self.wanted = FIRST
        self.waiting = ""
        self.joined: set[str] = set()
        self.whole: set[str] = set()
        self.follows = False
        self.refused: list[Division] = []

    def follow(self, follows: bool) -> None:
        self.follows = follows

    def have_joined(self, names: Sequence[str], is_whole: bool) -> bool:
        return set(names) <= (self.whole if is_whole else self.joined)

    def became(self, division: Division) -> None:
        self.present = self.wanted = division

    def refuse(self, division: Division) -> None:
        self.refused.append(division)
        self.wanted = self.present


class Up(ProcessCluster):
    """A cluster of a controller and a worker that are ready, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_ns = 1
        monkeypatch.setattr(local, "now_ns", lambda: self.at_ns)

        def flags(division: Division) -> tuple[tuple[str, ...], ...]:
            wide = [("--threads", str(division.threads))] if division.wide else []
            return ("--executors", str(division.narrow)), *wide

        self.said: list[str] = []
        super().__init__(
            UpSettings(cores=DividedCores(6, 1, flags)),
            ("tcp://a:1", "tcp://a:2", "tcp://a:3"),
            self.said.append,
        )
        self.watch = FakeWatch()
        self._watch = cast(CoreWatch, self.watch)
        self._spawn("controller", [])
        self._start_worker(())
        self._is_ready = True

    def _place(self, name: str, arguments: list[str]) -> AnyChild:
        return cast(AnyChild, FakeChild(name, arguments))

    def workers(self) -> dict[str, FakeChild]:
        seats = [seat for seat in self._seats if seat.name.startswith("worker-")]
        return {seat.name: cast(FakeChild, seat.child) for seat in seats}

    def go(self, after_ns: int = 0, **of_watch: Any) -> list[str]:
        """Take a turn of the main loop, and return the names of the workers that run."""
        self.at_ns += after_ns
        for name, value in of_watch.items():
            setattr(self.watch, name, value)
        self.mend()
        self.divide()
        return list(self.workers())


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> Up:
    return Up(monkeypatch)


def test_workers_end_when_those_of_the_new_division_have_every_model(up: Up) -> None:
    assert up.go() == ["worker-0"]
    assert up.go(wanted=SECOND, waiting="tight@1") == ["worker-0", "worker-1", "worker-2"]
    assert up.said[0].startswith("Executors are divided anew for tight@1: 2 of one core and 1 of 4 cores. ")
    workers = up.workers()
    assert workers["worker-1"].arguments[-2:] == ["--executors", "2"]
    assert workers["worker-2"].arguments[-2:] == ["--threads", "4"]
    up.go(joined={"worker-1", "worker-2"}, whole={"worker-2"})
    assert workers["worker-0"].signals == [], "not every model would have a worker"
    up.go(whole={"worker-1", "worker-2"})
    assert workers["worker-0"].signals == [signal.SIGTERM]
    assert up.watch.present == SECOND
    workers["worker-0"].has_ended = True
    assert up.go() == ["worker-1", "worker-2"]
    assert workers["worker-0"].is_reaped
    assert not any("started again" in line for line in up.said), "it ended as it was told"
    # Back again: the workers of the second division are replaced by one.
    assert up.go(wanted=FIRST) == ["worker-1", "worker-2", "worker-3"]
    up.go(joined={"worker-3"}, whole={"worker-3"})
    assert [workers[name].signals for name in ("worker-1", "worker-2")] == [[signal.SIGTERM]] * 2


def test_a_worker_that_does_not_end_is_killed(up: Up) -> None:
    up.go(wanted=SECOND)
    up.go(joined={"worker-1", "worker-2"}, whole={"worker-1", "worker-2"})
    first = up.workers()["worker-0"]
    assert up.go(WORKER_LEAVES_NS - 1) == ["worker-0", "worker-1", "worker-2"]
    assert not first.is_reaped
    assert up.go(1) == ["worker-1", "worker-2"]
    assert first.is_reaped


def test_workers_stay_where_a_new_one_fails_or_does_not_join(up: Up) -> None:
    up.go(wanted=SECOND)
    up.workers()["worker-2"].has_ended = True  # before it has served: it is not started again
    assert up.go() == ["worker-0"]
    assert up.watch.refused == [SECOND]
    assert up.said[-1] == "The executors stay as they were: not every worker of the new division has joined."
    assert up.go(wanted=SECOND) == ["worker-0", "worker-3", "worker-4"]
    up.go(DIVISION_JOINED_NS, joined={"worker-3"})
    assert up.go(1) == ["worker-0"]
    assert up.watch.refused == [SECOND, SECOND]
    assert up.workers()["worker-0"].signals == []


def test_a_worker_that_never_has_every_model_takes_its_place_in_the_end(up: Up) -> None:
    up.go(wanted=SECOND)
    up.go(DIVISION_WHOLE_NS, joined={"worker-1", "worker-2"})
    first = up.workers()["worker-0"]
    assert first.signals == []
    up.go(1)
    assert first.signals == [signal.SIGTERM]


def test_the_old_worker_is_started_again_while_the_new_ones_come(up: Up) -> None:
    up.go(wanted=SECOND)
    old = up.workers()["worker-0"]
    old.serves, old.has_ended = "worker-0 serves controller c as worker 1", True
    assert up.go() == ["worker-0", "worker-1", "worker-2"]
    assert up.workers()["worker-0"] is not old
    assert up.said[-1] == f"worker-0 was killed by signal {signal.SIGKILL.value}; it is started again."
