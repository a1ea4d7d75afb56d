"""Waiting for the lease, before a controller serves."""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable

from clockwork.config.controller import HOLDER_LOOK_S, POSTGRES_LOCK_S
from clockwork.controller.catalog.postgres import check_url, shown
from clockwork.controller.lease.keeper import LeaseKeeper, LeaseWon
from clockwork.controller.settings import ControllerSettings
from clockwork.controller.standing import Takeover
from clockwork.errors import ConfigError
from clockwork.system.clock import SECOND, now_ns
from clockwork.takeover.obedience import Leader
from clockwork.wire.telling import printable

log = logging.getLogger("clockwork.controller")


def named_leader(leader: Leader) -> str:
    """A controller, for people."""
    return printable(f"{leader.holder} at {', '.join(leader.addresses) or 'an unknown address'}", 300)


def begin_keeper(settings: ControllerSettings, takeover: Takeover | None) -> LeaseKeeper:
    """Begin to contend for the lease. takeover: see PostgresLease. Raises ConfigError."""
    check_url(settings.catalog)
    try:
        keeper = LeaseKeeper(settings.catalog, (settings.client_endpoint, settings.worker_endpoint), takeover)
    except OSError as error:
        raise ConfigError(
            f"the catalogue in {shown(settings.catalog)} cannot be used: {error.strerror}"
        ) from None
    keeper.start()
    return keeper


def await_lease(
    settings: ControllerSettings,
    keeper: LeaseKeeper,
    follow: Callable[[str], None],
    is_stopped: Callable[[], bool],
    wake_fd: int,
) -> LeaseWon | None:
    """Wait until this controller has the lease; None: it is to stop.

    follow: is told who is active, "" where that is not known, at every look.
    wake_fd: a descriptor that becomes readable when is_stopped() is to be asked. Raises ConfigError where
    another controller has the lease, and this one is no standby.
    """
    place, begun_ns = shown(settings.catalog), now_ns()
    if settings.standby:
        log.info("standby: serves once no other controller has the lease in %s", place)
    with selectors.DefaultSelector() as selector:
        selector.register(keeper.fileno(), selectors.EVENT_READ)
        selector.register(wake_fd, selectors.EVENT_READ)
        while not is_stopped():
            selector.select(HOLDER_LOOK_S)
            for news in keeper.news():
                if isinstance(news, LeaseWon):
                    took_s = (now_ns() - begun_ns) / SECOND
                    log.info("epoch %d in %s begins after %.1f s: active", news.leader.epoch, place, took_s)
                    return news
            leader = keeper.leader
            follow(named_leader(leader) if leader.holder else "")
            if not settings.standby and now_ns() - begun_ns >= POSTGRES_LOCK_S * SECOND:
                why = keeper.why_away or f"{named_leader(keeper.leader)} has the lease"
                raise ConfigError(
                    f"the catalogue in {place} is in use by another controller, or cannot be used: {why}; with --standby "
                    "this one waits"
                )
    return None
