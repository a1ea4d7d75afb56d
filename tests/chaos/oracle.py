"""Judges a seed by the records of its clients. Pure: no processes, no files, no clocks."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence

from clockwork.system.clock import MS, SECOND
from tests.chaos.faults import NOTICED_WITHIN_NS, Effect
from tests.chaos.records import NO_SUCH_MODEL, Change, Outcome, Request
from tests.chaos.scenario import Kind

SERVED_AGAIN_NS = SECOND
"""Time from the detection of a failure until everything must be served again."""

NOTICEABLE_NS = SECOND // 4
"""Longest time of a request that no fault delays: usually a few milliseconds, but tens of them on a busy
machine."""

LATE_NS = SECOND // 2
"""Longest time from the controller's deadline, which counts from the receipt of the request, to the client's
reading of the answer."""

DELAYS_CLIENTS = frozenset((Kind.PAUSE_CONTROLLER, Kind.PAUSE_GATEWAY, Kind.SLOW_CLIENT_LINK))
"""Faults that may hold a request or its answer on the way, so that the client's clock cannot judge lateness.

The same holds for faults that break a client's connection.
"""


class Rule(enum.StrEnum):
    """The guarantees of a cluster, as docs/chaos.md states them."""

    WRONG = "an answer was wrong"
    HUNG = "a request was never answered"
    AGAIN = "a request was answered twice"
    LOST = "a request failed that no fault touched"
    SLOW = "service was not back in time"
    LATE = "a late answer was a success"
    UNNOTICED = "a failure was not noticed in time"
    CHANGED = "a registration is not as acknowledged"
    NOT_WHOLE = "the cluster did not become whole again"
    LEFT = "something was left behind, or ended badly"
    HARNESS = "the seed itself failed"


@dataclasses.dataclass(frozen=True, slots=True)
class Breach:
    rule: Rule
    text: str


Waited = Callable[[int, int], int]
"""Return the nanoseconds between two times for which the cluster waited for a processor: see seed.Pressure.
"""


def judge_requests(
    requests: Sequence[Request], effects: Sequence[Effect], waited: Waited = lambda begin_ns, end_ns: 0
) -> list[Breach]:
    """waited: time to subtract before a duration is compared with a bound, because other programs may have
    had the machine."""
    breaches = []
    done = [effect for effect in effects if not effect.skipped]
    for one in requests:
        said = f"{one.client} {one.model} {one.outcome} after {(one.end_ns - one.start_ns) / MS:.0f} ms: {one.text}"
        at_fault = [effect for effect in done if touches(one, effect, waited)]
        if one.outcome is Outcome.WRONG:
            breaches.append(Breach(Rule.WRONG, said))
        elif one.outcome is Outcome.HUNG:
            breaches.append(Breach(Rule.HUNG, said))
        elif one.outcome is Outcome.AGAIN:
            breaches.append(Breach(Rule.AGAIN, said))
        elif one.outcome is Outcome.OK:
            late_ns = one.end_ns - one.start_ns - one.slo_ns - waited(one.start_ns, one.end_ns)
            delayed = any(
                one.client in effect.lossy or effect.fault.kind in DELAYS_CLIENTS for effect in at_fault
            )
            if late_ns > LATE_NS and not delayed:
                breaches.append(Breach(Rule.LATE, said))
            breaches += _slow(one, at_fault, said, waited)
        elif one.roomy and not any(one.client in effect.lossy for effect in at_fault):
            before = [effect for effect in done if effect.begin_ns <= one.end_ns]
            rule = Rule.SLOW if before and one.client in before[-1].lossy else Rule.LOST
            breaches.append(Breach(rule, said + _place(one, before)))
    return breaches


def judge_detection(effects: Sequence[Effect], waited: Waited = lambda begin_ns, end_ns: 0) -> list[Breach]:
    """Check that each failure that must be noticed was noticed within the bound of docs/chaos.md."""
    breaches = []
    for effect in effects:
        bound_ns = NOTICED_WITHIN_NS.get(effect.fault.kind, 0)
        if effect.skipped or not bound_ns:
            continue
        took_ns = effect.detected_ns - effect.begin_ns
        if not effect.detected_ns:
            breaches.append(Breach(Rule.UNNOTICED, effect.fault.kind))
        elif took_ns > bound_ns + waited(effect.begin_ns, effect.detected_ns):
            breaches.append(
                Breach(
                    Rule.UNNOTICED,
                    f"{effect.fault.kind}: {took_ns / MS:.0f} ms, the bound is {bound_ns / MS:.0f} ms",
                )
            )
    return breaches


def touches(one: Request, effect: Effect, waited: Waited = lambda begin_ns, end_ns: 0) -> bool:
    """Whether the request was under way, or began, while the effect lasted."""
    over_ns = one.start_ns - effect.due_ns - SERVED_AGAIN_NS
    return one.end_ns >= effect.begin_ns and (over_ns <= 0 or over_ns <= waited(effect.due_ns, one.start_ns))


def _slow(one: Request, effects: Sequence[Effect], said: str, waited: Waited) -> list[Breach]:
    """Check a request's duration: counted from the detection of the last failure that met it, or from its own
    beginning if that was later, it may take as long as the recovery."""
    if not (one.roomy and effects):
        return []
    effect = effects[-1]
    begin_ns = max(one.start_ns, effect.due_ns)
    over_ns = one.end_ns - begin_ns - SERVED_AGAIN_NS - waited(begin_ns, one.end_ns)
    return (
        [Breach(Rule.SLOW, f"{said}; {over_ns / MS:.0f} ms too long after {effect.fault.kind}")]
        if over_ns > 0
        else []
    )


def _place(one: Request, before: Sequence[Effect]) -> str:
    """Describe the time of a request relative to the last fault that began before it ended."""
    if not before:
        return "; before any fault"
    effect = before[-1]
    return (
        f"; begun {(one.start_ns - effect.due_ns) / MS:.0f} ms after {effect.fault.kind} was noticed or over, "
        f"ended {(one.end_ns - effect.due_ns) / MS:.0f} ms after it"
    )


def recovered_ns(requests: Sequence[Request], effect: Effect) -> int:
    """Return the end of the last request that the fault failed, or that waited: for the detection, or
    noticeably after it. The time of the detection if there is none."""
    origin_ns = effect.detected_ns or effect.due_ns
    touched = [
        one.end_ns
        for one in requests
        if one.roomy
        and one.end_ns > origin_ns
        and touches(one, effect)
        and (
            one.outcome is not Outcome.OK
            or one.start_ns < origin_ns
            or one.end_ns - one.start_ns > NOTICEABLE_NS
        )
    ]
    return max([origin_ns, *touched])


def noticed_by_client_ns(requests: Sequence[Request], effect: Effect, client: str) -> int:
    """Return the time at which the first request of such a client failed by a lost connection; 0: none
    did."""
    ends = [
        one.end_ns
        for one in requests
        if one.client == client and one.outcome is Outcome.LOST and one.end_ns >= effect.begin_ns
    ]
    return min(ends, default=0)


# ----- registrations ----------------------------------------------------------------------------


class State(enum.StrEnum):
    """The possible states of a model that is registered and removed meanwhile."""

    ABSENT = "absent"
    SERVING = "serving"
    UNLOADED = "unloaded"


_AFTER = {
    "register": frozenset((State.SERVING,)),
    "load": frozenset((State.SERVING,)),
    "unload": frozenset((State.UNLOADED,)),
    "unregister": frozenset((State.ABSENT,)),
}


def states(
    changes: Sequence[Change], names: Iterable[str]
) -> tuple[dict[str, frozenset[State]], list[Breach]]:
    """Return the states that each model may have after these changes, made in sequence from ABSENT, and the
    answers that contradict earlier ones.

    An acknowledged change has happened. A change that failed may have happened or not: perhaps only its
    answer was lost.
    """
    may_be = {name: frozenset((State.ABSENT,)) for name in names}
    breaches = []
    for one in changes:
        before, after = may_be[one.model], _AFTER[one.operation]
        if one.outcome is Outcome.OK:
            # When the same content is registered again, the answer does not say whether an unloaded model
            # serves.
            stays = one.operation == "register" and State.UNLOADED in before
            may_be[one.model] = after | frozenset((State.UNLOADED,)) if stays else after
        elif one.outcome is Outcome.REFUSED and one.text == NO_SUCH_MODEL:
            if State.ABSENT not in before:
                breaches.append(
                    Breach(
                        Rule.CHANGED,
                        f"{one.operation} {one.model}: not found, and it is {'/'.join(sorted(before))}",
                    )
                )
            may_be[one.model] = frozenset((State.ABSENT,))
        elif one.outcome is Outcome.HUNG:
            breaches.append(Breach(Rule.HUNG, f"{one.operation} {one.model}: {one.text}"))
            may_be[one.model] = before | after
        else:
            may_be[one.model] = before | after
    return may_be, breaches


def judge_states(may_be: dict[str, frozenset[State]], found: dict[str, State], where: str) -> list[Breach]:
    return [
        Breach(
            Rule.CHANGED,
            f"{name} is {found.get(name, State.ABSENT)} {where}, and may be {'/'.join(sorted(allowed))}",
        )
        for name, allowed in may_be.items()
        if found.get(name, State.ABSENT) not in allowed
    ]
