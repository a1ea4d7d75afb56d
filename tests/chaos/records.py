"""The records of the load, a line of JSON each: requests, and changes of models."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterator
from pathlib import Path


class Outcome(enum.StrEnum):
    """How a request or a change of a model ended, as the client was told."""

    OK = "ok"
    WRONG = "wrong"  # a success whose answer differs from ONNX Runtime's
    REFUSED = "refused"
    MISSED = "missed"
    UNAVAILABLE = "unavailable"
    LOST = "lost"  # the connection was lost
    FAILED = "failed"  # any other error that a client is told
    HUNG = "hung"  # the client's own timeout passed
    AGAIN = "again"  # an answer to a request that had ended before


@dataclasses.dataclass(slots=True, frozen=True)
class Request:
    client: str  # the kind of the client
    model: str
    start_ns: int
    end_ns: int
    outcome: Outcome
    slo_ns: int
    text: str = ""  # text of the error

    @property
    def roomy(self) -> bool:
        """Whether the deadline leaves time to notice a failure and to plan the request anew."""
        return self.slo_ns >= ROOMY_SLO_NS


@dataclasses.dataclass(slots=True, frozen=True)
class Change:
    """A registration, removal, unload or load of a model that comes and goes."""

    operation: str
    model: str
    start_ns: int
    end_ns: int
    outcome: Outcome
    text: str = ""


NO_SUCH_MODEL = "no such model"
"""The text of a change that was refused because its model is not registered."""

ROOMY_SLO_NS = 10_000_000_000
TIGHT_SLO_NS = 200_000_000


def to_line(record: Request | Change) -> str:
    body = dataclasses.asdict(record)
    return json.dumps([type(record).__name__, *body.values()], separators=(",", ":")) + "\n"


def read(path: Path) -> Iterator[Request | Change]:
    with open(path) as file:
        for line in file:
            kind, *values = json.loads(line)
            if kind == "Request":
                values[4] = Outcome(values[4])
                yield Request(*values)
            else:
                values[4] = Outcome(values[4])
                yield Change(*values)
