"""The models of a peer's server as its benchmark wrote them down: PEER_MANIFEST names the file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A model: its file, and the input of its requests."""

    path: str
    input: str
    shape: tuple[int, ...]
    weights_bytes: int
    is_optimised: bool


def read() -> dict[str, Entry]:
    """The models by name."""
    found = json.loads(Path(os.environ["PEER_MANIFEST"]).read_text())
    return {name: Entry(**{**fields, "shape": tuple(fields["shape"])}) for name, fields in found.items()}
