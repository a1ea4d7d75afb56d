"""The takeover protocol in a simulated cluster with an attacker (clockwork/sim/takeover), and its mutants.

A seed that fails is printed by ``python -m clockwork.sim.takeover``, and becomes a named test here.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from clockwork.sim.takeover import __main__ as command
from clockwork.sim.takeover.__main__ import TakeoverRun, percentile, run_seed, runs
from clockwork.sim.takeover.plan import MS, SECOND, TAKEN_OVER, Kind, make_plan
from clockwork.sim.takeover.world import TakeoverWorld
from tests.patience import PATIENCE_S
from tests.sim.takeover_mutants import MUTATIONS, Mutation, mutant

SEEDS = 40  # of each kind in the inner loop
SEEDS_SLOW = 400
SEEDS_LONG = 10_000

MUTANT_SEEDS = 60  # within which each mutant must be found

FIRST_ANSWER_MS = {
    Kind.KILL: (100, 300),
    Kind.STOP: (1_500, 1_500),
    Kind.CUT: (1_500, 1_500),
    Kind.SET_BACK: (1_500, 1_500),
    Kind.HAND_OVER: (100, 300),
}
"""Largest median and 99th percentile of the first answer through the new active."""


def check(done: list[TakeoverRun]) -> None:
    """Every promise was kept, and new actives answer soon."""
    assert [str(run) for run in done if run.failure] == []
    for kind, (p50_ms, p99_ms) in FIRST_ANSWER_MS.items():
        times = sorted(run.first_answer_ns for run in done if run.kind is kind)
        if times:
            assert percentile(times, 0.5) <= p50_ms * MS, kind
            assert percentile(times, 0.99) <= p99_ms * MS, kind


@pytest.mark.parametrize("kind", Kind)
def test_every_promise_is_kept(kind: Kind) -> None:
    check(list(runs(range(SEEDS), [kind])))


@pytest.mark.slow
@pytest.mark.parametrize("kind", Kind)
def test_every_promise_is_kept_in_hundreds_of_worlds(kind: Kind) -> None:
    check(list(runs(range(SEEDS, SEEDS + SEEDS_SLOW), [kind])))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", Kind)
def test_every_promise_is_kept_in_thousands_of_worlds(kind: Kind) -> None:
    check(list(runs(range(SEEDS_LONG), [kind])))


def found_by(mutation: Mutation) -> str:
    """The first failure that shows a mutation; "" if no seed does."""
    parts = mutant(mutation)
    for seed in range(MUTANT_SEEDS):
        for run in runs([seed], mutation.kinds, parts):
            if run.failure:
                return str(run)
    return ""


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(mutation, id=mutation.meaning, marks=[pytest.mark.slow] if mutation.is_rare else [])
        for mutation in MUTATIONS
    ],
)
def test_a_mutant_is_found(mutation: Mutation) -> None:
    assert found_by(mutation) != ""


def test_the_protocol_loaded_in_the_way_of_mutants_is_no_mutant() -> None:
    same = Mutation("nothing", "obedience", "class Obedience:", "class Obedience:")
    check(list(runs(range(3), parts=mutant(same))))


def digest(seed: int) -> str:
    """All answers of a seed's attacked world, as a checksum."""
    judge = TakeoverWorld(make_plan(seed, Kind.ATTACK)).run()
    return hashlib.sha256(repr(judge.answers).encode()).hexdigest()


def test_the_same_seed_gives_the_same_world_in_a_fresh_interpreter_too() -> None:
    program = f"from {__name__} import digest; print(digest(3))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.stdout.split() == [digest(3)] == [digest(3)], done.stderr


def test_plans_disturb_before_the_quiet_and_attacks_have_every_kind_of_disturbance() -> None:
    plans = [make_plan(seed, kind) for seed in range(200) for kind in Kind]
    for plan in plans:
        assert all(disruption.at_ns < plan.quiet_ns for disruption in plan.disruptions), plan
        assert plan.ends_ns >= plan.quiet_ns + SECOND, plan
    attacks = [plan for plan in plans if plan.kind is Kind.ATTACK]
    whats = {disruption.what for plan in attacks for disruption in plan.disruptions}
    assert len(whats) == len(type(next(iter(whats))))
    assert {plan.is_hostile for plan in attacks} == {True, False}


def test_the_command_prints_percentiles_of_each_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["takeover", "--seeds", "2"])
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(Kind)
    for kind, line in zip(Kind, lines, strict=True):
        assert line.startswith(kind.value)
        assert "2 worlds, 0 failures" in line
        assert ("first answer p50" in line) == (kind in TAKEN_OVER)


def test_the_command_names_a_seed_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    obeys_anyone = next(mutation for mutation in MUTATIONS if mutation.meaning == "a worker obeys anyone")
    parts = mutant(obeys_anyone)
    monkeypatch.setattr(command, "run_seed", lambda seed, kind, _: run_seed(seed, kind, parts))
    monkeypatch.setattr(sys, "argv", ["takeover", "--seeds", "1", "--first", "5", "--kind", "stop"])
    assert command.main() == 1
    output = capsys.readouterr().out
    assert "seed 5, stop: " in output
    assert "stop active for" in output
    assert "w1 obeyed epoch 1 and had heard of 2" in output or "w0 obeyed epoch 1" in output
    assert "1 worlds, 1 failures" in output
