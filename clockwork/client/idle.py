"""The thread that receives for channels which no thread uses at the moment.

libzmq receives for an idle channel all the same, without a bound in bytes; taking messages in and Dealer.look() bound
it. One thread does so for all channels of a process, while there are any.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import Protocol

from clockwork.config import INFLOW_LOOK_NS
from clockwork.system.clock import SECOND

log = logging.getLogger("clockwork.client")


class Idle(Protocol):
    """A channel that may be idle."""

    def turn_if_idle(self) -> None: ...


_lock = threading.Lock()
_idle: weakref.WeakSet[Idle] = weakref.WeakSet()
_thread: threading.Thread | None = None


def attend(channel: Idle) -> None:
    """Have turn_if_idle() of a channel called now and then, until it is dismissed or garbage.

    Where the system has no thread to give, it is not called: an idle channel is then without a bound.
    """
    global _thread
    with _lock:
        _idle.add(channel)
        if _thread is None:
            _thread = threading.Thread(target=_attend, name="clockwork-idle", daemon=True)
            try:
                _thread.start()
            except RuntimeError as error:
                _thread = None
                log.warning("what comes for idle clients is not looked at: %s", error)


def dismiss(channel: Idle) -> None:
    """End what attend() began."""
    with _lock:
        _idle.discard(channel)


def _attend() -> None:
    global _thread
    while True:
        time.sleep(INFLOW_LOOK_NS / SECOND)
        with _lock:
            found = list(_idle)
            if not found:
                _thread = None
                return
        for channel in found:
            channel.turn_if_idle()
        del found[:]  # else a channel that nobody else refers to would live on
        channel = None  # type: ignore[assignment]


def _after_fork() -> None:
    """The child has neither the thread nor the parent's channels."""
    global _lock, _idle, _thread
    _lock, _idle, _thread = threading.Lock(), weakref.WeakSet(), None


if hasattr(os, "register_at_fork"):  # where there is fork()
    os.register_at_fork(after_in_child=_after_fork)
