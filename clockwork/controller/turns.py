"""Changes of what is on disk: those of one name come one after another, and hold only once they are written.

So a reply follows the disk, and whatever a change was checked against is still so when it takes effect.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from clockwork.config import CHANGES_WAITING_MAX
from clockwork.controller.catalog import Catalog
from clockwork.controller.records import Change
from clockwork.controller.storage import StorageThread
from clockwork.controller.troubles import TroubleKind
from clockwork.errors import ClockworkError, PolicyFailed, Unavailable
from clockwork.formats.durable import NotUndone

log = logging.getLogger("clockwork.controller")

DATA_DIRECTORY = "data directory"
"""The subject under which failed writes are noted until one succeeds."""


class Outside(Protocol):
    """What is needed of the controller's loop."""

    def fail(self, client: bytes, request_id: int, error: ClockworkError) -> None: ...

    def note_trouble(self, kind: TroubleKind, subject: str, text: str) -> None: ...

    def clear_trouble(self, kind: TroubleKind, subject: str) -> None: ...


@dataclasses.dataclass(slots=True)
class Turn:
    """A change that waits for those before it. client: b"" where nobody has asked for it."""

    client: bytes
    request_id: int
    begin: Callable[[], None]


class Turns:
    """Every method belongs to the loop's thread."""

    def __init__(self, outside: Outside, catalog: Catalog, storage: StorageThread) -> None:
        self._outside = outside
        self._catalog = catalog
        self._storage = storage
        # By name; a name is there while something of it is being written.
        self._waiting: dict[str, deque[Turn]] = {}
        self._unsure: set[str] = set()

    def take(self, name: str, begin: Callable[[], None], client: bytes = b"", request_id: int = 0) -> None:
        """Have begin() called once no change of this name is under way, which may be now; it may write() once.

        What it raises of ClockworkError is raised here, or sent to the client later. Raises Unavailable.
        """
        waiting = self._waiting.get(name)
        if waiting is None:
            begin()
        elif client and len(waiting) >= CHANGES_WAITING_MAX:
            raise Unavailable(
                f"{len(waiting)} changes of {name} wait to be written, which is the most; try again"
            )
        else:
            waiting.append(Turn(client, request_id, begin))

    def write(self, name: str, change: Change, then: Callable[[ClockworkError | None], None]) -> None:
        """Have the catalog changed; ``then`` is called with nothing once that is so, or with what is to be said."""
        assert name not in self._waiting, name
        self._waiting[name] = deque()
        job = functools.partial(self._catalog.change, change)
        self._storage.submit(job, functools.partial(self._written, name, then))

    def is_unsure(self, name: str) -> bool:
        """Whether the last change of a name failed and may be on disk all the same."""
        return name in self._unsure

    def drop(self, client: bytes, request_id: int | None = None) -> None:
        """Forget what waits for its turn on behalf of a client that is gone, or of one request of it."""
        for waiting in self._waiting.values():
            kept = [
                turn for turn in waiting if turn.client != client or request_id not in (None, turn.request_id)
            ]
            if len(kept) < len(waiting):
                waiting.clear()
                waiting.extend(kept)

    def _written(
        self,
        name: str,
        then: Callable[[ClockworkError | None], None],
        left: str | None,
        error: BaseException | None,
    ) -> None:
        waiting = self._waiting.pop(name)
        self._unsure.discard(name)
        try:
            if error is None:
                self._note_success(name, left)
                then(None)
            else:
                then(self._explain(name, error))
        finally:  # whatever became of this one, the next is another's
            self._go_on(name, waiting)

    def _note_success(self, name: str, left: str | None) -> None:
        self._outside.clear_trouble(TroubleKind.STORAGE_FAILED, DATA_DIRECTORY)
        self._outside.clear_trouble(TroubleKind.STORAGE_FAILED, name)
        if left:
            log.error("%s: %s; it goes when the controller starts again", name, left)
            self._outside.note_trouble(TroubleKind.STORAGE_FAILED, name, left)

    def _go_on(self, name: str, waiting: deque[Turn]) -> None:
        """Begin what waits, until something of it is being written."""
        while waiting and name not in self._waiting:
            turn = waiting.popleft()
            try:
                turn.begin()
            except ClockworkError as refusal:
                self._refuse(name, turn, refusal)
            except PolicyFailed:
                raise  # the scheduler is in the middle of something
            except Exception as defect:  # a defect of ours: it costs this order, and the next is another's
                log.error("an order about %s failed", name, exc_info=defect)
                self._refuse(
                    name, turn, Unavailable(f"the controller failed at this ({type(defect).__name__})")
                )
        if waiting:
            self._waiting[name].extendleft(reversed(waiting))

    def _refuse(self, name: str, turn: Turn, refusal: ClockworkError) -> None:
        if turn.client:
            self._outside.fail(turn.client, turn.request_id, refusal)
        else:
            log.error("%s: %s", name, refusal)

    def _explain(self, name: str, error: BaseException) -> ClockworkError:
        if not isinstance(error, OSError):
            log.error("a change of %s could not be written", name, exc_info=error)
            text = f"{type(error).__name__}: {error}"
        else:
            text = error.strerror or str(error)
        log.error("a change of %s could not be written to the data directory: %s", name, text)
        self._outside.note_trouble(
            TroubleKind.STORAGE_FAILED, DATA_DIRECTORY, f"cannot be written to: {text}"
        )
        if isinstance(error, NotUndone):
            self._unsure.add(name)
            sentence = f"a change of {name} is on disk in part ({text}): a restart may find it"
            self._outside.note_trouble(TroubleKind.STORAGE_FAILED, name, sentence)
            return Unavailable(
                f"the change of {name} could not be written to the data directory, nor undone there ({text}): "
                f"{name} is as it was, but a restart of the controller may find it changed"
            )
        return Unavailable(
            f"{name} is as it was: its change could not be written to the data directory: {text}"
        )
