"""Types of the native half, for checkers."""

from clockwork.device._pages import PagedCore

class CpuCore(PagedCore):
    def __init__(
        self,
        arena_bytes: int,
        page_bytes: int,
        threads: int,
        run_ahead: int,
        slot_bytes_most: int,
        spin_ns: int,
        spare_ns: int,
        cpu_time: bool,
        output_bytes_most: int,
    ) -> None: ...
    @property
    def workspace_peak_bytes(self) -> int: ...
