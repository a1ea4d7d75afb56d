"""The pure scheduler: events in, commands out. ``make_scheduler`` makes it by its policy's name.

The policies are C++ (csrc/scheduler/), so that the simulator runs the same object without Python in between.
``_core`` wraps them in the typed records of ``types``. ``policy`` has the base class of policies in Python.
"""

from __future__ import annotations

from collections.abc import Mapping

from clockwork.config import POLICY, QUEUED_BYTES_MAX, QUEUED_REQUESTS_MAX
from clockwork.errors import ConfigError
from clockwork.scheduler import _core
from clockwork.scheduler._core import POLICIES, Core
from clockwork.scheduler.policy import is_scripted, load_class, make_script

__all__ = ["POLICIES", "known_options", "make_scheduler"]


def known_options(policy: str) -> tuple[str, ...]:
    """Return the names of a policy's options. policy: one of POLICIES or ``module:Class``.

    Raises ConfigError with all policies' names for an unknown policy.
    """
    if is_scripted(policy):
        return (*load_class(policy).OPTIONS, *_core.COMMON_OPTIONS)
    try:
        return _core.known_options(policy)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def make_scheduler(
    policy: str = POLICY,
    memory: str = "",
    options: Mapping[str, float] | None = None,
    queued_requests_max: int = QUEUED_REQUESTS_MAX,
    queued_bytes_max: int = QUEUED_BYTES_MAX,
) -> Core:
    """Return a scheduler of the named policy, one of POLICIES or ``module:Class`` (see ``policy``).

    memory: the policy whose rules for loading and eviction are used, "" for its own. options: the policy's
    options by name. Raises ConfigError with the known names for an unknown name.
    """
    script = make_script(policy, options or {})
    try:
        return Core(policy, memory, options or {}, queued_requests_max, queued_bytes_max, script)
    except ValueError as error:
        raise ConfigError(str(error)) from None
