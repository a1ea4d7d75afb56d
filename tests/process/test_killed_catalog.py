"""Nothing of the catalogue is lost, or there in part, where its process is killed at random moments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.cluster import ROOT


@pytest.mark.parametrize(
    ("count", "seed"), [(20, 1), pytest.param(1000, 2, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_a_killed_catalogue_has_every_acknowledged_change_and_none_in_part(
    tmp_path: Path, count: int, seed: int
) -> None:
    command = [sys.executable, "-m", "tests.process.killed_catalog", tmp_path / "data", str(count), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stderr)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, f"{count} processes were killed")
