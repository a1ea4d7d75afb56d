"""Seeded plans of what is done to a simulated cluster, and when."""

from __future__ import annotations

import enum
import random
from typing import NamedTuple

MS = 1_000_000
SECOND = 1_000 * MS

CONTROLLERS = ("c0", "c1", "c2")
WORKERS = ("w0", "w1")
CLIENTS = ("k0", "k1", "k2")
MODELS = ("m0", "m1", "m2")
LATE_MODEL = "m3"  # asked for shortly before a disturbance
DATABASE = "db"
ACTIVE = "active"  # stands for the controller that is active then
EVERY = "every controller"


class Kind(enum.Enum):
    """The kinds of simulated worlds."""

    KILL = "kill"  # SIGKILL of the active
    STOP = "stop"  # SIGSTOP of the active, and SIGCONT later
    CUT = "cut"  # the active reaches nobody for a while
    HAND_OVER = "hand-over"
    AWAY = "database away"
    SET_BACK = "clock set back"  # the database's, by an hour, while the active stops
    BREAK = "connections break"  # those of the active to its peers
    ATTACK = "attack"  # several of everything


TAKEN_OVER = (Kind.KILL, Kind.STOP, Kind.CUT, Kind.HAND_OVER, Kind.SET_BACK)
"""Kinds with a single disturbance, after which another controller is active."""

SINGLE = (*TAKEN_OVER, Kind.AWAY, Kind.BREAK)
"""Kinds with a single disturbance, under which no request with an SLO of two seconds may fail."""


class What(enum.Enum):
    """The disturbances."""

    KILL = "kill"
    STOP = "stop"
    CUT = "cut"
    HAND_OVER = "hand-over"
    AWAY = "database away"
    SLOW = "database slow"
    LOSSY = "lossy links"
    BREAK = "connections break"
    CLOCK = "database clock"


class Disruption(NamedTuple):
    """A disturbance of a process, of a pair of them, or of all links."""

    at_ns: int
    what: What
    target: str
    other: str  # the other end of a link that is cut; "": all links of the target
    lasts_ns: int
    hangs: bool
    """For AWAY: the database does not even refuse. For SLOW: it often answers too late. For CLOCK: its clock
    is set back, not forward, by ``lasts_ns``."""

    def __str__(self) -> str:
        other = f" from {self.other}" if self.other else ""
        hangs = ", hanging" if self.hangs else ""
        return f"{self.at_ns / SECOND:.3f} s: {self.what.value} {self.target}{other} for {self.lasts_ns / MS:.0f} ms{hangs}"


class TakeoverPlan(NamedTuple):
    """Everything that a world is made from."""

    seed: int
    kind: Kind
    disruptions: tuple[Disruption, ...]
    quiet_ns: int  # time after which nothing is disturbed
    ends_ns: int  # time of the last request
    slow_max_ns: int  # delay of the slowest messages
    is_hostile: bool  # whether messages come twice and out of order
    slo_min_ns: int
    drift_max_ppm: int

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.kind.value}: " + "; ".join(map(str, self.disruptions))


def make_plan(seed: int, kind: Kind) -> TakeoverPlan:
    """Return the plan of a seed. The same seed gives the same plan."""
    draw = random.Random(f"{seed} {kind.value}")
    if kind is Kind.ATTACK:
        return _attack(seed, draw)
    at_ns = 1_500 * MS + draw.randrange(600 * MS)
    lasts_ns = 1_500 * MS + draw.randrange(1_000 * MS)
    others: tuple[Disruption, ...] = ()
    if kind is Kind.AWAY:
        single = Disruption(at_ns, What.AWAY, DATABASE, "", lasts_ns, draw.random() < 0.5)
    elif kind is Kind.SET_BACK:
        single = Disruption(at_ns, What.STOP, ACTIVE, "", lasts_ns, False)
        others = (Disruption(at_ns, What.CLOCK, DATABASE, "", 3_600 * SECOND, True),)
    else:
        single = Disruption(at_ns, What(kind.value), ACTIVE, "", lasts_ns, False)
    # The end of the disturbance is a second chance to go wrong: a stopped active wakes up.
    return TakeoverPlan(
        seed,
        kind,
        (single, *others),
        at_ns + lasts_ns,
        at_ns + lasts_ns + SECOND,
        2 * MS,
        False,
        2 * SECOND,
        200,
    )


def _attack(seed: int, draw: random.Random) -> TakeoverPlan:
    quiet_ns = 5 * SECOND
    disruptions = []
    for _ in range(draw.randrange(1, 8)):
        at_ns = 600 * MS + draw.randrange(4_000 * MS)
        lasts_ns = min(
            draw.choice((20, 200, 600, 1_200, 2_500)) * MS + draw.randrange(500 * MS), quiet_ns - at_ns
        )
        what = draw.choices(list(What), (4, 4, 5, 3, 2, 3, 3, 1, 2))[0]
        target, other = ACTIVE, ""
        if what in (What.KILL, What.STOP):
            target = draw.choices(
                (ACTIVE, EVERY, *CONTROLLERS, *WORKERS, *CLIENTS), (6, 2, 1, 1, 1, 1, 1, 3, 3, 3)
            )[0]
            if what is What.KILL and target in CLIENTS:
                target = ACTIVE
        elif what is What.CUT:
            target = draw.choice((ACTIVE, ACTIVE, *CONTROLLERS, *WORKERS))
            others = ("", DATABASE, *WORKERS, *CLIENTS) if target not in WORKERS else ("", *CONTROLLERS)
            other = draw.choice(others)
        elif what in (What.AWAY, What.SLOW, What.CLOCK):
            target = DATABASE
            lasts_ns *= draw.choice((1, 1_000)) if what is What.CLOCK else 1
        disruptions.append(Disruption(at_ns, what, target, other, lasts_ns, draw.random() < 0.5))
    disruptions += draw.choice(((), (), _late_renewal(draw), _late_claim(draw)))
    disruptions.sort(key=lambda disruption: disruption.at_ns)
    return TakeoverPlan(
        seed, Kind.ATTACK, tuple(disruptions), quiet_ns, quiet_ns + 4_000 * MS,
        draw.choice((2, 20, 200)) * MS, draw.random() < 0.5, 50 * MS, draw.choice((0, 200, 5_000)),
    )  # fmt: skip


def _late_renewal(draw: random.Random) -> tuple[Disruption, ...]:
    """An active that goes on just when its lease expires, with a database that takes its time."""
    at_ns = 800 * MS + draw.randrange(2_000 * MS)
    lasts_ns = 700 * MS + draw.randrange(600 * MS)
    return (
        Disruption(at_ns, What.STOP, ACTIVE, "", lasts_ns, False),
        Disruption(at_ns + 600 * MS, What.SLOW, DATABASE, "", 1_000 * MS, False),
    )


def _late_claim(draw: random.Random) -> tuple[Disruption, ...]:
    """Connections to a slow database break: a standby learns late of a lock that is free."""
    at_ns = 800 * MS + draw.randrange(2_000 * MS)
    return (
        Disruption(at_ns, What.SLOW, DATABASE, "", 2_000 * MS, False),
        Disruption(at_ns, What.LOSSY, ACTIVE, "", 2_000 * MS, False),
    )
