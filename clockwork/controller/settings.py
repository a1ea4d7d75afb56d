"""What a controller is told when it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from clockwork import config


@dataclasses.dataclass(slots=True)
class ControllerSettings:
    client_endpoint: str = config.CLIENT_ENDPOINT
    worker_endpoint: str = config.WORKER_ENDPOINT
    events_endpoint: str = config.EVENTS_ENDPOINT
    data: Path = dataclasses.field(default_factory=config.data_directory)
    policy: str = config.POLICY
    memory: str = ""  # whose rules load and evict; "": the policy's own
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of the policy, by name
    key: Path | None = None  # a controller.key file; none: no encryption, loopback only
    insecure: bool = False  # listen beyond loopback without keys
    record: Path | None = None  # where to write down what the scheduler is told
    record_bytes_max: int = config.RECORD_BYTES_MAX
