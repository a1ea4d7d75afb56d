from collections.abc import Mapping, Sequence

from clockwork.formats.prepared import TensorSpec
from clockwork.wire.optional import Default

FLAW_NAMES: tuple[str, ...]
HEADER_FLAW_NAMES: tuple[str, ...]
CUT_REASONS: tuple[str, ...]

class ModelInterface:
    """A model's inputs and outputs, as PreparedModel declares them; models of a program may share this."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batches: bool,
        verified: bool,
        lengths: Mapping[str, int] = {},
        defaults: Mapping[str, Default] = {},
    ) -> None: ...
