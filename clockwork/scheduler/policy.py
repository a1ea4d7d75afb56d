"""Scheduling policies in Python: subclass Policy, and give ``module:Class`` wherever a policy's name is
expected.

Like native policies, a policy in Python decides which requests may wait, when a queue wants a device and how
urgently, which batch a free device runs next, and which requests are dropped. The core handles retries,
loads, evictions and requests without a deadline. docs/policies/python.md has a table of all that a hook sees;
examples/fifo_policy.py is a complete policy.

A policy is pure: its decisions depend only on its options and the arguments of its hooks, so that the
simulator gives the same report for the same seed, and a recording can be replayed. It reads no clock, opens
no file and starts no thread.
"""

from __future__ import annotations

import abc
import importlib
import sys
from collections.abc import Mapping
from typing import ClassVar

from clockwork.errors import ConfigError
from clockwork.scheduler._policy import Batch, Device, Queue, Refusal, Request, Script
from clockwork.wire.messages import NEVER_NS

__all__ = ["NEVER_NS", "Batch", "Device", "Policy", "Queue", "Refusal", "Request", "is_scripted"]

MS = 1_000_000

_OPTIONAL_HOOKS = ("ready_ns", "hopeless_ns", "admit")


class Policy(abc.ABC):
    """The base of policies in Python. The arguments of a hook show queues, devices and times at ``now_ns``.

    A Queue or a Device raises an error if it is used after the hook has returned. An exception in a hook ends
    the simulation or the controller: PolicyFailed, with the exception as its cause.
    """

    OPTIONS: ClassVar[Mapping[str, float]] = {}
    """Names and defaults of the options that ``--option NAME=NUMBER`` sets. Values are from 0 to a
    million."""

    MEMORY: ClassVar[str] = "adaptive"
    """The policy whose rules load and evict models, "adaptive" or "paper"; ``--memory`` overrides it."""

    def __init__(self, options: Mapping[str, float]) -> None:
        """options: the values of OPTIONS."""
        self.options = dict(options)
        self.ahead_ns = 5 * MS
        """Lead of a batch before its device is planned to be free, in addition to the network delay."""
        self.presses_late = True
        """Whether a request that was sent after a quarter of its SLO makes another device load its model.

        False for a policy that delays requests on purpose.
        """

    @abc.abstractmethod
    def choose(self, now_ns: int, device: Device) -> Batch | None:
        """Return the next batch of a device that can take work. None: nothing now; the hook is called again
        once a queue is ready."""

    @abc.abstractmethod
    def rank_ns(self, now_ns: int, queue: Queue) -> int:
        """Return the urgency of a ready queue. Among queues of equal priority, first_ready() returns the
        queue with the lowest rank.

        Called when the queue's front has changed or the queue became ready. The value holds until the next
        call.
        """

    def ready_ns(self, now_ns: int, queue: Queue) -> int:
        """Return the time from which a non-empty queue wants a device.

        Called at each arrival while the queue is not ready, when its front has changed, and at the returned
        time.
        """
        return 0

    def hopeless_ns(self, now_ns: int, queue: Queue, request: Request) -> int:
        """Return the time at which the front of a queue is answered as missed if no device took it: at the
        latest its deadline.

        The time must not decrease from a request of a queue to the next.
        """
        return request.deadline_ns

    def admit(self, now_ns: int, queue: Queue, request: Request) -> Refusal | None:
        """Return a Refusal to refuse an arriving request at once, else None. The request is not in the queue
        yet."""
        return None


def is_scripted(policy: str) -> bool:
    """Return whether a policy's name is that of a Python class."""
    return ":" in policy


def load_class(name: str) -> type[Policy]:
    """Return the class that ``module:Class`` names. Modules are also searched in the current directory.

    Raises ConfigError with the argument if there is no such class, or if it is not a complete Policy.
    """
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise ConfigError(f"policy {name!r} is not MODULE:CLASS")
    if "" not in sys.path:
        sys.path.append("")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = "" if error.name and module_name.startswith(error.name) else f": it imports {error.name}"
        raise ConfigError(f"policy {name!r}: there is no module {module_name!r}{missing}") from error
    found = getattr(module, class_name, None)
    if found is None:
        raise ConfigError(f"policy {name!r}: module {module_name!r} has no {class_name!r}")
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ConfigError(
            f"policy {name!r}: {class_name} is not a subclass of clockwork.scheduler.policy.Policy"
        )
    if left := sorted(found.__abstractmethods__):
        raise ConfigError(f"policy {name!r}: {class_name} lacks {', '.join(left)}")
    return found


def make_script(name: str, options: Mapping[str, float]) -> Script | None:
    """Return a new policy object for the scheduler to call. None: the name is that of a native policy.

    Raises ConfigError. make_scheduler() refuses options that the class does not have.
    """
    if not is_scripted(name):
        return None
    found = load_class(name)
    policy = found({known: options.get(known, otherwise) for known, otherwise in found.OPTIONS.items()})
    overridden = {hook for hook in _OPTIONAL_HOOKS if getattr(found, hook) is not getattr(Policy, hook)}
    return Script(policy, name, found.MEMORY, found.OPTIONS, policy.presses_late, policy.ahead_ns, overridden)
