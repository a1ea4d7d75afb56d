"""A pool of preparation processes, so that no slow model delays the next; worker.turns schedules it."""

from __future__ import annotations

from collections.abc import Callable

from clockwork.worker.preparation import Job, JobDone, PreparationProcess


class PreparationPool:
    """A pool of preparation processes. Every method belongs to the loop's thread."""

    def __init__(self, make: Callable[[], PreparationProcess]) -> None:
        """make: creates a process's handle, which starts the process with its first job."""
        self._make = make
        self._all: list[PreparationProcess] = []
        self._jobs: dict[int, PreparationProcess] = {}  # processes of jobs that are under way

    def submit(self, job_id: int, job: Job) -> None:
        """Begin a job; poll() returns its end. job_id: positive, unique."""
        busy = set(map(id, self._jobs.values()))
        process = next((candidate for candidate in self._all if id(candidate) not in busy), None)
        if process is None:
            process = self._make()
            self._all.append(process)
        process.submit(job_id, job)
        self._jobs[job_id] = process

    def poll(self) -> list[JobDone]:
        """Return the jobs that ended since the last call."""
        ended = [done for process in self._all for done in process.poll()]
        for done in ended:
            del self._jobs[done.job_id]
        return ended

    def poll_slow(self) -> list[int]:
        """Return the jobs of which an execution was found slow since the last call. A job may have ended."""
        return [job_id for process in self._all for job_id in process.poll_slow()]

    def cancel(self, job_id: int) -> None:
        """Kill a job's process; the job then ends as INTERNAL. A job that has ended is ignored."""
        if job_id in self._jobs:
            self._jobs[job_id].cancel(job_id)

    def close(self) -> None:
        """Kill all processes, busy or not, and wait for their ends. Idempotent."""
        for process in self._all:
            process.close()
