"""The pure scheduler: events in, commands out. ``make_scheduler`` gives one by its policy's name.

The policies are C++ (csrc/scheduler/), so that the simulator runs the same object without Python in between;
``_core`` puts the typed records of ``types`` around them.
"""

from __future__ import annotations

from collections.abc import Mapping

from clockwork.config import POLICY, QUEUED_BYTES_MAX, QUEUED_REQUESTS_MAX
from clockwork.errors import ConfigError
from clockwork.scheduler._core import POLICIES, Core, known_options

__all__ = ["POLICIES", "known_options", "make_scheduler"]


def make_scheduler(
    policy: str = POLICY,
    memory: str = "",
    options: Mapping[str, float] | None = None,
    queued_requests_max: int = QUEUED_REQUESTS_MAX,
    queued_bytes_max: int = QUEUED_BYTES_MAX,
) -> Core:
    """A scheduler of the named policy, one of POLICIES.

    memory: whose rules for loading and eviction it uses, "" for its own. options: numbers that a policy lets one
    set, by name. Raises ConfigError, naming what there is, for a name that is none.
    """
    try:
        return Core(policy, memory, options or {}, queued_requests_max, queued_bytes_max)
    except ValueError as error:
        raise ConfigError(str(error)) from None
