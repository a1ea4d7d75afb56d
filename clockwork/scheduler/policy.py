"""A scheduling policy in Python: subclass Policy, and name the class as ``module:Class`` wherever a policy is named.

Like native policies, it decides which requests may wait, when a queue wants a device and how urgently, which batch a free
device runs next, and which requests are given up. Retries, loads, evictions and requests without a deadline are handled
for it. docs/policies/python.md has a table of everything that a hook sees; examples/fifo_policy.py is a complete policy.

A policy is pure: its decisions depend on its options and the arguments of its hooks alone, so that the simulator gives the
same report for the same seed and a recording can be replayed. It reads no clock, opens no file and starts no thread.
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
    """The base of policies in Python. The queues, devices and times of a hook's arguments are as of ``now_ns``.

    A Queue or a Device is invalid once the hook has returned, and raises if it is used. An exception in a hook ends the
    simulation or the controller: PolicyFailed, with the exception as its cause.
    """

    OPTIONS: ClassVar[Mapping[str, float]] = {}
    """Names and defaults of the options that ``--option NAME=NUMBER`` sets: numbers from 0 to a million."""

    MEMORY: ClassVar[str] = "adaptive"
    """The policy whose rules load and evict models, "adaptive" or "paper"; ``--memory`` overrides it."""

    def __init__(self, options: Mapping[str, float]) -> None:
        """options: the values of OPTIONS."""
        self.options = dict(options)
        self.ahead_ns = 5 * MS
        """Time before a device is planned to be free at which its next batch is sent, beyond the network delay."""
        self.presses_late = True
        """Whether a request that was sent after a quarter of its SLO is a reason for another device to load its model. False
        for a policy that delays requests on purpose."""

    @abc.abstractmethod
    def choose(self, now_ns: int, device: Device) -> Batch | None:
        """The next batch of a device that can take work. None: nothing now; a queue that becomes ready asks anew."""

    @abc.abstractmethod
    def rank_ns(self, now_ns: int, queue: Queue) -> int:
        """The urgency of a ready queue: among queues of the same priority, first_ready() returns the lowest.

        Called when the queue's front has changed or the queue became ready; the value holds until the next such call.
        """

    def ready_ns(self, now_ns: int, queue: Queue) -> int:
        """The time from which a queue, which is not empty, wants a device.

        Called at each arrival while the queue is not ready, when its front has changed, and at the returned time.
        """
        return 0

    def hopeless_ns(self, now_ns: int, queue: Queue, request: Request) -> int:
        """The time at which the front of a queue is answered as missed if no device took it: at the latest its deadline.

        It must not decrease from one request of a queue to the next.
        """
        return request.deadline_ns

    def admit(self, now_ns: int, queue: Queue, request: Request) -> Refusal | None:
        """A Refusal if an arriving request is refused at once, else None. It is not in the queue yet, which may be empty."""
        return None


def is_scripted(policy: str) -> bool:
    """Whether the name of a policy is that of a Python class."""
    return ":" in policy


def load_class(name: str) -> type[Policy]:
    """The class that ``module:Class`` names; modules are also searched for in the current directory.

    Raises ConfigError, naming the argument, if there is no such class or it is not a complete Policy.
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
    """A new policy object for the scheduler to call; None for the name of a native policy.

    Raises ConfigError. make_scheduler() refuses options that the class does not have.
    """
    if not is_scripted(name):
        return None
    found = load_class(name)
    policy = found({known: options.get(known, otherwise) for known, otherwise in found.OPTIONS.items()})
    overridden = {hook for hook in _OPTIONAL_HOOKS if getattr(found, hook) is not getattr(Policy, hook)}
    return Script(policy, name, found.MEMORY, found.OPTIONS, policy.presses_late, policy.ahead_ns, overridden)
