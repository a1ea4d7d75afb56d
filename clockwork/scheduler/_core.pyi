from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clockwork.scheduler._policy import Script
from clockwork.scheduler.types import Command, Event, ProfilePoint, ShapeKey

ATTEMPTS_MAX: int
BATCH_TABLE_MAX: int
BOUND_RATIO_MAX: float
COMMON_OPTIONS: tuple[str, ...]
POLICIES: tuple[str, ...]
PROFILE_ATTEMPTS_MAX: int
PROFILE_IDLE_NS: int
SCHEDULE_AHEAD_NS: int
SHAPES_KNOWN_MAX: int
SHAPES_MAX: int
TEXTS: tuple[str, ...]

def known_options(policy: str) -> tuple[str, ...]:
    """Return the names of a policy's options. Raises ValueError with all policies' names for an unknown
    policy.
    """

class Driven: ...

class Core(Driven):
    """A policy behind the interface of ``types.Scheduler``. Not thread-safe."""

    def __init__(
        self,
        policy: str,
        memory: str,
        values: Mapping[str, float],
        queued_requests_max: int,
        queued_bytes_max: int,
        script: Script | None = None,
    ) -> None:
        """script: object of a policy in Python, whose name is ``policy``.

        Raises ValueError with the known names for an unknown policy or option.
        """

    def step(self, event: Event) -> list[Command]: ...
    def step_many(self, events: Iterable[Event]) -> list[Command]: ...
    def save(self, bytes_max: int) -> bytes | None:
        """Return the whole state between steps, for restore(). None: it is larger, or partly held by a policy
        in Python.
        """

    def restore(self, state: bytes) -> None:
        """Continue from the result of save() of a scheduler with the same options. This scheduler must be
        new.

        Raises ConfigError for any other bytes; the scheduler is then unusable.
        """

    def predictions(self) -> dict[str, Any]: ...
    def prediction_errors(self, bounds_ns: Iterable[int]) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the errors of predictions as histograms, by kind of prediction, then "over" or "under"."""

    def snapshot(self) -> dict[str, Any]: ...
    def devices(self) -> list[dict[str, Any]]: ...
    def whereabouts(self, model_id: int) -> list[tuple[int, int, str]]: ...
    def held(self) -> bytes:
        """Return worker, device, model and load, as numbers of eight bytes, of every model on a device."""

    def hosts(self, model_id: int) -> list[int]:
        """Return the workers whose host stores have the model."""

    def keepers(self, model_id: int) -> list[int]:
        """See types.Scheduler."""

    def sole_copies(self, worker: int) -> int:
        """See types.Scheduler."""

    def store_room(self, worker: int) -> int:
        """See types.Scheduler."""

    def store_status(self) -> dict[str, int]:
        """See types.Scheduler."""

    def expected_ns(self, model_id: int, profile: Sequence[ProfilePoint]) -> list[int]: ...
    def noise(self) -> dict[str, float]: ...
    def link_status(self, now_ns: int) -> dict[str, Any]:
        """See types.Scheduler."""

    def policy_status(self, now_ns: int) -> dict[str, float]:
        """See types.Scheduler."""

    def devices_wanted(self, now_ns: int) -> float:
        """Return the number of devices that the current load needs; see csrc/scheduler/demand.h. Takes time
        for every model.
        """

    def check_invariants(self) -> None: ...
    @property
    def plans_fetches(self) -> bool:
        """Whether the policy can serve workers whose host store has a budget."""

    def note(self, event: Event) -> None:
        """Take an event. The resulting orders wait in ``out``; the caller must settle."""

    def order(self, place: int) -> Command:
        """Return an order in ``out`` as a record."""

    def orders(self) -> list[Command]:
        """Return all orders in ``out``."""

    def end_orders(self) -> None:
        """Remove all orders from ``out`` after they were carried out, and forget removed models' names."""

    def shape_number(self, shape: ShapeKey) -> int:
        """Return the number of a shape in the core. It is valid until forget_shapes() returns True."""

    def shape_of(self, number: int) -> ShapeKey:
        """Return the shape with a number of shape_number()."""

    def forget_shapes(self) -> bool:
        """Release numbers of shapes that the core does not use. Only between steps. Returns whether any were
        released.
        """

    @property
    def known_counts(self) -> tuple[int, int, int]:
        """Counts of the shapes, programs and models that have a number or a name here."""

def with_margin(ns: int) -> int: ...

class PageAllocator:
    """The free pages of an arena; see csrc/scheduler/pages.h."""

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
    """Execution time by batch size; see csrc/scheduler/estimates.h."""

    def seed(self, batch: int, ns: int) -> None: ...
    def exec_ns(self, batch: int) -> int: ...
    def planned_ns(self, batch: int) -> int: ...
    def measure(self, batch: int, ns: int, now: int | None = None) -> bool: ...
    def forget_stale(self, now: int) -> bool: ...

class ProgramEstimates:
    """The curves of a program on a device kind, by shape."""

    def seed(self, points: Iterable[ProfilePoint]) -> None: ...
    def is_profiled(self, shape: ShapeKey) -> bool: ...
    def bound_ns(self, shape: ShapeKey, batch: int) -> int: ...
    def measure(self, shape: ShapeKey, batch: int, ns: int) -> bool: ...
    def curve(self, shape: ShapeKey) -> Curve: ...

class LoadEstimates:
    """Load times of a device kind."""

    def load_ns(self, model_id: int, seed_ns: int, page_count: int) -> int: ...
    def measure(self, model_id: int, seed_ns: int, page_count: int, ns: int) -> None: ...
    def forget(self, model_id: int) -> None: ...

class Estimates:
    """Estimates of every program, by device kind."""

    def program(self, program: str, kind: str) -> ProgramEstimates: ...
