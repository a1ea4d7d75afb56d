from collections.abc import Sequence

WAIT_FDS_MAX: int

class DescriptorPoller:
    def __init__(self, fds: Sequence[int]) -> None: ...
    def wait(self, timeout_ns: int) -> bool: ...
