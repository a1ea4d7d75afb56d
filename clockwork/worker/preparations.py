"""Several preparation processes, so that a slow model does not hold up the next. worker.turns decides what runs."""

from __future__ import annotations

from collections.abc import Callable

from clockwork.worker.preparation import Job, JobDone, PreparationProcess


class Preparations:
    """A pool of preparation processes. Every method belongs to the loop's thread."""

    def __init__(self, make: Callable[[], PreparationProcess]) -> None:
        """make: returns a new handle, which starts its process with its first job."""
        self._make = make
        self._all: list[PreparationProcess] = []
        self._jobs: dict[int, PreparationProcess] = {}  # under way

    def submit(self, job_id: int, job: Job) -> None:
        """Begin a job. Its end comes from poll(). job_id: positive, unique."""
        busy = set(map(id, self._jobs.values()))
        process = next((candidate for candidate in self._all if id(candidate) not in busy), None)
        if process is None:
            process = self._make()
            self._all.append(process)
        process.submit(job_id, job)
        self._jobs[job_id] = process

    def poll(self) -> list[JobDone]:
        """Jobs that ended since the last call."""
        ended = [done for process in self._all for done in process.poll()]
        for done in ended:
            del self._jobs[done.job_id]
        return ended

    def poll_slow(self) -> list[int]:
        """Jobs of which an execution was found to take long since the last call; they may have ended."""
        return [job_id for process in self._all for job_id in process.poll_slow()]

    def cancel(self, job_id: int) -> None:
        """Kill a job's process; the job then ends as INTERNAL. Does nothing where it has ended already."""
        if job_id in self._jobs:
            self._jobs[job_id].cancel(job_id)

    def close(self) -> None:
        """Kill all processes whatever they do, and wait for them. Idempotent."""
        for process in self._all:
            process.close()
