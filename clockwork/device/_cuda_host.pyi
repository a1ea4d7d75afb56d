"""Types of the host store's native half, for checkers."""

from clockwork.device._cudriver import PinnedBytes

class HostLink: ...

class HostPages:
    used_bytes: int
    def __init__(self, memory: PinnedBytes, page_bytes: int, page_count: int) -> None: ...

class WeightsCopy:
    is_fetched: bool
    is_fixed: bool
    def __init__(
        self, page_bytes: list[int], path: bytes, store: HostPages, is_fixed: bool = False
    ) -> None: ...
    def read(self) -> None: ...
    def abandon(self) -> None: ...
