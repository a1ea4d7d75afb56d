"""The paper's experiments in their smallest form: every figure runs, is drawn, and is reproducible."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.paper import __main__ as program
from bench.paper import bounds, common, fig6, fig7, fig8, fig9, fig11, live
from bench.paper.common import MS, SECOND, Setting
from clockwork.workloads import Arrivals, poisson

PNG = b"\x89PNG\r\n\x1a\n"


def run(name: str, out: Path, *arguments: str) -> dict[str, Any]:
    """Run an experiment in its tiny form from the command line; return the content of its JSON file."""
    assert (
        program.main([name, "--form", "tiny", "--no-live", "--jobs", "1", "--out", str(out), *arguments]) == 0
    )
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", program.FIGURES)
@pytest.mark.slow
def test_a_figure_is_computed_and_drawn(name: str, tmp_path: Path) -> None:
    found = run(name, tmp_path)
    assert found["figure"] == name
    assert found["conditions"].keys() >= {"machine", "commit", "seed"}
    assert "source" in found["paper"]
    assert {row["policy"] for row in found["rows"] if "policy" in row} >= set(
        found["policies"]
    ) or name == "fig2"
    image = (tmp_path / f"{name}.png").read_bytes()
    assert image.startswith(PNG)
    width, height = struct.unpack(">II", image[16:24])
    assert min(width, height) > 300


def test_the_same_seed_gives_the_same_figure_and_another_one_another(tmp_path: Path) -> None:
    def digests(seed: int) -> list[str]:
        rows = run("fig7", tmp_path, "--no-plots", "--seed", str(seed))["rows"]
        return [row["digest"] for row in rows if "digest" in row]

    assert digests(1) == digests(1) != digests(2)


def test_policies_are_chosen_with_their_options(tmp_path: Path) -> None:
    early, late = "paper:schedule_ahead_ms=2", "paper:schedule_ahead_ms=20"
    found = run("fig7", tmp_path, "--no-plots", "--policies", f"{early},{late}")
    assert found["policies"] == [early, late]
    one, other = (next(row for row in found["rows"] if row["policy"] == name) for name in (early, late))
    assert one["digest"] != other["digest"]


def test_what_is_wrong_on_the_command_line_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, named in (
        (["fig3"], "no experiment 'fig3'"),
        (["fig7", "--policies", "lifo"], "no scheduling policy 'lifo'"),
        (["fig7", "--policies", "paper:batch_cap"], "NAME=NUMBER, not 'batch_cap'"),
        (["fig7", "--policies", "paper:=4"], "NAME=NUMBER, not '=4'"),
        (["fig9", "--devices", "0"], "0 devices: there must be at least 1"),
        (["fig9", "--devices", "-3"], "-3 devices: there must be at least 1"),
    ):
        assert program.main([*arguments, "--out", str(tmp_path)]) == 2
        assert named in " ".join(capsys.readouterr().out.split())
    assert program.names_of(["fig10", "fig9"]) == ["fig9"]
    assert program.names_of([]) == list(program.FIGURES)
    assert list(tmp_path.iterdir()) == []


def test_jobs_give_the_same_in_other_processes() -> None:
    ticks: list[float] = []
    jobs = [fig7.Job("edf", 12, 600, 3.0, 20, SECOND // 4, seed) for seed in (1, 2, 3)]
    alone = common.run_jobs(Setting(jobs=1), fig7.work, jobs, ticks.append)
    apart = common.run_jobs(Setting(jobs=2), fig7.work, jobs)
    assert [row["digest"] for row in alone] == [row["digest"] for row in apart]
    assert ticks == sorted(ticks)
    assert ticks[-1] == 1.0


def test_no_policy_gets_above_the_bound_of_the_paper_s_tight_slos() -> None:
    for policy in ("edf", "paper", "adaptive"):
        job = fig7.Job(policy, 12, 2400, 1.5, 30, SECOND // 2, 3)
        got = fig7.work(job, lambda part: None)["satisfied"]
        most = fig7.work(fig7.Job("", *list(vars(job).values())[1:]), lambda part: None)["satisfied"]
        assert all(one <= limit + 0.01 for one, limit in zip(got, most)), (policy, got, most)


def test_batch_clients_get_no_more_than_their_bound() -> None:
    for models, concurrency in ((12, 16), (48, 4)):
        jobs = [fig8.Job(policy, models, concurrency, SECOND // 2, 1) for policy in ("fifo", "")]
        got, most = (fig8.work(job, lambda part: None)["batch/s"] for job in jobs)
        assert all(one <= limit for one, limit in zip(got, most)), (got, most)


def test_the_bound_is_exact_where_one_can_count() -> None:
    profile = common.resnets(1)[0]
    alone_ns, room_ns = profile.exec_ns[1], 2 * common.LINK_NS + common.input_ns(profile)
    margin_ns = alone_ns // 100  # more than the noise for which the bound leaves room
    both = Arrivals.of([0, 0], [0, 1])
    # Two models, one device: with time for a single execution only one model is served, with time for both,
    # both are. The budget of device time is loose by the time left at the end, so it can only be bounded from
    # above.
    assert bounds.most_served(both, 2, profile, 1, alone_ns + room_ns - margin_ns) == 0
    assert bounds.most_served(both, 2, profile, 1, alone_ns + room_ns + margin_ns) < 1.3
    assert bounds.most_served(both, 2, profile, 2, alone_ns + room_ns + margin_ns) == 2
    assert bounds.most_served(Arrivals.of([], []), 2, profile, 1, SECOND) == 0


def test_floors_are_where_satisfaction_begins_to_hold() -> None:
    found = fig7.floors([3.0, 5.0, 7.0, 9.0], [0.995, 0.96, 1.0, 0.9995])
    assert found == {"floor_ms": 7.0, "floor_95%_ms": 3.0, "floor_99.9%_ms": 7.0}
    assert fig7.floors([3.0], [0.5])["floor_ms"] is None


def test_major_clients_go_to_all_models_that_there_are_by_then() -> None:
    size = fig6.Size(SECOND, 50, SECOND // 10)
    arrivals = fig6.growing(poisson([2000.0], size.total_ns, seed=1), size, seed=1).collect()
    early = arrivals.model[arrivals.t_ns < SECOND]
    late = arrivals.model[arrivals.t_ns > size.total_ns - SECOND // 10]
    assert set(early.tolist()) == {1}
    assert late.max() > 45
    counts = np.bincount(arrivals.model[arrivals.t_ns > 3 * SECOND], minlength=51)
    assert counts[0] == 0
    assert counts[1:15].max() < 2 * counts[1:15].min(), "the models do not get equally much"


def test_the_trace_needs_at_least_the_devices_that_could_execute_it() -> None:
    size = fig9.SIZES["tiny"]
    setting = Setting("tiny", seed=1)
    trace = fig9.trace_of(setting, size)
    rates, costs = fig9.needs(trace, size, size.begin_minute, fig9.Job("", "original", setting))
    assert sum(rates) == pytest.approx(size.rate, rel=0.01)
    assert fig9.bound(trace, size, fig9.Job("", "original", setting), 1000)[0] == pytest.approx(sum(rates))
    half = fig9.bound(trace, size, fig9.Job("", "original", setting), 0)[0]
    assert half == 0
    assert sum(costs) > 0


def test_the_fewest_devices_for_the_trace_are_found_in_its_busiest_part() -> None:
    setting = Setting("tiny", seed=1)
    size = dataclasses.replace(fig9.SIZES["tiny"], rate=4000.0, whole_ns=30 * 60 * SECOND)
    trace, job = fig9.trace_of(setting, size), fig9.Job("edf", "shuffled", setting)
    ticks: list[float] = []
    devices, tried = fig9.fewest(job, size, trace, ticks.append)
    bad = {one["devices"]: one["bad_%"] for one in tried}
    assert devices is not None
    assert devices > 1
    assert bad[devices] <= 1e-4 < bad[devices - 1]
    assert len(ticks) == len(tried)
    planner = fig9.planner(job, size, trace)
    assert planner.scenario.rate == size.rate
    assert planner.scenario.crowding > 1.1, "its busiest minute is no busier than the whole"
    assert 1 <= planner.fluid_devices() <= devices


def test_where_one_device_is_enough_for_the_trace_the_search_ends_with_it() -> None:
    setting = Setting("tiny", seed=1)
    size = dataclasses.replace(fig9.SIZES["tiny"], rate=50.0)
    trace, job = fig9.trace_of(setting, size), fig9.Job("edf", "shuffled", setting)
    assert fig9.fewest(job, size, trace, lambda part: None)[0] == 1
    scenario = fig9.planner(job, size, trace).scenario
    usual, more = (
        len(dataclasses.replace(scenario, rate=rate).workload(1).collect()) for rate in (50.0, 500.0)
    )
    assert more == pytest.approx(10 * usual, rel=0.3), "another rate is another load"


def test_the_trace_runs_on_the_devices_that_are_asked_for() -> None:
    for mapping in ("shuffled", "original"):
        result = fig9.run(Setting("tiny", ("edf",), mapping=mapping, devices=3))
        [row] = result.rows
        assert (row["mapping"], row["devices"]) == (mapping, 3)
        assert "tried" not in row
        assert not any("found" in name for name in result.facts), "nothing was searched"
    searched = fig9.run(Setting("tiny", ("edf",), mapping="shuffled"))
    assert searched.facts["fewest devices found, shuffled"] == {"edf": searched.rows[0]["devices"]}


def test_a_load_rises_or_falls_until_nine_tenths_of_it_are_in_time() -> None:
    """Four V100s are offered more load than they can execute, or a third of their capacity."""
    job = fig11.Job("fifo", 4, "tiny", 1)
    for rate, least in ((fig11.DEVICE_RATE, 1), (4 * fig11.DEVICE_RATE, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fig11, "DEVICE_RATE", rate)
            steps = fig11.risen(job, fig11.simulated(job, 4 * rate, 1000, lambda part: None))
        assert len(steps) > least
        good = [one["good"] >= fig11.GOOD_MIN for one in steps]
        assert good == sorted(good, reverse=True)
        assert good.count(False) == 1 or good.count(True) == 1
        assert steps[1]["rate"] == pytest.approx(fig11.STEP * steps[0]["rate"])


def test_spreads_name_only_percentiles_that_there_are_values_for() -> None:
    found = live.spread([MS] * 999 + [2 * MS])
    assert found["p50_ms"] == found["p99_ms"] == 1.0
    assert "p99.9_ms" not in found
    assert found["max_ms"] == 2.0
