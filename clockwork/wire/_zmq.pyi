from typing import Any

import zmq

DIRECT: bool
MISSING: list[str]

class Functions:
    """A clockwork_zmq_api (csrc/zmq_api.h). Raises OSError, naming functions that libzmq does not export."""

    address: int

class Probe:
    def __init__(self, socket: zmq.Socket[Any]) -> None: ...
    def readable(self) -> bool: ...
    def more(self) -> bool: ...
    def forget(self) -> None: ...
