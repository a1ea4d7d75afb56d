"""Requests that were executing when a worker ended are tried again alone, and not for ever.

Under every policy.
"""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.config.controller import FAULT_WINDOW_NS, OVERRUNS_MAX
from clockwork.scheduler.types import (
    AnswerFailed,
    AnswerOk,
    Fault,
    ModelFault,
    ModelGone,
    SendInfer,
    SendLoad,
    SendProfile,
    SendUnload,
    WorkerLeft,
)
from clockwork.wire.messages import Status
from tests.unit.stories import MS, Story, spec

POLICIES = ("edf", "fifo", "paper", "deferred", "adaptive")
EAGER = ("edf", "fifo", "paper", "adaptive")
"""Policies that do not wait until the last moment, when a larger batch leaves no time for a single request.
"""

SLO_MS = 2000


class Play:
    """A story in which every LOAD and UNLOAD succeeds 4 ms after it was ordered; executions are the
    test's."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.infers: list[SendInfer] = []  # INFERs under way
        self.profiles: list[SendProfile] = []
        self.answers: dict[int, AnswerOk | AnswerFailed] = {}
        self.faults: list[ModelFault] = []
        self.gone: list[int] = []
        self.due: list[tuple[float, Any]] = []
        self.dead: set[int] = set()

    @property
    def ms(self) -> float:
        return self.story.now / MS - 1000

    def take(self, commands: list[Any]) -> None:
        for one in commands:
            if isinstance(one, SendInfer):
                assert one.worker not in self.dead
                for other in self.infers:
                    if (other.worker, other.device) == (one.worker, one.device):
                        assert not other.requests or other not in self.apart, "sent beside a suspect"
                self.infers.append(one)
            elif isinstance(one, SendProfile):
                self.profiles.append(one)
            elif isinstance(one, SendLoad | SendUnload):
                self.due.append((self.ms + 4, one))
            elif isinstance(one, AnswerOk | AnswerFailed):
                assert one.request_id not in self.answers, "answered twice"
                self.answers[one.request_id] = one
            elif isinstance(one, ModelFault):
                self.faults.append(one)
            elif isinstance(one, ModelGone):
                self.gone.append(one.model_id)

    apart: tuple[SendInfer, ...] = ()

    def ask(self, model: int = 1, slo_ms: float = SLO_MS, rows: int = 1) -> int:
        number, commands = self.story.request(model, slo_ms, rows=rows)
        self.take(commands)
        return number

    def pass_time(self, ms: float) -> None:
        """Let timers ring and loads end for so long."""
        end = self.ms + ms
        while True:
            upcoming = sorted([at for at, _ in self.due] + [self.story.wake / MS - 1000])
            if upcoming[0] > end:
                break
            self.story.at(max(upcoming[0], self.ms))
            ready = [one for one in self.due if one[0] <= self.ms]
            self.due = [one for one in self.due if one[0] > self.ms]
            for _, one in ready:
                if one.worker not in self.dead:
                    self.take(self.story.done(one, 4))
            if self.story.wake <= self.story.now:
                self.story.wake = 1 << 62
                self.take(self.story.tick())
        self.story.at(end)

    def flight_of(self, request: int, within_ms: float = 3000) -> SendInfer:
        """Return the action in which a request is under way, once it is."""
        for _ in range(round(within_ms)):
            for one in self.infers:
                if request in one.requests:
                    return one
            self.pass_time(1)
        raise AssertionError(f"request {request} was not sent; answers: {self.answers}")

    def turn_of(self, request: int) -> SendInfer:
        """Return the action in which a request is under way, once the actions before it have ended."""
        for _ in range(3000):
            for one in list(self.infers):
                if request in one.requests:
                    return one
                self.end(one)
            self.pass_time(1)
        raise AssertionError(f"request {request} was not sent; answers: {self.answers}")

    def end(self, flight: SendInfer, status: Status = Status.OK, text: str = "") -> None:
        self.infers.remove(flight)
        self.take(self.story.done(flight, 5, status, text))

    def kill(self, worker: int) -> None:
        self.dead.add(worker)
        self.infers = [one for one in self.infers if one.worker != worker]
        self.take(self.story(WorkerLeft(self.story.now, worker)))

    def finish(self) -> None:
        """End all executions, present and new, in order, with success."""
        for _ in range(400):
            self.pass_time(5)
            busy: set[tuple[int, int]] = set()
            for one in list(self.infers):
                if (one.worker, one.device) not in busy:
                    busy.add((one.worker, one.device))
                    self.end(one)
        assert not self.infers


def play(policy: str, workers: int = 4, models: int = 2, batch_max: int = 1) -> Play:
    specs = [spec(number, batch_max=batch_max) for number in range(1, models + 1)]
    return Play(Story(policy, *specs, workers=workers))


@pytest.mark.parametrize("policy", POLICIES)
def test_two_workers_killed_from_outside_lose_nothing(policy: str) -> None:
    """A request that both workers were executing is not blamed, either."""
    game = play(policy)
    unlucky = game.ask()
    for _ in range(2):
        flight = game.flight_of(unlucky)
        game.pass_time(1)
        game.kill(flight.worker)
    others = [game.ask(model) for model in (1, 2, 1, 2)]
    game.finish()
    assert all(isinstance(game.answers[one], AnswerOk) for one in (unlucky, *others))
    assert game.faults == []


@pytest.mark.parametrize("policy", POLICIES)
def test_the_third_worker_that_a_request_takes_with_it_is_the_last(policy: str) -> None:
    game = play(policy)
    killer = game.ask()
    waiting = game.ask(slo_ms=0)  # a request of the same model, without a deadline
    lost: list[int] = []
    for _ in range(3):
        flight = game.flight_of(killer)
        lost.append(flight.worker)
        game.pass_time(1)
        game.kill(flight.worker)
    assert len(set(lost)) == 3
    answer = game.answers[killer]
    assert isinstance(answer, AnswerFailed)
    assert answer.status is Status.EXECUTION_FAILED
    assert "workers ended while they executed" in answer.text
    assert [one for one in game.faults if one.set_aside] == [ModelFault(1, lost[-1], Fault.WORKER_LOST, True)]
    late = game.ask()
    assert isinstance(game.answers[late], AnswerFailed)
    other = game.ask(2)
    game.finish()
    assert isinstance(game.answers[other], AnswerOk), "another model is none the worse for it"
    assert game.answers[waiting].status is Status.UNAVAILABLE  # type: ignore[union-attr]
    assert "set aside" in game.answers[waiting].text  # type: ignore[union-attr]
    assert game.gone == [1]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_worker_that_says_that_it_crashed_is_believed_the_second_time(policy: str) -> None:
    game = play(policy)
    killer = game.ask()
    for number in range(2):
        flight = game.flight_of(killer)
        game.pass_time(1)
        game.end(flight, Status.CRASHED, "signal 11")
        game.pass_time(20)
        assert not [one for one in game.infers if one.worker == flight.worker], "nothing more goes there"
        game.kill(flight.worker)
        assert [one.fault for one in game.faults] == [Fault.CRASHED] * (number + 1)
    assert game.answers[killer].status is Status.EXECUTION_FAILED  # type: ignore[union-attr]
    assert [one.set_aside for one in game.faults] == [False, True]
    game.finish()
    assert len(game.dead) == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_a_crash_once_is_forgiven(policy: str) -> None:
    game = play(policy)
    one = game.ask()
    flight = game.flight_of(one)
    game.end(flight, Status.CRASHED, "signal 11")
    game.kill(flight.worker)
    game.finish()
    assert isinstance(game.answers[one], AnswerOk)
    assert [fault.set_aside for fault in game.faults] == [False]


@pytest.mark.parametrize("policy", POLICIES)
def test_crashes_count_although_their_requests_were_answered_at_their_deadlines(policy: str) -> None:
    """Each takes longer than its requests have, and then crashes: none is ever tried again."""
    game = play(policy)
    for _ in range(2):
        one = game.ask(slo_ms=50)
        flight = game.flight_of(one)
        game.pass_time(100)
        assert game.answers[one].status is Status.DEADLINE_MISSED  # type: ignore[union-attr]
        game.end(flight, Status.CRASHED, "signal 6")
        game.kill(flight.worker)
    assert [fault.set_aside for fault in game.faults] == [False, True]


@pytest.mark.parametrize("policy", EAGER)
def test_a_suspect_runs_by_itself_and_what_was_queued_behind_it_does_not(policy: str) -> None:
    game = play(policy, workers=2, models=1, batch_max=8)
    first = game.ask()
    flight = game.flight_of(first)
    queued = [game.ask() for _ in range(6)]
    game.pass_time(1)
    # an action sent ahead of its time, but not executing
    behind = [one for one in game.infers if one is not flight]
    game.kill(flight.worker)
    retried = game.turn_of(first)
    assert retried.requests == (first,)
    game.apart = (retried,)  # take() checks that nothing joins it
    alongside = [one for one in game.infers if one is not retried and one.worker == retried.worker]
    assert alongside == [], "sent while others were under way"
    game.pass_time(50)
    game.end(retried)
    game.apart = ()
    game.finish()
    assert all(isinstance(game.answers[one], AnswerOk) for one in (first, *queued))
    assert all(set(one.requests) <= set(queued) for one in behind)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_suspect_waits_until_nothing_else_is_under_way(policy: str) -> None:
    game = play(policy, workers=2, models=2)
    victim = game.ask(1)
    flight = game.flight_of(victim)
    other = 2 if flight.worker == 1 else 1
    busy = [game.ask(2) for _ in range(6)]
    for _ in range(20):  # until the other worker has executed some of the requests
        if any(one.worker == other for one in game.infers):
            break
        game.pass_time(1)
    game.kill(flight.worker)
    for _ in range(300):
        lanes = [one for one in game.infers if one.worker == other]
        if any(victim in one.requests for one in lanes):
            assert len(lanes) == 1
            break
        if lanes:
            game.end(lanes[0])
        game.pass_time(1)
    game.finish()
    assert all(isinstance(game.answers[one], AnswerOk) for one in (victim, *busy))


def test_a_suspect_goes_behind_what_is_planned() -> None:
    game = play("edf", workers=2, models=1)
    victim = game.ask(slo_ms=1000)
    flight = game.flight_of(victim)
    game.kill(flight.worker)
    later = [game.ask(slo_ms=1500) for _ in range(3)]
    order: list[int] = []
    while victim not in order:
        game.pass_time(1)
        for one in list(game.infers):
            order += one.requests
            game.end(one)
    assert order[0] == victim or set(order[:-1]) <= set(later)
    game.finish()
    assert all(isinstance(game.answers[one], AnswerOk) for one in (victim, *later))


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_without_a_deadline_are_suspects_like_others(policy: str) -> None:
    game = play(policy, models=1)
    killer = game.ask(slo_ms=0)
    for _ in range(3):
        flight = game.flight_of(killer)
        game.pass_time(1)
        game.kill(flight.worker)
    assert game.answers[killer].status is Status.EXECUTION_FAILED  # type: ignore[union-attr]
    assert len(game.dead) == 3


@pytest.mark.parametrize("policy", EAGER)
def test_of_a_batch_whose_worker_crashed_each_request_is_tried_by_itself(policy: str) -> None:
    game = play(policy, models=1, batch_max=8)
    plug = game.flight_of(game.ask())
    crowd = [game.ask() for _ in range(5)]
    game.end(plug)
    flight = max((game.flight_of(one) for one in crowd), key=lambda one: len(one.requests))
    game.pass_time(1)
    while game.infers[0] is not flight:
        game.end(game.infers[0])
    game.end(flight, Status.CRASHED, "signal 11")
    game.kill(flight.worker)
    while any(one not in game.answers for one in flight.requests):
        game.pass_time(1)
        for one in list(game.infers):
            assert len(one.requests) == 1 or not set(one.requests) & set(flight.requests)
            game.end(one)
    game.finish()
    assert all(isinstance(game.answers[one], AnswerOk) for one in crowd)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_that_overruns_is_noted_and_after_a_number_of_times_set_aside(policy: str) -> None:
    game = play(policy, workers=1, models=2)
    for number in range(1, OVERRUNS_MAX + 1):
        one = game.ask()
        game.end(game.flight_of(one), Status.OVERRUN, "longer than it may")
        answer = game.answers[one]
        assert isinstance(answer, AnswerFailed)
        assert (answer.status, answer.text) == (Status.EXECUTION_FAILED, "longer than it may")
        assert game.faults[-1] == ModelFault(1, 1, Fault.OVERRUN, number == OVERRUNS_MAX)
    fine = game.ask(2)
    game.finish()
    assert isinstance(game.answers[fine], AnswerOk)
    assert game.gone == [1]


def test_overruns_far_apart_are_not_held_against_a_model() -> None:
    game = play("edf", workers=1, models=1)
    for _ in range(3 * OVERRUNS_MAX):
        game.end(game.flight_of(game.ask()), Status.OVERRUN, "longer than it may")
        game.pass_time(FAULT_WINDOW_NS / MS / (OVERRUNS_MAX - 1) + 1)
    assert not any(one.set_aside for one in game.faults)


@pytest.mark.parametrize("policy", ["edf", "adaptive"])
def test_a_shape_that_is_tried_in_idle_time_and_overruns_is_only_noted(policy: str) -> None:
    game = play(policy, workers=1, models=1)
    profiles = 0
    for number in range(1, 2 * OVERRUNS_MAX):
        # a shape that was never measured
        _, commands = game.story.request(1, 5, shape=((3, 8, 8 * number + 1),))
        game.take(commands)
        for _ in range(200):
            game.pass_time(10)
            for one in game.profiles:
                profiles += 1
                game.take(game.story.done(one, 5, Status.OVERRUN, "longer than it may"))
            game.profiles.clear()
    assert profiles > OVERRUNS_MAX
    assert len(game.faults) == profiles
    assert not any(one.set_aside for one in game.faults)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_whose_load_ends_workers_is_set_aside(policy: str) -> None:
    story = Story(policy, spec(1), spec(2), workers=4, resident=False)
    game = Play(story)
    dead = 0
    for _ in range(10):
        one = game.ask(1, slo_ms=100_000)
        loads = [sent for _, sent in game.due if isinstance(sent, SendLoad) and sent.model_id == 1]
        if one in game.answers or not loads:
            break
        game.due = [due for due in game.due if due[1] is not loads[0]]
        game.kill(loads[0].worker)
        dead += 1
    assert dead == 3
    assert [fault.set_aside for fault in game.faults] == [True]
    fine = game.ask(2)
    game.finish()
    assert isinstance(game.answers[fine], AnswerOk)


@pytest.mark.parametrize(
    "policy", [one for one in POLICIES if one != "paper"]
)  # the memory loads where demand is, not where space is
def test_a_device_that_is_stuck_is_not_counted_on(policy: str) -> None:
    """An execution far beyond its prediction: others take what comes, and what cannot be in time is refused
    soon."""
    game = play(policy, workers=2, models=1)
    stuck = game.flight_of(game.ask(slo_ms=60_000))
    game.pass_time(3000)
    others = []
    for _ in range(10):
        others.append(game.ask(slo_ms=60))
        game.pass_time(20)
        for one in [flight for flight in game.infers if flight.worker != stuck.worker]:
            game.end(one)
    game.pass_time(100)
    served = [one for one in others if isinstance(game.answers.get(one), AnswerOk)]
    assert len(served) >= 8
    assert all(one in game.answers for one in others)
