"""The division of a machine's cores, by simulation: the choice against every division of 16 and 64 cores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.cores import CASES, question_of
from clockwork.cli.root import cli
from clockwork.errors import ConfigError
from clockwork.formats.profiles import ModelProfile, save_profiles
from clockwork.scheduler.cores import Division, choose, ranked
from clockwork.sim.division import planned, planned_for

MS, SECOND = 1_000_000, 1_000_000_000


@pytest.mark.parametrize(("cores", "seconds"), [(16, 3.0), (64, 1.5)])
@pytest.mark.parametrize("case", ["one needs threads", "two need threads", "nearly too slow", "long SLOs"])
def test_the_choice_is_as_good_as_that_of_an_exhaustive_search(cores: int, seconds: float, case: str) -> None:
    question = question_of(CASES[case], cores, 0.6, seconds)
    loads = question.loads(1)
    found = ranked(loads, cores)
    assert len(found) >= (6 if cores == 16 else 20)
    goodput = {division: question.goodput(division, [1]) for division, _ in found}
    assert goodput[choose(loads, cores)] >= 0.98 * max(goodput.values())


def test_a_plan_simulates_the_divisions_that_are_expected_to_be_best() -> None:
    question = question_of(CASES["hard to divide"], 16, 1.2, 2.0)
    lines: list[str] = []
    plan = planned(question, [3], lines.append)
    assert len(lines) == len(plan.simulated) < len(plan.expected) == 15
    assert Division(16) in plan.simulated, "one core each is always compared"
    assert plan.simulated[plan.division] == plan.goodput
    assert plan.goodput >= 0.99 * max(plan.simulated.values())
    assert lines[0].startswith("16 of one core: ")
    assert planned(question, [3]) == plan


def test_a_worker_serves_the_models_whose_slos_it_meets() -> None:
    question = question_of(CASES["one needs threads"], 16, 0.6, 1.0)
    assert [question.serves(threads, "m0") for threads in (1, 2, 4)] == [False, True, True]
    assert question.serves(1, "m1")
    assert not dataclasses.replace(question, slo_ns=5 * MS).serves(1, "m1")


def test_profiles_have_to_fit_together() -> None:
    question = question_of(CASES["long SLOs"], 16, 0.6, 1.0)
    profiles = dict(question.profiles)
    for wrong, text in (
        ({2: profiles[2]}, "one thread are missing"),
        ({1: profiles[1], 2: profiles[2][:1]}, "with 1 and with 2 threads are not the same"),
        ({1: profiles[1], 32: profiles[2]}, "an execution of 32 threads has at most 16 cores"),
    ):
        with pytest.raises(ConfigError, match=text):
            planned(dataclasses.replace(question, profiles=wrong), [1])


def divide(folder: Path, *options: str) -> Any:
    """Have the command divide 16 cores for a model that needs threads, and one that does not."""
    words = ["plan", "threads", "--cores", "16", "--requests", "2000", "--seeds", "1", "--noise", "0.02"]
    for threads, tight, loose in ((1, 40, 10), (2, 24, 6), (4, 13, 4)):
        file = folder / f"{threads}.json"
        profiles = [
            ModelProfile("tight", {1: tight * MS}, 1 << 20, MS, slo_ns=30 * MS),
            ModelProfile("loose", {1: loose * MS}, 1 << 20, MS, slo_ns=200 * MS),
        ]
        save_profiles(file, profiles if threads == 1 else profiles[::-1])
        words += ["--measured", f"{threads}={file}"]
    found = CliRunner().invoke(cli, [*words, *options])
    assert found.exit_code == 0, found.output
    return found.stdout


def test_the_command_divides_the_cores_for_a_rate(tmp_path: Path) -> None:
    found = json.loads(divide(tmp_path, "--rate", "600", "--json"))
    division = Division(**found["division"])
    assert (division.narrow + division.wide_cores, division.wide > 0) == (16, True)
    narrow = [1] if division.narrow else []
    assert found["served"] == {"tight": [division.threads], "loose": [*narrow, division.threads]}
    assert found["goodput"] > 500
    assert found["narrow_only"] is None, "one core each would not serve all models"
    assert {(row["narrow"], row["wide"], row["threads"]) for row in found["simulated"]} >= {
        (division.narrow, division.wide, division.threads)
    }
    said = divide(tmp_path, "--rate", "600")
    assert f"executors     {division}" in said
    assert f"tight         by executors of {division.threads} cores" in said
    # A longer SLO needs no threads.
    loose = json.loads(divide(tmp_path, "--rate", "300", "--slo", "1s", "--json"))
    assert loose["division"] == {"narrow": 16, "wide": 0, "threads": 0}
    assert loose["narrow_only"] == loose["goodput"]
    assert loose["served"] == {"tight": [1], "loose": [1]}


def test_a_rate_needs_the_times_of_one_thread(tmp_path: Path) -> None:
    file = tmp_path / "two.json"
    save_profiles(file, [ModelProfile("m", {1: MS}, 1 << 20, MS, slo_ns=SECOND)])
    words = ["plan", "threads", "--cores", "4", "--rate", "10", "--measured", f"2={file}"]
    found = CliRunner().invoke(cli, words)
    assert found.exit_code == 2
    assert "--rate needs the profiles of one thread" in " ".join(found.output.replace("│", " ").split())


def test_a_launcher_divides_by_what_it_knows_of_loads() -> None:
    loads = question_of(CASES["one needs threads"], 16, 0.9, 1.0).loads(1)
    found = planned_for(loads, 16, 15)
    assert found.threads in (2, 4)
    assert 0 < found.wide_cores <= 15
    # Nothing is asked of the models: as many wide executors as they need at least.
    idle = [dataclasses.replace(load, rate=0.0) for load in loads]
    assert planned_for(idle, 16, 15) == Division(14, 1, 2)
    # A model was not timed with more threads, because it is fast.
    quick = dataclasses.replace(loads[1], exec_ns={1: loads[1].exec_ns[1]})
    assert planned_for([loads[0], quick], 16, 15).wide > 0
    # No number of threads meets this SLO, and the others are served all the same.
    hopeless = dataclasses.replace(loads[0], name="hopeless", slo_ns=MS)
    assert planned_for([*loads, hopeless], 16, 15).wide > 0
    assert planned_for([hopeless], 16, 15) == Division(16)
