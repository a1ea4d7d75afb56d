"""Types of where a CUDA device copies weights from, for checkers."""

from clockwork.device._cudriver import PinnedBytes

class Link: ...

class HostPages:
    used_bytes: int
    def __init__(self, memory: PinnedBytes, page_bytes: int, page_count: int) -> None: ...

class HostCopy:
    is_fetched: bool
    def __init__(
        self,
        page_bytes: list[int],
        path: bytes = b"",
        store: HostPages | None = None,
        memory: PinnedBytes | None = None,
        stride: int = 0,
    ) -> None: ...
    def abandon(self) -> None: ...
