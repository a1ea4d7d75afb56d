"""Some seeds of `make chaos`, and a soak of seconds, so that the normal tests notice if these commands
break."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import template
from tests.chaos.__main__ import in_a_process, summary
from tests.chaos.scenario import Kind
from tests.patience import PATIENCE_S

pytest.importorskip("aiohttp", reason="the gateway's libraries are not installed ([gateway])")

SAMPLE = (Kind.KILL_CONTROLLER, Kind.FULL_CONTROLLER_DISK, Kind.LYING_WORKER)
"""Kinds of faults in `make test-all`, which take half a minute on an idle machine; `make test-long` has all
kinds."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    template.make(root)
    return root


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in SAMPLE else pytest.mark.long) for kind in Kind],
)
def test_one_seed_of_a_kind(prepared: Path, tmp_path: Path, kind: Kind) -> None:
    report = in_a_process(1, prepared, tmp_path, kind)
    assert report["breaches"] == []
    found = summary([report])
    assert found["kinds"][kind]["faults"] + found["kinds"][kind]["skipped"] == len(report["faults"])
    assert sum(count for name, count in report["outcomes"].items() if name.endswith(" ok")) > 30
    assert {name.split()[0] for name in report["outcomes"]} == {"sync", "linked", "async", "raw", "http"}


@pytest.mark.slow
def test_a_worker_and_a_client_s_link_fail_under_up(prepared: Path, tmp_path: Path) -> None:
    report = in_a_process(0, prepared, tmp_path, None, up=True)
    assert report["breaches"] == []
    assert [fault["kind"] for fault in report["faults"]] == [Kind.KILL_WORKER, Kind.HOLD_CLIENT_LINK]


@pytest.mark.slow
def test_a_soak_of_seconds_writes_its_report(tmp_path: Path) -> None:
    """Run a soak that is too short to judge growth: only the numbers of requests and answers are checked."""
    command = [
        sys.executable, "-m", "tests.chaos.soak", "--hours", "0.0015", "--rate", "60", "--out", str(tmp_path / "short"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    report = json.loads((tmp_path / "short.json").read_text())
    assert report["troubles"] == []
    assert report["outcomes"]["roomy ok"] > 30
    assert {one["kind"] for one in report["verdicts"]} >= {"rss_mib", "descriptors", "threads", "data_mib"}
    assert report["starts"]["worker-0"] + report["starts"]["worker-1"] > 4
