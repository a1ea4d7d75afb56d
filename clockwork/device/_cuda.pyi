"""Types of the native half, for checkers."""

from clockwork.device._cuda_host import HostLink
from clockwork.device._cuda_model import CompiledProgram
from clockwork.device._cudriver import CudaContext, DeviceBytes, DriverTable, PinnedBytes
from clockwork.device._orders import DeviceCore

class CudaCore(DeviceCore):
    fault_text: str
    writes_words: bool
    graph_count: int
    launch_ns: int
    def record_graph(self, program: CompiledProgram, has_room: bool) -> tuple[bool, int]: ...
    def drop_graphs(self, program: CompiledProgram) -> None: ...
    def look(self, text: str) -> bool: ...
    def refuse_host_tier(self) -> None: ...
    def __init__(
        self,
        table: DriverTable,
        context: CudaContext,
        arena: DeviceBytes,
        page_bytes: int,
        page_count: int,
        run_ahead: int,
        spin_ns: int,
        link: HostLink,
        words: PinnedBytes | None,
        load_piece_bytes: int,
    ) -> None: ...
    @staticmethod
    def words_bytes(run_ahead: int) -> int: ...
    def exchange_slot(
        self, size: int, host: PinnedBytes, device: DeviceBytes
    ) -> tuple[PinnedBytes | None, DeviceBytes | None] | None: ...
    def exchange_workspace(self, workspace: DeviceBytes) -> DeviceBytes | None: ...
