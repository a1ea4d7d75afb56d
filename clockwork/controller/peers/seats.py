"""The number of peers that the controller has descriptors for. Pure: the limit comes in."""

from __future__ import annotations

from typing import NamedTuple

from clockwork.config import CLIENTS_MAX, SUBSCRIBERS_MAX, WORKERS_MAX
from clockwork.config.controller import DESCRIPTORS_KEPT, DESCRIPTORS_LEAST, UNGREETED_MAX
from clockwork.errors import ConfigError


class SeatCounts(NamedTuple):
    """The most connections of each kind. Together they leave DESCRIPTORS_KEPT for everything else."""

    clients: int
    clients_ungreeted: int
    workers: int
    workers_ungreeted: int
    subscribers: int


def divide(limit: int, used: int) -> SeatCounts:
    """Seats for a process that may open ``limit`` descriptors and has ``used`` open.

    Workers have seats of their own, however many clients there are: without workers no request is served.
    Raises ConfigError where the descriptors are too few.
    """
    left = limit - used - DESCRIPTORS_KEPT
    if left < DESCRIPTORS_LEAST:
        raise ConfigError(
            f"this controller may open {limit} files and sockets, of which {used} are in use, and keeps {DESCRIPTORS_KEPT} "
            f"for files: {max(left, 0)} are left for connections, and it needs {DESCRIPTORS_LEAST} (raise ulimit -n)"
        )
    workers, workers_ungreeted = min(WORKERS_MAX, left // 8), min(UNGREETED_MAX, left // 16)
    subscribers = min(SUBSCRIBERS_MAX, left // 8)
    clients_ungreeted = min(UNGREETED_MAX, left // 4)
    clients = left - workers - workers_ungreeted - subscribers - clients_ungreeted
    return SeatCounts(min(CLIENTS_MAX, clients), clients_ungreeted, workers, workers_ungreeted, subscribers)
