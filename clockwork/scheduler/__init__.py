"""The pure scheduler: events in, commands out. ``make_scheduler`` gives one by its policy's name."""

from __future__ import annotations

from clockwork.errors import ConfigError
from clockwork.scheduler.edf import EdfScheduler
from clockwork.scheduler.types import Scheduler

POLICIES = ("edf",)


def make_scheduler(policy: str = "edf") -> Scheduler:
    """A scheduler of the named policy. Raises ConfigError for a name that is none."""
    if policy == "edf":
        return EdfScheduler()
    raise ConfigError(f"no scheduling policy {policy!r} (there is {', '.join(POLICIES)})")
