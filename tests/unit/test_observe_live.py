"""A running cluster's recorder is read continuously: forgotten steps are counted, and another controller is
no continuation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from clockwork.errors import Unavailable
from clockwork.observe.history import History
from clockwork.observe.live import ClusterDescription, follow, look_back
from clockwork.scheduler.recording import encode_step
from clockwork.scheduler.types import Arrived, Request

MS, SECOND = 1_000_000, 1_000_000_000
CLUSTER = ClusterDescription(
    {"workers": [{"id": 1, "name": "gpu-1", "devices": [{"kind": "cpu", "page_count": 8}]}]},
    [{"id": 7, "name": "m", "version": 3}],
)


class Recorder:
    """Answer with these pieces, one after the other; then with nothing more."""

    def __init__(self, *pieces: Mapping[str, Any]) -> None:
        self.pieces = list(pieces)
        self.asked: list[str] = []

    def __call__(self, argument: str) -> Mapping[str, Any]:
        self.asked.append(argument)
        given = len(self.asked) - 1
        if given < len(self.pieces):
            return self.pieces[given]
        return {**self.pieces[-1], "place": self.pieces[-1]["next"], "bytes": b""}


def piece(place: int, end: int, times_ns: Sequence[int], epoch: int = 5) -> dict[str, Any]:
    """A piece of requests that arrive at these times; their ids are the times, in milliseconds."""
    steps = [
        encode_step([Arrived(at, Request(at // MS, 7, 1, (), 10, at, at + 50 * MS, 4))], [])
        for at in times_ns
    ]
    body = b"".join(steps)
    return {"place": place, "bytes": body, "next": place + len(body), "end": end, "epoch": epoch}


def test_it_is_followed_until_there_is_enough() -> None:
    first = piece(0, 1 << 20, [SECOND, SECOND + 10 * MS])
    second = piece(first["next"], 1 << 20, [SECOND + 20 * MS, SECOND + 120 * MS])
    history = History()
    found = follow(Recorder(first, second), history, CLUSTER, 100 * MS)
    assert list(history.requests) == [1000, 1010, 1020], "what came later is left out"
    assert (found.bytes, found.lost) == (second["next"], 0)
    assert history.label(7) == "m@3"
    assert history.device_label(1, 0) == "gpu-1/0"


def test_what_the_recorder_forgot_is_counted_and_skipped() -> None:
    first = piece(0, 1 << 20, [SECOND])
    second = piece(first["next"] + 1000, 0, [2 * SECOND])
    recorder = Recorder(first, second)
    history = History()
    found = look_back(recorder, history, CLUSTER, 5 * SECOND)
    assert recorder.asked == ["-5000000000", f"#{first['next']}"]
    assert found.lost == 1000
    assert history.skipped_ns == SECOND
    assert list(history.live) == [2000]


def test_another_controller_is_no_continuation() -> None:
    first = piece(0, 1 << 20, [SECOND])
    with pytest.raises(Unavailable, match="started anew"):
        look_back(Recorder(first, piece(0, 0, [SECOND], epoch=6)), History(), CLUSTER, SECOND)


def test_a_cluster_in_which_nothing_happens_is_not_followed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clockwork.observe.live.LIVE_LATE_S", 0.0)
    history = History()
    found = follow(Recorder(piece(0, 0, [])), history, CLUSTER, MS)
    assert (found.bytes, history.steps) == (0, 0)
