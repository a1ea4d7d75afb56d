"""Replays a recording: from the same events a fresh scheduler must make the same orders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from clockwork.errors import ConfigError
from clockwork.observe.recorded import opened
from clockwork.scheduler import make_scheduler
from clockwork.scheduler.policy import is_scripted
from clockwork.scheduler.recording import Header, digest_of
from clockwork.scheduler.types import Command, Event

_IMPOSSIBLE = (ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError)
"""Errors of a scheduler at events that no controller sends: a worker without pages, a model without a
program."""


@dataclasses.dataclass(frozen=True, slots=True)
class Replayed:
    """The outcome of a replay. parted_at: index of the first step whose orders differ, or -1."""

    header: Header
    steps: int  # steps replayed, without those that describe the cluster at the begin of a dump
    events: int
    orders: int
    parted_at: int
    parted_events: Sequence[Event] = ()  # events of the step parted_at
    parted_orders: Sequence[Command] = ()  # orders of the replay in that step

    @property
    def identical(self) -> bool:
        return self.parted_at < 0


def header_of(path: Path) -> Header:
    """Return the header of a recording. Raises ConfigError unless the file is one."""
    with opened(path) as (header, _):
        return header


def names_code(header: Header) -> bool:
    """Return whether the recorded policy is a class in Python, which a replay and a simulation import and
    run."""
    return is_scripted(header.policy)


def replay(path: Path) -> Replayed:
    """Feed a recording to a fresh scheduler, up to the first step with other orders.

    A recording that begins after its controller's start holds the scheduler's state at its begin. Raises
    ConfigError unless the file can be replayed.
    """
    with opened(path) as (header, steps):
        scheduler = make_scheduler(header.policy, header.memory, header.options)
        if header.start:
            if not header.state:
                raise ConfigError(
                    f"{path}: it begins after its controller did, without the scheduler's state"
                )
            try:
                scheduler.restore(header.state)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
        # errors of a policy in Python are shown as they are, to its author
        impossible = () if names_code(header) else _IMPOSSIBLE
        step_count = event_count = order_count = 0
        for number, step in enumerate(steps):
            if number < header.cluster_steps:
                continue  # the restored state includes these steps
            try:
                orders = scheduler.step_many(step.events)
            except impossible as error:
                raise ConfigError(f"{path}: step {number} has an impossible event: {error}") from None
            if digest_of(orders) != digest_of(step.commands):
                return Replayed(header, step_count, event_count, order_count, step_count, step.events, orders)
            step_count += 1
            event_count += len(step.events)
            order_count += len(orders)
        return Replayed(header, step_count, event_count, order_count, -1)
