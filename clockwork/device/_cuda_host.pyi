"""Types of where a CUDA device copies weights from, for checkers."""

class Link: ...

class HostPages:
    used_bytes: int
    def __init__(self, address: int, page_bytes: int, page_count: int) -> None: ...

class HostCopy:
    is_fetched: bool
    def __init__(
        self,
        page_bytes: list[int],
        path: bytes = b"",
        store: HostPages | None = None,
        address: int = 0,
        stride: int = 0,
    ) -> None: ...
    def abandon(self) -> None: ...
