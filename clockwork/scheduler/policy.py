"""A scheduling policy in Python: subclass Policy, and name the class as ``module:Class`` wherever a policy is named.

It brings the decisions that native policies bring: who may wait, when a queue wants a device and how urgently, what a free
device runs next, who is given up. All else, retries, loads and evictions, requests without a deadline, is done for it.
docs/policies.md has a table of all that a hook sees; examples/fifo_policy.py is a complete policy.

A policy is pure: what it decides follows from its options and what its hooks are given, so that the simulator gives the same
report for the same seed and a recording can be replayed. It reads no clock, opens no file and starts no thread.
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
    """The base of policies in Python. Queues, devices and times that a hook is given are as of ``now_ns``.

    A Queue or a Device means nothing once the hook has returned, and says so. An exception in a hook ends the simulation or
    the controller: PolicyFailed, with the exception as its cause.
    """

    OPTIONS: ClassVar[Mapping[str, float]] = {}
    """Names and defaults of what ``--option NAME=NUMBER`` may set: numbers from 0 to a million."""

    MEMORY: ClassVar[str] = "adaptive"
    """Whose rules load and evict models, "adaptive" or "paper"; ``--memory`` overrides it."""

    def __init__(self, options: Mapping[str, float]) -> None:
        """options: those of OPTIONS, as they were set."""
        self.options = dict(options)
        self.ahead_ns = 5 * MS
        """How long before a device is planned to be free it is sent its next batch, beyond the way there."""
        self.presses_late = True
        """Whether a request that was sent after a quarter of its SLO calls for another device to load its model. False for
        a policy that has requests wait on purpose."""

    @abc.abstractmethod
    def choose(self, now_ns: int, device: Device) -> Batch | None:
        """What a device that can take work runs next. None: nothing now; a queue that becomes ready asks anew."""

    @abc.abstractmethod
    def rank_ns(self, now_ns: int, queue: Queue) -> int:
        """The urgency of a ready queue: of those of one priority, first_ready() gives the lowest.

        It is asked when the queue's front changed or it became ready, and holds until then.
        """

    def ready_ns(self, now_ns: int, queue: Queue) -> int:
        """From when on a queue, which is not empty, wants a device.

        It is asked at each arrival while the queue is not ready, when its front changed, and at the time that it said.
        """
        return 0

    def hopeless_ns(self, now_ns: int, queue: Queue, request: Request) -> int:
        """When the front of a queue is answered as missed if no device took it, which its deadline is the latest time for.

        It must not decrease from one request of a queue to the next.
        """
        return request.deadline_ns

    def admit(self, now_ns: int, queue: Queue, request: Request) -> Refusal | None:
        """Whether a request that arrives is refused at once. It is not in the queue yet, which may be empty."""
        return None


def is_scripted(policy: str) -> bool:
    """Whether the name of a policy is that of a class."""
    return ":" in policy


def load_class(name: str) -> type[Policy]:
    """The class that ``module:Class`` names; modules are also looked for in the current directory.

    Raises ConfigError, naming what was given, if there is none or it is not a complete Policy.
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
    """A new object of the class that a policy's name names, for the scheduler to call; None for a native policy.

    Raises ConfigError. Options that the class does not have are left to make_scheduler() to refuse.
    """
    if not is_scripted(name):
        return None
    found = load_class(name)
    policy = found({known: options.get(known, otherwise) for known, otherwise in found.OPTIONS.items()})
    overridden = {hook for hook in _OPTIONAL_HOOKS if getattr(found, hook) is not getattr(Policy, hook)}
    return Script(policy, name, found.MEMORY, found.OPTIONS, policy.presses_late, policy.ahead_ns, overridden)
