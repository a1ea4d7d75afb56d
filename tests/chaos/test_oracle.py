"""The oracle finds a violation of each rule, and a schedule follows from its seed alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from clockwork.system.clock import MS, SECOND
from tests.chaos.faults import NOTICED_WITHIN_NS, Effect
from tests.chaos.oracle import (
    Rule,
    State,
    judge_detection,
    judge_requests,
    judge_states,
    recovered_ns,
    states,
)
from tests.chaos.records import (
    NO_SUCH_MODEL,
    ROOMY_SLO_NS,
    TIGHT_SLO_NS,
    Change,
    Outcome,
    Request,
    read,
    to_line,
)
from tests.chaos.scenario import Fault, Kind, scenario
from tests.chaos.soak import FLAT, Series, judge, slope

AT = 100 * SECOND
"""Time of the fault in a test."""


def request(
    start_ns: int,
    took_ns: int,
    outcome: Outcome = Outcome.OK,
    *,
    client: str = "sync",
    slo_ns: int = ROOMY_SLO_NS,
) -> Request:
    return Request(client, "m0", AT + start_ns, AT + start_ns + took_ns, outcome, slo_ns)


def effect(
    kind: Kind = Kind.KILL_WORKER, *, lossy: frozenset[str] = frozenset(), noticed_ns: int = 10 * MS
) -> Effect:
    fault = Fault(kind, 500, 0, 0, 0)
    return Effect(fault, AT, AT + noticed_ns, lossy, "exit", AT + noticed_ns)


def rules(requests: list[Request], effects: list[Effect]) -> list[Rule]:
    return [breach.rule for breach in judge_requests(requests, effects)]


def test_a_good_run_is_without_a_breach() -> None:
    requests = [request(at * MS, 5 * MS) for at in range(-500, 3000, 20)]
    assert rules(requests, [effect()]) == []
    # the request was under way, and was planned anew
    assert rules([request(-5 * MS, 900 * MS)], [effect()]) == []


@pytest.mark.parametrize(
    ("one", "rule"),
    [
        (request(-SECOND, MS, Outcome.WRONG), Rule.WRONG),
        (request(0, 20 * SECOND, Outcome.HUNG), Rule.HUNG),
        (request(0, 0, Outcome.AGAIN, slo_ns=0), Rule.AGAIN),
        (request(-SECOND, MS, Outcome.REFUSED), Rule.LOST),  # a refusal before the fault
        (request(-MS, 5 * MS, Outcome.UNAVAILABLE), Rule.LOST),  # a failure during a fault that loses nothing
        (request(5 * SECOND, MS, Outcome.FAILED), Rule.LOST),  # a failure long after the fault
        (request(-MS, 1100 * MS), Rule.SLOW),
        (request(200 * MS, 1100 * MS), Rule.SLOW),
        (request(SECOND, SECOND, slo_ns=TIGHT_SLO_NS), Rule.LATE),
    ],
)
def test_each_rule_is_broken_by_one_request(one: Request, rule: Rule) -> None:
    assert rules([request(-2 * SECOND, MS), one], [effect()]) == [rule]


def test_what_a_fault_may_cost_it_costs_only_then_and_only_whom_it_may() -> None:
    killed = effect(Kind.KILL_CONTROLLER, lossy=frozenset(("sync", "raw")))
    lost = request(-MS, 5 * MS, Outcome.LOST)
    assert rules([lost], [killed]) == []
    assert rules([request(-MS, 5 * MS, Outcome.LOST, client="http")], [killed]) == [Rule.LOST]
    assert rules([request(1200 * MS, 5 * MS, Outcome.LOST)], [killed]) == [Rule.SLOW]
    # a fault never excuses a wrong answer
    assert rules([request(-MS, 5 * MS, Outcome.WRONG)], [killed]) == [Rule.WRONG]
    skipped = effect(Kind.KILL_CONTROLLER, lossy=frozenset(("sync",)))
    skipped.skipped = "not here"
    assert rules([lost], [skipped]) == [Rule.LOST]


def test_what_others_had_of_the_machine_is_not_held_against_the_cluster() -> None:
    slow = [request(-MS, 1100 * MS)]
    assert judge_requests(slow, [effect()], lambda begin_ns, end_ns: (end_ns - begin_ns) // 2) == []
    (breach,) = judge_requests(slow, [effect()], lambda begin_ns, end_ns: (end_ns - begin_ns) // 100)
    assert breach.rule is Rule.SLOW


def test_a_request_that_meets_two_failures_is_held_against_the_later_one() -> None:
    stopped = effect(Kind.STOP_CONTROLLER, lossy=frozenset(("sync",)))
    stopped.begin_ns, stopped.due_ns = AT + 800 * MS, AT + 5 * SECOND
    both = request(700 * MS, 5 * SECOND)
    assert rules([both], [effect(), stopped]) == []
    assert rules([both], [effect()]) == [Rule.SLOW]


def test_tight_requests_may_fail_but_not_be_late() -> None:
    tight = [request(0, MS, outcome, slo_ns=TIGHT_SLO_NS) for outcome in (Outcome.MISSED, Outcome.REFUSED)]
    assert rules(tight, [effect()]) == []


def test_a_failure_has_to_be_noticed_within_its_bound() -> None:
    bound_ns = NOTICED_WITHIN_NS[Kind.STOP_WORKER]
    assert judge_detection([effect(Kind.STOP_WORKER, noticed_ns=bound_ns)]) == []
    late = effect(Kind.STOP_WORKER, noticed_ns=bound_ns + MS)
    assert [breach.rule for breach in judge_detection([late])] == [Rule.UNNOTICED]
    assert judge_detection([late], lambda begin_ns, end_ns: 2 * MS) == []
    never = effect(Kind.STOP_WORKER)
    never.detected_ns = 0
    assert [breach.rule for breach in judge_detection([never])] == [Rule.UNNOTICED]
    never.skipped = "not here"
    assert judge_detection([never]) == []
    unnoticeable = effect(Kind.PAUSE_WORKER)
    unnoticeable.detected_ns = 0
    assert judge_detection([unnoticeable]) == []


def test_recovery_counts_from_the_detection_to_the_last_request_that_suffered() -> None:
    killed = effect(Kind.KILL_CONTROLLER, lossy=frozenset(("sync",)))
    requests = [
        request(-SECOND, 5 * MS),
        request(-MS, 400 * MS),
        request(50 * MS, 250 * MS, Outcome.LOST),
        request(600 * MS, 5 * MS),
        request(700 * MS, 20 * MS),
    ]
    assert recovered_ns(requests, killed) == AT + 399 * MS
    waited = request(50 * MS, 800 * MS)  # the client waited for a connection
    assert recovered_ns([*requests, waited], killed) == waited.end_ns
    assert recovered_ns([], killed) == killed.detected_ns


def change(operation: str, outcome: Outcome = Outcome.OK, text: str = "") -> Change:
    return Change(operation, "c0", AT, AT + MS, outcome, text)


@pytest.mark.parametrize(
    ("changes", "may_be"),
    [
        ([], {State.ABSENT}),
        ([change("register")], {State.SERVING}),
        ([change("register"), change("unload")], {State.UNLOADED}),
        ([change("register"), change("unload"), change("load")], {State.SERVING}),
        ([change("register"), change("unload"), change("register")], {State.SERVING, State.UNLOADED}),
        ([change("register"), change("unregister")], {State.ABSENT}),
        ([change("register", Outcome.LOST)], {State.ABSENT, State.SERVING}),
        ([change("register"), change("unregister", Outcome.LOST)], {State.ABSENT, State.SERVING}),
        (
            [change("register", Outcome.LOST), change("unload", Outcome.REFUSED, NO_SUCH_MODEL)],
            {State.ABSENT},
        ),
        ([change("register", Outcome.FAILED), change("unregister")], {State.ABSENT}),
    ],
)
def test_what_was_acknowledged_is_so_and_the_rest_may_be(changes: list[Change], may_be: set[State]) -> None:
    found, breaches = states(changes, ["c0"])
    assert found == {"c0": may_be}
    assert breaches == []
    for state in State:
        wrong = judge_states(found, {} if state is State.ABSENT else {"c0": state}, "here")
        assert bool(wrong) == (state not in may_be)


def test_a_model_that_was_registered_is_found() -> None:
    _, breaches = states([change("register"), change("load", Outcome.REFUSED, NO_SUCH_MODEL)], ["c0"])
    assert [breach.rule for breach in breaches] == [Rule.CHANGED]


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = [request(0, MS, Outcome.LOST), change("register", Outcome.FAILED, 'what "it" said\n')]
    (tmp_path / "records").write_text("".join(map(to_line, records)))
    assert list(read(tmp_path / "records")) == records


def test_a_schedule_follows_from_its_seed_and_all_kinds_come_in_turn() -> None:
    made = [scenario(seed, 2) for seed in range(2 * len(Kind))]
    assert made == [scenario(seed, 2) for seed in range(2 * len(Kind))]
    assert [one.faults[0].kind for one in made] == list(Kind) * 2
    assert {len(one.faults) for one in made} == {1, 2}
    assert made[0] != made[len(Kind)]
    assert {fault.kind for seed in range(50) for fault in scenario(seed, 2, Kind.FLIP_CATALOG).faults} == {
        Kind.FLIP_CATALOG
    }


# ----- what grows -------------------------------------------------------------------------------


def series(per_hour: float, kind: str = "rss_mib", noise: float = 1.0, step_s: float = 15.0) -> Series:
    rng = random.Random(5)
    one = Series("controller", kind)
    for index in range(240):
        at_s = index * step_s
        one.at_s.append(at_s)
        one.values.append(50 + per_hour * at_s / 3600 + rng.uniform(-noise, noise))
    return one


def test_the_slope_is_the_series_own_and_no_outlier_moves_it() -> None:
    one = series(20, noise=0.0)
    one.values[100:110] = [900.0] * 10
    assert slope(one.at_s, one.values) * 3600 == pytest.approx(20)
    assert slope([1.0], [5.0]) == 0.0


@pytest.mark.parametrize("kind", list(FLAT))
def test_growth_beyond_its_bound_is_told_from_none(kind: str) -> None:
    bound = FLAT[kind]
    for per_hour, flat in ((0.0, True), (0.5 * bound, True), (2 * bound, False), (-3 * bound, True)):
        (verdict,) = judge([series(per_hour, kind, noise=bound / 4)], 3600)
        assert verdict.flat == flat, verdict


def test_a_warm_up_is_no_growth_and_a_short_life_is_not_judged() -> None:
    one = series(0)
    one.values[:40] = [index * 1.0 for index in range(40)]
    (verdict,) = judge([one], 3600)
    assert verdict.flat
    assert judge([Series("brief", "rss_mib", one.at_s[:50], one.values[:50])], 3600) == []
