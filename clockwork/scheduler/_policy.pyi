"""See docs/policies/python.md. Times are nanoseconds of the controller's clock."""

from collections.abc import Iterator, Mapping, Set
from typing import final

from clockwork.scheduler.policy import Policy

@final
class Request:
    """A request that waits, as it was when a hook asked; it may be kept."""

    id: int
    arrived_ns: int
    deadline_ns: int
    rows: int  # what it adds to a batch
    priority: int  # 1 is the highest
    alone: bool  # it shares no batch: one that it was in failed

@final
class Queue:
    """Requests of one model, input shape and priority that wait, by deadline and then arrival."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int) -> Request: ...
    def __iter__(self) -> Iterator[Request]: ...
    @property
    def model_id(self) -> int: ...
    @property
    def shape(self) -> int:
        """A number for it; another model's same number is the same shape."""

    @property
    def priority(self) -> int: ...
    @property
    def rows(self) -> int:
        """Of all its requests."""

    @property
    def is_plain(self) -> bool:
        """Every request has one row and may share a batch."""

    @property
    def batch_max(self) -> int:
        """Rows of the model's largest batch, on the kind of device that prepared it first."""

    def devices(self) -> list[Device]:
        """Those that hold the model and can be sent work; behind what they have, perhaps."""

    def fit(self, rows_max: int, first: int = 0) -> int:
        """How many requests, from ``first`` on, make a batch of at most so many rows: at least one, and one alone."""

    def least_ns(self, rows: int) -> int:
        """What a batch takes on the fastest kind of device; NEVER_NS if nothing is known of it."""

    def last_start_ns(self, request: Request) -> int:
        """When a request has to be sent at the latest, alone and to the fastest kind of device, to be in time."""

    def drop(self, request: Request) -> None:
        """Answer it as missed. Only in choose(); those behind it may be dropped with it, as hopeless_ns() says."""

@final
class Device:
    """A device that executes one batch after the other."""

    @property
    def worker(self) -> int: ...
    @property
    def index(self) -> int:
        """Among its worker's devices."""

    @property
    def free_ns(self) -> int:
        """When a batch that is sent now would begin, behind what it was sent and its way there."""

    @property
    def there_ns(self) -> int:
        """The delay of a message to its worker."""

    @property
    def back_ns(self) -> int:
        """The delay of a message from its worker."""

    @property
    def in_flight(self) -> int:
        """Batches that it was sent and has not answered."""

    def first_ready(self) -> Queue | None:
        """Of the ready queues of the models that it holds, the one of the highest priority and lowest rank."""

    def ready(self) -> list[Queue]:
        """All of them."""

    def batch_max(self, queue: Queue) -> int:
        """Rows of the largest batch here: 1 for a shape that was never measured. ValueError: the model is not here."""

    def planned_ns(self, queue: Queue, rows: int) -> int:
        """What a batch is planned to take here, with a margin; 0: nothing is known of it. ValueError as above."""

@final
class Batch:
    """Requests [first, first + count) of a queue, to run together."""

    queue: Queue
    count: int
    first: int
    def __init__(self, queue: Queue, count: int, first: int = 0) -> None: ...

@final
class Refusal:
    """A request is refused; with the SLO that could have been kept, 0 if that is not known."""

    feasible_slo_ns: int
    def __init__(self, feasible_slo_ns: int = 0) -> None: ...

class Script:
    """One policy object as the C++ scheduler calls it."""

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
