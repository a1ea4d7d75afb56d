"""Types of the native memory, for checkers."""

from clockwork.device._orders import DeviceCore, KnownModel

class SessionProgram:
    input_count: int
    output_count: int
    def __init__(self, arena: PagedCore, path: str, libraries: tuple[str, ...]) -> None: ...

class PagedModel(KnownModel):
    packed_bytes: int
    def __init__(
        self,
        model_id: int,
        program: SessionProgram | None,
        dtypes: list[int],
        runs: list[int],
        weights: list[tuple[int, tuple[int, ...], int, int, int]],
        packed_path: str | None,
        packed_bytes: int,
        workspace_bytes: int,
        output_count: int,
        lengths: tuple[int, list[list[int]], list[list[int]]] | None = None,
        rowless_shapes: list[tuple[int | str, ...] | None] | None = None,
    ) -> None: ...
    def map_weights(self, path: str, size: int, copy: bool) -> int: ...
    def lock_file(self, path: str, size: int) -> int: ...

class PagedCore(DeviceCore):
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
        *lanes: int,
    ) -> None: ...
    def open_with(self, model: PagedModel, libraries: tuple[str, ...]) -> None: ...
    def keep_memory(self) -> None: ...
