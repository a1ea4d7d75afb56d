"""Models of Clockwork's operators with drawn attributes and data, in processes whose fresh memory has
different content."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
SEED = 20201104
FILLS = (0x55, 0xAA)
"""Byte with which glibc fills freed memory; it fills allocated memory with the complement."""


@pytest.mark.parametrize(
    "count", [400, pytest.param(30_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
@pytest.mark.slow
def test_no_model_crashes_a_process_or_answers_with_memory_of_others(count: int) -> None:
    """Under `make debug`, the operators are checked by ASan and UBSan here."""
    said = set()
    for fill in FILLS:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.operators", str(SEED), str(count)],
            cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S if count < 1000 else 1700,
            env={**os.environ, "MALLOC_PERTURB_": str(fill)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        said.add(done.stdout)
    assert len(said) == 1, "answers depend on what fresh memory holds"
    refused, invalid, answered = map(int, said.pop().split()[:3])
    assert min(refused, invalid, answered) > count // 20
