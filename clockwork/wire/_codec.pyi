from collections.abc import Mapping, Sequence
from typing import Any

class Odd(ValueError): ...
class OddKind(Odd): ...

class Layout:
    def __init__(
        self,
        kind: type,
        fields: Mapping[str, Any],
        bytes_max: int,
        defaults: Sequence[Any] = (),
        further_max: int = 0,
    ) -> None: ...

def read(header: Any, layouts: Mapping[int, Layout]) -> Any: ...
def complaint(
    header: Any, layout: Layout, kind: str, count: int, path: tuple[int, ...], offset: int
) -> str: ...
