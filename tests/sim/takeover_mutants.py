"""Mutants of the takeover protocol: its sources with a fragment replaced, loaded beside the real modules."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import NamedTuple

import clockwork.takeover
from clockwork.sim.takeover.plan import Kind
from clockwork.sim.takeover.world import Parts

FOLDER = Path(clockwork.takeover.__file__).parent
# In the order of their imports. Messages stay the real ones, so that the simulator knows them.
MODULES = ("obedience", "lease", "inheritance", "follower", "asker", "contender")
STATES = ("Contender", "Inheritance", "LedWorker", "Asker", "LeaseTable", "Obedience")
"""Classes that a mutant has of its own; events, commands and rows are the real ones, compared by type."""


class Mutation(NamedTuple):
    """A replacement in a module of clockwork/takeover."""

    meaning: str
    module: str
    old: str
    new: str
    more: tuple[tuple[str, str], ...] = ()  # further replacements
    kinds: tuple[Kind, ...] = tuple(Kind)  # kinds of worlds in which it is looked for

    @property
    def is_rare(self) -> bool:
        """Whether it takes several attacked worlds to find it."""
        return self.kinds == (Kind.ATTACK,)


def mutant(mutation: Mutation) -> Parts:
    """The protocol's classes with this mutation."""
    sources = {name: (FOLDER / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
    source = sources[mutation.module]
    for old, new in ((mutation.old, mutation.new), *mutation.more):
        assert source.count(old) == 1, f"{mutation.module}.py has {old!r} {source.count(old)} times"
        source = source.replace(old, new)
    sources[mutation.module] = source
    made: dict[str, types.ModuleType] = {}
    real = {name: sys.modules.get(f"clockwork.takeover.{name}") for name in MODULES}
    changed = set(MODULES[MODULES.index(mutation.module) :])
    try:
        for name in MODULES:
            full = f"clockwork.takeover.{name}"
            if name not in changed:
                made[name] = sys.modules[full]
                continue
            module = made[name] = types.ModuleType(full)
            sys.modules[full] = module
            exec(compile(sources[name], f"{name}.py, {mutation.meaning}", "exec"), module.__dict__)
            _share(module, real[name])
    finally:
        for name, module in real.items():
            if module is not None:
                sys.modules[f"clockwork.takeover.{name}"] = module
    return Parts(
        made["contender"].Contender, made["inheritance"].Inheritance, made["follower"].LedWorker,
        made["asker"].Asker, made["lease"].LeaseTable,
    )  # fmt: skip


def _share(module: types.ModuleType, real: types.ModuleType | None) -> None:
    """Give a mutant module the real one's values: events, commands and rows, which others compare by type."""
    for name, value in vars(real).items():
        if isinstance(value, type) and value.__module__ == module.__name__ and name not in STATES:
            setattr(module, name, value)


COMPARES = (
    "    if operation.leader.epoch != lease.leader.epoch or operation.leader.holder != lease.leader.holder:"
)

MUTATIONS = (
    # The lease.
    Mutation("a lease is taken before it expires", "lease", "if not is_over and not is_by_lock:", "if False:", kinds=(Kind.ATTACK,)),
    Mutation("a database whose clock was set back keeps a lease", "lease", " or lease.expires_ns - now_ns > LEASE_NS", "", kinds=(Kind.SET_BACK,)),
    Mutation("a standby waits for a clock that was set back", "contender", "return remaining_ns > LEASE_NS and", "return False and", kinds=(Kind.SET_BACK,)),
    Mutation("a takeover does not raise the epoch", "lease", "Lease(_next(lease.leader, operation), expires_ns, new_lock)", "Lease(_next(lease.leader, operation)._replace(epoch=lease.leader.epoch), expires_ns, new_lock)"),
    Mutation("a hand-over does not raise the epoch", "lease", "Lease(_next(lease.leader, operation), expires_ns, 0)", "Lease(_next(lease.leader, operation)._replace(epoch=lease.leader.epoch), expires_ns, 0)"),
    Mutation("a lease is not given up", "lease", "Lease(_next(lease.leader, operation), expires_ns, 0)", "lease"),
    Mutation("a claim raises the epoch by two", "lease", "Lease(_next(lease.leader, operation), expires_ns, new_lock)", "Lease(_next(lease.leader, operation)._replace(epoch=lease.leader.epoch + 2), expires_ns, new_lock)"),
    Mutation("a renewal does not compare the epoch", "lease", COMPARES, COMPARES.replace("if ", "if not isinstance(operation, RenewLease) and (").replace(":", "):"), (("return Lease(lease.leader, expires_ns, new_lock if", "return Lease(operation.leader, expires_ns, new_lock if"),)),
    Mutation("a change is committed without the epoch's check", "lease", COMPARES, COMPARES.replace("if ", "if not isinstance(operation, CommitChange) and (").replace(":", "):")),
    Mutation("a change is refused after half of it was done", "lease", "        if after is None:", "        if isinstance(operation, CommitChange):\n            self.values[operation.name] = operation.value\n        if after is None:"),
    Mutation("a change is done by half", "lease", "            self.values[operation.name] = operation.value", "            pass"),
    Mutation("a lock that another start held is believed", "lease", "is_by_lock = is_free and operation.lock != 0 and operation.lock == lease.lock", "is_by_lock = operation.lock != 0", kinds=(Kind.ATTACK,)),
    Mutation("a lock stays when its connection ends", "lease", "        return free", "        return []"),
    Mutation("a renewal lasts no longer than before", "lease", "return Lease(lease.leader, expires_ns, new_lock if", "return Lease(lease.leader, lease.expires_ns, new_lock if"),
    # The contender.
    Mutation("expiry by the standby's own clock", "contender", "remaining_ns = lease.expires_ns - reply.now_ns", "remaining_ns = lease.expires_ns - now_ns"),
    Mutation("an active goes on after it learnt of a higher epoch", "contender", "        if self.role is LeaseRole.ACTIVE:\n            self._step_down(now_ns)\n        return True", "        return True"),
    Mutation("an active renews too seldom", "contender", "not self._has_lock, self.number), now_ns)\n            self._query_ns = now_ns + RENEW_NS", "not self._has_lock, self.number), now_ns)\n            self._query_ns = now_ns + 4 * RENEW_NS"),
    Mutation("an active stops when it cannot renew", "contender", "        self._pending = self._awaited = self._freed = 0\n        self._query_ns = now_ns + DATABASE", "        if self.role is LeaseRole.ACTIVE:\n            self._step_down(now_ns)\n        self._pending = self._awaited = self._freed = 0\n        self._query_ns = now_ns + DATABASE"),
    Mutation("an active serves on after it stepped down", "contender", "        self._commands.append(StepDown(self.leader))\n", ""),
    Mutation("a standby awaits no lock", "contender", "            self._commands.append(AwaitLock(lease.lock))", "            pass"),
    Mutation("a standby leaves the holder no time to renew", "contender", "now_ns + RETURN_GRACE_NS if lease.leader.holder else now_ns", "now_ns", kinds=(Kind.AWAY,)),
    Mutation("a standby never claims an expired lease", "contender", "if remaining_ns <= 0 or self", "if self"),
    Mutation("a standby does not follow the catalogue", "contender", "        self._apply(reply.changes)\n", "        if self.role is LeaseRole.ACTIVE:\n            self._apply(reply.changes)\n"),
    Mutation("an active does not read what was committed without a reply", "contender", "        self._apply(reply.changes)\n", "        if self.role is LeaseRole.STANDBY or commit is not None:\n            self._apply(reply.changes[-1:])\n"),
    Mutation("a change is acknowledged before its transaction", "contender", "        self._commands.append(QueryLease(self._serial, commit))", "        self._commands.append(QueryLease(self._serial, commit))\n        self._commands.append(ChangeEnded(asked.key, Fate.DONE))"),
    Mutation("a change is acknowledged whatever the transaction said", "contender", "Fate.DONE if reply.is_done else Fate.NOT_DONE", "Fate.DONE"),
    Mutation("a change without a reply counts as not done", "contender", "ChangeEnded(commit.key, Fate.UNKNOWN)", "ChangeEnded(commit.key, Fate.NOT_DONE)", kinds=(Kind.ATTACK,)),
    Mutation("a change without a reply counts as done", "contender", "ChangeEnded(commit.key, Fate.UNKNOWN)", "ChangeEnded(commit.key, Fate.DONE)"),
    Mutation("a change without a reply is forgotten", "contender", "for commit in commits.values():\n            self._commands", "for commit in list(commits.values())[1:]:\n            self._commands"),
    Mutation("changes are accepted without a database", "contender", "        elif not self.is_connected:\n            fate = Fate.NO_DATABASE\n", ""),
    Mutation("a lost lock counts as held", "contender", "self.is_connected = self._is_settled = self._has_lock = False", "self.is_connected = self._is_settled = False"),
    Mutation("a controller takes its former life's lease for its own", "contender", "if leader.holder == self.holder and", "if leader.addresses == self.addresses and", kinds=(Kind.ATTACK,)),
    Mutation("a new active tells nobody", "contender", "        self._commands.append(AnnounceLeader(ActiveIs(leader)))\n", ""),
    Mutation("a controller does not answer beats", "contender", "            self._commands.append(TellPeer(source, ActiveIs(known)))", "            pass"),
    Mutation("a query without a reply is awaited for ever", "contender", "self._pending_limit_ns = now_ns + DATABASE_LIMIT_NS", "self._pending_limit_ns = now_ns + 1000 * DATABASE_LIMIT_NS", kinds=(Kind.CUT,)),
    Mutation("a hand-over that its target does not follow goes on for ever", "contender", "self._hand_over_limit_ns = now_ns + HAND_OVER_LIMIT_NS", "self._hand_over_limit_ns = now_ns + 1000 * HAND_OVER_LIMIT_NS", kinds=(Kind.ATTACK,)),
    # Peers.
    Mutation("a peer believes the last epoch, not the highest", "obedience", "is_same and leader.epoch <= self.leader.epoch", "leader == self.leader", kinds=(Kind.KILL,)),
    Mutation("a peer believes the first epoch for ever", "obedience", "is_same and leader.epoch <= self.leader.epoch", "self.leader.epoch"),
    Mutation("nobody refuses", "obedience", "        return leader.epoch < self.leader.epoch or (", "        return False and ("),
    Mutation("a worker obeys anyone", "follower", "if self.obedience.refuses(message.leader):", "if False:"),
    Mutation("a worker reports no models", "follower", "self.prepared, resident, under_way, ", "self.prepared, (), under_way, "),
    Mutation("a worker does not report what is under way", "follower", "self.prepared, resident, under_way, ", "self.prepared, resident, (), "),
    Mutation("a worker does not report its notes", "follower", "resident, under_way, self.notes)", "resident, under_way)"),
    Mutation("a new active forgets the notes of reports", "inheritance", "        self.notes = max(self.notes, holdings.notes)\n", ""),
    Mutation("a worker does an order twice", "follower", "            return  # the message came twice", "            pass", kinds=(Kind.ATTACK,)),
    Mutation("a worker keeps results for the active that ordered them", "follower", "        while address and self._unsent:", "        while self._unsent and self._unsent[0].order.leader != leader:\n            self._unsent.popleft()\n        while address and self._unsent:"),
    Mutation("a worker does not repeat its report", "follower", "        if not self._admitted:\n            self._report()", "        pass"),
    Mutation("a worker takes a new connection for the old", "follower", "            if event.address in self.obedience.leader.addresses:\n                self._admitted = 0", "            pass", (("            if event.address in self.obedience.leader.addresses:\n                self._report()", "            if False:\n                pass"),)),
    Mutation("a client takes two answers", "asker", "if self._open.pop(message.number, None) is not None:", "if True:"),
    Mutation("a client takes another request's answer", "asker", "            if self._open.pop(message.number, None) is not None:\n                self._commands.append(Deliver(message.number,", "            number = next(iter(self._open), message.number)\n            if self._open.pop(number, None) is not None:\n                self._commands.append(Deliver(number,"),
    Mutation("a client takes a former active's answers", "asker", "if self.obedience.refuses(message.leader):", "if False:", kinds=(Kind.ATTACK,)),
    Mutation("a client does not ask the new active", "asker", "            self._lose(list(self._open))\n            self._ask_all(now_ns)\n        return is_new", "            pass\n        return is_new"),
    Mutation("a client does not ask again over a new connection", "asker", "                self._lose(list(self._open))\n", "                pass\n"),
    Mutation("a client asks again that is told not to", "asker", "            if not self._asks_again:", "            if False:"),
    Mutation("a client forgets a deadline", "asker", "                self._commands.append(Deliver(number, AskOutcome.MISSED, None))", "                pass"),
    Mutation("a client takes an answer past its deadline", "asker", "        self._expire(now_ns)  # first: an answer that comes with its deadline behind it is late\n        if isinstance(event, Heard):\n            self._hear(event, now_ns)\n", "        if isinstance(event, Heard):\n            self._hear(event, now_ns)\n        self._expire(now_ns)\n        if False:\n            pass\n", kinds=(Kind.ATTACK,)),
    Mutation("a client believes a controller that is not active yet", "asker", "                self._lose([message.number])", "                pass"),
    Mutation("a new active loads before workers have reported", "inheritance", "return all(now_ns >= until_ns for until_ns in self._expected.values())", "return True"),
    Mutation("a new active forgets what runs", "inheritance", "        return request in self._running", "        return bool(request) and True"),
)  # fmt: skip
