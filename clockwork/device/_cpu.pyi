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
        executor_count: int,
        cpu_time: bool,
        output_bytes_most: int,
    ) -> None: ...
    def grow_slots(self, size: int) -> None: ...
    def workspace_peak_bytes(self, executor: int) -> int: ...
