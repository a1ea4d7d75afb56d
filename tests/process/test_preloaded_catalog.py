"""The catalogue's system calls fail, each once and with each error, and its process ends before each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clockwork.controller.catalog.database import FILE
from tests.process.cluster import ROOT

SHIM = ROOT / "tests" / "native" / "failing_disk.c"


@pytest.mark.slow
def test_whatever_system_call_fails_a_change_holds_or_does_not(tmp_path: Path) -> None:
    library = tmp_path / "failing_disk.so"
    compiler = [
        *os.environ.get("CC", "gcc").split(),
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    subprocess.run([*compiler, "-o", library, SHIM, "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "CLOCKWORK_FAILING": f"/data/{FILE}"}
    command = [sys.executable, "-m", "tests.process.preloaded_catalog", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    print(counts)
    assert min(counts[end] for end in ("made", "refused", "killed")) > 20
