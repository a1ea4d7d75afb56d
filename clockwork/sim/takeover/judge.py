"""Checks of a simulated cluster, independent of the protocol: what has to be true is counted here."""

from __future__ import annotations

from clockwork.config.takeover import LEASE_NS
from clockwork.sim.takeover.plan import LATE_MODEL, MS, SECOND, SINGLE, TAKEN_OVER, Kind, TakeoverPlan
from clockwork.takeover.lease import (
    CatalogChange,
    ClaimLease,
    CommitChange,
    GiveLease,
    Lease,
    LeaseOperation,
    LeaseReply,
    LeaseTable,
)
from clockwork.takeover.messages import AskOutcome, Fate, LearntNotes, LedOrder, ToldAnswer
from clockwork.takeover.obedience import Leader

LIVENESS_NS = 3_000 * MS
"""Time after the last disturbance from which each request must be served: a standby leaves the lease to its
holder for a second, and as long again if the database's clock was set back; and an active waits a second for
reports before it has a model loaded."""

LATE_NS = 5 * MS  # How late an outcome may come: the clock of a client may be slower than the world's
CHANGE_ANSWER_NS = 1_100 * MS  # Time within which a change is answered by a process that runs
FIRST_ANSWER_NS = {
    Kind.KILL: 300 * MS,
    Kind.STOP: 1_500 * MS,
    Kind.CUT: 1_500 * MS,
    Kind.SET_BACK: 1_500 * MS,
    Kind.HAND_OVER: 1_100 * MS,
}
"""Time from a disturbance to the first answer through the new active."""

SLOWEST_NS = FIRST_ANSWER_NS | {Kind.HAND_OVER: 50 * MS}
"""Longest time for which a request waits that is asked again."""


class Broken(AssertionError):
    """A promise of the protocol was broken."""


def must(is_true: bool, sentence: str) -> None:
    """Raise Broken with this sentence unless something is true."""
    if not is_true:
        raise Broken(sentence)


class _Made:
    """A request as its application sees it."""

    __slots__ = ("change", "deadline_ns", "made_ns", "model", "outcome", "slo_ns")

    def __init__(self, model: str, made_ns: int, deadline_ns: int, slo_ns: int, change: int) -> None:
        self.model = model
        self.made_ns = made_ns
        self.deadline_ns = deadline_ns
        self.slo_ns = slo_ns
        self.change = change  # number of the last change of the model that its answer must know
        self.outcome: AskOutcome | None = None


class Judge:
    """Records what happens in a world, and raises Broken."""

    def __init__(self, plan: TakeoverPlan, table: LeaseTable) -> None:
        self._plan = plan
        self._table = table
        self.requests: dict[tuple[str, int], _Made] = {}
        self._open: dict[str, dict[int, _Made]] = {}  # those of each client that have no outcome
        self._obeyed: dict[int, str] = {}  # the holder whose orders were obeyed, by epoch
        self._done: set[tuple[str, int, int]] = set()  # worker, epoch and number of each order
        self._told: dict[str, int] = {}  # the highest epoch that each peer has heard of
        self._asked: dict[tuple[str, int], int] = {}
        self._acknowledged: dict[tuple[str, int], int] = {}  # model and epoch: number of the last change
        self._numbers: dict[int, int] = {0: 0}  # of each version, that of its change
        self._changes: dict[str, tuple[int, str, int]] = {}  # those without an outcome
        self._fates: dict[str, Fate] = {}
        self._log: list[CatalogChange] = []
        self._leaders: dict[int, str] = {}
        self._began: dict[int, tuple[str, int]] = {}  # the controller, and its start, that served in an epoch
        self.answers: list[tuple[int, int, int]] = []  # time, epoch and latency (0: with a LOAD) of each
        self.loads_again = 0

    # ----- controllers ---------------------------------------------------------------------------

    def activated(self, controller: str, starts: int, leader: Leader) -> None:
        """A controller begins to serve. starts: how often it was started."""
        began = self._began.setdefault(leader.epoch, (controller, starts))
        must(
            began == (controller, starts),
            f"{controller} began epoch {leader.epoch}, as {began[0]} did before",
        )
        holder = self._leaders.get(leader.epoch)
        must(holder == leader.holder, f"{leader.holder} began epoch {leader.epoch}, which {holder} had")

    # ----- peers ---------------------------------------------------------------------------------

    def told(self, peer: str, epoch: int) -> None:
        """A message with this epoch was processed by a peer."""
        self._told[peer] = max(self._told.get(peer, 0), epoch)

    def restarted(self, peer: str) -> None:
        """A peer has forgotten everything."""
        self._told.pop(peer, None)

    def obeyed(self, worker: str, order: LedOrder) -> None:
        """A worker carries out an order."""
        epoch, holder = order.leader.epoch, order.leader.holder
        first = self._obeyed.setdefault(epoch, holder)
        must(first == holder, f"workers obeyed {first} and {holder} in epoch {epoch}")
        must(self._leaders.get(epoch) == holder, f"{worker} obeyed {holder}, which never had epoch {epoch}")
        told = self._told.get(worker, 0)
        must(epoch >= told, f"{worker} obeyed epoch {epoch} and had heard of {told}")
        key = (worker, epoch, order.action)
        must(key not in self._done, f"{worker} did order {order.action} of epoch {epoch} twice")
        self._done.add(key)

    def noted(self, worker: str, before: LearntNotes, after: LearntNotes) -> None:
        """A worker keeps other notes than before."""
        must(after[:2] > before[:2], f"{worker} was given notes {before[:2]}, and keeps {after[:2]}")
        must(
            self._plan.kind not in SINGLE or after.content >= before.content,
            f"{worker} was given notes of {int.from_bytes(before.content)} results, and then of fewer",
        )

    def loaded_again(self, worker: str, model: str) -> None:
        """A worker was ordered to load a model that a worker within reach holds or loads."""
        self.loads_again += 1
        must(self._plan.kind not in SINGLE, f"{worker} was ordered to load {model}, which was loaded")

    # ----- requests ------------------------------------------------------------------------------

    def made(
        self, client: str, number: int, model: str, now_ns: int, deadline_ns: int, slo_ns: int, epoch: int
    ) -> None:
        """A client's application makes a request. epoch: the highest that the client has heard of."""
        changes = (
            change
            for (name, acknowledged), change in self._acknowledged.items()
            if name == model and acknowledged <= epoch
        )
        made = _Made(model, now_ns, deadline_ns, slo_ns, max(changes, default=0))
        self.requests[client, number] = self._open.setdefault(client, {})[number] = made

    def asked(self, client: str, number: int, asks_again: bool) -> None:
        """A client sends a request to a controller."""
        count = self._asked[client, number] = self._asked.get((client, number), 0) + 1
        must(asks_again or count == 1, f"{client} asked {number} again, which it was told not to do")

    def delivered(
        self, client: str, number: int, outcome: AskOutcome, answer: ToldAnswer | None, now_ns: int
    ) -> None:
        """A client gives an outcome to its application."""
        request = self.requests[client, number]
        name = f"request {number} of {client}"
        must(request.outcome is None, f"{name} was answered twice")
        request.outcome = outcome
        del self._open[client][number]
        if answer is None:
            must(outcome is not AskOutcome.OK, f"{name} is ok without an answer")
            return
        must(now_ns <= request.deadline_ns + LATE_NS, f"{name} was answered late")
        must(answer.value == number * 1000 + answer.version, f"{name} got another request's answer")
        told = self._told.get(client, 0)
        must(
            answer.leader.epoch >= told, f"{name} took an answer of epoch {answer.leader.epoch} after {told}"
        )
        must(
            self._numbers[answer.version] >= request.change,
            f"{name} was answered as of change {self._numbers[answer.version]}, and {request.change} had been acknowledged",
        )
        waited_ns = 0 if request.model == LATE_MODEL else now_ns - request.made_ns
        self.answers.append((now_ns, answer.leader.epoch, waited_ns))

    def check_unanswered(self, client: str, now_ns: int) -> None:
        """A client that runs must have given an outcome to every request that is past its deadline."""
        for number, request in self._open.get(client, {}).items():
            must(now_ns < request.deadline_ns + LATE_NS, f"request {number} of {client} has no outcome")

    # ----- the database --------------------------------------------------------------------------

    def executed(
        self, operation: LeaseOperation, before: Lease, is_holder_locked: bool, reply: LeaseReply
    ) -> None:
        """The database has carried out a transaction."""
        after = self._table.lease
        if after.leader != before.leader:
            must(
                after.leader.epoch == before.leader.epoch + 1,
                f"the lease went from epoch {before.leader.epoch} to {after.leader.epoch}",
            )
            is_given = isinstance(operation, GiveLease) and operation.leader == before.leader
            left_ns = before.expires_ns - reply.now_ns
            is_due = not 0 < left_ns <= LEASE_NS or not is_holder_locked
            must(
                is_given or (isinstance(operation, ClaimLease) and is_due),
                f"{after.leader.holder} took a lease that {before.leader.holder} held",
            )
            self._leaders[after.leader.epoch] = after.leader.holder
        if isinstance(operation, CommitChange):
            is_new = len(self._table.changes) > len(self._log)
            must(is_new == reply.is_done, f"change {operation.key} was done by half")
            must(
                not is_new or operation.leader == before.leader,
                f"{operation.leader.holder} made change {operation.key} after its epoch",
            )
        must(self._table.changes[: len(self._log)] == self._log, "a change was lost or altered")
        for change in self._table.changes[len(self._log) :]:
            self._numbers[change.value] = change.number
        self._log = list(self._table.changes)

    def change_asked(self, key: str, model: str, version: int, now_ns: int) -> None:
        """A caller asks for a change."""
        self._changes[key] = (now_ns, model, version)

    def change_dropped(self, key: str) -> None:
        """The controller that had a change was killed."""
        self._changes.pop(key, None)

    def change_ended(self, key: str, fate: Fate, epoch: int, now_ns: int, ran: bool) -> None:
        """A change is answered. ran: the controller ran all the time."""
        must(key in self._changes, f"change {key} was answered twice, or never asked")
        began_ns, model, _ = self._changes.pop(key)
        must(not ran or now_ns - began_ns <= CHANGE_ANSWER_NS, f"change {key} was answered late")
        self._fates[key] = fate
        if fate is Fate.DONE:
            done = [change for change in self._log if change.key == key]
            must(len(done) == 1, f"change {key} was acknowledged and is {len(done)} times in the catalogue")
            place = (model, epoch)
            self._acknowledged[place] = max(self._acknowledged.get(place, 0), done[0].number)

    # ----- the end -------------------------------------------------------------------------------

    def finish(self, now_ns: int, first_leader: Leader, last: Leader, epoch_when_settled: int) -> None:
        """The world is at rest."""
        plan = self._plan
        for key in self._changes:
            must(False, f"change {key} has no outcome")
        in_catalogue = {change.key for change in self._log}
        for key, fate in self._fates.items():
            must(
                fate in (Fate.DONE, Fate.UNKNOWN) or key not in in_catalogue,
                f"change {key} is in the catalogue, and its caller was told {fate.value}",
            )
        values: dict[str, int] = {}
        for change in self._log:
            values[change.name] = change.value
        must(values == self._table.values, "the catalogue is not what its changes make of it")
        self._check_requests()
        must(
            last.epoch == epoch_when_settled,
            f"the lease went from epoch {epoch_when_settled} to {last.epoch} without a cause",
        )
        if plan.kind in SINGLE:
            takeovers = last.epoch - first_leader.epoch
            expected = int(plan.kind in TAKEN_OVER)
            must(takeovers == expected, f"{takeovers} takeovers after one disturbance ({plan.kind.value})")
            if expected:
                self._check_first_answer(first_leader.epoch)
            elif plan.kind is Kind.AWAY:
                self._check_changes_refused()

    def _check_requests(self) -> None:
        served_ns = self._plan.quiet_ns + LIVENESS_NS
        for (client, number), request in self.requests.items():
            name = f"request {number} of {client}"
            must(request.outcome is not None, f"{name} has no outcome")
            is_ok = request.outcome is AskOutcome.OK
            must(is_ok or request.made_ns < served_ns, f"{name} was not served after the last disturbance")
            if self._plan.kind in SINGLE and request.slo_ns >= 2 * SECOND:
                is_lost = (
                    client == "k2" and request.outcome is AskOutcome.LOST and self._plan.kind is not Kind.AWAY
                )
                must(is_ok or is_lost, f"{name}, with an SLO of 2 s, ended as {request.outcome}")

    def first_answer_ns(self, epoch: int) -> int:
        """Time from the disturbance to the first answer through an active of a higher epoch than this."""
        began_ns = self._plan.disruptions[0].at_ns
        times = [now_ns for now_ns, answered, _ in self.answers if answered > epoch]
        must(bool(times), "nobody answered after the takeover")
        return times[0] - began_ns

    def slowest_ns(self) -> int:
        """The longest time for which a request waited for its answer, from the disturbance on."""
        began_ns = self._plan.disruptions[0].at_ns
        return max(took_ns for now_ns, _, took_ns in self.answers if now_ns >= began_ns)

    def _check_first_answer(self, epoch: int) -> None:
        kind = self._plan.kind
        first_ns, slowest_ns = self.first_answer_ns(epoch), self.slowest_ns()
        must(first_ns <= FIRST_ANSWER_NS[kind], f"the first answer came after {first_ns / MS:.1f} ms")
        must(slowest_ns <= SLOWEST_NS[kind], f"a request waited for {slowest_ns / MS:.1f} ms")

    def _check_changes_refused(self) -> None:
        refused = [fate for fate in self._fates.values() if fate is Fate.NO_DATABASE]
        must(bool(refused), "no change was refused while the database was away")
