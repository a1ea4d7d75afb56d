"""Planning: the number of devices, the rate and the SLO that a load needs; and the shortage of a cluster that
is almost large enough."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from clockwork.cli.plan import arena_widths, fewest_threads
from clockwork.cli.root import cli
from clockwork.controller.settings import ControllerSettings
from clockwork.errors import ConfigError
from clockwork.formats.profiles import ModelProfile, linear, save_profiles
from clockwork.models import by_threads
from clockwork.sim import Cluster, Report, planning, simulate, world
from clockwork.sim.planning import Planner, Scenario
from clockwork.workloads import Workload, poisson, zipf

MS = 1_000_000
SECOND = 1000 * MS
MIB = 1 << 20
PAGE = 16 * MIB

CNN = linear("cnn", 0, 10 * MS, 1, weights_bytes=100_000_000, load_ns=8 * MS, slo_ns=100 * MS)
"""A model with one request at a time, 10 ms: a device does 100 a second under any policy."""


def scenario(
    models: list[ModelProfile], rate: float, devices: int = 1, skew: float = 0.0, **more: Any
) -> Scenario:
    def arrivals(rate: float, duration_ns: int, seed: int) -> Workload:
        return poisson([rate * share for share in zipf(len(models), skew)], duration_ns, seed=seed)

    cluster = Cluster(devices=devices, **more.pop("cluster", {}))
    return Scenario(models, arrivals, cluster, rate, **{"requests": 4000, "seeds": (1, 2), **more})


def test_a_load_takes_as_many_devices_as_its_executions_fill() -> None:
    plan = Planner(scenario([CNN], rate=250)).devices()
    assert (plan.answer, plan.fluid) == (3, 3)
    assert plan.limited_by == "execution"
    assert plan.relief["execution"] < 0.01 < plan.relief["memory"] == plan.relief["loading"]
    assert plan.at is not None
    assert plan.at.passes
    assert plan.at.execution == pytest.approx(250 / 300, abs=0.05)
    assert plan.beyond is not None
    assert plan.beyond.devices == 2
    assert not plan.beyond.passes


def test_a_plan_is_of_the_policy_that_a_controller_has(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()

    def noting(models: Any, cluster: Any, workloads: Any, policy: str, *more: Any, **settings: Any) -> Report:
        seen.add(policy)
        return simulate(models, cluster, workloads, policy, *more, **settings)

    monkeypatch.setattr(planning, "simulate", noting)
    Planner(scenario([CNN], rate=250)).devices()
    assert seen == {ControllerSettings().policy}


def test_the_rate_that_devices_hold_is_found_from_both_sides_and_below_the_bound() -> None:
    planner = Planner(scenario([CNN], rate=1, devices=3))
    plan = planner.rate()
    assert plan.answer is not None
    assert 0.85 * plan.fluid < plan.answer <= plan.fluid * 1.03
    assert plan.fluid == pytest.approx(300 / 0.99, rel=0.01)
    assert plan.beyond is not None
    assert plan.answer < plan.beyond.rate < plan.answer * 1.03
    again = Planner(scenario([CNN], rate=plan.answer)).devices()
    assert again.answer == 3, "the inverse question has the inverse answer"


def test_the_tightest_slo_leaves_room_for_the_queue() -> None:
    idle = Planner(scenario([CNN], rate=1, devices=2)).slo()
    busy = Planner(scenario([CNN], rate=170, devices=2)).slo()
    assert idle.answer is not None
    assert busy.answer is not None
    assert 10 * MS < idle.answer < 11.5 * MS < 15 * MS < busy.answer < 200 * MS
    assert busy.at is not None
    assert busy.at.bad_fraction <= 0.01


def test_models_that_do_not_fit_make_loading_or_memory_the_limit() -> None:
    """Sixteen models, room for eight on a device, a load as long as twenty executions."""
    fast = dataclasses.replace(CNN, exec_ns={1: 2 * MS}, load_ns=40 * MS)
    models = [dataclasses.replace(fast, name=f"cnn-{number}") for number in range(16)]
    pages = 8 * CNN.pages(PAGE)
    plan = Planner(scenario(models, rate=1, devices=1, cluster={"page_count": pages})).rate()
    assert plan.limited_by in ("loading", "memory")
    assert plan.relief["memory"] < plan.relief["execution"]
    assert plan.at is not None
    assert plan.at.memory == 1.0
    assert plan.at.loads_rate > 1
    assert plan.at.execution < 0.7


def seldom(rare: ModelProfile, part: float, **more: Any) -> Scenario:
    """CNN, and another model with only a small part of the requests."""

    def arrivals(rate: float, duration_ns: int, seed: int) -> Workload:
        return poisson([rate * (1 - part), rate * part], duration_ns, seed=seed)

    return dataclasses.replace(scenario([CNN, rare], rate=1, devices=2, **more), make_workload=arrivals)


def test_a_rate_at_which_a_rare_model_is_always_refused_does_not_hold() -> None:
    """One request in two hundred is for a model whose SLO is shorter than its execution."""
    rare = dataclasses.replace(CNN, name="rare", slo_ns=5 * MS)
    held = Planner(seldom(rare, 0.005)).rate()
    assert held.answer is None
    assert held.beyond is not None
    assert held.beyond.bad_fraction < 0.01
    assert held.beyond.groups_bad["model rare"] == held.beyond.groups_bad["SLO 5 ms"] == 1.0
    assert "of model rare 100 %" in held.beyond.line()
    without_groups = Planner(seldom(rare, 0.005, group_bad_max=1.0)).rate()
    assert without_groups.answer is not None
    assert without_groups.answer > 150


def test_one_bad_request_says_nothing_of_a_group_and_two_do() -> None:
    assert planning._group_bad(3, 1) == 0.0
    assert planning._group_bad(100, 2) == 0.02


def test_many_models_are_limited_by_tenths_of_their_popularity() -> None:
    """The fourth of 25 models is never in time: most failures fall into its tenth of the models, and few of
    them into the tightest SLOs."""
    models = [
        dataclasses.replace(CNN, name=f"cnn-{number}", slo_ns=(5 if number == 3 else 50 + number) * MS)
        for number in range(25)
    ]
    found = Planner(scenario(models, rate=80, skew=1.0))
    trial = found.trial(found.scenario)
    names = list(trial.groups_bad)
    assert len(names) == 20
    assert names[0] == "models 1 to 3 by popularity"
    assert names[9] == "models 24 to 25 by popularity"
    assert names[10] == "SLOs 5 to 51 ms"
    assert trial.worst_group == "models 4 to 6 by popularity"
    assert trial.groups_bad[trial.worst_group] == pytest.approx(0.43, abs=0.05)
    assert trial.badness == pytest.approx(trial.groups_bad[trial.worst_group] / 2)


def test_a_group_of_a_single_model_or_slo_is_named_so() -> None:
    models = [
        dataclasses.replace(CNN, name=f"cnn-{number}", slo_ns=(50 + number) * MS) for number in range(11)
    ]
    found = Planner(scenario(models, rate=80, skew=1.0))
    names = list(found.trial(found.scenario).groups_bad)
    assert names[:2] == ["models 1 to 2 by popularity", "model 3 by popularity"]
    assert names[10:12] == ["SLOs 50 to 51 ms", "SLO 52 ms"]


def test_where_a_busier_part_of_a_whole_is_counted_the_bound_is_of_that_part() -> None:
    """Rates are given as parts of the whole rate; here the whole rate is tripled."""

    def arrivals(rate: float, duration_ns: int, seed: int) -> Workload:
        return poisson([3 * rate], duration_ns, seed=seed)

    crowded = dataclasses.replace(scenario([CNN], rate=80), make_workload=arrivals, crowding=3.0)
    devices = Planner(crowded).devices()
    assert devices.answer == devices.fluid == 3
    assert devices.trials[0].devices == 2, "the search begins where the bound says"
    assert devices.at is not None
    assert devices.at.offered == pytest.approx(4000, rel=0.1), "as many are counted as were asked for"
    rate = Planner(crowded.with_devices(3)).rate()
    assert rate.answer is not None
    assert 0.85 * rate.fluid < rate.answer <= rate.fluid * 1.03
    assert rate.fluid == pytest.approx(100 / 0.99, rel=0.01)


def test_where_limits_are_not_asked_for_nothing_is_looked_for_beyond_an_answer_of_one_device() -> None:
    plan = Planner(scenario([CNN], rate=20), limits=False).devices()
    assert (plan.answer, plan.beyond, plan.limited_by, plan.relief) == (1, None, "", {})
    assert [(one.devices, one.rate) for one in plan.trials] == [(1, 20)]
    tightest = Planner(scenario([CNN], rate=1), limits=False).slo()
    assert tightest.answer is not None
    limits = Planner(scenario([CNN], rate=20)).devices()
    assert limits.beyond is not None
    assert limits.beyond.rate > 20
    assert limits.limited_by == "execution"


def test_large_inputs_over_a_slow_network_make_the_link_the_limit() -> None:
    model = dataclasses.replace(CNN, input_bytes=1_000_000)
    plan = Planner(
        scenario([model], rate=1, devices=1, cluster={"input_bandwidth": 50_000_000, "devices_per_worker": 1})
    ).rate()
    assert plan.answer is not None
    assert plan.answer < 55, "50 inputs a second, not 100 executions"
    assert plan.limited_by == "link"
    assert plan.at is not None
    assert 0.4 < plan.at.link <= 1.02


def test_what_cannot_be_is_said_without_end() -> None:
    hopeless = Planner(scenario([CNN], rate=10, slo_ns=5 * MS)).devices()
    assert hopeless.answer is None
    assert hopeless.limited_by == "execution"
    assert Planner(scenario([CNN], rate=300)).slo().answer is None, "more than a device can execute"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"models": []}, "at least one model"),
        ({"bad_max": 0.0}, "0, is not between"),
        ({"group_bad_max": 0.005}, "0.005, is not between that of all requests, 0.01"),
        ({"rate": 0.0}, "rate 0"),
        ({"bad_max": 1e-9}, "allow more to be bad"),
        ({"models": [dataclasses.replace(CNN, slo_ns=0)]}, "'cnn' has no SLO"),
        ({"models": [dataclasses.replace(CNN, weights_bytes=1 << 40)]}, "a device has 1376"),
    ],
)
def test_a_question_without_sense_is_refused(changes: dict[str, Any], text: str) -> None:
    sound = dataclasses.replace(scenario([CNN], rate=10), requests=0)
    with pytest.raises(ConfigError, match=text):
        Planner(dataclasses.replace(sound, **changes))


def test_few_bad_ones_are_only_claimed_of_many_requests() -> None:
    one_in_a_million = dataclasses.replace(scenario([CNN], rate=10), requests=0, bad_max=1e-6)
    assert one_in_a_million.counted() == 3_000_000


def test_the_same_question_has_the_same_answer_to_the_last_digit() -> None:
    def ask() -> str:
        return json.dumps(Planner(scenario([CNN], rate=120)).devices().to_json())

    assert ask() == ask()


def run(*arguments: str) -> str:
    found = CliRunner().invoke(cli, ["plan", *arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def test_the_command_line_plans_from_a_profile_file_and_draws(tmp_path: Path) -> None:
    file, picture = tmp_path / "models.json", tmp_path / "plan.png"
    save_profiles(file, [CNN])
    quick = ["--profiles", str(file), "--requests", "2000", "--seeds", "1"]
    assert " 1 device\n" in run("devices", *quick, "--rate", "10")
    found = json.loads(run("devices", *quick, "--rate", "150", "--json", "--plot", str(picture)))
    assert found["answer"] == 2
    assert found["limited_by"] == "execution"
    assert [one["devices"] for one in found["trials"]][:2] == [1, 2] or found["trials"][0]["devices"] == 2
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = run("rate", *quick, "--devices", "2", "--copies", "3", "--zipf", "1")
    assert "requests/s" in text
    assert "limited by" in text
    text = run("slo", *quick, "--rate", "50", "--model", "cnn")
    assert math.isfinite(float(text.split()[1]))


def test_executors_have_the_memory_of_one_arena(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    save_profiles(file, [CNN])  # of 6 pages
    quick = [
        "--profiles",
        str(file),
        "--requests",
        "2000",
        "--seeds",
        "1",
        "--copies",
        "2",
        "--arena",
        "192MiB",
    ]
    alone = json.loads(run("rate", *quick, "--devices", "4", "--json"))
    shared = json.loads(run("rate", *quick, "--devices", "4", "--executors", "4", "--json"))
    assert (alone["at"]["memory"], shared["at"]["memory"]) == (0.25, 1.0)
    assert shared["answer"] == pytest.approx(alone["answer"], rel=0.1), "both models fit into one arena"
    assert Cluster(devices=10, devices_per_worker=4, executors=3).arenas == 2 + 2 + 1
    assert Cluster(devices=7).arenas == 7


def threads_of(tmp_path: Path, cores: int, slo: str, measured: dict[int, float]) -> dict[str, Any]:
    """Plan for a model that takes so many ms with so many threads."""
    words = ["threads", "--cores", str(cores), "--slo", slo, "--requests", "2000", "--seeds", "1", "--json"]
    for threads, ms in measured.items():
        file = tmp_path / f"{threads}.json"
        save_profiles(
            file, [linear("cnn", 0, round(ms * MS), 1, weights_bytes=1 << 20, load_ns=MS, slo_ns=SECOND)]
        )
        words += ["--measured", f"{threads}={file}"]
    found: dict[str, Any] = json.loads(run(*words))
    return found


@pytest.mark.parametrize("cores", [16, 64])
def test_threads_are_those_of_the_highest_rate(tmp_path: Path, cores: int) -> None:
    # Threads never save time of cores: one thread has the highest rate.
    found = threads_of(tmp_path, cores, "500ms", {1: 40, 2: 22, 4: 13})
    rates = {threads: plan["answer"] for threads, plan in found["plans"].items()}
    assert found["threads"] == 1
    assert rates["1"] > rates["2"] > rates["4"] > 0.75 * cores / 4 * 1000 / 13
    # One thread does not meet the SLO, and two have no time to wait; four do.
    found = threads_of(tmp_path, cores, "30ms", {1: 40, 2: 29.5, 4: 13})
    assert found["plans"]["1"]["answer"] is None
    assert found["threads"] == 4
    assert threads_of(tmp_path, cores, "5ms", {1: 40, 4: 13})["threads"] == 0


def test_threads_are_not_taken_for_a_rate_that_is_as_high() -> None:
    assert fewest_threads({1: 100.0, 2: 101.9, 4: 90.0}) == 1
    assert fewest_threads({1: 100.0, 2: 102.1, 4: 103.0}) == 2
    assert fewest_threads({1: 0.0, 8: 1.0}) == 8
    assert fewest_threads({1: 0.0}) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--measured", "1"], "is not THREADS=FILE"),
        (["--measured", "0=a.json"], "is not THREADS=FILE"),
        (["--measured", "x=a.json"], "is not THREADS=FILE"),
        (["--measured", "2="], "is not THREADS=FILE"),
        (["--measured", "2=a.json", "--measured", "02=b.json"], "there are two files of 2 threads"),
        (["--measured", "5=a.json"], "an execution has at most 4 cores"),
        (["--measured", "1=a.json", "--executors", "3"], "--executors is not for plan threads"),
        (["--measured", "1=a.json", "--profiles", "b.json"], "--profiles is not for plan threads"),
        (["--measured", "1=a.json"], "a.json"),
    ],
)
def test_measurements_by_threads_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(cli, ["plan", "threads", "--cores", "4", *arguments])
    assert found.exit_code != 0
    assert text in " ".join(found.output.replace("│", " ").split())


def onnx_files(folder: Path, *names: str) -> list[str]:
    """Options that name files. Their content is not read: the measurement is replaced."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    return [word for name in names for word in ("--onnx", str(folder / name))]


@pytest.mark.parametrize(("ms_of_two", "threads"), [(39.0, 1), (22.0, 1), (19.0, 2)])
def test_a_file_is_measured_here_and_the_faster_way_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ms_of_two: float, threads: int
) -> None:
    asked: list[Any] = []

    def measure(files: Any, counts: list[int], cores: int, tell: Any) -> dict[int, list[ModelProfile]]:
        asked.append(([file.name for file in files], counts, cores))
        return {
            count: [dataclasses.replace(CNN, exec_ns={1: round(ms * MS)}, batch_max=1, slo_ns=0)]
            for count, ms in ((1, 40.0), (2, ms_of_two))
        }

    monkeypatch.setattr(by_threads, "measure_by_threads", measure)
    monkeypatch.setattr("clockwork.models.threads.thread_counts", lambda cores: [1, 2])
    words = ["threads", "--cores", "2", *onnx_files(tmp_path, "cnn.onnx"), "--slo", "500ms"]
    found = json.loads(run(*words, "--requests", "2000", "--seeds", "1", "--json"))
    assert asked == [(["cnn.onnx"], [1, 2], 2)]
    assert found["threads"] == threads


@pytest.mark.parametrize(
    ("files", "more", "text"),
    [
        ([], [], "takes either --measured or --onnx"),
        (["a.onnx"], ["--slo", "1s", "--measured", "1=a.json"], "takes either --measured or --onnx"),
        (["a.onnx"], [], "--onnx needs --slo"),
        (["a.onnx", "b/a.onnx"], ["--slo", "1s"], "names two files alike"),
    ],
)
def test_files_to_measure_are_checked(tmp_path: Path, files: list[str], more: list[str], text: str) -> None:
    words = ["plan", "threads", "--cores", "2", *onnx_files(tmp_path, *files), *more]
    found = CliRunner().invoke(cli, words)
    assert found.exit_code == 2
    assert text in " ".join(found.output.replace("│", " ").split())


def test_measurements_by_threads_are_of_the_same_models(tmp_path: Path) -> None:
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    save_profiles(files[0], [CNN])
    save_profiles(files[1], [dataclasses.replace(CNN, name="another")])
    words = [word for index, file in enumerate(files) for word in ("--measured", f"{index + 1}={file}")]
    found = CliRunner().invoke(cli, ["plan", "threads", "--cores", "4", *words])
    assert found.exit_code == 2
    assert "are of different models" in " ".join(found.output.replace("│", " ").split())


def test_a_running_cluster_says_how_many_executors_share_an_arena() -> None:
    first = {"devices": [{"arena": -1}, {"arena": 0}, {"arena": 0}, {"arena": -1}, {"arena": 3}]}
    assert arena_widths([first, {"devices": [{"arena": -1}]}]) == [3, 2, 1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["devices", "--rate", "10", "--slo", "100us"], "a model takes longer than its SLO"),
        (["rate", "--slo", "100us"], "a model takes longer than its SLO"),
        (["slo", "--rate", "100000"], "the devices cannot execute as much as is asked for"),
    ],
)
def test_the_command_line_says_why_nothing_holds(tmp_path: Path, arguments: list[str], text: str) -> None:
    file = tmp_path / "models.json"
    save_profiles(file, [CNN])
    asked = [*arguments, "--profiles", str(file)]
    said = run(*asked)
    assert f"limited by    execution: {text}" in said
    assert "inf" not in said
    found = json.loads(run(*asked, "--json"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["answer"] is None


def test_a_plot_that_cannot_be_drawn_is_said_before_anything_is_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "models.json"
    save_profiles(file, [CNN])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if the package were not installed
    monkeypatch.setattr(Planner, "devices", lambda planner: pytest.fail("it was simulated"))
    asked = ["plan", "devices", "--profiles", str(file), "--rate", "10", "--plot", str(tmp_path / "plan.png")]
    found = CliRunner().invoke(cli, asked)
    assert found.exit_code == 1
    assert "--plot needs matplotlib: pip install 'clockwork-serving[plots]'" in found.output


def test_a_long_simulation_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "EVENTS_A_TURN", 100)
    told: list[tuple[str, float]] = []
    small = scenario([CNN], rate=50)
    Planner(small, watch=lambda what, part: told.append((what, part)), threads=1).trial(small)
    parts = [part for _, part in told]
    assert {what for what, _ in told} == {"1 device, 50 requests/s"}
    assert parts == sorted(parts)
    assert parts[0] < 0.2
    assert parts[-1] == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_the_command_line_plans_for_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    save_profiles(file, [CNN])
    found = json.loads(
        run(
            *("devices", "--profiles", str(file), "--copies", "4", "--rate", "60", "--trace", "synthetic"),
            *("--duration", "30", "--seeds", "1", "--bad", "5", "--json"),
        )
    )
    assert found["answer"] >= 1


def test_of_the_busiest_part_of_a_trace_all_is_of_what_is_counted(tmp_path: Path) -> None:
    """One of twenty minutes has forty calls, and the next has ten: 45 calls in a minute and a
    half."""
    file, trace = tmp_path / "models.json", tmp_path / "trace.csv"
    save_profiles(file, [CNN])
    calls = [1] * 10 + [40, 10] + [1] * 8
    trace.write_text(
        f"HashFunction,{','.join(str(minute + 1) for minute in range(20))}\nf,{','.join(map(str, calls))}\n"
    )
    busiest = [
        "--profiles",
        str(file),
        "--trace",
        str(trace),
        "--busiest",
        "--duration",
        "90",
        "--seeds",
        "1",
    ]
    found = json.loads(run("devices", *busiest, "--rate", "34", "--json"))
    assert found["answer"] >= found["fluid"] >= 3, "34/s on average, of which 400/s in the busiest minute"
    assert found["at"]["offered"] == pytest.approx(34 * 1200 * 45 / 68, rel=0.02)
    assert "counted       the busiest part, at 8.824 times" in run("devices", *busiest, "--rate", "34")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--policy", "clairvoyant"], "no scheduling policy 'clairvoyant'"),
        (["--model", "gpt"], "no model 'gpt'"),
        (["--bad", "100"], "is not between 0 and 1"),
        (["--rate", "0"], "'--rate': 0.0 is not in the range x>0"),
    ],
)
def test_the_command_line_names_what_is_wrong(tmp_path: Path, arguments: list[str], text: str) -> None:
    file = tmp_path / "models.json"
    save_profiles(file, [CNN])
    found = CliRunner().invoke(cli, ["plan", "devices", "--profiles", str(file), "--rate", "5", *arguments])
    assert found.exit_code == 2
    assert text in found.output
