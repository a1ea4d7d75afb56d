"""The load generator's arithmetic: arrivals, inputs and counting."""

from __future__ import annotations

import random

import numpy as np
import pytest

from clockwork.clock import SECOND
from clockwork.description import ModelInfo
from clockwork.errors import ConfigError, ConnectionLost, DeadlineMissed, Refused, RequestTimeout
from clockwork.load import LoadSettings, Tally, _report, arrival_times, describe, make_inputs


def test_poisson_arrivals_have_the_rate_and_the_spread_of_poisson() -> None:
    times = list(arrival_times("poisson", 1000.0, 50 * SECOND, random.Random(5)))
    gaps = np.diff([0, *times])
    assert len(times) == pytest.approx(50_000, rel=0.02)
    assert gaps.mean() == pytest.approx(1e6, rel=0.02)
    assert gaps.std() == pytest.approx(1e6, rel=0.03)  # exponential: as large as the mean
    assert times == list(arrival_times("poisson", 1000.0, 50 * SECOND, random.Random(5)))


def test_constant_arrivals_are_even() -> None:
    assert list(arrival_times("constant", 4.0, SECOND, random.Random(0))) == [
        SECOND // 4, SECOND // 2, 3 * SECOND // 4, SECOND,
    ]  # fmt: skip


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


def test_everything_is_counted_once_and_where_it_belongs() -> None:
    tally = Tally()
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
        tally.record(latency_ns, 50_000_000, error)
    report = _report(LoadSettings(("m",), rate=4.0), tally, 2.0)
    assert (report.offered, report.answered, report.within_slo) == (8, 2, 1)
    assert (report.offered_rate, report.goodput) == (4.0, 0.5)
    assert (report.refused, report.refusals) == (3, {"deadline": 2, "memory": 1})
    assert (report.missed, report.timeouts, report.errors) == (1, 1, {"ConnectionLost": 1})
    assert report.latency_ms["p50"] == 50.0
    assert report.latency_ms["max"] == 90.0
    assert report.refusal_ms["max"] == 3.0
    text = describe(report)
    assert "deadline 2, memory 1" in text
    assert "0.5/s, 1 (12.50 %)" in text


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
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    LoadSettings(("m",), rate=1.0).check()
    with pytest.raises(ConfigError):
        LoadSettings(**{"models": ("m",), "rate": 1.0, **wrong}).check()  # type: ignore[arg-type]
