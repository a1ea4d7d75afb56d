"""What the operating system lets this process have."""

from __future__ import annotations

import contextlib
import resource


def raise_descriptor_limit() -> int:
    """Let this process open as many files as the administrator allows; how many it may open from now on.

    The usual soft limit of 1024 is for programs that call select(). A controller holds a descriptor for every
    client and worker, and a worker one for every file that it maps.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # fs.nr_open is lower: what there is has to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
