"""Opens the road of a worker's actions (csrc/worker/road.h), with the bounds of clockwork.config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clockwork import config
from clockwork.config import ACTIONS_QUEUED_MAX, COPY_PIECE_BYTES, EXECUTION_GRACE_NS, FRAMES_MAX
from clockwork.config.system import COPIES_CLOSE_S, COPIES_MAX, COPY_THREADS, OWNER_COPIES_MAX
from clockwork.config.wire import COPY_BYTES
from clockwork.config.worker import (
    CHECK_LIMIT_NS,
    EXECUTION_LIMIT_FACTOR,
    EXECUTION_LIMIT_NS,
    JITTER_WINDOW,
    LOAD_LIMIT_FACTOR,
    NOTICE_BYTES_MAX,
    OWNER_SNAPSHOT_BYTES_MAX,
    ROOM_WAIT_BYTE_NS,
    ROOM_WAIT_NS,
    SNAPSHOT_BYTES_MAX,
    SNAPSHOT_IDLE_NS,
    WATCH_GAP_MAX_NS,
    WATCH_INTERVAL_NS,
    WORKER_MESSAGES_PER_TURN,
    load_limit_ns,
)
from clockwork.device.base import Device
from clockwork.system.clock import SECOND
from clockwork.wire import codec
from clockwork.wire.messages import Phase, Result, Status
from clockwork.wire.transport import Dealer, socket_functions
from clockwork.worker._road import Road

RESERVATION = "reservation"
"""The watched operation of a RESERVE, during which the worker itself uses the device; see Road::watch()."""


NO_PHASE: Phase = [0, 0, 0]


class FatalOutcome(NamedTuple):
    """The outcome of the action because of which all others are cancelled."""

    action_id: int
    status: Status
    text: str


def refusal(action_id: int, status: Status, text: str, received_ns: int) -> bytes:
    """Build the result of an action that did not reach its device. received_ns: in worker time."""
    return codec.encode(Result(action_id, status, text, received_ns, NO_PHASE, NO_PHASE, NO_PHASE, []))


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
        lending={
            "snapshot_bytes": SNAPSHOT_BYTES_MAX,
            "owner_snapshot_bytes": OWNER_SNAPSHOT_BYTES_MAX,
            "snapshot_idle_ns": SNAPSHOT_IDLE_NS,
            "copy_threads": COPY_THREADS,
            "copies": COPIES_MAX,
            "owner_copies": OWNER_COPIES_MAX,
            "copy_piece_bytes": COPY_PIECE_BYTES,
            "copies_close_ns": round(COPIES_CLOSE_S * SECOND),
            "room_wait_ns": ROOM_WAIT_NS,
            "room_wait_byte_ns": ROOM_WAIT_BYTE_NS,
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
