"""Settings of commands that the environment has."""

from __future__ import annotations

import os
from pathlib import Path

from clockwork.config import EVENTS_ENDPOINT, LOG_FORMAT_VARIABLE, WORKER_ENDPOINT, environment


def worker_endpoint() -> str:
    return environment("WORKER_ENDPOINT", WORKER_ENDPOINT)


def events_endpoint() -> str:
    return environment("EVENTS_ENDPOINT", EVENTS_ENDPOINT)


def operator_key_file() -> Path | None:
    """CLOCKWORK_OPERATOR_KEY: the file of an operator's key, with which a gateway loads and unloads models."""
    name = environment("OPERATOR_KEY", "")
    return Path(name).expanduser() if name else None


def allowed_hosts() -> tuple[str, ...]:
    """CLOCKWORK_ALLOWED_HOST: names under which a gateway may be asked, with commas between them."""
    return tuple(name.strip() for name in environment("ALLOWED_HOST", "").split(",") if name.strip())


def set_log_format(value: str) -> None:
    """Have this process and those that it starts log in one of LOG_FORMATS."""
    os.environ[LOG_FORMAT_VARIABLE] = value


def status_codes() -> str:
    """CLOCKWORK_STATUS_CODES: which statuses a gateway answers refusals with; "" for its default."""
    return environment("STATUS_CODES", "")


def allowed_file() -> Path | None:
    """CLOCKWORK_ALLOWED: the file with the keys that may connect to a controller."""
    name = environment("ALLOWED", "")
    return Path(name).expanduser() if name else None
