"""A controller's settings, as its command line gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from clockwork import config
from clockwork.config import controller as bounds
from clockwork.config.observe import TELEMETRY_BYTES
from clockwork.config.recorder import RECORDER_BYTES, RECORDER_BYTES_LEAST
from clockwork.errors import ConfigError
from clockwork.scheduler import known_options, make_scheduler


@dataclasses.dataclass(slots=True)
class ControllerSettings:
    client_endpoint: str = config.CLIENT_ENDPOINT
    worker_endpoint: str = config.WORKER_ENDPOINT
    events_endpoint: str = config.EVENTS_ENDPOINT
    data: Path = dataclasses.field(default_factory=config.data_directory)
    catalog: str = ""  # URL of the catalogue in PostgreSQL; "": it is in data
    standby: bool = False  # wait while another controller uses `data`, and serve once it has ended
    packages: str = ""  # where packages are kept: a directory or the URL of an object store; "": below data
    package_cache: int = bounds.PACKAGE_CACHE_BYTES  # bytes of the copies of packages in an object store
    policy: str = config.POLICY
    memory: str = ""  # the memory policy, whose rules load and evict; "": the policy's own
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)  # options of the policy, by name
    key: Path | None = None  # a controller.key file; none: no encryption, loopback only
    allowed: Path | None = None  # the list of keys that are let in; none: allowed.keys beside `key`
    insecure: bool = False  # listen beyond loopback without keys
    threads_max: int = (
        0  # most threads of an execution for which a launcher starts workers; 0: it starts none
    )
    await_models: Sequence[str] = ()  # names of models that must be registered before the cluster is ready
    record: Path | None = None  # file for the recording of the scheduler's events
    record_bytes_max: int = bounds.RECORD_BYTES_MAX
    recorder_bytes: int = RECORDER_BYTES  # size of the flight recorder's ring; 0: the recorder is off
    telemetry: Path | None = None  # folder for rows of every request and action
    telemetry_bytes_max: int = TELEMETRY_BYTES
    client_bounds: bounds.ConnectionBounds = bounds.CLIENT_CONNECTIONS
    worker_bounds: bounds.ConnectionBounds = bounds.WORKER_CONNECTIONS


def check_recorder(recorder_bytes: int, record: Path | None, telemetry: Path | None) -> None:
    """Raises ConfigError for a ring that is too small, or that is off although files are written from it."""
    for name, path in (("--record", record), ("--telemetry", telemetry)):
        if recorder_bytes == 0 and path is not None:
            raise ConfigError(f"{name} needs the flight recorder: leave --recorder-bytes 0 out")
    if 0 < recorder_bytes < RECORDER_BYTES_LEAST:
        raise ConfigError(
            f"--recorder-bytes {recorder_bytes} is too small: 0 (none), or at least {RECORDER_BYTES_LEAST >> 10} KiB"
        )


def check_policy(policy: str, save_devices: bool, host_bytes: int = 0) -> None:
    """Raises ConfigError for a policy that does not support the other flags, before anything has started."""
    options = known_options(policy)
    if save_devices and "save_devices" not in options:
        raise ConfigError(
            f"policy {policy} cannot keep few devices busy: --save-devices needs --policy adaptive"
        )
    if host_bytes and not make_scheduler(policy).plans_fetches:
        raise ConfigError(
            f"policy {policy} cannot plan for a host store with a budget: --host-bytes needs --policy adaptive, "
            "deferred, fifo or paper"
        )
