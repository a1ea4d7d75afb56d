"""The lease under which a controller serves, and what its peers say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from clockwork.takeover.obedience import NO_LEADER, Leader


class HeldLease:
    """A lease; NO_LEADER: this controller needs none, as nobody else can be active.

    hear: told of a leader of a later epoch, whom a worker has named.
    """

    def __init__(self, leader: Leader = NO_LEADER, hear: Callable[[Leader], None] | None = None) -> None:
        self._leader = leader
        self._hear = hear

    @property
    def row(self) -> Sequence[Any]:
        """The lease as it stands in a welcome; see messages.LeaseRow."""
        return [self._leader.epoch, self._leader.holder, self._leader.cluster]

    def is_over(self, lease: Sequence[Any], *, is_worker: bool) -> bool:
        """Whether a peer that greets obeys a later epoch, and so is not to be let in.

        A client's word is not passed on: one of a thousand could otherwise end the active.
        """
        epoch, holder, cluster = lease
        if not self._leader.epoch or cluster != self._leader.cluster or epoch <= self._leader.epoch:
            return False
        if is_worker and self._hear is not None:
            self._hear(Leader(epoch, holder, (), cluster))
        return True
