"""Clients that wait until the workers of an earlier controller are back."""

from __future__ import annotations

from pathlib import Path

import pytest

from clockwork.config.controller import RETURN_NS, RETURN_SETTLE_NS
from clockwork.controller.peers.returning import WORKERS_FILE, Returning, read_names, write_names
from clockwork.wire.messages import NEVER_NS

BEGUN_NS = 1_000


def test_nobody_waits_where_no_worker_was() -> None:
    returning = Returning([], lambda worker: 1, BEGUN_NS)
    assert returning.is_over
    assert returning.due_ns == NEVER_NS
    assert not returning.look(BEGUN_NS)


def test_clients_wait_until_every_worker_has_said_what_it_has() -> None:
    preparing = {7: 2, 8: 0}
    returning = Returning(["a", "b"], preparing.__getitem__, BEGUN_NS)
    assert returning.due_ns == BEGUN_NS + RETURN_NS
    returning.joined("stranger", 6)
    returning.joined("a", 7)
    assert not returning.look(BEGUN_NS + 1)
    returning.joined("b", 8)
    assert not returning.look(BEGUN_NS + 2)
    preparing[7] = 0
    assert not returning.look(BEGUN_NS + 3), "its last words may be on their way"
    assert returning.due_ns == BEGUN_NS + 3 + RETURN_SETTLE_NS
    assert not returning.look(returning.due_ns - 1)
    assert returning.look(returning.due_ns)
    assert returning.is_over
    assert not returning.look(BEGUN_NS + RETURN_NS), "it is told once"


def test_clients_do_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    returning = Returning(["b", "a"], lambda worker: 1, BEGUN_NS)
    returning.joined("a", 1)
    assert not returning.look(BEGUN_NS + RETURN_NS - 1)
    assert returning.look(BEGUN_NS + RETURN_NS)
    assert "are not back: b" in caplog.text


def test_names_are_what_was_written_last(tmp_path: Path) -> None:
    assert read_names(tmp_path) == []
    for names in (["a", "worker-1", "ü"], ["b"], []):
        write_names(tmp_path, names)
        assert read_names(tmp_path) == names


@pytest.mark.parametrize("damage", [b"", b"[", b"{}", b"[1]", b"\xff", b"[" * 100_000, b'"a"'])
def test_damaged_names_are_none(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / WORKERS_FILE).write_bytes(damage)
    assert read_names(tmp_path) == []
    assert "cannot be read" in caplog.text
