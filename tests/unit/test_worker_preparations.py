"""Preparations side by side: only past those that take long, and only so many."""

from __future__ import annotations

from typing import Any

from clockwork.config import PREPARATION_SLOW_NS, PREPARATIONS_MAX
from clockwork.wire.messages import Status
from clockwork.worker.preparation import JobDone
from clockwork.worker.preparations import Preparations


class Handle:
    """A process's handle that does as the test says."""

    made: list[Handle]

    def __init__(self) -> None:
        self.jobs: list[tuple[int, dict[str, Any]]] = []
        self.ended: list[JobDone] = []
        self.cancelled: list[int] = []
        self.closed = 0

    def submit(self, job_id: int, job: dict[str, Any]) -> None:
        assert not self.jobs, "a second job on one process"
        self.jobs.append((job_id, job))

    def end(self) -> None:
        self.ended.append(JobDone(self.jobs.pop()[0], Status.OK, ""))

    def poll(self) -> list[JobDone]:
        ended, self.ended = self.ended, []
        return ended

    def cancel(self, job_id: int) -> None:
        self.cancelled.append(job_id)

    def close(self) -> None:
        self.closed += 1


class Side:
    def __init__(self) -> None:
        self.now = -5 * PREPARATION_SLOW_NS  # as after a boot
        self.handles: list[Handle] = []
        self.preparations = Preparations(self._make, lambda: self.now)  # type: ignore[arg-type]

    def _make(self) -> Handle:
        self.handles.append(Handle())
        return self.handles[-1]


def test_one_at_a_time_while_each_ends_soon() -> None:
    side = Side()
    for job_id in range(1, 6):
        assert side.preparations.may_take()
        side.preparations.submit(job_id, {})
        side.now += PREPARATION_SLOW_NS - 1
        assert not side.preparations.may_take()
        side.handles[0].end()
        assert [done.job_id for done in side.preparations.poll()] == [job_id]
    assert len(side.handles) == 1


def test_slow_ones_are_passed_up_to_a_bound() -> None:
    side = Side()
    for job_id in range(1, PREPARATIONS_MAX + 1):
        assert side.preparations.may_take()
        side.preparations.submit(job_id, {"a": job_id})
        assert side.handles[-1].jobs == [(job_id, {"a": job_id, "beside": job_id - 1})]
        assert not side.preparations.may_take(), "the newest is not slow yet"
        side.now += PREPARATION_SLOW_NS
    assert not side.preparations.may_take(), "so many is the most"
    assert len(side.handles) == PREPARATIONS_MAX
    side.handles[1].end()
    assert [done.job_id for done in side.preparations.poll()] == [2]
    assert side.preparations.may_take()
    side.preparations.submit(9, {})
    assert side.handles[1].jobs[0][0] == 9
    assert len(side.handles) == PREPARATIONS_MAX


def test_a_job_is_cancelled_where_it_runs_and_all_are_closed() -> None:
    side = Side()
    side.preparations.submit(1, {})
    side.now += PREPARATION_SLOW_NS
    side.preparations.submit(2, {})
    side.preparations.cancel(2)
    side.preparations.cancel(3)
    assert [one.cancelled for one in side.handles] == [[], [2]]
    side.preparations.close()
    assert [one.closed for one in side.handles] == [1, 1]
