"""The note that a worker finds of a trial in which it ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from clockwork.worker.trial_notes import FOLDER, TrialNotes
from tests.patience import PATIENCE_S

NAME = "digest-of-a-model"


def end_in_a_trial(store: Path, *more: str) -> None:
    program = f"""
import os, pathlib
from clockwork.worker.trial_notes import TrialNotes
notes = TrialNotes(pathlib.Path({str(store)!r}))
assert notes.begin({NAME!r})
{"; ".join(more)}
os._exit(75)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=PATIENCE_S, check=False).returncode == 75


def left(store: Path) -> list[str]:
    return [path.name for path in (store / FOLDER).iterdir()]


def test_a_trial_in_which_the_worker_ended_is_told_once(tmp_path: Path) -> None:
    end_in_a_trial(tmp_path)
    notes = TrialNotes(tmp_path)
    assert notes.begin("another")
    notes.end()
    assert not notes.begin(NAME)
    assert left(tmp_path) == []
    assert notes.begin(NAME), "somebody wants to know it again"
    notes.end()
    assert left(tmp_path) == []


def test_one_that_ended_or_was_forgiven_is_not_told(tmp_path: Path) -> None:
    end_in_a_trial(tmp_path, "notes.end()")
    assert left(tmp_path) == []
    end_in_a_trial(tmp_path, "notes.close()", "assert notes.begin('late')")
    assert left(tmp_path) == []


def test_another_worker_that_tries_the_same_is_no_reason(tmp_path: Path) -> None:
    notes, other = TrialNotes(tmp_path), TrialNotes(tmp_path)
    assert notes.begin(NAME)
    assert other.begin(NAME)
    other.end()
    assert left(tmp_path) == [NAME], "the first still tries it"
    notes.end()
    assert left(tmp_path) == []
