"""A failing seed is shrunk to the smallest world that still fails, and written as a test that fails in the
same way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from clockwork.sim import check, random_world
from clockwork.sim.shrink import IMPORTS, as_test, failure_of, rule_of, shrink
from clockwork.sim.world import Report, simulate

Rule = Callable[[Report], str]


def too_many_evictions(report: Report) -> str:
    """A rule that small worlds break, too: it takes models, and too little memory for all of them."""
    return f"a model is evicted (event {report.unloads})" if report.unloads >= 1 else ""


def refusals(report: Report) -> str:
    """A rule that a single request breaks, or a worker that is lost under two requests."""
    count = int(report.refused.sum())
    return f"{count} requests are refused (at 17 ns)" if count else ""


def planted(rule: Rule) -> Callable[..., Report]:
    """Run simulate() with an additional rule."""

    def run(*arguments: Any, **more: Any) -> Report:
        report = simulate(*arguments, **more)
        if sentence := rule(report):
            raise AssertionError(sentence)
        return report

    return run


def first_failure(policy: str, without: str) -> random_world.RandomWorld:
    for seed in range(100):
        world = random_world.random_world(seed)
        is_allowed = getattr(world.cluster, without) == 0
        if is_allowed and failure_of(world, policy) and len(world.arrivals.t_ns) > 50:
            return world
    raise AssertionError("no world breaks the rule")


@pytest.mark.parametrize(
    ("rule", "requests_max", "models_max"),
    [(too_many_evictions, 5, 5), (refusals, 3, 2)],
    ids=["evictions", "refusals"],
)
@pytest.mark.parametrize("policy", ["edf", "fifo"])
def test_a_planted_defect_is_shrunk_to_a_few_requests_and_printed_as_a_test_that_fails(
    policy: str, rule: Rule, requests_max: int, models_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = planted(rule)
    monkeypatch.setattr(random_world, "simulate", broken)
    # In a smaller world, another message is lost, and another device crashes: it has no request that is
    # refused for the loss, and no model that is evicted after the crash.
    world = first_failure(policy, without="link_loss" if rule is refusals else "crashes_per_hour")
    shrunk = shrink(world, policy)
    assert rule_of(shrunk.sentence) == rule_of(failure_of(world, policy))
    assert shrunk.requests_before > 50
    assert sum(one.concurrency for one in shrunk.world.closed) + len(shrunk.requests) <= requests_max, (
        as_test(shrunk)
    )
    assert len(shrunk.world.models) <= models_max
    assert shrunk.world.cluster.devices == 1

    text = as_test(shrunk)
    written: dict[str, Any] = {}
    exec(IMPORTS + "\n\n" + text, written)
    [test] = [one for name, one in written.items() if name.startswith("test_")]
    test()  # without the defect the test passes
    written["simulate"] = broken
    with pytest.raises(AssertionError, match=r"evicted|refused"):
        test()
    assert text.count("\n") < 30, text


def test_a_world_that_does_not_fail_is_not_shrunk() -> None:
    with pytest.raises(ValueError, match="seed 3 does not fail under edf"):
        shrink(random_world.random_world(3), "edf")


def test_another_failure_is_not_taken_for_the_same_one() -> None:
    assert rule_of("a late success (seed 5, at 170 ns, event 9)") == rule_of(
        "a late success (seed 5, at 3 ns, event 1)"
    )
    assert rule_of("a late success (seed 5)") != rule_of("two are in the link (seed 5)")


def test_the_command_prints_the_test(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(random_world, "simulate", planted(refusals))
    monkeypatch.setattr(sys, "argv", ["check", "--seeds", "1", "--policy", "edf"])
    assert check.main() == 1
    said = capsys.readouterr().out
    assert "def test_edf_seed_0_disturbed_n_requests_are_refused() -> None:" in said
    assert "edf, seed 0, disturbed: " in said
