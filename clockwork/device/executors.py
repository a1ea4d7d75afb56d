"""The executors of a CPU's arena: how many there may be."""

from __future__ import annotations

from clockwork import config
from clockwork.errors import ConfigError


def check_executors(executors: int, threads: int) -> None:
    """Check the number of executors of an arena, each of so many threads. Raises ConfigError.

    Executors share sessions, and the executions of a session share its threads if there are more than one. So
    an execution would take longer while another executor runs the same program.
    """
    if not 1 <= executors <= config.EXECUTORS_MAX:
        raise ConfigError(f"a CPU device has 1 to {config.EXECUTORS_MAX} executors, not {executors}")
    if executors > 1 and threads > 1:
        raise ConfigError(
            f"{executors} executors of {threads} threads: executors of one device have one thread each"
        )
