"""The compiled parts that a client uses, or their stand-ins in Python where clockwork-client is installed alone.

Only the absence of the extensions leads to the stand-ins: one that is there and cannot be loaded is an error. Whatever is
not a client needs other extensions, and ends with their ImportError.
"""

from __future__ import annotations

try:
    from clockwork.system._wait import DescriptorPoller
    from clockwork.wire._codec import Layout, Odd, read
    from clockwork.wire._zmq import Probe
except ModuleNotFoundError:
    from clockwork.system._plain_wait import DescriptorPoller  # type: ignore[assignment]
    from clockwork.wire._plain_codec import Layout, Odd, read  # type: ignore[assignment]
    from clockwork.wire._plain_zmq import Probe  # type: ignore[assignment]

    COMPILED = False
else:
    COMPILED = True

__all__ = ["COMPILED", "DescriptorPoller", "Layout", "Odd", "Probe", "read"]
