"""What a worker is told when it starts."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

from clockwork import config


def default_name() -> str:
    """``host-pid``: unique among the workers of one cluster, and readable."""
    return f"{socket.gethostname()}-{os.getpid()}"


@dataclasses.dataclass(slots=True)
class WorkerSettings:
    endpoint: str = config.WORKER_ENDPOINT
    name: str = dataclasses.field(default_factory=default_name)
    devices: tuple[str, ...] = ("cpu",)  # all of one kind
    device_count: int = 1  # how often to have each of them
    arena_bytes: int = 0  # of each device; 0: what is usual for its kind
    page_bytes: int = 0  # likewise
    emulate: tuple[str, ...] = ()  # settings of emulated devices, name=value; see device.emulated
    threads: int = 1  # of each CPU device's execution
    run_ahead: int = config.RUN_AHEAD
    store: Path = dataclasses.field(default_factory=config.data_directory)
    lock_store: bool = False  # keep the laid-out weights of every model in RAM
    key: Path | None = None  # a peer.key file; none: no encryption
    clock_offset_ns: int = 0  # how far this worker's clock is off, and how fast it drifts: for tests
    clock_drift_ppm: float = 0.0
