"""Several preparation processes, so that a slow model does not hold up the next.

Jobs run one at a time as long as each ends soon: two would disturb each other's measurements. Once a job has run for a
while, the next starts beside it, in a process of its own, up to a bound.
"""

from __future__ import annotations

from collections.abc import Callable

from clockwork.config import PREPARATION_SLOW_NS, PREPARATIONS_MAX
from clockwork.system.clock import now_ns
from clockwork.worker.preparation import Job, JobDone, PreparationProcess


class Preparations:
    """A pool of preparation processes. Every method belongs to the loop's thread."""

    def __init__(self, make: Callable[[], PreparationProcess], clock: Callable[[], int] = now_ns) -> None:
        """make: returns a new handle, which starts its process with its first job."""
        self._make = make
        self._clock = clock
        self._all: list[PreparationProcess] = []
        self._jobs: dict[int, tuple[PreparationProcess, int]] = {}  # under way: process, and start time

    def may_take(self) -> bool:
        """Whether a job would begin at once: none is under way, or each has been for long."""
        if len(self._jobs) >= PREPARATIONS_MAX:
            return False
        slow_ns = self._clock() - PREPARATION_SLOW_NS
        return all(since_ns <= slow_ns for _, since_ns in self._jobs.values())

    def submit(self, job_id: int, job: Job) -> None:
        """Begin a job, where may_take(). Its end comes from poll(). job_id: positive, unique."""
        busy = {id(process) for process, _ in self._jobs.values()}
        process = next((candidate for candidate in self._all if id(candidate) not in busy), None)
        if process is None:
            process = self._make()
            self._all.append(process)
        process.submit(job_id, job | {"beside": len(self._jobs)})
        self._jobs[job_id] = process, self._clock()

    def poll(self) -> list[JobDone]:
        """Jobs that ended since the last call."""
        ended = [done for process in self._all for done in process.poll()]
        for done in ended:
            del self._jobs[done.job_id]
        return ended

    def cancel(self, job_id: int) -> None:
        """Kill a job's process; the job then ends as INTERNAL. Does nothing where it has ended already."""
        if job_id in self._jobs:
            self._jobs[job_id][0].cancel(job_id)

    def close(self) -> None:
        """Kill all processes whatever they do, and wait for them. Idempotent."""
        for process in self._all:
            process.close()
