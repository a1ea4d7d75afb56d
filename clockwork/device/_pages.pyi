"""Types of the native memory, for checkers."""

class Program:
    input_count: int
    output_count: int
    def __init__(self, arena: Arena, path: str) -> None: ...

class Model:
    model_id: int
    packed_bytes: int
    def __init__(
        self,
        model_id: int,
        program: Program | None,
        dtypes: list[int],
        runs: list[int],
        weights: list[tuple[int, tuple[int, ...], int, int, int]],
        packed_path: str | None,
        packed_bytes: int,
    ) -> None: ...
    def map_weights(self, path: str, size: int, copy: bool) -> int: ...
    def lock_file(self, path: str, size: int) -> int: ...

class Arena:
    page_bytes: int
    page_count: int
    def __init__(
        self,
        arena_bytes: int,
        page_bytes: int,
        threads: int,
        run_ahead: int,
        slot_bytes_most: int,
        *lanes: int,
    ) -> None: ...
    def add_model(self, model: Model) -> None: ...
    def has_model(self, model_id: int) -> bool: ...
    def remove_model(self, model_id: int) -> None: ...
    def grow_slots(self, size: int) -> None: ...
    def memory(self) -> dict[str, int]: ...
