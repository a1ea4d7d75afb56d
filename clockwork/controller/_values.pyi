from collections.abc import Mapping, Sequence

from clockwork.formats.prepared import TensorSpec
from clockwork.wire.optional import Default

FLAW_NAMES: tuple[str, ...]
HEADER_FLAW_NAMES: tuple[str, ...]
CUT_REASONS: tuple[str, ...]

class Interface:
    """What a model takes and gives, as PreparedModel declares it; models of one program may share one."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batches: bool,
        verified: bool,
        lengths: Mapping[str, int] = {},
        defaults: Mapping[str, Default] = {},
    ) -> None: ...
