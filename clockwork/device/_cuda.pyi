"""Types of the native half, for checkers."""

from clockwork.device._cuda_host import Link
from clockwork.device._cudriver import Table
from clockwork.device._orders import Orders

class Core(Orders):
    fault_text: str
    def look(self, text: str) -> bool: ...
    def __init__(
        self,
        table: Table,
        context: int,
        arena: int,
        page_bytes: int,
        page_count: int,
        run_ahead: int,
        spin_ns: int,
        link: Link,
    ) -> None: ...
    def exchange_slot(self, size: int, host: int, device: int) -> tuple[int, int] | None: ...
    def exchange_workspace(self, workspace: int) -> int: ...
