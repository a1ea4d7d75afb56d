"""The thread that receives for idle channels, which no other thread uses at the moment.

libzmq also receives for an idle channel, without a bound on bytes. Taking in messages and Dealer.look() bound
the bytes. A single thread does so for all channels of a process, while there are any.
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


class IdleChannel(Protocol):
    """A channel that may be idle."""

    def turn_if_idle(self) -> None: ...


_lock = threading.Lock()
_idle: weakref.WeakSet[IdleChannel] = weakref.WeakSet()
_thread: threading.Thread | None = None


def attend(channel: IdleChannel) -> None:
    """Call turn_if_idle() of a channel periodically, until the channel is dismissed or garbage.

    Where no thread can be started, turn_if_idle() is not called, and an idle channel's received bytes have no
    bound.
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
                log.warning("messages for idle clients are not received: %s", error)


def dismiss(channel: IdleChannel) -> None:
    """End the calls that attend() began."""
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
        del found[:]  # drop the reference, so that an unused channel can be collected
        channel = None  # type: ignore[assignment]


def _after_fork() -> None:
    """Reset the state in a forked child, which has neither the thread nor the parent's channels."""
    global _lock, _idle, _thread
    _lock, _idle, _thread = threading.Lock(), weakref.WeakSet(), None


if hasattr(os, "register_at_fork"):  # only on systems with fork()
    os.register_at_fork(after_in_child=_after_fork)
