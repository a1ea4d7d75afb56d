"""The load generator's arithmetic: arrivals, inputs and counting."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from clockwork.cli.load_report import describe
from clockwork.cli.root import cli
from clockwork.errors import ConfigError, ConnectionLost, DeadlineMissed, Refused, RequestTimeout
from clockwork.system.clock import SECOND
from clockwork.wire.description import ModelInfo
from clockwork.workloads import Arrivals, load_generator
from clockwork.workloads.load_generator import (
    LoadSettings,
    LoadTally,
    Outcome,
    _report,
    crowding_of,
    make_inputs,
    run_live,
    workload_of,
)


def load_of(models: int = 1, **more: Any) -> Arrivals:
    settings = LoadSettings(
        **{"models": tuple("abcdefgh"[:models]), "rate": 600.0, "duration_s": 20.0, **more}
    )
    settings.check()
    return workload_of(settings).collect()


@pytest.mark.parametrize(
    ("more", "cv"),
    [
        ({}, 1.0),
        ({"arrivals": "constant"}, 0.0),
        ({"arrivals": "gamma", "cv": 3.0}, 3.0),
        (
            {"bursts_s": (0.01, 0.04)},
            6.28,
        ),  # squared CV of an interrupted Poisson process: 1 + 2 * 3000 * 100 / 125**2, squared
    ],
)
def test_arrivals_have_the_rate_and_the_spread_that_was_asked_for(more: dict[str, Any], cv: float) -> None:
    arrivals = load_of(**more)
    gaps = np.diff(arrivals.t_ns)
    assert len(arrivals) == pytest.approx(12_000, rel=0.12)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.15, abs=1e-3)
    assert np.array_equal(arrivals.t_ns, load_of(**more).t_ns)
    assert not np.array_equal(arrivals.t_ns, load_of(**more, seed=1).t_ns)


@pytest.mark.parametrize("arrivals", ["poisson", "constant", "gamma"])
def test_models_are_asked_by_their_popularity_at_the_rate_of_all_together(arrivals: str) -> None:
    found = load_of(4, arrivals=arrivals, cv=2.0, zipf=1.0, slo_s=0.25, priority=3)
    counts = np.bincount(found.model, minlength=4)
    assert counts.sum() == pytest.approx(12_000, rel=0.1)
    assert counts / counts.sum() == pytest.approx(np.array([12, 6, 4, 3]) / 25, rel=0.15)
    assert set(found.slo_ns.tolist()) == {250_000_000}
    assert set(found.priority.tolist()) == {3}
    if arrivals == "constant":
        assert set(np.diff(found.t_ns).tolist()) <= {1_666_666, 1_666_667}


def test_a_ramp_multiplies_the_rate_and_a_trace_is_replayed_at_it(tmp_path: Path) -> None:
    ramped = load_of(rate=100.0, duration_s=40.0, ramp=(2.0, 10.0)).t_ns
    by_step = np.bincount(ramped // (10 * SECOND), minlength=4)
    assert by_step == pytest.approx(np.array([1000, 2000, 4000, 8000]), rel=0.12)
    made_up = load_of(3, trace="synthetic", duration_s=30.0)
    assert len(made_up) == pytest.approx(18_000, rel=0.05)
    counts = np.bincount(made_up.model, minlength=3)
    assert counts[0] > 10 * counts[1]
    path = tmp_path / "trace.csv"
    path.write_text("HashFunction,1,2\nf,0,100\ng,300,0\n")
    read = load_of(2, trace=str(path), duration_s=120.0, rate=50.0)
    assert len(read) == pytest.approx(6000, rel=0.05)
    # the calls of g, the hotter function
    assert set((read.t_ns[read.model == 0] // (60 * SECOND)).tolist()) == {0}
    assert set((read.t_ns[read.model == 1] // (60 * SECOND)).tolist()) == {1}


class StandIn:
    """A client of a cluster that answers at once: model "a" with success, "b" with a refusal, "c" never in
    time."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float | None, int]] = []

    def model(self, name: str) -> ModelInfo:
        return ModelInfo.from_wire({
            "name": name, "state": "ready", "slo_ns": 5 * SECOND,
            "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 3]}],
        })  # fmt: skip

    def submit(
        self, model: str, inputs: object, *, slo: float | None, priority: int, timeout: float
    ) -> concurrent.futures.Future[Any]:
        self.asked.append((model, slo, priority))
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        if model == "a":
            future.set_result({})
        elif model == "b":
            raise Refused("", "overloaded")
        else:
            future.set_exception(DeadlineMissed())
        return future


def test_a_live_run_sends_the_very_arrivals_and_says_what_became_of_each() -> None:
    client = StandIn()
    arrivals = Arrivals.of(
        [0, 1_000_000, 1_000_000, 2_000_000, 3_000_000], [0, 1, 2, 0, 0],
        slo_ns=[0, 0, 10**8, 1, 10**8], priority=[0, 0, 7, 0, 0], cls=[0, 1, 1, 1, 2],
    )  # fmt: skip
    live = run_live(client, arrivals, ["a", "b", "c"])  # type: ignore[arg-type]
    assert client.asked == [("a", None, 0), ("b", None, 0), ("c", 0.1, 7), ("a", 1e-9, 0), ("a", 0.1, 0)]
    assert [Outcome(one) for one in live.outcome] == [
        Outcome.GOOD, Outcome.REFUSED, Outcome.MISSED, Outcome.LATE, Outcome.GOOD,
    ]  # fmt: skip
    assert np.all(live.latency_ns >= live.lag_ns)
    assert np.all(live.lag_ns >= 0)
    assert (live.report.offered, live.report.answered, live.report.within_slo) == (5, 3, 2)
    assert live.report.classes == [
        {"class": 0, "offered": 1, "within_slo": 1},
        {"class": 1, "offered": 3, "within_slo": 0},
        {"class": 2, "offered": 1, "within_slo": 1},
    ]
    with pytest.raises(ConfigError, match="model 2 of 2 models"):
        run_live(client, arrivals, ["a", "b"])  # type: ignore[arg-type]
    assert len(run_live(client, Arrivals.of([], []), ["a"]).outcome) == 0  # type: ignore[arg-type]


def test_inputs_are_made_to_measure_and_repeatable() -> None:
    info = ModelInfo.from_wire({
        "inputs": [
            {"name": "x", "dtype": "float32", "shape": ["n", 3]},
            {"name": "ids", "dtype": "int64", "shape": ["n", "length"]},
            {"name": "text", "dtype": "string", "shape": [2]},
            {"name": "half", "dtype": "bfloat16", "shape": []},
        ],
        "example": [[1, 3], [1, 17], [2], []],
    })  # fmt: skip
    first, second, *_ = made = make_inputs(info, 4, seed=3)
    assert {name: (array.shape, str(array.dtype)) for name, array in first.items()} == {
        "x": ((4, 3), "float32"),
        "ids": ((4, 17), "int64"),
        "text": ((2,), "object"),
        "half": ((), "bfloat16"),
    }
    assert set(np.unique(first["ids"])) <= {0, 1}
    assert not np.array_equal(first["x"], second["x"])
    assert np.array_equal(made[3]["x"], make_inputs(info, 4, seed=3)[3]["x"])


def test_models_that_read_images_are_sent_images() -> None:
    spec = {"name": "image", "dtype": "string", "shape": ["n"]}
    info = ModelInfo.from_wire({"inputs": [spec], "metadata": {"clockwork.strings": '{"image": "jpeg"}'}})
    first, second, *_ = make_inputs(info, 2, seed=3)
    images = [*first["image"], *second["image"]]
    assert len(set(images)) > 1
    assert all(data.startswith(b"\xff\xd8\xff") for data in images)


def test_everything_is_counted_once_and_where_it_belongs() -> None:
    tally = LoadTally()
    outcomes: list[tuple[int, BaseException | None]] = [
        (10_000_000, None),
        (90_000_000, None),  # answered, but too late for the client
        (1_000_000, Refused("", "deadline")),
        (2_000_000, Refused("", "deadline")),
        (3_000_000, Refused("", "memory")),
        (50_000_000, DeadlineMissed()),
        (50_000_000, RequestTimeout()),
        (50_000_000, ConnectionLost()),
    ]
    for latency_ns, error in outcomes:
        tally.sent += 1
        tally.record("a" if error is None else "b", latency_ns, 50_000_000, error)
    tally.input_bytes = 8 * 602_000
    report = _report({}, tally, 2.0)
    assert (report.offered, report.answered, report.within_slo) == (8, 2, 1)
    assert (report.offered_rate, report.goodput) == (4.0, 0.5)
    assert (report.refused, report.refusals) == (3, {"deadline": 2, "memory": 1})
    assert (report.missed, report.timeouts, report.errors) == (1, 1, {"ConnectionLost": 1})
    assert report.latency_ms["p50"] == 50.0
    assert report.latency_ms["max"] == 90.0
    assert report.refusal_ms["max"] == 3.0
    assert "refused 3  missed 1  failed 2  p50" in tally.line(), "a missed deadline is no failure"
    text = describe(report)
    assert "deadline 2, memory 1" in text
    assert "0.5/s, 1 (12.50 %)" in text
    assert "602000 bytes a request, 2.4 MB/s" in text
    by_model = {row["model"]: row for row in report.models}
    assert {name: by_model["a"][name] for name in ("offered", "good", "late", "p50_ms")} == {
        "offered": 2, "good": 1, "late": 1, "p50_ms": 50.0,
    }  # fmt: skip
    assert (by_model["b"]["refused"], by_model["b"]["failed"], by_model["b"]["p99_ms"]) == (3, 1, None)
    rows = [line.split() for line in text.splitlines()[-2:]]
    assert rows[0] == ["b", "6", "0", "0", "3", "1", "1", "1", "-", "-"]
    assert rows[1][:9] == ["a", "2", "1", "1", "0", "0", "0", "0", "50.00"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": ()},
        {"rate": 0.0},
        {"concurrency": 3},
        {"rate": -1.0},
        {"rate": 1e9},
        {"rate": float("nan")},
        {"rate": 0.0, "concurrency": 10**6},
        {"duration_s": -1.0},
        {"duration_s": 0.0},
        {"slo_s": 0.0},
        {"rate": 0.0, "concurrency": 1, "trace": "synthetic"},
        {"rate": 0.0, "concurrency": 1, "ramp": (2.0, 1.0)},
        {"trace": "synthetic", "zipf": 1.0},
        {"trace": "synthetic", "arrivals": "gamma"},
        {"trace": "synthetic", "ramp": (2.0, 1.0)},
        {"bursts_s": (1.0, 1.0), "arrivals": "gamma"},
        {"bursts_s": (0.0, 1.0)},
        {"ramp": (0.0, 1.0)},
        {"ramp": (2.0, 0.0)},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    LoadSettings(("m",), rate=1.0).check()
    with pytest.raises(ConfigError):
        LoadSettings(**{"models": ("m",), "rate": 1.0, **wrong}).check()  # type: ignore[arg-type]


def test_a_trace_may_begin_where_it_is_busiest_and_its_rate_is_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    minutes = [1] * 10 + [40] + [1] * 9
    header = ",".join(str(number) for number in range(1, len(minutes) + 1))
    path.write_text(f"HashFunction,{header}\nf,{','.join(str(one) for one in minutes)}\n", encoding="utf-8")
    settings = LoadSettings(("m",), rate=10.0, duration_s=60.0, trace=str(path), busiest_s=60.0)
    settings.check()
    expected = 10.0 * 60 * 20 * 40 / 59
    assert len(workload_of(settings).collect()) == pytest.approx(expected, rel=0.05)
    assert crowding_of(settings) == pytest.approx(20 * 40 / 59)
    longer = dataclasses.replace(settings, duration_s=90.0, busiest_s=90.0)
    assert crowding_of(longer) == pytest.approx((40 + 0.5) / 1.5 * 20 / 59), "half of the minute behind it"
    assert crowding_of(dataclasses.replace(settings, busiest_s=0.0)) == 1.0
    with pytest.raises(ConfigError, match="only a trace has a busiest part"):
        LoadSettings(("m",), rate=10.0, busiest_s=60.0).check()
    with pytest.raises(ConfigError, match="busiest part -1 is not between 0"):
        dataclasses.replace(settings, busiest_s=-1.0).check()


def test_requests_that_fail_are_the_commands_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal or a missed deadline is a verdict; a lost connection is none."""

    def ran(*errors: BaseException | None) -> Any:
        tally = LoadTally()
        for error in errors:
            tally.sent += 1
            tally.record("digits", 1_000_000, 0, error)
        monkeypatch.setattr(load_generator, "run", lambda *_: _report({}, tally, 1.0))
        return CliRunner().invoke(cli, ["load", "digits", "--endpoint", "tcp://127.0.0.1:1"])

    verdicts = ran(None, Refused("", "deadline"), DeadlineMissed())
    assert verdicts.exit_code == 0, verdicts.output
    lost = ran(None, ConnectionLost(), ConnectionLost(), RequestTimeout())
    assert lost.exit_code == 1
    assert "goodput" in lost.output
    assert "3 of 4 requests (75 %) failed: ConnectionLost, RequestTimeout" in lost.output
