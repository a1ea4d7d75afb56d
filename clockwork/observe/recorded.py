"""Reads histories from recordings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from clockwork.config.observe import TRACE_REQUESTS_MAX
from clockwork.errors import ConfigError
from clockwork.observe.history import History
from clockwork.scheduler.recording import Header, Step, decode
from clockwork.scheduler.types import NEVER_NS


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[Header, Iterator[Step]]]:
    """Open a recording; return its header and an iterator of its steps. Raises ConfigError unless the file is
    a readable recording."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        try:
            header, steps = decode(file)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        yield header, _named(path, steps)


def _named(path: Path, steps: Iterator[Step]) -> Iterator[Step]:
    """Yield the steps, with the file's name added to their errors."""
    try:
        yield from steps
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_history(path: Path, from_ns: int = 0, span_ns: int = NEVER_NS) -> tuple[Header, History]:
    """Return a recording's header, and its history until ``from_ns + span_ns`` after the first event.

    The history keeps entries from ``from_ns`` on, and at most the newest TRACE_REQUESTS_MAX requests. Raises
    ConfigError unless the file is a recording that reaches beyond ``from_ns``.
    """
    with opened(path) as (header, steps):
        history = History(span_ns, TRACE_REQUESTS_MAX, TRACE_REQUESTS_MAX)
        for number, step in enumerate(steps):
            if number == header.cluster_steps:
                for held in header.held:
                    history.hold(*held)
            if history.begun_ns and step.events[0].now_ns - history.begun_ns > from_ns + span_ns:
                break
            history.apply(step)
    if not history.steps:
        raise ConfigError(f"{path} is a recording without a step")
    if history.now_ns - history.begun_ns < from_ns:
        lasts = (history.now_ns - history.begun_ns) / 1e9
        raise ConfigError(f"{path} lasts {lasts:g} s, so nothing of it is after {from_ns / 1e9:g} s")
    return header, history
