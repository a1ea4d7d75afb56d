"""Types that a policy in Python sees; see docs/policies/python.md. Times are nanoseconds of the controller's
clock.
"""

from collections.abc import Iterator, Mapping, Set
from typing import final

from clockwork.scheduler.policy import Policy

@final
class Request:
    """A waiting request, at the time of the hook's query. The object may be kept."""

    id: int
    arrived_ns: int
    deadline_ns: int
    rows: int  # number of rows that the request adds to a batch
    priority: int  # level of the request; 1 is the highest
    alone: bool  # whether it must have a batch of its own, because a batch with it failed

@final
class Queue:
    """Waiting requests of the same model, input shape and priority, by deadline and then arrival."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int) -> Request: ...
    def __iter__(self) -> Iterator[Request]: ...
    @property
    def model_id(self) -> int: ...
    @property
    def shape(self) -> int:
        """Number of the shape, which is the same for all models."""

    @property
    def priority(self) -> int: ...
    @property
    def rows(self) -> int:
        """Rows of all its requests."""

    @property
    def is_plain(self) -> bool:
        """Whether every request has one row and may share a batch."""

    @property
    def batch_max(self) -> int:
        """Rows of the model's largest batch, on the kind of device that prepared it first."""

    def devices(self) -> list[Device]:
        """Return the devices that hold the model and can be sent work, perhaps after pending batches."""

    def fit(self, rows_max: int, first: int = 0) -> int:
        """Return how many requests, from ``first`` on, fit a batch of at most ``rows_max`` rows: at least
        one; one if it is alone.
        """

    def least_ns(self, rows: int) -> int:
        """Return the time of a batch on the fastest kind of device. NEVER_NS: unknown."""

    def last_start_ns(self, request: Request) -> int:
        """Return the latest time at which a request can be sent, alone and to the fastest kind of device, to
        be in time.
        """

    def drop(self, request: Request) -> None:
        """Answer a request as missed. Only in choose(). Later requests may be dropped with it, as
        hopeless_ns() decides.
        """

@final
class Device:
    """A device that executes batches in turn."""

    @property
    def worker(self) -> int: ...
    @property
    def index(self) -> int:
        """Index among its worker's devices."""

    @property
    def free_ns(self) -> int:
        """Time at which a batch sent now would begin, after the pending batches and the network delay."""

    @property
    def there_ns(self) -> int:
        """Delay of a message to its worker."""

    @property
    def back_ns(self) -> int:
        """Delay of a message from its worker."""

    @property
    def in_flight(self) -> int:
        """Number of batches that were sent and have no result."""

    def first_ready(self) -> Queue | None:
        """Return the ready queue of highest priority and lowest rank, among the models that the
        device holds.
        """

    def ready(self) -> list[Queue]:
        """Return all ready queues of the models that the device holds."""

    def batch_max(self, queue: Queue) -> int:
        """Return the rows of the largest batch here: 1 for a shape without measurements. ValueError: the
        model is not here.
        """

    def planned_ns(self, queue: Queue, rows: int) -> int:
        """Return the planned time of a batch here, with a margin. 0: unknown. ValueError: the model is not
        here.
        """

@final
class Batch:
    """Requests [first, first + count) of a queue, to run together."""

    queue: Queue
    count: int
    first: int
    def __init__(self, queue: Queue, count: int, first: int = 0) -> None: ...

@final
class Refusal:
    """The refusal of a request, with the SLO that would have been feasible (0: unknown)."""

    feasible_slo_ns: int
    def __init__(self, feasible_slo_ns: int = 0) -> None: ...

class Script:
    """A policy object with the hooks that the C++ scheduler calls."""

    def __init__(
        self,
        policy: Policy,
        name: str,
        memory: str,
        options: Mapping[str, float],
        presses_late: bool,
        ahead_ns: int,
        overridden: Set[str],
    ) -> None: ...
