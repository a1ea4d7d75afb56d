from typing import Any

import zmq

DIRECT: bool
MISSING: list[str]

def functions() -> int:
    """The address of a clockwork_zmq_api (csrc/zmq_api.h). Raises OSError, naming what this libzmq does not show."""

class Probe:
    def __init__(self, socket: zmq.Socket[Any]) -> None: ...
    def readable(self) -> bool: ...
    def more(self) -> bool: ...
    def forget(self) -> None: ...
