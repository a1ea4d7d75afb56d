"""Settings of commands from environment variables."""

from __future__ import annotations

import os
from pathlib import Path

from clockwork.config import EVENTS_ENDPOINT, LOG_FORMAT_VARIABLE, WORKER_ENDPOINT, environment


def worker_endpoint() -> str:
    return environment("WORKER_ENDPOINT", WORKER_ENDPOINT)


def events_endpoint() -> str:
    return environment("EVENTS_ENDPOINT", EVENTS_ENDPOINT)


def operator_key_file() -> Path | None:
    """CLOCKWORK_OPERATOR_KEY: file of an operator's key, for loads and unloads by a gateway."""
    name = environment("OPERATOR_KEY", "")
    return Path(name).expanduser() if name else None


def allowed_hosts() -> tuple[str, ...]:
    """CLOCKWORK_ALLOWED_HOST: accepted host names of a gateway, with commas between them."""
    return tuple(name.strip() for name in environment("ALLOWED_HOST", "").split(",") if name.strip())


def set_log_format(value: str) -> None:
    """Make this process and its child processes log in one of LOG_FORMATS."""
    os.environ[LOG_FORMAT_VARIABLE] = value


def status_codes() -> str:
    """CLOCKWORK_STATUS_CODES: choice of a gateway's statuses for refusals; "": the default."""
    return environment("STATUS_CODES", "")


def allowed_file() -> Path | None:
    """CLOCKWORK_ALLOWED: the file with the keys that may connect to a controller."""
    name = environment("ALLOWED", "")
    return Path(name).expanduser() if name else None
