"""Preparation processes, as many as there are jobs at once."""

from __future__ import annotations

from typing import Any

from clockwork.wire.messages import Status
from clockwork.worker.preparation import JobDone
from clockwork.worker.preparation_pool import PreparationPool


class Handle:
    """A process's handle that does as the test says."""

    made: list[Handle]

    def __init__(self) -> None:
        self.jobs: list[tuple[int, dict[str, Any]]] = []
        self.ended: list[JobDone] = []
        self.slow: list[int] = []
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

    def poll_slow(self) -> list[int]:
        found, self.slow = self.slow, []
        return found

    def cancel(self, job_id: int) -> None:
        self.cancelled.append(job_id)

    def close(self) -> None:
        self.closed += 1


class Side:
    def __init__(self) -> None:
        self.handles: list[Handle] = []
        self.preparations = PreparationPool(self._make)  # type: ignore[arg-type]

    def _make(self) -> Handle:
        self.handles.append(Handle())
        return self.handles[-1]


def test_a_process_serves_one_job_at_a_time() -> None:
    side = Side()
    for job_id in range(1, 6):
        side.preparations.submit(job_id, {"a": job_id})
        assert side.handles[0].jobs == [(job_id, {"a": job_id})]
        side.handles[0].end()
        assert [done.job_id for done in side.preparations.poll()] == [job_id]
    assert len(side.handles) == 1


def test_jobs_at_once_have_processes_of_their_own_which_are_used_again() -> None:
    side = Side()
    for job_id in (1, 2, 3):
        side.preparations.submit(job_id, {})
        assert side.handles[-1].jobs == [(job_id, {})]
    side.handles[1].end()
    assert [done.job_id for done in side.preparations.poll()] == [2]
    side.preparations.submit(9, {})
    assert side.handles[1].jobs == [(9, {})]
    assert len(side.handles) == 3
    side.handles[2].slow.append(3)
    assert side.preparations.poll_slow() == [3]


def test_a_job_is_cancelled_where_it_runs_and_all_are_closed() -> None:
    side = Side()
    side.preparations.submit(1, {})
    side.preparations.submit(2, {})
    side.preparations.cancel(2)
    side.preparations.cancel(3)
    assert [one.cancelled for one in side.handles] == [[], [2]]
    side.preparations.close()
    assert [one.closed for one in side.handles] == [1, 1]
