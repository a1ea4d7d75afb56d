"""A test that hangs fails by itself, prints the stacks of all threads, and lets the next test run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETTINGS = PROJECT["tool"]["pytest"]["ini_options"]

HANGS = """
import threading


def wait_beside():
    threading.Event().wait()


def test_that_hangs():
    threading.Thread(target=wait_beside, daemon=True).start()
    threading.Event().wait()


def test_after_it():
    pass
"""


@pytest.mark.slow
def test_a_test_that_hangs_fails_with_every_stack_and_the_next_one_runs(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HANGS)
    limits = [f"timeout_method={SETTINGS['timeout_method']}", "timeout=1"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"]
        + [part for one in limits for part in ("-o", one)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1, done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "in wait_beside" in done.stdout + done.stderr, "the other thread's stack"
    assert "test_that_hangs" in done.stdout


def test_a_process_of_tests_that_dies_in_the_last_test_ends_the_run_and_is_told_at_once(
    tmp_path: Path,
) -> None:
    """pytest-xdist would start another, which waits for ever."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (spread,) = re.findall(r"^SPREAD := (.*)$", makefile, re.MULTILINE)
    (tmp_path / "test_first.py").write_text("def test_that_passes(): pass")
    (tmp_path / "test_last.py").write_text("import os\n\ndef test_that_dies(): os._exit(1)")
    words = [*["-p", "no:cacheprovider", "-p", "tests.conftest", "-n", "2"], *spread.split(), "loadfile"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-c", os.devnull, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1, done.stderr
    told, _, summary = done.stdout.partition("== FAILURES ==")
    assert "test_last.py::test_that_dies failed in its" in told
    assert "1 failed, 1 passed" in summary


def test_every_test_has_a_limit_and_none_is_above_the_last_one() -> None:
    limits = [SETTINGS["timeout"]]
    for path in (ROOT / "tests").rglob("*.py"):
        limits += [int(one) for one in re.findall(r"mark\.timeout\((\d+)", path.read_text(encoding="utf-8"))]
    assert min(limits) > 0
    assert max(limits) < SETTINGS["faulthandler_timeout"]
    assert SETTINGS["faulthandler_exit_on_timeout"]
