"""Work on others' memory, in turns of its owners (clockwork/system/copies.py)."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from clockwork.errors import InvalidInput
from clockwork.system import copies
from clockwork.system.copies import Copies, Work
from tests.patience import PATIENCE_S


class Stage:
    """Copies whose threads do what a test says."""

    def __init__(self) -> None:
        self.ended = threading.Semaphore(0)
        self.copies = Copies(self.ended.release, "process")
        self.done: list[Any] = []

    def work(self, name: str, pieces: int, gate: threading.Event | None = None) -> Work:
        for piece in range(pieces):
            if gate is not None:
                assert gate.wait(PATIENCE_S)
            self.done.append((name, piece))
            yield


def test_a_copy_that_stands_still_holds_its_owners_other_copies_alone() -> None:
    stage, gate = Stage(), threading.Event()
    held = stage.copies.submit(1, stage.work("still", 1, gate), "still")
    stage.copies.submit(1, stage.work("behind", 1), "behind")
    for owner in range(2, 12):
        stage.copies.submit(owner, stage.work(f"{owner}", 2), owner)
    for _ in range(10):
        assert stage.ended.acquire(timeout=PATIENCE_S)
    assert sorted(one.subject for one in stage.copies.ended()) == list(range(2, 12))
    assert ("behind", 0) not in stage.done
    stage.copies.drop(held)
    gate.set()
    for _ in range(2):
        assert stage.ended.acquire(timeout=PATIENCE_S)
    assert [one.subject for one in stage.copies.ended()] == ["still", "behind"]
    stage.copies.close()


@pytest.mark.parametrize("given", [0, 1])
def test_copies_go_on_with_the_threads_that_the_system_gives(
    given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, begun = threading.Thread.start, []

    def start_some(thread: threading.Thread) -> None:
        if len(begun) >= given:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    stage = Stage()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_some)
        if not given:
            with pytest.raises(InvalidInput, match="can't start new thread"):
                stage.copies.submit(1, stage.work("early", 1), None)
        else:
            stage.copies.submit(1, stage.work("early", 1), None)
            assert stage.ended.acquire(timeout=PATIENCE_S)
    stage.copies.submit(1, stage.work("late", 1), None)
    assert stage.ended.acquire(timeout=PATIENCE_S)
    assert stage.done[-1] == ("late", 0)
    stage.copies.close()


def test_owners_take_turns_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "COPY_THREADS", 1)
    stage, gate = Stage(), threading.Event()
    stage.copies.submit(1, stage.work("first", 3, gate), None)
    stage.copies.submit(1, stage.work("second", 1), None)
    stage.copies.submit(2, stage.work("other", 2), None)
    gate.set()
    for _ in range(3):
        assert stage.ended.acquire(timeout=PATIENCE_S)
    names = [name for name, _ in stage.done]
    assert names.index("second") > 3
    assert "other" in names[:3]
    stage.copies.close()


def test_a_copy_that_is_dropped_goes_on_no_further_and_closes_its_files() -> None:
    stage, gate, closed = Stage(), threading.Event(), threading.Event()

    def work() -> Work:
        try:
            yield from stage.work("dropped", 5, gate)
        finally:
            closed.set()

    copy = stage.copies.submit(1, work(), None)
    behind = stage.copies.submit(1, stage.work("behind", 1), None)
    for one in (copy, behind):
        stage.copies.drop(one)
    assert behind.work.gi_frame is None, "it holds nothing any more"
    gate.set()
    assert stage.ended.acquire(timeout=PATIENCE_S)
    assert len(stage.done) <= 1
    assert closed.is_set() or not stage.done
    assert list(stage.copies.ended()) == [copy]
    stage.copies.drop(copy)
    stage.copies.close()


def test_copies_that_wait_are_bounded_for_each_owner_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "OWNER_COPIES_MAX", 3)
    monkeypatch.setattr(copies, "COPIES_MAX", 4)
    stage, gate = Stage(), threading.Event()
    for _ in range(3):
        stage.copies.submit(1, stage.work("mine", 1, gate), None)
    with pytest.raises(InvalidInput, match=r"3 copies of process 1's memory wait .* at most 3"):
        stage.copies.submit(1, stage.work("mine", 1, gate), None)
    stage.copies.submit(2, stage.work("other", 1, gate), None)
    with pytest.raises(InvalidInput, match=r"4 copies of clients' memory wait .* at most 4"):
        stage.copies.submit(3, stage.work("third", 1, gate), None)
    gate.set()
    for _ in range(4):
        assert stage.ended.acquire(timeout=PATIENCE_S)
    stage.copies.submit(3, stage.work("third", 1), None)
    assert stage.ended.acquire(timeout=PATIENCE_S)
    stage.copies.close()


def test_whatever_a_copy_raises_is_its_askers_and_the_threads_go_on() -> None:
    stage = Stage()

    def fails(error: Exception) -> Work:
        yield
        raise error

    errors = [AssertionError("a defect"), OSError("a disk"), InvalidInput("a client")]
    for error in errors * 4:
        stage.copies.submit(1, fails(error), error)
    for _ in range(12):
        assert stage.ended.acquire(timeout=PATIENCE_S)
    ended = list(stage.copies.ended())
    assert len(ended) == 12
    assert all(one.error is one.subject for one in ended)
    stage.copies.close()


def test_a_copy_that_outlasts_the_end_wakes_nobody_and_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread to be woken has ended: its descriptors may belong to another."""
    monkeypatch.setattr(copies, "COPIES_CLOSE_S", 0.01)
    stage, begun, gate = Stage(), threading.Event(), threading.Event()

    def work() -> Work:
        begun.set()
        assert gate.wait(PATIENCE_S)
        stage.done.append("first")
        yield from ()

    stage.copies.submit(1, work(), None)
    stage.copies.submit(1, stage.work("second", 1), None)
    assert begun.wait(PATIENCE_S)
    stage.copies.close()
    gate.set()
    for thread in stage.copies._threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert stage.done == ["first"]
    assert not stage.ended.acquire(blocking=False)
