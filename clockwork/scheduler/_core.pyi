from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clockwork.scheduler._policy import Script
from clockwork.scheduler.types import Command, Event, ProfilePoint, ShapeKey

ATTEMPTS_MAX: int
BATCH_TABLE_MAX: int
BOUND_RATIO_MAX: float
NEVER_NS: int
POLICIES: tuple[str, ...]
PROFILE_ATTEMPTS_MAX: int
PROFILE_IDLE_NS: int
QUEUED_BYTES_MAX: int
QUEUED_REQUESTS_MAX: int
SCHEDULE_AHEAD_NS: int
SHAPES_KNOWN_MAX: int
SHAPES_MAX: int
TEXTS: tuple[str, ...]

def known_options(policy: str) -> tuple[str, ...]:
    """The options that a policy knows. Raise ValueError, naming what there is, for one that does not exist."""

class Driven: ...

class Core(Driven):
    """One policy behind the interface of ``types.Scheduler``. Not thread safe."""

    def __init__(
        self,
        policy: str,
        memory: str,
        values: Mapping[str, float],
        queued_requests_max: int,
        queued_bytes_max: int,
        script: Script | None = None,
    ) -> None:
        """script: of a policy in Python, which ``policy`` is then the name of.

        Raise ValueError, naming what there is, for a policy or an option that does not exist.
        """

    def step(self, event: Event) -> list[Command]: ...
    def step_many(self, events: Iterable[Event]) -> list[Command]: ...
    def save(self, bytes_max: int) -> bytes | None:
        """The whole state between steps, for restore(). None if that is of more bytes, or partly a policy's in Python."""

    def restore(self, state: bytes) -> None:
        """Go on from what save() gave of a scheduler with the same options; only for one that was told nothing yet.

        Raise ConfigError for anything else; then this can no longer be used.
        """

    def predictions(self) -> dict[str, Any]: ...
    def prediction_errors(self, bounds_ns: Iterable[int]) -> dict[str, dict[str, dict[str, Any]]]:
        """What predictions missed by, as histograms: by what was predicted, then "over" or "under"."""

    def snapshot(self) -> dict[str, Any]: ...
    def devices(self) -> list[dict[str, Any]]: ...
    def whereabouts(self, model_id: int) -> list[tuple[int, int, str]]: ...
    def held(self) -> bytes:
        """Worker, device, model and load, as numbers of eight bytes each, of every model that is on a device."""

    def hosts(self, model_id: int) -> list[int]:
        """The workers whose host stores have the model."""

    def expected_ns(self, model_id: int, profile: Sequence[ProfilePoint]) -> list[int]: ...
    def noise(self) -> dict[str, float]: ...
    def policy_status(self, now_ns: int) -> dict[str, float]:
        """See types.Scheduler."""

    def devices_wanted(self, now_ns: int) -> float:
        """How many devices today's load needs; see csrc/scheduler/demand.h. It looks at every model."""

    def check_invariants(self) -> None: ...
    @property
    def plans_fetches(self) -> bool:
        """Whether it can serve workers whose host store has a budget."""

    def note(self, event: Event) -> None:
        """Take an event; the orders that it gives wait in ``out``, and settling is the caller's."""

    def order(self, place: int) -> Command:
        """One of the orders in ``out``, as a record."""

    def orders(self) -> list[Command]:
        """All of them."""

    def end_orders(self) -> None:
        """All that is in ``out`` has been carried out: forget it, and the names of models that are gone."""

    def shape_number(self, shape: ShapeKey) -> int:
        """The number by which the core knows a shape, until forget_shapes() has said that it forgot some."""

    def shape_of(self, number: int) -> ShapeKey:
        """The inverse."""

    def forget_shapes(self) -> bool:
        """Between steps: take back numbers that nothing in the core names. True if it looked for some."""

    @property
    def known_counts(self) -> tuple[int, int, int]:
        """How many shapes, programs and models have a number or a name here."""

def with_margin(ns: int) -> int: ...

class PageAllocator:
    """Which pages of an arena are free; see csrc/scheduler/pages.h."""

    def __init__(self, page_count: int) -> None: ...
    def copy(self) -> PageAllocator: ...
    @property
    def page_count(self) -> int: ...
    @property
    def free_count(self) -> int: ...
    def fits(self, runs: Sequence[int]) -> bool: ...
    def allocate(self, runs: Sequence[int]) -> tuple[int, ...] | None: ...
    def free(self, starts: Sequence[int], runs: Sequence[int]) -> None: ...
    def take(self, starts: Sequence[int], runs: Sequence[int]) -> None: ...
    def intervals(self) -> list[tuple[int, int]]: ...
    def check_invariants(self) -> None: ...

class Curve:
    """Execution time over batch size; see csrc/scheduler/estimates.h."""

    def seed(self, batch: int, ns: int) -> None: ...
    def exec_ns(self, batch: int) -> int: ...
    def planned_ns(self, batch: int) -> int: ...
    def measure(self, batch: int, ns: int, now: int | None = None) -> bool: ...
    def forget_stale(self, now: int) -> bool: ...

class ProgramEstimates:
    """The curves of one program on one device kind, by shape."""

    def seed(self, points: Iterable[ProfilePoint]) -> None: ...
    def is_profiled(self, shape: ShapeKey) -> bool: ...
    def bound_ns(self, shape: ShapeKey, batch: int) -> int: ...
    def measure(self, shape: ShapeKey, batch: int, ns: int) -> bool: ...
    def curve(self, shape: ShapeKey) -> Curve: ...

class LoadEstimates:
    """Load times of one device kind."""

    def load_ns(self, model_id: int, seed_ns: int, page_count: int) -> int: ...
    def measure(self, model_id: int, seed_ns: int, page_count: int, ns: int) -> None: ...
    def forget(self, model_id: int) -> None: ...

class Estimates:
    """Every program's estimates, by device kind."""

    def program(self, program: str, kind: str) -> ProgramEstimates: ...
