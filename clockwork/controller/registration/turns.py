"""The order of changes on disk: changes of a name come one after another, and hold once they are written.

So a reply follows the disk, and the state that a change was checked against still holds when it takes effect.
Pure: waiting tasks, and the consequences of a change that is being written, are values.
"""

from __future__ import annotations

import logging
from collections import deque

from clockwork.config.controller import CHANGES_WAITING_MAX
from clockwork.controller.effects import ClearTrouble, Effect, NoteTrouble, WriteChange
from clockwork.controller.registration.tasks import ClientTask, Following, Task
from clockwork.controller.troubles import TroubleKind
from clockwork.errors import ClockworkError, Unavailable
from clockwork.formats.durable import NotUndone

log = logging.getLogger("clockwork.controller")

DATA_DIRECTORY = "data directory"  # The subject under which failed writes are noted until one succeeds


class TaskQueues:
    """Queues of tasks by name. At most one task of a name is under way: its change is being written."""

    def __init__(self, effects: deque[Effect]) -> None:
        self._effects = effects
        self._waiting: dict[str, deque[Task]] = {}
        self._following: dict[
            str, Following | None
        ] = {}  # by name, the consequence of the change that is being written
        self._unsure: set[str] = set()

    def is_free(self, name: str) -> bool:
        """Whether no change of this name is being written."""
        return name not in self._following

    def wait(self, task: Task) -> None:
        """Queue a task for next(). Raises Unavailable where the queue is full."""
        waiting = self._waiting.setdefault(task.name, deque())
        if isinstance(task, ClientTask) and len(waiting) >= CHANGES_WAITING_MAX:
            raise Unavailable(
                f"{len(waiting)} changes of {task.name} wait to be written, which is the most; try again"
            )
        waiting.append(task)

    def next(self, name: str) -> Task | None:
        """The next task of a name, if its turn has come."""
        waiting = self._waiting.get(name)
        if not self.is_free(name) or waiting is None:
            return None
        if waiting:
            return waiting.popleft()
        del self._waiting[name]
        return None

    def write(self, job: WriteChange, following: Following | None) -> None:
        """Have a change written. following: returned by written() when the write has ended."""
        assert self.is_free(job.name), job.name
        self._following[job.name] = following
        self._effects.append(job)

    def written(
        self, name: str, error: BaseException | None
    ) -> tuple[Following | None, ClockworkError | None]:
        """Take the end of a write. Returns the change's consequence, and the error if the write failed."""
        self._unsure.discard(name)
        following = self._following.pop(name)
        if error is not None:
            return following, self._explain(name, error)
        self._effects.append(ClearTrouble(TroubleKind.STORAGE_FAILED, DATA_DIRECTORY))
        self._effects.append(ClearTrouble(TroubleKind.STORAGE_FAILED, name))
        return following, None

    def is_unsure(self, name: str) -> bool:
        """Whether the last change of a name failed and may be on disk all the same."""
        return name in self._unsure

    @property
    def is_any_unsure(self) -> bool:
        """Whether the change of some name failed and may be on disk all the same."""
        return bool(self._unsure)

    def drop(self, client: bytes, request_id: int | None = None) -> None:
        """Drop the waiting tasks of a client that is gone, or of one of its requests."""
        for name, waiting in self._waiting.items():
            self._waiting[name] = deque(
                task
                for task in waiting
                if not isinstance(task, ClientTask)
                or task.waiter.client != client
                or request_id not in (None, task.waiter.request_id)
            )

    def _explain(self, name: str, error: BaseException) -> ClockworkError:
        if not isinstance(error, OSError):
            log.error("a change of %s could not be written", name, exc_info=error)
            text = f"{type(error).__name__}: {error}"
        else:
            text = error.strerror or str(error)
        log.error("a change of %s could not be written to the data directory: %s", name, text)
        sentence = f"cannot be written to: {text}"
        self._effects.append(NoteTrouble(TroubleKind.STORAGE_FAILED, DATA_DIRECTORY, sentence))
        if isinstance(error, NotUndone):
            self._unsure.add(name)
            sentence = f"a change of {name} is on disk in part ({text}): a restart may find it"
            self._effects.append(NoteTrouble(TroubleKind.STORAGE_FAILED, name, sentence))
            return Unavailable(
                f"the change of {name} could not be written to the data directory, nor undone there ({text}): "
                f"{name} is as it was, but a restart of the controller may find it changed"
            )
        return Unavailable(
            f"{name} is as it was: its change could not be written to the data directory: {text}"
        )
