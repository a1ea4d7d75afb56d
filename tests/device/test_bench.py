"""The benchmark of holdings runs, and its counts are right however busy the machine is."""

from __future__ import annotations

from pathlib import Path

from bench.holdings import HOLDINGS, TOLERANCE, Site, measure


def test_both_holdings_of_a_small_model_are_measured(tmp_path: Path) -> None:
    with Site("digits", tmp_path) as site:
        rows = measure(site, rounds=2)
        assert site.device.memory()["resident_bytes"] == 0
    assert [row["holding"] for row in rows] == list(HOLDINGS)
    for row in rows:
        assert row["error"] < TOLERANCE
        assert 0 < row["MB"] <= row["resident_MB"]
        assert min(value for value in row.values() if isinstance(value, float)) > 0
