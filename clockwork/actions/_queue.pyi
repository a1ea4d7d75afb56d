from clockwork.actions.events import Action, QueueCommand, QueueEvent

START_LEAD_NS: int

class ActionQueue:
    """One device's two lanes."""

    def __init__(self, run_ahead: int) -> None: ...
    def step(self, event: QueueEvent) -> list[QueueCommand]:
        """What to do now, in order. Afterwards next_wake_ns says when a Due is wanted at the latest."""

    def reset(self) -> list[Action]:
        """Forget everything, as a new controller epoch begins; returns what was queued."""

    @property
    def next_wake_ns(self) -> int: ...
    @property
    def queued_count(self) -> int: ...
    @property
    def started_count(self) -> int: ...
    def check_invariants(self) -> None:
        """Raise AssertionError where the books do not balance."""
