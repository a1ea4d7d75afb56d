"""Opens the road of a worker's actions (csrc/worker/road.h), with the bounds of clockwork.config."""

from __future__ import annotations

from collections.abc import Sequence

from clockwork import config
from clockwork.config import ACTIONS_QUEUED_MAX, EXECUTION_GRACE_NS, FRAMES_MAX
from clockwork.config.wire import COPY_BYTES
from clockwork.config.worker import (
    CHECK_LIMIT_NS,
    EXECUTION_LIMIT_FACTOR,
    EXECUTION_LIMIT_NS,
    JITTER_WINDOW,
    LOAD_LIMIT_FACTOR,
    NOTICE_BYTES_MAX,
    WATCH_GAP_MAX_NS,
    WATCH_INTERVAL_NS,
    WORKER_MESSAGES_PER_TURN,
    load_limit_ns,
)
from clockwork.device.base import Device
from clockwork.wire.transport import Dealer, socket_functions
from clockwork.worker._road import Road

RESERVATION = "reservation"
"""The watched operation of a RESERVE, during which the worker itself uses the device; see Road::watch()."""


def open_road(dealer: Dealer, devices: Sequence[Device], clock: tuple[int, int, int]) -> Road:
    """Open a road from a socket, which it owns from start() to stop(), to devices. clock:
    WorkerClock.settings."""
    road = Road(
        socket_functions(),
        *dealer.addresses(),
        dealer.filenos,
        clock,
        limits={
            "execution_ns": EXECUTION_LIMIT_NS,
            "execution_factor": EXECUTION_LIMIT_FACTOR,
            "grace_ns": EXECUTION_GRACE_NS,
            "load_ns": load_limit_ns(),
            "load_factor": LOAD_LIMIT_FACTOR,
            "reservation_ns": config.preparation_run_ns(),
            "check_ns": CHECK_LIMIT_NS,
            "gap_ns": WATCH_GAP_MAX_NS,
            "interval_ns": WATCH_INTERVAL_NS,
        },
        messages_per_turn=WORKER_MESSAGES_PER_TURN,
        frames_per_message=FRAMES_MAX,
        queued_actions=ACTIONS_QUEUED_MAX,
        notice_bytes=NOTICE_BYTES_MAX,
        copied_frame_bytes=COPY_BYTES,
        jitter_window=JITTER_WINDOW,
    )
    for device in devices:
        road.add_device(device.port(), device.info.run_ahead)
    for source in dict.fromkeys(device.group or device for device in devices):
        road.add_outlet(source.outlet())
    return road
