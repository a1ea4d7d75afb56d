"""The pure scheduler: events in, commands out. ``make_scheduler`` gives one by its policy's name.

The policies are C++ (csrc/scheduler/), so that the simulator runs the same object without Python in between;
``_core`` puts the typed records of ``types`` around them. ``policy`` has what a policy in Python needs.
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
    """The options that a policy knows, one of POLICIES or ``module:Class``.

    Raises ConfigError, naming what there is, for one that does not exist.
    """
    if is_scripted(policy):
        return tuple(load_class(policy).OPTIONS)
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
    """A scheduler of the named policy, one of POLICIES or ``module:Class`` (see ``policy``).

    memory: whose rules for loading and eviction it uses, "" for its own. options: numbers that a policy lets one
    set, by name. Raises ConfigError, naming what there is, for a name that is none.
    """
    script = make_script(policy, options or {})
    try:
        return Core(policy, memory, options or {}, queued_requests_max, queued_bytes_max, script)
    except ValueError as error:
        raise ConfigError(str(error)) from None
