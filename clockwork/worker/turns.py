"""Decides which model is prepared next. Pure: the time is an argument.

A preparation takes a fraction of a second or minutes, and its time is unknown before it has run. First come,
first served fails when an owner registers models whose executions do not end: all other owners wait until the
limits of those. Therefore owners take turns, and a slow preparation gives way:

- Jobs that are not slow run one at a time, because two would disturb each other's measurements. Beside slow
  jobs the next begins at once, up to PREPARATIONS_MAX.
- A job is slow once it has run for PREPARATION_SLOW_NS, or one of its executions for PREPARATION_LONG_RUN_NS.
- Where slow jobs take all places and a job waits for its first turn, a slow job of the owner with the most is
  stopped. A stopped job begins anew when no job waits for its first turn, and is not stopped again. Jobs that
  begin anew have all places but one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from typing import NamedTuple

from clockwork.config.worker import PREPARATION_SLOW_NS, PREPARATIONS_MAX


class Turn(NamedTuple):
    """The start of a job. beside: the number of jobs that run already, all of them slow."""

    job_id: int
    beside: int
    is_anew: bool


@dataclasses.dataclass(slots=True)
class _Run:
    owner: int
    is_anew: bool
    since_ns: int
    is_slow: bool
    is_stopped: bool = False


class _Ring:
    """Waiting jobs. Owners take turns, the owner with the fewest running jobs first; each owner's jobs in
    order."""

    def __init__(self) -> None:
        self._jobs: dict[int, deque[int]] = {}  # jobs by owner, in the order of their turns

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def put(self, job_id: int, owner: int) -> None:
        self._jobs.setdefault(owner, deque()).append(job_id)

    def take(self, running: Counter[int]) -> tuple[int, int]:
        """Take the next job and its owner, who goes behind all others. running: number of jobs by owner."""
        owner = min(self._jobs, key=running.__getitem__)
        jobs = self._jobs.pop(owner)
        job_id = jobs.popleft()
        if jobs:
            self._jobs[owner] = jobs
        return job_id, owner

    def drop(self, job_id: int, owner: int) -> None:
        """Forget a job, if it waits here."""
        jobs = self._jobs.get(owner, deque())
        if job_id in jobs:
            jobs.remove(job_id)
            if not jobs:
                del self._jobs[owner]


class JobQueue:
    """Jobs by their ids, from put() to drop() or ended()."""

    def __init__(self) -> None:
        self._first = _Ring()
        self._anew = _Ring()  # jobs that were stopped
        self._running: dict[int, _Run] = {}

    def put(self, job_id: int, owner: int, *, is_anew: bool = False) -> None:
        """Queue a job. owner: the number of the user who registered the model. is_anew: the job was stopped
        before."""
        (self._anew if is_anew else self._first).put(job_id, owner)

    def drop(self, job_id: int, owner: int) -> None:
        """Remove a waiting job."""
        self._first.drop(job_id, owner)
        self._anew.drop(job_id, owner)

    def take(self, now_ns: int) -> Turn | None:
        """Take the job that begins now; None if no job may begin, or no job waits."""
        running = self._running.values()
        if len(running) >= PREPARATIONS_MAX or not all(self._is_slow(run, now_ns) for run in running):
            return None
        is_anew = not self._first
        if is_anew and (
            not self._anew or sum(run.is_anew for run in running) >= max(1, PREPARATIONS_MAX - 1)
        ):
            return None
        job_id, owner = (self._anew if is_anew else self._first).take(self._counts())
        beside = len(self._running)
        self._running[job_id] = _Run(owner, is_anew, now_ns, is_slow=is_anew)
        return Turn(job_id, beside, is_anew)

    def stop(self, now_ns: int) -> int:
        """Choose the job that is to be stopped now; 0 for none. Ids of jobs are positive."""
        running = self._running.values()
        if not self._first or len(running) < PREPARATIONS_MAX:
            return 0
        if any(run.is_stopped or not self._is_slow(run, now_ns) for run in running):
            return 0
        counts = self._counts()
        _, _, job_id = min(
            (-counts[run.owner], run.since_ns, job_id)
            for job_id, run in self._running.items()
            if not run.is_anew
        )
        self._running[job_id].is_stopped = True
        return job_id

    def found_slow(self, job_id: int) -> None:
        """Record that an execution of a job takes long. The job may have ended meanwhile."""
        if job_id in self._running:
            self._running[job_id].is_slow = True

    def ended(self, job_id: int) -> bool:
        """Record the end of a job. Returns whether stop() had chosen the job."""
        return self._running.pop(job_id).is_stopped

    def _counts(self) -> Counter[int]:
        """Return the number of running jobs by owner."""
        return Counter(run.owner for run in self._running.values())

    @staticmethod
    def _is_slow(run: _Run, now_ns: int) -> bool:
        return run.is_slow or now_ns - run.since_ns >= PREPARATION_SLOW_NS
